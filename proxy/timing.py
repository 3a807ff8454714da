"""How an exchange went, and what of it is told in ``Server-Timing`` (W3C), in milliseconds.

``auth`` is from a request's arrival to the decision on it, ``upstream`` from its head's going to a server to the head
of the server's answer, ``total`` from its arrival to our answer's head.
"""

from __future__ import annotations

from time import monotonic

Header = tuple[bytes, bytes]


class Course:
    """What is remembered of one exchange for its figures and its line in the log.

    Apart from :class:`~proxy.streams.Exchange`, which has as many attributes as CPython keeps without a dictionary
    for each instance.
    """

    __slots__ = ("arrived", "first_byte", "overhead", "refusal", "sent", "status")

    def __init__(self, arrived: float) -> None:
        #: On the monotonic clock, like the next two.
        self.arrived = arrived
        #: When its head first went to a server, and when the answer began; 0 if it never did.
        self.sent = 0.0
        self.first_byte = 0.0
        #: Seconds from its arrival to our answer's head that were not spent on waiting for the server.
        self.overhead = 0.0
        #: What the client was answered, 0 if nothing; and the code, where that was an answer of ours.
        self.status = 0
        self.refusal = ""


def of_answer(course: Course, decided: float) -> Header:
    """Return the field of an answer whose head is about to be sent, and note the overhead."""
    arrived = course.arrived
    upstream = course.first_byte - course.sent
    total = monotonic() - arrived
    course.overhead = total - upstream
    return b"server-timing", b"auth;dur=%.2f, upstream;dur=%.2f, total;dur=%.2f" % (
        (decided - arrived) * 1000,
        upstream * 1000,
        total * 1000,
    )


def of_refusal(arrived: float, decided: float) -> Header:
    """Return the field of a refusal that is about to be sent; both times on the monotonic clock."""
    return b"server-timing", b"auth;dur=%.2f, total;dur=%.2f" % (
        (decided - arrived) * 1000,
        (monotonic() - arrived) * 1000,
    )

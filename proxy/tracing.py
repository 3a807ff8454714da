"""W3C Trace Context (Recommendation, level 1): the gateway takes part in its caller's trace, or begins one.

It passes the trace on with a ``parent-id`` of its own and records no spans, so a trace that begins here is not
sampled (§3.2.2.5.1: the default of who defers that decision). ``tracestate`` passes as it is, as we add nothing to it.
"""

from __future__ import annotations

import re
from random import getrandbits

from proxy.headers import Incoming

# §3.2.2 and §3.2.4: what follows the flags is for versions after 00 alone. Digits are in lower case.
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_PARENT = b"0" * 32, b"0" * 16
#: Where the trace id stands in what :func:`lines_of` returns.
TRACE_ID = slice(16, 48)
#: Likewise the value of ``traceparent``, and the length where there is no ``tracestate``.
PARENT = slice(13, 68)
ALONE = 70


def _parse(found: Incoming) -> tuple[bytes, bool] | None:
    """Return the caller's trace id and whether it is sampled; ``None`` when nothing valid was said."""
    if found.traceparents != 1:
        return None
    match = _PARENT.fullmatch(found.traceparent)
    if match is None:
        return None
    version, trace, parent, flags, more = match.groups()
    if trace == _NO_TRACE or parent == _NO_PARENT or version == b"ff" or (more is not None and version == b"00"):
        return None
    return trace, bool(int(flags, 16) & 1)


def trace_id_of(found: Incoming) -> bytes:
    """Return the id of the trace that a caller takes part in; empty where there is none."""
    parsed = _parse(found)
    return b"" if parsed is None else parsed[0]


def lines_of(found: Incoming, request_id: bytes) -> bytes:
    """Return the header lines that tell a server of the trace; ids are unique, not secret.

    A later version than 00 is passed on as 00, and flags that 00 does not know as zero (§3.2.2.5.2, §4.3). Without a
    valid ``traceparent`` the trace begins anew, and its ``tracestate`` ends here. Its id is that of the request where
    we made that: 32 random digits serve both.
    """
    parsed = _parse(found) if found.traceparents else None
    if parsed is None:
        trace = b"%032x" % (getrandbits(128) or 1) if request_id is found.request_id else request_id
        return b"traceparent: 00-%b-%016x-00\r\n" % (trace, getrandbits(64) or 1)
    trace, sampled = parsed
    line = b"traceparent: 00-%b-%016x-%b\r\n" % (trace, getrandbits(64) or 1, b"01" if sampled else b"00")
    return b"%btracestate: %b\r\n" % (line, found.tracestate) if found.tracestate else line

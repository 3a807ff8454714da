"""What higher apps may learn from accounts. Sent after commit, unless said otherwise."""

from django.dispatch import Signal

#: A user was disabled or enabled again, or their tier changed. Arguments: ``user_id``.
user_access_changed = Signal()

#: A user was created. Sent inside the transaction that creates them. Arguments: ``user``.
user_registered = Signal()

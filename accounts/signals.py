"""What higher apps may learn from accounts. Sent after commit."""

from django.dispatch import Signal

#: A user was disabled or enabled again, or their tier changed. Arguments: ``user_id``.
user_access_changed = Signal()

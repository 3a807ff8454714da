"""What higher apps may learn from tokens. Each is sent after commit."""

from django.dispatch import Signal

#: Credentials that must not be answered from a cache any more (revoked, rotated, scope or owner changed).
#: Arguments: ``digests`` (list of hexadecimal SHA-256), ``token_ids`` (list of UUID), ``revoked`` (bool: cut open
#: streams too).
credentials_changed = Signal()

#: The owner or staff released a device of a token. Arguments: ``token_id``, ``device_id`` (empty: all of them).
device_released = Signal()

"""Everything that changes access tokens."""

from tokens.services.devices import claim_device
from tokens.services.lifecycle import Activation, activate_token, record_device_use, record_expiries

__all__ = ["Activation", "activate_token", "claim_device", "record_device_use", "record_expiries"]

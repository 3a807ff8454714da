"""The outbox of events and its channels."""

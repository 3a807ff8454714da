"""Discounted packs of access tokens."""

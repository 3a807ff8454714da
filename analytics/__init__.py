"""Usage and business figures."""

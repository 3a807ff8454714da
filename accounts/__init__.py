"""Users, sign-in, audit trail."""

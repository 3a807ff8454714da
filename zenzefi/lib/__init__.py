"""What every app may use: errors, pagination, idempotency, rate limits, Redis, clock. Imports no app."""

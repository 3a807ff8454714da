"""What the gateway costs, beside nginx doing the same in the same run: ``python -m tests.bench``."""

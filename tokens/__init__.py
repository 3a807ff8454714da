"""Access tokens: price, purchase, refund, rotation."""

"""The algorithm: one round, a verb a file."""

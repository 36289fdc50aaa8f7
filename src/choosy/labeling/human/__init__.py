"""People as the labeler."""

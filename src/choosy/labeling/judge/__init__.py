"""A chat model as the labeler."""

"""A small model that learns another labeler's preferences."""

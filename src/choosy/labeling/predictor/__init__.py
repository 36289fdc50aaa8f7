"""A small model that learns a labeler's taste."""

"""A chat model that judges."""

"""Several labelers for one pair."""

"""The policy and what scores text."""

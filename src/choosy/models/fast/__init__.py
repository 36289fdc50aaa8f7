"""Faster code for layers of a model, with equal values."""

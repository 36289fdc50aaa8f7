"""Data modules that play one round per epoch."""

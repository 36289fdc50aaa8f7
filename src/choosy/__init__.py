"""Choosy: online preference tuning that pays only for what teaches."""

__version__ = "0.1.0"

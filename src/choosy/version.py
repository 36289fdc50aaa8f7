"""The version of Choosy."""

__version__ = "0.1.0"

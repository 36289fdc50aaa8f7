"""Labelers; the ledger of their labels."""

"""Labelers and the ledger of what they said."""

"""Rows of data, read and made into batches."""

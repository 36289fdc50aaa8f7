"""Faster equals of plain model code."""

"""Prompts that ship with Choosy."""

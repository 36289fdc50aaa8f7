"""The menu: every part of a run, one file an option."""

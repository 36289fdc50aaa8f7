"""People who judge on a page."""

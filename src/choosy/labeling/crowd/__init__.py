"""Several labelers as one."""

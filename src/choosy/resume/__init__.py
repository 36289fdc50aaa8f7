"""How an interrupted run continues."""

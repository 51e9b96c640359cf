"""Studies of our own parts: in the repository, not in the wheel."""

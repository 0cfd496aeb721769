"""The command ``prudent serve``."""

"""The command ``prudent demo``."""

"""The command ``prudent export``."""

"""The command ``prudent evaluate``."""

"""The command ``prudent recommend``."""

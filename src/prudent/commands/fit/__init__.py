"""The command ``prudent fit``."""

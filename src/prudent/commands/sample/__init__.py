"""The command ``prudent sample``."""

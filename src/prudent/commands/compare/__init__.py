"""The command ``prudent compare``."""

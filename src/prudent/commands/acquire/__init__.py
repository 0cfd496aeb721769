"""The command ``prudent acquire``."""

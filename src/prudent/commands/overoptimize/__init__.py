"""The command ``prudent overoptimize``."""

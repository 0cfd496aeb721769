"""The command ``prudent best-of-n``."""

"""The command ``prudent encode``."""

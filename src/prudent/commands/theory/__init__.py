"""The command ``prudent theory``."""

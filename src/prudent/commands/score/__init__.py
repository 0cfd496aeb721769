"""The command ``prudent score``."""

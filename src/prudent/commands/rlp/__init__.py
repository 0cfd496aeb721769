"""The command ``prudent rlp``."""

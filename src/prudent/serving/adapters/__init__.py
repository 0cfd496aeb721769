"""One small file a trainer, which a user's config names. Each calls a running ``prudent serve``."""

"""Reward models that are trained transformers: ensembles, their trainer, and models from elsewhere."""

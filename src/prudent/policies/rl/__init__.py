"""Prudent's own reinforcement learning on a language model."""

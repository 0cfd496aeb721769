"""Reward models: everything that gives scores (K members, N responses), and what their disagreement says."""

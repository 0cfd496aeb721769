"""Benchmarks of reward models: RewardBench 1 and 2, RewardMATH, preference pairs."""

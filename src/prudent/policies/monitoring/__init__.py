"""Watching a policy in training: has it left what its reward model knows, has its true value turned?"""

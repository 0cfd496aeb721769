"""Preflight: how likely is a policy to end up worse than the model it starts from, before any of it is trained.

``core`` works on arrays alone; ``inputs``, ``truth`` and ``study`` prepare them; ``verdict`` and ``page`` put the
numbers in words; ``command`` wires the steps.
"""

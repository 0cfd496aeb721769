"""How far a reward can be optimised before the true reward turns down."""

"""Many RL runs, judged: each policy against its own reward-model draw, the same draws and seeds for every objective."""

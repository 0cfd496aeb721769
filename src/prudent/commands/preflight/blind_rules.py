"""What a policy gains in the embedded world that never reads the prompt: how fair the world is.

A blind rule gives each response a number from its text alone (fewer words, no commas, higher log-probability ...).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from prudent.demo.constraints import first_person_share, items, sentences, soundness, words
from prudent.demo.world import World
from prudent.evaluation.intervals import bootstrap
from prudent.policies.finite import beta_for_kl, solve, value

KL = 0.5
TEXT_RULES: dict[str, tuple[str, str, Callable[[str], float]]] = {
    "words": ("shorter", "longer", lambda text: float(len(words(text)))),
    "commas": ("fewer commas", "more commas", lambda text: float(text.count(","))),
    "sentences": ("fewer sentences", "more sentences", lambda text: float(sentences(text))),
    "list items": ("no list", "a list", lambda text: float(items(text))),
    "first person": ("no first person", "first person", first_person_share),
    "question marks": ("no question", "questions", lambda text: float(text.count("?"))),
    "exclamation marks": ("no exclamation", "exclamations", lambda text: float(text.count("!"))),
    "digits": ("no digits", "digits", lambda text: float(any(c.isdigit() for c in text))),
    "letters a word": ("short words", "long words", lambda text: sum(map(len, words(text))) / max(1, len(words(text)))),
    "soundness": ("less sound", "sounder", soundness),
}


def blind_features(world: World) -> dict[str, tuple[str, str, torch.Tensor]]:
    """Name -> (name of the rule that prefers little, much, values (prompts, responses))."""
    found = {
        name: (less, more, torch.tensor([[rule(text) for text in texts] for texts in world.responses]).double())
        for name, (less, more, rule) in TEXT_RULES.items()
    }
    found["ended"] = ("cut off", "ended by itself", world.ended.double())
    found["log-probability"] = ("unlikelier as a whole", "likelier as a whole", world.logprobs)
    found["mean log-probability"] = ("unlikelier a token", "likelier a token", world.logprobs / world.tokens)
    return found


def tilt_gain(number: torch.Tensor, gold: torch.Tensor, target: float = KL) -> torch.Tensor:
    """Gain in gold over uniform of each prompt, (prompts,), under pi ~ exp(number / beta) at a mean KL of
    ``target``."""
    reference = torch.full_like(gold, 1 / gold.shape[1])
    number = number.double() / number.double().std()

    def policy(beta: torch.Tensor) -> torch.Tensor:
        return solve(number, reference, beta)

    beta = beta_for_kl(policy, reference, target, strict=False)
    if not bool(torch.isfinite(beta)):
        beta = torch.tensor(1e-3, dtype=torch.float64)  # ties keep this rule from that much KL: its limit
    return value(policy(beta), gold) - gold.mean(1)


def blind_gains(world: World) -> list[dict[str, Any]]:
    """Gain of every rule with its 95 % bootstrap interval over prompts, and last that of gold itself, at a KL of .5."""
    rows = []
    for less, more, values in blind_features(world).values():
        rows += [(less, tilt_gain(-values, world.gold)), (more, tilt_gain(values, world.gold))]
    rows.append(("gold itself", tilt_gain(world.gold, world.gold)))
    found = [(name, bootstrap(gains, "mean")) for name, gains in rows]
    return [{"rule": name, "kl": KL, "gain": f.value, "low": f.low, "high": f.high} for name, f in found]

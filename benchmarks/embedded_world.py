"""How fair is the embedded world? What a rule that doesn't read the prompt gains in it.

    python benchmarks/embedded_world.py [--prompts 320] [--json]

Blind rules give each response a number from its text alone (fewer words, no commas, higher mean log-probability ...).
Each is made a policy over a prompt's 16 responses, pi ~ exp(number / beta), with beta chosen so that the mean KL from
uniform is 0.5 nats, and valued by gold. "all blind rules" fits the best linear mix of them on half of the prompts and
is valued on the other half, in both directions; "gold itself" tilts by the truth and says what could be had at the
same KL. Intervals are percentile bootstraps over prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from prudent.demo.constraints import CHECKS, first_person_share, items, sentences, soundness, words
from prudent.demo.world import World, gold_reward, load_world, split
from prudent.evaluation.intervals import Estimate, bootstrap
from prudent.files import dumps
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


def within_correlation(number: torch.Tensor, gold: torch.Tensor) -> Estimate:
    """Mean over prompts of the correlation within a prompt; prompts where either side is constant are left out."""
    x, y = number - number.mean(1, keepdim=True), gold - gold.mean(1, keepdim=True)
    scale = (x.square().sum(1) * y.square().sum(1)).sqrt()
    kept = scale > 1e-9
    return bootstrap(((x * y).sum(1)[kept] / scale[kept]), "mean")


def best_mix(features: torch.Tensor, world: World) -> torch.Tensor:
    """Gain of each prompt under the best linear mix of blind features (F, prompts, responses), cross-fitted by
    halves."""
    centred = features - features.mean(2, keepdim=True)
    centred = centred / centred.flatten(1).std(1)[:, None, None].clamp(min=1e-9)
    truth = world.gold - world.gold.mean(1, keepdim=True)
    gain = torch.zeros(len(world), dtype=torch.float64)
    for fit, held in (halves := split(world, seed=0), halves[::-1]):
        design, target = centred[:, fit].flatten(1).T, truth[fit].flatten()
        ridge = 0.01 * len(design) * torch.eye(len(centred), dtype=torch.float64)
        weights = torch.linalg.solve(design.T @ design + ridge, design.T @ target)
        gain[held] = tilt_gain(torch.einsum("f,fpr->pr", weights, centred)[held], world.gold[held])
    return gain


def kinds_table(world: World) -> list[dict[str, object]]:
    """For each kind of constraint: prompts, mean credit, share met in full, spread within a prompt."""
    rows: list[dict[str, object]] = []
    for kind in CHECKS:
        credits = torch.stack(
            [
                gold_reward([[part]] * len(texts), texts)
                for constraints, texts in zip(world.constraints, world.responses, strict=True)
                for part in constraints
                if part.kind == kind
            ]
        )
        rows.append(
            {
                "kind": kind,
                "prompts": len(credits),
                "credit": float(credits.mean()),
                "met": float((credits > 0.999).double().mean()),
                "spread within a prompt": float(credits.std(1).mean()),
            }
        )
    return rows


def study(world: World) -> dict[str, object]:
    """All tables of the study."""
    gold = world.gold
    features = blind_features(world)
    rules: list[dict[str, object]] = []
    for name, (less, more, values) in features.items():
        correlation = within_correlation(values, gold)
        for label, sign in ((less, -1.0), (more, 1.0)):
            rules.append({"rule": label, "by": name, "gain": bootstrap(tilt_gain(sign * values, gold)).text})
        rules[-1]["correlation of gold and the number within a prompt"] = correlation.text
    mix = torch.stack([values for _, _, values in features.values()])
    rules.append(
        {"rule": "all blind rules", "by": "linear mix, cross-fitted", "gain": bootstrap(best_mix(mix, world)).text}
    )
    rules.append({"rule": "gold itself", "by": "the truth", "gain": bootstrap(tilt_gain(gold, gold)).text})
    lengths = torch.tensor([[len(words(text)) for text in texts] for texts in world.responses]).double()
    return {
        "prompts": len(world),
        "responses": gold.shape[1],
        "gold mean": float(gold.mean()),
        "gold spread within a prompt": float(gold.std(1).mean()),
        "gold best of 16": float(gold.max(1).values.mean()),
        "words": [float(torch.quantile(lengths.flatten(), q)) for q in (0.1, 0.5, 0.9)],
        "ended": float(world.ended.double().mean()),
        "kl": KL,
        "kinds": kinds_table(world),
        "rules": rules,
    }


def show(result: dict[str, object]) -> None:
    """Print the study as text tables."""
    for key, found in result.items():
        if not isinstance(found, list) or not found or not isinstance(found[0], dict):
            print(f"{key}: {found if not isinstance(found, float) else round(found, 4)}")
            continue
        print(f"\n{key}")
        columns = list(dict.fromkeys(name for row in found for name in row))
        print(" | ".join(columns))
        for row in found:
            cells = [row.get(name, "") for name in columns]
            print(" | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=None, help="a part of the world (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    outcome = study(load_world(given.prompts))
    if given.json:
        print(dumps(outcome))
    else:
        show(outcome)

"""Does cleaning help, and what can strength find? Reward models before and after on one untouched test split.

All heads of one comparison are fitted together; the resamples, the test pairs and the scale of features are shared, so
that variants differ in their labels alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

from prudent.arrays import ArrayLike, as_tensor
from prudent.errors import PrudentError
from prudent.evaluation.calibration import auroc
from prudent.evaluation.intervals import Estimate, Paired, bounded_mean, simultaneous_bootstrap
from prudent.evaluation.ties import mean_over_orders
from prudent.progress import meter
from prudent.rewards.accuracy import credit
from prudent.rewards.columns import pair_columns
from prudent.rewards.draws import bootstrap_counts, fit_resamples
from prudent.seeding import Seed, spawn

ROUNDS = 2000  # of the bootstrap over test prompts


@dataclass(frozen=True)
class Labels:
    """One variant of the labels of n pairs. flip, keep: (n,) bool. weight, soft_label, margin: (n,) or None."""

    flip: ArrayLike
    keep: ArrayLike
    soft_label: ArrayLike | None = None
    margin: ArrayLike | None = None
    weight: ArrayLike | None = None


@dataclass(frozen=True)
class Variant:
    """accuracy: test accuracy, mean over seeds, interval by bootstrap of test prompts. by_seed (S,): each seed's. gain:
    against the first variant on the same seeds and test pairs, paired; its interval and the two-sided p hold for all
    variants of the table together. ridge: shared by all variants. own_ridge, own_gain: what cross-validation on this
    variant's own labels chose and the gain with it, against the same first variant; None where the ridge was given.
    """

    accuracy: Estimate
    by_seed: np.ndarray
    gain: Estimate | None
    p: float | None
    seeds_better: float | None
    ridge: float
    own_ridge: float | None
    own_gain: float | None
    pairs: int


def compare_labels(
    difference: ArrayLike,
    test_difference: ArrayLike,
    variants: Mapping[str, Labels],
    *,
    groups: Sequence[Any],
    test_groups: Sequence[Any],
    seeds: int = 20,
    ridge: float | str = "cv",
    seed: Seed = 0,
) -> dict[str, Variant]:
    """Train ``seeds`` reward models on each variant of the labels and compare them on the test pairs.

    difference (n, d), test_difference (T, d): standardised features of chosen minus rejected, labels as given. A seed
    is one bootstrap resample of the training prompts, the same for every variant. ridge: a number, or "cv": chosen on
    the first variant's labels and shared, since another ridge alone can move the accuracy by several points; the gain
    with each variant's own choice is given beside it. Gains are against the first variant. Intervals resample test
    prompts (``test_groups``) and hold for all variants together; how far seeds differ is in ``by_seed``.
    """
    rows, test = as_tensor(difference, torch.float32), as_tensor(test_difference, torch.float64)
    ridge_seed, count_seed, interval_seed = spawn(seed, 3)
    counts = bootstrap_counts(len(rows), spawn(count_seed, seeds), groups)
    clusters = list(test_groups)

    def train(name: str, chosen: float | str) -> tuple[torch.Tensor, float]:
        found = _train(rows, counts, test, variants[name], groups, chosen, ridge_seed)
        advance()
        return found

    first, *others = variants
    with meter("reward models of each variant", 1 + len(others) * (2 if ridge == "cv" else 1)) as advance:
        right, shared = train(first, ridge)
        credits = {first: right} | {name: train(name, shared)[0] for name in others}
        own = {name: train(name, ridge) for name in others} if ridge == "cv" else {}
    base = credits[first]
    paired: dict[str, Paired] = {}
    if others:
        differences = torch.stack([(credits[name] - base).mean(0) for name in others], dim=1)
        gains = simultaneous_bootstrap(differences, rounds=ROUNDS, seed=interval_seed, clusters=clusters)
        paired = dict(zip(others, gains))
    return {
        name: Variant(
            accuracy=bounded_mean(right.mean(0), rounds=ROUNDS, seed=interval_seed, clusters=clusters),
            by_seed=right.mean(1).numpy(),
            gain=paired[name].difference if name in paired else None,
            p=paired[name].p if name in paired else None,
            seeds_better=float(credit((right - base).mean(1)).mean()) if name in paired else None,
            ridge=shared,
            own_ridge=own[name][1] if name in own else None,
            own_gain=float((own[name][0] - base).mean()) if name in own else None,
            pairs=int(as_tensor(variants[name].keep).sum()),
        )
        for name, right in credits.items()
    }


def _train(
    rows: torch.Tensor,
    counts: torch.Tensor,
    test: torch.Tensor,
    labels: Labels,
    groups: Sequence[Any],
    ridge: float | str,
    seed: Seed,
) -> tuple[torch.Tensor, float]:
    """Credit (seeds, T) on the test pairs of reward models trained on these labels, and the ridge used.

    rows (n, d), counts (seeds, n): how often each resample holds a pair. test (T, d).
    """
    keep = as_tensor(labels.keep).bool()
    sign = 1.0 - 2.0 * as_tensor(labels.flip).float()
    columns = pair_columns(len(rows), labels.weight, labels.soft_label, labels.margin).at(keep)
    units = [group for group, stays in zip(groups, keep.tolist()) if stays]
    fit = fit_resamples(
        (rows * sign[:, None])[keep],
        counts[:, keep],
        ridge=ridge,
        columns=columns,
        groups=units,
        seed=seed,
        tolerance=1e-6,
    )
    return credit(fit.weights @ test.T), fit.ridge


def find_flips(strength: ArrayLike, planted: ArrayLike, shares: Sequence[float]) -> dict[str, Any]:
    """How well low strength finds labels that are known to be wrong.

    strength (n,): mean margin of each pair as labelled. planted (n,) bool: wrong labels. For each share: the lowest so
    many pairs are called wrong (where that ends among equal strengths: in every order of them alike); precision,
    recall, and the share of wrong labels left after flipping exactly those. base_rate is the precision of guessing.
    """
    mean, wrong = as_tensor(strength, torch.float64), as_tensor(planted).bool()
    n, total = len(mean), int(wrong.sum())
    below, equal = (stats.rankdata(mean.numpy(), method) for method in ("min", "max"))
    below, equal = below.astype(np.int64) - 1, (equal - below + 1).astype(np.int64)
    table = []
    for share in shares:
        picked = int(share * n + 1e-9)
        chance = mean_over_orders(np.ones(picked), below, equal)  # of being among the picked
        hits = float(chance[wrong.numpy()].sum())
        table.append(
            {
                "share": share,
                "picked": picked,
                "precision": hits / picked if picked else None,
                "recall": hits / total if total else None,
                "wrong_after_flipping": (total - hits + picked - hits) / n,
                "wrong_after_dropping": (total - hits) / (n - picked) if n > picked else None,
            }
        )
    area = auroc(-mean, wrong.double())
    return {"pairs": n, "wrong": total, "base_rate": total / n, "auroc": area, "by_share": table}


def plant_flips(n: int, share: float, seed: Seed) -> np.ndarray:
    """(n,) bool: exactly ``floor(share n)`` pairs whose labels are turned round, drawn without replacement."""
    if not 0 <= share <= 1:
        raise PrudentError(f"share of planted flips is {share}; give 0 to 1")
    wrong = np.zeros(n, dtype=bool)
    generator = np.random.default_rng(spawn(seed, 1)[0])
    wrong[generator.permutation(n)[: int(share * n + 1e-9)]] = True
    return wrong

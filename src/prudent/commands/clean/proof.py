"""The proof of a cleaning: reward models before and after on untouched pairs, and how well known faults are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from prudent.commands.clean.options import CleanOptions
from prudent.commands.clean.plan import repair_plan
from prudent.data.repairs import Plan, plan_repairs
from prudent.evaluation.label_noise import Labels, compare_labels, find_flips, plant_flips
from prudent.rewards.strength import Strength, decile_groups, strength_of_differences
from prudent.seeding import spawn


def split_prompts(keys: Sequence[str], share: float, seed: Any) -> tuple[np.ndarray, np.ndarray]:
    """(train, test) row numbers; about ``share`` of the prompts are test."""
    unique = sorted(set(keys))
    held = {unique[i] for i in np.random.default_rng(seed).permutation(len(unique))[: round(share * len(unique))]}
    test = np.array([key in held for key in keys])
    return np.flatnonzero(~test), np.flatnonzero(test)


def some_prompts(keys: Sequence[str], rows: np.ndarray, most: int, seed: Any) -> np.ndarray:
    """``rows``, or those of random prompts that hold at most ``most`` of them together; in order."""
    if len(rows) <= most:
        return rows
    prompts: dict[str, list[int]] = {}
    for row in rows.tolist():
        prompts.setdefault(keys[row], []).append(row)
    names = sorted(prompts)
    taken: list[int] = []
    for index in np.random.default_rng(seed).permutation(len(names)):
        if len(taken) + len(prompts[names[index]]) > most:
            break
        taken += prompts[names[index]]
    return np.array(sorted(taken))


def judge(
    difference: Any, keys: Sequence[str], given: Mapping[str, Any], settings: CleanOptions, seed: Any
) -> Strength:
    """Strength of pairs whose standardised differences are given, as the settings say."""
    how: dict[str, Any] = {name: getattr(settings, name) for name in ("members", "folds", "in_sample")}
    how |= {name: given.get(name) for name in ("weight", "soft_label")}
    return strength_of_differences(difference, list(keys), ridge=settings.ridge_value, seed=seed, **how)


def repaired_labels(found: Strength, plan: Plan, given: Mapping[str, Any]) -> Labels:
    """Labels after a repair plan, over what the file gives."""
    mean = found.mean.numpy()
    repairs = plan_repairs(mean, found.probability.numpy(), decile_groups(mean).numpy(), plan)
    n = len(mean)
    columns: dict[str, Any] = {}
    for name, neutral in (("soft_label", 1.0), ("margin", 0.0), ("weight", 1.0)):
        new = getattr(repairs, name)
        if name in given or not np.isnan(new).all():
            columns[name] = np.where(np.isnan(new), given.get(name, np.full(n, neutral)), new)
    return Labels(repairs.flip, ~repairs.drop, **columns)


# A flip changes nothing where the label is soft: the loss of (flipped, 1 - p) is that of (not flipped, p).
OPTIONS = {
    "lowest 10 % flipped": Plan(flip=0.1),
    "lowest 20 % flipped": Plan(flip=0.2),
    "lowest decile dropped": Plan(drop={1}),
    "soft labels": Plan(soften=range(1, 11)),
    "adaptive margin": Plan(widen=range(1, 11)),
    "10 % flipped, margin": Plan(flip=0.1, widen=range(1, 11)),
}


def prove(
    difference: torch.Tensor,
    test_difference: torch.Tensor,
    keys: Sequence[str],
    test_keys: Sequence[str],
    given: Mapping[str, Any],
    cleaned: np.ndarray,
    settings: CleanOptions,
) -> dict[str, Any]:
    """Test accuracy of reward models trained on the labels as given, after the rules, and after each kind of repair.

    cleaned: (n,) bool, the training pairs that the rules keep. Strength is computed on the training pairs alone, so the
    test pairs touch nothing that is trained. Returns the table and what the numbers mean.
    """
    judge_seed, compare_seed = spawn(settings.seed, 4)[:2]
    n = len(difference)
    every = np.ones(n, dtype=bool)
    variants = {"as given": Labels(np.zeros(n, dtype=bool), every, **given)}
    if not cleaned.all():
        variants["rules"] = Labels(np.zeros(n, dtype=bool), cleaned, **given)
    rows = np.flatnonzero(cleaned)
    part = {name: np.asarray(values)[rows] for name, values in given.items()}
    found = judge(difference[torch.from_numpy(rows)], [keys[i] for i in rows.tolist()], part, settings, judge_seed)
    plan = repair_plan(settings)
    chosen = {"your options": plan} if plan.changes_anything else {}
    for name, option in {**chosen, **OPTIONS}.items():
        variants[name] = to_all_pairs(repaired_labels(found, option, part), rows, n)
    table = compared(difference, test_difference, variants, keys, test_keys, settings, compare_seed)
    return {"train_pairs": n, "test_pairs": len(test_difference), "seeds": settings.seeds, "table": table}


def to_all_pairs(labels: Labels, rows: np.ndarray, n: int) -> Labels:
    """Labels of some of n pairs as labels of all n, the others left out."""
    values = {}
    for name, empty in (("flip", False), ("keep", False), ("soft_label", 1.0), ("margin", 0.0), ("weight", 1.0)):
        part = getattr(labels, name)
        if part is not None:
            whole = np.full(n, empty)
            whole[rows] = np.asarray(part)
            values[name] = whole
    return Labels(**values)


def compared(
    difference: torch.Tensor,
    test_difference: torch.Tensor,
    variants: Mapping[str, Labels],
    keys: Sequence[str],
    test_keys: Sequence[str],
    settings: CleanOptions,
    seed: Any,
) -> list[dict[str, Any]]:
    """Variants as plain rows for tables and JSON; intervals of the gains and p hold for all rows together."""
    table = compare_labels(
        difference,
        test_difference,
        variants,
        groups=keys,
        test_groups=test_keys,
        seeds=settings.seeds,
        ridge=settings.ridge_value,
        seed=seed,
    )
    return [
        {
            "labels": name,
            "pairs": variant.pairs,
            "ridge": variant.ridge,
            "accuracy": asdict(variant.accuracy),
            "sd_over_seeds": float(np.std(variant.by_seed, ddof=1)),
            "by_seed": variant.by_seed.tolist(),
            "gain": None if variant.gain is None else asdict(variant.gain),
            "p_adjusted": variant.p,
            "seeds_better": variant.seeds_better,
            "own_ridge": variant.own_ridge,
            "own_ridge_gain": variant.own_gain,
        }
        for name, variant in table.items()
    ]


def plant(
    difference: torch.Tensor,
    test_difference: torch.Tensor | None,
    keys: Sequence[str],
    test_keys: Sequence[str],
    given: Mapping[str, Any],
    share: float,
    settings: CleanOptions,
) -> dict[str, Any]:
    """Turn a known share of labels round at random, and see what strength finds and what repairs regain."""
    plant_seed, judge_seed, compare_seed = spawn(settings.seed, 7)[4:]
    n = len(difference)
    wrong = plant_flips(n, share, plant_seed)
    sign = torch.from_numpy(1.0 - 2.0 * wrong).float()[:, None]
    damaged = difference * sign
    found = judge(damaged, keys, given, settings, judge_seed)
    result: dict[str, Any] = {"share": share, "mode": found.mode}
    result["finding"] = find_flips(found.mean, wrong, sorted({share, 0.05, 0.1, 0.2}))
    if test_difference is None:
        return result
    every, none = np.ones(n, dtype=bool), np.zeros(n, dtype=bool)
    variants = {
        "planted": Labels(none, every, **given),
        "clean labels": Labels(wrong, every, **given),
        "planted pairs left out": Labels(none, ~wrong, **given),
        f"lowest {share:.0%} flipped": repaired_labels(found, Plan(flip=share), given),
        "lowest decile dropped": repaired_labels(found, Plan(drop={1}), given),
        "soft labels": repaired_labels(found, Plan(soften=range(1, 11)), given),
    }
    result["training"] = compared(damaged, test_difference, variants, keys, test_keys, settings, compare_seed)
    return result

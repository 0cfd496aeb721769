"""One cleaning run: the steps in order, each on the last one's result."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prudent.commands.clean.inputs import (
    Features,
    Inputs,
    load_features,
    open_encoder,
    read_inputs,
    token_ids,
    without_failing,
)
from prudent.commands.clean.options import CleanOptions
from prudent.commands.clean.outcome import Judged, Outcome
from prudent.commands.clean.plan import repair_plan, rule_actions
from prudent.commands.clean.proof import judge, plant, prove, some_prompts, split_prompts
from prudent.commands.depth import at_depth
from prudent.data.cleaning import (
    Change,
    apply_changes,
    changes_of_findings,
    changes_of_repairs,
    count_changes,
    decide,
    hashes_of,
    read_decisions,
)
from prudent.data.duplicates import noise_ceiling, repeated_prompts, squeezed_text
from prudent.data.lengths import length_report, word_counts
from prudent.data.preferences import data_hash, training_columns
from prudent.data.repairs import plan_repairs
from prudent.data.rules import Rows, run_rules
from prudent.errors import PrudentError
from prudent.evaluation.intervals import correlation
from prudent.features.limits import counts_of
from prudent.rewards.strength import decile_groups, decile_table, shares
from prudent.runs import new_run
from prudent.seeding import spawn

PROOF_PAIRS = 20_000  # more training pairs than this make a proof slower, not surer: test pairs decide that


class Clock:
    """Seconds of each stage, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Note the seconds since the last lap under a stage's name."""
        now = time.perf_counter()
        self.seconds[name], self.last = now - self.last, now


def run(options: CleanOptions) -> dict[str, Any]:
    """The command: clean and write the folder; what result.json holds, with ``out``."""
    from prudent.commands.clean.output import write

    outcome = clean(options)
    result = summary(outcome)
    with new_run(options.out, "clean", options.chosen(), options.seed, options.overwrite) as written:
        written.manifest["hashes"]["preferences"] = data_hash(outcome.inputs.data)
        written.manifest["timings_s"] = outcome.timings
        write(written, outcome, result)
    return {**result, "out": str(options.out)}


def clean(settings: CleanOptions) -> Outcome:
    """Read, apply rules, judge, repair, decide, apply, prove. Raises PrudentError for bad input; writes nothing."""
    repair_plan(settings)
    rule_actions(settings)
    decisions = read_decisions(settings.decisions) if settings.decisions else []
    clock = Clock()
    encoder = open_encoder(settings)
    inputs = without_failing(read_inputs(settings), settings, encoder)
    actions = rule_actions(settings, inputs.data.column_names)
    second = second_label(settings, inputs)
    lines, hashes = inputs.data["row"][:], hashes_of(inputs.data)
    clock.lap("read")
    rows = Rows(inputs.data.to_list(), inputs.keys, inputs.others, token_ids(encoder), settings.max_length)
    rows.conflict = settings.sources_of_score
    changes = changes_of_findings(run_rules(rows, actions), actions, lines, hashes)
    ceiling = {"exact": noise_ceiling(rows.rows), "white_space_set_aside": noise_ceiling(rows.rows, squeezed_text)}
    del rows  # every text as Python objects: the largest thing beside the features
    clock.lap("rules")
    read = None
    if encoder is not None and settings.features is None:
        encoder, depth = at_depth(encoder, settings.layer, [inputs.data], settings.seed)
        read = None if depth is None else depth.as_dict(2 * len(inputs.data))
    features = load_features(settings, inputs, encoder)
    clock.lap("features")
    judged = None
    if features is not None:
        usable = trainable(len(lines), changes)
        judged, repairs = judge_pairs(settings, inputs, features, usable, second, lines, hashes)
        changes += repairs
        clock.lap("strength")
    if decisions:
        changes = decide(changes, decisions, lines, hashes, str(settings.decisions))
    cleaned = apply_changes(inputs.data, changes)
    if not cleaned.rows:
        raise PrudentError(f"{settings.source}: no pair is left after cleaning; keep more rules (--rule NAME=flag)")
    length = length_report(word_counts(inputs.data["chosen"]), word_counts(inputs.data["rejected"]))
    outcome = Outcome(
        settings,
        inputs,
        actions,
        changes,
        cleaned,
        length,
        ceiling,
        repeated_prompts(inputs.keys),
        judged,
        features=None if features is None else "; ".join([features.what, *([read["words"]] if read else [])]),
        depth=read,
        shown=None if encoder is None or settings.features is not None else shown_counts(encoder),
    )
    clock.lap("apply")
    if features is not None:
        study(outcome, features)
        clock.lap("proof")
    outcome.timings = clock.seconds
    return outcome


def shown_counts(encoder: Any) -> dict[str, Any]:
    """What the encoder's length limit did to the texts that it read (as ``features.limits.Shown.counts``)."""
    stats = encoder.stats
    return counts_of(encoder.max_length, stats.rows, stats.truncated, stats.answerless)


def trainable(n: int, changes: list[Change]) -> np.ndarray:
    """(n,) bool: pairs that no rule drops and that a reward model can learn from (two different answers with text)."""
    kept = np.ones(n, dtype=bool)
    for change in changes:
        if change.done == "drop" or change.rule in ("empty", "identical"):
            kept[change.pair - 1] = False
    return kept


def given_columns(inputs: Inputs, rows: np.ndarray) -> dict[str, np.ndarray]:
    """weight, soft_label and margin that the file itself gives, for some rows."""
    return {name: values[rows] for name, values in training_columns(inputs.data).items()}


def judge_pairs(
    settings: CleanOptions,
    inputs: Inputs,
    features: Features,
    usable: np.ndarray,
    second: np.ndarray | None,
    lines: list[int],
    hashes: list[str],
) -> tuple[Judged, list[Change]]:
    """Strength of the usable pairs and the changes that follow: the repair plan's, and flags on the weakest labels."""
    indices = np.flatnonzero(usable)
    if len(indices) < settings.folds:
        raise PrudentError(f"{settings.source}: {len(indices)} pairs left to judge; too few for {settings.folds} folds")
    difference = features.difference if usable.all() else features.difference[torch.from_numpy(indices)]
    keys = [inputs.keys[index] for index in indices]
    found = judge(difference, keys, given_columns(inputs, indices), settings, spawn(settings.seed, 3)[2])
    mean, std = found.mean.numpy(), found.std.numpy()
    decile = decile_groups(mean).numpy()
    other = None if second is None else second[indices]
    judged = Judged(found, indices, mean, std, decile, decile_table(mean, std, other), shares(mean, std))
    if other is not None:
        known = ~np.isnan(other)
        rank = correlation(mean[known], other[known], "spearman", seed=settings.seed)
        judged.second = {"column": settings.second_label, "labelled": int(known.sum()), "spearman": rank}
    repairs = plan_repairs(mean, found.probability.numpy(), decile, repair_plan(settings))
    changes = changes_of_repairs(repairs, indices.tolist(), mean, std, decile, lines, hashes)
    weak = np.flatnonzero((mean < -std) & ~repairs.flip & ~repairs.drop)
    for i in weak[np.argsort(mean[weak], kind="stable")]:
        evidence = {"strength": float(mean[i]), "sigma": float(std[i]), "decile": int(decile[i])}
        index = int(indices[i])
        changes.append(Change(index + 1, lines[index], "opposed", "flip", "none", hashes[index], evidence))
    return judged, changes


def second_label(settings: CleanOptions, inputs: Inputs) -> np.ndarray | None:
    """The second label column as (n,) float64 with NaN where it is missing. PrudentError when it is not there, or not
    numbers in [0, 1]."""
    name = settings.second_label
    if name is None:
        return None
    if name not in inputs.data.column_names:
        found = ", ".join(inputs.data.column_names)
        raise PrudentError(f"{settings.source} has no column {name!r} for --second-label; columns found: {found}")
    values = inputs.data[name][:]
    lines = inputs.data["row"][:]
    for value, line in zip(values, lines):
        number = isinstance(value, (int, float))
        if value is not None and (not number or not (0 <= value <= 1 or value != value)):
            raise PrudentError(
                f"line {line}, field {name!r}: {value!r} is no second label; it must be the probability that chosen is "
                "better (0 or 1 for a hard label), or null"
            )
    return np.array([np.nan if value is None else float(value) for value in values])


def study(outcome: Outcome, features: Features) -> None:
    """Proof and planted faults, on pairs that a reward model can learn from; into ``outcome``."""
    settings, inputs = outcome.settings, outcome.inputs
    changes = [change for change in outcome.changes if change.rule in outcome.actions]
    n = len(inputs.keys)
    usable = trainable(n, [change for change in changes if change.rule in ("empty", "identical")])
    tested = set(inputs.test_keys)
    usable &= np.array([key not in tested for key in inputs.keys])  # else labels as given would profit from the leak
    kept = trainable(n, changes)
    indices = np.flatnonzero(usable)
    keys = [inputs.keys[index] for index in indices]
    train, test, test_keys = np.arange(len(indices)), features.test, inputs.test_keys
    if test is None and settings.holdout:
        train, held = split_prompts(keys, settings.holdout, spawn(settings.seed, 4)[3])
        test = features.difference[torch.from_numpy(indices[held])]
        test_keys = [keys[i] for i in held]
    train = some_prompts(keys, train, PROOF_PAIRS, spawn(settings.seed, 8)[7])
    difference = features.difference[torch.from_numpy(indices[train])]
    train_keys = [keys[i] for i in train]
    given = given_columns(inputs, indices[train])
    if test is not None and len(test) and len(set(train_keys)) >= settings.folds:
        outcome.proof = prove(difference, test, train_keys, test_keys, given, kept[indices[train]], settings)
        names = ", ".join(Path(path).name for path in settings.test)
        outcome.proof["all_train_pairs"] = int(usable.sum()) - (0 if features.test is not None else len(test))
        outcome.proof["test"] = names or f"{settings.holdout:.0%} of the prompts, held out"
    for share in settings.plant:
        outcome.planted.append(plant(difference, test, train_keys, test_keys, given, share, settings))


def summary(outcome: Outcome) -> dict[str, Any]:
    """The run's numbers as plain values for result.json and --json."""
    judged = outcome.judged
    strength = None
    if judged is not None:
        how = {name: getattr(judged.strength, name) for name in ("mode", "ridge", "info")}
        found = {"shares": judged.shares, "deciles": judged.table, "second_label": judged.second}
        strength = {**how, "pairs": len(judged.mean), **found}
    return {
        "source": outcome.settings.source,
        "reading": outcome.inputs.report.as_dict(),
        "pairs": len(outcome.inputs.data),
        "kept": len(outcome.cleaned.rows),
        "dropped": len(outcome.inputs.data) - len(outcome.cleaned.rows),
        "flipped": sum(outcome.cleaned.flipped),
        "columns_set": outcome.cleaned.columns,
        "actions": outcome.actions,
        "changes": count_changes(outcome.changes),
        "decided": sum(change.decided is not None for change in outcome.changes),
        "prompts": outcome.prompts,
        "length": outcome.length,
        "noise_ceiling": outcome.ceiling,
        "votes": outcome.inputs.votes,
        "features": outcome.features,
        "depth": outcome.depth,
        "shown": outcome.shown,
        "strength": strength,
        "proof": outcome.proof,
        "planted": outcome.planted,
        "timings_s": outcome.timings,
    }

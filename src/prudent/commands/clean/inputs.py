"""The pairs of one cleaning run: read with their faults noted, their prompts keyed, their features at hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prudent.commands.clean.options import CleanOptions
from prudent.data.failing import origins_of, picked, use_rows
from prudent.data.files import open_records
from prudent.data.preferences import draw_pairs, pair_groups, read_preferences_with_report
from prudent.data.read_report import ReadReport
from prudent.data.votes import krippendorff_alpha, merge_votes, read_votes, win_rates
from prudent.errors import BadRow, PrudentError, RowsError
from prudent.rewards.strength import standard_differences

if TYPE_CHECKING:
    from datasets import Dataset

PIECE = 512  # pairs rendered together
FAULTS_TO_RULES = ("empty", "blank", "identical-sides")  # the reader notes these, rules decide about them


@dataclass
class Inputs:
    """data: every pair that could be read; keys: prompt hashes. others: lines of the prompts of other splits. test:
    pairs of the test files and their keys. votes: what annotators' votes say over all rows, or None."""

    data: Dataset
    report: ReadReport
    keys: list[str]
    others: dict[str, dict[str, int]]
    test: Dataset | None
    test_keys: list[str]
    votes: dict[str, Any] | None


def read_inputs(settings: CleanOptions) -> Inputs:
    """Read the file to clean and the splits to compare it with. Raises PrudentError as ``read_preferences`` does."""
    options: dict[str, Any] = {
        "on_error": "skip",
        "columns": settings.columns,
        "split": settings.split,
        "rating": settings.rating,
        "ties": settings.ties,
        "soft_votes": None if settings.soft_votes == "none" else settings.soft_votes,
        "min_share": settings.min_share,
        "without_prompt": settings.without_prompt,
    }
    data, report = read_preferences_with_report(settings.source, allow=FAULTS_TO_RULES, **options)
    if settings.max_pairs is not None and len(data) > settings.max_pairs:
        report.notes.append(
            f"{settings.max_pairs} of {len(data)} pairs used (--max-pairs), drawn at random by the seed"
        )
        data = draw_pairs(data, settings.max_pairs, settings.seed)
    others = {}
    for path in (*settings.against, *settings.test):
        split = read_preferences_with_report(path, **{**options, "split": None})[0]
        others[Path(path).name] = dict(zip(pair_groups(split), split["row"]))
    test, test_keys = None, []
    if settings.test:
        test = read_preferences_with_report(list(settings.test), **{**options, "split": None})[0]
        test = draw_pairs(test, settings.max_test_pairs, settings.seed)
        test_keys = pair_groups(test)
    keys = pair_groups(data)
    votes = vote_report(settings) if "votes" in data.column_names else None
    return Inputs(data, report, keys, others, test, test_keys, votes)


def vote_report(settings: CleanOptions) -> dict[str, Any] | None:
    """Agreement of the annotators over all rows with readable votes, ties and undecided rows included."""
    table = []
    name = settings.columns.get("votes", "votes")
    for record in open_records(settings.source, settings.split):
        if record.value is None:
            continue
        try:
            table.append(read_votes(record.value.get(name)))
        except ValueError:
            continue
    table = [votes for votes in table if votes]
    if not table:
        return None
    verdicts = [merge_votes(votes, min_share=settings.min_share) for votes in table]
    outcomes = Counter(verdict.outcome for verdict in verdicts)
    first, second = outcomes["first"], outcomes["second"]
    return {
        "rows": len(table),
        "votes_per_row": dict(Counter(str(len(votes)) for votes in table)),
        "outcomes": dict(outcomes),
        "unanimous": sum(len(set(votes)) == 1 for votes in table) / len(table),
        "krippendorff_alpha": krippendorff_alpha(table),
        "alpha_level": "nominal; a tie is a value of its own, both-bad counts as a tie",
        "first_response_win_rate": win_rates(first, len(table) - first - second, second),
    }


Ids = Callable[[Sequence[Any], Sequence[Any]], list[list[int]]]


@dataclass
class Features:
    """difference (n, d): features of chosen minus rejected of every pair, over their standard deviations among all the
    file's responses; test: the same of the test pairs, on that scale, or None. what: where they come from."""

    difference: Any
    test: Any
    what: str


def open_encoder(settings: CleanOptions) -> Any:
    """The encoder, or None without a model. Loads nothing heavy until it encodes."""
    if settings.model is None:
        return None
    from prudent.features.encoder import Encoder

    return Encoder(
        settings.model,
        pooling=settings.pooling,
        max_length=settings.max_length,
        layer=settings.blocks,
        engine=settings.ray_engine(),
    )


def token_ids(encoder: Any) -> Ids | None:
    """Function that gives the ids of conversations exactly as the encoder will see them, or None without a model."""
    if encoder is None:
        return None
    return lambda prompts, answers: [found.ids for found in encoder.renderer.conversations(prompts, answers)]


def without_failing(inputs: Inputs, settings: CleanOptions, encoder: Any) -> Inputs:
    """The inputs without the pairs that the model's template refuses; they are named in the report and counted out."""
    if encoder is None:
        return inputs

    def renderable(data: Dataset, source: str) -> tuple[list[int], list[BadRow]]:
        def use(rows: list[int]) -> None:
            part = picked(data, rows)
            for side in ("chosen", "rejected"):
                for start in range(0, len(part), PIECE):
                    rendered(encoder, part[start : start + PIECE], side, start)

        on_error = "skip" if settings.features is None else "raise"  # a file of features has a row for every pair
        _, kept, bad = use_rows(use, origins_of(data), source, on_error)
        return kept, bad

    kept, bad = renderable(inputs.data, settings.source)
    if bad:
        inputs.report.bad += bad
        inputs.data, inputs.keys = inputs.data.select(kept), [inputs.keys[row] for row in kept]
    if inputs.test is not None:
        kept, bad = renderable(inputs.test, ", ".join(settings.test))
        inputs.report.notes += [f"{len(bad)} test pairs left out, the first: {bad[0]}"] if bad else []
        inputs.test, inputs.test_keys = inputs.test.select(kept), [inputs.test_keys[row] for row in kept]
    return inputs


def rendered(encoder: Any, part: dict[str, list[Any]], side: str, start: int) -> None:
    """Render one side of some pairs, the first of which stands at ``start``."""
    try:
        encoder.renderer.conversations(part["prompt"], part[side])
    except RowsError as error:
        raise RowsError({start + row: detail for row, detail in error.rows.items()}) from error


def load_features(settings: CleanOptions, inputs: Inputs, encoder: Any) -> Features | None:
    """Features of all pairs, from a file or from the encoder (cached on disk); None when neither is given."""
    data, test = inputs.data, inputs.test
    if settings.features is not None:
        sides = _read_features(settings.features, len(data), None if test is None else len(test))
        what = settings.features.name
    elif encoder is not None:
        parts = [
            (part["prompt"][:], part[side][:])
            for part in (data, test)
            if part is not None
            for side in ("chosen", "rejected")
        ]
        # one call, in which the answers to one prompt share its computation
        both = encoder.encode([p for prompts, _ in parts for p in prompts], [a for _, side in parts for a in side])
        sides = list(both.split([len(side) for _, side in parts]))
        what = f"{settings.model}, {settings.pooling} token states"
    else:
        return None
    difference, *rest = standard_differences(*sides)
    return Features(difference, rest[0] if rest else None, what)


def _read_features(path: Path, n: int, test: int | None) -> list[torch.Tensor]:
    """chosen and rejected, and those of the test pairs when there are any."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise PrudentError(f"features {path} can't be read as safetensors: {error}") from error
    wanted = {"chosen": n, "rejected": n}
    if test is not None:
        wanted |= {"test_chosen": test, "test_rejected": test}
    for name, rows in wanted.items():
        if name not in found or found[name].ndim != 2 or len(found[name]) != rows:
            shape = tuple(found[name].shape) if name in found else "none"
            raise PrudentError(f"features {path}: {name!r} must be ({rows}, width), one row a pair; found {shape}")
    return [found[name].float() for name in wanted]

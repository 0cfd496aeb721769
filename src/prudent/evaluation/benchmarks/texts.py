"""What scorers of every kind share: their options, and items as the texts that they read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prudent.errors import PrudentError, RowsError
from prudent.evaluation.benchmarks.contest import Contestant
from prudent.evaluation.benchmarks.items import Items
from prudent.features.limits import Shown, same_groups, words


@dataclass
class Options:
    """beta: of DPO's implicit reward. step_tag, good, bad: of process models that are language models. swap: judge both
    orders. ratings: judges rate each answer alone. max_new_tokens, seed: of judges. dtype, device, language_model:
    where models load. max_length: tokens kept of a text by a classifier (None: its own limit)."""

    beta: float = 0.1
    step_tag: str = "ки"
    good: str = "+"
    bad: str = "-"
    swap: bool = False
    ratings: bool = False
    max_new_tokens: int = 256
    seed: int = 0
    dtype: str | None = None
    device: str | None = None
    language_model: str | None = None
    max_length: int | None = None


def of_items(score: Callable[[list[Any], list[Any]], Any], items: Items) -> Any:
    """``score`` (..., N) of the candidates' texts, each distinct one read once; RowsError names the items."""
    prompts, responses, indices = unique_texts(items)
    try:
        return score(prompts, responses)[..., indices]
    except RowsError as error:
        bad = {row: error.rows[position] for row, position in enumerate(indices) if position in error.rows}
        raise RowsError(bad).moved(items.owners()) from error


def unique_texts(items: Items) -> tuple[list[Any], list[Any], list[int]]:
    """Distinct (prompt, response) texts and, for every candidate, which one it is."""
    prompts, responses = items.flat()
    where: dict[str, int] = {}
    indices = [where.setdefault(repr((p, r)), len(where)) for p, r in zip(prompts, responses)]
    first: dict[int, int] = {}
    for row, position in enumerate(indices):
        first.setdefault(position, row)
    rows = [first[position] for position in range(len(where))]
    return [prompts[row] for row in rows], [responses[row] for row in rows], indices


def told_apart(found: Contestant, seen: Shown, items: Items) -> Contestant:
    """The contestant without the items of which its model is shown a correct and another candidate as one and the same.

    seen: how it is shown the texts of ``unique_texts``. What its limit cut and what was left out is in ``found.shown``
    and in words among its warnings; items are named in its notes. Candidates that are the same text stay: they are the
    file's. PrudentError where nothing is left.
    """
    indices, start, groups = unique_texts(items)[2], 0, []
    for correct, size in zip(items.correct, items.sizes):
        part = indices[start : start + size]
        groups.append((part[:correct], part[correct:]))
        start += size
    found.shown, same = same_groups(seen, groups, "items")
    said = words(found.shown)
    if len(same) == len(items):
        raise PrudentError(f"{found.name}: nothing is left to score: {said}")
    if said:
        found.warnings.append(said + (", left out" if same else ""))
    if not same:
        return found
    origins = items.origins()
    found.notes += [str(origins[position].bad(f"left out, {why}")) for position, why in list(same.items())[:20]]
    owners = items.owners()
    found.indices = [position for position in range(len(items)) if position not in same]
    found.values = found.values[:, [row for row, owner in enumerate(owners) if owner not in same]]
    return found


def causal(name: str, options: Options) -> tuple[Any, Any]:
    """(model, tokenizer) of a language model in the precision and on the device of the options."""
    from prudent.features.models import load_language_model

    return load_language_model(name, dtype=options.dtype, device=options.device)


def solution_steps(items: Items) -> tuple[list[str], list[list[str]]]:
    """(prompt text, steps) of every candidate; where the file lists no steps, non-empty lines are steps."""
    prompts, responses = items.flat()
    texts = [plain(prompt) for prompt in prompts]
    if items.steps is not None:
        return texts, [steps for item in items.steps for steps in item]
    whole = [plain(response) for response in responses]
    return texts, [[line for line in text.splitlines() if line.strip()] or [text] for text in whole]


def conversation(prompt: Any) -> str:
    """A prompt (text or messages) as one text, its turns named."""
    return prompt if isinstance(prompt, str) else "\n\n".join(f"{t['role']}: {t['content']}" for t in prompt)


def plain(answer: Any) -> str:
    """An answer (text or messages) as one text."""
    return answer if isinstance(answer, str) else "\n".join(turn["content"] for turn in answer)

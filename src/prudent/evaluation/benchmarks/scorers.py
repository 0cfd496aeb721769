"""Scorers that need models: saved ensembles and classifiers, callables, DPO pairs, process reward models, judges.

A scorer is named by a text: a folder or hub id; ``module:function``; ``dpo:POLICY,REFERENCE``; ``prm:MODEL``;
``judge:MODEL``.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prudent.data.failing import use_rows
from prudent.errors import PrudentError, RowsError
from prudent.evaluation.benchmarks.contest import Contestant, of_scores
from prudent.evaluation.benchmarks.items import Items
from prudent.evaluation.benchmarks.judge_models import judge_ratings, judge_verdicts
from prudent.evaluation.benchmarks.texts import Options, causal, of_items, solution_steps, told_apart, unique_texts
from prudent.features.limits import joined, shown
from prudent.features.models import embedded_ids, padding_id, require_known, require_room
from prudent.features.rendering import Renderer
from prudent.hub import hub_or_offline, hub_words
from prudent.progress import track

CALLABLE = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
TOKENS = 2048  # tokens a forward pass of a model with a vocabulary head: bounds its logits


def score_items(spec: str, items: Items, options: Options) -> Contestant:
    """Scores of all items by the scorer that ``spec`` names. Each text is read once, whatever is asked of them."""
    if not items.has_text:
        raise PrudentError(f"{spec} needs texts, and {items.source} holds scores alone; give the benchmark with --data")
    found, rest = next(((f, spec.removeprefix(p)) for p, f in SPECIAL.items() if spec.startswith(p)), (None, spec))
    if found is judge_verdicts and options.ratings:
        found = judge_ratings
    if found is None:
        found = model_scores if is_reward_model(spec) else callable_scores
    return found(rest, items, options)


def is_reward_model(spec: str) -> bool:
    """Whether ``spec`` names a folder of ``prudent fit`` or a classifier, rather than another kind of scorer."""
    other = spec.startswith(tuple(SPECIAL)) or CALLABLE.match(spec)
    return not other or Path(spec).exists()


def score_usable(spec: str, items: Items, options: Options, on_error: str) -> Contestant:
    """``score_items``, each item that can't be rendered or scored named by id and line in one DataError, or left out
    of this contestant with ``on_error="skip"``, which its notes tell."""

    def use(rows: list[int]) -> Contestant:
        return score_items(spec, items if len(rows) == len(items) else items.chosen(rows), options)

    found, rows, bad = use_rows(use, items.origins(), items.source, on_error)
    if bad:
        found.indices = [rows[position] for position in found.indices]
        found.notes += [f"{len(bad)} of {len(items)} items left out", *(str(row) for row in bad[:20])]
    return found


def model_scores(name: str, items: Items, options: Options) -> Contestant:
    """A folder that ``prudent fit`` wrote, or any sequence-classification reward model."""
    from prudent.rewards.model import RewardModel

    model = RewardModel.load(
        name, model=options.language_model, dtype=options.dtype, device=options.device, max_length=options.max_length
    )
    found = of_scores(name, of_items(model.score, items), items)
    found.notes.append(f"{model.family}, {model.members} member{'s' if model.members != 1 else ''}")
    prompts, responses, _ = unique_texts(items)
    return told_apart(found, model.shown(prompts, responses), items)


def callable_scores(spec: str, items: Items, options: Options) -> Contestant:
    """``module:function``, called once as function(prompts, responses) -> (N,) or (K, N). Where it raises, the items
    are found for which it does."""
    module, _, function = spec.partition(":")
    sys.path.insert(0, "")  # a module beside the user, as python -m finds it
    try:
        target = getattr(importlib.import_module(module), function)
    except Exception as error:  # the user's module may fail in any way while it is imported
        raise PrudentError(f"scorer {spec} can't be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("")
    prompts, responses = items.flat()
    try:
        scores = target(prompts, responses)
    except Exception as error:
        owners = items.owners()
        bad = {owners[row]: said for row, said in raising(target, prompts, responses).items()}
        if bad:
            raise RowsError({position: f"scorer {spec} raised {said}" for position, said in bad.items()}) from error
        raise PrudentError(
            f"scorer {spec} raised {type(error).__name__}: {error} for all texts together, for none alone"
        ) from error
    return of_scores(spec, scores, items)


def raising(function: Callable[..., Any], prompts: Sequence[Any], responses: Sequence[Any]) -> dict[int, str]:
    """Rows for which ``function`` raises alone, and what it raises: halved until they are found."""
    bad: dict[int, str] = {}
    waiting = [(0, len(prompts))]
    while waiting:
        start, stop = waiting.pop()
        try:
            function(list(prompts[start:stop]), list(responses[start:stop]))
        except Exception as error:
            if stop - start > 1:
                middle = (start + stop) // 2
                waiting += [(middle, stop), (start, middle)]
            else:
                bad[start] = f"{type(error).__name__}: {error}"
    return bad


@torch.inference_mode()
def response_log_probabilities(
    model: Any, tokenizer: Any, prompts: Sequence[Any], responses: Sequence[Any]
) -> torch.Tensor:
    """Sum of the log-probabilities (nats) of each response's tokens, its end mark included: (N,) float64."""
    from prudent.rewards.transformers.external import padded, token_batches

    rows = Renderer(tokenizer).conversations(prompts, responses)
    require_room(model, [len(row.ids) for row in rows])
    require_known(embedded_ids(model), tokenizer, [row.ids for row in rows])
    totals = torch.zeros(len(rows), dtype=torch.float64)
    for batch in track(list(token_batches([len(row.ids) for row in rows], TOKENS)), "batches of texts"):
        ids, mask = padded([rows[i].ids for i in batch], padding_id(model, tokenizer), model.device)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        chosen = logits.gather(-1, ids[:, 1:, None])[..., 0] - torch.logsumexp(logits, -1)
        position = torch.arange(1, ids.shape[1], device=ids.device)
        starts = torch.tensor([len(rows[i].prompt) for i in batch], device=ids.device)
        inside = (position >= starts[:, None]) & (mask[:, 1:] == 1)
        totals[batch] = torch.where(inside, chosen, 0.0).sum(1).double().cpu()
    return totals


def dpo_scores(names: str, items: Items, options: Options) -> Contestant:
    """DPO's implicit reward beta ln(policy / reference) of each response (arXiv 2305.18290, equation 5, but for a
    constant of the prompt). Models are loaded one after the other."""
    policy, _, reference = names.partition(",")
    if not policy or not reference:
        raise PrudentError(f"dpo:{names} names no pair; write dpo:POLICY,REFERENCE")
    totals, seen = [], []
    prompts, responses, _ = unique_texts(items)
    for name in (policy, reference):
        model, tokenizer = causal(name, options)
        totals.append(of_items(partial(response_log_probabilities, model, tokenizer), items))
        seen.append(shown(Renderer(tokenizer), prompts, responses))
        del model
    found = of_scores(f"dpo:{names}", options.beta * (totals[0] - totals[1]), items)
    found.notes.append(f"DPO implicit reward, beta {options.beta}")
    return told_apart(found, joined(seen), items)


def process_scores(name: str, items: Items, options: Options) -> Contestant:
    """Step scores of a process reward model: a token classifier (probability of its last label at each step's end), or
    a language model (probability of ``good`` against ``bad`` at each step's tag)."""
    from transformers import AutoConfig

    try:
        with hub_or_offline(name):
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise PrudentError(
            f"no process reward model found at {name!r}: {str(error).splitlines()[0]} Looked for here and on "
            f"{hub_words()}; give a folder or a hub id"
        ) from error
    classifier = any("TokenClassification" in kind for kind in config.architectures or ())
    model, tokenizer = token_classifier(name, options) if classifier else causal(name, options)
    begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    rows, ends = [], []
    for prompt, steps in zip(*solution_steps(items)):
        ids, marks = begin + encode(prompt + "\n"), []
        for step in steps:
            ids = ids + encode(f"{step}\n" if classifier else f"{step} {options.step_tag}")
            marks.append(len(ids) - 1)
            ids = ids if classifier else ids + encode("\n")
        rows.append(ids)
        ends.append(marks)
    owners = items.owners()
    try:
        require_room(model, [len(row) for row in rows])
        require_known(embedded_ids(model), tokenizer, rows)
    except RowsError as error:
        raise error.moved(owners) from error
    labels = None if classifier else [encode(options.good)[-1], encode(options.bad)[-1]]
    values = _step_probabilities(model, tokenizer, rows, ends, labels)
    found = Contestant(f"prm:{name}", "steps", list(range(len(items))), values)
    found.notes.append("process reward model, " + ("token classifier" if classifier else f"tag {options.step_tag!r}"))
    return found


def token_classifier(name: str, options: Options) -> tuple[Any, Any]:
    """(model, tokenizer) of a process reward model that classifies tokens; PrudentError where it can't be loaded."""
    from prudent.rewards.transformers.external import load_headed

    return load_headed("AutoModelForTokenClassification", "process reward model", name, options.dtype, options.device)


@torch.inference_mode()
def _step_probabilities(
    model: Any, tokenizer: Any, rows: list[list[int]], ends: list[list[int]], labels: list[int] | None
) -> list[list[float]]:
    from prudent.rewards.transformers.external import padded, token_batches

    values: list[list[float]] = [[] for _ in rows]
    for batch in track(list(token_batches([len(row) for row in rows], TOKENS)), "batches of texts"):
        ids, mask = padded([rows[i] for i in batch], padding_id(model, tokenizer), model.device)
        logits = model(input_ids=ids, attention_mask=mask).logits.float()
        for position, row in enumerate(batch):
            found = logits[position, ends[row]]
            chosen = found.softmax(-1)[:, -1] if labels is None else found[:, labels].softmax(-1)[:, 0]
            values[row] = chosen.double().cpu().tolist()
    return values


SPECIAL: dict[str, Callable[..., Contestant]] = {"dpo:": dpo_scores, "prm:": process_scores, "judge:": judge_verdicts}

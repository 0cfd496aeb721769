"""Scoring: ten members and every rule against one member, and against ten sequence-classification models.

    python benchmarks/scoring.py [--short] [--preferences FILE --test FILE] [--model NAME]

From features, and from text (the encoder's cache is off). The ten classifiers are written to disk as people have them,
and each is loaded and run over the same texts, one after the other; with --short one of them, scaled to ten. All sides
run in one process, in turn, timed by the processor's seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import results
import texts
import torch

from prudent.rewards.aggregation import RULES, aggregate
from prudent.rewards.heads import HeadEnsemble

K = 10


def write_classifier(folder: str, backbone: Any, tokenizer: Any, head: torch.Tensor) -> None:
    """A sequence-classification model of the same backbone, as ``RewardTrainer`` would have saved it."""
    from transformers import AutoModelForSequenceClassification

    config = backbone.config
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    model = AutoModelForSequenceClassification.from_config(config, dtype=backbone.dtype)
    setattr(model, model.base_model_prefix, backbone)
    with torch.no_grad():
        model.score.weight.copy_(head[None])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def plain_scores(folder: str, chats: list[list[dict[str, str]]], length: int, batch: int = 16) -> torch.Tensor:
    """Load one classifier and score chats in padded batches, sorted by length."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto").eval()
    rendered = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    order = sorted(range(len(rendered)), key=lambda row: len(rendered[row]))
    scores = torch.empty(len(rendered))
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            inputs = tokenizer(
                [rendered[row] for row in rows],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=length,
                add_special_tokens=False,
            )
            scores[rows] = model(**inputs).logits[:, 0].float()
    return scores


def figures_of(
    fast: dict[str, list[float]],
    slow: dict[str, list[float]],
    scale: float,
    *,
    features: tuple[int, int],
    texts: int,
    at: str,
) -> list[dict[str, Any]]:
    """Ratios and speeds. fast, slow: processor seconds from features and from text; scale: ten classifiers over those
    that were timed; features: rows and width; texts: how many; at: what the texts are."""
    rows, width = features
    return [
        results.ratio(
            "ten members and every rule over one member, from text", slow["ten"], slow["one"], at_most=1.05, note=at
        ),
        results.ratio(
            "ten classifiers, loaded and run, over ten members and every rule, from text",
            slow["classifiers"],
            slow["ten"],
            scale,
            note=at if scale == 1 else f"{at}; one classifier timed, scaled to ten",
        ),
        results.ratio(
            "ten members and every rule over one member, from features",
            fast["ten"],
            fast["one"],
            note=f"{rows:,} responses x {width} features",
        ),
        results.figure(
            "ten members and every rule, from features",
            [rows / s for s in fast["ten"]],
            unit="responses a second of processor",
        ),
        results.figure(
            "ten members and every rule, from text",
            [texts / s for s in slow["ten"]],
            unit="responses a second of processor",
            note=at,
        ),
    ]


def main() -> None:
    from prudent.features.encoder import Encoder
    from prudent.features.models import load_language_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    texts.add_arguments(parser)
    parser.add_argument("--repeats", type=int, help="5; short: 2")
    parser.add_argument("--out", type=Path, default=results.FOLDER / "scoring.json")
    given = parser.parse_args()
    given.pairs = given.pairs or 2
    given.test_pairs = given.test_pairs or (16 if given.short else 100)
    given.max_length = given.max_length or (128 if given.short else 256)
    repeats = given.repeats or (2 if given.short else 5)
    data = texts.read(given)
    language_model, tokenizer = load_language_model(given.model)
    encoder = Encoder((language_model, tokenizer), max_length=given.max_length, cache=None, progress=False)
    prompts, answers = list(data["test"]["prompt"]), list(data["test"]["chosen"])
    features = encoder.encode(prompts, answers)
    width = features.shape[1]
    ten = HeadEnsemble(torch.randn(K, width), torch.zeros(K), torch.zeros(width), torch.ones(width))
    one = HeadEnsemble(ten.weights[:1], torch.zeros(1), ten.mean, ten.scale)
    many = features.repeat(-(-10_000 // len(features)), 1)

    def score(ensemble: HeadEnsemble, values: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def call() -> None:
            scores = ensemble.scores(values())
            for rule in RULES if ensemble.members > 1 else ():
                aggregate(scores, rule)

        return call

    def encode() -> torch.Tensor:
        return encoder.encode(prompts, answers)

    with tempfile.TemporaryDirectory() as folder:
        write_classifier(folder, language_model.base_model, tokenizer, one.weights[0])
        chats = [[*prompt, *answer] for prompt, answer in zip(prompts, answers)]
        runs = 1 if given.short else K

        def classifiers() -> None:
            for _ in range(runs):
                plain_scores(folder, chats, given.max_length)

        small = {"ten": score(ten, lambda: many), "one": score(one, lambda: many)}
        large = {"ten": score(ten, encode), "one": score(one, encode), "classifiers": classifiers}
        results.interleaved(small, 3)
        fast = results.interleaved(small, 20, time.process_time)
        slow = results.interleaved(large, repeats, time.process_time)
    at = f"{len(answers)} responses of {given.model}"
    figures = figures_of(fast, slow, K / runs, features=(len(many), width), texts=len(answers), at=at)
    rows = [{"rules": list(RULES), "seconds from features": fast, "seconds from text": slow}]
    results.write(
        given.out, "Scoring", figures, rows=rows, data=Path(given.preferences).name if given.preferences else "embedded"
    )


if __name__ == "__main__":
    main()

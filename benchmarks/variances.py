"""Cheaper ways to a spread: adapters above shared lower layers, and the Laplace posterior in place of a bootstrap.

    python benchmarks/variances.py [--short] [--parts adapters laplace] [--preferences FILE --test FILE] [--model NAME]

adapters. One forward and backward of 3 members on 4 pairs: members above shared lower layers against a serial loop over
members. laplace. Variances of test margins: the Laplace posterior against bootstrap ensembles of growing K, their cost
and their agreement with an ensemble of 1,000.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import results
import texts
import torch

from prudent.rewards.heads import HeadEnsemble
from prudent.rewards.uncertainty import margin_moments


def adapters(data: dict[str, Any], repeats: int, layers: int) -> dict[str, Any]:
    """Figure: one forward and backward of 3 members on 4 pairs."""
    from prudent.features.models import load_language_model
    from prudent.rewards.transformers.finetuning import prepare
    from prudent.rewards.transformers.network import EnsembleModel
    from prudent.rewards.transformers.trainer import collate
    from prudent.seeding import spawn

    language_model, tokenizer = load_language_model(data["model"])
    model = EnsembleModel(language_model.base_model, spawn(0, 3))
    blocks = language_model.config.num_hidden_layers
    layers = min(layers, blocks)
    model.add_adapters(spawn(0, 3), rank=8, alpha=16, layers=layers, targets=None)
    batch = collate(prepare(data["train"].select(range(4)), tokenizer, data["max_length"])[0], 0)

    def step(share: bool) -> Callable[[], None]:
        def call() -> None:
            model.share_lower = share
            model.zero_grad()
            model(batch["input_ids"], batch["attention_mask"])["loss"].backward()

        return call

    sides = {"serial": step(False), "shared": step(True)}
    results.interleaved(sides, 1)
    times = results.interleaved(sides, repeats, time.process_time)
    return results.ratio(
        "a training step of three LoRA members, one after another, over shared lower layers",
        times["serial"],
        times["shared"],
        note=f"the top {layers} of {blocks} blocks adapted",
    )


def variances(features: dict[str, torch.Tensor], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Rows: margin variances on the test pairs. Agreement: correlation of logarithms, and the median ratio."""
    from prudent.rewards.laplace import LaplacePosterior

    chosen, rejected = features["chosen"], features["rejected"]
    test = features["test_chosen"], features["test_rejected"]
    ridge = HeadEnsemble.fit(chosen, rejected, members=1).info["ridge"]
    reference = HeadEnsemble.fit(chosen, rejected, members=1000, ridge=ridge, seed=12345)
    wanted = margin_moments(*(reference.scores(side) for side in test))[1].double()
    rows = []
    kinds: list[tuple[str, Callable[[], torch.Tensor]]] = [
        ("laplace", lambda: LaplacePosterior.fit(chosen, rejected, ridge=ridge).margin_variance(*test)),
        (
            "laplace, sandwich",
            lambda: LaplacePosterior.fit(chosen, rejected, ridge=ridge, sandwich=True).margin_variance(*test),
        ),
    ]

    def bootstrap(count: int) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            ensemble = HeadEnsemble.fit(chosen, rejected, members=count, ridge=ridge)
            return margin_moments(*(ensemble.scores(side) for side in test))[1].double()

        return call

    kinds += [(f"bootstrap, K={count}", bootstrap(count)) for count in sizes]
    for name, call in kinds:
        call()
        started = time.process_time()
        found = call()
        seconds = time.process_time() - started
        both = torch.stack([found.clamp_min(1e-30).log(), wanted.log()])
        rows.append(
            {
                "variance": name,
                "seconds": seconds,
                "log_correlation": float(torch.corrcoef(both)[0, 1]),
                "median_ratio": float((found / wanted).median()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    texts.add_arguments(parser)
    parser.add_argument("--parts", nargs="+", choices=("adapters", "laplace"), default=["adapters", "laplace"])
    parser.add_argument("--layers", type=int, default=10, help="blocks that carry adapters")
    parser.add_argument("--out", type=Path, default=results.FOLDER / "variances.json")
    given = parser.parse_args()
    given.pairs = given.pairs or (32 if given.short else 200)
    given.test_pairs = given.test_pairs or (32 if given.short else 200)
    given.max_length = given.max_length or (96 if given.short else 256)
    data = texts.read(given)
    figures: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    if "adapters" in given.parts:
        figures.append(adapters(data, 2 if given.short else 5, given.layers))
    if "laplace" in given.parts:
        rows = variances(texts.encode(data), (10, 100) if given.short else (5, 10, 30, 100, 300))
        print(*rows, sep="\n")
    results.write(
        given.out,
        "Cheaper ways to a spread",
        figures,
        rows=rows,
        data=Path(given.preferences).name if given.preferences else "embedded",
    )


if __name__ == "__main__":
    main()

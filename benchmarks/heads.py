"""Ten heads: against one, against ten runs of a reward trainer, and against scikit-learn in a loop.

    python benchmarks/heads.py [--short] [--parts cache sizes text] [--preferences FILE --test FILE] [--model NAME]

cache. From features that are there already: ten bootstrap heads against one, a thousand on 300 pairs, and
scikit-learn's logistic regression in a loop over the same resamples.
sizes. Ten heads against one on synthetic features, as the pairs grow.
text. End to end: encode once and train ten heads, against TRL's RewardTrainer with the same frozen backbone, once a
member, the same pairs, epochs, batch and learning rate. Every one of the ten runs is made and timed, unless --runs says
fewer; then the figure is scaled to ten and its note says so. Held-out accuracies stand beside the times.

Both sides run in one process, in turn, and are timed by the processor's seconds. RewardUQ, which needs another TRL, has
a script of its own: rewarduq.py.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import results
import texts
import torch

from prudent.rewards.convex import fit_heads
from prudent.rewards.draws import bootstrap_counts, standardisation
from prudent.rewards.heads import HeadEnsemble
from prudent.rewards.training import member_seeds

K = 10


def accuracy(good: torch.Tensor, bad: torch.Tensor) -> float:
    """Share of pairs that the members' mean puts in order."""
    return float(((good - bad).mean(0) > 0).double().mean())


def scikit_loop(chosen: torch.Tensor, rejected: torch.Tensor, counts: torch.Tensor, ridge: float) -> np.ndarray:
    """The same objective, one head after another, as a person would write it with scikit-learn."""
    from sklearn.linear_model import LogisticRegression

    _, scale = standardisation(chosen, rejected)
    rows = ((chosen - rejected) / scale).double().numpy()
    sign = np.where(np.arange(len(rows)) % 2, 1.0, -1.0)  # it wants two classes
    heads = []
    for row in counts.numpy():
        model = LogisticRegression(C=1 / (ridge * row.sum()), fit_intercept=False, tol=1e-8, max_iter=2000)
        heads.append(model.fit(rows * sign[:, None], sign > 0, sample_weight=row).coef_[0])
    return np.stack(heads)


def from_cache(features: dict[str, torch.Tensor], repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Figures and a row: what the heads cost once features are there."""
    chosen, rejected, ridge = features["chosen"], features["rejected"], 0.1
    n, width = chosen.shape
    counts = bootstrap_counts(n, member_seeds(0, K))
    fitted: dict[str, Any] = {}

    def ours(members: int, value: float | str) -> Callable[[], None]:
        def call() -> None:
            fitted[f"{members} {value}"] = HeadEnsemble.fit(chosen, rejected, members=members, ridge=value)

        return call

    def theirs() -> None:
        fitted["scikit"] = scikit_loop(chosen, rejected, counts, ridge)

    few = torch.randn(300, 576, generator=torch.Generator().manual_seed(0))
    many = bootstrap_counts(300, member_seeds(0, 1000))
    sides: dict[str, Callable[[], Any]] = {
        "ten": ours(K, ridge),
        "one": ours(1, ridge),
        "scikit": theirs,
        "ten, cv": ours(K, "cv"),
        "one, cv": ours(1, "cv"),
        "thousand": lambda: fit_heads(few, many, ridge=0.03),
    }
    results.interleaved(sides, 1)  # the first call of anything pays for loading it
    times = results.interleaved(sides, repeats, time.process_time)
    ensemble = fitted[f"{K} {ridge}"]
    at = f"{n:,} pairs x {width} features"
    figures = [
        results.ratio(
            "ten heads over one, ridge by cross-validation", times["ten, cv"], times["one, cv"], at_most=1.3, note=at
        ),
        results.ratio("ten heads over one, ridge given", times["ten"], times["one"], at_most=1.3, note=at),
        results.ratio("scikit-learn, ten in a loop, over ten heads", times["scikit"], times["ten"], note=at),
        results.figure("a thousand heads on 300 pairs x 576 features", times["thousand"], unit="s"),
    ]
    row = {
        "part": "cache",
        "pairs": n,
        "width": width,
        "processor seconds": {name: statistics.median(values) for name, values in times.items()},
        "largest weight gap to scikit-learn": float(np.abs(ensemble.weights.numpy() - fitted["scikit"]).max()),
        "accuracy": accuracy(ensemble.scores(features["test_chosen"]), ensemble.scores(features["test_rejected"])),
    }
    return figures, row


def by_size(sizes: Sequence[int], repeats: int, width: int = 576) -> list[dict[str, Any]]:
    """Figures: ten heads over one on synthetic features, as the pairs grow."""
    figures = []
    for pairs in sizes:
        generator = torch.Generator().manual_seed(0)
        truth = 2 * torch.randn(width, generator=generator) / width**0.5
        one, other = torch.randn(2, pairs, width, generator=generator)
        first = (torch.rand(pairs, generator=generator) < torch.sigmoid((one - other) @ truth))[:, None]
        sides = torch.where(first, one, other), torch.where(first, other, one)
        for name, ridge, limit in (("by cross-validation", "cv", 1.1), ("given", 0.1, 1.3)):
            calls: dict[Any, Any] = {
                members: lambda members=members, ridge=ridge, sides=sides: HeadEnsemble.fit(
                    *sides, members=members, ridge=ridge
                )
                for members in (1, K)
            }
            results.interleaved(calls, 1)
            times = results.interleaved(calls, repeats, time.process_time)
            note = f"{pairs:,} pairs x {width} synthetic features"
            figures.append(
                results.ratio(f"ten heads over one, ridge {name}", times[K], times[1], at_most=limit, note=note)
            )
    return figures


def trl_run(data: Any, backbone: Any, tokenizer: Any, seed: int, epochs: int, length: int, rate: float) -> Any:
    """One RewardTrainer run with a frozen backbone; its options are set to what is fastest for it here."""
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        config = backbone.config
        config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
        model = AutoModelForSequenceClassification.from_config(config, dtype=backbone.dtype)
        setattr(model, model.base_model_prefix, backbone)
        model.requires_grad_(False)
        model.score.requires_grad_(True)
        with tempfile.TemporaryDirectory() as folder:
            arguments = RewardConfig(
                output_dir=folder,
                num_train_epochs=epochs,
                per_device_train_batch_size=32,
                learning_rate=rate,
                max_length=length,
                gradient_checkpointing=False,
                report_to="none",
                save_strategy="no",
                bf16=False,
                disable_tqdm=True,
                logging_strategy="no",
                seed=seed,
                use_cpu=not torch.cuda.is_available(),
                dataloader_pin_memory=False,
            )
            trainer = RewardTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)
            if len(trainer.train_dataset) != len(data):
                raise SystemExit("the trainer leaves out texts longer than --max-length: raise it, for the same data")
            trainer.train()
    return model.score.weight.detach().float()[0]


def end_to_end(data: dict[str, Any], runs: int, epochs: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Figures and a row: from text to ten trained heads, and ``runs`` trainer runs, ours timed before each of them up
    to five times."""
    from prudent.features.encoder import Encoder
    from prudent.features.models import load_language_model
    from prudent.rewards.families import encode_pairs

    language_model, tokenizer = load_language_model(data["model"])
    rate, length = 1e-3, data["max_length"]
    simple = data["train"].select_columns(["prompt", "chosen", "rejected"])
    mine: list[float] = []
    theirs: list[float] = []
    weights: list[torch.Tensor] = []
    for seed in range(runs):
        if seed < 5:
            started = time.process_time()
            encoder = Encoder((language_model, tokenizer), max_length=length, cache=None, progress=False)
            sides = encode_pairs(encoder, data["train"])
            heads = HeadEnsemble.fit(
                *sides, members=K, diversity="init+shuffle", epochs=epochs, learning_rate=rate, ridge=1e-6
            )
            mine.append(time.process_time() - started)
        started = time.process_time()
        weights.append(trl_run(simple, language_model.base_model, tokenizer, seed, epochs, length, rate))
        theirs.append(time.process_time() - started)
        print(f"run {seed}: ours {mine[-1]:.1f} s, the trainer's {theirs[-1]:.1f} s", flush=True)
    test = encode_pairs(encoder, data["test"])
    convex = HeadEnsemble.fit(*sides, members=K)
    peers = torch.stack(weights)
    found = {
        "ours, same epochs": accuracy(heads.scores(test[0]), heads.scores(test[1])),
        "ours, convex bootstrap heads": accuracy(convex.scores(test[0]), convex.scores(test[1])),
        "RewardTrainer, mean of its heads": accuracy(peers @ test[0].T, peers @ test[1].T),
    }
    note = f"{len(data['train'])} pairs, {epochs} epochs, {runs} trainer runs timed"
    note += "" if runs == K else f", scaled to {K}"
    whole = statistics.median(mine)
    figure = results.figure(
        "ten RewardTrainer runs over ten heads, from text", [K * one / whole for one in theirs], at_least=50, note=note
    )
    figure["median"] = K * statistics.mean(theirs) / whole  # all runs together, against the median of ours
    row = {
        "part": "text",
        "pairs": len(data["train"]),
        "test_pairs": len(data["test"]),
        "epochs": epochs,
        "max_length": length,
        "dtype": str(language_model.dtype),
        "processor seconds, ours": mine,
        "processor seconds, trainer": theirs,
        "accuracy": found,
    }
    return [figure], row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    texts.add_arguments(parser)
    parts = ("cache", "sizes", "text")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--runs", type=int, help="trainer runs to time (10; short: 1)")
    parser.add_argument("--epochs", type=int, help="3; short: 1")
    parser.add_argument("--repeats", type=int, help="of the part from the cache (9; short: 5)")
    parser.add_argument("--out", type=Path, default=results.FOLDER / "heads.json")
    given = parser.parse_args()
    given.pairs = given.pairs or (24 if given.short else 200)
    given.test_pairs = given.test_pairs or (32 if given.short else 200)
    given.max_length = given.max_length or 256
    data = texts.read(given) if set(given.parts) - {"sizes"} else {}
    figures: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for part in given.parts:
        if part == "sizes":
            figures += by_size((200, 1000) if given.short else (200, 1000, 5000, 20_000), given.repeats or 5)
            continue
        if part == "cache":
            found, row = from_cache(texts.encode(data), given.repeats or (5 if given.short else 9))
        else:
            found, row = end_to_end(
                data, given.runs or (1 if given.short else K), given.epochs or (1 if given.short else 3)
            )
        figures += found
        rows.append(row)
        print(row)
    source = Path(given.preferences).name if given.preferences else "embedded"
    results.write(given.out, "Ten heads", figures, rows=rows, packages=("scikit-learn", "trl"), data=source)


if __name__ == "__main__":
    main()

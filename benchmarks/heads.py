"""Is uncertainty nearly free? Ten heads against one, ten reward-model trainings, and scikit-learn in a loop.

    python benchmarks/heads.py [--short] [--preferences FILE] [--test FILE] [--model NAME] [--out results/heads.json]

1. From cached features: ten bootstrap heads against one, a thousand on 300 pairs, and scikit-learn's logistic
   regression in a loop over the same resamples; held-out accuracies beside the times.
2. End to end from text: encode once and train ten heads, against TRL's RewardTrainer with the same frozen backbone,
   once a member, the same pairs, epochs and learning rate. With --short fewer runs are timed and scaled to ten; the
   result says so.
3. Scoring: K members and every rule against one member, and against K sequence-classification models.
4. Adapters: members above shared lower layers against a serial loop over members (a step of training).
5. Variances: the Laplace posterior against bootstrap ensembles of growing K, agreement and cost.

Both sides run in one process, interleaved; the median ratio is given with its range. Without --preferences the embedded
data are used. RewardUQ, which needs another TRL, has a script of its own: rewarduq.py.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

from prudent.rewards.aggregation import RULES, aggregate
from prudent.rewards.heads import HeadEnsemble, bootstrap_counts, fit_heads, standardisation
from prudent.rewards.training import member_seeds
from prudent.rewards.uncertainty import margin_moments

K = 10


def interleaved(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side, taken in turn so that a slow spell of the machine hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, call in sides.items():
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return times


def ratio(times: dict[str, list[float]], above: str, below: str, scale: float = 1.0) -> dict[str, Any]:
    """Median and range over repetitions of scale * above / below, and the median seconds of both."""
    values = [scale * a / b for a, b in zip(times[above], times[below])]
    return {
        "ratio": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "seconds": {above: scale * statistics.median(times[above]), below: statistics.median(times[below])},
        "repetitions": len(values),
    }


def accuracy(good: torch.Tensor, bad: torch.Tensor) -> float:
    """Share of pairs that the members' mean puts in order."""
    return float(((good - bad).mean(0) > 0).double().mean())


def synthetic(pairs: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(width, generator=torch.Generator().manual_seed(99)) / width**0.5
    first, second = torch.randn(2, pairs, width, generator=generator)
    better = torch.rand(pairs, generator=generator) < torch.sigmoid(2 * (first - second) @ truth)
    return torch.where(better[:, None], first, second), torch.where(better[:, None], second, first)


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


def from_cache(features: dict[str, torch.Tensor], repeats: int) -> dict[str, Any]:
    """Part 1."""
    chosen, rejected, ridge = features["chosen"], features["rejected"], 0.1
    n = len(chosen)
    counts = bootstrap_counts(n, member_seeds(0, K))
    fitted: dict[str, Any] = {}

    def ours(members: int, value: float | str) -> Callable[[], None]:
        def call() -> None:
            fitted[f"{members} {value}"] = HeadEnsemble.fit(chosen, rejected, members=members, ridge=value)

        return call

    def theirs() -> None:
        fitted["scikit"] = scikit_loop(chosen, rejected, counts, ridge)

    sides = {
        "ten heads": ours(K, ridge), "one head": ours(1, ridge), "scikit-learn, ten": theirs,
        "ten heads, ridge by CV": ours(K, "cv"), "one head, ridge by CV": ours(1, "cv"),
    }  # fmt: skip
    interleaved(sides, 1)  # the first call of anything pays for loading it
    times = interleaved(sides, repeats)
    ensemble = fitted[f"{K} {ridge}"]
    gap = float(np.abs(ensemble.weights.numpy() - fitted["scikit"]).max())
    few = synthetic(300, 576)
    many = [bootstrap_counts(300, member_seeds(0, 1000))]
    thousand = interleaved(
        {"thousand": lambda: fit_heads((few[0] - few[1]), many[0], ridge=0.03)}, max(2, repeats // 2)
    )
    good, bad = ensemble.scores(features["test_chosen"]), ensemble.scores(features["test_rejected"])
    return {
        "pairs": n,
        "width": chosen.shape[1],
        "ten_over_one": ratio(times, "ten heads", "one head"),
        "ten_over_one_with_cross_validation": ratio(times, "ten heads, ridge by CV", "one head, ridge by CV"),
        "scikit_over_ten": ratio(times, "scikit-learn, ten", "ten heads"),
        "largest_weight_gap_to_scikit": gap,
        "thousand_heads_300_pairs_576_features_s": statistics.median(thousand["thousand"]),
        "accuracy": accuracy(good, bad),
    }


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
                output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=32, learning_rate=rate,
                max_length=length, gradient_checkpointing=False, report_to="none", save_strategy="no", bf16=False,
                disable_tqdm=True, logging_strategy="no", seed=seed, use_cpu=not torch.cuda.is_available(),
                dataloader_pin_memory=False,
            )  # fmt: skip
            RewardTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer).train()
    return model.score.weight.detach().float()[0]


def end_to_end(texts: dict[str, Any], repeats: int, runs: int, epochs: int) -> dict[str, Any]:
    """Part 2. ``runs`` trainer runs are timed a repetition and scaled to ten."""
    from prudent.features.encoder import Encoder
    from prudent.features.models import load_language_model
    from prudent.rewards.families import encode_pairs

    language_model, tokenizer = load_language_model(texts["model"])
    rate, length = 1e-3, texts["max_length"]
    keep: dict[str, Any] = {}
    simple = texts["train"].select_columns(["prompt", "chosen", "rejected"])

    def ours() -> None:
        encoder = Encoder((language_model, tokenizer), max_length=length, cache=None, progress=False)
        sides = encode_pairs(encoder, texts["train"])
        keep["ours"] = HeadEnsemble.fit(
            *sides, members=K, diversity="init+shuffle", epochs=epochs, learning_rate=rate, ridge=1e-6
        )
        keep["encoder"], keep["sides"] = encoder, sides

    def theirs() -> None:
        keep["trl"] = [
            trl_run(simple, language_model.base_model, tokenizer, seed, epochs, length, rate) for seed in range(runs)
        ]

    times = interleaved({"ten heads from text": ours, "ten RewardTrainer runs": theirs}, repeats)
    test = encode_pairs(keep["encoder"], texts["test"])
    weights = torch.stack(keep["trl"])
    convex = HeadEnsemble.fit(*keep["sides"], members=K)
    return {
        "pairs": len(texts["train"]), "test_pairs": len(texts["test"]), "epochs": epochs, "max_length": length,
        "trainer_runs_timed": runs, "scaled_to_ten": runs != K, "dtype": str(language_model.dtype),
        "trainer_over_ours": ratio(times, "ten RewardTrainer runs", "ten heads from text", scale=K / runs),
        "accuracy": {
            "ours, same epochs": accuracy(keep["ours"].scores(test[0]), keep["ours"].scores(test[1])),
            "ours, convex bootstrap heads": accuracy(convex.scores(test[0]), convex.scores(test[1])),
            "RewardTrainer": accuracy(weights @ test[0].T, weights @ test[1].T),
        },
    }  # fmt: skip


def scoring(texts: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Part 3, on the test responses. K classifiers are K passes of one (each has the backbone's size)."""
    from prudent.features.encoder import Encoder
    from prudent.features.models import load_language_model
    from prudent.features.rendering import Renderer
    from prudent.rewards.external import last_state, padded, token_batches

    language_model, tokenizer = load_language_model(texts["model"])
    encoder = Encoder((language_model, tokenizer), max_length=texts["max_length"], cache=None, progress=False)
    prompts, answers = list(texts["test"]["prompt"]), list(texts["test"]["chosen"])
    features = encoder.encode(prompts, answers)
    width = features.shape[1]
    ten = HeadEnsemble(torch.randn(K, width), torch.zeros(K), torch.zeros(width), torch.ones(width))
    one = HeadEnsemble(ten.weights[:1], torch.zeros(1), ten.mean, ten.scale)
    ids = [row.ids for row in Renderer(tokenizer, texts["max_length"]).conversations(prompts, answers)]

    @torch.inference_mode()
    def classifier() -> None:
        """A sequence classifier's own pass: its backbone on padded batches, then one linear map."""
        for batch in token_batches([len(row) for row in ids]):
            tokens, mask = padded([ids[row] for row in batch], 0)
            states = language_model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
            last_state(states, mask).float() @ one.weights.T

    def all_rules() -> None:
        scores = ten.scores(features)
        for rule in RULES:
            aggregate(scores, rule)

    small = interleaved(
        {"ten members, every rule": all_rules, "one member": lambda: one.scores(features)}, 20 * repeats
    )

    def score_texts(ensemble: HeadEnsemble) -> None:
        scores = ensemble.scores(encoder.encode(prompts, answers))
        for rule in RULES if ensemble.members > 1 else ():
            aggregate(scores, rule)

    large = interleaved(
        {
            "text to ten members and rules": lambda: score_texts(ten),
            "text to one member": lambda: score_texts(one),
            "one classifier": classifier,
        },
        repeats,
    )
    return {
        "responses": len(answers),
        "ten_and_rules_over_one_from_features": ratio(small, "ten members, every rule", "one member"),
        "ten_and_rules_over_one_from_text": ratio(large, "text to ten members and rules", "text to one member"),
        "ten_classifiers_over_ours": ratio(large, "one classifier", "text to ten members and rules", scale=K),
    }


def adapters(texts: dict[str, Any], repeats: int, layers: int) -> dict[str, Any]:
    """Part 4: one forward and backward of 3 members on 4 pairs."""
    from prudent.features.models import load_language_model
    from prudent.rewards.backbone import EnsembleModel
    from prudent.rewards.checkpoints import collate
    from prudent.rewards.finetuning import prepare
    from prudent.seeding import spawn

    language_model, tokenizer = load_language_model(texts["model"])
    model = EnsembleModel(language_model.base_model, spawn(0, 3))
    blocks = language_model.config.num_hidden_layers
    layers = min(layers, blocks)
    model.add_adapters(spawn(0, 3), rank=8, alpha=16, layers=layers, targets=None)
    batch = collate(prepare(texts["train"].select(range(4)), tokenizer, texts["max_length"])[0], 0)

    def step(share: bool) -> Callable[[], None]:
        def call() -> None:
            model.share_lower = share
            model.zero_grad()
            model(batch["input_ids"], batch["attention_mask"])["loss"].backward()

        return call

    times = interleaved({"serial members": step(False), "shared lower layers": step(True)}, repeats)
    return {
        "members": 3, "blocks": blocks, "adapted": layers,
        "serial_over_shared": ratio(times, "serial members", "shared lower layers"),
    }  # fmt: skip


def variances(features: dict[str, torch.Tensor], sizes: Sequence[int]) -> dict[str, Any]:
    """Part 5: margin variances on the test pairs. Agreement: correlation of logarithms, and the median ratio."""
    from prudent.rewards.laplace import LaplacePosterior

    chosen, rejected = features["chosen"], features["rejected"]
    test = features["test_chosen"], features["test_rejected"]
    ridge = HeadEnsemble.fit(chosen, rejected, members=1).info["ridge"]
    reference = HeadEnsemble.fit(chosen, rejected, members=1000, ridge=ridge, seed=12345)
    wanted = margin_moments(*(reference.scores(side) for side in test))[1].double()
    rows = []
    kinds: list[tuple[str, Callable[[], torch.Tensor]]] = [
        ("laplace", lambda: LaplacePosterior.fit(chosen, rejected, ridge=ridge).margin_variance(*test)),
        ("laplace, sandwich",
         lambda: LaplacePosterior.fit(chosen, rejected, ridge=ridge, sandwich=True).margin_variance(*test)),
    ]  # fmt: skip

    def bootstrap(count: int) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            ensemble = HeadEnsemble.fit(chosen, rejected, members=count, ridge=ridge)
            return margin_moments(*(ensemble.scores(side) for side in test))[1].double()

        return call

    kinds += [(f"bootstrap, K={count}", bootstrap(count)) for count in sizes]
    for name, call in kinds:
        call()
        started = time.perf_counter()
        found = call()
        seconds = time.perf_counter() - started
        both = torch.stack([found.clamp_min(1e-30).log(), wanted.log()])
        rows.append({
            "variance": name, "seconds": seconds, "log_correlation": float(torch.corrcoef(both)[0, 1]),
            "median_ratio": float((found / wanted).median()),
        })  # fmt: skip
    return {"ridge": ridge, "reference": "bootstrap, K=1000, other seeds", "rows": rows}


def read_texts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Training and test pairs: a user's files, or the embedded data split by prompt."""
    if arguments.preferences:
        from prudent.data.preferences import read_preferences, split_by_prompt

        data = read_preferences(arguments.preferences, on_error="skip")
        if arguments.test:
            train, test = data, read_preferences(arguments.test, on_error="skip")
        else:
            train, test = split_by_prompt(data, 0.7, 0)
    else:
        from prudent.demo.world import load_world, preferences_dataset, split

        world = load_world()
        first, second = split(world, 0.7, 0)
        train = preferences_dataset(world, first, arguments.pairs, 4.0, 0)
        test = preferences_dataset(world, second, arguments.test_pairs, 4.0, 1)
    train = train.select(range(min(arguments.pairs, len(train))))
    test = test.select(range(min(arguments.test_pairs, len(test))))
    return {"train": train, "test": test, "model": arguments.model, "max_length": arguments.max_length}


def encode(texts: dict[str, Any]) -> dict[str, torch.Tensor]:
    from prudent.features.encoder import Encoder
    from prudent.rewards.families import encode_pairs

    encoder = Encoder(texts["model"], max_length=texts["max_length"])
    names = ("chosen", "rejected"), ("test_chosen", "test_rejected")
    return {
        name: side
        for keys, data in zip(names, (texts["train"], texts["test"]))
        for name, side in zip(keys, encode_pairs(encoder, data))
    }


def line(name: str, found: dict[str, Any]) -> str:
    seconds = ", ".join(f"{side} {value:.3g} s" for side, value in found["seconds"].items())
    return f"  {name}: {found['ratio']:.3g} [{found['low']:.3g}, {found['high']:.3g}] ({seconds})"


def show(result: dict[str, Any]) -> None:
    for part, values in result.items():
        if not isinstance(values, dict):
            continue
        print(part)
        for name, value in values.items():
            if isinstance(value, dict) and "ratio" in value:
                print(line(name, value))
            elif name == "rows":
                for row in value:
                    print("  " + ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else str(v) for k, v in row.items()))
            else:
                print(f"  {name}: {value}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="under two minutes on two cores")
    parser.add_argument("--preferences")
    parser.add_argument("--test")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--test-pairs", type=int)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--parts", default="cache,text,scoring,adapters,variances")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/heads.json"))
    arguments = parser.parse_args()
    short = arguments.short
    arguments.pairs = arguments.pairs or (32 if short else 200)
    arguments.test_pairs = arguments.test_pairs or (32 if short else 200)
    arguments.max_length = arguments.max_length or (96 if short else 256)
    texts = read_texts(arguments)
    parts = arguments.parts.split(",")
    result: dict[str, Any] = {
        "versions": {
            n: importlib.metadata.version(n) for n in ("prudent", "torch", "transformers", "trl", "scikit-learn")
        },
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "data": arguments.preferences or "embedded",
        "short": short,
    }
    features = encode(texts) if {"cache", "variances"} & set(parts) else {}
    if "cache" in parts:
        result["heads from cached features"] = from_cache(features, 3 if short else 9)
    if "text" in parts:
        result["ten heads from text"] = end_to_end(texts, 1 if short else 3, 1 if short else K, 1 if short else 3)
    if "scoring" in parts:
        result["scoring"] = scoring(texts, 2 if short else 5)
    if "adapters" in parts:
        result["adapters"] = adapters(texts, 2 if short else 5, 10)
    if "variances" in parts:
        result["variances"] = variances(features, (10, 100) if short else (5, 10, 30, 100, 300))
    show(result)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()

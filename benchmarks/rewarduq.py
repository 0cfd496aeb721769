"""Against RewardUQ's head ensemble: the same features, pairs, members, width, epochs, batch and learning rate.

    python -m venv .venv-rewarduq && .venv-rewarduq/bin/pip install -r benchmarks/peers-rewarduq.txt
    python benchmarks/rewarduq.py --peer-python .venv-rewarduq/bin/python [--short] [--preferences FILE --test FILE]

RewardUQ pins another TRL, so each side runs in a process of its own environment; both read one file of features and
write their members' scores of the test pairs. Accuracy, calibration and whether the spread finds errors are computed
here, by the same functions for both. Seconds are the processor's, of fitting (RewardUQ: setting up its trainer with
precomputed features, and training); memory is the peak of the whole process. Repetitions are interleaved.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def load(spec: dict[str, Any]) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(spec["features"])


def finish(spec: dict[str, Any], margins: Any, seconds: dict[str, float], versions: dict[str, str]) -> None:
    from safetensors.torch import save_file

    save_file({"margins": margins.contiguous()}, spec["margins"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Path(spec["result"]).write_text(json.dumps({"seconds": seconds, "peak_mib": peak, "versions": versions}))


def stand_in(folder: str, width: int) -> None:
    """A one-layer language model of the features' width, which RewardUQ wants to load; it computes nothing here."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaModel(LlamaConfig(vocab_size=3, pad_token_id=0, eos_token_id=1, **size)).save_pretrained(folder)


def peer(spec: dict[str, Any]) -> None:
    """RewardUQ's side, in its own environment."""
    import importlib.metadata

    import torch
    from datasets import Dataset
    from rewarduq.methods.mlp_head_ensemble import (
        MLPHeadEnsembleModel,
        MLPHeadEnsembleModelConfig,
        MLPHeadEnsembleTrainer,
        MLPHeadEnsembleTrainerConfig,
    )

    data = load(spec)
    torch.manual_seed(spec["seed"])
    with tempfile.TemporaryDirectory() as base:
        stand_in(base, data["chosen"].shape[1])
        config = MLPHeadEnsembleModelConfig(
            base_model_name_or_path=base, head_hidden_dim=spec["width"], num_heads=spec["members"]
        )
        model = MLPHeadEnsembleModel(config)
    started = time.process_time()
    n = len(data["chosen"])
    words = Dataset.from_list([{"chosen": f"a {row}", "rejected": f"b {row}"} for row in range(n)])
    with tempfile.TemporaryDirectory() as folder:
        arguments = MLPHeadEnsembleTrainerConfig(
            output_dir=folder,
            precompute_features=True,
            remove_unused_columns=False,
            num_train_epochs=spec["epochs"],
            per_device_train_batch_size=spec["batch"],
            learning_rate=spec["rate"],
            report_to="none",
            bf16=False,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=spec["seed"],
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
        )
        trainer = MLPHeadEnsembleTrainer(
            model=model,
            args=arguments,
            train_dataset=words,
            processing_class=model.tokenizer,
            precomputed_features_train=torch.stack([data["chosen"], data["rejected"]], 1),
        )
        ready = time.process_time()
        trainer.train()
    ended = time.process_time()
    with torch.no_grad():
        sides = [
            torch.stack([head(data[name])[:, 0] for head in model.mlps]) for name in ("test_chosen", "test_rejected")
        ]
    names = ("rewarduq", "trl", "transformers", "torch")
    versions = {name: importlib.metadata.version(name) for name in names}
    finish(spec, sides[0] - sides[1], {"set up": ready - started, "train": ended - ready}, versions)


def ours(spec: dict[str, Any]) -> None:
    """Prudent's side: two-layer heads under the same settings, or its default linear heads."""
    import importlib.metadata

    from prudent.rewards.heads import HeadEnsemble
    from prudent.rewards.mlp import MLPEnsemble

    data = load(spec)
    started = time.process_time()
    scorer: Any
    if spec["kind"] == "mlp":
        scorer = MLPEnsemble.fit(
            data["chosen"],
            data["rejected"],
            members=spec["members"],
            width=spec["width"],
            epochs=spec["epochs"],
            batch_size=spec["batch"],
            learning_rate=spec["rate"],
            seed=spec["seed"],
        )
    else:
        scorer = HeadEnsemble.fit(data["chosen"], data["rejected"], members=spec["members"], seed=spec["seed"])
    ended = time.process_time()
    margins = scorer.scores(data["test_chosen"]) - scorer.scores(data["test_rejected"])
    versions = {name: importlib.metadata.version(name) for name in ("prudent", "torch")}
    finish(spec, margins, {"fit": ended - started}, versions)


def run(python: str, role: str, spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    paths = {name: str(folder / f"{role}-{spec['kind']}.{name}") for name in ("margins", "result")}
    path = folder / "spec.json"
    path.write_text(json.dumps({**spec, **paths}))
    # -P: this folder must not be on the path, where this very file would hide the package of its name
    command = [python, "-P", __file__, "--role", role, "--spec", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = json.loads(Path(paths["result"]).read_text())
    return {**found, "margins": paths["margins"]}


def quality(path: str) -> dict[str, float | None]:
    import torch
    from safetensors.torch import load_file

    from prudent.evaluation.statistics import auroc, calibration

    margin = load_file(path)["margins"].double()
    mean = margin.mean(0)
    chance = torch.sigmoid(margin).mean(0)
    fit = calibration(chance)
    return {
        "accuracy": float((mean > 0).double().mean()),
        "log loss": float(-chance.clamp_min(1e-12).log().mean()),
        "ECE": fit.ece.value,
        "AUROC of sigma for errors": auroc(margin.std(0), (mean < 0).double()).value,
        "median sigma / |margin|": float((margin.std(0) / mean.abs()).median()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", choices=("peer", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--spec", help=argparse.SUPPRESS)
    parser.add_argument("--peer-python", default=".venv-rewarduq/bin/python")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--preferences")
    parser.add_argument("--test")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--test-pairs", type=int)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--pooling", default="last")
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rewarduq.json"))
    arguments = parser.parse_args()
    if arguments.role:
        spec = json.loads(Path(arguments.spec).read_text())
        (peer if arguments.role == "peer" else ours)(spec)
        return
    arguments.pairs = arguments.pairs or (64 if arguments.short else 800)
    arguments.test_pairs = arguments.test_pairs or (64 if arguments.short else 300)
    sys.path.insert(0, str(Path(__file__).parent))
    from safetensors.torch import save_file
    from texts import encode, read

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file({key: value.contiguous() for key, value in encode(read(arguments)).items()}, folder / "features")
        shared = {
            "features": str(folder / "features"),
            "members": arguments.members,
            "width": arguments.width,
            "epochs": arguments.epochs,
            "batch": arguments.batch,
            "rate": arguments.rate,
        }
        sides = (
            ("RewardUQ, two-layer heads", arguments.peer_python, "peer", "mlp"),
            ("Prudent, two-layer heads", sys.executable, "ours", "mlp"),
            ("Prudent, linear bootstrap heads", sys.executable, "ours", "linear"),
        )
        found: dict[str, list[dict[str, Any]]] = {side: [] for side, *_ in sides}
        for seed in range(1 if arguments.short else arguments.repeats):
            for side, python, role, kind in sides:
                one = run(python, role, {**shared, "seed": seed, "kind": kind}, folder)
                found[side].append({**one, "quality": quality(one["margins"])})
    write(arguments, shared, found)


def write(arguments: argparse.Namespace, shared: dict[str, Any], found: dict[str, list[dict[str, Any]]]) -> None:
    """The result file: fitting times against the peer's, and what both sides' heads are good for."""
    import results

    peer, *mine = found
    source = Path(arguments.preferences).name if arguments.preferences else "embedded"
    note = f"{arguments.pairs} pairs, {shared['members']} heads, {shared['epochs']} epochs where they train by epochs"
    figures = [
        results.ratio(
            f"{peer}, over {side}",
            *([sum(one["seconds"].values()) for one in found[name]] for name in (peer, side)),
            note=note,
        )
        for side in mine
    ]
    rows = [{"side": side, **summary(runs)} for side, runs in found.items()]
    figures += [results.figure(f"held-out accuracy, {row['side']}", row["accuracy"], unit="") for row in rows]
    results.write(
        arguments.out,
        "Ten heads against RewardUQ's",
        figures,
        rows=rows,
        data=source,
        pairs=arguments.pairs,
        test_pairs=arguments.test_pairs,
        **{key: shared[key] for key in ("members", "width", "epochs", "batch", "rate")},
    )


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over repetitions."""
    row: dict[str, Any] = {
        name: statistics.median(one["quality"][name] for one in runs)
        for name in runs[0]["quality"]
        if all(one["quality"][name] is not None for one in runs)
    }
    row["seconds"] = statistics.median(sum(one["seconds"].values()) for one in runs)
    row["peak MiB"] = statistics.median(one["peak_mib"] for one in runs)
    return {**row, "versions": runs[0]["versions"], "parts": runs[0]["seconds"]}


if __name__ == "__main__":
    main()

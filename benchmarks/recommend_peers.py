"""Against implicit's ALS and RecBole's LightGCN on one split: recall and seconds side by side.

    python -m venv .venv-recbole && .venv-recbole/bin/pip install -r benchmarks/peers-recbole.txt
    python benchmarks/recommend_peers.py --train TRAIN --test TEST --peer-python .venv-recbole/bin/python

RecBole needs older SciPy and NumPy, so it runs in a process of its own environment, is given the same training and
validation pairs, validates and stops by Recall@20 and hands back its embeddings: once with its own defaults, and once
with our width, layers and learning rate and a longer patience, because its defaults stop on LightGCN's first plateau.
Everybody's scores are ranked and judged here by the same functions, the same seen pairs hidden. Seconds are those of
fitting, without imports or reading. Repetitions are interleaved. Without --peer-python, RecBole is left out and the
output says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PATIENT = {"embedding_size": 128, "n_layers": 3, "learning_rate": 0.01, "stopping_step": 50}


def recbole_side(folder: Path) -> None:
    """Runs in RecBole's environment: train its LightGCN on the files in ``folder``, write factors and seconds there."""
    import functools

    import numpy as np
    import torch

    # RecBole reads back the checkpoint that it wrote a moment ago, in a way that newer torch must be told to allow.
    torch.load = functools.partial(torch.load, weights_only=False)  # type: ignore[assignment]
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    spec = json.loads((folder / "spec.json").read_text())
    torch.set_num_threads(spec["threads"])
    config = Config(
        model="LightGCN",
        dataset="pairs",
        config_dict={
            "data_path": str(folder),
            "benchmark_filename": ["train", "valid", "test"],
            "load_col": {"inter": ["user_id", "item_id"]},
            "seed": spec["seed"],
            "use_gpu": False,
            "valid_metric": "Recall@20",
            "topk": [20],
            "metrics": ["Recall"],
            "checkpoint_dir": str(folder / "checkpoints"),
            "state": "ERROR",
            "show_progress": False,
            **spec["options"],
        },
    )
    init_seed(spec["seed"], reproducibility=True)
    dataset = create_dataset(config)
    train, valid, _ = data_preparation(config, dataset)
    model = get_model("LightGCN")(config, train.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "LightGCN")(config, model)
    started = time.perf_counter()
    trainer.fit(train, valid, saved=True, show_progress=False, verbose=False)
    seconds = time.perf_counter() - started
    model.load_state_dict(torch.load(trainer.saved_model_file)["state_dict"])
    model.eval()
    with torch.no_grad():
        user, item = model.forward()
    names = {"user": dataset.field2id_token["user_id"], "item": dataset.field2id_token["item_id"]}
    for name, factors in (("user", user), ("item", item)):
        np.save(folder / f"{name}.npy", factors.numpy()[1:], allow_pickle=False)
        (folder / f"{name}.json").write_text(json.dumps([str(token) for token in names[name][1:]]))
    about = {"seconds": seconds, "width": int(user.shape[1]), "layers": int(config["n_layers"])}
    (folder / "result.json").write_text(json.dumps(about))


def run_recbole(data: Any, python: str, seed: int, threads: int, options: dict) -> tuple[Any, dict]:
    """(scorer, what the run says) of RecBole's LightGCN on ``data``, trained in its own environment."""
    import numpy as np
    import torch

    from prudent.recommend.models import factor_scores
    from prudent.recommend.splits import catalogue_index

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "pairs").mkdir()
        for side, matrix in (("train", data.train), ("valid", data.valid.positives), ("test", data.test.positives)):
            rows, columns = matrix.nonzero()
            lines = [f"{data.users[row]}\t{data.items[column]}" for row, column in zip(rows, columns)]
            text = "\n".join(["user_id:token\titem_id:token", *lines]) + "\n"
            (folder / "pairs" / f"pairs.{side}.inter").write_text(text)
        (folder / "spec.json").write_text(json.dumps({"seed": seed, "threads": threads, "options": options}))
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": ""}
        command = [python, str(Path(__file__).resolve()), "--recbole-side", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
        if done.returncode:
            raise SystemExit(f"RecBole's side failed:\n{done.stderr[-2000:]}")
        factors = {}
        for name, catalogue in (("user", data.users), ("item", data.items)):
            found = np.load(folder / f"{name}.npy", allow_pickle=False)
            index = catalogue_index(json.loads((folder / f"{name}.json").read_text()), catalogue)
            ordered = np.zeros((len(catalogue), found.shape[1]), dtype=np.float32)
            ordered[index] = found
            factors[name] = torch.from_numpy(ordered)
        return factor_scores(factors["user"], factors["item"]), json.loads((folder / "result.json").read_text())


def judge(data: Any, scorer: Any) -> dict[str, float]:
    """Recall@20 in the three views, and seconds to the top 50 of all users."""
    import numpy as np

    from prudent.recommend.metrics import evaluate, tail_items
    from prudent.recommend.ranking import recommend

    seen = data.seen_with_valid()
    found = evaluate(scorer, data.test, seen, tail_items(data.popularity)[0], ks=(20,))
    started = time.perf_counter()
    recommend(scorer, seen, np.arange(len(data.users)), 50)
    return {
        **{view: found.mean(f"recall@20 {view}") for view in ("overall", "tail absolute", "tail relative")},
        "seconds, top 50 of all users": time.perf_counter() - started,
    }


def contenders(data: Any, arguments: argparse.Namespace, seed: int) -> dict[str, dict[str, Any]]:
    """One round: every side fitted once on the same data."""
    from dataclasses import replace

    from prudent.recommend.pipeline import SCHEDULES, Settings, fit, fit_backbone

    rows = {}
    limit = {} if arguments.epochs is None else {"epochs": arguments.epochs}
    plan, stage = (replace(SCHEDULES[name], **limit) for name in ("lightgcn", "uncertainty"))
    started = time.perf_counter()
    als = fit_backbone(data, "als", seed=seed)
    rows["implicit ALS"] = {"seconds": time.perf_counter() - started, **judge(data, als.scores)}
    model = fit(data, Settings(backbone="lightgcn", schedule=plan, stage=stage), seed)
    rows["Prudent LightGCN"] = {"seconds": model.seconds["backbone"], **judge(data, model.scorer("score"))}
    both = model.seconds["backbone"] + model.seconds["uncertainty"]
    rows["Prudent LightGCN + AUR"] = {"seconds": both, **judge(data, model.scorer("uncertainty"))}
    if arguments.peer_python:
        for name, options in (("RecBole LightGCN", {}), ("RecBole LightGCN, patient", PATIENT)):
            scorer, about = run_recbole(data, arguments.peer_python, seed, arguments.threads, options | limit)
            rows[name] = {**about, **judge(data, scorer)}
    return rows


def peer_versions(python: str | None) -> dict[str, str]:
    """Versions of RecBole and of what it stands on, in its own environment."""
    names = ("recbole", "torch", "numpy", "scipy") if python else ()
    code = "import importlib.metadata as m, sys; print([m.version(name) for name in sys.argv[1:]])"
    found = subprocess.check_output([python, "-c", code, *names], text=True) if python else "[]"
    return dict(zip(names, json.loads(found.replace("'", '"'))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--threshold", type=float, default=4.0)
    parser.add_argument("--peer-python", help="python of RecBole's environment")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, help="cap on every side's epochs, for a short run")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--recbole-side", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.recbole_side:
        recbole_side(arguments.recbole_side)
        return
    import results
    import torch

    from prudent.recommend.interactions import read_interactions
    from prudent.recommend.splits import assemble, sides, with_test

    torch.set_num_threads(arguments.threads)
    train, _ = read_interactions(arguments.train, threshold=arguments.threshold)
    test, _ = read_interactions(arguments.test, threshold=arguments.threshold)
    side = sides(train, "user", 0.1, 0.0, 0)
    data = with_test(assemble(train.keep(side == 0), train.keep(side == 1)), test)
    rounds = []
    for seed in range(arguments.repeats):
        rounds.append(contenders(data, arguments, seed))
        print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    figures = [
        results.figure(f"{name}, {key}", [found[name][key] for found in rounds], unit=unit)
        for name in rounds[0]
        for key, unit in (
            ("seconds", "s"),
            ("overall", "recall@20"),
            ("tail absolute", "recall@20"),
            ("tail relative", "recall@20"),
        )
    ]
    left_out = [] if arguments.peer_python else ["RecBole: no --peer-python was given"]
    results.write(
        arguments.out,
        "Recall and seconds of fitting beside implicit and RecBole, on the same split",
        figures,
        rows=rounds,
        packages=["implicit"],
        peer=peer_versions(arguments.peer_python),
        epochs=arguments.epochs,
        left_out=left_out,
    )
    print(*left_out)


if __name__ == "__main__":
    main()

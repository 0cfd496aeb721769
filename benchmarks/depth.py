"""At what depth should a language model be read, and what does choosing it by itself cost and buy?

    python benchmarks/depth.py ../shared/data --features FOLDER [--minutes 9]

Every pair of three data sets is read once at eight depths (one pass), in pieces that are kept in --features: a run that
--minutes ends goes on there. Then, over fresh draws of training pairs: heads at each depth, at the one that
``rewards.depth`` chooses on a subsample, and at all blocks, held against the test pairs.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import results
import torch

from prudent.features.depths import depths_of
from prudent.rewards.containers import PairFeatures
from prudent.rewards.depth import ERRORS, PAIRS

PIECE = 48  # pairs
DEPTHS = depths_of(30)  # of the embedded model
FILES = {  # file, pairs to train on, pairs to test on
    "hh_harmless": ("preference/hh_harmless.train.jsonl.gz", 480, 192),
    "alpacaeval_gpt4": ("preference/alpacaeval_gpt4.train.jsonl.gz", 288, 192),
    "gsm8k": ("preference/gsm8k_pairs.jsonl.gz", 480, 192),
}


def pairs_of(data: Path, name: str) -> tuple[Any, int]:
    """The first pairs of a file, whose order is that of a hash, and how many of them are trained on."""
    from prudent.data.preferences import read_preferences

    file, train, test = FILES[name]
    return read_preferences(str(data / file)).select(range(train + test)), train


def read_pieces(folder: Path, name: str, data: Any, ends: float) -> torch.Tensor | None:
    """(depths, 2, pairs, d) features of both sides, piece by piece; None where the time ended it."""
    from prudent.features.depths import encode_depths
    from prudent.features.encoder import Encoder

    encoder, pieces = None, []
    for start in range(0, len(data), PIECE):
        file = folder / f"{name}-{start:05d}.npy"
        if not file.is_file():
            if time.monotonic() > ends:
                return None
            encoder = encoder or Encoder("smollm2", pooling="last+mean", cache=None, progress=False)
            piece = data.select(range(start, min(start + PIECE, len(data))))
            both = [*piece["chosen"], *piece["rejected"]]
            found = encode_depths(encoder, list(piece["prompt"]) * 2, both, DEPTHS)
            np.save(file.with_suffix(".part.npy"), found.unflatten(1, (2, len(piece))).numpy())
            os.rename(file.with_suffix(".part.npy"), file)
            print(f"{file.name}: {encoder.stats.tokens} tokens", flush=True)
        pieces.append(np.load(file))
    return torch.from_numpy(np.concatenate(pieces, 2))


def judged(train: PairFeatures, ridge: float, test: PairFeatures) -> tuple[torch.Tensor, torch.Tensor]:
    """Log loss and credit (n,) of test pairs under one head."""
    from prudent.rewards.accuracy import credit
    from prudent.rewards.draws import fit_resamples, standard_difference, standardisation
    from prudent.rewards.losses import bradley_terry

    scale = standardisation(train.chosen, train.rejected)[1]
    fit = fit_resamples(standard_difference(train.chosen, train.rejected, scale), None, ridge=ridge)
    logit = ((test.chosen - test.rejected) / scale).double() @ fit.weights[0]
    return bradley_terry(logit), credit(logit)


def draws_of(name: str, features: torch.Tensor, data: Any, count: int, draws: int) -> list[dict[str, Any]]:
    """A row a draw of training pairs: at each depth test loss and accuracy, and what each rule takes on each part."""
    from prudent.data.preferences import pair_groups
    from prudent.rewards.depth import held_at, shallowest
    from prudent.rewards.draws import choose_ridge, standard_difference, standardisation

    groups = pair_groups(data)
    unseen = torch.tensor([row for row in range(count, len(groups)) if groups[row] not in set(groups[:count])])
    every = [PairFeatures(*depth, groups) for depth in features]
    whole, tests = [e.take(torch.arange(count)) for e in every], [e.take(unseen) for e in every]
    ridges = []
    for pairs in whole:
        scale = standardisation(pairs.chosen, pairs.rejected)[1]
        difference = standard_difference(pairs.chosen, pairs.rejected, scale)
        ridges.append(choose_ridge(difference, groups=pairs.groups)[0])
    found = []
    for draw in range(draws):
        order = torch.from_numpy(np.random.default_rng(draw).permutation(count))
        rows = order[: int(0.8 * count)]
        results_at = [judged(w.take(rows), ridge * count / len(rows), t) for w, ridge, t in zip(whole, ridges, tests)]
        row: dict[str, Any] = {
            "data": name,
            "pairs": len(rows),
            "test_pairs": len(unseen),
            "draw": draw,
            "test_loss": [float(loss.mean()) for loss, _ in results_at],
            "test_accuracy": [float(right.mean()) for _, right in results_at],
            "picked": {},
            "held_out_loss": {},
        }
        for size in (64, 128, 256):
            parts = [w.take(rows[:size]) for w in whole]
            losses = [held_at(part, draw).loss for part in parts]
            row["held_out_loss"][size] = [float(loss.mean()) for loss in losses]
            for errors in (0.0, 0.5, 1.0, 2.0):
                row["picked"][f"{size}/{errors:g}"] = shallowest(losses, parts[0].groups, errors)
        found.append(row)
        print(f"{name} {draw}: {row['picked']}", flush=True)
    return found


def describe(rows: list[dict[str, Any]], depths: list[int], errors: str) -> list[dict[str, Any]]:
    """Figures of one data set: the chosen depth (``size/errors`` of ``picked``) and two fifths, against all blocks."""
    name, pairs = rows[0]["data"], rows[0]["pairs"]
    fixed = depths.index(-(-depths[-1] * 2 // 5))
    figures = []
    for what, index in ((f"chosen ({errors})", None), (f"{depths[fixed]} blocks", fixed)):
        picked = [row["picked"][errors] if index is None else index for row in rows]
        for measure, unit in (("test_loss", "nats"), ("test_accuracy", "")):
            gaps = [row[measure][at] - row[measure][-1] for row, at in zip(rows, picked)]
            note = f"mean {sum(gaps) / len(gaps):+.4f}; {pairs} training pairs"
            figures.append(results.figure(f"{name}: {measure}, {what} minus all blocks", gaps, unit=unit, note=note))
        share = [depths[at] / depths[-1] for at in picked]
        figures.append(results.figure(f"{name}: blocks run, {what}", share, unit="of all", note="the choice left out"))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--features", type=Path, required=True, help="folder that keeps what was read")
    parser.add_argument("--minutes", type=float, default=1e9, help="read for so long, and go on another time")
    parser.add_argument("--only", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--out", type=Path, default=results.FOLDER / "depth.json")
    given = parser.parse_args()
    given.features.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * given.minutes
    rows, figures = [], []
    for name in given.only:
        data, count = pairs_of(given.data, name)
        features = read_pieces(given.features, name, data, ends)
        if features is None:
            raise SystemExit("the time is up; the same command goes on")
        found = draws_of(name, features, data, count, given.draws)
        rows += found
        figures += describe(found, DEPTHS, f"{PAIRS}/{ERRORS:g}")
    question = "What does choosing the depth of the encoder cost and buy?"
    results.write(given.out, question, figures, rows=rows, depths=DEPTHS)


if __name__ == "__main__":
    main()

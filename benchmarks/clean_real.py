"""What does ``prudent clean`` find in real preference data with the embedded model's features, and does it help?

    python benchmarks/clean_real.py DATA [--only hh_harmless ...] [--out runs/clean]

DATA is a folder with preference files (hh_harmless.train.jsonl.gz, ...). Each file is cleaned by the command itself,
with faults planted at 10 and 20 %; the figures printed come from its result.json. Encoding dominates the time of a
first run; later runs read features from the cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PLANT = ("--plant", "0.1", "--plant", "0.2")
STUDIES: dict[str, tuple[str, ...]] = {
    "hh_harmless": ("hh_harmless.train.jsonl.gz", "--test", "hh_harmless.test.jsonl.gz", *PLANT),
    "pandalm_votes": ("pandalm_votes.jsonl.gz", *PLANT),
    "gsm8k_pairs": ("gsm8k_pairs.jsonl.gz", *PLANT),
    "qa_feedback": (
        "qa_feedback.train.jsonl.gz",
        "--test",
        "qa_feedback.test.jsonl.gz",
        "--max-pairs",
        "800",
        "--max-test-pairs",
        "200",
        *PLANT,
    ),
    "alpacaeval_gpt4": (
        "alpacaeval_gpt4.train.jsonl.gz",
        "--test",
        "alpacaeval_gpt4.test.jsonl.gz",
        "--max-pairs",
        "1000",
        "--max-test-pairs",
        "200",
        *PLANT,
    ),
    "alpacaeval_soft": (
        "alpacaeval_soft.train.jsonl.gz",
        "--max-pairs",
        "500",
        "--max-length",
        "256",
        "--second-label",
        "chosen_prob",
        *PLANT,
    ),
}


def run(data: Path, name: str, out: Path, more: list[str]) -> dict[str, Any]:
    """Result of one study; a finished run folder is read, not made again."""
    if not (out / "manifest.json").is_file():
        first, *rest = STUDIES[name]
        arguments = [str(data / part) if part.endswith(".jsonl.gz") else part for part in rest]
        command = [sys.executable, "-c", "from prudent.cli import main; main()", "clean", str(data / first)]
        subprocess.run([*command, *arguments, *more, "--out", str(out)], check=True)
    return json.loads((out / "result.json").read_text(encoding="utf-8"))


def percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f} %"


def show_training(table: list[dict[str, Any]]) -> None:
    for row in table:
        gain = row["gain"]
        more = (
            ""
            if gain is None
            else f"  gain {100 * gain['value']:+.1f} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
        )
        print(f"    {row['labels']:26s} {row['accuracy']['value']:.3f} +- {row['sd_over_seeds']:.3f} over seeds{more}")


def show(name: str, found: dict[str, Any]) -> None:
    """The figures of one study."""
    print(f"\n== {name}: {found['pairs']} pairs, {found['kept']} kept; {found['features']}")
    rules = ", ".join(f"{row['rule']} {row['found']}" for row in found["changes"])
    print(f"  found: {rules or 'nothing'}")
    length, ceiling = found["length"], found["noise_ceiling"]["exact"]
    print(f"  pick the longer: {percent(length['longer_accuracy'])}; ceiling: {percent(ceiling['best_accuracy'])}")
    if found["votes"]:
        votes = found["votes"]
        alpha = votes["krippendorff_alpha"]
        print(f"  votes: alpha {alpha:.3f}, unanimous {percent(votes['unanimous'])}, {votes['outcomes']}")
    strength = found["strength"]
    shares = strength["shares"]
    print(
        f"  strength ({strength['mode']}, ridge {strength['ridge']:g}): below zero {percent(shares['below_zero'])}, "
        f"near zero {percent(shares['near_zero'])}, opposed {percent(shares['opposed'])}"
    )
    if strength["second_label"]:
        rank = strength["second_label"]["spearman"]
        means = " ".join(f"{row['second_mean']:.3f}" for row in strength["deciles"])
        print(f"  second label: Spearman {rank['value']:.3f} [{rank['low']:.3f}, {rank['high']:.3f}]; means {means}")
    if found["proof"]:
        proof = found["proof"]
        print(f"  proof: {proof['train_pairs']} train, {proof['test_pairs']} test pairs ({proof['test']})")
        show_training(proof["table"])
    for planted in found["planted"]:
        finding = planted["finding"]
        area = finding["auroc"]
        print(f"  planted {planted['share']:.0%}: AUC {area['value']:.3f} [{area['low']:.3f}, {area['high']:.3f}]")
        for row in finding["by_share"]:
            print(
                f"    lowest {row['share']:.0%}: precision {percent(row['precision'])} (base rate "
                f"{percent(finding['base_rate'])}), recall {percent(row['recall'])}"
            )
        show_training(planted.get("training", []))
    print("  seconds: " + ", ".join(f"{stage} {spent:.0f}" for stage, spent in found["timings_s"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the preference files")
    parser.add_argument("--only", nargs="*", default=list(STUDIES), choices=list(STUDIES))
    parser.add_argument("--out", type=Path, default=Path("runs/clean"))
    options, more = parser.parse_known_args()
    for name in options.only:
        show(name, run(options.data, name, options.out / name, more))


if __name__ == "__main__":
    main()

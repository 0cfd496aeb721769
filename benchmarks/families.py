"""What is each family's spread worth? ``prudent compare`` on the embedded data and on a folder of real preferences.

    python benchmarks/families.py [--data FOLDER] [--short] [--families a,b] [--out benchmarks/results/families.json]
    python benchmarks/families.py --data FOLDER --families heads,laplace,mlp --pairs 965 --test-pairs 343

FOLDER holds hh_harmless.train.jsonl.gz and hh_harmless.test.jsonl.gz; without it only the embedded data are used.
Of the embedded world the prompts that ask for restraint are taken: in the balanced whole, a few hundred pairs teach
nothing to any family. There the gold reward is known, so the conformal intervals' coverage is reported too, by
constraint kind of the prompt. Trained transformers see the same pairs as the heads. Prints a Markdown table a data set.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HEADS = ("heads", "laplace", "last-layer", "network-laplace", "mlp", "dropout", "novelty")
TRAINED = ("singles", "linear", "lora")
# The last five of thirty blocks, in steps enough for a few hundred pairs: what two cores train in minutes.
OPTIONS = (
    *(f"{name}.{option}" for name in TRAINED for option in ("layers=5", "batch_size=4")),
    "singles.learning_rate=5e-5", "linear.learning_rate=5e-5",
)  # fmt: skip
COLUMNS = (
    "Family", "K", "Accuracy", "Members", "Log loss", "ECE", "AUROC of sigma", "AUROC of small margin",
    "Unlike / test spread", "Trained numbers", "Fit, s", "Score, s", "Peak, MiB",
)  # fmt: skip


def embedded(folder: Path, pairs: int, test_pairs: int, side: str) -> list[str]:
    """Files of embedded pairs with the gold margin, split by prompt; the options that name them."""
    from prudent.demo.world import draw_preferences, load_world, split

    world = load_world(side=side)
    options = []
    sides = split(world, 0.6, 0)
    for name, places, count, seed in (("preferences", sides[0], pairs, 0), ("test", sides[1], test_pairs, 1)):
        prompt, chosen, rejected = draw_preferences(world, places, count, 4.0, seed)
        path = folder / f"{name}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for p, better, worse in zip(prompt.tolist(), chosen.tolist(), rejected.tolist()):
                row = {
                    "prompt": world.prompts[p][0]["content"],
                    "chosen": world.responses[p][better],
                    "rejected": world.responses[p][worse],
                    "gap": float(world.gold[p, better] - world.gold[p, worse]),
                    "kind": world.constraints[p][0].kind,
                }
                file.write(json.dumps(row) + "\n")
        options += [f"--{name}", str(path)]
    return [*options, "--target", "gap", "--group", "kind"]


def run(arguments: list[str], given: argparse.Namespace, families: str) -> dict[str, Any]:
    names = families.split(",")
    own = [option for option in OPTIONS if option.split(".")[0] in names]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "prudent.cli.main", "compare", *arguments, "--families", families, "--json", "--out",
            str(Path(folder) / "compare"), "--max-length", str(given.max_length), "--pooling", given.pooling,
            *(part for option in own for part in ("--set", option)),
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def interval(found: dict[str, Any] | None) -> str:
    return (
        ""
        if found is None or found["value"] is None
        else f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
    )


def cells(row: dict[str, Any]) -> list[str]:
    members = sorted(row["member_accuracy"])
    return [
        row["family"], str(row["members"]), interval(row["accuracy"]), f"{members[0]:.2f} to {members[-1]:.2f}",
        f"{row['log_loss']:.3f}", f"{row['ece']['value']:.3f}", interval(row["error_auroc_sigma"]),
        interval(row["error_auroc_margin"]), f"{row['ood_ratio']:.2f}", f"{row['parameters']:,}",
        f"{row['fit_seconds']:.1f}", f"{row['score_seconds']:.1f}", f"{row['peak_mib']:.0f}",
    ]  # fmt: skip


def show(name: str, result: dict[str, Any]) -> None:
    print(f"\n{name}: {result['pairs']} pairs, {result['test_pairs']} test pairs, longer answer "
          f"{result['baseline']['value']:.3f}, encoding {result['encode_seconds'] or 0:.0f} s\n")  # fmt: skip
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for row in result["families"]:
        print("| " + " | ".join(cells(row) if "accuracy" in row else [row["family"], row["reason"]]) + " |")
    for row in result["families"]:
        if row.get("conformal"):
            print(f"{row['family']}: conformal coverage {row['conformal']['share']:.2f}, {row['conformal']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--short", action="store_true", help="embedded data, heads only: under two minutes")
    parser.add_argument("--families")
    parser.add_argument("--only", choices=("embedded", "hh_harmless"))
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--test-pairs", type=int)
    parser.add_argument("--side", default="restraint", help="of the embedded world: balanced, restraint or demand")
    parser.add_argument("--pooling", default="last+mean")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/families.json"))
    given = parser.parse_args()
    pairs = given.pairs or (48 if given.short else 200)
    test_pairs = given.test_pairs or (48 if given.short else 150)
    families = given.families or ",".join(HEADS if given.short else HEADS + TRAINED)
    result: dict[str, Any] = {}
    if given.only in (None, "embedded"):
        with tempfile.TemporaryDirectory() as folder:
            options = embedded(Path(folder), pairs, test_pairs, given.side)
            result["embedded"] = run([*options, "--level", "0.8"], given, families)
        show("embedded", result["embedded"])
    if given.data is not None and given.only in (None, "hh_harmless"):
        files = [str(given.data / f"hh_harmless.{part}.jsonl.gz") for part in ("train", "test")]
        options = ["--preferences", files[0], "--test", files[1], "--max-pairs", str(pairs),
                   "--max-test-pairs", str(test_pairs)]  # fmt: skip
        result["hh_harmless"] = run(options, given, families)
        show("hh_harmless", result["hh_harmless"])
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()

"""What is each family's spread worth? ``prudent compare`` on the embedded data and on a folder of real preferences.

    python benchmarks/families.py [--short] [--families a,b] [--out benchmarks/results/families.json]
    python benchmarks/families.py --data FOLDER --families heads,laplace,mlp --pairs 965 --test-pairs 343

FOLDER holds hh_harmless.train.jsonl.gz and hh_harmless.test.jsonl.gz; without it the embedded data are used.
Of the embedded world the prompts that ask for restraint are taken: in the balanced whole, a few hundred pairs teach
nothing to any family. There the gold reward is known, so the conformal intervals' coverage is reported too, by
constraint kind of the prompt. Trained transformers see the same pairs as the heads. Prints a Markdown table.

The result is written after the families on features and after each trained one. Families that a result file of the same
data and numbers of pairs already holds are kept unless they are asked for again, so a long comparison can be made piece
by piece. Seconds are the processor's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import results

HEADS = ("heads", "laplace", "last-layer", "network-laplace", "mlp", "dropout", "novelty")
TRAINED = ("singles", "linear", "lora")
# The last five of thirty blocks, in steps enough for a few hundred pairs: what two cores train in minutes.
OPTIONS = (
    *(f"{name}.{option}" for name in TRAINED for option in ("layers=5", "batch_size=4")),
    "singles.learning_rate=5e-5",
    "linear.learning_rate=5e-5",
)
COLUMNS = (
    "Family",
    "K",
    "Accuracy",
    "Members",
    "Log loss",
    "ECE",
    "AUROC of sigma",
    "AUROC of small margin",
    "Unlike / test spread",
    "Parameters",
    "Fit, s",
    "Score, s",
    "Peak, MiB",
)


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


def run(arguments: list[str], given: argparse.Namespace, families: list[str]) -> dict[str, Any]:
    own = [option for option in OPTIONS if option.split(".")[0] in families]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "prudent.cli",
            "compare",
            *arguments,
            "--families",
            ",".join(families),
            "--json",
            "--out",
            str(Path(folder) / "compare"),
            "--max-length",
            str(given.max_length),
            "--pooling",
            given.pooling,
            *(part for option in own for part in ("--set", option)),
        ]
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
        row["family"],
        str(row["members"]),
        interval(row["accuracy"]),
        f"{members[0]:.2f} to {members[-1]:.2f}",
        f"{row['log_loss']:.3f}",
        f"{row['ece']['value']:.3f}",
        interval(row["error_auroc_sigma"]),
        interval(row["error_auroc_margin"]),
        f"{row['ood_ratio']:.2f}",
        f"{row['parameters']:,}",
        f"{row['fit_processor_seconds']:.1f}",
        f"{row['score_processor_seconds']:.1f}",
        f"{row['peak_mib']:.0f}",
    ]


def show(name: str, result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    print(
        f"\n{name}: {result['pairs']} pairs, {result['test_pairs']} test pairs, longer answer "
        f"{result['baseline']['value']:.3f}\n"
    )
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for row in rows:
        print("| " + " | ".join(cells(row) if "accuracy" in row else [row["family"], row["reason"]]) + " |")
    for row in rows:
        if row.get("conformal"):
            print(
                f"{row['family']}: conformal coverage {row['conformal']['share']:.2f}, width "
                f"{row['conformal']['width']:.2f}"
            )


def figures(rows: list[dict[str, Any]], note: str) -> list[dict[str, Any]]:
    """What a family's spread finds, and what the family costs."""
    found = []
    for row in rows:
        if "accuracy" not in row:
            continue
        if row["error_auroc_sigma"]["value"] is not None:
            found.append(
                results.figure(
                    f"{row['family']}: AUROC of sigma for wrong pairs",
                    row["error_auroc_sigma"]["value"],
                    unit="",
                    note=note,
                )
            )
        seconds = row["fit_processor_seconds"] + row["score_processor_seconds"]
        found.append(
            results.figure(f"{row['family']}: fitting {row['members']} members and scoring", seconds, unit="s")
        )
    return found


def kept(path: Path, data: str, pairs: int, test_pairs: int) -> dict[str, dict[str, Any]]:
    """Rows by family of a result that is there already, where it is about the same pairs."""
    if not path.is_file():
        return {}
    there = json.loads(path.read_text(encoding="utf-8"))
    if [there.get(name) for name in ("data", "pairs", "test_pairs")] != [data, pairs, test_pairs]:
        return {}
    return {row["family"]: row for row in there["rows"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of hh_harmless; without it the embedded data")
    parser.add_argument("--short", action="store_true", help="few pairs, families on features only: under two minutes")
    parser.add_argument("--families")
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--test-pairs", type=int)
    parser.add_argument("--side", default="restraint", help="of the embedded world: balanced, restraint or demand")
    parser.add_argument("--pooling", default="last+mean")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=results.FOLDER / "families.json")
    given = parser.parse_args()
    pairs = given.pairs or (48 if given.short else 200)
    test_pairs = given.test_pairs or (48 if given.short else 150)
    names = given.families.split(",") if given.families else [*HEADS, *(() if given.short else TRAINED)]
    data = "hh_harmless" if given.data else f"embedded, {given.side}"
    parts = [[name for name in names if name not in TRAINED], *([name] for name in names if name in TRAINED)]
    rows = kept(given.out, data, pairs, test_pairs)
    with tempfile.TemporaryDirectory() as folder:
        if given.data:
            files = [str(given.data / f"hh_harmless.{part}.jsonl.gz") for part in ("train", "test")]
            options = [
                "--preferences",
                files[0],
                "--test",
                files[1],
                "--max-pairs",
                str(pairs),
                "--max-test-pairs",
                str(test_pairs),
            ]
        else:
            options = [*embedded(Path(folder), pairs, test_pairs, given.side), "--level", "0.8"]
        for part in filter(None, parts):
            found = run(options, given, part)
            rows |= {row["family"]: row for row in found["families"]}
            table = [rows[name] for name in (*HEADS, *TRAINED, *rows) if name in rows]
            table = list({row["family"]: row for row in table}.values())
            note = f"{data}, {found['pairs']} pairs, {found['test_pairs']} test pairs"
            results.write(
                given.out,
                "Families of reward models",
                figures(table, note),
                rows=table,
                data=data,
                pairs=pairs,
                test_pairs=test_pairs,
                baseline=found["baseline"],
            )
    show(data, found, table)


if __name__ == "__main__":
    main()

"""Prompts as veRL's rows: prompt, data_source, ground truth (unused), and the prompt again in extra_info."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def rows_of(prompts: list[str]) -> pa.Table:
    """A table with a row a prompt."""
    rows = []
    for index, prompt in enumerate(prompts):
        messages = [{"role": "user", "content": prompt}]
        about = {"index": index, "prompt": messages}
        rows.append(
            {"data_source": "prudent", "prompt": messages, "reward_model": {"ground_truth": ""}, "extra_info": about}
        )
    return pa.Table.from_pylist(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL with a prompt a row")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    lines = given.prompts.read_text(encoding="utf-8").splitlines()
    pq.write_table(rows_of([json.loads(line)["prompt"] for line in lines]), given.out)


if __name__ == "__main__":
    main()

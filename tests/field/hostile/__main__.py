"""``python -m tests.field.hostile`` counts how hostile files end: refused in clear words, read well, or neither."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from tests.field.hostile import configs, tables, texts, values
from tests.field.hostile.cases import Case, fault


def all_cases() -> list[Case]:
    rows = (texts.line_cases, texts.json_cases, texts.csv_cases, texts.path_cases)
    made = (*rows, values.value_cases, tables.table_cases, configs.config_cases)
    return [case for make in made for case in make()]


def main() -> None:
    """Counts of all cases: refused in clear words, read correctly, and what is left."""
    counts: Counter[str] = Counter()
    for case in all_cases():
        with tempfile.TemporaryDirectory() as folder:
            wrong = fault(case, Path(folder))
        counts["left" if wrong else "clear" if case.refused is not None else "right"] += 1
        if wrong:
            print(f"{case.name}: {wrong}")
    print(f"{sum(counts.values())} cases: {counts['clear']} clear, {counts['right']} right, {counts['left']} left")


if __name__ == "__main__":
    main()

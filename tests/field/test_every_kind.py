"""Hostile files of every kind (tests/field/hostile): refused in clear words or read correctly, within bounds."""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from pathlib import Path

import pytest
from tests.field.hostile.__main__ import all_cases
from tests.field.hostile.cases import Case, fault

SECONDS, MEGABYTES = 30.0, 400  # of one group of some dozens of cases, on a busy machine; alone it takes well under one

GROUPS: dict[str, list[Case]] = defaultdict(list)
for case in all_cases():
    option = ": --" in case.name
    name = case.name.partition(":" if option or " is " not in case.name else " is ")[0]
    GROUPS[f"{name}: options" if option else name].append(case)


@pytest.mark.parametrize("group", GROUPS)
def test_every_case_ends_as_declared(group: str, tmp_path: Path) -> None:
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong = {}
    for number, case in enumerate(GROUPS[group]):
        folder = tmp_path / str(number)
        folder.mkdir()
        if found := fault(case, folder):
            wrong[case.name] = found
    assert not wrong
    assert time.monotonic() - began < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES


def test_there_are_thousands_of_them() -> None:
    names = [case.name for group in GROUPS.values() for case in group]
    assert len(set(names)) == len(names) >= 4000


def test_a_wrong_declaration_is_found(tmp_path: Path) -> None:
    """The list itself can fail: a case declared the other way round is named."""
    from dataclasses import replace

    refused = next(case for case in all_cases() if case.refused is not None)
    read = next(case for case in all_cases() if case.same)
    assert "was refused" in str(fault(replace(refused, refused=None), tmp_path))
    assert "was read" in str(fault(replace(read, refused=()), tmp_path))
    assert "doesn't say" in str(fault(replace(refused, refused=("no such word",)), tmp_path))

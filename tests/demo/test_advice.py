"""What ``prudent demo`` advises, from rows made by hand, and that its table fits a terminal."""

from __future__ import annotations

import pytest

from prudent.commands.demo.run import METHODS, advice, printed
from prudent.evaluation.intervals import Estimate


def rows(pairs: int, promises: dict[str, float]) -> list[dict]:
    return [
        {"pairs": pairs, "method": name, "promised": promises.get(name, 0.2), "came": 0.0, "gain": 0.1}
        for name in METHODS
    ]


@pytest.mark.parametrize(
    "promises, low, take, control",
    [
        (dict.fromkeys(METHODS, 0.03), -0.01, "Take vanilla", "gains no more"),
        ({"lcb": 0.04, "permuted": 0.0}, 0.01, "Take lcb", "gains more"),
        ({"variance-only": 0.0}, 0.01, "Take none yet", "gains more"),  # a control is never advised
    ],
)
def test_advice(promises: dict[str, float], low: float, take: str, control: str) -> None:
    few, many = rows(50, {}), rows(800, promises)
    said = advice(few, many, Estimate(0.02, low, 0.03, 40))
    assert said[0].startswith(take)
    assert control in said[1]
    lines = printed({"rows": [r for both in zip(few, many) for r in both], "sizes": [50, 800], "advice": said})
    assert len(lines) == 11
    assert max(map(len, lines)) <= 120

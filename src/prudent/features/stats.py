"""What encoding did, in numbers that add up; free of torch, since the process that only counts needn't load it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass
class EncodeStats:
    """What one call of ``encode`` did. tokens: positions computed, padding included; padding: of them padding;
    shared: prompt tokens that were not computed again because an answer to the same prompt had computed them;
    truncated: rows cut to max_length; answerless: of them rows whose whole response was cut off."""

    rows: int = 0
    encoded: int = 0
    cached: int = 0
    truncated: int = 0
    answerless: int = 0
    tokens: int = 0
    padding: int = 0
    shared: int = 0
    seconds: float = 0.0

    @property
    def padding_share(self) -> float:
        """Share of the computed positions that were padding."""
        return self.padding / self.tokens if self.tokens else 0.0


def add_stats(total: EncodeStats, more: dict[str, Any]) -> None:
    """Add the counts of one more call."""
    for field in fields(total):
        setattr(total, field.name, getattr(total, field.name) + more[field.name])


def tokens_read(stats: dict[str, Any]) -> int:
    """Tokens of text that were read: computed ones without padding, and shared ones."""
    return stats["tokens"] - stats["padding"] + stats["shared"]

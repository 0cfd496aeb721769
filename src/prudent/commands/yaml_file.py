"""YAML of options, read so that each fault is one clear error: no duplicate key, no alias, bounded size and depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from prudent.errors import PrudentError

DEEPEST, LARGEST = 20, 1 << 20  # levels, bytes


class _Loader(yaml.SafeLoader):
    """Plain values only: an alias may stand for a billion values, and of two equal keys one would be lost."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node of the file; PrudentError for aliases and deep nesting, naming the line."""
        event = self.peek_event()
        line = event.start_mark.line + 1
        if self.check_event(yaml.AliasEvent):
            raise PrudentError(f"line {line} has an alias (*{event.anchor}); write the value out")
        self.depth += 1
        if self.depth > DEEPEST:
            raise PrudentError(
                f"line {line} is nested deeper than {DEEPEST} levels; write names and their values alone"
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping; PrudentError for a key given twice or one that is no plain name, naming the line."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value).replace("-", "_") if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            if not isinstance(key, yaml.ScalarNode) or name in seen:
                what = "twice" if name in seen else "as a key"
                raise PrudentError(f"line {key.start_mark.line + 1} has {name[:60]} {what}; keep one")
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Names and values of a YAML file; PrudentError naming file, line and fault."""
    try:
        if path.stat().st_size > LARGEST:
            raise PrudentError(f"is larger than {LARGEST} bytes; write names and their values alone")
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except PrudentError as error:
        raise PrudentError(f"{path}: {error}") from None
    except UnicodeDecodeError as error:
        raise PrudentError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        found = " ".join(str(error).split())[:300]
        raise PrudentError(f"{path} can't be read as YAML ({found}); write a name and its value a line") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise PrudentError(f"{path} must hold names and values, found {type(values).__name__}")
    return values

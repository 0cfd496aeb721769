"""Names that load on first use, so that ``prudent --help`` and ``import prudent`` pay for nothing they don't touch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def attach(
    package: str, exports: dict[str, str], rooms: tuple[str, ...] = ()
) -> tuple[Callable[[str], Any], list[str]]:
    """Module-level ``__getattr__`` and ``__all__`` of ``package`` (PEP 562).

    exports: public name -> module that defines it. rooms: sub-packages or modules reachable as attributes.
    """

    def getattr_(name: str) -> Any:
        if name in exports:
            return getattr(importlib.import_module(exports[name]), name)
        if name in rooms:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return getattr_, sorted([*exports, *rooms])

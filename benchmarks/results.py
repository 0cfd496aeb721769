"""One format for every benchmark's result, so that ``python benchmarks`` can make one table of them.

A result file holds ``question``, ``command``, ``figures``, ``rows``, ``versions`` and ``machine``, and what a script
adds. A figure is a number somebody would quote: its name, unit, median, range and repetitions, and the aim it is held
against; rows are what lies behind it, in any shape.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prudent import runs

FOLDER = Path(__file__).parent / "results"


def interleaved(
    sides: Mapping[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each side, taken in turn so that a slow spell of the machine hits all of them. clock:
    time.process_time counts the processor's seconds, which other work on the machine stretches far less."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, call in sides.items():
            started = clock()
            call()
            times[name].append(clock() - started)
    return times


def figure(
    name: str,
    values: float | Sequence[float],
    *,
    unit: str = "times",
    at_least: float | None = None,
    at_most: float | None = None,
    note: str = "",
) -> dict[str, Any]:
    """One quotable number: median and range of ``values`` (one a repetition), and the aim it is held against."""
    seen = [float(value) for value in (values if isinstance(values, Sequence) else [values])]
    found: dict[str, Any] = {
        "name": name,
        "unit": unit,
        "median": statistics.median(seen),
        "low": min(seen),
        "high": max(seen),
        "repetitions": len(seen),
    }
    found |= {key: aim for key, aim in (("at_least", at_least), ("at_most", at_most)) if aim is not None}
    return found | ({"note": note} if note else {})


def ratio(name: str, above: Sequence[float], below: Sequence[float], scale: float = 1.0, **aim: Any) -> dict[str, Any]:
    """Figure of scale * above / below, taken within each repetition; the medians of both sides are kept beside it."""
    found = figure(name, [scale * a / b for a, b in zip(above, below)], **aim)
    return found | {"seconds": [scale * statistics.median(above), statistics.median(below)]}


def processor() -> str:
    """Name of the processor, as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What the times depend on besides the software. load: jobs that ran or waited in the last minute."""
    import torch  # a script that times imports has none of its own

    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 1),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


def versions(*more: str) -> dict[str, str]:
    """Versions of Python, of what Prudent stands on, and of the packages named."""
    found = runs.versions()
    for name in more:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def peak_gib() -> float:
    """Most memory this process has held at once, in GiB, pages of mapped files included."""
    with contextlib.suppress(OSError):  # rusage's figure counts what the process that started this one held, too
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _place(argument: str) -> str:
    """An argument as others can use it: of an absolute path only the name."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def write(
    path: str | Path | None,
    question: str,
    figures: Iterable[dict[str, Any]],
    *,
    rows: Sequence[Any] = (),
    packages: Sequence[str] = (),
    **more: Any,
) -> dict[str, Any]:
    """Write a result (``path`` None: only return it) and print its figures. more: whatever else the script has."""
    found = list(figures)
    result = {
        "question": question,
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_place, sys.argv[1:])]),
        "figures": found,
        "rows": list(rows),
        "versions": versions(*packages),
        "machine": machine(),
        **more,
    }
    for one in found:
        print(line(one), flush=True)
    if path is not None:
        runs.write_atomic(path, runs.dumps(result) + "\n")
        print(f"wrote {path}")
    return result


def fill(page: Path, name: str, text: str) -> None:
    """Put ``text`` into a page between its marks ``<!-- name: ... -->`` and ``<!-- end of name -->``."""
    before, rest = page.read_text(encoding="utf-8").split(f"<!-- {name}:")
    mark, rest = rest.split("\n", 1)
    after = rest.split(f"<!-- end of {name} -->")[1]
    page.write_text(f"{before}<!-- {name}:{mark}\n\n{text}\n\n<!-- end of {name} -->{after}", encoding="utf-8")
    print(f"wrote {name} into {page}")


def amount(value: float) -> str:
    """Three digits, thousands marked."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def line(one: Mapping[str, Any]) -> str:
    """A figure in words: median, range, unit, aim and whether it was met."""
    spread = f" [{amount(one['low'])}, {amount(one['high'])}]" if one["repetitions"] > 1 else ""
    return f"{one['name']}: {amount(one['median'])}{spread} {one['unit']}" + (f" ({aim(one)})" if aim(one) else "")


def aim(one: Mapping[str, Any]) -> str:
    """The aim of a figure and whether its median meets it, or nothing."""
    for key, sign, met in (
        ("at_least", "≥", one["median"] >= one.get("at_least", float("inf"))),
        ("at_most", "≤", one["median"] <= one.get("at_most", float("-inf"))),
    ):
        if key in one:
            return f"aim {sign} {amount(one[key])}: {'met' if met else 'missed'}"
    return ""

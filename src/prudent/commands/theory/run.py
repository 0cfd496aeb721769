"""What ``prudent theory reproduce`` does, and what both theory commands print."""

from __future__ import annotations

from typing import Any

from prudent.commands.common import say
from prudent.commands.options import RunOptions
from prudent.commands.theory.options import ReproduceOptions
from prudent.commands.theory.page import reproduce_page
from prudent.runs import new_run
from prudent.theory.claims import all_claims


def reproduce(options: ReproduceOptions) -> dict[str, Any]:
    """Recompute every claim and write the folder; what results.json holds, with ``out``."""
    with new_run(options.out, "theory reproduce", {"images": options.images}, options.seed, options.overwrite) as run:
        claims, rows = all_claims(options.seed, lambda name: say(f"{name} ..."))
        failed = sum(not claim.holds for claim in claims)
        result = {"claims": [claim._asdict() for claim in claims], "failed": failed}
        run.write_json("results.json", result)
        reproduce_page(claims, rows).write(run, images=options.images)
    return {**result, "out": str(options.out)}


def show(result: dict[str, Any], options: RunOptions) -> None:
    """Print the verdict and where the report is."""
    claims = result.get("claims", [])
    verdict = result.get("verdict") or f"{len(claims) - result['failed']} of {len(claims)} claims hold"
    print(f"{verdict}\nReport: {options.out / 'report.html'}")

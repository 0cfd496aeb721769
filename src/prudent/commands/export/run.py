"""Opens the reward model and writes the checkpoint."""

from __future__ import annotations

from typing import Any

from prudent.commands.common import say
from prudent.commands.export.options import ExportOptions


def run(options: ExportOptions) -> dict[str, Any]:
    """Write the folder; its labels, the constants of their logits and how far scores differ."""
    from prudent.rewards.model import RewardModel
    from prudent.serving.export import export_classifier

    model = RewardModel.load(options.model, model=options.language_model, keep_features=False)
    return export_classifier(model, options.out, labels=options.labels, overwrite=options.overwrite)


def show(result: dict[str, Any], options: ExportOptions) -> None:
    """Say what was written."""
    say(f"wrote {options.out}: labels {', '.join(result['labels'])}")
    say(f"scores differ from the reward model's by {result['largest_difference']:.1e} at most")
    if any(result["constants"]):
        say(
            "this network's head can't hold a constant: a score is its logit plus the label's prudent_constants in "
            f"config.json ({result['constants'][-1]:+.4g} for {result['labels'][-1]})"
        )

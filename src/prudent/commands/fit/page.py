"""What ``prudent fit`` says about the model it trained: fit.json and a page to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

    from prudent.commands.fit.options import FitOptions
    from prudent.rewards.model import RewardModel
    from prudent.runs import Run


def describe_fit(reward_model: RewardModel, data: Dataset, held: Dataset | None, seconds: float) -> dict[str, Any]:
    """What fit.json holds: members, parameters, cost, accuracy with intervals and the length-only baseline."""
    from prudent.rewards.trial import peak_bytes

    result: dict[str, Any] = {
        "family": reward_model.family,
        "members": reward_model.members,
        "pairs": len(data),
        "parameters": reward_model.parameters(),
        "seconds": seconds,
        "peak_mib": peak_bytes() / 2**20,
        "info": getattr(reward_model.scorer, "info", {}),
        "train": accuracy_of(reward_model, data),
        "test": accuracy_of(reward_model, held) if held is not None else None,
    }
    return result


def accuracy_of(reward_model: RewardModel, data: Dataset) -> dict[str, Any]:
    """Accuracy of the mean and of every member (ties half), the longer answer's, and the members' disagreement."""
    from prudent.evaluation.statistics import proportion
    from prudent.rewards.accuracy import credit
    from prudent.rewards.families import pair_scores
    from prudent.rewards.uncertainty import margin_moments, warn_if_identical

    chosen, rejected = pair_scores(reward_model, data)
    margin = chosen - rejected
    mean = margin.mean(0)
    length = [sum(len(m["content"]) for m in side) for name in ("chosen", "rejected") for side in data[name]]
    n = len(data)
    longer = [a - b for a, b in zip(length[:n], length[n:])]
    found: dict[str, Any] = {
        "pairs": n,
        "accuracy": proportion(credit(mean)),
        "ties": int((mean == 0).sum()),
        "member_accuracy": [proportion(row) for row in credit(margin)],
        "longer_answer_accuracy": proportion(credit(longer)),
        "margin_standard_deviation": None,
        "identical_members": [],
    }
    if len(chosen) > 1:
        average, variance = margin_moments(chosen, rejected)
        found["margin_standard_deviation"] = float(variance.sqrt().mean())
        found["median_sigma_over_margin"] = float((variance.sqrt() / average.abs()).median())
        found["identical_members"] = warn_if_identical(chosen) if n > 1 else []
    else:
        found["reason"] = {"margin_standard_deviation": "the standard deviation of one member is undefined"}
    return found


def write_page(run: Run, result: dict[str, Any]) -> None:
    """report.html: cost, accuracy of every member beside the longer answer's, and how far members disagree."""
    from prudent.reporting.charts import dot_intervals
    from prudent.reporting.report import Report

    report = Report(
        f"Reward model: {result['family']}", f"{result['members']} members on {result['pairs']} preference pairs"
    )
    report.cards(
        [
            {"label": "trained parameters", "value": result["parameters"], "note": "all members together"},
            {"label": "seconds", "value": result["seconds"], "note": "encoding and training"},
            {"label": "peak memory, MiB", "value": result["peak_mib"]},
        ]
    )
    counts = result["info"].get("parameters")
    if counts:
        report.text(
            f"The language model has {counts['backbone']:,} parameters, a head {counts['head']:,}, an adapter "
            f"{counts['adapter']:,}; an ensemble of this kind holds {counts['total']:,} in all."
        )
    for name, title in (("test", "Held-out pairs"), ("train", "Training pairs")):
        found = result[name]
        if found is None:
            continue
        report.heading(title)
        report.text(
            f"The members' mean is right on {found['accuracy'].text} of {found['pairs']} pairs; picking the longer "
            f"answer on {found['longer_answer_accuracy'].text}. Intervals are Wilson's, at 95 %."
        )
        if found["margin_standard_deviation"] is None:
            report.text("The standard deviation of one member is undefined.")
        else:
            report.text(
                f"Members disagree about a pair's margin by {found['margin_standard_deviation']:.3g} on average "
                f"(sample standard deviation, ddof=1); at the median by {found['median_sigma_over_margin']:.2g} of "
                "the margin's size."
            )
        if found["identical_members"]:
            report.verdict(f"Members {found['identical_members']} (from 0) score alike.", "warn")
        rows = [("mean of members", found["accuracy"]), ("longer answer", found["longer_answer_accuracy"])]
        rows += [(f"member {place + 1}", one) for place, one in enumerate(found["member_accuracy"])]
        points = [{"who": who, "accuracy": one.value, "low": one.low, "high": one.high} for who, one in rows]
        chart = dot_intervals(
            points, "who", "accuracy", "low", "high", x_title="accuracy", reference=0.5, reference_label="chance"
        )
        report.chart(chart, f"accuracy-{name}", f"Accuracy on the {name} pairs, with 95 % intervals.")
    report.write(run, images=False)


def show(result: dict[str, Any], options: FitOptions) -> None:
    """The few lines that a person reads."""
    print(f"{result['family']}: {result['members']} members on {result['pairs']} pairs in {result['seconds']:.1f} s")
    for name in ("train", "test"):
        found = result[name]
        if found is None:
            continue
        mean, longer = found["accuracy"], found["longer_answer_accuracy"]
        members = sorted(one.value for one in found["member_accuracy"])
        print(
            f"{name}: accuracy {mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}] on {found['pairs']} pairs; members "
            f"{members[0]:.3f} to {members[-1]:.3f}; longer answer {longer.value:.3f}"
        )
    print(f"wrote {options.out}")

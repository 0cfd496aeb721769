"""What ``prudent fit`` says about the model it trained: fit.json and a page to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prudent.commands.depth import depth_section
from prudent.errors import PrudentError
from prudent.features.limits import Groups, same_groups, words
from prudent.runs import peak_bytes

if TYPE_CHECKING:
    from datasets import Dataset

    from prudent.commands.fit.options import FitOptions
    from prudent.rewards.model import RewardModel
    from prudent.runs import Run


def describe_fit(
    reward_model: RewardModel, data: Dataset, held: Dataset | None, seconds: float, on_error: str = "raise"
) -> dict[str, Any]:
    """What fit.json holds: members, parameters, cost, accuracy with intervals and the length-only baseline. pairs:
    those that were trained on."""
    info = getattr(reward_model.scorer, "info", {})
    result: dict[str, Any] = {
        "family": reward_model.family,
        "members": reward_model.members,
        "pairs": info.get("trained_pairs", len(data)),
        "pairs_given": len(data),
        "parameters": reward_model.parameters(),
        "seconds": seconds,
        "peak_mib": peak_bytes() / 2**20,
        "info": info,
        "train": accuracy_of(reward_model, data, on_error, "training pairs"),
        "test": accuracy_of(reward_model, held, on_error, "test pairs") if held is not None else None,
    }
    return result


def accuracy_of(
    reward_model: RewardModel, data: Dataset, on_error: str = "raise", source: str = "pairs"
) -> dict[str, Any]:
    """Accuracy of the mean and of every member (ties half), the longer answer's, and the members' disagreement.

    Left out and counted: pairs that can't be scored (with ``on_error="skip"``; else DataError names them) and pairs
    whose sides are the same text for the model, by truncation or by its template.
    """
    from prudent.data.failing import counted, origins_of, picked, use_rows
    from prudent.evaluation.statistics import proportion
    from prudent.rewards.accuracy import credit
    from prudent.rewards.families import pair_scores
    from prudent.rewards.uncertainty import margin_moments, warn_if_identical

    (chosen, rejected), kept, bad = use_rows(
        lambda rows: pair_scores(reward_model, picked(data, rows)), origins_of(data), source, on_error
    )
    data = picked(data, kept)
    seen = shown_pairs(reward_model, data)
    different = [row for row in range(len(data)) if row not in seen.same]
    if not different:
        raise PrudentError(f"{source}: both sides of every pair are the same for the model ({words(seen.counts)})")
    data, chosen, rejected = picked(data, different), chosen[:, different], rejected[:, different]
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
        "shown": seen.counts,
        **counted(bad),
    }
    if len(chosen) > 1:
        average, variance = margin_moments(chosen, rejected)
        found["margin_standard_deviation"] = float(variance.sqrt().mean())
        found["median_sigma_over_margin"] = float((variance.sqrt() / average.abs()).median())
        found["identical_members"] = warn_if_identical(chosen) if n > 1 else []
    else:
        found["reason"] = {"margin_standard_deviation": "the standard deviation of one member is undefined"}
    return found


def shown_pairs(reward_model: RewardModel, data: Dataset) -> Groups:
    """What the model's length limit and template do to pairs."""
    prompts, n = list(data["prompt"]), len(data)
    found = reward_model.shown(prompts * 2, [*data["chosen"], *data["rejected"]])
    return same_groups(found, (([row], [n + row]) for row in range(n)))


def write_page(run: Run, result: dict[str, Any]) -> None:
    """report.html: cost, accuracy of every member beside the longer answer's, and how far members disagree."""
    from prudent.reporting.charts import dot_intervals
    from prudent.reporting.report import Report

    report = Report(
        f"Reward model: {result['family']}", f"{result['members']} members on {result['pairs']} preference pairs"
    )
    report.cards(
        ("trained parameters", result["parameters"], "all members together"),
        ("seconds", result["seconds"], "encoding and training"),
        ("peak memory, MiB", result["peak_mib"]),
    )
    depth_section(report, result["depth"])
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
        rows += [(f"member {index + 1}", one) for index, one in enumerate(found["member_accuracy"])]
        points = [{"who": who, **one.fields("accuracy")} for who, one in rows]
        chart = dot_intervals(points, "who", "accuracy", x_title="accuracy", reference=(0.5, "chance"))
        report.chart(chart, f"accuracy-{name}", f"Accuracy on the {name} pairs, with 95 % intervals.")
    report.write(run, images=False)


def show(result: dict[str, Any], options: FitOptions) -> None:
    """The few lines that a person reads."""
    print(f"{result['family']}: {result['members']} members on {result['pairs']} pairs in {result['seconds']:.1f} s")
    for option in ("ratings", "meta_pool"):
        if gone := result["info"].get(f"{option}_left_out"):
            print(f"{gone} rows of --{option.replace('_', '-')} that can't be used were left out")
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
        if found["left_out"]:
            print(f"  {found['left_out']} pairs that can't be scored were left out")
        if said := words(found["shown"]):
            print(f"  {said}" + (", left out" if found["shown"]["same"] else ""))
    if result["depth"]:
        print(f"depth: {result['depth']['words']}")
    print(f"wrote {options.out}")

"""The page on reward learning on policy."""

from __future__ import annotations

from typing import Any

from prudent.commands.rlp.options import RlpOptions
from prudent.evaluation.overoptimization.worlds import TextWorld
from prudent.reporting import charts
from prudent.reporting.report import Report

GLOSSARY = {
    "SPG": "synthetic preference generation: pairs from groups of equal answers among the policy's samples",
    "UML": "unsupervised multi-view learning: two samples of a prompt as views of an information bottleneck",
    "gold": "the true reward, which keeps the score and is never trained on",
    "coverage": "share of unlabelled prompts that give a pair (or two views)",
    "precision": "share of synthetic pairs that gold agrees with",
}


def report(text: TextWorld, payload: dict[str, Any], rounds: list[dict[str, Any]], given: RlpOptions) -> Report:
    """Verdict, gold by round, what the samples gave, accuracy, variance on the policy's samples."""
    page = Report(
        "Does refreshing the reward model on the policy help?",
        f"{payload['world']}: {payload['prompts']} prompts, {payload['repetitions']} repetitions; "
        f"gold is {payload['gold']}",
    )
    last = [row for row in payload["table"] if row["round"] == payload["rounds"]]
    verdict(page, last, payload)
    for note in text.notes:
        page.text(f"{note}.")
    gold_by_round(page, payload)
    samples(page, payload)
    variance(page, payload)
    how_it_was_done(page, payload, given)
    page.glossary(GLOSSARY)
    return page


def gold_by_round(page: Report, payload: dict[str, Any]) -> None:
    """Each round's gold against the reward model that is not refreshed."""
    page.heading("Gold by round")
    rows = [
        {"round": str(row["round"]), "kind": row["kind"], **d.fields("difference")}
        for row in payload["table"]
        if row["round"] > 0 and not row["kind"].startswith("fixed") and (d := row["gold_over_fixed"]).value is not None
    ]
    line, ends = (0.0, "not refreshed"), ("low", "high")
    axis = "gold more than fixed"
    chart = charts.points(rows, "round", "difference", ends=ends, group="kind", y_title=axis, reference=line)
    caption = f"Paired difference at KL {payload['kl_nats']:g} nats on held-out prompts, over repetitions."
    page.chart(chart, "gold", caption)
    page.records(
        payload["table"],
        [
            ("round", lambda r: str(r["round"])),
            ("reward model", "kind"),
            ("gold", "gold"),
            ("more than fixed", lambda r: text_of(r, "gold_over_fixed")),
            ("better in", lambda r: f"{r['better_share']:.0%}"),
            ("gold of its argmax", "best"),
            ("pair accuracy", "accuracy"),
            ("on the policy", "policy_accuracy"),
            ("more than fixed", lambda r: text_of(r, "accuracy_over_fixed")),
        ],
        "Gold from the reference. Accuracy: on test candidates of unequal gold; on the policy: weighted by its draws.",
    )


def how_it_was_done(page: Report, payload: dict[str, Any], given: RlpOptions) -> None:
    """What was compared and on which choices the numbers rest."""
    page.heading("How it was done")
    page.bullets(
        [
            *(f"{name}: {words}" for name, words in payload["kinds"].items()),
            f"Equal answers: {payload['groups']}. Confidence at least {given.gamma:g} of {given.samples} samples.",
            "A candidate counts as often as it was drawn."
            if given.repeats
            else "A candidate counts once, however "
            "often the policy drew it: repeats of one text say how sharp the policy is, not that answers agree.",
            "Each repetition splits the prompts anew into labelled, unlabelled and test thirds, and draws its own "
            f"{given.pairs} noisy preferences (Bradley-Terry from gold, slope {given.slope:g}).",
            "Every policy is exact over a prompt's candidates, starts from the reference, and has the same mean KL.",
            "Repetitions share one pool, so intervals speak of this pool of prompts.",
        ]
    )


def text_of(row: dict[str, Any], name: str) -> str | None:
    """An estimate of a row as text; None for the fixed reward model, which others are compared with."""
    return None if row["kind"].startswith("fixed") else row[name].text


def verdict(page: Report, last: list[dict[str, Any]], payload: dict[str, Any]) -> None:
    """The result in words: what refreshing the reward model gained in the last round."""
    refreshed = [row for row in last if row["kind"] in ("spg", "uml")]
    words, tones = [], []
    for row in refreshed:
        d = row["gold_over_fixed"]
        better = d.low is not None and d.low > 0
        worse = d.high is not None and d.high < 0
        verb = "gains" if better else "loses" if worse else "neither clearly gains nor loses"
        share = f"better in {row['better_share']:.0%} of repetitions"
        words.append(f"**{row['kind']}** {verb} against the fixed reward model: {d.text} gold, {share}")
        tones.append("good" if better else "bad" if worse else "neutral")
    for name, d in payload["contrasts_last_round"].items():
        if name == "spg - spg-reference" and d.low is not None:
            clear = "helps" if d.low > 0 else "hurts" if d.high < 0 else "makes no clear difference"
            words.append(f"sampling from the policy rather than the reference {clear} ({d.text})")
        if name == "spg - self" and d.low is not None and d.low > 0:
            words.append(f"the groups matter: {d.text} more than pairs ordered by the reward model itself")
    tone = "good" if "good" in tones else "bad" if "bad" in tones else "neutral"
    page.verdict("; ".join(words) + ".", tone, f"After {payload['rounds']} round{'s' if payload['rounds'] > 1 else ''}")


def samples(page: Report, payload: dict[str, Any]) -> None:
    """Table of what each round's samples gave."""
    page.heading("What the samples gave")
    names = ("pairs", "coverage", "precision", "confidence", "unanimous", "below_gamma", "views")
    rows = [
        [str(r["round"]), r["kind"], *(r["samples"].get(name) for name in names)]
        for r in payload["table"]
        if r["samples"]
    ]
    page.table(["round", "reward model", *(n.replace("_", " ") for n in names)], rows, "Means over repetitions.")


def variance(page: Report, payload: dict[str, Any]) -> None:
    """How the members' relative variance changed on policy."""
    found = payload["variance_change_on_policy"]
    if not found:
        return
    page.heading("Does the ensemble's variance fall?")
    page.text(
        "Members' variance where the policy samples, relative to the reward's own variance within prompts, so that a "
        "mere change of scale counts for nothing. Less disagreement is not the same as more truth: the control that "
        "trains on its own opinion lowers it too."
    )
    rows = [{"kind": kind, **d.fields("change")} for kind, d in found.items()]
    chart = charts.dot_intervals(
        rows, "kind", "change", x_title="change of relative variance, last round against round 0", reference=0.0
    )
    page.chart(chart, "variance", "Paired over repetitions.")

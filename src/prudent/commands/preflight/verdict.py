"""The answer in words: how risky is vanilla, which method and beta to take, and what would help most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prudent.commands.preflight.core import BASELINE
from prudent.commands.preflight.truth import WORDS
from prudent.reporting.numbers import percent

NEAR_GUESSING = 0.55  # below this share of correctly ordered candidate pairs there is hardly a signal

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """tone: good, warn or bad. headline, why, todo: the answer, its reason and what to do, one sentence each.
    sentences: all that stands behind them. choice: the recommended row, or None. vanilla: its row at the beta where it
    gains most. advice: what would help, most first. rough: what an answer rests on whose run was stopped, or ""."""

    tone: str
    headline: str
    sentences: list[str]
    choice: dict[str, Any] | None
    vanilla: dict[str, Any]
    advice: list[str] = field(default_factory=list)
    why: str = ""
    todo: str = ""
    rough: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return dict(vars(self))

    @property
    def text(self) -> str:
        """Sentences and advice as paragraphs."""
        return "\n\n".join([" ".join(self.sentences), *self.advice])

    @property
    def box(self) -> list[str]:
        """What stands beside the headline: why, what to do, and what a rough answer rests on."""
        return [text for text in (self.why, self.todo, self.rough) if text]


def signed(value: float | None) -> str:
    """A gain with its sign: three decimals, or two significant digits where it is small."""
    if value is None:
        return "–"
    return "0" if value == 0 else f"{value:+.3f}" if abs(value) >= 0.01 else f"{value:+.2g}"


def with_interval(row: Row) -> str:
    """Risk of a row with its interval, in per cent."""
    return f"{percent(row['risk'])} ({percent(row['low'])} to {percent(row['high'])})"


def usable(rows: Sequence[Row]) -> list[Row]:
    """Rows that hold a risk and whose method a person might deploy (controls are there to be compared with)."""
    return [row for row in rows if row.get("risk") is not None and row["kind"] != "control"]


def choose(rows: Sequence[Row], max_risk: float) -> Row | None:
    """The row of the largest mean gain among those whose risk interval lies wholly under ``max_risk``."""
    safe = [row for row in usable(rows) if row["high"] <= max_risk and row["gain"] > 0]
    return max(safe, key=lambda row: row["gain"]) if safe else None


def conclude(
    rows: Sequence[Row],
    equal_kl: Sequence[Row],
    outlook: Sequence[Row],
    *,
    max_risk: float,
    unit: str,
    kind: str = "gold",
    judge: Mapping[str, Any] | None = None,
    order: float | None = None,
) -> Verdict:
    """Verdict from the tables at equal beta and equal KL (``core.table``) and the outlook (``outlook.compare``).

    kind: of the truth, a key of ``truth.WORDS``. judge: its accuracy with interval; where that can't be
    distinguished from guessing, no setting is called safe. order: share of candidate pairs that a reward model
    orders as the truth does.
    """
    weak_judge = judge is not None and judge["low"] <= 0.5
    vanilla_rows = [row for row in rows if row["method"] == BASELINE and row.get("risk") is not None]
    if not vanilla_rows:
        return _no_estimate(rows, kind)
    vanilla = max(vanilla_rows, key=lambda row: row["gain"])
    choice = None if weak_judge else choose(rows, max_risk)
    sentences = [_vanilla_sentence(vanilla, vanilla_rows, unit)]
    if weak_judge:
        tone, headline = "warn", "These data can't tell whether any setting is safe"
        why = "The judge that values the policies can't be distinguished from guessing on held-out pairs."
        sentences.append(
            "The judge that values the policies can't be distinguished from guessing on held-out pairs, so its "
            "risks say little: give a pool with a gold column, or a better judge."
        )
    elif choice is None:
        tone, headline = "bad", f"No setting is safe with these data (risk under {percent(max_risk)})"
        least = min(usable(rows), key=lambda row: (row["risk"], row["high"], -row["gain"]))
        wide = f"; its interval reaches above {percent(max_risk)}." if least["risk"] <= max_risk else "."
        why = f"The least risk found is {with_interval(least)}: {least['method']} at beta {least['setting']:g}{wide}"
        sentences.append(why)
    else:
        wavers = choice.get("judge_risk_high", 0.0) > max_risk
        tone = "good" if vanilla["high"] <= max_risk and not wavers else "warn"
        headline, sentence = _recommended(choice, vanilla["high"] <= max_risk, max_risk, unit, kind)
        sentences.append(sentence + (f" O{_over_judges(choice)[1:]}." if wavers else ""))
        why = _why(choice, vanilla, unit, wavers)
    sentences += _controls(equal_kl) + _without_kl(rows)
    sentences.append(truth_sentence(kind, judge, order))
    advice = advise(rows, outlook, vanilla, max_risk, order)
    picked = None if choice is None else dict(choice)
    todo = _todo(choice, weak_judge, advice)
    return Verdict(tone, headline, sentences, picked, dict(vanilla), advice, why, todo)


def _recommended(choice: Row, safe_vanilla: bool, max_risk: float, unit: str, kind: str) -> tuple[str, str]:
    """Headline and sentence of the setting to take."""
    setting = f"{choice['method']} at beta {choice['setting']:g}"
    safe = "is safe here" if kind == "gold" else "looks safe"
    headline = f"Vanilla {safe}; best is {setting}" if safe_vanilla else f"Take {setting}"
    return headline, (
        f"Of the settings whose risk interval lies under {percent(max_risk)}, **{setting}** gains most: "
        f"{signed(choice['gain'])} {unit}, risk {with_interval(choice)}, KL {choice['kl']:.2f} nats."
    )


def _over_judges(choice: Row) -> str:
    low, high = percent(choice["judge_risk_low"]), percent(choice["judge_risk_high"])
    return f"over judges that other pairs might have given, its risk lies between {low} and {high}"


def _why(choice: Row, vanilla: Row, unit: str, wavers: bool) -> str:
    """The recommended setting's risk and gain beside vanilla's, and its range over judges where that is wide."""
    text = f"Its risk is {with_interval(choice)}, its gain {signed(choice['gain'])} {unit}"
    if choice["method"] != BASELINE:
        text += f"; vanilla at beta {vanilla['setting']:g} has a risk of {with_interval(vanilla)}"
    if wavers:
        text += f"; {_over_judges(choice)}"
    return text + "."


def _todo(choice: Row | None, weak_judge: bool, advice: Sequence[str]) -> str:
    if weak_judge:
        return "Give a pool with gold rewards (`--pool`, `--gold`), or a better judge (`--judge`)."
    if choice is not None:
        return f"Train with it: `prudent align --objective {choice['method']} --beta {choice['setting']:g}`."
    if len(advice) > 1 and not advice[1].startswith("**Another beta**"):
        return f"Don't train on these yet. What would help most: {advice[1]}"
    return "Don't train on these yet: label more pairs (`prudent acquire` says which)."


def truth_sentence(kind: str, judge: Mapping[str, Any] | None, order: float | None) -> str:
    """What all of this rests on, and what it can't show."""
    text = f"Truth here is {WORDS[kind]}."
    if judge is not None:
        text += (
            f" The judge is right on {percent(judge['accuracy'])} ({percent(judge['low'])} to "
            f"{percent(judge['high'])}) of pairs that it has not seen."
        )
    if kind == "posterior":
        text += (
            " They take the reward to be linear in the features, or with some probability unrelated to them: a bias "
            "that all pairs share counts as right, and few noisy pairs can't tell a weak signal from none."
        )
    elif order is not None:
        near = ", hardly better than guessing" if order < NEAR_GUESSING else ""
        text += (
            f" A reward model orders two candidates of a prompt as the truth does in {percent(order)} of cases{near}."
        )
    return text


def _vanilla_sentence(vanilla: Row, rows: Sequence[Row], unit: str) -> str:
    others = ", ".join(f"{percent(row['risk'])} at {row['setting']:g}" for row in rows)
    text = (
        f"**Vanilla** (KL-regularised, one reward model) gains most at beta {vanilla['setting']:g}: "
        f"{signed(vanilla['gain'])} {unit} over the model you start from. The probability that the policy trained on "
        f"these pairs is no better than that model is {with_interval(vanilla)}; by beta: {others}."
    )
    text += _procedure_sentence(vanilla, "it")
    return f"{text} {vanilla['reason'][0].upper()}{vanilla['reason'][1:]}." if vanilla.get("reason") else text


def _procedure_sentence(row: Row, subject: str) -> str:
    if row.get("procedure_risk") is None:
        return ""
    low, high = percent(row["procedure_low"]), percent(row["procedure_high"])
    return f" Over fresh data sets of this size {subject} would be {percent(row['procedure_risk'])} ({low} to {high})."


def _no_estimate(rows: Sequence[Row], kind: str) -> Verdict:
    """Too little data for any number: the widest interval, and why."""
    first = next(row for row in rows if row["method"] == BASELINE)
    reason = first.get("reason") or "no setting could be valued"
    known = f"No risk is given: {reason}. It may be anything from 0 to 100 %."
    known += _procedure_sentence(first, "vanilla's, as far as so few data tell,")
    sentences = [known, truth_sentence(kind, None, None)]
    return Verdict("warn", "Too few data for an estimate", sentences, None, dict(first))


def _controls(equal_kl: Sequence[Row]) -> list[str]:
    """What the variance-aware forms do to risk and gain at vanilla's KL, beside the two controls.

    Of all forms and betas, the one whose risk interval lies furthest below vanilla's; where none lies below, the one
    whose gain lies furthest above.
    """
    aware = [row for row in equal_kl if row["kind"] == "variance-aware" and row.get("vs_risk_high") is not None]
    aware = [row for row in aware if row["unreached"] <= 0.1 * (row["draws"] + row["unreached"])]
    if not aware:
        return []
    safer = min(aware, key=lambda row: (row["vs_risk_high"], -row["vs_gain"]))
    richer = max(aware, key=lambda row: row["vs_gain_low"])
    if safer["vs_risk_high"] < 0:
        best, better, measure = safer, "safer than", "risk"
    elif richer["vs_gain_low"] > 0:
        best, better, measure = richer, "better than", "gain"
    else:
        gains_less = safer.get("vs_gain_high") is not None and safer["vs_gain_high"] < 0
        return [_at_equal_kl(safer, "no safer than" if gains_less else "neither safer nor better than", gains_less)]
    words = _at_equal_kl(best, better)
    same = {row["method"]: row for row in equal_kl if row["setting"] == best["setting"]}
    only, shuffled = same.get("variance-only"), same.get("permuted")
    if any(row is None or row.get("vs_risk") is None for row in (only, shuffled)):
        return [words]
    return [words + " " + _weighed(best, only, shuffled, measure)]  # type: ignore[arg-type]


def _without_kl(rows: Sequence[Row]) -> list[str]:
    """What training without a KL term would come to, where beta 0 was asked for."""
    best = sorted((row for row in usable(rows) if row["setting"] == 0), key=lambda row: -row["gain"])
    if not best:
        return []
    gains = "; ".join(f"{row['method']} {signed(row['gain'])}, risk {percent(row['risk'])}" for row in best)
    return [
        "Beta 0 is training without a KL term, taken to its end on these candidates: each prompt gets its best one by "
        f"the rule, {best[0]['kl']:.2f} nats from your model, whichever the rule. There, by gain: {gains}."
    ]


def points(low: float, high: float) -> str:
    """The interval of a difference in percentage points, with a decimal where it is small."""
    if max(abs(low), abs(high)) < 0.05:
        return "no difference"
    ends = [f"{x:+.0f}" if abs(x) >= 2 else "0" if abs(x) < 0.05 else f"{x:+.1f}" for x in (low, high)]
    return f"{ends[0]} to {ends[1]} points"


def _at_equal_kl(row: Row, verdict: str, gains_less: bool = False) -> str:
    vanilla_risk, vanilla_gain = row["risk"] - row["vs_risk"], row["gain"] - row["vs_gain"]
    low, high = (100 * row[f"vs_risk_{end}"] for end in ("low", "high"))
    less = " and gains less" if gains_less else ""
    return (
        f"At the KL that vanilla spends at beta {row['setting']:g}, **{row['method']}** is {verdict} vanilla{less}: "
        f"risk {percent(row['risk'])} against {percent(vanilla_risk)} (paired: {points(low, high)}), "
        f"gain {signed(row['gain'])} against {signed(vanilla_gain)} ({signed(row['vs_gain_low'])} to "
        f"{signed(row['vs_gain_high'])})."
    )


def _weighed(best: Row, only: Row, shuffled: Row, measure: str) -> str:
    """What the controls make of an advantage in ``measure``: half of it is enough to share it."""
    sign = -1 if measure == "risk" else 1
    advantage = sign * best[f"vs_{measure}"]
    # The blind control is held against vanilla in risk, against the reference in gain: it has no reward to spend KL on.
    blind = sign * only["vs_risk"] if measure == "risk" else only["gain"]
    numbers = (
        f"The control that never looks at the reward has {_value(only, measure)}, shuffled variances "
        f"{_value(shuffled, measure)}: "
    )
    if blind > 0.5 * advantage:
        return numbers + "part of the advantage is luck of the data, in which low variance goes with truth."
    if sign * shuffled[f"vs_{measure}"] > 0.5 * advantage:
        return numbers + (
            "the advantage isn't that luck; but shuffling the variances keeps most of it, so it doesn't come from "
            "knowing which response is uncertain."
        )
    return numbers + (
        "the advantage isn't that luck, and shuffling the variances loses most of it: it comes from knowing which "
        "response is uncertain."
    )


def _value(row: Row, measure: str) -> str:
    return f"risk {percent(row['risk'])}" if measure == "risk" else f"gain {signed(row['gain'])}"


def advise(
    rows: Sequence[Row], outlook: Sequence[Row], vanilla: Row, max_risk: float, order: float | None = None
) -> list[str]:
    """What lowers risk, the largest reduction first; only what the numbers show."""
    found: list[tuple[float, str]] = []
    beta = vanilla["setting"]
    pairs = [r for r in outlook if r["change"] == "pairs" and r["method"] == BASELINE and r["beta"] == beta]
    for row in pairs:
        after = row["risk_double_extrapolated"]
        trend = f"vanilla's risk at beta {beta:g} is {percent(row['risk_half'])} with half of them"
        if after is not None:
            found.append(
                (
                    row["risk_full"] - after,
                    f"**More pairs**: {trend}, {percent(row['risk_full'])} with all, and about {percent(after)} with "
                    "twice as many (a rough extrapolation).",
                )
            )
        else:
            found.append((0.0, f"**More pairs**: {trend}, {percent(row['risk_full'])} with all of them."))
    found.extend(
        (
            vanilla["risk"] - row["risk"],
            f"**More members**: the mean of the members as the reward has risk {percent(row['risk'])} at the same "
            f"beta, one reward model {percent(vanilla['risk'])}.",
        )
        for row in rows
        if row["method"] == "mean" and row["setting"] == beta and row.get("risk") is not None
    )
    calmer = [row for row in rows if row["method"] == BASELINE and row.get("risk") is not None]
    least = min(calmer, key=lambda row: (row["risk"], -row["gain"]))
    if least["setting"] != beta and least["risk"] < vanilla["risk"]:
        direction = "smaller" if least["setting"] < beta else "larger"
        found.append(
            (
                vanilla["risk"] - least["risk"],
                f"**A {direction} beta**: vanilla at {least['setting']:g} has risk {percent(least['risk'])} and gains "
                f"{signed(least['gain'])}.",
            )
        )
    else:
        found.append((0.0, "**Another beta** doesn't lower vanilla's risk on this grid."))
    if order is not None and order < NEAR_GUESSING:
        text = (
            f"**Better reward models**: with {percent(order)} of candidate pairs in the right order there is hardly a "
            "signal to be careful with; cleaner preferences or a larger encoder come before any choice of method."
        )
        found.append((1.0, text))
    ordered = sorted(found, key=lambda item: -item[0])
    if vanilla["high"] <= max_risk:
        return []
    return ["What would help, most first:", *(text for _, text in ordered)]

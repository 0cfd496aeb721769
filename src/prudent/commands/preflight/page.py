"""The report that a person reads: verdict first, then the numbers behind it, then how they were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prudent.commands.preflight.answer import Answer
from prudent.commands.preflight.core import BASELINE
from prudent.commands.preflight.truth import WORDS
from prudent.commands.preflight.verdict import signed, truth_sentence, with_interval
from prudent.policies.objectives import CONTROLS
from prudent.reporting import charts
from prudent.reporting.numbers import percent
from prudent.reporting.report import Report

MAIN = ("vanilla", "proportional", "bregman", "exact")
SPREAD = ("vanilla", "mean", "proportional", "bregman", "exact", *CONTROLS)
GLOSSARY = {
    "beta": "Weight of the KL term: the larger, the closer to the reference; 0 takes each prompt's best candidate.",
    "KL": "Kullback-Leibler divergence of the policy from the reference policy, in nats: how far it moved.",
    "reference": "The model that you start from; here its own sampled responses, each with the same weight.",
    "risk": "Data-set risk: the probability that the policy trained on these very pairs is no better than the "
    "reference.",
    "procedure risk": "Share of fresh data sets of this size whose policy is no better than the reference.",
    "posterior": "What the reward may be, given all pairs: linear in the features, averaged over how strong the signal "
    "is, with a stated probability of none.",
    "draw": "A reward from the posterior; with gold or a judge, a reward model from one resample of your pairs.",
    "member": "One of the K heads that are fitted on resamples of the pairs.",
    "gain": "Expected reward of the policy minus that of the reference, by the truth at hand.",
    "vanilla": "KL-regularised optimisation of one reward model, which ignores how sure it is.",
    "proportional": "Variance-aware: pi0 exp(reward / (beta variance)), the closed form of arXiv 2410.23726 and "
    "2507.15906.",
    "bregman": "Variance-aware: the optimum when the KL weight per response is beta times its variance, Bregman form.",
    "exact": "Variance-aware: the exact maximiser of expected reward minus beta x variance x log ratio.",
    "lcb": "Mean of the members minus one standard deviation as the reward.",
    "min": "The lowest member as the reward (worst-case optimisation).",
    "uwo": "Mean of the members minus half their variance as the reward.",
    "entropic": "Certainty equivalent of the members under exponential caution as the reward.",
    "variance-only": "Control: never looks at the reward, prefers responses of low variance.",
    "permuted": "Control: as proportional, with the variances shuffled among a prompt's responses.",
}


TIPS = ("beta", "KL", "reference", "risk", "procedure risk", "lcb", "uwo")


def setting_of_interest(answer: Answer) -> float:
    """The beta that charts of a single beta show: vanilla's most valuable one."""
    return float(answer.verdict.vanilla["setting"])


def gain_title(answer: Answer) -> str:
    """Axis title of gains, short enough for a phone."""
    return f"gain ({answer.unit})" if len(answer.unit) < 24 else "gain (judge sd)"


def open_report(title: str, subtitle: str, answer: Answer) -> Report:
    """A report that begins with the verdict and its key numbers."""
    report = Report(title, subtitle)
    verdict = answer.verdict
    report.heading("Verdict")
    report.verdict("\n\n".join(verdict.box), verdict.tone, verdict.headline)
    report.cards(*_cards(answer))
    with report.details("The answer in full"):
        for sentence in verdict.sentences:
            report.text(sentence)
        if verdict.advice:
            report.text(verdict.advice[0])
            report.bullets(verdict.advice[1:])
    return report


def _cards(answer: Answer) -> list[tuple[str, str, str, str]]:
    vanilla, choice, judge = answer.verdict.vanilla, answer.verdict.choice, answer.facts["judge"]
    worse = f"{percent(vanilla['low'])} to {percent(vanilla['high'])}: no better than your model"
    cards = [(f"risk of vanilla at beta {vanilla['setting']:g}", percent(vanilla["risk"]), worse, answer.verdict.tone)]
    if choice is None:
        cards.append(("recommended", "none", "no risk interval is low enough", "bad"))
    else:
        how = f"beta {choice['setting']:g}, risk {percent(choice['risk'])}"
        cards.append(("recommended", choice["method"], how, "good"))
        cards.append(("its gain", signed(choice["gain"]), answer.unit, ""))
        cards.append(("its KL", f"{choice['kl']:.2f}", "nats from the reference", ""))
    if judge:
        note = f"of held-out pairs ({percent(judge['low'])} to {percent(judge['high'])})"
        cards.append(("the judge is right on", percent(judge["accuracy"]), note, "bad" if judge["low"] <= 0.5 else ""))
    else:
        cards.append(("truth", answer.kind, WORDS[answer.kind], ""))
    return cards


def risk_section(report: Report, answer: Answer, max_risk: float) -> None:
    """Risk by beta, every method at one beta, and the table."""
    at = setting_of_interest(answer)
    report.heading("Risk at equal beta")
    report.text(
        "The optimal policy over the sampled candidates is known exactly for each method and beta. Risk is the "
        "probability that the policy trained on these pairs is no better than the reference. The procedure risk is the "
        "share of fresh data sets of this size for which that happens."
    )
    rows = [row for row in answer.equal_beta if row.get("risk") is not None]
    chart = charts.points(
        [{**row, "beta": f"{row['setting']:g}"} for row in rows if row["method"] in MAIN],
        "beta",
        "risk",
        ends=("low", "high"),
        group="method",
        x_title="beta (KL weight)",
        y_title="risk",
        y_domain=(0, _ceiling(rows, MAIN)),
        y_format="%",
        title="Risk by beta",
        reference=(max_risk, f"limit {percent(max_risk)}"),
        tooltip=("gain", "kl"),
    )
    report.chart(
        chart, "risk-by-beta", "Vanilla and the three variance-aware forms. Bars (95 %): what the data can't settle."
    )
    here = [row for row in rows if row["setting"] == at]
    chart = charts.dot_intervals(
        here,
        "method",
        "risk",
        x_title=f"risk at beta {at:g}",
        x_format="%",
        x_domain=(0, _ceiling(here, [row["method"] for row in here])),
        title=f"Every method at beta {at:g}",
        reference=(max_risk, f"limit {percent(max_risk)}"),
    )
    report.chart(
        chart,
        "risk-by-method",
        "The last two are controls: `variance-only` never looks at the reward, `permuted` shuffles the variances.",
    )
    one = [name for name in RISK_COLUMNS if name != "beta"]
    rows_here = [dict(zip(RISK_COLUMNS, risk_row(row, "beta"), strict=True)) for row in here]
    report.table(one, rows_here, f"All methods at beta {at:g}. " + GAIN_NOTE)
    with report.details("The same table at every beta"):
        report.table(RISK_COLUMNS, [risk_row(row, "beta") for row in rows], GAIN_NOTE)


GAIN_NOTE = (
    "Gain: expected reward minus the reference's. Worse: share of prompts whose expected reward falls. Over vanilla: "
    "paired difference in gain, since all methods share the draws, with its 95 % interval."
)
RISK_COLUMNS = (
    "method",
    "beta",
    "risk (95 %)",
    "procedure risk (95 %)",
    "gain",
    "sd over draws",
    "worse",
    "KL",
    "over vanilla (95 %)",
)


def risk_row(row: Mapping[str, Any], label: str) -> list[Any]:
    """One line of the risk tables; at equal KL the beta shown is the median over draws."""
    beta = row["setting"] if label == "beta" else row["beta"]
    versus = "" if row.get("vs_gain") is None else signed(row["vs_gain"])
    if row.get("vs_gain_low") is not None:
        versus += f" ({signed(row['vs_gain_low'])} to {signed(row['vs_gain_high'])})"
    return [
        row["method"],
        f"{beta:.3g}",
        with_interval(row),
        procedure(row),
        signed(row["gain"]),
        row["deviation"],
        percent(row["worse"]),
        f"{row['kl']:.2f}",
        versus,
    ]


def procedure(row: Mapping[str, Any]) -> str:
    """The procedure risk with its interval, or nothing where it isn't known."""
    if row.get("procedure_risk") is None:
        return ""
    low, high = percent(row["procedure_low"]), percent(row["procedure_high"])
    return f"{percent(row['procedure_risk'])} ({low} to {high})"


def _ceiling(rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> float:
    """Top of a risk axis: the highest interval in sight, in tenths."""
    highest = max((row["high"] for row in rows if row["method"] in methods), default=1.0)
    return min(1.0, max(0.1, -(-highest * 10 // 1) / 10))


def equal_kl_section(report: Report, answer: Answer) -> None:
    """Methods at the KL that vanilla spends: what is left when distance can't explain the difference."""
    at = setting_of_interest(answer)
    rows = [row for row in answer.equal_kl if row.get("risk") is not None]
    report.heading("Methods at equal KL")
    report.text(
        "At equal beta one method may simply move less. Here each method's beta is chosen, draw by draw, so that it "
        "moves as far from the reference as vanilla does. What remains is the method. An advantage that "
        "`variance-only` shares is luck of the data; one that `permuted` keeps doesn't come from knowing which "
        "response is uncertain."
    )
    chart = charts.lines(
        [row for row in rows if row["method"] in SPREAD],
        "kl",
        "gain",
        group="method",
        x_title="KL from the reference, nats",
        y_title=gain_title(answer),
        order="kl",
        title="Gain against distance",
        reference=(0.0, "reference"),
    )
    report.chart(
        chart,
        "gain-by-kl",
        "Mean over draws. The higher at the same KL, the better; below the dashed line a policy is worse than the "
        "start.",
    )
    here = [row for row in rows if row["setting"] == at]
    caption = f"All methods at the KL of vanilla at beta {at:g}; beta is the median over draws. "
    report.table(RISK_COLUMNS, [risk_row(row, "kl") for row in here], caption + _unreached(here))
    with report.details("The same table at every KL"):
        report.table(RISK_COLUMNS, [risk_row(row, "kl") for row in rows], _unreached(rows))


def _unreached(rows: Sequence[Mapping[str, Any]]) -> str:
    missed = {row["method"]: row["unreached"] for row in rows if row["unreached"]}
    if not missed:
        return "Every method reaches that KL in every draw."
    return "Draws left out because no beta reaches that KL: " + ", ".join(f"{m} {n}" for m, n in missed.items()) + "."


def distributions_section(report: Report, answer: Answer) -> None:
    """Histograms over draws."""
    at = setting_of_interest(answer)
    report.heading("Gain over draws")
    gains: dict[str, torch.Tensor] = {}
    for method in SPREAD:
        m, b = answer.beta_outcomes.of(method, at)
        gains[method] = answer.beta_outcomes.gain[m, b]
    chart = charts.ridges(
        gains,
        x_title=gain_title(answer),
        title=f"Gain of every draw at beta {at:g}",
        reference=(0.0, "reference policy"),
    )
    report.chart(
        chart,
        "gain-of-draws",
        "One histogram a method over the same draws; the thick tick is the mean. Left of the dashed line the policy is "
        "no better than the reference.",
    )


def trust_section(report: Report, answer: Answer) -> None:
    """How good the truth is that everything above rests on."""
    report.heading("Can this estimate be trusted?")
    facts, judge = answer.facts, answer.facts["judge"]
    report.text(truth_sentence(answer.kind, judge, facts["order"]))
    if answer.kind == "posterior":
        report.text(
            f"The probability that these features say nothing about the reward is "
            f"{percent(facts['probability_of_no_signal'])}. What such promises came to where the truth was known is on "
            "the page docs/calibration.md: read it before you rely on one."
        )
    if facts["link"] is not None:
        strength = abs(facts["link"])
        tie = "hardly anything to do" if strength < 0.1 else "something to do" if strength < 0.3 else "much to do"
        report.text(
            f"Low variance has {tie} with truth here: the correlation of log variance and value within a prompt is "
            f"{facts['link']:+.2f} (negative: low variance goes with high value)."
        )
    report.text(
        f"The variances differ by a coefficient of variation of {facts['inequality']:.2f}; "
        f"{percent(facts['variance_floored'])} of them lie at the floor."
    )
    if answer.check is not None:
        _check_part(report, answer)


def _check_part(report: Report, answer: Answer) -> None:
    check: dict[str, Any] = answer.check or {}
    rows, order = check["rows"], check["rank_correlation_of_gain"]
    report.heading("What would have been promised without gold", 3)
    report.text(
        "Without gold, the risk would have come from the posterior given the pairs. Here both are known. Over all "
        f"methods and betas its promise is {100 * check['mean_absolute_risk_error']:.0f} points on average "
        f"({100 * check['mean_risk_error']:+.0f} in the mean) from the share of resampled data sets whose policy is no "
        "better"
        + ("." if order is None else f", and it orders gains with a rank correlation of {order:.2f}.")
        + " One data set can't show whether a promise was right; docs/calibration.md does so over many."
    )
    chart = charts.scatter(
        [row for row in rows if row["method"] in SPREAD],
        "promised_risk",
        "procedure_risk",
        group="method",
        x_title="risk promised without gold",
        y_title="share of resampled data sets no better, by gold",
        diagonal=True,
        tooltip=("beta", "true_gain"),
        title="Promised without gold, and by gold",
    )
    report.chart(
        chart, "promise-against-gold", "One point a method and beta. Below the dashed line the promise is too careful."
    )
    report.table(
        ("method", "beta", "promised risk (95 %)", "promised procedure risk", "procedure risk by gold", "gain by gold"),
        [
            [
                row["method"],
                f"{row['beta']:g}",
                f"{percent(row['promised_risk'])} ({percent(row['promised_low'])} to {percent(row['promised_high'])})",
                percent(row["promised_procedure_risk"]),
                procedure(row),
                signed(row["true_gain"]),
            ]
            for row in rows
            if row["method"] in MAIN
        ],
        "Gain by gold: of the policy trained on all pairs.",
    )


def outlook_section(report: Report, answer: Answer) -> None:
    """What more data would do."""
    report.heading("What would help")
    report.table(
        (
            "method",
            "beta",
            "risk, half of the pairs",
            "risk, all pairs",
            "twice as many (extrapolated)",
            "gain, half",
            "gain, all",
        ),
        [
            [
                row["method"],
                f"{row['beta']:g}",
                percent(row["risk_half"]),
                percent(row["risk_full"]),
                "" if row["risk_double_extrapolated"] is None else percent(row["risk_double_extrapolated"]),
                signed(row["gain_half"]),
                signed(row["gain_full"]),
            ]
            for row in answer.outlook
        ],
        "Measured with half of the pairs and with all; the doubling continues the trend of mean gain over its sd "
        f"and is rough. `mean` takes the members' mean as the reward, {BASELINE} one reward model.",
    )


def close_report(
    report: Report, choices: Sequence[str], settings: Mapping[str, Any], timings: Mapping[str, float], memory_mib: float
) -> None:
    """How it was made, what it cost, and what the words mean."""
    report.heading("How this was computed")
    report.bullets(choices)
    report.table(
        ("stage", "seconds"),
        [[stage, f"{seconds:.1f}"] for stage, seconds in timings.items()],
        f"Peak memory {memory_mib:,.0f} MiB.",
    )
    with report.details("All settings"):
        report.table(("option", "value"), [[key, _shown(value)] for key, value in settings.items()])
    with report.details("Glossary"):
        report.glossary(GLOSSARY, TIPS)


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "–"
    return "–" if value is None else str(value)

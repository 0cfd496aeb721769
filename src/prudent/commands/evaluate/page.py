"""The evaluation as a page."""

from __future__ import annotations

from typing import Any

from prudent.commands.evaluate.numbers import NAMES, TITLES, brief, columns, metric_of, shown
from prudent.commands.evaluate.page_comparisons import comparisons, undecided
from prudent.evaluation.benchmarks.contest import Result
from prudent.evaluation.benchmarks.items import Items
from prudent.evaluation.benchmarks.judges import RULES as JUDGE_RULES
from prudent.evaluation.benchmarks.reward_bench import BenchmarkScore
from prudent.reporting import charts
from prudent.reporting.report import Report, p_value

GLOSSARY = {
    "micro": "mean over items, whatever their subset",
    "macro": "mean over subsets, whatever their size",
    "MRR": "mean reciprocal rank of the correct solution",
    "AUROC": "chance that an error has a higher uncertainty than a right item; 0.5 says nothing",
    "Brier": "mean squared difference of probability and outcome; lower is better",
    "ECE": "expected calibration error: mean gap between confidence and accuracy over 15 bins",
    "coverage": "share of items kept when the most uncertain are set aside first",
}
STRONG = 0.9


def report(
    benchmark: str, items: Items, results: list[Result], baselines: list[Result], payload: dict[str, Any]
) -> Report:
    """The page: verdict, results, views of each ensemble, errors against disagreement, calibration, comparisons."""
    page = Report(f"{TITLES[benchmark]}: {len(items)} items", f"{payload['data']}")
    verdict(page, results, baselines, payload)
    _overview(page, benchmark, results, baselines, payload)
    subsets(page, results)
    views(page, results)
    reductions(page, results)
    uncertainty(page, results)
    calibration(page, results)
    comparisons(page, payload)
    left_out(page, payload)
    notes(page, items, results, payload)
    return page


def verdict(page: Report, results: list[Result], baselines: list[Result], payload: dict[str, Any]) -> None:
    """The result in words: the best scorer, what a blind one gets, and who isn't clearly different from it."""
    best = max(results, key=lambda r: r.headline[1].value or 0)
    name, value = best.headline
    random = payload["baselines"]["random"].get(name, payload["baselines"]["random"].get("micro"))
    rivals = [(b.name, m.value) for b in baselines if (m := metric_of(b, name)) is not None and m.value is not None]
    label = NAMES.get(name, name)
    who = f"**{best.name}**" + (f" ({best.chosen})" if best.kind in ("members", "steps") else "")
    text = f"{who} has the highest {label}" if len(results) > 1 else f"{who}: {label}"
    text += f"{': ' if len(results) > 1 else ' '}{shown(value)} on {value.n} items"
    text += f"; a scorer that knows nothing gets {random:.3f}." if random is not None and name != "overall" else "."
    tone = "neutral"
    if rivals:
        rival, level = max(rivals, key=lambda pair: pair[1])
        beaten = [r.name for r in results if (m := metric_of(r, name)) and m.low is not None and m.low > level]
        behind = len(results) - len(beaten)
        if behind and (random is None or level > random):
            text += f" But taking the {rival} gets {level:.3f}, and "
            text += f"{behind} of {len(results)} scorers are" if len(results) > 1 else "it is"
            text += " not clearly above that."
            tone = "warn"
    if value.low is not None and random is not None and name != "overall" and value.low <= random:
        text, tone = text + " Its interval holds what knowing nothing gives.", "warn"
    tied = [r for r in results if getattr(r.view.detail, "tied_problems", 0) > len(r.items) / 2]
    if tied:
        text += f" {len(tied)} of {len(results)} scorers tie on more than half of the problems: where they stand"
        text, tone = text + " depends on the rule for ties, so read all five columns.", "warn"
    if len(payload["comparisons"]) > 1:
        text += f" {undecided(payload)}"
    page.verdict(text, tone, "Result")


def _overview(
    page: Report, benchmark: str, results: list[Result], baselines: list[Result], payload: dict[str, Any]
) -> None:
    page.heading("Results")
    metrics = columns(benchmark, results)
    ordered = sorted(results, key=lambda r: -(r.headline[1].value or 0))
    lead = ordered[0].headline[0]
    intervals = {lead, "mrr"}
    uneven = any(len(r.items) != payload["items"] for r in results)
    random = payload["baselines"]["random"]
    rows: list[list[Any]] = []
    for r in [*ordered, *baselines]:
        label = r.name if r.chosen in ("score", "verdict") else f"{r.name} ({r.chosen})"
        found = [(m, metric_of(r, m)) for m in metrics]
        rows.append(
            [label, *([len(r.items)] if uneven else []), *(shown(v) if m in intervals else brief(v) for m, v in found)]
        )
    rows.append(["knows nothing (expected)", *([None] if uneven else []), *(random.get(m) for m in metrics)])
    caption = (
        "95 % intervals in brackets; those of every number are in evaluation.json. A tie is wrong unless it says so."
    )
    page.table(["scorer", *(["items"] if uneven else []), *(NAMES.get(m, m) for m in metrics)], rows, caption)
    name = ordered[0].headline[0]
    data = [
        {"scorer": r.name, **v.fields()}
        for r in [*ordered, *baselines]
        if (v := metric_of(r, name)) is not None and v.value is not None
    ]
    if len(data) > 1:
        chart = charts.dot_intervals(
            data,
            "scorer",
            "value",
            x_title=NAMES.get(name, name),
            reference=(random[name], "knows nothing") if name in random else None,
        )
        page.chart(chart, "results", "With 95 % intervals.")


def subsets(page: Report, results: list[Result]) -> None:
    """Accuracy by subset as a chart and a table; what the Ties score is made of."""
    benches = [(r, r.view.detail) for r in results if isinstance(r.view.detail, BenchmarkScore)]
    if not benches:
        return
    page.heading("Subsets")
    data = [
        {"subset": row.name, "scorer": r.name, **row.accuracy.fields()}
        for r, bench in benches[:4]
        for row in bench.rows
        if row.n
    ]
    group = "scorer" if len(benches) > 1 else None
    if len({row["subset"] for row in data}) > 1:
        chart = charts.dot_intervals(data, "subset", "value", group=group, x_title="accuracy")
        page.chart(
            chart, "subsets", "Accuracy by subset" + (" (the first four scorers)" if len(benches) > 4 else "") + "."
        )
    subset_table(page, benches)
    for result, bench in benches:
        if bench.ties is not None and bench.ties.score is not None:
            ties = bench.ties
            page.text(
                f"Ties of {result.name}: {ties.score:.3f} from tied accuracy {ties.tied_accuracy:.3f}, reference "
                f"accuracy {ties.reference_accuracy:.3f}, gap above range {ties.preferred:.3f} and "
                f"{ties.preferred_hard:.3f}, margin {ties.margin:.3f}, over {ties.pairs} prompts."
            )


def subset_table(page: Report, benches: list[tuple[Result, BenchmarkScore]]) -> None:
    """A row a subset with all that its totals need, a column a scorer."""
    shown_first = benches[:8]
    rows: list[list[Any]] = []
    for number, row in enumerate(shown_first[0][1].rows):
        entries = [bench.rows[number] for _, bench in shown_first]
        if not any(entry.n for entry in entries):
            continue
        scores = [shown(e.accuracy) if len(entries) == 1 else e.accuracy.value for e in entries]
        ties = [e.ties for e in entries] if len(entries) == 1 else []
        rows.append(
            [row.name, row.section or None, max(e.n for e in entries), row.published, f"{row.weight:g}", *scores, *ties]
        )
    names = ["accuracy", "ties"] if len(shown_first) == 1 else [r.name for r, _ in shown_first]
    caption = "A section is the mean of its subsets by weight; every total can be recomputed from this table."
    if len(benches) > len(shown_first):
        caption += f" The first {len(shown_first)} scorers; the others are in evaluation.json."
    page.table(["subset", "section", "items", "published", "weight", *names], rows, caption)


def views(page: Report, results: list[Result]) -> None:
    """Every member, the mean and the rules of each ensemble."""
    ensembles = [r for r in results if r.kind == "members"]
    if not ensembles:
        return
    page.heading("Members, mean and rules")
    for number, result in enumerate(ensembles):
        name = result.headline[0]
        data = [{"view": view, **v.metrics[name].fields()} for view, v in result.views.items() if name in v.metrics]
        chart = charts.dot_intervals(data, "view", "value", x_title=NAMES.get(name, name))
        page.chart(chart, f"views-{number}", f"{result.name}: the same items read by each rule and member.")
    if all(size == 2 for r in ensembles for size in r.items.sizes):
        page.text(
            "Members are centred per item before rules compare them. On a pair both answers then have one and the same "
            "deviation, so lcb and uwo order pairs as the mean does; they differ where a policy chooses among many."
        )


def reductions(page: Report, results: list[Result]) -> None:
    """What each process reward model makes of the eight reductions."""
    process = [r for r in results if r.kind == "steps"]
    if not process:
        return
    page.heading("Step reductions")
    metric = "mrr" if "mrr" in process[0].view.metrics else process[0].headline[0]
    data = [
        {"model": r.name, "reduction": how, **v.metrics[metric].fields()} for r in process for how, v in r.views.items()
    ]
    title = NAMES.get(metric, metric)
    chart = charts.dot_intervals(data, "reduction", "value", group="model", x_title=title)
    page.chart(chart, "reductions", "Each process reward model read in all eight ways.")
    shares = [(r.name, c, c.share[c.best]) for r in process if (c := r.reductions) is not None]
    page.table(
        ["process model", "needs", "best in resamples", "runner-up", "p against it", "clear?"],
        [
            [name, c.best, f"{share:.0%}", c.runner_up, p_value(c.clear), "yes" if share >= STRONG else "not clear"]
            for name, c, share in shares
        ],
        "Chosen by MRR on these very items, so the best one's score is a little optimistic. p: exact McNemar on strict "
        f"accuracy. Clear: best in at least {STRONG:.0%} of bootstrap resamples of the items.",
    )


def uncertainty(page: Report, results: list[Result]) -> None:
    """Whether each ensemble errs where its members disagree: AUROC, fifths and risk-coverage curves."""
    ensembles = [r for r in results if r.disagreement]
    if not ensembles:
        return
    page.heading("Does it err where its members disagree?")
    for number, result in enumerate(ensembles):
        rows = [[d.measure, shown(d.auroc), d.risk.gain, *(brief(b) for b in d.bins)] for d in result.disagreement]
        fifths = [f"accuracy, fifth {i + 1}" for i in range(len(result.disagreement[0].bins))]
        page.table(
            ["measure", "AUROC for errors", "gain", *fifths],
            rows,
            f"{result.name}, {result.disagreement[0].errors} errors. Fifths by the measure, the least uncertain first. "
            "Gain: 1 is a perfect order, 0 a blind one. 'small margin' needs no ensemble.",
        )
        curves = [
            {"measure": d.measure, "coverage": float(c), "risk": float(k)}
            for d in result.disagreement
            for c, k in list(zip(d.risk.coverage, d.risk.risk))[:: max(1, len(d.risk.risk) // 100)]
            if c >= 0.05
        ]
        chart = charts.lines(
            curves,
            "coverage",
            "risk",
            group="measure",
            x_title="share of items kept (coverage)",
            y_title="error rate among them",
            reference=(result.disagreement[0].risk.random, "blind order"),
        )
        page.chart(chart, f"risk-coverage-{number}", f"{result.name}: a useful uncertainty rises from the left.")


def calibration(page: Report, results: list[Result]) -> None:
    """Brier score, calibration error and reliability curve of scorers of pairs."""
    paired = [r for r in results if r.pairs is not None and r.pairs.calibration.curve]
    if not paired:
        return
    page.heading("Calibration")
    rows = [
        [r.name, shown(r.pairs.calibration.brier), shown(r.pairs.calibration.ece), r.pairs.log_loss, r.pairs.tied]
        for r in paired
        if r.pairs
    ]
    page.table(
        ["scorer", "Brier", "ECE", "log loss", "ties"],
        rows,
        "Of sigmoid(chosen score - rejected score). A scorer whose units are not logits can't be calibrated by this.",
    )
    data = [{**vars(b), "scorer": r.name} for r in paired[:6] if r.pairs for b in r.pairs.calibration.curve]
    titles = {"x_title": "confidence in the winner", "y_title": "share where the winner is right"}
    ends = ("accuracy_low", "accuracy_high")
    chart = charts.calibration(data, "confidence", "accuracy", ends=ends, group="scorer", **titles)
    page.chart(chart, "reliability", "Folded at one half: how sure the margin is against how often it is right.")


def left_out(page: Report, payload: dict[str, Any]) -> None:
    """RewardMATH without each source model's solutions."""
    found = payload.get("leave_one_source_out")
    if not found:
        return
    page.heading("Without one source model")
    sources = sorted({source for scores in found.values() for source in scores})
    names = list(found)
    rows = [
        [source, *(shown(found[n][source]["accuracy"]) if source in found[n] else "–" for n in names)]
        for source in sources
    ]
    page.table(["without", *names], rows, "Accuracy when this model's incorrect solutions are set aside.")


def notes(page: Report, items: Items, results: list[Result], payload: dict[str, Any]) -> None:
    """Rows left out, warnings, and the rules in words."""
    page.heading("What was counted, and how")
    lines = [f"{n} rows left out: {reason}" for reason, n in items.left_out.items()]
    shared = payload["models"]
    seen: dict[str, list[str]] = {}
    for model in shared:
        for line in [*model["warnings"], *model["notes"]]:
            seen.setdefault(line, []).append(model["name"])
    lines += [f"{'all scorers' if len(n) == len(shared) > 1 else ', '.join(n)}: {line}" for line, n in seen.items()]
    lines += [f"{name}: {text}" for name, text in payload["rules"].items()]
    if any(r.kind == "judge" for r in results):
        lines += [f"judge rule {name}: {text}" for name, text in JUDGE_RULES.items()]
    page.bullets(lines)
    page.glossary(GLOSSARY)

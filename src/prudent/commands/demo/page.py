"""The report of ``prudent demo``: the answer, the table, one chart, what the world is, how it was made."""

from __future__ import annotations

from typing import Any

from prudent.demo.world import World
from prudent.reporting import charts
from prudent.reporting.report import Report

TERMS = {
    "beta": "Weight of the KL term: the larger, the closer the policy stays to the reference.",
    "reference": "The model that you start from; here its own 16 sampled responses to a prompt, with equal weight.",
    "risk": "Probability that the optimised policy is no better than the reference.",
    "promised": "What prudent.estimate_risk says from the preference pairs alone; mean over some data sets.",
    "came": "Share of fresh data sets whose policy is no better than the reference, by gold.",
    "gain": "Gold of the policy minus gold of the reference.",
    "gold": "The truth: friendliness of a response by a word list, from -1 to 1. No reward model sees it.",
    "vanilla": "KL-regularised optimum of one reward, fitted on all pairs.",
    "mean": "The same of the mean of ten rewards, each fitted on a resample of the pairs.",
    "lcb": "The same of the ten rewards' mean minus their standard deviation.",
    "proportional": "Variance-aware: pi0 exp(reward / (beta variance)).",
    "bregman": "Variance-aware: KL weight beta times the response's variance, Bregman form.",
    "exact": "Variance-aware: the exact maximiser of expected reward minus beta x variance x log ratio.",
    "variance-only": "Control: never looks at the reward, prefers responses of low variance.",
    "permuted": "Control: as proportional, with the variances shuffled among a prompt's responses.",
}


def report(found: dict[str, Any], world: World) -> Report:
    """All sections; ``found`` as results.json holds it."""
    sizes = found["sizes"]
    page = Report(
        "Demo: is the promised risk what comes?",
        f"Friendly tone as the truth; {len(world)} prompts of {world.gold.shape[1]} responses; beta {found['beta']:g}.",
    )
    page.heading("Answer").verdict(found["advice"][0], "neutral", "Which setting to take").text(found["advice"][1])
    page.heading("Promised and realised risk").table(
        ["pairs", "method", "promised risk", "risk that came", "95 % low", "high", "gain", "gain low", "gain high"],
        [
            [
                row[key]
                for key in ("pairs", "method", "promised", "came", "low", "high", "gain", "gain_low", "gain_high")
            ]
            for row in found["rows"]
        ],
        f"Promised: mean over {found['promises']} data sets. Came: of {found['fresh']} fresh data sets with Wilson's "
        "interval. variance-only and permuted are controls.",
    )
    rows = [{**row, "pairs": f"{row['pairs']} pairs"} for row in found["rows"]]
    chart = charts.dot_intervals(
        rows, "method", "came", group="pairs", x_title="share of data sets", title="Risk that came"
    )
    page.chart(chart, "came", "A form that beats vanilla by its variances also beats both controls.")
    order = world.gold[0].argsort(descending=True).tolist()
    page.heading("The world").text(
        f"Gold counts friendly and cold words a word of text. {found['agree']:.0%} of the preferences agree with it "
        f"(Bradley-Terry, slope {found['slope']:g}). The first prompt: {world.prompts[0][0]['content']}"
    )
    page.table(
        ["gold", "response"],
        [[float(world.gold[0, index]), world.responses[0][index]] for index in (*order[:2], *order[-2:])],
        "Its two friendliest and its two coldest responses, of 16.",
    )
    page.heading("How it was made").bullets(
        [
            f"Each data set: a split of the prompts of its own, {sizes[0]} or {sizes[-1]} pairs on one half; policies "
            "on the responses of the other half.",
            f"Features: {found['features']}; states of the embedded model, mean over the response.",
            "One world shows what can happen, not what happens on your data: run prudent preflight for that.",
        ]
    )
    return page.glossary(TERMS, tips=("beta", "reference", "risk", "gold", "gain"))

"""``prudent rlp``: does refreshing the reward model on the policy's own samples help?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prudent.commands.common import ConfigOption, JsonOption, OutOption, SeedOption, guarded

EPILOG = "Example: prudent rlp --pool solutions.jsonl --group answer --rounds 2 --repetitions 100 --out runs/rlp"


def register(app: typer.Typer) -> None:
    app.command(name="rlp", epilog=EPILOG)(rlp)


@guarded
def rlp(
    out: OutOption,
    pool: Annotated[
        Path | None, typer.Option(help="Pool with gold, or solutions with is_correct; by default the embedded world.")
    ] = None,
    side: Annotated[
        str, typer.Option(help="Part of the embedded world: balanced (all), restraint or demand (a quarter each).")
    ] = "balanced",
    gold: Annotated[str | None, typer.Option(help="Reward model that is the gold of a pool without gold.")] = None,
    policy: Annotated[
        str,
        typer.Option(help="exact: over each prompt's candidates. align: RL on the language model (embedded world)."),
    ] = "exact",
    kind: Annotated[
        list[str] | None,
        typer.Option(help="spg, uml, spg-reference (control), self (control); several; default spg and its controls."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help="What makes answers equal: answer, embedding, entailment; by default answer where marked."),
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="Cosine similarity of centred features for --group embedding.")
    ] = 0.8,
    nli: Annotated[str | None, typer.Option(help="NLI model for --group entailment.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often the reward model is refreshed.")] = 1,
    repetitions: Annotated[int, typer.Option(min=1, help="Independent repetitions (exact policies).")] = 100,
    prompts: Annotated[int | None, typer.Option(min=6, help="Use so many prompts only.")] = None,
    pairs: Annotated[int, typer.Option(min=2, help="Labelled preferences.")] = 200,
    slope: Annotated[float, typer.Option(min=0, help="Bradley-Terry slope of the labels on gold.")] = 4.0,
    members: Annotated[int, typer.Option(min=1, help="Heads of a reward model.")] = 5,
    kl: Annotated[float, typer.Option(min=0.001, help="KL of every exact policy from the reference, nats.")] = 0.5,
    samples: Annotated[int, typer.Option(min=2, help="Samples a prompt from the policy.")] = 10,
    gamma: Annotated[float, typer.Option(min=0, max=1, help="Least share of the largest group (SPG).")] = 0.5,
    repeats: Annotated[
        bool, typer.Option("--repeats", help="Count a pool's candidate as often as it was drawn, as fresh samples are.")
    ] = False,
    weight: Annotated[float, typer.Option(min=0, help="Weight of the bottleneck's loss (UML).")] = 0.5,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps: of UML's network (200), or of an RL policy (40).")
    ] = None,
    language_model: Annotated[str, typer.Option(help="Feature model (and policy of --policy align).")] = "smollm2",
    pooling: Annotated[str, typer.Option(help="last, mean or last+mean token states.")] = "last+mean",
    max_length: Annotated[int, typer.Option(min=8, help="Longest text in tokens.")] = 1024,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Reward learning on policy: reward model, policy, its samples, reward model again; any number of rounds.

    Every round is a run folder of its own, and an interrupted run goes on with the rounds that are missing. Gold keeps
    the score and is never trained on. All policies are compared at one KL, so a gain is not bought with distance.
    """
    given = {name: value for name, value in locals().items() if name != "config"}
    if policy == "align":
        from prudent.commands.rlp.align import run
    else:
        from prudent.commands.rlp.run import run

    run(given)

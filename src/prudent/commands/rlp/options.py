"""Options of ``prudent rlp``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from prudent.commands.options import DEFAULT_MODEL, MANY, MOST_TOKENS, ResumableOptions, command
from prudent.commands.overoptimize.options import WorldOptions

EXACT_ONLY = ("--kl", "--repetitions", "--repeats", "--weight", "--column", "--on-error")
KINDS = ("spg", "uml", "spg-reference", "self")


@command(
    "rlp",
    run="rlp.run:run",
    show="rlp.run:show",
    interrupted="give the same command with --out {out} again: it goes on with the rounds that are missing",
    example="prudent rlp --pool solutions.jsonl --group answer --rounds 2 --repetitions 100 --out runs/rlp",
)
@dataclass(frozen=True, kw_only=True)
class RlpOptions(WorldOptions, ResumableOptions):
    """Reward learning on policy: reward model, policy, its samples, reward model again; any number of rounds.

    Every round is a run folder of its own, and an interrupted run goes on with the rounds that are missing. Gold keeps
    the score and is never trained on. All policies are compared at one KL, so a gain is not bought with distance.
    """

    policy: Annotated[
        Literal["exact", "align"],
        typer.Option(help="exact: over each prompt's candidates. align: RL on the language model (embedded world)."),
    ] = "exact"
    kind: Annotated[
        tuple[str, ...],
        typer.Option(help="spg, uml, spg-reference (control), self (control); several; default spg and its controls."),
    ] = ()
    group: Annotated[
        Literal["answer", "embedding", "entailment"] | None,
        typer.Option(help="What makes answers equal: answer, embedding, entailment; by default answer where marked."),
    ] = None
    threshold: Annotated[float, typer.Option(help="Cosine similarity of centred features for --group embedding.")] = 0.8
    nli: Annotated[str | None, typer.Option(help="NLI model for --group entailment.")] = None
    rounds: Annotated[int, typer.Option(min=1, help="How often the reward model is refreshed.", max=MANY)] = 1
    repetitions: Annotated[int, typer.Option(min=1, help="Independent repetitions (exact policies).", max=100_000)] = (
        100
    )
    pairs: Annotated[int, typer.Option(min=2, help="Labelled preferences.", max=1_000_000)] = 200
    slope: Annotated[float, typer.Option(min=0, help="Bradley-Terry slope of the labels on gold.")] = 4.0
    members: Annotated[int, typer.Option(min=1, help="Heads of a reward model.", max=MANY)] = 5
    kl: Annotated[float, typer.Option(min=0.001, help="KL of every exact policy from the reference, nats.")] = 0.5
    samples: Annotated[int, typer.Option(min=2, help="Samples a prompt from the policy.", max=MANY)] = 10
    gamma: Annotated[float, typer.Option(min=0, max=1, help="Least share of the largest group (SPG).")] = 0.5
    repeats: Annotated[
        bool, typer.Option("--repeats", help="Count a pool's candidate as often as it was drawn, as fresh samples are.")
    ] = False
    weight: Annotated[float, typer.Option(min=0, help="Weight of the bottleneck's loss (UML).")] = 0.5
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Training steps: of UML's network (200), or of an RL policy (40).", max=1_000_000),
    ] = None
    language_model: Annotated[str, typer.Option(help="Feature model (and policy of --policy align).")] = DEFAULT_MODEL
    pooling: Annotated[str, typer.Option(help="last, mean or last+mean token states.")] = "last+mean"
    max_length: Annotated[int, typer.Option(min=8, help="Longest text in tokens.", max=MOST_TOKENS)] = 1024

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty where nothing is."""
        problems = super().problems()
        problems += [
            f"--kind {kind!r} is unknown; known: {', '.join(KINDS)}" for kind in self.kind if kind not in KINDS
        ]
        if self.prompts is not None and self.prompts < 6:
            problems.append(f"--prompts is {self.prompts}, it must be at least 6")
        if self.policy == "exact":
            return problems
        if self.pool is not None or self.gold is not None:
            problems.append(
                "--policy align needs gold of any text, which only the embedded world has; leave --pool out"
            )
        if self.kind and self.kind != ("spg",):
            problems.append("--policy align refreshes by spg; compare the other kinds with --policy exact")
        return problems + self.unusable(EXACT_ONLY, "--policy align")

    def fixed(self) -> dict[str, Any]:
        """Options that a run that goes on must share: more rounds may be asked of one that is not finished."""
        return {name: value for name, value in self.chosen().items() if name != "rounds"}

"""Options of ``prudent rlp``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from prudent.commands.depth import DepthOptions
from prudent.commands.options import DEFAULT_MODEL, MANY, MOST_TOKENS, ResumableOptions, command, option
from prudent.commands.overoptimize.options import WorldOptions

EXACT_ONLY = ("--kl", "--repetitions", "--repeats", "--weight", "--column", "--on-error")
KINDS = ("spg", "uml", "spg-reference", "self")


@command(
    "rlp",
    run="rlp.run:run",
    show="rlp.run:show",
    interrupted="give the same command with --out {out} again: it goes on with the rounds that are missing",
)
class RlpOptions(DepthOptions, WorldOptions, ResumableOptions):
    """Reward learning on policy: reward model, policy, its samples, reward model again; any number of rounds.

    Every round is a run folder of its own, and an interrupted run goes on with the rounds that are missing. Gold keeps
    the score and is never trained on. All policies are compared at one KL, so a gain is not bought with distance.

    Example: prudent rlp --pool solutions.jsonl --group answer --rounds 2 --repetitions 100 --out runs/rlp
    """

    chooses: ClassVar[bool] = False
    policy: Annotated[
        Literal["exact", "align"],
        option("exact: over each prompt's candidates. align: RL on the language model (embedded world)."),
    ] = "exact"
    kind: Annotated[
        tuple[str, ...],
        option("spg, uml, spg-reference (control), self (control); several; default spg and its controls."),
    ] = ()
    group: Annotated[
        Literal["answer", "embedding", "entailment"] | None,
        option("What makes answers equal: answer, embedding, entailment; by default answer where marked."),
    ] = None
    threshold: Annotated[
        float, option("Cosine similarity of centred features for --group embedding.", min=-1, max=1)
    ] = 0.8
    nli: Annotated[str | None, option("NLI model for --group entailment.")] = None
    rounds: Annotated[int, option("How often the reward model is refreshed.", min=1, max=MANY)] = 1
    repetitions: Annotated[int, option("Independent repetitions (exact policies).", min=1, max=100_000)] = 100
    pairs: Annotated[int, option("Labelled preferences.", min=2, max=1_000_000)] = 200
    slope: Annotated[float, option("Bradley-Terry slope of the labels on gold.", min=0)] = 4.0
    members: Annotated[int, option("Heads of a reward model.", min=1, max=MANY)] = 5
    kl: Annotated[float, option("KL of every exact policy from the reference, nats.", min=0.001)] = 0.5
    samples: Annotated[int, option("Samples a prompt from the policy.", min=2, max=MANY)] = 10
    gamma: Annotated[float, option("Least share of the largest group (SPG).", min=0, max=1)] = 0.5
    repeats: Annotated[
        bool, option("Count a pool's candidate as often as it was drawn, as fresh samples are.", "--repeats")
    ] = False
    weight: Annotated[float, option("Weight of the bottleneck's loss (UML).", min=0)] = 0.5
    steps: Annotated[
        int | None, option("Training steps: of UML's network (200), or of an RL policy (40).", min=1, max=1_000_000)
    ] = None
    language_model: Annotated[str, option("Feature model (and policy of --policy align).")] = DEFAULT_MODEL
    pooling: Annotated[str, option("last, mean or last+mean token states.")] = "last+mean"
    max_length: Annotated[int, option("Longest text in tokens.", min=8, max=MOST_TOKENS)] = 1024

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

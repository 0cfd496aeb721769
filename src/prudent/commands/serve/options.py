"""Options of ``prudent serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from prudent.commands.options import LanguageModel, ModelDtype, RowOptions, command, option


@command("serve", run="serve.run:run", interrupted="the server has ended")
class ServeOptions(RowOptions):
    """Serve a reward model to trainers: OpenRLHF, slime, LLaMA-Factory, vLLM- and TEI-shaped clients, and our own.

    POST to /score; the form is known by the body's keys. /docs describes all forms; /healthz, /readyz and /metrics are
    for operators. SIGTERM answers what is in flight, then ends.

    Example: prudent serve --model runs/rm --rule lcb --port 8010
    """

    model: Annotated[str, option("Folder that prudent fit wrote, or a sequence-classification model.")]
    rule: Annotated[
        Literal["mean", "min", "lcb", "uwo", "entropic", "proportional"], option("Reward from the members' scores.")
    ] = "mean"
    reference: Annotated[
        Path | None,
        option("Pool with samples of the reference policy: members are centred per prompt on them.", exists=True),
    ] = None
    fallback: Annotated[
        Literal["mean", "min", "lcb", "uwo", "entropic"] | None,
        option("Rule for prompts that --reference doesn't hold; without it they get an error (422)."),
    ] = None
    host: Annotated[str, option("Address to listen on; the default is reached from this machine alone.")] = "127.0.0.1"
    port: Annotated[int, option("Port to listen on.", min=1, max=65535)] = 8010
    workers: Annotated[int, option("Processes, each with a model of its own.", min=1, max=256)] = 1
    batch_tokens: Annotated[int, option("Tokens scored at once.", min=1, max=2**24)] = 16384
    wait: Annotated[float, option("Milliseconds that a batch is held open for others.", min=0)] = 10.0
    queue: Annotated[int, option("Samples that may wait; beyond it clients get 503.", min=1, max=1_000_000)] = 4096
    body_limit: Annotated[int, option("Largest request body in bytes.", min=1, max=2**30)] = 8 * 2**20
    token: Annotated[str, option("Bearer token that requests must carry.", envvar="PRUDENT_SERVE_TOKEN")] = ""
    language_model: LanguageModel = None
    dtype: ModelDtype = None

    def problems(self) -> list[str]:
        """What is wrong with these options together."""
        problems = super().problems()
        if self.rule == "proportional" and self.reference is None:
            problems.append("--rule proportional takes the variance's scale from the reference: give --reference")
        elif self.fallback and not self.reference:
            problems.append("--fallback is for prompts that --reference doesn't hold")
        return problems

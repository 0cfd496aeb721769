"""Linear heads as a standard sequence-classification checkpoint, which transformers loads with no Prudent installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prudent.errors import PrudentError
from prudent.features.models import quiet
from prudent.rewards import artefact
from prudent.rewards.model import RewardModel
from prudent.runs import Run, new_run

LABELS = ("members", "rule")
TOLERANCE = 1e-4  # of exported scores, relative to their largest size


def linear_part(scorer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights (K, d), constants (K,)) float64 with which ``scorer.scores(x) = weights @ x + constants``, the
    standardisation folded in. PrudentError, naming the family, where scores aren't linear in the features."""
    if scorer.family == "heads":
        standard, offsets = scorer.weights.double(), scorer.offsets.double()
    elif scorer.family == "laplace":
        standard, offsets = scorer.draws.double(), torch.zeros(len(scorer.draws), dtype=torch.float64)
    else:
        raise PrudentError(
            f"family {scorer.family!r} isn't linear in the language model's states, so no classification head equals "
            "it; families heads and laplace can be exported, the others are served by prudent serve"
        )
    weights = standard / scorer.scale.double()
    return weights, -(weights @ scorer.mean.double()) - offsets


def export_classifier(
    model: RewardModel, folder: str | Path, *, labels: str = "members", overwrite: bool = False
) -> dict[str, Any]:
    """Write ``model`` as an ``AutoModelForSequenceClassification`` folder: float32 safetensors, tokenizer, template.

    labels: "members" gives K + 1 labels, the last one the members' mean; "rule" gives the mean alone (rules that are
    not linear, as lcb and min, can't be a label). A classification head of a decoder has no bias. Where the network
    ends in a layer norm with one (GPT-2, GPT-NeoX, StableLM, ...) each score's constant is folded through that, and
    logits are the very scores. A network that ends in a root-mean-square norm (Llama, Qwen, Mistral, Gemma, SmolLM) has
    no state that is the same for every text: there each logit is the score less one constant. The constants stand in
    ``config.json`` under ``prudent_constants`` and in the returned card, 0 where they are folded in. Differences
    between responses, which are all that training and ranking use, are those of the reward model either way. Before the
    folder appears it is loaded with plain transformers and held to the reward model's scores of eight built-in texts
    (1e-4 of their size).

    Raises PrudentError for a family or pooling that no classification head equals, and where the check fails.
    """
    if labels not in LABELS:
        raise PrudentError(f"labels is {labels!r}; give members or rule")
    weights, constants = linear_part(model.scorer)
    encoder = model.encoder
    if encoder.pooling != "last":
        raise PrudentError(
            f"features are pooled by {encoder.pooling!r}, a classification head reads the last token's state; fit "
            "with --pooling last, or use prudent serve"
        )
    weights, constants = (torch.cat([part, part.mean(0, keepdim=True)]) for part in (weights, constants))
    if labels == "rule":
        weights, constants = weights[-1:], constants[-1:]
    names = [f"member_{k}" for k in range(len(weights) - 1)] + ["mean"]
    with quiet(), new_run(folder, "export", {"labels": labels, "model": model.name}, None, overwrite) as run:
        constants = _write(run, encoder, weights, constants, names)
        card = {"labels": names, "constants": constants.tolist(), **_check(run.folder, model, constants, labels)}
        run.write_json("export.json", card)
    return card


def fold_constants(
    norm: torch.nn.LayerNorm, weights: torch.Tensor, constants: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Head weights (K, d) and constants (K,), float64, that give the same scores behind ``norm`` without scale and with
    ones as its bias: what was to be multiplied is in the weights, and the constants that are left are 0.

    A normalised state n sums to 0, so that (w * scale + a) @ (n + 1) = (w * scale) @ n + sum(w * scale) + a d, in which
    a is free.
    """
    scaled, width = weights * norm.weight.double(), weights.shape[1]
    free = (weights @ norm.bias.double() + constants - scaled.sum(1)) / width
    return scaled + free[:, None], torch.zeros_like(constants)


def _write(run: Run, encoder: Any, weights: torch.Tensor, constants: torch.Tensor, names: list[str]) -> torch.Tensor:
    """Write the folder; the constants that logits lack."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    body, tokenizer = encoder.body, encoder.tokenizer
    settings = body.config.to_dict()
    for passing in ("quantization_config", "architectures", "_name_or_path", "torch_dtype", "dtype"):
        settings.pop(passing, None)
    config = AutoConfig.for_model(**settings)
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    config.pad_token_id = _pad_id(encoder)
    try:
        with torch.device("meta"):
            made = AutoModelForSequenceClassification.from_config(config)
        head = made.score
    except (ValueError, AttributeError) as error:
        raise PrudentError(f"transformers has no decoder classifier for {config.model_type!r}: {error}") from None
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        raise PrudentError(f"the classifier of {config.model_type!r} has a head of another shape; use prudent serve")
    state = {f"{made.base_model_prefix}.{name}": value.float() for name, value in body.state_dict().items()}
    last = _last_norm(body)
    if last is not None:
        name, norm = last
        weights, constants = fold_constants(norm, weights, constants)
        for part in ("weight", "bias"):
            state[f"{made.base_model_prefix}.{name}.{part}"] = torch.ones_like(norm.weight).float()
    made = made.to_empty(device="cpu").float()
    made.load_state_dict({**state, "score.weight": weights.float()}, strict=True)
    made.config.prudent_constants = constants.tolist()
    made.save_pretrained(run.folder)
    tokenizer.save_pretrained(run.folder)
    return constants


def _last_norm(body: Any) -> tuple[str, torch.nn.LayerNorm] | None:
    """The layer norm, with scale and bias, that the network's states come out of; None where it ends otherwise."""
    found = None
    for name in ("ln_f", "final_layer_norm", "final_layernorm", "norm"):
        module = getattr(body, name, None)
        if isinstance(module, torch.nn.LayerNorm) and module.bias is not None:
            found = name, module
    return found


def _pad_id(encoder: Any) -> int:
    """A padding id that no text ends with: the classifier reads the last token that isn't padding."""
    tokenizer = encoder.tokenizer
    rows = encoder.renderer.conversations(artefact.PROBE_PROMPTS, artefact.PROBE_RESPONSES)
    used = {row.ids[-1] for row in rows}
    for token in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id, 0):
        if token is not None and token not in used:
            return int(token)
    raise PrudentError("every usable padding token also ends a conversation; give the tokenizer a pad token")


def _check(folder: Path, model: RewardModel, constants: torch.Tensor, labels: str) -> dict[str, Any]:
    """Scores of the built-in texts by plain transformers against the reward model's: largest difference, and size."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    loaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    AutoTokenizer.from_pretrained(folder)
    rows = model.renderer().conversations(artefact.PROBE_PROMPTS, artefact.PROBE_RESPONSES)
    with torch.inference_mode():
        found = torch.cat([loaded(input_ids=torch.tensor([row.ids])).logits for row in rows]).T.double()
    found = found + constants[:, None]
    wanted = model.score(artefact.PROBE_PROMPTS, artefact.PROBE_RESPONSES).double()
    wanted = torch.cat([wanted, wanted.mean(0, keepdim=True)])[-len(found) :]
    size, difference = float(wanted.abs().max()), float((found - wanted).abs().max())
    exact = str(model.encoder.dtype) == "torch.float32"
    if not difference <= (TOLERANCE if exact else 0.1) * max(size, 1e-6):
        raise PrudentError(
            f"the exported classifier's scores differ from the reward model's by {difference:.2g} (largest score "
            f"{size:.2g}); it is not kept"
        )
    return {"largest_difference": difference, "largest_score": size}

"""Features of the embedded responses that come with the package, so that the demonstration loads no language model.

States of the last layer, mean over the response, in float32 on the processor, rounded to half precision: (2560, 576).
The file says which encoder and which texts they belong to; where either differs, the responses are encoded anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from prudent.demo.world import World
from prudent.features.cache import FORMAT
from prudent.features.models import DEFAULT_MODEL, default_gguf
from prudent.files import hash_file, hash_text, write_atomic
from prudent.progress import duration

FILE = Path(__file__).parent / "data" / "features.safetensors"
POOLING, MAX_LENGTH = "mean", 1024  # the mean alone teaches more than the last token or both, at half the width of both


def encoder_mark() -> str | None:
    """Fingerprint of the embedded encoder without loading it; None where its package isn't installed.

    The model's one file holds weights, tokenizer, chat template and settings; pooling, length and the encoder's own
    format are added.
    """
    file = default_gguf()
    return hash_text(FORMAT, hash_file(file), POOLING, str(MAX_LENGTH)) if file else None


def texts_mark(world: World) -> str:
    """Fingerprint of the prompts and responses, in their order."""
    prompts, responses = world.flat()
    return hash_text(*(str(prompt) for prompt in prompts), *responses)


def encode(world: World, say: Callable[[str], None] = lambda text: None) -> torch.Tensor:
    """Features (prompts, responses, d) float32 by the embedded language model; minutes on two cores, which it says."""
    from prudent.features.encoder import Encoder  # seconds and 200 MB that the shipped features save

    encoder = Encoder(DEFAULT_MODEL, pooling=POOLING, max_length=MAX_LENGTH, dtype="float32")
    prompts, responses = world.flat()
    tokens, held = encoder.sizes(prompts, responses)
    missing = tokens[~held]
    if len(missing):
        read = float(missing[:, 1].sum() + missing[:, 0].sum() / world.gold.shape[1])  # a prompt is read once
        say(f"encoding {len(missing):,} responses, which takes about {duration(read / encoder.speed())}")
    return encoder.encode(prompts, responses).reshape(*world.gold.shape, -1)


def write_features(path: Path, world: World, features: torch.Tensor) -> None:
    """Features (prompts, responses, d) in half precision, with the marks of encoder and texts."""
    marks = {"encoder": encoder_mark() or "", "texts": texts_mark(world)}
    write_atomic(path, save({"features": features.half().flatten(0, 1).contiguous()}, marks))


def load_features(
    world: World, path: Path = FILE, say: Callable[[str], None] = lambda text: None
) -> tuple[torch.Tensor, str]:
    """Features (prompts, responses, d) float32 of ``world``, and a line that says where they come from. say: gets that
    line, and how long it takes, before anything is encoded.

    Shipped ones where the file belongs to these texts and to the installed encoder, or where no encoder is installed;
    else the responses are encoded. PrudentError where that needs the embedded model's package and it is missing.
    """
    mark = encoder_mark()

    def anew(why: str) -> tuple[torch.Tensor, str]:
        say(f"features are encoded anew: {why}")
        return encode(world, say), f"features were encoded anew: {why}"

    if not path.is_file():
        return anew("none are shipped")
    with safe_open(path, "pt") as file:
        marks = file.metadata() or {}
        if marks.get("texts") != texts_mark(world):
            return anew("those shipped belong to other texts")
        if mark not in (None, marks.get("encoder")):
            return anew("those shipped belong to another encoder")
        features = file.get_tensor("features").float().reshape(*world.gold.shape, -1)
    return features, "shipped features" + ("" if mark else ", unchecked: the embedded model isn't installed")

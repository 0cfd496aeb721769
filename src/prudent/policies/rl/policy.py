"""A causal language model in training, its reference, and all that the two can share.

With adapters (LoRA) the reference is the same network with the adapters off, so nothing is held twice, and the layers
below the first adapter are computed once for both. Without adapters the reference is a frozen copy.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from prudent.errors import PrudentError
from prudent.features.cpu import lean_adapters, segment_by_segment
from prudent.policies.rl.packing import Group, Pack, additive, pack
from prudent.policies.rl.vocabulary import log_probabilities
from prudent.seeding import Seed, seeded, torch_generator


@dataclass(frozen=True)
class LoraOptions:
    """Adapters on all linear layers but the output. layers: how many from the top; None is all of them."""

    rank: int = 16
    alpha: int = 32
    layers: int | None = None


class Pass(NamedTuple):
    """log_probabilities (M,) float32 of the pack's segment tokens; hidden (T, d) after the last norm; trunk (T, d),
    the state below the first adapter, or None where nothing is shared."""

    log_probabilities: torch.Tensor
    hidden: torch.Tensor
    trunk: torch.Tensor | None


def backbone_of(model: nn.Module) -> nn.Module:
    """The decoder without its output layer."""
    return getattr(model, str(model.base_model_prefix))


@contextlib.contextmanager
def _only_layers(backbone: Any, first: int, last: int | None) -> Iterator[None]:
    """Run layers [first, last) alone; the final norm stays where the last layer does."""
    layers, norm = backbone.layers, backbone.norm
    try:
        backbone.layers = layers[first:last]
        if last is not None:
            backbone.norm = nn.Identity()
        yield
    finally:
        backbone.layers, backbone.norm = layers, norm


def _states(backbone: Any, row: Pack, tokens: torch.Tensor) -> torch.Tensor:
    """States (T, d) of a pack behind the backbone's last layer, from its ids (T,) or the states below it (T, d)."""
    given = {"input_ids" if tokens.ndim == 1 else "inputs_embeds": tokens[None]}
    mask = additive(row.mask, next(backbone.parameters()).dtype)
    with segment_by_segment(backbone, row) as more:
        return backbone(
            **given, attention_mask=mask, position_ids=row.positions[None], use_cache=False, **more
        ).last_hidden_state[0]


class Policy:
    """The policy and its reference over packs (see ``policies.packing``). ``lora=None`` trains every weight."""

    def __init__(self, model: nn.Module, *, lora: LoraOptions | None, seed: Seed = 0) -> None:
        self.shared_layers = 0
        self.reference: nn.Module | None = None
        model.eval()  # no dropout anywhere: the ratio of two passes must not carry noise
        model.requires_grad_(False)
        if lora is None:
            self.reference = copy.deepcopy(model)
            self.model: Any = model.float().requires_grad_(True)
            self.base: Any = self.model
        else:
            self.model = self._add_adapters(model, lora, seed)
            self.base = self.model.get_base_model()
            self.shared_layers = self._sharable_layers(lora)
        self.device = next(self.base.parameters()).device
        self.dtype = next(self.base.parameters()).dtype
        self._sampler: nn.Module | None = None
        self._check_passes()

    @staticmethod
    def _add_adapters(model: Any, lora: LoraOptions, seed: Seed) -> Any:
        from peft import LoraConfig, get_peft_model

        targets = _linear_names(model, _first_adapted(model, lora))
        config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, task_type="CAUSAL_LM")
        lean_adapters(config)
        # peft draws the adapters from torch's global generators: seed them and put them back as they were.
        with seeded(torch_generator(seed).initial_seed(), model.device):
            return get_peft_model(model, config)

    def _sharable_layers(self, lora: LoraOptions) -> int:
        """Layers below the first adapter, if the network run in two parts gives exactly what it gives whole."""
        first = _first_adapted(self.base, lora)
        backbone = backbone_of(self.base)
        if first == 0 or not (hasattr(backbone, "layers") and hasattr(backbone, "norm")):
            return 0
        probe = self._move(pack([Group([3, 4], [[5, 6, 7]], [0])]))
        with torch.no_grad():
            whole = self._hidden(probe)
            split = self._hidden(probe, trunk=self._trunk(probe, first), first=first)
        return first if torch.equal(whole, split) else 0

    def _move(self, row: Pack) -> Pack:
        device = next(self.base.parameters()).device
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(row).items() if isinstance(v, torch.Tensor)}
        return replace(row, **moved)

    def _trunk(self, row: Pack, layers: int) -> torch.Tensor:
        backbone = backbone_of(self.base)
        with _only_layers(backbone, 0, layers):
            return _states(backbone, row, row.ids)

    def _dtype_now(self) -> torch.dtype:
        return next(self.base.parameters()).dtype

    def _hidden(
        self, row: Pack, *, trunk: torch.Tensor | None = None, first: int = 0, model: Any = None
    ) -> torch.Tensor:
        backbone = backbone_of(self.base if model is None else model)
        if trunk is None:
            return _states(backbone, row, row.ids)
        with _only_layers(backbone, first, None):
            return _states(backbone, row, trunk)

    def _check_passes(self) -> None:
        """Refuse a model whose own log-probabilities are not those of our passes: one whose attention ignores a pack's
        mask leaks one completion into the next, one that caps or scales its logits behind the output layer would be
        trained on other numbers than it samples by."""
        name = type(self.base).__name__
        first, second = [5, 6, 7, 8], [9, 10, 11]
        joint, alone = pack([Group([3, 4], [first, second], [0, 1])]), pack([Group([3, 4], [second], [0])])
        with torch.no_grad():
            a = self.policy_pass(joint).log_probabilities[len(first) :]
            b = self.policy_pass(alone).log_probabilities
            ids = alone.ids[None].to(self.device)
            whole = self.base(input_ids=ids).logits.float()
            ours = self.head(backbone_of(self.base)(input_ids=ids).last_hidden_state).float()
        if float((a - b).abs().max()) > (1e-3 if self._dtype_now() == torch.float32 else 0.2):
            raise PrudentError(
                f"{name} does not honour custom attention masks (packed and separate log-probabilities differ by "
                f"{float((a - b).abs().max()):.3g}); load it with attn_implementation='sdpa' or use --engine trl"
            )
        if not torch.allclose(ours, whole, rtol=1e-2, atol=1e-2 * float(whole.abs().max())):
            raise PrudentError(
                f"{name} changes its logits behind the output layer, by up to {float((ours - whole).abs().max()):.3g}; "
                "the own engine doesn't follow that: use --engine trl"
            )

    @property
    def head(self) -> nn.Module:
        """The output layer, hidden state -> logits."""
        return self.base.get_output_embeddings()

    @property
    def width(self) -> int:
        """Width of a hidden state."""
        return int(self.base.config.hidden_size)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter in training, in a fixed order."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def reference_pass(self, row: Pack) -> Pass:
        """The reference on one pack, without gradients."""
        row = self._move(row)
        with torch.no_grad():
            if self.reference is not None:
                hidden = self._hidden(row, model=self.reference)
                head = self.reference.get_output_embeddings()  # type: ignore[operator]
                return Pass(log_probabilities(hidden[row.sources], row.targets, head), hidden, None)
            with self.model.disable_adapter():
                trunk = self._trunk(row, self.shared_layers) if self.shared_layers else None
                hidden = self._hidden(row, trunk=trunk, first=self.shared_layers)
            return Pass(log_probabilities(hidden[row.sources], row.targets, self.head), hidden, trunk)

    def policy_pass(self, row: Pack, trunk: torch.Tensor | None = None) -> Pass:
        """The policy on one pack, with gradients unless the caller turned them off; ``trunk`` from reference_pass."""
        row = self._move(row)
        if trunk is None and self.shared_layers:
            with torch.no_grad():
                trunk = self._trunk(row, self.shared_layers)
        hidden = self._hidden(row, trunk=trunk, first=self.shared_layers)
        return Pass(log_probabilities(hidden[row.sources], row.targets, self.head), hidden, trunk)

    def sampler(self) -> nn.Module:
        """A plain model that samples what the policy would, adapters merged into a copy of the weights.

        In bfloat16 an update smaller than half a unit in the last place would vanish in the merge; stochastic rounding
        with a fixed seed keeps it in the mean, and leaves weights without an update as they are.
        """
        if self.reference is not None:
            return self.model
        if self._sampler is None:
            from peft.tuners.lora import LoraLayer

            self._adapted = [n for n, m in self.model.get_base_model().named_modules() if isinstance(m, LoraLayer)]
            self._sampler = _without_adapters(self.base)
            if self.device.type == "cpu" and self._dtype_now() == torch.float32:
                # MKL multiplies few rows faster, to the same bits, with weights whose inputs stand in rows.
                held = dict(self._sampler.named_parameters())
                for weight in (held[f"{name}.weight"] for name in self._adapted):
                    weight.data = weight.data.t().contiguous().t()
        weights = dict(self._sampler.named_parameters())
        layers = {f"{name}.weight": self.base.get_submodule(name) for name in self._adapted}
        largest = max(layer.base_layer.weight.numel() for layer in layers.values())
        noise = rounding_noise(largest, torch_generator(0, self.device))  # one for all layers: it is dear to draw
        with torch.no_grad():
            for name, layer in layers.items():
                exact = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
                weights[name].copy_(round_stochastically(exact, self._dtype_now(), noise))
        return self._sampler


def _first_adapted(model: Any, lora: LoraOptions) -> int:
    """Index of the lowest layer that gets an adapter."""
    total = int(model.config.num_hidden_layers)
    if lora.layers is not None and not 1 <= lora.layers <= total:
        raise PrudentError(f"adapters on {lora.layers} layers asked for; the model has {total}: give 1 to {total}")
    return 0 if lora.layers is None else total - lora.layers


def _linear_names(model: Any, first: int) -> list[str]:
    """Full names of the linear modules in layers ``first`` and above, the output layer left out."""
    from transformers.pytorch_utils import Conv1D

    names = []
    for name, module in model.named_modules():
        numbers = re.findall(r"\.(\d+)\.", name)
        if isinstance(module, (nn.Linear, Conv1D)) and numbers and int(numbers[0]) >= first:
            names.append(name)
    return names


def _without_adapters(model: Any) -> nn.Module:
    """A copy of the network with every adapted layer replaced by its plain base layer."""
    from peft.tuners.lora import LoraLayer

    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, module.base_layer)
    return plain.requires_grad_(False)


def rounding_noise(count: int, generator: torch.Generator) -> torch.Tensor:
    """(count,) int32, uniform over the 16 bits that bfloat16 cuts off float32."""
    return torch.randint(0, 1 << 16, (count,), generator=generator, dtype=torch.int32, device=generator.device)


def round_stochastically(values: torch.Tensor, dtype: torch.dtype, noise: torch.Tensor) -> torch.Tensor:
    """float32 ``values`` in ``dtype``, rounded up or down by ``rounding_noise`` so that the mean is kept; exact values
    stay."""
    if dtype != torch.bfloat16:
        return values.to(dtype)
    # bfloat16 is float32 without its lower 16 bits: add a uniform 16-bit number, then cut them off.
    bits = values.contiguous().view(torch.int32) + noise[: values.numel()].view(values.shape)
    return (bits & ~0xFFFF).view(torch.float32).to(dtype)

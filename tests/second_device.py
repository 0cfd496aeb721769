"""A stand-in for a GPU: tensors that say they are on ``cuda:0`` while their numbers lie in memory.

Inside ``SecondDevice`` each tensor has a place, its own (``cuda:0``) or the processor; what is computed from tensors of
one place is there too. As on a machine with a GPU, an operation on tensors of both fails, and so do a random one whose
generator is elsewhere and ``numpy()`` of what isn't on the processor. Numbers without dimensions may meet any tensor,
an index may come from the processor, and ``copy_`` crosses. Backward passes, compiled kernels and the order in which a
GPU adds up are not seen.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from prudent import seeding

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
CROSSING = {"copy_", "__deepcopy__", "_has_compatible_shallow_copy_type"}
TO_MEMORY = {"tolist", "item", "__float__", "__int__", "__bool__", "__index__", "cpu", "__len__", "__repr__"}
INDEXED = {"__getitem__", "__setitem__", "index_put", "index_put_"}


class SecondDevice(TorchFunctionMode):
    """Inside, tensors may be moved to ``cuda:0``; RuntimeError where two places meet. seen: names of the operations
    that ran there."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            return self._property(func, args)
        if name == "__set__" and isinstance(args[0], torch.Tensor):
            return self._assigned(func, args)
        if name == "backward":
            return func(*args, **kwargs)
        if name in ("to", "cuda", "type") and isinstance(args[0], torch.Tensor):
            return self._moved(name, func, args, kwargs)
        if name == "cpu":
            return _placed(args[0].detach().clone() if not args[0].requires_grad else args[0].clone(), CPU)
        if name == "numpy" and place(args[0]) == CUDA:
            raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")
        wanted = kwargs.get("device")
        if wanted is not None:
            wanted = CUDA if torch.device(wanted).type == "cuda" else CPU
            kwargs["device"] = CPU
        self._check(name, args, kwargs, wanted)
        where = wanted or self._place_of(name, args, kwargs)
        result = func(*args, **kwargs)
        if where.type == "cuda":
            self.seen.add(name)
        if name not in TO_MEMORY:
            for tensor in _tensors(result):
                _placed(tensor, where)
        return result

    def _property(self, func: Any, args: Any) -> Any:
        tensor = args[0]
        if func == torch.Tensor.device.__get__:
            return place(tensor)
        if func == torch.Tensor.is_cuda.__get__:
            return place(tensor) == CUDA
        result = func(*args)
        for found in _tensors(result):
            _placed(found, place(tensor))
        return result

    def _assigned(self, func: Any, args: Any) -> None:
        tensor, value = args
        func(*args)
        if func == torch.Tensor.data.__set__:
            _placed(tensor, place(value))
        elif value is not None and func == torch.Tensor.grad.__set__ and place(tensor) != place(value):
            raise RuntimeError("assigned grad has data located on a different device")

    def _moved(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        tensor, *rest = args
        where, plain = place(tensor), []
        if name == "cuda":
            where = CUDA
        for value in [*rest, kwargs.pop("device", None), kwargs.pop("other", None)]:
            if isinstance(value, torch.device) or (isinstance(value, str) and name == "to"):
                where = torch.device(value)
            elif isinstance(value, torch.Tensor):
                where, plain = place(value), [*plain, value.dtype]
            elif value is not None and not isinstance(value, bool):
                plain.append(value)
        where = CUDA if where.type == "cuda" else CPU
        result = tensor if name == "cuda" or not (plain or kwargs) else func(tensor, *plain, **kwargs)
        crossed = result is tensor and where != place(tensor)
        return _placed(result.clone() if crossed else result, where)

    def _check(self, name: str, args: Any, kwargs: dict[str, Any], wanted: torch.device | None) -> None:
        generator = kwargs.get("generator")
        here = wanted or self._place_of(name, args, kwargs)
        if isinstance(generator, torch.Generator) and generator.device != here:
            raise RuntimeError(f"{name}: the generator is on another device than the numbers that are drawn")
        if name in CROSSING:
            return
        if name in INDEXED:
            tensor, index, *values = args
            if place(tensor) == CPU and any(place(one) == CUDA for one in _tensors(index)):
                raise RuntimeError(f"{name}: a tensor on the processor is indexed from cuda:0")
            sliced = not any(True for _ in _tensors(index))
            if not values or sliced or values[0] is None:
                return
            args, kwargs = (tensor, *values), {}
        places = {place(one) for one in _tensors((args, kwargs)) if one.ndim}
        if len(places) > 1:
            shapes = [(tuple(one.shape), place(one).type) for one in _tensors((args, kwargs))]
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {shapes}")

    def _place_of(self, name: str, args: Any, kwargs: dict[str, Any]) -> torch.device:
        if name in INDEXED or name.startswith(("new_", "__")):
            return next((place(one) for one in _tensors(args)), CPU)
        tensors = list(_tensors((args, kwargs)))
        return CUDA if any(place(one) == CUDA for one in tensors) else CPU


class ElsewhereGenerator(torch.Generator):
    """A generator that says it is on ``cuda:0``."""

    device = CUDA


def place(tensor: Any) -> torch.device:
    """Where a tensor says it is."""
    return getattr(tensor, "_place", CPU) if isinstance(tensor, torch.Tensor) else CPU


def _placed(tensor: torch.Tensor, where: torch.device) -> torch.Tensor:
    tensor._place = CUDA if where.type == "cuda" else CPU
    return tensor


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        yield from itertools.chain.from_iterable(map(_tensors, values.values()))
    elif isinstance(values, (list, tuple)):
        yield from itertools.chain.from_iterable(map(_tensors, values))


def moved(module: Any) -> Any:
    """The module with its parameters and buffers on ``cuda:0``."""
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        _placed(tensor, CUDA)
    return module


@contextlib.contextmanager
def entered(monkeypatch: pytest.MonkeyPatch) -> Iterator[SecondDevice]:
    """The mode, on; generators are made on whichever device they are asked for."""
    mode = SecondDevice()

    def torch_generator(seed: seeding.Seed, device: Any = "cpu") -> torch.Generator:
        made = real(seed)
        return ElsewhereGenerator().manual_seed(made.initial_seed()) if torch.device(device).type == "cuda" else made

    def deepcopy(parameter: Any, memo: dict[int, Any]) -> Any:
        return _placed(copied(parameter, memo), place(parameter))

    real, copied = seeding.torch_generator, torch.nn.Parameter.__deepcopy__
    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", deepcopy)
    monkeypatch.setattr(seeding, "torch_generator", torch_generator)
    monkeypatch.setattr("prudent.policies.rl.policy.torch_generator", torch_generator)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.empty(0))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("", (), {"total_memory": 2**34}))
    with mode:
        yield mode

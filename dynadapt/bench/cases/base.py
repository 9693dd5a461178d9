"""One case of an op: arguments for given sizes, dtype and seed, what the op does with each of them, and what they cost.

Tests, gradcheck, ``dynadapt profile`` and the benchmarks take their arguments here, so that an op is described once.
"""

from __future__ import annotations

from copy import copy as copy_object
from dataclasses import dataclass, fields, is_dataclass, replace

import torch

from dynadapt.bench.made_up_quants import random_blocks
from dynadapt.ops.quants import BLOCK_FORMATS, QuantisedWeight

Tensor = torch.Tensor


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


class Op:
    """What an op does with its arguments, by their names in the reference's signature (given as one string each).

    outputs: what it writes; ``changed``: those of them whose values before the call count. wide: float32 whatever the activations
    are. frozen: weights [N, K] (or lists of them) that a backend keeps as its own matrices. rows: a row a token; streams: an entry a
    stream. gradients: differentiable input -> the name of its gradient; backward: the ops that compute these, in their order.
    """

    def __init__(self, name, outputs, changed="", wide="", frozen="", rows="", streams="", gradients=None, backward=""):
        self.name, self.outputs, self.changed, self.wide = name, _names(outputs), _names(changed), _names(wide)
        self.frozen, self.rows, self.streams = _names(frozen), _names(rows), _names(streams)
        self.gradients, self.backward = gradients or {}, _names(backward)

    def with_wide(self, names: str) -> Op:
        """The same op where these arguments are float32, too."""
        made = copy_object(self)
        made.wide = self.wide + _names(names)
        return made


class Draw:
    """Random arguments of one dtype. ``odd``: rows lie in a wider buffer where the op allows it, slots are out of order, and there are
    more of them than streams; without it everything is dense, as at a model's sizes. ``strided``: so do arguments whose rows the
    native kernels want side by side and Triton's do not."""

    def __init__(self, dtype=torch.float32, seed: int = 0, device="cpu", odd: bool = True, strided: bool = False):
        self.dtype, self.device, self.odd, self.strided = dtype, device, odd, strided
        self.wide_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.generator = torch.Generator(device).manual_seed(seed)

    def wide(self, *shape, scale=1.0) -> Tensor:
        """Normal values that stay float32."""
        return scale * torch.randn(shape, generator=self.generator, device=self.device, dtype=self.wide_dtype)

    def acts(self, *shape, scale=1.0) -> Tensor:
        """Activations or weights: normal values in the case's dtype, so that all runs see the same numbers."""
        return self.wide(*shape, scale=scale).to(self.dtype)

    def weight(self, n, k, base: str = "same", scale=None) -> Tensor | QuantisedWeight:
        """A frozen weight [n, k] whose deviation is ``scale`` (k^-1/2): of the case's dtype, or of a format's blocks."""
        scale = k**-0.5 if scale is None else scale
        if base in BLOCK_FORMATS:
            return random_blocks(base, n, k, scale, int(self.integers(1 << 31, 1)))
        return self.acts(n, k, scale=scale)

    def rows(self, n, width, dense=False) -> Tensor:
        """Activations [n, width], with another stride than their width where the case is odd. ``dense``: in strided cases alone."""
        wider = self.strided if dense else self.odd
        return self.acts(n, width + 3)[:, :width] if wider else self.acts(n, width)

    def uniform(self, *shape) -> Tensor:
        """From 0 to 1, float32."""
        return torch.rand(shape, generator=self.generator, device=self.device, dtype=self.wide_dtype)

    def row_weights(self, n) -> Tensor:
        """Of n rows in a loss; at a model's sizes the loss is their mean, as other packages have it."""
        return self.uniform(n) if self.odd else torch.full((n,), 1 / n, dtype=self.wide_dtype, device=self.device)

    def integers(self, high, *shape) -> Tensor:
        return torch.randint(high, shape, generator=self.generator, device=self.device)

    def permutation(self, n) -> Tensor:
        return torch.randperm(n, generator=self.generator, device=self.device)

    def out(self, *shape, wide=False) -> Tensor:
        """An output that nobody has written to."""
        return torch.full(shape, float("nan"), dtype=self.wide_dtype if wide else self.dtype, device=self.device)

    def slot_count(self, streams) -> int:
        return streams + 2 if self.odd else streams

    def slots(self, streams) -> Tensor:
        """int32 [streams], each once."""
        if self.odd:
            return self.permutation(self.slot_count(streams))[:streams].int()
        return torch.arange(streams, dtype=torch.int32, device=self.device).flip(0).contiguous()

    def per_slot(self, count, *shapes, wide=False) -> list[Tensor]:
        """One tensor [count, *shape] for each shape, side by side in one buffer where the case is odd, as the engine keeps a slot's."""
        make = self.wide if wide else self.acts
        if not self.odd:
            return [make(count, *shape) for shape in shapes]
        sizes = [torch.Size(shape).numel() for shape in shapes]
        parts = make(count, sum(sizes) + 5).split([*sizes, 5], 1)[:-1]
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes)]


@dataclass
class OpCase:
    """``arguments`` by name in the op's order. Outputs hold NaN, where the op does not change them.

    bytes: each input read once and each output written once; flops: the op's own formula; slack multiplies the tolerance where
    more rounding than torch's is due to the op's own order of sums. base: what frozen weights are kept in, their dtype ("same"),
    "int8" or a format of ops/quants.py.

    Raises:
        ValueError: an argument is not of the case's dtype, or an output could hide that nobody wrote to it.
    """

    about: Op
    dtype: torch.dtype
    arguments: dict
    label: str = ""
    bytes: int = 0
    flops: int = 0
    slack: float = 1.0
    base: str = "same"

    def __post_init__(self):
        wide = torch.promote_types(self.dtype, torch.float32)
        for name, value in self.arguments.items():
            for key, t in named_tensors(name, value).items():
                expected = wide if name in self.about.wide and not key.endswith(".working") else self.dtype
                if t.is_floating_point() and t.dtype != expected:
                    raise ValueError(f"{self.op}: {key} is {t.dtype}, the case's is {expected}")
        unwritten = () if self.arguments.get("accumulate") else set(self.about.outputs) - set(self.about.changed)
        for name in unwritten:
            for t in named_tensors(name, self.arguments[name]).values():
                if t.is_floating_point() and t.numel() and not t.isnan().any():
                    raise ValueError(f"{self.op}: {name} holds numbers before the call, accepted is NaN")

    @property
    def op(self) -> str:
        return self.about.name

    def __getitem__(self, name):
        return self.arguments[name]

    def change(self, **changes) -> OpCase:
        """The same case with other values of some arguments."""
        unknown = set(changes) - set(self.arguments)
        if unknown:
            raise ValueError(f"{self.op} has no argument {', '.join(sorted(unknown))}; it has {', '.join(self.arguments)}")
        return replace(self, arguments={**self.arguments, **changes})

    def spoil(self, name, place, value=float("nan")) -> OpCase:
        """The same case with ``value`` at ``place`` of one argument."""
        tensor = copy(self[name])
        tensor[place] = value
        return self.change(**{name: tensor})

    def cut(self, rows: slice, streams: slice = slice(None)) -> OpCase:
        """These rows and streams alone."""
        kept = {**dict.fromkeys(self.about.rows, rows), **dict.fromkeys(self.about.streams, streams)}
        return self.change(**{name: self[name][part] for name, part in kept.items() if self[name] is not None})

    def stream(self, i: int) -> OpCase:
        """One stream alone."""
        length = self.row_count // self.stream_count
        return self.cut(slice(i * length, (i + 1) * length), slice(i, i + 1))

    @property
    def row_count(self) -> int:
        return len(self[self.about.rows[0]])

    @property
    def stream_count(self) -> int:
        return len(self[self.about.streams[0]])


def named_tensors(name: str, value) -> dict[str, Tensor]:
    """The tensors of an argument by ``name``, "name.0" or "name.field"."""
    if isinstance(value, Tensor):
        return {name: value}
    inner = enumerate(value) if isinstance(value, (list, tuple)) else ()
    if is_dataclass(value):
        inner = ((f.name, getattr(value, f.name)) for f in fields(value))
    return {key: t for part, v in inner for key, t in named_tensors(f"{name}.{part}", v).items()}


def weight_bytes(elements: int, base: str) -> float:
    """That frozen weights take: two each, one and a scale of four for every 64 (ops/int8.py), or those of their blocks."""
    if form := BLOCK_FORMATS.get(base):
        return elements * form.size / form.columns
    return elements * (1 + 4 / 64 if base == "int8" else 2)


def convert(value, function):
    """``value`` with ``function`` of every tensor in it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(convert(v, function) for v in value)
    if is_dataclass(value):
        return replace(value, **{f.name: convert(getattr(value, f.name), function) for f in fields(value)})
    return value


def copy(t: Tensor, dtype=None, device=None) -> Tensor:
    """With the strides of the original."""
    return torch.empty_strided(t.shape, t.stride(), dtype=dtype or t.dtype, device=device or t.device).copy_(t)

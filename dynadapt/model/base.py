"""A model as the engine sees it: a config, and canonical tensors that are read when asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping

import torch

from dynadapt.common.reprs import safe
from dynadapt.ops.precision import wide_dtype
from dynadapt.ops.quants import BLOCK_FORMATS, QuantisedWeight

from .config import ModelConfig
from .errors import ModelError
from .layout import has_offset, tensor_shapes

WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # of files
MODEL_DTYPES = (*WEIGHT_DTYPES, torch.float64)  # in memory


class Model:
    """A decoder's config, weights and tokenizer.

    `tensor(name)` reads a canonical tensor (see `dynadapt.model.layout`) each time it is asked for and keeps nothing,
    so that an engine that packs weights holds the only copy. Tensors are contiguous, in the dtype they are stored in
    (float32 for quantised GGUF tensors) or in `dtype` when one was given to `load`. Treat them as read-only: a live
    model's tensors are shared with it.
    """

    def __init__(
        self,
        config: ModelConfig,
        name: str,
        read: Callable[[str], torch.Tensor],
        identity: Callable[[bool], bytes],
        tokenizer=None,
        dtype: torch.dtype | None = None,
        where: str | None = None,
        kinds: Mapping[str, str] | None = None,
        blocks: Callable[[str], QuantisedWeight | None] | None = None,
    ):
        """`tokenizer` is a Tokenizer, None, or a function that makes one at first use; `identity(sampled)` gives bytes that
        change with the stored weights: with any byte of them, or sampled, with some; `where` stands in front of what is wrong
        with a tensor (default: `name`); `kinds` are the types that a GGUF file stores its tensors in, and `blocks` reads one
        quantised as it is stored, None where it can't be kept so."""
        if dtype is not None and dtype not in MODEL_DTYPES:
            raise ModelError(f"dtype = {dtype!r} is not a dtype of weights; accepted: {', '.join(map(str, MODEL_DTYPES))}")
        self.config = config
        self.name = name
        self.origin: str | None = None  # what ``load`` takes to make it again, where there is such a name
        self._where = where or name
        self.dtype = dtype
        self._read = read
        self._identity = identity
        self._tokenizer = tokenizer
        self._shapes = tensor_shapes(config)
        self.kinds: Mapping[str, str] = kinds or {}
        self._blocks = blocks

    def converted(self, dtype: torch.dtype) -> Model:
        """The same model, its tensors in ``dtype`` when they are read."""
        other = Model(
            self.config, self.name, self._read, self._identity, lambda: self.tokenizer, dtype, self._where, self.kinds, self._blocks
        )
        other.origin = self.origin
        return other

    @safe
    def __repr__(self) -> str:
        c = self.config
        return f"Model({self.name!r}, family {c.family}, {c.layers} layers, hidden {c.hidden_size}, vocabulary {c.vocab_size})"

    def names(self) -> list[str]:
        """Canonical names of all tensors, in the order of computation."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        if name not in self._shapes:
            raise KeyError(f"{self.name} has no tensor {name!r}; Model.names() lists what it has")
        return self._shapes[name]

    def tensor(self, name: str) -> torch.Tensor:
        """The canonical tensor `name`, read now. KeyError for an unknown name; ModelError for an unreadable file, and for a
        value that is NaN or infinite."""
        shape = self.shape(name)
        tensor = self._read(name)
        if tuple(tensor.shape) != shape:
            raise ModelError(f"{self._where}: tensor {name} has shape {list(tensor.shape)}, expected {list(shape)}")
        dtype = self.dtype or tensor.dtype
        tensor = tensor.to(wide_dtype(dtype) if has_offset(self.config, name) else dtype).contiguous()
        bad = 0 if tensor.is_meta else count_not_finite(tensor)
        if bad:
            raise ModelError(f"{self._where}: tensor {name} holds {bad} values that are NaN or infinite")
        return tensor

    def block_names(self) -> list[str]:
        """The names for which `quantised` gives something, without reading any."""
        exact = self.dtype in (None, torch.float32, torch.float64)
        return [n for n, kind in self.kinds.items() if exact and kind.lower() in BLOCK_FORMATS and len(self._shapes[n]) == 2]

    def quantised(self, name: str) -> QuantisedWeight | None:
        """The canonical matrix `name` in the blocks that a GGUF file stores it in, read now; None for one that is stored otherwise, or
        in a format that `dynadapt.ops.quants` does not have, and of a model that `dtype` rounds. Errors are those of `tensor`, whose
        values these are."""
        self.shape(name)
        weight = self._blocks(name) if self._blocks and name in self.block_names() else None
        if weight is not None and not weight.finite():
            self.tensor(name)  # says how many values are not
        return weight

    @property
    def tokenizer(self):
        """The model's own Tokenizer, or None if it came without one. Read at first use."""
        if callable(self._tokenizer):
            self._tokenizer = self._tokenizer()
        return self._tokenizer

    def fingerprint(self, sampled: bool = False) -> str:
        """Hex sha256 of the config and of every byte of the stored weights; the same after a copy to another place.

        Reads all of them, once for a model from files (about a second a gigabyte). `sampled` takes a fraction of them, which
        is what states of format 1 hold (engine/state.py): two models may share it.
        """
        digest = hashlib.sha256(json.dumps(self.config.told(), sort_keys=True).encode())
        digest.update(self._identity(sampled))
        return digest.hexdigest()

    def check_finite(self) -> None:
        """Raise ModelError naming the first tensor that holds a NaN or an infinity. Reads every tensor once."""
        for name in self.names():
            if self.quantised(name) is None:
                self.tensor(name)


def count_not_finite(tensor: torch.Tensor) -> int:
    """How many values are NaN or infinite. One pass without temporaries if none is: a NaN is both least and greatest."""
    if torch.isfinite(torch.stack(tensor.aminmax())).all():
        return 0
    return sum(int((~torch.isfinite(piece)).sum()) for piece in tensor.reshape(-1).split(1 << 22))


def from_state(
    config: ModelConfig, state: Mapping[str, torch.Tensor], tokenizer=None, name: str = "model", dtype: torch.dtype | None = None
) -> Model:
    """A Model over canonical tensors in memory, which it shares. Names, shapes and dtypes must be exactly the config's."""
    check_shapes(name, tensor_shapes(config), {key: tuple(value.shape) for key, value in state.items()})
    for key, value in state.items():
        if value.dtype not in MODEL_DTYPES:
            raise ModelError(f"{name}: tensor {key} has dtype {value.dtype}; accepted: {', '.join(map(str, MODEL_DTYPES))}")
    state = dict(state)
    return Model(config, name, state.__getitem__, _StateIdentity(state), tokenizer, dtype)


def random_model(config: ModelConfig, seed: int = 0, std: float = 0.02, dtype: torch.dtype = torch.float32, tokenizer=None) -> Model:
    """A model with normal weights of deviation `std`, norm weights around 1 (none exactly), from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in tensor_shapes(config).items():
        value = torch.randn(shape, generator=generator)
        is_norm_weight = name.endswith("norm.weight")
        state[name] = (1 + 0.1 * value if is_norm_weight else std * value).to(dtype)
    return from_state(config, state, tokenizer, name=f"random-{config.family}")


def check_shapes(
    name: str, expected: Mapping[str, tuple], found: Mapping[str, tuple], ignored: Callable[[str], bool] = lambda key: False
) -> None:
    """Raise ModelError for the first tensor that is missing, has another shape, or is not expected and not `ignored`."""
    for key, shape in expected.items():
        if key not in found:
            raise ModelError(f"{name}: tensor {key} of shape {list(shape)} is missing ({len(found)} tensors found)")
        if tuple(found[key]) != tuple(shape):
            raise ModelError(f"{name}: tensor {key} has shape {list(found[key])}, the config expects {list(shape)}")
    for key in found:
        if key not in expected and not ignored(key):
            raise ModelError(f"{name}: tensor {key} of shape {list(found[key])} has no place in this model")


class _StateIdentity:
    """identity() of tensors in memory. Their bytes are read again only after a tensor was written to."""

    def __init__(self, state: Mapping[str, torch.Tensor]):
        self.state = state
        self.versions, self.digest = None, b""

    def __call__(self, sampled: bool) -> bytes:
        if sampled:
            return _sample_state(self.state)
        versions = [None if value.is_inference() else (value.data_ptr(), value._version) for value in self.state.values()]
        if None in versions or versions != self.versions:
            self.versions, self.digest = versions, _hash_state(self.state)
        return self.digest


def _hash_state(state: Mapping[str, torch.Tensor]) -> bytes:
    """Of names, shapes, dtypes and all bytes of the tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach()
        digest.update(f"{name} {list(value.shape)} {value.dtype}".encode())
        for piece in value.reshape(-1).split(1 << 24):
            digest.update(piece.cpu().contiguous().view(torch.uint8).numpy())
    return digest.digest()


def _sample_state(state: Mapping[str, torch.Tensor], count: int = 256) -> bytes:
    """Names, shapes, dtypes and `count` evenly spaced values of each tensor."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach()
        digest.update(f"{name} {list(value.shape)} {value.dtype}".encode())
        index = torch.linspace(0, value.numel() - 1, min(count, value.numel()), dtype=torch.float64).long()
        sample = value[tuple(torch.unravel_index(index.to(value.device), value.shape))]
        digest.update(sample.cpu().double().numpy().tobytes())
    return digest.digest()

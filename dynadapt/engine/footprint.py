"""What an engine holds: bytes by what they are for.

Not in it: the interpreter and torch, scratch memory of kernels (of the CPU's, a few MB a thread), what a GPU has recorded.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import torch

from dynadapt.adapt.methods import whole_model
from dynadapt.ops.matrix import DenseMatrix


def bytes_held(*owners) -> int:
    """Bytes of the tensors and packed matrices that objects of this package hold, each once."""
    found = dict(piece for owner in owners for piece in _pieces(owner, 3))
    return sum(found.values())


def _pieces(value, depth: int) -> Iterator[tuple[Hashable, int]]:
    """(what tells it from others, bytes) of each."""
    kind = type(value)
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        yield storage._cdata, storage.nbytes()
    elif kind is DenseMatrix:
        yield from _pieces(value.weight, depth)
    elif isinstance(value, DenseMatrix):  # one that stands for what takes other bytes than its weight
        yield (value.weight.untyped_storage()._cdata, value.weight.storage_offset()), value.nbytes
    elif kind.__name__ == "PackedMatrix":
        yield id(value), value.nbytes
    elif isinstance(value, (dict, list, tuple)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _pieces(each, depth)
    elif depth and hasattr(value, "__dict__") and kind.__module__.startswith("dynadapt") and kind.__name__ not in ("Model", "ModelConfig"):
        for each in vars(value).values():
            yield from _pieces(each, depth - 1)


def footprint(engine) -> dict[str, int]:
    """{purpose: bytes} of what ``engine`` holds now; buffers are made by the first step of their shape."""
    states = [learner.state for learner in engine.learners]
    gradients = bytes_held([s.grad for s in states])
    moments = bytes_held([[s.first, s.second] for s in states])
    kept = sum(b.numel() * b.element_size() for (name, _), b in engine.workspace.buffers.items() if _of_one_layer(name))
    held = {
        "frozen weights": 0 if whole_model(engine.adapt) else bytes_held(engine.weights),
        "what learns": bytes_held(engine.learners) - gradients - moments,
        "gradients": gradients,
        "optimizer state": moments,
        "segment memory": bytes_held(engine.decoder.memory),
        "the guard's prior": _prior_bytes(engine),
        "the prior on reference tokens": 0 if engine.keeping is None else bytes_held(engine.keeping.tensors),
        "copies to go back to": _ring_bytes(engine),
        "kept for backward": kept,
        "other buffers": engine.workspace.nbytes - kept,
    }
    return {purpose: size for purpose, size in held.items() if size}


def _of_one_layer(name) -> bool:
    """Whether the decoder's name of a buffer has a layer's number in it, or it holds all layers side by side."""
    if isinstance(name, tuple):
        return any(map(_of_one_layer, name))
    return isinstance(name, int) or name.endswith("of all layers")


def stream_bytes(engine) -> int:
    """What one stream more would hold for good: its weights, their gradients and optimizer state, its memory. Buffers grow only with
    the streams that go through the layers together."""
    own = 0 if engine.shared else bytes_held(engine.learners) - bytes_held([learner.common for learner in engine.learners])
    return (own + bytes_held(engine.decoder.memory) + _prior_bytes(engine, of_weights=False) + _ring_bytes(engine)) // engine.streams


def _prior_bytes(engine, of_weights: bool = True) -> int:
    """What scoring the prior takes beside the rest."""
    prior = None if engine.guarding is None else engine.guarding.prior
    return 0 if prior is None else bytes_held(*[prior.own] * of_weights, prior.memory, prior.driver.step.handover)


def _ring_bytes(engine) -> int:
    alarms = None if engine.guarding is None else engine.guarding.alarms
    return 0 if alarms is None else bytes_held([list(copies.values()) for copies in alarms.ring])


def footprint_line(engine) -> str:
    held = footprint(engine)
    parts = ", ".join(f"{purpose} {_size(size)}" for purpose, size in held.items())
    later = "" if engine.workspace.buffers else "; the first step makes its buffers"
    return f"holds {_size(sum(held.values()))}: {parts}{later}; each further stream {_size(stream_bytes(engine))}"


def _size(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e7 else f"{count / 1e6:,.2f} MB"

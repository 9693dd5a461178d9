"""Help for tests: all that an engine's next calls depend on, as a copy to be compared bit for bit."""

import torch

from dynadapt.engine import state as engine_state


def state_of(engine) -> dict:
    tensors = {name: t.detach().clone() for name, t in engine_state.state_tensors(engine).items()}
    prior = engine.guarding and engine.guarding.prior
    for prefix, memory in (("memory.", engine.decoder.memory), ("guard.memory.", prior and prior.memory)):
        for s, filled in enumerate(() if memory is None else memory.filled):  # what is behind the fill is never read
            for name, t in tensors.items():
                if name.startswith(prefix) and name != f"{prefix}length" and ".delta." not in name:  # a state has one size
                    t[s, filled:] = 0
    working = [learner.state.working for learner in engine.learners if learner.state.working is not None]
    tensors.update({f"working.{i}": t.clone() for i, t in enumerate(working)})
    plain = {
        "counts": engine_state.state_counts(engine),
        "flops": engine.flops,
        "last": engine.last,
        "describe": engine.describe(),
        "filled": None if engine.decoder.memory is None else list(engine.decoder.memory.filled),
    }
    return {"tensors": tensors, "plain": plain}


def assert_equal(a: dict, b: dict, but=()) -> None:
    """Bit for bit: NaN equals NaN, -0 does not equal 0."""
    assert a["tensors"].keys() == b["tensors"].keys()
    for name, t in a["tensors"].items():
        other = b["tensors"][name]
        assert t.dtype == other.dtype and t.shape == other.shape, name
        assert torch.equal(
            t.contiguous().view(torch.uint8) if t.dim() else t, other.contiguous().view(torch.uint8) if t.dim() else other
        ), name
    for name, value in a["plain"].items():
        if name not in but:
            assert value is b["plain"][name] or value == b["plain"][name], name

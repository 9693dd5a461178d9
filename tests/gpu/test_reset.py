"""The reset kernel against its reference."""

import pytest
import torch

from dynadapt.kernels import reset as kernels
from dynadapt.ops.dispatch import resolve

from .compare import DEVICE


@pytest.mark.parametrize("has", [{"working", "grad", "first", "second"}, {"grad", "second"}, set()])
@pytest.mark.parametrize("own_priors,keeps", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("size", [1, 5000])
def test_flagged_streams_go_back(size, own_priors, keeps, has):
    slots, flags = torch.tensor([3, 0, 2], dtype=torch.int32), torch.tensor([1, 0, 1], dtype=torch.int32)
    buffers = {name: torch.randn(4, size) for name in ("master", "working", "grad", "first", "second")}
    prior, step = torch.randn(4, size) if own_priors else torch.randn(size), torch.tensor([5, 6, 7, 8], dtype=torch.int32)
    kept = (torch.arange(size) % 3 == 0).to(torch.int8) if keeps else None
    buffers["working"] = buffers["master"].bfloat16()  # as the engine has it
    results = {}
    for backend in ("reference", "triton"):
        device = "cpu" if backend == "reference" else DEVICE
        mine = {name: t.clone().to(device) if name in has | {"master"} else None for name, t in buffers.items()}
        counts = step.clone().to(device)
        resolve("reset", backend, torch.float32).function(
            flags.to(device),
            slots.to(device),
            prior.to(device),
            mine["master"],
            mine["working"],
            mine["grad"],
            mine["first"],
            mine["second"],
            counts,
            kept if kept is None else kept.to(device),
        )
        results[backend] = {**mine, "step": counts}
    for name, expected in results["reference"].items():
        if expected is not None:  # the interpreter cuts to bfloat16 instead of rounding
            torch.testing.assert_close(expected, results["triton"][name].cpu(), rtol=2.0**-7 if name == "working" else 0, atol=0)
    assert results["reference"]["step"].tolist() == [5, 6, 0, 0]
    for slot, goes in ((0, False), (2, True), (3, True)):
        back = prior[slot] if own_priors else prior
        expected = torch.where(kept != 0, buffers["master"][slot], back) if keeps else back
        assert torch.equal(results["reference"]["master"][slot], expected if goes else buffers["master"][slot])


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_what_is_kept_and_not_finite_goes_back(backend):
    """An A that overflowed would still not be zero times a B of zero."""
    device = "cpu" if backend == "reference" else DEVICE
    kept, prior = torch.tensor([1, 1, 1, 1, 0, 0], dtype=torch.int8, device=device), torch.arange(6.0, device=device)
    one, step = torch.ones(1, dtype=torch.int32, device=device), torch.tensor([3, 4], dtype=torch.int32, device=device)
    master = torch.full((2, 6), 7.0, device=device)
    master[1] = torch.tensor([9.0, float("nan"), float("inf"), -float("inf"), float("nan"), 9.0])
    working = master.bfloat16()
    resolve("reset", backend, torch.float32).function(one, one, prior, master, working, None, None, None, step, kept)
    assert master.tolist() == working.tolist() == [[7.0] * 6, [9.0, 1.0, 2.0, 3.0, 4.0, 5.0]] and step.tolist() == [3, 0]


def test_seven_billion_weights_fit_the_grid(monkeypatch):
    """A grid's second and third axis end at 65,535."""
    grids = []
    monkeypatch.setattr(kernels, "launch", lambda kernel, grid, given: grids.append(grid))
    size = 7 * 10**9
    one, whole = torch.zeros(1, dtype=torch.int32), torch.empty(1, size, device="meta")
    kernels.reset(one, one, whole[0], whole, None, whole, None, None, one)
    assert grids[0][0] * kernels.BLOCK >= size and all(n <= 65535 for n in grids[0][1:])

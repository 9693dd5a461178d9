"""Gradient and update in one kernel against their references: every rule, whole and split, bad gradients, resting streams."""

from dataclasses import fields, replace

import pytest
import torch

from dynadapt import RMS, SGD
from dynadapt.kernels import epilogue, lora_gradient, weight_gradient
from dynadapt.kernels.common import INTERPRET
from dynadapt.ops.dispatch import resolve
from dynadapt.ops.update import UpdateState

from .compare import DEVICE, DTYPES, acts, skip_without_gpu

RULES = {"sgd": SGD(clip=0.0).rule(), "momentum": SGD(decay=0.1, momentum=0.9, clip=0.0).rule(), "rms": RMS(decay=0.1, eps=1e-2).rule()}
NAMES = [f.name for f in fields(UpdateState)]
SMALL = (100, 2, 70, (40, 33), 5)  # rows N, streams S, inputs K, parts, rank
WEIGHT = (70, 75, 40, 30)  # rows N, outputs O, inputs K, chosen rows


def tensor_state(slots, rows, columns, dtype, spare=3):
    """Every tensor; those of slots lie in a wider buffer, as the engine keeps them."""

    def owned(t):
        return torch.cat([t.flatten(1), t.new_zeros(slots, spare)], 1)[:, :-spare].unflatten(1, (rows, columns)) if slots else t

    lead = [slots] if slots else []
    shape = (rows, columns)
    master = torch.randn(*lead, *shape)
    own = dict(master=master, working=master.to(dtype), first=torch.randn(*lead, *shape))
    shared = dict(prior=torch.randn(shape), stat=torch.rand(shape) + 0.1, prior_rate=torch.rand(shape))
    return UpdateState(**{name: owned(t) for name, t in own.items()}, **shared)


def lora_call(case, dtype, rule):
    n, streams, k, parts, rank = case
    width, slots = len(parts) * rank, streams + 2
    return [
        acts(n, sum(parts), dtype=dtype),
        acts(n, k, dtype=dtype),
        acts(n, width, dtype=dtype),
        acts(n, width, dtype=dtype),
        list(parts),
        0.5,
        torch.randperm(slots)[:streams].int(),
        torch.ones(streams, dtype=torch.int32),
        tensor_state(slots, width, k, dtype),
        tensor_state(slots, rank, sum(parts), dtype),
        rule,
        0.1 * torch.rand(slots) / n**0.5,
        torch.zeros(streams, dtype=torch.int32),
    ]


def weight_call(case, dtype, rule):
    n, out, k, chosen = case
    rows = None if chosen is None else torch.randperm(out)[:chosen].int()
    state = replace(tensor_state(0, chosen or out, k, dtype), working=None)
    return [
        acts(n, out + 3, dtype=dtype)[:, :out],
        acts(n, k, dtype=dtype),
        rows,
        torch.randn(out, k).to(dtype),
        state,
        rule,
        0.1 * torch.rand(1) / n**0.5,
        torch.zeros(1, dtype=torch.int32),
    ]


def run(op, call, dtype, backend="triton"):
    """The call's arguments after it, on copies; float64 is the truth (its working copies are compared after rounding)."""

    def copy(v):
        if isinstance(v, UpdateState):
            return UpdateState(**{name: copy(getattr(v, name)) for name in NAMES})
        if not isinstance(v, torch.Tensor):
            return v
        kind = torch.float64 if dtype == torch.float64 and v.is_floating_point() else v.dtype
        return torch.empty_strided(v.shape, v.stride(), dtype=kind, device=DEVICE).copy_(v)

    copies = [copy(v) for v in call]
    resolve(op, backend, dtype).function(*copies)
    return copies


def flatten(call):
    """Named tensors that the op may write."""
    found = {"skipped": call[-1]}
    for i, v in enumerate(call):
        if isinstance(v, UpdateState):
            found |= {f"{i}.{name}": getattr(v, name) for name in ("master", "first", "working") if getattr(v, name) is not None}
    if len(call) == 8:
        found["weight"] = call[3]
    return found


def check(op, call, dtype):
    ours, plain, truth = (flatten(run(op, call, *how)) for how in ((dtype,), (dtype, "reference"), (torch.float64, "reference")))
    for name, t in truth.items():
        if name == "skipped":
            assert torch.equal(ours[name], t)
            continue
        o, p, t = ours[name].double(), plain[name].double(), t.double()
        assert torch.isfinite(o).all(), name
        rounding = 2.0**-8 if ours[name].dtype == torch.bfloat16 else 4e-6
        bound = (p - t).abs().max() + rounding * t.abs().max()
        assert (o - t).abs().max() <= bound, f"{op}: {name}: {(o - t).abs().max():.3g}, allowed {bound:.3g}"
    return ours


@pytest.fixture(params=["whole", "split"])
def tokens(request, monkeypatch):
    """Tokens summed by one program, or split so that the second launch updates."""
    if request.param == "split":
        monkeypatch.setattr(lora_gradient, "CHUNK", 32)
        monkeypatch.setattr(weight_gradient, "SPLIT_TOKENS", 16)
    return request.param


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_lora(dtype, rule, tokens):
    check("lora_gradient_update", lora_call(SMALL, dtype, RULES[rule]), dtype)


@pytest.mark.parametrize("gather", [1, 1 << 20])
@pytest.mark.parametrize("chosen", [None, 30])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight(dtype, rule, chosen, gather, tokens, monkeypatch):
    monkeypatch.setattr(weight_gradient, "GATHER_ELEMENTS", gather)
    check("weight_gradient_update", weight_call((*WEIGHT[:3], chosen), dtype, RULES[rule]), dtype)


def test_working_copies_are_the_masters_rounded():
    narrow = torch.float16 if INTERPRET else torch.bfloat16  # the interpreter cuts bfloat16 off instead of rounding it
    call = lora_call(SMALL, torch.float32, RULES["momentum"])
    for state in call[8:10]:
        state.working = state.master.to(narrow)
        state.prior_rate = None
    after = run("lora_gradient_update", call, torch.float32)
    for state, before in zip(after[8:10], call[8:10]):
        assert torch.equal(state.working, state.master.to(narrow))
        assert not torch.equal(state.working.cpu(), before.working)


@pytest.mark.parametrize("rule", RULES)
def test_tiles_move_in_slices(rule, monkeypatch):
    monkeypatch.setattr(epilogue, "elements", lambda num_warps: 64 * 8)
    monkeypatch.setitem(weight_gradient.TILES, torch.float32, [((64, 64, 16), 4, 2)])
    check("lora_gradient_update", lora_call((60, 2, 70, (40, 33), 13), torch.float32, RULES[rule]), torch.float32)
    check("weight_gradient_update", weight_call(WEIGHT, torch.float32, RULES[rule]), torch.float32)


def test_nothing_that_the_rule_does_not_use_is_needed():
    call = lora_call(SMALL, torch.float32, RULES["sgd"])
    call[8:10] = [UpdateState(state.master) for state in call[8:10]]
    check("lora_gradient_update", call, torch.float32)


def test_resting_and_skipped_streams_stay(tokens):
    call = lora_call((90, 3, 40, (20, 9), 4), torch.float32, RULES["momentum"])
    call[7][0], call[-1][1] = 0, 1
    after = check("lora_gradient_update", call, torch.float32)
    before = flatten(call)
    for i, moves in enumerate((False, False, True)):
        slot = int(call[6][i])
        for name in ("8.master", "9.master", "8.first", "9.working"):
            assert torch.equal(after[name][slot].cpu(), before[name][slot]) != moves, (i, name)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_element_keeps_its_state_and_its_stream_is_skipped(bad, tokens):
    call = lora_call((90, 3, 40, (20, 9), 4), torch.float32, RULES["momentum"])
    clean = flatten(run("lora_gradient_update", call, torch.float32))
    call[3][35, 2] = bad  # second stream: row 2 of its dA
    dirty = flatten(run("lora_gradient_update", call, torch.float32))
    assert dirty["skipped"].tolist() == [0, 1, 0]
    slot, before = int(call[6][1]), flatten(call)
    for name in ("8.master", "8.first", "8.working"):
        assert torch.equal(dirty[name][slot, 2].cpu(), before[name][slot, 2])
        dirty[name][slot, 2] = clean[name][slot, 2]
    for name in clean:
        if name != "skipped":
            assert torch.equal(dirty[name], clean[name]), name
    again = run("lora_gradient_update", [*call[:-1], torch.zeros(3, dtype=torch.int32)], torch.float32)
    assert again[-1].tolist() == [0, 1, 0]  # programs are counted from zero again


def test_a_bad_row_of_a_weight_keeps_its_state(tokens):
    call = weight_call(WEIGHT, torch.float32, RULES["momentum"])
    call[0][3, int(call[2][4])] = float("nan")
    after = run("weight_gradient_update", call, torch.float32)
    assert after[-1].tolist() == [1]
    assert torch.equal(after[4].master[4].cpu(), call[4].master[4])
    assert torch.isfinite(after[4].master).all()
    assert not torch.equal(after[4].master[5].cpu(), call[4].master[5])
    once = run("weight_gradient_update", after, torch.float32)  # skipped on entry
    assert torch.equal(once[4].master, after[4].master)


def test_errors_name_the_argument():
    call = lora_call(SMALL, torch.float32, RULES["rms"])
    call[8] = replace(call[8], stat=None)
    with pytest.raises(ValueError, match=r"lora_gradient_update: a.stat is missing, a tensor is needed for rms with eps 0.01, decay 0.1"):
        run("lora_gradient_update", call, torch.float32)
    call = weight_call(WEIGHT, torch.float32, RULES["rms"])
    call[4] = replace(call[4], stat=torch.rand(3, 3))
    with pytest.raises(ValueError, match=r"weight_gradient_update: state.stat has shape \[3, 3\], accepted is \[..., 30, 40\]"):
        run("weight_gradient_update", call, torch.float32)


@pytest.mark.gpu
@skip_without_gpu
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_real_sizes(dtype, rule):
    for case in ((4096, 8, 2048, (2048, 512, 512), 16), (4096, 1, 576, (1536, 1536), 16), (2048, 4, 4096, (14336, 14336), 64)):
        check("lora_gradient_update", lora_call(case, dtype, RULES[rule]), dtype)
    for case in ((4096, 8192, 2048, None), (512, 1536, 576, 154), (16384, 512, 2048, 52), (4096, 8192, 2048, 820)):
        check("weight_gradient_update", weight_call(case, dtype, RULES[rule]), dtype)

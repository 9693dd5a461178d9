"""Gradient and update in one kernel against their references: every rule, whole and split, bad gradients, resting streams."""

from dataclasses import replace

import pytest
import torch
from op_cases import make_case, same_bits

from dynadapt.bench.cases.update import lora_gradient_update, weight_gradient_update
from dynadapt.kernels import epilogue, lora_gradient_plan, weight_gradient
from dynadapt.kernels.common import INTERPRET
from dynadapt.ops.update import UpdateRule, UpdateState

from .compare import DTYPES, check, each, real_sizes, run

RULES = [UpdateRule("sgd"), UpdateRule("sgd", decay=0.1, momentum=0.9), UpdateRule("rms", decay=0.1, eps=1e-2)]
PLAIN, MOMENTUM, RMS = RULES
SMALL = (100, 70, (40, 33), 5, 2)  # rows N, inputs K, parts, rank, streams S
RAGGED = (90, 40, (20, 9), 4, 3, MOMENTUM)
WEIGHT = (70, 75, 40, 30)  # rows N, outputs O, inputs K, chosen rows


@pytest.fixture(params=["whole", "split"])
def tokens(request, monkeypatch):
    """Tokens summed by one program, or split so that the second launch updates."""
    if request.param == "split":
        monkeypatch.setattr(lora_gradient_plan, "CHUNK", 32)
        monkeypatch.setattr(weight_gradient, "SPLIT_TOKENS", 16)
    return request.param


@each(
    lora_gradient_update,
    [(*SMALL, rule) for rule in RULES] + [(100, 70, (40, 33, 7), (5, 0, 2), 2, MOMENTUM), (100, 70, (40, 33, 9, 2), 3, 2, RMS)],
)
def test_lora(case, tokens):
    check(case)


@pytest.mark.parametrize("gather", [1, 1 << 20])
@each(weight_gradient_update, [(*WEIGHT[:3], chosen, rule) for chosen in (None, 30) for rule in RULES])
def test_weight(case, gather, tokens, monkeypatch):
    monkeypatch.setattr(weight_gradient, "GATHER_ELEMENTS", gather)
    check(case)


@each(lora_gradient_update, [(150, 70, (40, 33), 5, 2, rule) for rule in RULES])
def test_tokens_split_or_not_move_to_the_same_bits(case, monkeypatch, products_of_any_tile):
    case = case.change(scale=0.625)
    monkeypatch.setattr(lora_gradient_plan, "CHUNK", 32)
    split = check(case)
    monkeypatch.setattr(lora_gradient_plan, "SMS", 1)
    assert same_bits(split, run(case))


def test_working_copies_are_the_masters_rounded():
    narrow = torch.float16 if INTERPRET else torch.bfloat16  # the interpreter cuts bfloat16 off instead of rounding it
    case = make_case(lora_gradient_update, (*SMALL, MOMENTUM))
    states = {name: replace(case[name], working=case[name].master.to(narrow), prior_rate=None) for name in ("a", "bt")}
    case.arguments.update(states)  # a third dtype, which a case does not have
    after = run(case)
    for name, before in states.items():
        assert torch.equal(after[f"{name}.working"], after[f"{name}.master"].to(narrow))
        assert not torch.equal(after[f"{name}.working"], before.working)


@each(lora_gradient_update, [(60, 70, (40, 33), 13, 2, rule) for rule in RULES], [torch.float32])
def test_tiles_move_in_slices(case, monkeypatch):
    monkeypatch.setattr(epilogue, "elements", lambda num_warps: 64 * 8)
    check(case)


@each(weight_gradient_update, [(*WEIGHT, rule) for rule in RULES], [torch.float32])
def test_tiles_of_a_weight_move_in_slices(case, monkeypatch):
    monkeypatch.setattr(epilogue, "elements", lambda num_warps: 64 * 8)
    monkeypatch.setitem(weight_gradient.TILES, torch.float32, [((64, 64, 16), 4, 2)])
    check(case)


@each(lora_gradient_update, [(*SMALL, PLAIN)], [torch.float32])
def test_nothing_that_the_rule_does_not_use_is_needed(case):
    check(case.change(a=UpdateState(case["a"].master), bt=UpdateState(case["bt"].master)))


def states(case):
    """What the op may change, before it does."""
    return {f"{name}.{field}": getattr(case[name], field) for name in ("a", "bt") for field in ("master", "first", "working")}


@each(lora_gradient_update, [RAGGED], [torch.float32])
def test_resting_and_skipped_streams_stay(case, tokens):
    case = case.spoil("moving", 0, 0).spoil("skipped", 1, 1)
    after, before = check(case), states(case)
    for slot, moves in zip(case["slots"].tolist(), (False, False, True)):
        for name in ("a.master", "bt.master", "a.first", "bt.working"):
            assert torch.equal(after[name][slot], before[name][slot]) != moves, (slot, name)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@each(lora_gradient_update, [RAGGED], [torch.float32])
def test_a_bad_element_keeps_its_state_and_its_stream_is_skipped(case, bad, tokens):
    spoilt = case.spoil("dU", (35, 2), bad)  # second stream: row 2 of its dA
    clean, dirty, before, slot = run(case), run(spoilt), states(case), int(case["slots"][1])
    assert dirty["skipped"].tolist() == [0, 1, 0]
    for name in ("a.master", "a.first", "a.working"):
        assert torch.equal(dirty[name][slot, 2], before[name][slot, 2])
        dirty[name][slot, 2] = clean[name][slot, 2]
    assert all(torch.equal(dirty[name], t) for name, t in clean.items() if name != "skipped")
    assert run(spoilt)["skipped"].tolist() == [0, 1, 0]  # programs are counted from zero again


@each(weight_gradient_update, [(*WEIGHT, MOMENTUM)], [torch.float32])
def test_a_bad_row_of_a_weight_keeps_its_state(case, tokens):
    case = case.spoil("dy", (3, int(case["rows"][4])))
    after, before = run(case), case["state"].master
    assert after["skipped"].tolist() == [1]
    assert torch.equal(after["state.master"][4], before[4]) and not torch.equal(after["state.master"][5], before[5])
    assert torch.isfinite(after["state.master"]).all()
    moved = replace(case["state"], master=after["state.master"], first=after["state.first"])
    once = run(case.change(state=moved, weight=after["weight"], skipped=after["skipped"]))  # skipped on entry
    assert torch.equal(once["state.master"], after["state.master"])


def test_errors_name_the_argument():
    case = make_case(lora_gradient_update, (*SMALL, RMS))
    with pytest.raises(ValueError, match=r"lora_gradient_update: a.stat is missing, a tensor is needed for rms with eps 0.01, decay 0.1"):
        run(case.change(a=replace(case["a"], stat=None)))
    case = make_case(weight_gradient_update, (*WEIGHT, RMS))
    with pytest.raises(ValueError, match=r"weight_gradient_update: state.stat has shape \[3, 3\], accepted is \[..., 30, 40\]"):
        run(case.change(state=replace(case["state"], stat=torch.rand(3, 3))))


REAL = [(4096, 2048, (2048, 512, 512), 16, 8), (4096, 576, (1536, 1536), 16, 1), (2048, 4096, (14336, 14336), 64, 4)]
REAL_WEIGHTS = [(4096, 8192, 2048, None), (512, 1536, 576, 154), (16384, 512, 2048, 52), (4096, 8192, 2048, 820)]


@real_sizes(lora_gradient_update, [(*size, rule) for size in REAL for rule in RULES], DTYPES)
def test_real_sizes(case):
    check(case)


@real_sizes(weight_gradient_update, [(*size, rule) for size in REAL_WEIGHTS for rule in RULES], DTYPES)
def test_real_sizes_of_a_weight(case):
    check(case)

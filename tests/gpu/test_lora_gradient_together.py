"""A layer's adapter gradients in one launch: against float64, with the bits of each alone, and what does not fit is launched alone."""

import pytest
import torch
from op_cases import make_case
from triton.runtime import interpreter

from dynadapt.bench import cases
from dynadapt.bench.cases.base import convert
from dynadapt.bench.cases.lora_gradient import lora_gradient
from dynadapt.kernels import lora_gradient as kernels
from dynadapt.kernels import lora_gradient_plan, lora_gradient_together

from .compare import DEVICE, DTYPES

# of a layer: inputs K, parts
LAYER = [(33, (65,)), (70, (33, 33)), (66, (33,)), (65, (20, 7, 9))]
ROWS, STREAMS = 70, 2


def layer(dtype, groups=LAYER, rank=5, rows=ROWS, streams=STREAMS, accumulate=False):
    """Calls of lora_gradient, and their cases."""
    made = [make_case(lora_gradient, (rows, k, parts, rank, streams, accumulate), dtype, dict(strided=True)) for k, parts in groups]
    made = [with_slots(case, made[0]["slots"]) for case in made]
    slots = made[0]["slots"].to(DEVICE)
    return made, [tuple({**on_device(case), "slots": slots}.values()) for case in made]


def with_slots(case, slots):
    """The same case for other slots: where nothing is added, these hold NaN before the call, and no others."""
    outputs = {name: case[name].nan_to_num(1.0) for name in ("dA", "dBt")}
    if not case["accumulate"]:
        for t in outputs.values():
            t[slots.long()] = float("nan")
    return case.change(slots=slots, **outputs)


def on_device(case) -> dict:
    return {name: convert(value, lambda t: cases.base.copy(t, device=DEVICE)) for name, value in case.arguments.items()}


def written(calls):
    return [t.clone() for call in calls for t in call[7:9]]


def one_by_one(calls):
    for call in calls:
        kernels.lora_gradient(*call)
    return written(calls)


def together(calls):
    kernels.lora_gradients(calls)
    return written(calls)


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x.nan_to_num(7), y.nan_to_num(7)) for x, y in zip(a, b))


def launches(monkeypatch) -> list[str]:
    """Names of the kernels launched from now on."""
    names, call = [], interpreter.GridExecutor.__call__

    def noted(self, *args, **kwargs):
        names.append(self.fn.__name__.removeprefix("dynadapt_"))
        return call(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", noted)
    return names


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_float64(dtype, accumulate):
    """Each group by the bound of the op's own test."""
    made, calls = layer(dtype, accumulate=accumulate)
    assert lora_gradient_together.fit(calls)
    kernels.lora_gradients(calls)
    for case, call in zip(made, calls):

        def copied(*arguments, done=call):
            for out, value in zip(arguments[7:9], done[7:9]):
                out.copy_(value)

        cases.check(case, "triton", DEVICE, function=copied)


@pytest.mark.parametrize("rank,groups", [(5, LAYER), (32, LAYER[::-1][:2])])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_are_those_of_each_alone(dtype, rank, groups, products_of_any_tile):
    for accumulate in (False, True):
        _, ours = layer(dtype, groups, rank, accumulate=accumulate)
        _, alone = layer(dtype, groups, rank, accumulate=accumulate)
        assert lora_gradient_together.fit(ours) and same(together(ours), one_by_one(alone))


def test_the_bits_are_those_of_each_alone_over_several_chunks(monkeypatch, products_of_any_tile):
    """There each alone splits its tokens."""
    for file in (lora_gradient_plan, lora_gradient_together):
        monkeypatch.setattr(file, "CHUNK", 32)
    monkeypatch.setattr(lora_gradient_together, "SMS", 20)
    _, ours = layer(torch.float32)
    _, alone = layer(torch.float32)
    assert lora_gradient_together.fit(ours) and same(together(ours), one_by_one(alone))


@pytest.mark.skipif(DEVICE != "cpu", reason="counts calls of the interpreter")
def test_what_fits_is_one_launch_and_what_does_not_is_one_each(monkeypatch):
    names = launches(monkeypatch)
    _, calls = layer(torch.float32)
    kernels.lora_gradients(calls)
    assert names == ["lora_gradient_together"]
    _, wide = layer(torch.float32, LAYER[:2], rank=33)
    _, few = layer(torch.float32, LAYER[:2], rows=1100, streams=1)
    _, other = layer(torch.float32, LAYER[:1], rank=3)
    ranks = [calls[1], *other[:1]]
    many = [(33, (65 * 200,))] * 2
    _, big = layer(torch.float32, many, rank=1, rows=4)
    for unfit in (wide, few, ranks, big, calls[:1], calls + calls[:1]):
        assert not lora_gradient_together.fit(unfit)
    names.clear()
    kernels.lora_gradients(few)
    assert names == ["lora_gradient", "lora_gradient_sum"] * 2


def test_a_bad_stream_and_a_bad_group_stay_alone():
    _, clean = layer(torch.float32)
    _, dirty = layer(torch.float32)
    slots = clean[0][6].long()
    for t in dirty[1][:4]:
        t[ROWS // STREAMS + 3] = float("nan")
    for i, (a, b) in enumerate(zip(together(clean), together(dirty))):
        bad = b[slots[1]]
        assert torch.equal(a[slots[0]], b[slots[0]])
        assert not bad.isfinite().any() if i in (2, 3) else torch.equal(a[slots[1]], bad)


def test_errors_are_the_ops():
    _, calls = layer(torch.float32)
    calls[2] = (*calls[2][:2], calls[2][2][:, :-1], *calls[2][3:])
    with pytest.raises(ValueError, match=r"lora_gradient: u has shape \[70, 4\], accepted is \[70, 5\]"):
        kernels.lora_gradients(calls)

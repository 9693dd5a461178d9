"""The optimizer step against its reference: every kind with every option, skipped streams, clipping, threads, errors."""

from dataclasses import fields

import pytest
import torch
from op_cases import DTYPES

import dynadapt.adapt.optimizers  # noqa: F401  (registers the kinds)
from dynadapt import _C
from dynadapt.bench.cases import Draw
from dynadapt.bench.cases.update import update
from dynadapt.ops import update as reference
from dynadapt.ops.update import UpdateRule, UpdateState

TENSORS = [f.name for f in fields(UpdateState)]
NUMBERS = [f.name for f in fields(UpdateRule)]
STATE = ["master", "grad", "first", "second", "working", "step", "norms", "skipped"]
KINDS = {
    "sgd": dict(kind="sgd"),
    "momentum": dict(kind="sgd", momentum=0.9),
    "adam": dict(kind="adam"),
    "adam without first": dict(kind="adam", beta1=0.0, first=None),
    "adamw": dict(kind="adamw", weight_decay=0.01),
    "rms": dict(kind="rms", eps=1e-3),
    "lion": dict(kind="lion", beta2=0.99, weight_decay=0.01),
    "lion without first": dict(kind="lion", beta1=0.0, first=None),
}


def make(p, dtype, streams=2, grad_scale=1.0, **change):
    """The op's case as one dict of its arguments and of the fields of its state and rule."""
    case = update(Draw(dtype), p, streams, UpdateRule("sgd", beta1=0.9, beta2=0.999, eps=1e-8))
    values = {**vars(case["state"]), **vars(case["rule"]), **case.arguments}
    return {**values, "grad": values["grad"] * grad_scale, **change}


def call(function, values):
    """An update op, with state and rule of the values of their fields' names."""
    state, rule = (of(**{name: values[name] for name in names}) for of, names in ((UpdateState, TENSORS), (UpdateRule, NUMBERS)))
    function(state, rule, values["slots"], values["lr"], values["norms"], values["skipped"])


def run(values, backend="cpu", wide=False):
    """All arguments after the call, on copies; ``wide``: everything in float64."""
    cast = lambda t: t.double() if wide and t.is_floating_point() else t.clone()  # noqa: E731
    copies = {k: cast(v) if isinstance(v, torch.Tensor) else v for k, v in values.items()}
    call(_C.update if backend == "cpu" else reference.update, copies)
    return copies


def decided(values):
    """[slots, P]: where Lion's direction is not so near to zero that rounding chooses its sign; all of it for the others."""
    g, first = values["grad"].double(), values["first"]
    if values["kind"] != "lion":
        return torch.ones_like(g, dtype=torch.bool)
    if values["clip"]:
        g = g * (values["clip"] / (g.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)
    return (g if first is None else values["beta1"] * first + (1 - values["beta1"]) * g).abs() > 1e-6


def compare(values, run=run):
    ours, plain, truth = run(values), run(values, "reference"), run(values, "reference", wide=True)
    chosen = values["slots"][values["slots"] >= 0].long()
    rest = [s for s in range(values["master"].shape[0]) if s not in chosen]
    for name in STATE:
        if ours[name] is None:
            continue
        if not ours[name].is_floating_point():
            assert torch.equal(ours[name], truth[name]), name
            continue
        per_slot = ours[name].dim() == 2
        o, p, t = (x[name][chosen if per_slot else slice(None)].double() for x in (ours, plain, truth))
        if per_slot:
            o, p, t = (x[decided(values)[chosen]] for x in (o, p, t))
        assert torch.isfinite(o).all(), name
        bound = (p - t).abs().max() + 4 * 2.0**-24 * t.abs().max()  # a few roundings of float32 in another order
        assert (o - t).abs().max() <= bound, name
        if per_slot:
            assert torch.equal(ours[name][rest].nan_to_num(7), values[name][rest].nan_to_num(7)), name
    if ours["working"] is not None:
        assert torch.equal(ours["working"][chosen], ours["master"][chosen].to(ours["working"].dtype))
    return ours


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [1, 63, 100, 16384, 40001])
def test_against_reference(kind, p, dtype):
    compare(make(p, dtype, **KINDS[kind]))
    compare(make(p, dtype, **KINDS[kind], decay=0.03, clip=0.5))
    compare(make(p, dtype, **KINDS[kind], decay=0.03, clip=1e9, prior_rate=None, working=None))


def factors(p: int) -> torch.Tensor:
    """[P] rates' factors, with zeros and ones among them."""
    drawn = 3 * torch.rand(p, generator=torch.Generator().manual_seed(2))
    return torch.where(torch.arange(p) % 3 == 0, (torch.arange(p) % 2).float(), drawn)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [1, 63, 16390])
def test_elements_may_have_rates_of_their_own(kind, p, run=run):
    values = make(p, torch.bfloat16, **KINDS[kind], decay=0.03, clip=0.5, rate_factor=factors(p))
    ours = compare(values, run)
    plain = run({**values, "rate_factor": None})
    for name in STATE:
        if ours[name] is None:
            continue
        if name not in ("master", "working"):  # what a factor does not reach: moments, norms, counts
            assert torch.allclose(ours[name].nan_to_num(7), plain[name].nan_to_num(7), rtol=1e-6, atol=1e-7), (
                name
            )  # g++ contracts either as it likes
    chosen, still = values["slots"].long(), factors(p) == 0
    before, prior = values["master"][chosen][:, still], values["prior"][still]
    share = 0.03 * values["prior_rate"][still]
    assert torch.allclose(ours["master"][chosen][:, still], before + share * (prior - before), rtol=1e-6, atol=1e-6)
    if p > 1:
        assert not torch.equal(ours["master"], plain["master"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [1, 63, 16390])
def test_slots_may_have_priors_of_their_own(kind, p):
    ours = compare(make(p, torch.bfloat16, **KINDS[kind], decay=0.3, prior=torch.randn(4, p, generator=torch.Generator().manual_seed(1))))
    assert ours["prior"].shape == (4, p)
    with pytest.raises(ValueError, match=rf"update: prior has shape \[3, {p}\], accepted is \[4, {p}\]"):
        run(make(p, torch.float32, **KINDS[kind], decay=0.3, prior=torch.zeros(3, p)))


def test_first_step_needs_no_history():
    values = make(
        100, torch.float32, kind="adam", first=torch.zeros(4, 100), second=torch.zeros(4, 100), step=torch.zeros(4, dtype=torch.int32)
    )
    compare(values)


def test_zero_learning_rate_changes_no_bit():
    for options in KINDS.values():
        values = make(1000, torch.float32, lr=torch.zeros(4), **{**options, "weight_decay": 0.0})
        assert torch.equal(run(values)["master"], values["master"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_with_a_bad_gradient_is_skipped(kind, bad):
    values = make(20000, torch.bfloat16, streams=3, **KINDS[kind], decay=0.01, clip=1.0)
    clean = run(values)
    slot = int(values["slots"][1])
    values["grad"][slot, 17777] = bad
    ours = run(values)
    assert ours["skipped"].tolist() == [0, 1, 0]
    assert not torch.isfinite(ours["norms"][1])
    assert (ours["grad"][slot] == 0).all()
    for name in ("master", "first", "second", "step"):
        if ours[name] is not None:
            assert torch.equal(ours[name][slot], values[name][slot]), name
    assert ours["working"][slot].isnan().all()  # untouched
    for name in STATE[:6]:
        for other in values["slots"][[0, 2]].tolist():
            if ours[name] is not None:
                assert torch.equal(ours[name][other], clean[name][other]), name


@pytest.mark.parametrize("kind", KINDS)
def test_resting_streams_keep_everything(kind):
    values = make(20000, torch.bfloat16, streams=4, **KINDS[kind], decay=0.01, clip=1.0)
    slots = values["slots"].clone()
    values["grad"][slots[0], 3] = float("nan")  # a gradient that nobody looks at
    moving = {"slots": slots[[1, 3]], "norms": torch.zeros(2), "skipped": torch.zeros(2, dtype=torch.int32)}
    clean = run({**values, **moving})
    values["slots"][[0, 2]] = -1
    ours, plain = run(values), run(values, "reference")
    assert ours["norms"][[0, 2]].tolist() == plain["norms"][[0, 2]].tolist() == [0, 0]
    assert ours["norms"][[1, 3]].tolist() == clean["norms"].tolist()
    assert ours["skipped"].tolist() == plain["skipped"].tolist() == [0, 0, 0, 0]
    for name in STATE[:6]:
        for slot in range(6) if ours[name] is not None else ():
            before = clean if slot in slots[[1, 3]] else values
            assert torch.equal(ours[name][slot].nan_to_num(7), before[name][slot].nan_to_num(7)), name


def test_huge_gradients_are_clipped_not_skipped():
    values = make(1000, torch.float32, kind="sgd", clip=1.0, grad_scale=1e30)
    ours = compare(values)
    assert ours["skipped"].tolist() == [0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_streams_change_no_bit(kind):
    values = make(50000, torch.bfloat16, streams=3, **KINDS[kind], decay=0.01, clip=0.3)
    results = []
    try:
        for threads in (1, 2, 5):
            _C.set_num_threads(threads)
            results.append(run(values))
    finally:
        _C.set_num_threads(0)
    alone = values
    for i in range(3):
        single = dict(alone, slots=values["slots"][i : i + 1], norms=torch.zeros(1), skipped=torch.zeros(1, dtype=torch.int32))
        alone = {**single, **{k: v for k, v in run(single).items() if k in STATE}}
    for other in results[1:] + [{**alone, "norms": results[0]["norms"], "skipped": results[0]["skipped"]}]:
        for name in STATE:
            if other[name] is not None:
                assert torch.equal(results[0][name].nan_to_num(7), other[name].nan_to_num(7)), name


def test_errors_name_the_argument():
    broken = lambda **change: run(make(10, torch.float32, **{"kind": "adam", **change}))  # noqa: E731
    with pytest.raises(ValueError, match=r"update: kind is adagrad, accepted is sgd, adam, adamw, rms, lion"):
        broken(kind="adagrad")
    with pytest.raises(ValueError, match=r"update: slots\[0\] and slots\[1\] are both 1, accepted is each slot once"):
        broken(slots=torch.tensor([1, 1], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"update: slots\[1\] is -2, accepted is 0 to 3, or -1"):
        broken(slots=torch.tensor([1, -2], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"update: second is missing, a tensor is needed for adam and adamw"):
        broken(second=None)
    with pytest.raises(ValueError, match=r"update: first is missing, a tensor is needed where beta1 is 0.9"):
        broken(first=None)
    with pytest.raises(ValueError, match=r"update: prior is missing, a tensor is needed where decay is 0.1"):
        broken(prior=None, decay=0.1)
    with pytest.raises(ValueError, match=r"update: stat is missing"):
        broken(kind="rms", stat=None)
    with pytest.raises(ValueError, match=r"update: rate_factor has shape \[9\], accepted is \[10\]"):
        broken(rate_factor=torch.ones(9))
    with pytest.raises(ValueError, match=r"update: lr has shape \[2\], accepted is \[4\]"):
        broken(lr=torch.zeros(2))

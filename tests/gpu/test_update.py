"""The optimizer step on the GPU against its reference: every kind and option, resting and skipped streams, clipping."""

import pytest
import torch
from native import test_update as native
from native.test_update import KINDS, STATE, call, make

from dynadapt.kernels import update as kernels
from dynadapt.kernels.common import INTERPRET
from dynadapt.ops.dispatch import resolve

from .compare import DEVICE, DTYPES, skip_without_gpu


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks and programs at sizes that the interpreter can do; the blocks of the GPU are those of the file."""
    if INTERPRET:
        monkeypatch.setattr(kernels, "SQUARES_BLOCK", 256)
        monkeypatch.setattr(kernels, "APPLY_BLOCK", 512)


def run(values, backend="triton", wide=False):
    """All arguments after the call, on copies; ``wide``: everything in float64."""
    cast = lambda t: t.double() if wide and t.is_floating_point() else t.clone()  # noqa: E731
    copies = {k: cast(v).to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in values.items()}
    function = kernels.update if backend == "triton" else resolve("update", backend, torch.float32).function
    call(function, copies)
    return {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in copies.items()}


def compare(values):
    return native.compare(values, run)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [1, 63, 1100])
def test_against_reference(kind, p, dtype):
    compare(make(p, dtype, **KINDS[kind]))
    compare(make(p, dtype, **KINDS[kind], decay=0.03, clip=0.5))
    compare(make(p, dtype, **KINDS[kind], decay=0.03, clip=1e9, prior_rate=None, working=None))


@pytest.mark.parametrize("kind", KINDS)
def test_slots_may_have_priors_of_their_own(kind):
    compare(make(1100, torch.bfloat16, **KINDS[kind], decay=0.3, prior=torch.randn(4, 1100)))


@pytest.mark.parametrize("kind", KINDS)
def test_elements_may_have_rates_of_their_own(kind):
    native.test_elements_may_have_rates_of_their_own(kind, 1100, run)


def test_norm_over_several_blocks_a_program(monkeypatch):
    monkeypatch.setattr(kernels, "GROUPS", 2)
    compare(make(1300, torch.float32, kind="sgd", clip=0.5))


@pytest.mark.parametrize("steps", [0, 1, 77, 10**6])
def test_corrections_at_every_age(steps):
    compare(make(100, torch.float32, kind="adam", step=torch.full((4,), steps, dtype=torch.int32), lr=torch.ones(4)))


@pytest.mark.parametrize("kind", KINDS)
def test_resting_streams_keep_everything(kind):
    values = make(100, torch.bfloat16, streams=3, **KINDS[kind], decay=0.01, clip=1.0)
    slots = values["slots"]
    values["slots"] = torch.tensor([-1, slots[1], -1], dtype=torch.int32)
    values["grad"][slots[0].item(), 3] = float("nan")
    ours = run(values)
    assert ours["norms"][0] == ours["norms"][2] == 0 and ours["skipped"].tolist() == [0, 0, 0]
    assert not torch.equal(ours["master"][slots[1]], values["master"][slots[1]])
    for name in STATE[:6]:
        for slot in (s for s in range(5) if s != slots[1] and ours[name] is not None):
            assert torch.equal(ours[name][slot].nan_to_num(7), values[name][slot].nan_to_num(7)), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_with_a_bad_gradient_is_skipped(kind, bad):
    values = make(1100, torch.bfloat16, streams=3, **KINDS[kind], decay=0.01, clip=1.0)
    clean = run(values)
    slot = int(values["slots"][1])
    values["grad"][slot, 1077] = bad
    ours = run(values)
    assert ours["skipped"].tolist() == [0, 1, 0] and not torch.isfinite(ours["norms"][1])
    assert (ours["grad"][slot] == 0).all() and ours["working"][slot].isnan().all()
    for name in ("master", "first", "second", "step"):
        if ours[name] is not None:
            assert torch.equal(ours[name][slot], values[name][slot]), name
    for name in STATE[:6]:
        for other in values["slots"][[0, 2]].tolist():
            if ours[name] is not None:
                assert torch.equal(ours[name][other], clean[name][other]), name


def test_huge_gradients_are_clipped_not_skipped():
    ours = compare(make(1000, torch.float32, kind="sgd", clip=1.0, grad_scale=1e30))
    assert ours["skipped"].tolist() == [0, 0]


def test_zero_learning_rate_changes_no_bit():
    for options in KINDS.values():
        values = make(1000, torch.float32, lr=torch.zeros(4), **{**options, "weight_decay": 0.0})
        assert torch.equal(run(values)["master"], values["master"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_alone_has_the_same_bits(kind):
    values = make(1100, torch.bfloat16, streams=3, **KINDS[kind], decay=0.01, clip=0.3)
    together = run(values)
    slot = int(values["slots"][2])
    alone = run(dict(values, slots=values["slots"][2:], norms=torch.zeros(1), skipped=torch.zeros(1, dtype=torch.int32)))
    assert alone["norms"][0] == together["norms"][2]
    for name in STATE[:6]:
        if alone[name] is not None:
            assert torch.equal(alone[name][slot], together[name][slot]), name


def test_errors_name_the_argument():
    broken = lambda **change: run(make(10, torch.float32, **{"kind": "adam", **change}))  # noqa: E731
    for change, text in (
        (dict(kind="adagrad"), "kind='adagrad'"),
        (dict(second=None), "second is missing"),
        (dict(first=None), "first is missing"),
        (dict(prior=None, decay=0.1), "prior is missing"),
        (dict(kind="rms", stat=None), "stat is missing"),
        (dict(lr=torch.zeros(2)), r"lr has shape \[2\]"),
    ):
        with pytest.raises(ValueError, match=text):
            broken(**change)


@pytest.mark.gpu
@skip_without_gpu
@pytest.mark.parametrize("p", [4_884_480, 11_272_192 + 1])
@pytest.mark.parametrize("kind", KINDS)
def test_real_sizes(kind, p):
    compare(make(p, torch.bfloat16, streams=4, **KINDS[kind], decay=0.01, clip=1.0))


@pytest.mark.gpu
@skip_without_gpu
def test_more_than_two_to_the_31_elements():
    p = 2**30 + 4  # the third slot begins behind 2^31
    values = make(4, torch.bfloat16, kind="sgd", clip=1.0, working=None)
    master, grad = (torch.zeros(3, p, device=DEVICE) for _ in range(2))
    grad[2, -1] = 3
    small = {k: v[:3].to(DEVICE) for k, v in values.items() if k in ("lr", "step", "norms", "skipped")}
    large = dict(master=master, grad=grad, slots=torch.tensor([2, -1], dtype=torch.int32, device=DEVICE))
    unused = dict.fromkeys(("first", "second", "prior", "stat", "prior_rate"))
    arguments = {**values, **small, **large, **unused}
    call(kernels.update, arguments)
    assert small["norms"].tolist() == [3, 0]
    assert master[2, -1].item() == pytest.approx(-float(small["lr"][2]), rel=1e-5) and master.count_nonzero() == 1 and not grad.any()


@pytest.mark.gpu
@skip_without_gpu
def test_a_captured_graph_replays_with_new_values():
    values = make(50_000, torch.bfloat16, kind="adam", decay=0.01, clip=1.0)
    eager, captured, first = (
        {k: v.to(DEVICE, copy=True) if isinstance(v, torch.Tensor) else v for k, v in values.items()} for _ in range(3)
    )
    call(kernels.update, first)  # loads the kernels and makes the scratch
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(kernels.update, captured)
    for factor in (1, 3):
        for one in (eager, captured):
            one["grad"].copy_(values["grad"] * factor)
            one["lr"].fill_(0.01 * factor)
        graph.replay()
        call(kernels.update, eager)
    assert captured["step"].tolist() != values["step"].tolist()
    for name in STATE:
        assert torch.equal(captured[name].nan_to_num(7), eager[name].nan_to_num(7)), name

"""The optimizer step in CUDA C++, on a GPU: the cases of the Triton kernel, and what is particular to this one."""

import pytest
import torch
from native.test_update import KINDS, NAMES, STATE, make

from dynadapt import _C
from dynadapt.kernels import update_cuda
from dynadapt.ops.dispatch import resolve

from . import test_update as cases
from .compare import DEVICE, skip_without_gpu
from .test_update import (  # noqa: F401  (collected here once more, see in_cuda)
    test_a_stream_alone_has_the_same_bits,
    test_a_stream_with_a_bad_gradient_is_skipped,
    test_against_reference,
    test_corrections_at_every_age,
    test_huge_gradients_are_clipped_not_skipped,
    test_real_sizes,
    test_resting_streams_keep_everything,
    test_zero_learning_rate_changes_no_bit,
)

pytestmark = [pytest.mark.gpu, skip_without_gpu]


@pytest.fixture(autouse=True)
def in_cuda(monkeypatch):
    """The cases of test_update run this implementation, with whatever is left in its workspace."""
    assert _C.cuda_status() == "available", _C.cuda_status()

    def update(*arguments):
        poison = lambda device, name, *shape, dtype: torch.full(shape, float("nan"), dtype=dtype, device=device)  # noqa: E731
        with monkeypatch.context() as patch:
            patch.setattr(update_cuda, "scratch", poison)
            update_cuda.update(*arguments)

    monkeypatch.setattr(cases.kernels, "update", update)


def on_device(values, offset=0):
    """Copies on the GPU; with an ``offset`` rows start where 16-byte accesses can't."""

    def copy(t):
        memory = torch.empty(t.numel() + offset, dtype=t.dtype, device=DEVICE)
        return memory[offset:].view(t.shape).copy_(t)

    return {k: copy(v) if isinstance(v, torch.Tensor) else v for k, v in values.items()}


def call(values):
    update_cuda.update(*(values[name] for name in NAMES))
    return values


def assert_same(ours, theirs):
    for name in STATE:
        if ours[name] is not None:
            assert torch.equal(ours[name].nan_to_num(7), theirs[name].nan_to_num(7)), name


def test_dispatch_prefers_it():
    choice = resolve("update", "triton", torch.bfloat16)
    assert choice.function is update_cuda.update and choice.reason.startswith("CUDA C++, csrc/cuda")


@pytest.mark.parametrize("kind", KINDS)
def test_wide_and_narrow_accesses_give_the_same_bits(kind):
    values = make(100_000, torch.bfloat16, **KINDS[kind], decay=0.03, clip=0.5)
    assert_same(call(on_device(values)), call(on_device(values, offset=1)))


def test_more_than_two_to_the_31_elements():
    p = 2**30 + 4  # the third slot begins behind 2^31
    values = make(4, torch.bfloat16, kind="sgd", clip=1.0, working=None)
    master, grad = (torch.zeros(3, p, device=DEVICE) for _ in range(2))
    grad[2, -1] = 3
    small = {k: v.to(DEVICE) for k, v in values.items() if k in ("lr", "step", "norms", "skipped")}
    lr = float(small["lr"][2])
    call(
        {
            **values,
            **small,
            "master": master,
            "grad": grad,
            "first": None,
            "second": None,
            "prior": None,
            "stat": None,
            "prior_rate": None,
            "slots": torch.tensor([2, -1], dtype=torch.int32, device=DEVICE),
        }
    )
    assert small["norms"].tolist() == [3, 0]
    assert master[2, -1].item() == pytest.approx(-lr, rel=1e-5) and master.count_nonzero() == 1 and not grad.any()


def test_a_captured_graph_replays_with_new_values():
    values = make(50_000, torch.bfloat16, kind="adam", decay=0.01, clip=1.0)
    eager, captured = on_device(values), on_device(values)
    call(on_device(values))  # loads the kernels and makes the workspace
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(captured)
    for factor in (1, 3):
        for one in (eager, captured):
            one["grad"].copy_(values["grad"] * factor)
            one["lr"].fill_(0.01 * factor)
        graph.replay()
        call(eager)
    assert captured["step"].tolist() != values["step"].tolist()
    assert_same(captured, eager)


def test_it_runs_on_the_current_stream():
    values = on_device(make(1000, torch.bfloat16, kind="adam"))
    call(on_device(make(1000, torch.bfloat16, kind="adam")))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # clock cycles: a tenth of a second
        call(values)
    assert not side.query()
    untouched = torch.isnan(values["norms"])  # on the default stream, while the other still sleeps
    side.synchronize()
    assert untouched.all() and torch.isfinite(values["norms"]).all()


def test_what_is_no_slot_is_reported_and_touches_nothing():
    values = make(1000, torch.bfloat16, streams=3, kind="adam", clip=1.0)
    values["slots"][1:] = torch.tensor([99, -7])
    ours = call(on_device(values))
    assert ours["skipped"].tolist() == [0, 1, 1] and ours["norms"].isnan().tolist() == [False, True, True]
    rest = [s for s in range(4) if s != values["slots"][0]]
    for name in STATE[:6]:
        assert torch.equal(ours[name][rest].cpu().nan_to_num(7), values[name][rest].nan_to_num(7)), name


def test_errors_name_the_argument():
    values = make(10, torch.float32, kind="adam")
    for change, text in (
        (dict(kind="lion"), "kind is lion"),
        (dict(second=None), "second is missing"),
        (dict(grad=values["grad"]), "grad is on the CPU, accepted is cuda:0, like master"),
        (dict(lr=torch.zeros(2, device=DEVICE)), r"lr has shape \[2\]"),
    ):
        with pytest.raises(ValueError, match=text):
            call({**on_device(values), **change})

"""The emulator finds what was planted: each kernel here has one fault of those it looks for, or none."""

import pytest
import torch
import triton
import triton.language as tl

from dynadapt.kernels.common import scratch

from .compare import DEVICE
from .emulator import Finding, checked

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the interpreter is off")
N, BLOCK = 40, 16
PROGRAMS = triton.cdiv(N, BLOCK)


@triton.jit
def copies(x, y, n, BLOCK: tl.constexpr, ahead: tl.constexpr = 0, wrong_mask: tl.constexpr = 0):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at + ahead, mask=at < n, other=0.0), mask=at < n + wrong_mask)


@triton.jit
def reads_a_neighbour(x, y, n, BLOCK: tl.constexpr):
    """Each program writes its block of y, and reads what is in front of it."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    before = tl.load(y + at - BLOCK, mask=(at >= BLOCK) & (at < n), other=0.0)
    tl.store(y + at, tl.load(x + at, mask=at < n, other=0.0) + before, mask=at < n)


@triton.jit
def overlapping_stores(x, y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * (BLOCK - 1) + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < n, other=0.0), mask=at < n)


@triton.jit
def one_place(x, y, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at // 2, tl.load(x + at))


@triton.jit
def far(x, y, n, BLOCK: tl.constexpr):
    row = tl.program_id(0) + 65_536
    tl.store(y + tl.arange(0, BLOCK), tl.load(x + row * 65_536 * 0 + tl.arange(0, BLOCK)))


@triton.jit
def last_sums(x, sums, counter, total, n, BLOCK: tl.constexpr, counts: tl.constexpr = True, late: tl.constexpr = False):
    """The program that counts last adds up what all have written: before they count, or ``late``, or without any counting."""
    i = tl.program_id(0)
    at = i * BLOCK + tl.arange(0, BLOCK)
    value = tl.sum(tl.load(x + at, mask=at < n, other=0.0))
    if not late:
        tl.store(sums + i, value)
    if counts:
        before = tl.atomic_add(counter, 1)
    else:
        before = i
    if late:
        tl.store(sums + i, value)
    if before == tl.num_programs(0) - 1:
        which = tl.arange(0, BLOCK)
        tl.store(total, tl.sum(tl.load(sums + which, mask=which < tl.num_programs(0), other=0.0)))


def tensors():
    return torch.arange(N, dtype=torch.float32), torch.zeros(N)


def run(kernel, seed=0, **options):
    x, y = tensors()
    with checked(seed):
        kernel[(PROGRAMS,)](x, y, N, BLOCK=BLOCK, **options)
    return x, y


@pytest.mark.parametrize("seed", [0, 1, "reversed", "as it is"])
def test_a_sound_kernel_passes(seed):
    x, y = run(copies, seed)
    assert torch.equal(x, y)


@pytest.mark.parametrize(
    "kernel, options, said",
    [
        (copies, {"ahead": 1}, r"load out of bounds, 0 bytes behind the end of x"),
        (copies, {"ahead": -1}, r"load out of bounds, -?\d+ bytes behind the end of"),
        (copies, {"wrong_mask": 2}, r"store out of bounds, [04] bytes behind the end of y"),
        (reads_a_neighbour, {}, r"(reads what another program wrote|writes what another program read), in y"),
        (overlapping_stores, {}, r"writes what another program wrote, in y"),
        (one_place, {}, r"two lanes of one store write the same place of y"),
        (far, {}, r"int32 overflow: mul gives \d{10}"),
    ],
)
@pytest.mark.parametrize("seed", [0, "reversed"])
def test_a_fault_is_found(kernel, options, said, seed):
    with pytest.raises(Finding, match=f"{kernel.fn.__name__}, program .*{said}"):
        run(kernel, seed, **options)


@pytest.mark.parametrize("seed", [0, 1, "reversed", "as it is"])
def test_an_atomic_orders_what_stands_before_it_alone(seed):
    def add_up(**options):
        x, sums = torch.arange(N, dtype=torch.float32), torch.zeros(PROGRAMS)
        counter, total = torch.zeros(1, dtype=torch.int32), torch.zeros(1)
        with checked(seed):
            last_sums[(PROGRAMS,)](x, sums, counter, total, N, BLOCK=BLOCK, **options)
        return x.sum() - total

    assert add_up() == 0
    for fault in ({"late": True}, {"counts": False}):
        with pytest.raises(
            Finding, match="last_sums, program .*: (reads what another program wrote|writes what another program read), in sums"
        ):
            add_up(**fault)


def test_views_of_one_storage_keep_their_own_bounds():
    """The gap between two slices is nobody's."""
    whole = torch.zeros(3 * N)
    with checked(), pytest.raises(Finding, match="out of bounds"):
        copies[(PROGRAMS,)](whole[:N], whole[2 * N :], N, BLOCK=BLOCK, wrong_mask=-N, ahead=N)
    with checked():
        copies[(PROGRAMS,)](whole[:N], whole[2 * N :], N, BLOCK=BLOCK)


def test_scratch_is_poisoned():
    with checked():
        assert scratch("cpu", "made up", 3).isnan().all()
        assert (scratch("cpu", "made up", 3, dtype=torch.int32) == -7).all()
        assert (scratch("cpu", "programs done", 3, dtype=torch.int64) == 0).all()


def test_it_leaves_the_interpreter_as_it_was():
    x, y = tensors()
    with checked():
        pass
    copies[(PROGRAMS,)](x, torch.zeros(N + 1), N, BLOCK=BLOCK, wrong_mask=1)  # inside its allocation, outside its tensor's n: no matter

"""The adapters' gradient against its reference, at odd sizes, and independent of batching and threads."""

import pytest
import torch

from dynadapt import _C

from .compare import DTYPES, Out, acts, check, run, threads_change_no_bit

# rows N, streams S, inputs K, parts, rank
LORA = [(1, 1, 5, (3,), 1), (63, 1, 65, (33, 7, 7), 3), (100, 2, 96, (130,), 16), (126, 3, 77, (64, 31), 33), (512, 1, 64, (96, 32), 16)]


def lora_arguments(case, dtype, accumulate):
    n, streams, k, parts, rank = case
    out, width, count = sum(parts), len(parts) * rank, streams + 2
    slots = torch.randperm(count)[:streams].int()
    flat = torch.randn(count, width * k + rank * out + 3)
    dA = flat[:, : width * k].unflatten(1, (width, k))
    dBt = flat[:, width * k : -3].unflatten(1, (rank, out))
    return [
        acts(n, out, dtype=dtype),
        acts(n, k, dtype=dtype),
        acts(n, width, dtype=dtype),
        acts(n, width, dtype=dtype),
        parts,
        0.5,
        slots,
        Out(dA, wide=True),
        Out(dBt, wide=True),
        accumulate,
    ]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LORA, ids=str)
def test_lora_gradient(case, dtype, accumulate):
    check("lora_gradient", lora_arguments(case, dtype, accumulate), dtype)


def test_lora_gradient_writes_whole_slots_and_only_those():
    arguments = lora_arguments(LORA[3], torch.float32, False)
    slots, dA = arguments[6].long(), arguments[7].tensor
    others = torch.tensor([s for s in range(dA.shape[0]) if s not in slots])
    arguments[7].tensor = dA.clone()
    arguments[7].tensor[slots] = float("nan")
    out, _ = run("lora_gradient", arguments, torch.float32)
    assert torch.isfinite(out).all()
    assert torch.equal(out[others], dA[others])


@pytest.mark.parametrize("dtype", DTYPES)
def test_lora_gradient_of_streams_batched_equals_streams_alone(dtype):
    n, streams, k, parts, rank = case = (120, 3, 65, (40, 33), 7)
    arguments = lora_arguments(case, dtype, False)
    together = run("lora_gradient", arguments, dtype)
    t = n // streams
    arguments[0][0] = float("nan")  # and a bad row in the first stream is seen by no other
    for s in range(1, streams):
        rows, slot = slice(s * t, (s + 1) * t), arguments[6][s : s + 1]
        alone = [a[rows] for a in arguments[:4]] + arguments[4:6] + [slot] + arguments[7:]
        for whole, single in zip(together, run("lora_gradient", alone, dtype)):
            assert torch.equal(whole[slot.long()], single[slot.long()])


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_no_bit(dtype):
    threads_change_no_bit("lora_gradient", lora_arguments(LORA[2], dtype, True), dtype)


def test_errors_name_the_argument():
    call = lora_arguments((10, 2, 6, (4,), 2), torch.float32, False)
    call = [c.tensor if isinstance(c, Out) else c for c in call]
    _C.lora_gradient(*call)
    with pytest.raises(ValueError, match=r"lora_gradient: slots has 1 more than once"):
        _C.lora_gradient(*call[:6], torch.tensor([1, 1], dtype=torch.int32), *call[7:])
    with pytest.raises(ValueError, match=r"part_sizes add up to 5, accepted is the width of dy, 4"):
        _C.lora_gradient(*call[:4], [2, 3], *call[5:])

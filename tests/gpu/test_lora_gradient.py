"""Adapter gradients in Triton against their reference: odd sizes, several parts, split tokens, streams that stay alone."""

import pytest
import torch

from dynadapt.kernels import lora_gradient as kernels

from .compare import DTYPES, Out, acts, check, run, skip_without_gpu

# rows N, streams S, inputs K, parts, rank
CASES = [(1, 1, 5, (3,), 1), (63, 1, 65, (33, 7, 7), 3), (100, 2, 96, (130,), 16), (126, 3, 77, (64, 31), 33)]
REAL = [
    (4096, 8, 2048, (2048, 512, 512), 16),
    (4096, 1, 2048, (8192, 8192), 16),
    (512, 1, 576, (576, 192, 192), 16),
    (3000, 3, 1536, (576,), 8),
    (4096, 8, 4096, (14336, 14336), 64),
    (2048, 2, 4096, (4096, 1024, 1024), 128),
    (32768, 64, 2048, (8192, 8192), 16),
]


def arguments(case, accumulate, dtype=torch.float32):
    n, streams, k, parts, rank = case
    out, width, count = sum(parts), len(parts) * rank, streams + 2
    flat = torch.randn(count, width * k + rank * out + 3)
    dA = flat[:, : width * k].unflatten(1, (width, k))
    dBt = flat[:, width * k : -3].unflatten(1, (rank, out))
    u = acts(n, width, dtype=dtype)
    return [
        acts(n, out + 5, dtype=dtype)[:, :out],
        acts(n, k + 3, dtype=dtype)[:, :k],
        u,
        acts(n, width, dtype=dtype) / n**0.5,
        list(parts),
        0.5,
        torch.randperm(count)[:streams].int(),
        Out(dA, wide=True),
        Out(dBt, wide=True),
        accumulate,
    ]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_reference(case, dtype, accumulate):
    check("lora_gradient", arguments(case, accumulate), dtype)


@pytest.fixture
def chunks_of_32(monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", 32)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_split_or_not_give_the_same_bits(dtype, accumulate, chunks_of_32, monkeypatch):
    call = arguments((150, 2, 70, (40, 33), 5), accumulate)
    split = check("lora_gradient", call, dtype)
    monkeypatch.setattr(kernels, "SMS", 1)
    whole = run("lora_gradient", call, dtype)
    for a, b in zip(split, whole):
        assert torch.equal(a, b)


def test_whole_slots_are_written_and_only_those():
    call = arguments(CASES[3], False)
    slots, before = call[6].long(), [call[7].tensor.clone(), call[8].tensor.clone()]
    for i, out in enumerate(before):
        call[7 + i].tensor = out.clone()
        call[7 + i].tensor[slots] = float("nan")
    others = torch.tensor([s for s in range(before[0].shape[0]) if s not in slots])
    for out, old in zip(run("lora_gradient", call, torch.float32), before):
        assert torch.isfinite(out).all()
        assert torch.equal(out[others].cpu(), old[others])


@pytest.mark.parametrize("dtype", DTYPES)
def test_streams_stand_alone_and_a_bad_row_stays_in_its_stream(dtype, chunks_of_32):
    n, streams = 120, 3
    call = arguments((n, streams, 65, (40, 33), 7), False)
    together = run("lora_gradient", call, dtype)
    t = n // streams
    for i in range(4):
        call[i][t - 1] = float("nan")
    dirty = run("lora_gradient", call, dtype)
    for s in range(1, streams):
        rows, slot = slice(s * t, (s + 1) * t), call[6][s : s + 1]
        alone = run("lora_gradient", [a[rows] for a in call[:4]] + call[4:6] + [slot] + call[7:], dtype)
        for a, b, c in zip(together, dirty, alone):
            assert torch.equal(a[slot.long()], b[slot.long()])
            assert torch.equal(a[slot.long()], c[slot.long()])
    assert not torch.isfinite(dirty[0][call[6][0].long()]).all()


def test_errors_name_the_argument():
    call = [c.tensor if isinstance(c, Out) else c for c in arguments((10, 2, 6, (4,), 2), False)]
    with pytest.raises(ValueError, match=r"lora_gradient: part_sizes add up to 5, accepted is the width of dy, 4"):
        kernels.lora_gradient(*call[:4], [2, 3], *call[5:])
    with pytest.raises(ValueError, match=r"lora_gradient: u has shape \[9, 2\], accepted is \[10, 2\]"):
        kernels.lora_gradient(*call[:2], call[2][:9], *call[3:])
    with pytest.raises(ValueError, match=r"lora_gradient: slots has 3 entries for 10 rows"):
        kernels.lora_gradient(*call[:6], torch.zeros(3, dtype=torch.int32), *call[7:])


@pytest.mark.gpu
@skip_without_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", REAL, ids=str)
def test_real_sizes(case, dtype):
    check("lora_gradient", arguments(case, False, torch.bfloat16), dtype)

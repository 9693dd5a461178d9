"""Memory that takes in segments, bit for bit against ``WindowStore`` and against the op's reference."""

import pytest
import torch

from dynadapt.engine.memory import WindowStore
from dynadapt.ops.dispatch import resolve

from .compare import DEVICE, skip_without_gpu

LAYERS, SLOTS = 2, 4
# capacity, sinks, segment, width of a store: chains of one (memory <= segment) and of many, shifts below and above a tile
CASES = [(1, 0, 1, 3), (1, 1, 5, 20), (40, 40, 7, 20), (9, 4, 20, 20), (40, 4, 7, 20), (100, 0, 33, 64), (69, 5, 63, 17), (300, 4, 100, 40)]


def poisoned(*shape, dtype=torch.float32):
    return torch.full(shape, float("nan"), dtype=dtype)


def play(backend, case, steps, dtype=torch.float32, layers=LAYERS):
    """``steps`` segments through two stores; returns stores and fills after each, and what entered."""
    capacity, sinks, segment, width = case
    generator = torch.Generator().manual_seed(1)
    advance, fill = (resolve(op, backend, dtype).function for op in ("memory_advance", "memory_fill"))
    both = poisoned(2, layers, SLOTS, capacity, width).to(DEVICE, dtype)  # stores are views of one tensor
    length, history = torch.zeros(SLOTS, dtype=torch.int32, device=DEVICE), []
    for step in range(steps):
        slots = torch.randperm(SLOTS, generator=generator)[:3].int()
        counts = torch.randint(0, segment + 1, (3,), generator=generator).int()
        counts[0] = segment if step % 2 else 0
        source = torch.randn(layers, 3 * segment, 3 * width + 1, generator=generator)
        for i, count in enumerate(counts.tolist()):
            source[:, i * segment + count : (i + 1) * segment] = float("nan")  # must not enter
        call = [t.to(DEVICE) for t in (slots, counts)]
        columns = (width, 2 * width + 1)
        advance(source.to(DEVICE, dtype), columns, [both[0], both[1]], length, *call, sinks)
        fill(length, *call, capacity)
        history.append((slots, counts, source.to(dtype), columns, both.cpu().clone(), length.cpu().clone()))
    return history


def assert_equal_to_window_store(history, case):
    capacity, sinks, segment, width = case
    dtype, layers = history[0][4].dtype, history[0][4].shape[1]
    wanted = [[WindowStore(poisoned(SLOTS, capacity, width, dtype=dtype)) for _ in range(layers)] for _ in range(2)]
    length = [0] * SLOTS
    for slots, counts, source, columns, stores, fills in history:
        for i, (slot, count) in enumerate(zip(slots.tolist(), counts.tolist())):
            for k, column in enumerate(columns):
                for layer, store in enumerate(wanted[k]):
                    new = source[layer, i * segment : i * segment + count, column : column + width]
                    store.advance(slot, length[slot], new, sinks)
            length[slot] = min(length[slot] + count, capacity)
        assert fills.tolist() == length
        for k in range(2):
            for layer in range(layers):
                assert torch.equal(stores[k, layer].nan_to_num(1e9), wanted[k][layer].rows.nan_to_num(1e9))
    assert all(torch.isfinite(stores[:, :, slot, : length[slot]]).all() for slot in range(SLOTS))


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_window_store(case, backend):
    assert_equal_to_window_store(play(backend, case, 6), case)


def test_one_store():
    advance = resolve("memory_advance", "triton", torch.float32).function
    source, store = torch.randn(1, 10, 8, device=DEVICE), poisoned(1, 2, 6, 8).to(DEVICE)
    slots, counts, length = (torch.tensor(v, dtype=torch.int32, device=DEVICE) for v in ([1], [10], [0, 0]))
    advance(source, (0,), [store], length, slots, counts, 2)
    assert torch.equal(store[0, 1], source[0, [0, 1, 6, 7, 8, 9]])
    assert store[0, 0].isnan().all()


def test_errors_name_the_argument():
    advance = resolve("memory_advance", "triton", torch.float32).function
    source, store = torch.zeros(2, 6, 8), torch.zeros(2, 3, 5, 4)
    slots = counts = torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"columns 6 to 10 are not within source's 8"):
        advance(source, (0, 6), [store, store], counts, slots, counts, 1)
    with pytest.raises(ValueError, match=r"source has 6 rows, accepted is a multiple of the 4 streams"):
        advance(source, (0,), [store], counts, torch.zeros(4, dtype=torch.int32), counts, 1)
    with pytest.raises(ValueError, match=r"stores have 1 layers, source has 2"):
        advance(source, (0,), [store[:1]], counts, slots, counts, 1)


@pytest.mark.gpu
@skip_without_gpu
@pytest.mark.parametrize("case", [(516, 4, 512, 1024), (516, 4, 100, 192), (2052, 4, 300, 128)], ids=str)
def test_real_sizes(case):
    assert_equal_to_window_store(play("triton", case, 12, torch.bfloat16, layers=8), case)

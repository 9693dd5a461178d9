"""Attention over [memory; segment] against its reference: odd sizes, grouped heads, memory, batching, threads, causality."""

import pytest
import torch
from op_cases import a_bad_stream_stays_alone, check, each, make_case, run, same_bits, same_bits_at_any_threads, streams_stand_alone

from dynadapt import _C
from dynadapt.bench.cases import Draw
from dynadapt.bench.cases.attention import attention_backward, attention_backward_of, attention_forward

OPS = [attention_forward, attention_backward]
# streams, segment, memory capacity (None: no memory), query heads, kv heads, head size, rotation
SIZES = [
    (1, 1, None, 1, 1, 16, True),
    (2, 1, 5, 2, 1, 20, True),
    (1, 63, None, 3, 1, 64, True),
    (3, 100, 37, 4, 2, 20, True),
    (1, 130, 200, 9, 3, 64, True),
    (2, 97, 130, 2, 2, 128, True),
    (1, 150, None, 3, 3, 17, False),
    (1, 33, 9, 8, 1, 24, False),
    (1, 300, None, 5, 1, 64, True),
    (1, 200, 129, 7, 1, 32, True),
    (5, 21, None, 2, 2, 32, False),
    (3, 32, None, 6, 2, 20, True),
    (2, 96, None, 2, 2, 17, False),
    (7, 2, None, 3, 1, 8, True),  # short
    # label, window
    (1, 300, None, 5, 1, 64, True, "", 40),
    (1, 200, 330, 3, 1, 20, True, "", 2),
    (3, 100, 137, 4, 2, 20, True, "", 130),
    (2, 97, 400, 2, 2, 17, False, "", 33),
    (2, 33, None, 2, 1, 24, True, "", 16),  # short but for its window
    (1, 20, 200, 2, 1, 256, True, "", 7),
    # soft-cap
    (1, 130, 200, 9, 3, 64, True, "", None, 0.7),
    (3, 100, 137, 4, 2, 20, True, "", 130, 2.0),
    (3, 32, None, 6, 2, 20, True, "", None, 0.5),  # short
    (2, 97, 40, 2, 2, 17, False, "", 33, 50.0),
]


@each(OPS, SIZES)
def test_against_reference(case):
    check(case)


LONE = [
    (1, 1, None, 1, 1, 16, True),
    (3, 1, None, 4, 2, 20, False),
    (2, 40, None, 3, 1, 64, True),
    (2, 150, None, 4, 1, 128, True),
    (1, 100, 30, 9, 3, 17, False),
    (1, 1, 5, 2, 1, 64, True),
    (2, 150, None, 4, 1, 20, True, "", 2),
    (2, 150, None, 4, 1, 20, True, "", None, 1.0),
]  # short and long forms, with and without a memory that is empty


@each(attention_forward, LONE)
def test_one_key_has_no_gradient_in_query_and_key(case):
    """Its probability is 1 whatever q and k are: the gradient is 0 and not the rounding of a difference."""
    empty = case if case["mem_len"] is None else case.change(mem_len=torch.zeros_like(case["mem_len"]))
    backward = attention_backward_of(Draw(case.dtype, seed=1), empty)
    hq, hkv, d, streams, segment = *(case[name] for name in ("hq", "hkv", "d")), case.stream_count, case["lse"].shape[2]
    query, key, value = check(backward)["dqkv"].view(streams, segment, -1).split([hq * d, hkv * d, hkv * d], 2)
    assert not query[:, 0].any() and value[:, 0].any()
    assert not key.any() if segment == 1 else (query[:, 1:].any() and key.any())
    assert run(backward.spoil("dout", 0))["dqkv"][0, : hq * d].isnan().any()  # which an update must still see


@each(attention_forward, [(1, 140, 140, 2, 1, 32, True), (2, 40, None, 2, 2, 32, True)])
def test_large_scores(case):
    """Scores of several hundreds: the running maximum must carry them."""
    check(case.change(qkv=case["qkv"] * 12, mem_k=None if case["mem_k"] is None else case["mem_k"] * 12))


@each(OPS, [*SIZES[3:5], SIZES[-8], SIZES[-3]])
def test_threads_change_no_bit(case):
    same_bits_at_any_threads(case)


@each(OPS, [(5, 70, 50, 4, 2, 20, True), (7, 40, None, 3, 1, 64, True)])
def test_streams_batched_equal_streams_alone(case):
    streams_stand_alone(case)


@each(OPS, [(3, 50, 20, 4, 2, 20, True)])
def test_a_bad_stream_stays_alone(case):
    a_bad_stream_stays_alone(case)


@pytest.mark.parametrize("t", [0, 31, 63, 64, 127, 128])
@each(attention_forward, [(1, 200, 70, 3, 1, 20, True)])
def test_later_tokens_change_no_bit(case, t):
    later = case["qkv"].clone()
    later[t + 1 :] = 50 * Draw(case.dtype, seed=1).acts(199 - t, later.shape[1])
    before, after = run(case), run(case.change(qkv=later))
    assert torch.equal(before["out"][: t + 1], after["out"][: t + 1])
    assert torch.equal(before["lse"][..., : t + 1], after["lse"][..., : t + 1])


@each(attention_forward, [(1, 40, 333, 2, 1, 20, True, "", 60)], [torch.float32])
def test_what_a_window_hides_is_never_read(case):
    """Nor its gradient any but the queries that see it."""
    window, length, slot = case["window"], int(case["mem_len"].max()), int(case["slots"][0])
    hidden = (slot, slice(0, length - window + 1))
    dirty = case.change(mem_k=case["mem_k"].clone(), mem_v=case["mem_v"].clone())
    dirty["mem_k"][hidden], dirty["mem_v"][hidden] = 1e30, -1e30
    assert same_bits(run(case), run(dirty))
    without = case.change(window=None)
    assert not torch.equal(run(case)["out"], run(without)["out"])


@each(attention_forward, [(2, 40, 33, 2, 1, 20, True)], [torch.float32])
def test_unused_memory_is_never_read(case):
    lengths, slots = torch.zeros_like(case["mem_len"]), case["slots"].long()
    lengths[slots] = torch.tensor([7, 0], dtype=torch.int32)
    clean = case.change(mem_len=lengths)
    dirty = clean
    for slot, length in enumerate(lengths.tolist()):
        dirty = dirty.spoil("mem_k", (slot, slice(length, None))).spoil("mem_v", (slot, slice(length, None)))
    assert same_bits(run(clean), run(dirty))


def test_errors_name_the_argument():
    good = make_case(attention_forward, (2, 6, 4, 4, 2, 8, True)).arguments
    call = lambda **change: _C.attention_forward(**{**good, **change})  # noqa: E731
    call()
    with pytest.raises(ValueError, match=r"attention_forward: hq is 3, accepted is a multiple of hkv, 2"):
        call(hq=3, qkv=torch.zeros(12, 56))
    with pytest.raises(ValueError, match=r"mem_k, mem_v, mem_len are only partly given"):
        call(mem_v=None)
    with pytest.raises(ValueError, match=r"mem_len\[\d\] is 5, accepted is 0 to 4"):
        call(mem_len=torch.full((4,), 5, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"slots\[1\] is 4, accepted is 0 to 3"):
        call(slots=torch.tensor([0, 4], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"cos has 6 positions, accepted is at least the window of stream 0, 10"):
        call(cos=good["cos"][:6], sin=good["sin"][:6], mem_len=torch.full((4,), 4, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"slots has 5 entries for 12 rows"):
        call(slots=torch.zeros(5, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"cos is given without sin"):
        call(sin=None)

"""What a recorded step decides on the device: the kernels against the definition in torch (ops/decisions.py)."""

import pytest
import torch

from dynadapt.bench.cases.base import copy
from dynadapt.kernels import decisions as kernels
from dynadapt.ops import decisions

from .compare import DEVICE

NAN, INF = float("nan"), float("inf")


def i32(values):
    return torch.tensor(values, dtype=torch.int32)


def both(name, given: dict, same=()) -> dict:
    """``given`` as the kernel leaves it, after the definition has done its part on copies; ``same`` to the bit."""
    expected, found = (
        {key: copy(t, device=device) if isinstance(t, torch.Tensor) else t for key, t in given.items()} for device in ("cpu", DEVICE)
    )
    getattr(decisions, name)(**expected)
    getattr(kernels, name)(**found)
    found = {key: t.cpu() if isinstance(t, torch.Tensor) else t for key, t in found.items()}
    for key in same:
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0, equal_nan=True, msg=key)
    return {key: (expected[key], found[key]) for key in given}


# ---- change detectors


def detected(nll, counts, slots, table):
    """Both ways: flags, who moves, and the table, to 1e-12 of each number."""
    given = {"nll": nll.flatten(), "counts": i32(counts), "slots": i32(slots), "table": table}
    given |= {"moving": i32([10 + s for s in slots]), "flags": torch.full((len(slots),), 7, dtype=torch.int32)}
    made = both("detect_changes", given, same=("flags", "moving", "nll", "counts", "slots"))
    expected, found = made["table"]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0, equal_nan=True)
    others = [s for s in range(table.shape[1]) if s not in slots]
    assert torch.equal(found[:, others], table[:, others])
    flags, moving = made["flags"][1].tolist(), made["moving"][1].tolist()
    assert moving == [-1 if flag else 10 + s for flag, s in zip(flags, slots)]
    return flags, found


def after(*scores):
    """[4] of a detector that has seen these segments."""
    table = torch.zeros(4, 1, dtype=torch.float64)
    for score in scores:
        decisions.observe(
            table, torch.zeros(1, dtype=torch.int64), torch.tensor([score], dtype=torch.float64), torch.ones(1, dtype=torch.bool)
        )
    return table[:, 0]


def tables(*columns):
    return torch.stack([torch.as_tensor(column, dtype=torch.float64) for column in columns], 1)


@pytest.mark.parametrize("segment", [1, 63, 512, 1300])
@pytest.mark.parametrize("streams", [1, 5])
def test_many_segments(segment, streams):
    """Forty segments of a table that goes on, streams out of order and some of them at rest; all jump at the thirtieth."""
    table, flagged = torch.zeros(4, streams + 2, dtype=torch.float64), 0
    for step in range(40):
        slots = torch.randperm(streams + 2)[:streams].tolist()
        nll = 3 + torch.rand(streams, segment) / 2 + 4 * (step > 29)
        counts = torch.randint(segment + 1, (streams,)).tolist() if step % 3 == 1 else [segment] * streams
        for row, n in enumerate(counts):
            nll[row, n:] = 0
        flags, table = detected(nll, counts, slots, table)
        flagged += sum(flags)
    assert flagged


@pytest.mark.parametrize("segments, flags", [(decisions.WARMUP - 1, 0), (decisions.WARMUP, 1), (decisions.WARMUP + 1, 1)])
def test_no_flag_before_enough_segments(segments, flags):
    scores = [1.0 + i % 2 for i in range(segments)]
    found, table = detected(torch.full((1, 4), 100.0), [4], [0], tables(after(*scores)))
    assert found == [flags] and table[0, 0] == (0 if flags else segments + 1)


def test_a_statistic_that_is_the_threshold_flags_nothing():
    """Of mean 1 and deviation 1: z = 5.5 gives 5 to the bit, and the next larger float32 gives more."""
    past = [9.0, 1.0, 8.0, 0.0]
    nll = torch.tensor([[6.5], [6.5 + 2**-21]])
    flags, table = detected(nll, [1, 1], [1, 0], tables(past, past))
    assert flags == [0, 1] and table[3, 1] == decisions.THRESHOLD and not table[:, 0].any()
    past[3] = 5.0  # what stands at the threshold and neither rises nor falls
    assert detected(torch.tensor([[1.5]]), [1], [0], tables(past))[0] == [0]


def test_an_even_streams_deviation_is_the_least_one():
    """Deviations below MIN_STD count as it, in float64: of a float32 0.02 the statistic would differ in the eighth digit."""
    past = [20.0, 2.0, 1e-9, 0.25]
    flags, table = detected(torch.tensor([[2.0625]]), [1], [0], tables(past))
    assert flags == [0] and abs(table[3, 0] - (0.25 + 0.0625 / 0.02 - 0.5)) < 1e-15


@pytest.mark.parametrize("bad", [NAN, INF, -INF, (INF, -INF)])
def test_scores_that_are_no_numbers_count_as_none(bad):
    table = tables(*[after(*[1.0 + i % 2 for i in range(9)])] * 3)
    nll = torch.ones(3, 700)
    if isinstance(bad, tuple):
        nll[1, [0, 650]] = torch.tensor(bad)
    else:
        nll[1, 650] = bad
    flags, found = detected(nll, [700] * 3, [2, 1, 0], table)
    assert flags == [0] * 3 and torch.equal(found[:, 1], table[:, 1]) and (found[0, [0, 2]] == 10).all()


def test_streams_at_rest_stay_as_they_are():
    table = tables(*[after(*[1.0 + i % 2 for i in range(9)])] * 2)
    flags, found = detected(torch.full((2, 8), 50.0), [0, 8], [0, 1], table)
    assert flags == [0, 1] and torch.equal(found[:, 0], table[:, 0]) and not found[:, 1].any()


def test_a_streams_bits_do_not_depend_on_its_neighbours():
    table, nll = torch.rand(4, 4, dtype=torch.float64) + 9, torch.rand(3, 700)
    _, together = detected(nll, [700] * 3, [2, 0, 3], table)
    for row, slot in enumerate([2, 0, 3]):
        _, alone = detected(nll[row : row + 1], [700], [slot], table)
        assert torch.equal(alone[:, slot], together[:, slot])


def test_shapes_that_do_not_fit_are_named():
    good = {"nll": torch.zeros(6), "counts": i32([3, 3]), "slots": i32([0, 1]), "table": torch.zeros(4, 2, dtype=torch.float64)}
    good |= {"moving": i32([0, 1]), "flags": i32([0, 0])}
    for name, value, message in (
        ("nll", torch.zeros(7), r"nll has shape \[7\] .* accepted is a multiple of 2 numbers"),
        ("moving", i32([0]), r"moving has shape \[1\] .* accepted is \[2\], contiguous"),
        ("table", torch.zeros(2, 4, dtype=torch.float64).t(), r"table has shape \[4, 2\] and strides \[1, 4\]"),
    ):
        with pytest.raises(ValueError, match=f"detect_changes: {message}"):
            kernels.detect_changes(**{**good, name: value})


# ---- updates


def admitted(nll, moving):
    out = {"admitted": torch.full((len(moving),), 7, dtype=torch.int32), "skipped": torch.full((len(moving),), 7, dtype=torch.int32)}
    made = both("admit_updates", {"nll": nll.flatten(), "moving": i32(moving), **out}, same=("nll", "moving", *out))
    return made["admitted"][1].tolist(), made["skipped"][1].tolist()


@pytest.mark.parametrize("scores", [1, 63, 9000])
def test_a_set_whose_score_is_not_finite_is_left_out(scores):
    nll = torch.rand(7, scores)
    nll[1, -1], nll[2, scores // 2], nll[3, 0], nll[5, 0] = NAN, INF, -INF, NAN
    assert admitted(nll, [3, 0, 6, 2, -1, -1, 5]) == ([1, 1, 1, 1, 0, 0, 1], [0, 1, 1, 1, 1, 1, 0])


def test_opposite_infinities_and_large_scores():
    nll = torch.tensor([[INF, -INF, 0.0], [3e38, 3e38, 3e38]])
    assert admitted(nll, [0, 1]) == ([1, 1], [1, 0])


def test_weights_of_all_streams_are_left_out_by_any_score():
    nll = torch.rand(3, 5000)
    assert admitted(nll, [0]) == ([1], [0])
    nll[2, 4999] = NAN
    assert admitted(nll, [0]) == ([1], [1])


def counted(moving, skipped, step=None):
    given = {"moving": i32(moving), "skipped": i32(skipped), "counters": torch.tensor([2**33, 5]), "moved": i32([7] * len(moving))}
    made = both("count_updates", given | ({} if step is None else {"step": step}), same=(*given, *(["step"] if step is not None else [])))
    assert made["moved"][1].tolist() == moving
    updates, left_out = (made["counters"][1] - given["counters"]).tolist()
    return updates, left_out, made["skipped"][1].tolist(), made["step"][1].tolist() if step is not None else None


def test_updates_are_counted_where_they_were_due():
    assert counted([4, -1, 0, 2, -1], [0, 0, 1, 9, 1]) == (1, 2, [0, 0, 1, 1, 0], None)
    step = i32([10, 20, 30, 40, 50])
    assert counted([4, -1, 0, 2, -1], [0, 0, 1, 0, 1], step) == (2, 1, [0, 0, 1, 0, 0], [10, 20, 31, 40, 51])
    assert counted([0], [0], i32([3])) == (1, 0, [0], [4])


def test_more_sets_than_a_program_has_threads():
    moving = torch.where(torch.rand(300) < 0.3, -1, torch.randperm(310)[:300])
    skipped = (torch.rand(300) < 0.4).int()
    updates, left_out, _, step = counted(moving.tolist(), skipped.tolist(), torch.arange(310, dtype=torch.int32))
    due = moving >= 0
    assert (updates, left_out) == (int((due & (skipped == 0)).sum()), int((due & (skipped == 1)).sum())) and updates and left_out
    assert sum(step) == sum(range(310)) + updates


def test_sizes_of_updates_that_do_not_fit_are_named():
    zero = i32([0, 0])
    with pytest.raises(ValueError, match=r"admit_updates: skipped has shape \[3\] .* accepted is \[2\], contiguous"):
        kernels.admit_updates(torch.zeros(4), zero, zero.clone(), i32([0, 0, 0]))
    with pytest.raises(ValueError, match=r"count_updates: counters has shape \[3\] .* accepted is \[2\]"):
        kernels.count_updates(zero, zero.clone(), torch.zeros(3, dtype=torch.int64), zero.clone())


# ---- tokens


def taken(tokens, vocabulary, counts, moving):
    rows, segment = len(tokens), tokens.shape[1] - 1
    given = {"tokens": tokens, "vocabulary": vocabulary, "counts": i32(counts), "moving": i32(moving)}
    given["inputs"], given["targets"] = torch.full((rows, segment), -7), torch.full((rows * segment,), -7)
    given["invalid"] = torch.full((rows,), 7, dtype=torch.int32)
    made = both("take_tokens", given, same=("tokens", "counts", "inputs", "targets", "moving", "invalid"))
    return {name: made[name][1] for name in ("inputs", "targets", "moving", "invalid")}


@pytest.mark.parametrize("segment", [1, 63, 512, 1025])
def test_tokens_are_taken(segment):
    tokens = torch.randint(50, (3, segment + 1))
    made = taken(tokens, 50, [segment, 0, segment // 2], [4, -1, 0])
    assert torch.equal(made["inputs"], tokens[:, :-1]) and made["moving"].tolist() == [4, -1, 0] and not made["invalid"].any()
    targets = made["targets"].view(3, segment)
    assert torch.equal(targets[0], tokens[0, 1:]) and (targets[1] == -1).all()
    assert torch.equal(targets[2, : segment // 2], tokens[2, 1 : segment // 2 + 1]) and (targets[2, segment // 2 :] == -1).all()


@pytest.mark.parametrize("bad", [-1, 50, 10**9, -(2**40), 2**40])
@pytest.mark.parametrize("place", [0, 300, 600])
def test_an_id_outside_the_vocabulary_stops_its_row(bad, place):
    tokens = torch.randint(50, (3, 601))
    tokens[1, place] = bad
    made = taken(tokens, 50, [600, 2, 600], [2, 0, 1])
    assert made["moving"].tolist() == [2, -1, 1] and made["invalid"].tolist() == [0, 1, 0]
    assert (made["targets"][600:1200] == -1).all() and (made["targets"][:600] >= 0).all() and (made["targets"][1200:] >= 0).all()
    assert taken(tokens, 50, [600] * 3, [0])["moving"].tolist() == [-1]
    assert taken(tokens[::2], 50, [600] * 2, [0])["moving"].tolist() == [0]


def test_tokens_of_any_strides_are_taken():
    tokens = torch.randint(50, (70, 5))
    assert torch.equal(taken(tokens.t(), 50, [69] * 5, [0])["inputs"], tokens.t()[:, :-1])
    assert torch.equal(taken(tokens[10:20:3, 1:], 50, [3] * 4, [0, 1, 2, 3])["inputs"], tokens[10:20:3, 1:-1])


def test_tokens_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"take_tokens: inputs has shape \[2, 4\] .* accepted is \[2, 3\], contiguous"):
        kernels.take_tokens(torch.zeros(2, 4, dtype=torch.int64), 5, i32([3, 3]), torch.zeros(2, 4), torch.zeros(6), i32([0]), i32([0, 0]))

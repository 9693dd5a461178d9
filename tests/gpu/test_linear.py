"""linear_forward and linear_backward in both forms against their references; each row and each stream on its own."""

import pytest
import torch
from op_cases import make_case, rows_stand_alone, streams_stand_alone

from dynadapt.bench.cases import materialise
from dynadapt.bench.cases.linear import linear_backward, linear_forward
from dynadapt.kernels import choices, linear, linear_fused
from dynadapt.ops.dispatch import resolve
from dynadapt.ops.matrix import DenseMatrix

from .compare import DEVICE, DTYPES, check, each, real_sizes, run

OPS = [linear_forward, linear_backward]
# rows N, inputs K, parts, rank (0: no adapter), streams S
SIZES = [
    (1, 5, (3,), 0, 1),
    (1, 64, (32, 32), 4, 1),
    (63, 65, (33, 7, 7), 3, 1),
    (100, 96, (70,), 16, 2),
    (102, 100, (64, 31), 33, 3),
    (128, 128, (64, 64, 64), 16, 1),
    (70, 64, (100,), 0, 1),
    (90, 100, (64, 31, 7), (5, 0, 33), 2),  # each part's rank
    (40, 64, (64, 31), (0, 3), 1),
    (60, 70, (40, 33, 9, 2), 3, 2),
]
LARGE = [  # SmolLM2-135M and Llama-3.2-1B layers, and rows that are no multiple of any tile
    (512, 576, (576, 192, 192), 16, 1),
    (4096, 2048, (8192, 8192), 16, 8),
    (4096, 8192, (2048,), 16, 8),
    (2000, 2048, (2048, 512, 512), 16, 4),
    (4095, 1536, (577,), 64, 3),
    (512, 4096, (4096,), 16, 1),
    (4096, 2048, (8192,), 0, 8),
]


@pytest.fixture(params=["fused", "split"])
def form(request):
    with choices.force(request.param):
        yield request.param


def check_form(case, form):
    """The split form, which parts with ranks of their own and more than three always take, rounds what the adapter adds before the base product is added
    onto it: one rounding of bfloat16 more."""
    split = form == "split" or isinstance(case["scale"], list) or len(case["parts"]) > 3
    case.slack = 2.0 if split and case.dtype == torch.bfloat16 else 1.0
    check(case)


@each(OPS, SIZES)
def test_against_the_reference(case, form):
    check_form(case, form)


@real_sizes(OPS, LARGE)
def test_real_sizes(case, form):
    check_form(case, form)


@real_sizes(OPS, [(1024, 576, (576, 192, 192), 16, 2)])
def test_a_captured_call_reads_its_slots_from_the_device(case, form):
    call = materialise(case, "triton", device=DEVICE)
    slots, function = call[list(case.arguments).index("slots")], getattr(linear, f"{case.op.removeprefix('linear_')}_{form}")
    function(*call)  # compiles, and takes its scratch memory
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function(*call)
    slots.copy_(slots.flip(0))
    call[-1].fill_(float("nan"))
    graph.replay()
    replayed = call[-1].clone()
    function(*call)
    torch.testing.assert_close(replayed, call[-1])


@pytest.mark.parametrize("make", OPS)
@pytest.mark.parametrize("tile", linear_fused.BF16[90], ids=str)
def test_every_tile(tile, make, monkeypatch):
    """Small calls take the smallest tile; the others, with more than one program of a group and parts of odd widths."""
    monkeypatch.setattr(linear_fused, "pick", lambda *_: tile)
    monkeypatch.setattr(linear_fused, "GROUP", 2)
    case = make_case(make, (3 * tile.rows + 9, 72, (tile.columns // 2 + 5, 17), 5, 3), DTYPES[-1])
    with choices.force("fused"):
        check(case if make is linear_backward else case.change(bias=None))


@each(linear_forward, [(20, 2100, (40, 24), 6, 2)])
def test_a_split_contraction_is_added_up(case, form):
    check_form(case, form)


@each(linear_backward, [(20, 24, (600, 530), 6, 2)])
def test_a_split_contraction_of_the_backward_is_added_up(case, form):
    check_form(case, form)


@each(linear_backward, SIZES[3:4])
def test_backward_without_dx_gives_the_same_dU(case, form):
    torch.testing.assert_close(run(case)["dU"], run(case.change(dx=None))["dU"])


def test_stacked_parts_give_what_separate_ones_give(form):
    forward = make_case(linear_forward, (40, 48, (33, 16, 16), 4, 2))
    backward = make_case(linear_backward, (40, 48, (33, 16, 16), 4, 2)).change(parts=forward["parts"])
    sizes, whole = [33, 16, 16], torch.cat(forward["parts"]).to(DEVICE)
    separate = [DenseMatrix(p) for p in whole.split(sizes)]
    stacked = [DenseMatrix(p, copy=False) for p in whole.split(sizes)]
    assert linear.stacked(separate) is None and linear.stacked(stacked[::2]) is None
    assert linear.stacked(stacked).data_ptr() == whole.data_ptr() and torch.equal(linear.stacked(stacked), whole)
    for case in (forward, backward):
        function, results = getattr(linear, f"{case.op.removeprefix('linear_')}_{form}"), []
        for parts in (separate, stacked):
            call = materialise(case, "triton", device=DEVICE)
            call[1] = parts
            function(*call)
            results.append(call[-2:])
        for a, b in zip(*results):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def close(ours, theirs):
    """Up to the order of sums: in bfloat16 cuBLAS may round partial sums, whose size is that of the terms (about 1)."""
    for a, b in zip(ours.values(), theirs.values(), strict=True):
        torch.testing.assert_close(a, b, **({"rtol": 2e-2, "atol": 2e-2} if a.dtype == torch.bfloat16 else {}))
    return True


@each(OPS, [(111, 77, (65, 40), 5, 3)])
def test_streams_batched_equal_streams_alone(case, form):
    """In the fused form bit for bit; cuBLAS may add in another order for another number of rows."""
    streams_stand_alone(case, run, **({} if form == "fused" else {"same": close}))


@each(OPS, [(80, 77, (65, 40), 5, 1)])
def test_a_row_alone_equals_the_row_among_others(case, form):
    together = run(case)
    for row in (0, 79):
        close({name: t[row : row + 1] for name, t in together.items()}, run(case.cut(slice(row, row + 1))))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@each(OPS, [(60, 97, (33, 40), 8, 2)])
def test_a_bad_row_stays_alone(case, form, bad):
    rows_stand_alone(case, run, bad, parts=False)


@each(OPS, [(60, 64, (33, 40), 8, 2)], [torch.float32])
def test_a_bad_adapter_stays_in_its_stream(case, form):
    others = [i for i in range(4) if i != case["slots"][0]]  # all slots but the first stream's
    dirty = run(case.spoil("A", others).spoil("Bt", others))
    for name, clean in run(case).items():
        assert torch.equal(clean[:30], dirty[name][:30]) and not torch.isfinite(dirty[name][30:]).any()


def test_errors_name_the_argument():
    part = DenseMatrix(torch.zeros(4, 6))
    x, y = torch.zeros(10, 6), torch.zeros(10, 4)
    forward = resolve("linear_forward", "triton", torch.float32).function
    with pytest.raises(ValueError, match=r"linear_forward: x has shape \(10, 5\), accepted is \(10, 6\)"):
        forward(torch.zeros(10, 5), [part], None, None, None, None, 1.0, None, y)
    with pytest.raises(ValueError, match=r"linear_forward: parts has 4 weights, accepted is 1 to 3 in one launch"):
        linear.forward_fused(x, [part] * 4, None, None, None, None, 1.0, None, torch.zeros(10, 16))
    A, Bt, slots = torch.zeros(2, 2, 6), torch.zeros(2, 2, 4), torch.zeros(3, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"slots has 3 entries for 10 rows"):
        forward(x, [part], None, A, Bt, slots, 1.0, torch.zeros(10, 2), y)
    with pytest.raises(ValueError, match=r"A has strides .* accepted are adjacent elements and rows"):
        forward(x, [part], None, torch.zeros(2, 2, 12)[:, :, ::2], Bt, slots[:2], 1.0, torch.zeros(10, 2), y)

"""linear_forward and linear_backward in both forms against their references; each row and each stream on its own."""

import pytest
import torch

from dynadapt.kernels import choices, linear, linear_fused
from dynadapt.ops.dispatch import resolve
from dynadapt.ops.matrix import DenseMatrix

from . import compare
from .compare import DEVICE, DTYPES, Out, Weight, acts, check, poisoned, run, skip_without_gpu

# rows N, streams S, inputs K, parts, rank (0: no adapter)
CASES = [
    (1, 1, 5, (3,), 0),
    (1, 1, 64, (32, 32), 4),
    (63, 1, 65, (33, 7, 7), 3),
    (100, 2, 96, (70,), 16),
    (102, 3, 100, (64, 31), 33),
    (128, 1, 128, (64, 64, 64), 16),
    (70, 1, 64, (100,), 0),
]
LARGE = [  # SmolLM2-135M and Llama-3.2-1B layers, and rows that are no multiple of any tile
    (512, 1, 576, (576, 192, 192), 16),
    (4096, 8, 2048, (8192, 8192), 16),
    (4096, 8, 8192, (2048,), 16),
    (2000, 4, 2048, (2048, 512, 512), 16),
    (4095, 3, 1536, (577,), 64),
    (512, 1, 4096, (4096,), 16),
    (4096, 8, 2048, (8192,), 0),
]
FORMS = ["fused", "split"]


def forward_arguments(case, dtype, bias=True):
    n, streams, k, parts, rank = case
    out, count = sum(parts), streams + 2
    adapter = [None, None, torch.randperm(count)[:streams].int(), 0.7, None]
    if rank:
        flat = acts(count, len(parts) * rank * k + rank * out + 5, dtype=dtype) / k**0.5  # strided over slots
        A = flat[:, : len(parts) * rank * k].unflatten(1, (len(parts) * rank, k))
        Bt = flat[:, len(parts) * rank * k : -5].unflatten(1, (rank, out))
        adapter[:2], adapter[4] = [A, Bt], Out(poisoned(n, len(parts) * rank))
    weights = [Weight(acts(p, k, dtype=dtype) / k**0.5) for p in parts]
    x = acts(n, k + 3, dtype=dtype)[:, :k]
    return [x, weights, acts(out, dtype=dtype) if bias else None, *adapter, Out(poisoned(n, out))]


def backward_arguments(case, dtype):
    n, _, k, parts, _ = case
    _, weights, _, A, Bt, slots, scale, u, _ = forward_arguments(case, dtype)
    return [acts(n, sum(parts), dtype=dtype), weights, A, Bt, slots, scale, u, Out(poisoned(n, k))]


def slack(form, dtype):
    """The split form rounds what the adapter adds before the base product is added onto it: one rounding of bfloat16 more."""
    return 2.0 if form == "split" and dtype == torch.bfloat16 else 1.0


ARGUMENTS = {"linear_forward": forward_arguments, "linear_backward": backward_arguments}
OPS = pytest.mark.parametrize("op", list(ARGUMENTS))
form_and_dtype = lambda f: pytest.mark.parametrize("form", FORMS)(pytest.mark.parametrize("dtype", DTYPES)(f))  # noqa: E731


@OPS
@form_and_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_the_reference(op, case, form, dtype):
    with choices.force(form):
        check(op, ARGUMENTS[op](case, dtype), dtype, slack(form, dtype))


@pytest.mark.gpu
@skip_without_gpu
@OPS
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_real_sizes(op, case, form):
    with choices.force(form):
        check(op, ARGUMENTS[op](case, torch.bfloat16), torch.bfloat16, slack(form, torch.bfloat16))


@pytest.mark.gpu
@skip_without_gpu
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", ["forward", "backward"])
def test_a_captured_call_reads_its_slots_from_the_device(op, form):
    case = (1024, 2, 576, (576, 192, 192), 16)
    make = forward_arguments if op == "forward" else backward_arguments
    call = [compare._convert(a, torch.bfloat16, torch.float32, DEVICE) for a in make(case, torch.bfloat16)]
    slots = next(a for a in call if isinstance(a, torch.Tensor) and a.dtype == torch.int32)
    function = getattr(linear, f"{op}_{form}")
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


@pytest.mark.parametrize("tile", linear_fused.BF16[90], ids=str)
def test_every_tile(tile, monkeypatch):
    """Small calls take the smallest tile; the others, with more than one program of a group and parts of odd widths."""
    monkeypatch.setattr(linear_fused, "pick", lambda *_: tile)
    monkeypatch.setattr(linear_fused, "GROUP", 2)
    dtype = DTYPES[-1]
    case = (3 * tile.rows + 9, 3, 72, (tile.columns // 2 + 5, 17), 5)
    with choices.force("fused"):
        check("linear_forward", forward_arguments(case, dtype, bias=False), dtype)
        check("linear_backward", backward_arguments(case, dtype), dtype)


@form_and_dtype
def test_a_split_contraction_is_added_up(form, dtype):
    case = (20, 2, 2100, (40, 24), 6)
    with choices.force(form):
        check("linear_forward", forward_arguments(case, dtype), dtype, slack(form, dtype))
        check("linear_backward", backward_arguments((20, 2, 24, (600, 530), 6), dtype), dtype, slack(form, dtype))


@form_and_dtype
def test_backward_without_dx_gives_the_same_dU(form, dtype):
    arguments = backward_arguments(CASES[3], dtype)
    with choices.force(form):
        dU, _ = run("linear_backward", arguments, dtype)
        (alone,) = run("linear_backward", arguments[:-1] + [None], dtype)
    torch.testing.assert_close(dU, alone)


@pytest.mark.parametrize("form", FORMS)
def test_stacked_parts_give_what_separate_ones_give(form):
    case = n, _, k, sizes, _ = (40, 2, 48, (33, 16, 16), 4)
    arguments = forward_arguments(case, torch.float32)
    x, weights, bias, A, Bt, slots, scale, u, y = (a.tensor if isinstance(a, Out) else a for a in arguments)
    whole = torch.cat([w.tensor for w in weights]).to(DEVICE)
    separate, stacked = [DenseMatrix(p) for p in whole.split(sizes)], [DenseMatrix(p) for p in whole.split(sizes)]
    for part, view in zip(stacked, whole.split(sizes)):
        part.weight = view
    assert linear.stacked(separate) is None and linear.stacked(stacked[::2]) is None
    assert linear.stacked(stacked).data_ptr() == whole.data_ptr() and torch.equal(linear.stacked(stacked), whole)
    forward = getattr(linear, f"forward_{form}")
    backward = getattr(linear, f"backward_{form}")
    results = []
    for parts in (separate, stacked):
        out = [t.to(DEVICE) for t in (u.clone(), y.clone(), torch.full_like(u, float("nan")), poisoned(n, k))]
        adapter = [t.to(DEVICE) for t in (A, Bt, slots)]
        forward(x.to(DEVICE), parts, bias.to(DEVICE), *adapter, scale, out[0], out[1])
        backward(out[1], parts, *adapter, scale, out[2], out[3])
        results.append(out)
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def assert_close(a, b):
    """Up to the order of sums: in bfloat16 cuBLAS may round partial sums, whose size is that of the terms (about 1)."""
    torch.testing.assert_close(a, b, **({"rtol": 2e-2, "atol": 2e-2} if a.dtype == torch.bfloat16 else {}))


def _rows(arguments, rows, slots):
    cut = lambda t: t[rows] if t.shape[0] == arguments[0].shape[0] else t  # noqa: E731
    place = next(i for i, a in enumerate(arguments) if isinstance(a, torch.Tensor) and a.dtype == torch.int32)
    some = [Out(cut(a.tensor)) if isinstance(a, Out) else a for a in arguments]
    some[0], some[place] = arguments[0][rows], arguments[place][slots]
    return some


@OPS
@form_and_dtype
def test_streams_batched_equal_streams_alone(op, form, dtype):
    """In the fused form bit for bit; cuBLAS may add in another order for another number of rows."""
    arguments = ARGUMENTS[op]((111, 3, 77, (65, 40), 5), dtype)
    with choices.force(form):
        together = run(op, arguments, dtype)
        for s in range(3):
            rows = slice(s * 37, (s + 1) * 37)
            for whole, single in zip(together, run(op, _rows(arguments, rows, slice(s, s + 1)), dtype)):
                if form == "fused":
                    assert torch.equal(whole[rows], single)
                else:
                    assert_close(whole[rows], single)


@OPS
@form_and_dtype
def test_a_row_alone_equals_the_row_among_others(op, form, dtype):
    arguments = ARGUMENTS[op]((80, 1, 77, (65, 40), 5), dtype)
    with choices.force(form):
        together = run(op, arguments, dtype)
        for row in (0, 79):
            for whole, single in zip(together, run(op, _rows(arguments, slice(row, row + 1), slice(0, 1)), dtype)):
                assert_close(whole[row : row + 1], single)


@OPS
@form_and_dtype
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_stays_alone(op, form, dtype, bad):
    arguments = ARGUMENTS[op]((60, 2, 97, (33, 40), 8), dtype)
    others = torch.arange(60) != 17
    with choices.force(form):
        clean = run(op, arguments, dtype)
        arguments[0] = arguments[0].clone()
        arguments[0][17] = bad
        dirty = run(op, arguments, dtype)
    for a, b in zip(clean, dirty):
        assert torch.equal(a[others], b[others])
        assert not torch.isfinite(b[17]).any()


@OPS
@pytest.mark.parametrize("form", FORMS)
def test_a_bad_adapter_stays_in_its_stream(op, form):
    arguments = ARGUMENTS[op]((60, 2, 64, (33, 40), 8), torch.float32)
    place = 3 if op == "linear_forward" else 2
    slots = arguments[place + 2]
    with choices.force(form):
        clean = run(op, arguments, torch.float32)
        for t in (place, place + 1):
            arguments[t] = arguments[t].clone()
            arguments[t][[i for i in range(4) if i != slots[0]]] = float("nan")  # all slots but the first stream's
        dirty = run(op, arguments, torch.float32)
    for a, b in zip(clean, dirty):
        assert torch.equal(a[:30], b[:30]) and not torch.isfinite(b[30:]).any()


def test_errors_name_the_argument():
    part = DenseMatrix(torch.zeros(4, 6))
    x, y = torch.zeros(10, 6), torch.zeros(10, 4)
    forward = resolve("linear_forward", "triton", torch.float32).function
    with pytest.raises(ValueError, match=r"linear_forward: x has shape \(10, 5\), accepted is \(10, 6\)"):
        forward(torch.zeros(10, 5), [part], None, None, None, None, 1.0, None, y)
    with pytest.raises(ValueError, match=r"parts has 4 weights, accepted is 1 to 3"):
        forward(x, [part] * 4, None, None, None, None, 1.0, None, torch.zeros(10, 16))
    A, Bt, slots = torch.zeros(2, 2, 6), torch.zeros(2, 2, 4), torch.zeros(3, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"slots has 3 entries for 10 rows"):
        forward(x, [part], None, A, Bt, slots, 1.0, torch.zeros(10, 2), y)
    with pytest.raises(ValueError, match=r"A has strides .* accepted are adjacent elements and rows"):
        forward(x, [part], None, torch.zeros(2, 2, 12)[:, :, ::2], Bt, slots[:2], 1.0, torch.zeros(10, 2), y)

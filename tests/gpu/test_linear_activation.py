"""The activation joined to the linears around it, in both forms: against the references, and bit for bit the two launches it replaces."""

import pytest
import torch
from op_cases import make_case, rows_stand_alone, same_bits, streams_stand_alone

from dynadapt.bench.cases import materialise
from dynadapt.bench.cases.linear_activation import linear_activation_backward, linear_activation_forward
from dynadapt.kernels import activation, choices, linear, linear_activation, linear_fused
from dynadapt.ops.activation import KINDS

from .compare import DEVICE, DTYPES, check, each, real_sizes, run

OPS = [linear_activation_forward, linear_activation_backward]
# rows, columns outside, F, rank (0: no adapter), streams, kind
SIZES = [
    (1, 5, 3, 0, 1, "swiglu"),
    (63, 65, 33, 3, 1, "swiglu"),
    (100, 96, 70, 16, 2, "geglu_tanh"),
    (102, 100, 31, 32, 3, "swiglu"),
    (70, 64, 100, 5, 1, "gelu"),
    (90, 40, 45, 17, 2, "gelu_tanh"),
    (40, 64, 64, 0, 1, "glu"),
]


@pytest.fixture(params=["fused", "split"])
def form(request):
    with choices.force(request.param):
        yield request.param


def joined(case) -> bool:
    """How many launches of joined kernels the case takes in the form that is forced."""
    launched = []
    original = linear_activation.launch
    linear_activation.launch = lambda kernel, *args, **options: (launched.append(kernel), original(kernel, *args, **options))
    try:
        run(case)
    finally:
        linear_activation.launch = original
    return len(launched) == 1


@each(OPS, SIZES)
def test_against_the_reference(case, form):
    case.slack = 3.0 if case.dtype == torch.bfloat16 else 2.0  # h and what is made of it: more roundings than one
    check(case)
    assert joined(case) == (form == "fused")


@each(linear_activation_forward, [(50, 40, 33, 7, 2, kind) for kind in KINDS])
def test_forward_is_the_two_launches_to_the_bit(case, products_of_any_tile):
    with choices.force("fused"):
        both = run(case)
        apart = materialise(case, "triton", device=DEVICE)
        given = dict(zip(case.arguments, apart))
        parts, h = given["parts"], given["h"]
        before = (given[name] for name in ("bias", "A", "Bt", "slots", "scale", "u"))
        linear.linear_forward(given["x"], parts, *before, h)
        activation.activation_forward(h, case["kind"], given["y"])
    assert same_bits(both, {name: made.cpu() for name, made in (("u", given["u"]), ("h", h), ("y", given["y"]))})


@each(linear_activation_backward, [(50, 40, 33, 7, 2, kind, again) for kind in KINDS for again in (True, False)])
def test_backward_is_the_two_launches_to_the_bit(case, products_of_any_tile):
    with choices.force("fused"):
        both = run(case)
        given = dict(zip(case.arguments, materialise(case, "triton", device=DEVICE)))
        linear.linear_backward(*(given[name] for name in ("dy", "parts", "A", "Bt", "slots", "scale", "dU", "dx")))
        activation.activation_backward(given["dx"], given["h"], case["kind"], given["dh"], given["y"])
    assert same_bits(both, {name: given[name].cpu() for name in both})


@pytest.mark.parametrize("make", OPS)
@pytest.mark.parametrize("kind", ["swiglu", "gelu"])
@pytest.mark.parametrize("tile", linear_fused.BF16[90][1:], ids=str)
def test_every_tile(tile, kind, make, monkeypatch):
    monkeypatch.setattr(linear_activation, "pick", lambda *_: tile)
    monkeypatch.setattr(linear_activation, "GROUP", 2)
    case = make_case(make, (3 * tile.rows + 9, 72, tile.columns + 5, 5, 3, kind), DTYPES[-1])
    case.slack = 3.0
    with choices.force("fused"):
        check(case)


@each(OPS, [(60, 40, 33, 40, 2, "swiglu")], [torch.float32])
def test_large_ranks_go_apart_forward(case):
    with choices.force("fused"):
        assert joined(case) == (case.op == "linear_activation_backward")
        case.slack = 2.0
        check(case)


@each(linear_activation_forward, [(60, 40, 33, (5, 3), 2, "swiglu")], [torch.float32])
def test_parts_with_ranks_of_their_own_go_apart(case):
    with choices.force("fused"):
        assert not joined(case)
        check(case)


@each(OPS, [(111, 77, 40, 5, 3, "swiglu")])
def test_streams_batched_equal_streams_alone(case):
    with choices.force("fused"):
        streams_stand_alone(case, run)


@each(OPS, [(60, 97, 33, 8, 2, kind) for kind in ("swiglu", "gelu")])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_stays_alone(case, bad):
    with choices.force("fused"):
        rows_stand_alone(case, run, bad, parts=False)


@each(linear_activation_forward, [(60, 64, 33, 8, 2, "swiglu")], [torch.float32])
def test_a_bad_adapter_stays_in_its_stream(case):
    others = [i for i in range(4) if i != case["slots"][0]]
    with choices.force("fused"):
        dirty = run(case.spoil("A", others).spoil("Bt", others))
        for name, clean in run(case).items():
            assert torch.equal(clean[:30], dirty[name][:30]) and not torch.isfinite(dirty[name][30:]).any()


def test_errors_name_the_argument():
    case = make_case(linear_activation_forward, (6, 5, 4, 2, 2))
    with choices.force("fused"):
        with pytest.raises(ValueError, match=r"linear_activation_forward: x has shape \(6, 4\), accepted is \(6, 5\)"):
            run(case.change(x=torch.zeros(6, 4)))
        with pytest.raises(ValueError, match=r"linear_activation_forward: h has shape \[6, 8\], accepted is \[6, 10\]"):
            run(case.change(y=torch.full((6, 5), float("nan"))))
        with pytest.raises(ValueError, match="kind='relu'"):
            run(case.change(kind="relu"))


@real_sizes(OPS, [(512, 576, 1536, 16, 1, "swiglu"), (4096, 2048, 8192, 16, 8, "swiglu"), (500, 768, 3072, 16, 1, "gelu")])
def test_real_sizes(case, form):
    case.slack = 3.0
    check(case)

"""A case of an op refuses what would make a check say nothing: another dtype, outputs that hold numbers, unknown names."""

import pytest
import torch

from dynadapt.bench.cases import Draw, check, materialise
from dynadapt.bench.cases.cross_entropy import cross_entropy
from dynadapt.bench.cases.linear import linear_backward, linear_forward
from dynadapt.bench.cases.norm import norm_backward
from dynadapt.ops.quants import BLOCK_FORMATS


def test_a_case_of_bfloat16_takes_no_float32():
    case = linear_forward(Draw(torch.bfloat16), 5, 4, (3,), 2)
    assert case["x"].dtype == case["y"].dtype == case["parts"][0].dtype == torch.bfloat16
    for name in ("x", "A", "parts", "y"):
        wide = [t.float() for t in case[name]] if name == "parts" else case[name].float()
        with pytest.raises(ValueError, match=rf"linear_forward: {name}.* is torch.float32, the case's is torch.bfloat16"):
            case.change(**{name: wide})
    backward = norm_backward(Draw(torch.bfloat16), 5, 4)
    assert backward["stat"].dtype == torch.float32
    with pytest.raises(ValueError, match="norm_backward: stat is torch.bfloat16, the case's is torch.float32"):
        backward.change(stat=backward["stat"].bfloat16())


def test_outputs_that_look_written_to_and_unknown_names_are_refused():
    case = norm_backward(Draw(), 5, 4)
    with pytest.raises(ValueError, match="norm_backward: dx holds numbers before the call, accepted is NaN"):
        case.change(dx=torch.zeros(5, 4))
    case.change(dweight=torch.zeros(4))  # which the op adds to
    with pytest.raises(ValueError, match="norm_backward has no argument dX; it has dy, res"):
        case.change(dX=None)


def test_an_error_beyond_torchs_own_is_named(monkeypatch):
    from dynadapt.bench.cases import calls

    choose = calls.resolve

    def wrong(op, backend, dtype):
        choice = choose(op, backend, dtype)
        if backend == "cpu":
            return type(choice)(op, backend, lambda *a: (choice.function(*a), a[6][3].add_(1e-4)), "off in one row")
        return choice

    monkeypatch.setattr(calls, "resolve", wrong)
    with pytest.raises(AssertionError, match=r"norm_backward rms: dx is off by 0.0001 \(largest\), plain torch allows"):
        check(norm_backward(Draw(), 63, 17), "cpu")


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("base", ["int8", *BLOCK_FORMATS])
def test_bytes_are_those_that_frozen_weights_are_kept_in(base, dtype):
    """Of whole panels and groups, so that nothing is there but weights."""
    draw = lambda: Draw(dtype, odd=False)  # noqa: E731
    makers = [(make, "parts", dict(n=5, k=256, parts=(64, 128), rank=2)) for make in (linear_forward, linear_backward)]
    for make, name, sizes in (*makers, (cross_entropy, "head", dict(n=5, hidden=256, vocabulary=192))):
        case, plain = make(draw(), **sizes, base=base), make(draw(), **sizes)
        kept = dict(zip(case.arguments, materialise(case, "cpu")))[name]
        held = sum(part.nbytes for part in kept) if name == "parts" else kept.nbytes
        assert held < 2 * 192 * 256 and case.bytes - held == plain.bytes - 2 * 192 * 256
        assert check(case, "cpu")[1] < (0.02 if dtype == torch.bfloat16 else 0.01 if base == "int8" else 1e-5)

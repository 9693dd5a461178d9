"""int8 with a scale per row and group: the quantised product is the scaled one, its reference is what the page says, and a model in it
says nearly the same."""

import pytest
import torch

from dynadapt import Adam, Engine, Full, LoRA, RowSparse, SegmentMemory
from dynadapt.bench.cases import Draw
from dynadapt.bench.cases.linear import linear_forward
from dynadapt.model import random_model, tiny_config
from dynadapt.ops.int8 import GROUP, LARGEST_OF_HEAD, SMALLEST_SCALE, Int8Matrix, dequantize, group_count, quantize_groups


def test_every_group_uses_the_whole_range():
    x = torch.randn(7, 150) * torch.logspace(-6, 6, 7)[:, None]
    x[:, 64:128] *= 1e3
    q, scale = quantize_groups(x)
    assert q.dtype == torch.int8 and scale.shape == (7, group_count(150)) == (7, 3)
    assert all((q[:, i : i + GROUP].abs().amax(1) == 127).all() for i in (0, 64, 128))
    half = scale.repeat_interleave(GROUP, 1)[:, :150] / 2
    assert ((dequantize(q, scale) - x).abs() <= half * 1.0001).all()


def test_halves_go_to_the_even_number():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5]])
    assert quantize_groups(x)[0].tolist() == [[127, 0, 2, 2, 0, -2, -126]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_zeros_and_bad_groups(bad):
    x = torch.randn(3, 70)
    x[0], x[1, 2], x[2, :64] = 0, bad, 2.0**-120
    q, scale = quantize_groups(x)
    back = dequantize(q, scale)
    assert (back[0] == 0).all() and (scale[0] == SMALLEST_SCALE).all()
    assert back[1, :64].isnan().all() and back[1, 64:].isfinite().all()
    assert (back[2, :64] == 0).all() and back[2, 64:].isfinite().all()


def test_the_scales_factor_out_of_each_group():
    x, w = torch.randn(6, 100), torch.randn(11, 100)
    qx, sx = quantize_groups(x)
    qw, sw = quantize_groups(w)
    whole = torch.zeros(6, 11, dtype=torch.float64)
    for g in range(2):
        part = slice(g * GROUP, (g + 1) * GROUP)
        whole += (qx[:, part].double() @ qw[:, part].double().t()) * sx[:, g].double()[:, None] * sw[:, g].double()
    torch.testing.assert_close(Int8Matrix(w, torch.float64).times(x.double()), whole, rtol=1e-12, atol=1e-12)


def test_the_transposed_product_quantises_the_weight_again_by_rows():
    w, dy = torch.randn(100, 70), torch.randn(6, 100)
    matrix = Int8Matrix(w, torch.float32)
    again, scale = quantize_groups(matrix.weight.t())
    qd, sd = quantize_groups(dy)
    assert scale.shape == (70, 2)  # groups of rows
    expected = dequantize(qd, sd).double() @ dequantize(again, scale).double().t()
    torch.testing.assert_close(matrix.times_transposed(dy.double()), expected, rtol=1e-6, atol=1e-6)
    plain = dy.double() @ w.double()
    assert (expected - plain).norm() < 0.02 * plain.norm()


def test_logits_take_activations_of_fifteen_bits():
    """One large activation leaves the others of its group as many steps as they need."""
    w, h = torch.randn(50, 150), torch.randn(20, 150)
    h[:, 3] = 100.0
    matrix = Int8Matrix(w, torch.float64)
    expected = h.double() @ dequantize(matrix.q, matrix.scale, torch.float64).t()
    wide, narrow = ((found - expected).abs().max() for found in (matrix.logits(h.double()), matrix.times(h.double())))
    assert wide < 0.05 and narrow > 100 * wide
    q, scale = quantize_groups(h, LARGEST_OF_HEAD)
    assert q.dtype == torch.int16 and all((q[:, i : i + GROUP].abs().amax(1) == 127 * 256).all() for i in (0, 64, 128))
    assert torch.equal(matrix.logits(h), dequantize(q, scale) @ dequantize(matrix.q, matrix.scale).t())


def test_bytes_are_under_three_fifths_of_bf16():
    assert Int8Matrix(torch.zeros(32, 576), torch.bfloat16).nbytes <= 0.6 * 32 * 576 * 2
    whole, half = (
        linear_forward(Draw(torch.bfloat16, odd=False), 1, 640, [320], 0, bias=False, base=base).bytes for base in ("same", "int8")
    )
    assert whole - half == 640 * 320 * (2 - 1 - 4 / 64)


@pytest.mark.parametrize(
    "family,backend,dtype",
    [("llama", "reference", "fp32"), ("llama", "cpu", "bf16"), ("gpt2", "cpu", "fp32"), ("gpt2", "reference", "bf16")],
)
def test_a_model_in_int8_scores_and_learns_nearly_the_same(family, backend, dtype):
    model = random_model(tiny_config(family), seed=0, std=0.1)
    engines = {
        base: Engine(model, adapt=LoRA(4), optimizer=Adam(lr=0.01), segment=16, dtype=dtype, backend=backend, base=base)
        for base in ("same", "int8")
    }
    tokens = torch.randint(model.config.vocab_size, (1, 17), generator=torch.Generator().manual_seed(0))
    scores = {base: [float(e.step(tokens).mean()) for _ in range(6)] for base, e in engines.items()}
    assert scores["same"] != scores["int8"]
    assert scores["same"][-1] < scores["same"][0] - 0.5
    for a, b in zip(scores["same"], scores["int8"]):
        assert abs(a - b) < 0.05


def test_native_steps_are_those_of_the_reference():
    model = random_model(tiny_config("llama"), seed=1, std=0.1)
    options = dict(adapt=LoRA(4), optimizer=Adam(lr=0.01), memory=SegmentMemory(16), streams=2, segment=16, dtype="fp32", base="int8")
    engines = [Engine(model, backend=backend, **options) for backend in ("reference", "cpu")]
    tokens = torch.randint(model.config.vocab_size, (2, 65), generator=torch.Generator().manual_seed(5))
    for i in range(4):
        a, b = (e.step(tokens[:, 16 * i : 16 * i + 17]) for e in engines)
        # a value on the edge between two whole numbers may fall either way, once two sums differ in their last bit
        torch.testing.assert_close(a, b, rtol=0, atol=1e-2)
    said = engines[1].explain()
    assert "base int8: " in said and "products of whole numbers" in said and "base" not in Engine(model, segment=16).explain()


def test_streams_and_saved_states(tmp_path):
    model = random_model(tiny_config("qwen3"), seed=0, std=0.1)
    options = dict(adapt=LoRA(4), optimizer=Adam(lr=0.01), memory=SegmentMemory(8), segment=8, base="int8")
    tokens = torch.randint(model.config.vocab_size, (3, 33), generator=torch.Generator().manual_seed(0))
    step = lambda e, i: e.step(tokens[: e.streams, 8 * i : 8 * i + 9])  # noqa: E731
    together, first = Engine(model, streams=3, **options), Engine(model, streams=1, **options)
    assert torch.equal(step(together, 0)[:1], step(first, 0)) and torch.equal(step(together, 1)[:1], step(first, 1))
    together.save(tmp_path / "state")
    again = Engine(model, streams=3, **options)
    again.restore(tmp_path / "state")
    assert torch.equal(step(again, 2), step(together, 2))
    with pytest.raises(ValueError, match="base"):
        Engine(model, streams=3, **{**options, "base": "same"}).restore(tmp_path / "state")


@pytest.mark.parametrize(
    "options,message",
    [
        ({"base": "int4"}, "base='int4'"),
        ({"dtype": "fp64"}, "base='int8' with dtype='fp64'"),
        ({"backend": "triton"}, "base='int8' with backend='triton'"),
        ({"adapt": Full()}, "base='int8' with adapt=Full.*don't learn; use adapt=LoRA"),
        ({"adapt": RowSparse(density=0.5)}, "base='int8' with adapt=RowSparse.*don't learn"),
    ],
)
def test_what_int8_cannot_do_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Engine(random_model(tiny_config("llama"), seed=0), **{"base": "int8", **options})


def test_rows_of_int8_do_not_change():
    with pytest.raises(ValueError, match="update_rows: the matrix holds int8"):
        Int8Matrix(torch.ones(4, 4), torch.float32).update_rows(None, torch.ones(4, 4))

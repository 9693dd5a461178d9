"""Row-wise float8: the quantised product is the scaled one, and a model in it still says nearly the same."""

import pytest
import torch

from dynadapt import Adam, Engine, LoRA
from dynadapt.model import random_model, tiny_config
from dynadapt.ops.float8 import FLOAT8, LARGEST, Float8Weights, dequantize, product, quantize_rows


def test_every_row_uses_the_whole_range():
    x = torch.randn(7, 33) * torch.logspace(-6, 6, 7)[:, None]
    q, scale = quantize_rows(x)
    assert q.dtype == FLOAT8 and (q.float().abs().amax(1) == LARGEST).all()
    # three bits of mantissa: half a unit is 1/16 of the value, or half of the smallest subnormal 2^-9
    assert ((dequantize(q, scale) - x).abs() <= torch.maximum(x.abs() / 16, scale[:, None] * 2.0**-10) * 1.0001).all()


def test_zeros_and_bad_rows():
    x = torch.randn(3, 5)
    x[0], x[1, 2] = 0, float("nan")
    back = dequantize(*quantize_rows(x))
    assert (back[0] == 0).all() and back[1].isnan().all() and back[2].isfinite().all()


def test_the_scales_factor_out():
    x, w = torch.randn(6, 40), torch.randn(11, 40)
    weights = Float8Weights([w[:4], w[4:]])
    q, scale = quantize_rows(x)
    whole = (q.double() @ weights.q.double().t()) * scale.double()[:, None] * weights.scale.double()
    torch.testing.assert_close(product(x, weights.q, weights.scale).double(), whole, rtol=1e-5, atol=1e-5)
    assert weights.part_sizes == (4, 7) and weights.shape == (11, 40)
    assert ((product(x, weights.q, weights.scale) - x @ w.t()).abs() <= (x.abs() @ w.abs().t()) * (2 / 16 + 1 / 256)).all()


def test_a_model_in_float8_scores_and_learns_nearly_the_same():
    model = random_model(tiny_config("llama"), seed=0, std=0.1)
    engines = {
        base: Engine(model, adapt=LoRA(4), optimizer=Adam(lr=0.01), segment=16, dtype="fp32", backend="reference", base=base)
        for base in ("same", "float8")
    }
    tokens = torch.randint(model.config.vocab_size, (1, 17), generator=torch.Generator().manual_seed(0))
    scores = {base: [float(e.step(tokens).mean()) for _ in range(6)] for base, e in engines.items()}
    assert scores["same"] != scores["float8"]
    assert scores["same"][-1] < scores["same"][0] - 0.5
    for a, b in zip(scores["same"], scores["float8"]):
        assert abs(a - b) < 0.1


@pytest.mark.parametrize(
    "options,message",
    [
        ({"base": "int4"}, "base='int4'"),
        ({"base": "float8", "backend": "cpu"}, "no float8 products"),
        ({"base": "float8", "dtype": "fp64"}, "dtype='fp64'"),
    ],
)
def test_what_float8_cannot_do_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Engine(random_model(tiny_config("llama"), seed=0), **options)

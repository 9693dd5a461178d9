"""Curves of errors, their bands, queries apart from the prompt, and the tests outside the training distribution."""

import json
import math

import pytest
import torch
from helpers import seeded

from dynadapt.experiments.icl import (
    DenseLinear,
    IclError,
    SparseLinear,
    averaging,
    by_nonzeros,
    curves,
    draw,
    lasso,
    least_squares,
    make_inputs,
    out_of_distribution,
    sequence_predictor,
    squared_errors,
    summarise,
    zero,
)


def test_errors_are_normalised_and_on_the_same_prompts():
    seen = []

    def spy(x, y, query=None):
        seen.append(x)
        return zero(x, y, query)

    errors = squared_errors({"zero": zero, "spy": spy}, SparseLinear(8, nonzeros=2), 5, seeded(), prompts=700, batch=64)
    assert errors["zero"].shape == (700, 5) and torch.equal(errors["zero"], errors["spy"])
    assert [len(x) for x in seen] == [64] * 10 + [60] and not torch.equal(seen[0], seen[1])
    assert float(errors["zero"].mean()) == pytest.approx(1, abs=0.12)
    doubled = squared_errors({"zero": zero}, SparseLinear(8, nonzeros=2), 5, seeded(), prompts=700, normaliser=1.0)
    torch.testing.assert_close(doubled["zero"], 2 * errors["zero"])


def test_the_band_holds_the_middle_of_resampled_means():
    errors = torch.rand(400, 3, generator=seeded(), dtype=torch.float64)
    found = summarise(errors)
    assert found == summarise(errors) and json.loads(json.dumps(found.to_dict())) == found.to_dict()
    half_width = 1.645 * math.sqrt(1 / 12 / 400)  # 90% of a normal distribution
    for k in range(3):
        assert found.mean[k] == pytest.approx(float(errors[:, k].mean()))
        assert found.high[k] - found.mean[k] == pytest.approx(half_width, rel=0.15)
        assert found.mean[k] - found.low[k] == pytest.approx(half_width, rel=0.15)
        assert found.std[k] == pytest.approx(float(errors[:, k].std()))
    wide = summarise(errors, level=0.99)
    assert all(wide.low[k] < found.low[k] < found.high[k] < wide.high[k] for k in range(3))
    assert summarise(errors[:1]).std == [0.0] * 3


def test_a_sequence_model_is_read_as_the_paper_reads_it():
    """A reader that does least squares on what the sequence holds gives the baseline's answers, with and without queries of their own."""

    def read(sequence):
        return least_squares(sequence[:, ::2], sequence[:, 1::2, 0])

    for name in ("gaussian", "random_quadrants"):
        p = draw(DenseLinear(4), 5, 7, seeded(), inputs=make_inputs(name), dtype=torch.float64)
        query = None if p.query is p.x else p.query
        torch.testing.assert_close(sequence_predictor(read)(p.x, p.y, query), least_squares(p.x, p.y, query))


def test_by_nonzeros():
    found = by_nonzeros({"lasso": lasso, "zero": zero}, 10, 9, nonzeros=(1, 5, 10), prompts=200, seed=1)
    assert list(found) == [1, 5, 10]
    assert all(curve["zero"].mean[8] == pytest.approx(1, abs=0.3) for curve in found.values())
    assert found[1]["lasso"].mean[8] < 0.02 < 0.1 < found[5]["lasso"].mean[8]
    assert list(by_nonzeros({"zero": zero}, 3, 2, prompts=4)) == [1, 2, 3]


def test_out_of_distribution():
    found = {
        name: curves({"least_squares": least_squares, "zero": zero}, case.kind, case.points, seeded(), inputs=case.inputs, prompts=600)
        for name, case in out_of_distribution(6, 14).items()
    }
    assert list(found) == [
        "random_quadrants",
        "orthogonal",
        "overlapping",
        "half_subspace",
        "skewed",
        "scale_x=0.333",
        "scale_y=0.333",
        "scale_x=0.5",
        "scale_y=0.5",
        "scale_x=2",
        "scale_y=2",
        "scale_x=3",
        "scale_y=3",
        "noisy",
    ]
    last = {name: curve["least_squares"].mean[-1] for name, curve in found.items()}
    for name, curve in found.items():
        scale = float(name.split("=")[1]) if "=" in name else 1.0
        assert sum(curve["zero"].mean) / len(curve["zero"].mean) == pytest.approx(scale**2, rel=0.1), name
        assert name in ("orthogonal", "noisy") or last[name] < 1e-6
    assert len(found["orthogonal"]["zero"].mean) == 6
    assert last["orthogonal"] == pytest.approx(1, abs=0.2)  # examples tell nothing of the query
    assert max(found["overlapping"]["least_squares"].mean[1:]) < 1e-6  # its y has been shown
    assert found["half_subspace"]["least_squares"].mean[3] < 1e-6 < found["random_quadrants"]["least_squares"].mean[4]
    # 13 examples: the noise itself and what it does to w, (1 + 6 / (13 - 6 - 1)) / 6, over y's second moment (6 + 1) / 6
    assert last["noisy"] == pytest.approx((1 + 6 / 6) / 7, abs=0.06)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: squared_errors({"a": lambda x, y, query: y[:, :1]}, DenseLinear(2), 3, seeded(), prompts=4), r"a: .* shape \(4, 1\)"),
        (lambda: squared_errors({"zero": zero}, DenseLinear(2), 3, seeded(), normaliser=0.0), "normaliser 0.0"),
        (lambda: squared_errors({"zero": zero}, DenseLinear(2), 3, seeded(), prompts=0), "prompts 0"),
        (lambda: squared_errors({"zero": zero}, DenseLinear(2), 3, seeded(), batch=0), "batch 0"),
        (lambda: summarise(torch.zeros(3, 2), level=1.0), "level 1.0"),
        (lambda: summarise(torch.zeros(3, 2), draws=1), "draws 1"),
        (lambda: by_nonzeros({"averaging": averaging}, 3, 2, nonzeros=(4,)), "nonzeros 4: give 1 to 3"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(IclError, match=message):
        build()

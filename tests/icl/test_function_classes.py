"""Function classes, mixtures and inputs: scale, support, what a class computes, and what is refused."""

import math

import pytest
import torch
from helpers import seeded

from dynadapt.experiments.icl import (
    FUNCTION_CLASSES,
    INPUTS,
    ConvexCombination,
    DecisionTree,
    DenseLinear,
    FourierSeries,
    IclError,
    Mixture,
    NoisyLinear,
    Quadratic,
    ReluNetwork,
    Sinusoid,
    SparseLinear,
    draw,
    interleaved,
    make_function_class,
    make_inputs,
)

KINDS = [
    DenseLinear(6),
    SparseLinear(6, nonzeros=2),
    NoisyLinear(6, noise=1.0, renormalise=True),
    Quadratic(6),
    ReluNetwork(6),
    DecisionTree(6),
    Sinusoid(),
    FourierSeries(),
    ConvexCombination(DenseLinear(1), Sinusoid(), 0.3),
    ConvexCombination(DenseLinear(2), Quadratic(2), (0.2, 1)),
    Mixture([DenseLinear(6), SparseLinear(6)], [0.25, 0.75]),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_zero_predictor_has_error_one(kind):
    prompts = draw(kind, 6000, 8, seeded())
    assert float(prompts.y.square().mean()) / kind.normaliser == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_seeds_dtypes_and_descriptions(kind):
    first, again, other = (draw(kind, 5, 7, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.y, again.y) and torch.equal(first.x, again.x) and not torch.equal(first.y, other.y)
    assert draw(kind, 2, 3, seeded(), dtype=torch.float64).y.dtype == torch.float64
    rebuilt = make_function_class(**{"dims": kind.dims, **kind.describe()})
    assert torch.equal(draw(rebuilt, 5, 7, seeded(3)).y, first.y)


def test_scale_multiplies_y():
    for name in FUNCTION_CLASSES:
        plain, scaled = make_function_class(name, 4), make_function_class(name, 4, scale=3.0)
        functions, x = plain.sample(3, seeded()), torch.randn(3, 5, 4, generator=seeded(1))
        torch.testing.assert_close(scaled.values(functions, x), 3 * plain.values(functions, x))


@pytest.mark.parametrize("nonzeros", [1, 3, 20])
def test_sparse_weights_have_their_number_of_nonzeros(nonzeros):
    weights = SparseLinear(20, nonzeros=nonzeros).sample(2000, seeded())["w"]
    assert ((weights != 0).sum(1) == nonzeros).all()
    frequency = (weights != 0).double().mean(0)  # each coordinate is as likely as the others
    assert (frequency - nonzeros / 20).abs().max() < 0.06


@pytest.mark.parametrize("active", [5, torch.tensor(5)])
def test_a_curriculum_keeps_x_and_nonzeros_in_the_active_dimensions(active):
    prompts = draw(SparseLinear(20, nonzeros=3), 50, 4, seeded(), active=active)
    assert not prompts.x[:, :, 5:].any() and prompts.x[:, :, :5].all()
    assert ((prompts.functions["w"] != 0).sum(1) == 3).all() and not prompts.functions["w"][:, 5:].any()
    few = SparseLinear(20, nonzeros=8).sample(9, seeded(), active=active)["w"]
    assert ((few != 0).sum(1) == 5).all()


def test_values_against_the_formulas_of_one_prompt():
    x = torch.randn(3, 5, 4, generator=seeded(9), dtype=torch.float64)
    for kind, formula in [
        (Quadratic(4), lambda f, b, v: sum(float(f["w"][b, i]) * float(v[i]) ** 2 for i in range(4)) / math.sqrt(3)),
        (ReluNetwork(4, hidden=7), lambda f, b, v: math.sqrt(2 / 7) * float(torch.relu(v @ f["w1"][b]) @ f["w2"][b])),
        (
            Sinusoid(4, frequency=(0.5, 3)),
            lambda f, b, v: float(f["amplitude"][b]) * math.sin(float(f["frequency"][b]) * float(v[0]) + float(f["phase"][b])),
        ),
        (
            FourierSeries(4),
            lambda f, b, v: (
                sum(float(f["cosine"][b, n - 1]) * math.cos(n * math.pi * float(v[0]) / 5) for n in range(1, 11))
                + sum(float(f["sine"][b, n - 1]) * math.sin(n * math.pi * float(v[0]) / 5) for n in range(1, 11))
            ),
        ),
        (DecisionTree(4, depth=3), tree_by_hand),
    ]:
        functions = kind.sample(3, seeded(), dtype=torch.float64)
        values = kind.values(functions, x)
        for b in range(3):
            for n in range(5):
                assert float(values[b, n]) == pytest.approx(formula(functions, b, x[b, n]), abs=1e-9), kind.name


def tree_by_hand(functions, prompt, point):
    node = 0
    while node < 7:
        node = 2 * node + (2 if point[functions["asked"][prompt, node]] > 0 else 1)
    return float(functions["leaves"][prompt, node - 7])


def test_tasks_of_a_pool():
    kind = NoisyLinear(8, noise=0.5, pool=3)
    drawn = kind.sample(200, seeded())["w"]
    assert torch.equal(drawn.unique(dim=0), kind.tasks().unique(dim=0)) and kind.tasks().shape == (3, 8)
    with pytest.raises(IclError, match="pool"):
        NoisyLinear(8).tasks()


def test_noise_has_its_standard_deviation():
    kind, generator = NoisyLinear(5, noise=0.5), seeded()
    functions, x = kind.sample(1000, generator), torch.randn(1000, 9, 5, generator=generator)
    assert float((kind.observe(functions, x, generator) - kind.values(functions, x)).std()) == pytest.approx(0.5, rel=0.03)


def test_a_mixture_chooses_per_prompt_or_per_batch_and_keeps_each_class():
    dense, sparse = DenseLinear(10), SparseLinear(10, nonzeros=2)
    mixture = Mixture([dense, sparse], [0.3, 0.7])
    prompts = draw(mixture, 4000, 3, seeded())
    chosen = prompts.functions["chosen"]
    assert float(chosen.double().mean()) == pytest.approx(0.7, abs=0.03)
    for index, kind in enumerate((dense, sparse)):
        own = kind.values(prompts.functions["parts"][index], prompts.x)
        assert torch.equal(prompts.y[chosen == index], own[chosen == index])
    generator = seeded()
    batches = [draw(Mixture([dense, sparse], per="batch"), 16, 2, generator).functions["chosen"] for _ in range(40)]
    assert all((chosen == chosen[0]).all() for chosen in batches) and 5 < sum(int(chosen[0]) for chosen in batches) < 35
    assert not draw(Mixture([dense, sparse], [1.0, 0.0]), 500, 2, seeded()).functions["chosen"].any()


def test_a_convex_combination_is_the_weighted_sum():
    line, wave = DenseLinear(1), Sinusoid()
    x = torch.randn(4, 6, 1, generator=seeded(2))
    combined = ConvexCombination(line, wave, 0.25)
    functions = combined.sample(4, seeded())
    expected = 0.25 * line.values(functions["first"], x) + 0.75 * wave.values(functions["second"], x)
    torch.testing.assert_close(combined.values(functions, x), expected)
    weights = ConvexCombination(line, wave, (0.2, 0.8)).sample(500, seeded())["weight"]
    assert 0.2 <= float(weights.min()) < 0.25 and 0.75 < float(weights.max()) <= 0.8


def test_inputs():
    x = {name: make_inputs(name).sample(500, 6, 8, seeded(), torch.float64) for name in INPUTS}
    assert all(rows.shape == (500, 6, 8) for rows in x.values())
    assert float(make_inputs("gaussian", scale=3.0).sample(2000, 6, 8, seeded()).std()) == pytest.approx(3, rel=0.02)
    assert -5 <= float(x["uniform"].min()) < -4.9 and 4.9 < float(x["uniform"].max()) <= 5
    for name in ("skewed", "half_subspace"):
        assert float(x[name].square().sum(2).mean()) == pytest.approx(8, rel=0.1)
    spectrum = torch.linalg.svdvals(x["skewed"].flatten(0, 1)) / math.sqrt(3000)
    expected = 1 / torch.arange(1, 9, dtype=torch.float64)
    torch.testing.assert_close(spectrum / spectrum[0], expected, rtol=0.1, atol=0)
    assert torch.linalg.matrix_rank(x["half_subspace"].flatten(0, 1)) == 4


def test_queries():
    kind = DenseLinear(8)
    prompts = {name: draw(kind, 200, 8, seeded(), inputs=make_inputs(name), dtype=torch.float64) for name in INPUTS}
    for name, drawn in prompts.items():
        torch.testing.assert_close(drawn.target, kind.values(drawn.functions, drawn.query))
        assert (drawn.query is drawn.x) == (name in ("gaussian", "uniform", "skewed", "half_subspace"))
    signs = prompts["random_quadrants"].x.sign()
    assert (signs == signs[:, :1]).all() and 0.4 < float((prompts["random_quadrants"].query.sign() == signs).double().mean()) < 0.6
    assert torch.equal(prompts["opposite_quadrants"].query, -prompts["opposite_quadrants"].x)
    drawn = prompts["orthogonal"]
    products = (drawn.query @ drawn.x.transpose(1, 2)).tril(-1)  # query k against the x before it
    assert float(products.abs().max()) < 1e-10
    torch.testing.assert_close(drawn.query.norm(dim=2), drawn.x.norm(dim=2))
    assert (drawn.query * drawn.x).sum(2).gt(0).all()
    drawn = prompts["overlapping"]
    for k in range(1, 8):
        same = (drawn.query[:, k, None] == drawn.x[:, :k]).all(2)
        assert same.any(1).all() and same.any(0).all()  # one of the first k, and each of them sometimes


def test_interleaved():
    prompts = draw(DenseLinear(3), 2, 4, seeded())
    sequence = interleaved(prompts.x, prompts.y)
    assert sequence.shape == (2, 8, 3)
    assert torch.equal(sequence[:, ::2], prompts.x) and torch.equal(sequence[:, 1::2, 0], prompts.y) and not sequence[:, 1::2, 1:].any()


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: make_function_class("cubic", 4), "function class 'cubic': give one of linear, sparse_linear"),
        (lambda: make_function_class("linear", 4, nonzeros=2), "'linear': unknown setting 'nonzeros'"),
        (lambda: make_function_class("sparse_linear", 4, nonzeros=5), "nonzeros 5: give 1 to 4, since x has 4 dimensions"),
        (lambda: make_function_class("mixture", 4), "'mixture': setting 'classes' is missing"),
        (lambda: SparseLinear(4, nonzeros=0), "nonzeros 0"),
        (lambda: DenseLinear(0), "dims 0"),
        (lambda: Mixture([DenseLinear(4), Quadratic(4)], [0.5, 0.6]), r"weights \[0.5, 0.6\] sum to 1.1, not to one"),
        (lambda: Mixture([DenseLinear(4), Quadratic(4)], [1.5, -0.5]), "weight of quadratic -0.5"),
        (lambda: Mixture([DenseLinear(4), Quadratic(4)], [1.0]), "2 classes and 1 weights"),
        (lambda: Mixture([DenseLinear(4), Quadratic(3)]), "quadratic has 3 dimensions and linear 4"),
        (lambda: Mixture([]), "no classes"),
        (lambda: Mixture([DenseLinear(4)], per="token"), "per 'token'"),
        (lambda: ConvexCombination(DenseLinear(1), Sinusoid(), 1.5), "weight 1.5: give 0 to 1"),
        (lambda: NoisyLinear(4, noise=math.nan), "noise nan"),
        (lambda: Sinusoid(frequency=(2, 1)), r"frequency \(2, 1\): low is above high"),
        (lambda: make_inputs("cauchy"), "inputs 'cauchy'"),
        (lambda: make_inputs("gaussian", scale=0.0), "scale 0.0"),
        (lambda: draw(DenseLinear(4), 2, 5, seeded(), inputs=make_inputs("orthogonal")), "orthogonal: 5 points"),
        (lambda: draw(DenseLinear(4), 2, 5, seeded(), active=5), "active dimensions 5: give 1 to 4"),
        (lambda: draw(DenseLinear(4), 2, 0, seeded()), "points 0"),
        (lambda: DenseLinear(4).values(DenseLinear(4).sample(2, seeded()), torch.zeros(2, 3, 5)), r"shape \(2, 3, 5\)"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(IclError, match=message):
        build()

"""Errors by number of in-context examples, as Garg et al. (arXiv 2208.01066, dtsip/in-context-learning src/eval.py) report them: 1,280
prompts, squared error divided by the class's normaliser, mean and a 90% bootstrap band over prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .defaults import BATCH, DRAWS, LEVEL, PROMPTS
from .function_class import FunctionClass, IclError, check_count, check_number
from .inputs import INPUTS, Inputs
from .linear import DenseLinear, NoisyLinear, SparseLinear
from .prompts import draw, interleaved

Predict = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (x [B, N, d], y [B, N], query [B, N, d] or None) -> [B, N]
SCALES = (1 / 3, 1 / 2, 2.0, 3.0)


@dataclass(frozen=True)
class Curve:
    """Normalised squared error after k = 0, 1, ... examples: mean, its bootstrap band, and the standard deviation over prompts."""

    mean: list[float]
    low: list[float]
    high: list[float]
    std: list[float]

    def to_dict(self) -> dict[str, list[float]]:
        return asdict(self)


def squared_errors(
    predictors: Mapping[str, Predict],
    kind: FunctionClass,
    points: int,
    generator: torch.Generator,
    *,
    inputs: Inputs | None = None,
    prompts: int = PROMPTS,
    batch: int = BATCH,
    normaliser: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """[prompts, points] for each predictor, all on the same prompts: (prediction - target)^2 / normaliser (default: the class's own)."""
    normaliser = check_number("normaliser", kind.normaliser if normaliser is None else normaliser, 0.0, above=True)
    check_count("batch", batch)
    found: dict[str, list[Tensor]] = {name: [] for name in predictors}
    for start in range(0, check_count("prompts", prompts), batch):
        drawn = draw(kind, min(batch, prompts - start), points, generator, inputs=inputs, dtype=dtype)
        query = None if drawn.query is drawn.x else drawn.query
        for name, predict in predictors.items():
            predicted = predict(drawn.x, drawn.y, query)
            if predicted.shape != drawn.y.shape:
                raise IclError(f"{name}: predictions have shape {tuple(predicted.shape)}; {tuple(drawn.y.shape)} are wanted")
            found[name].append((predicted - drawn.target).double().square() / normaliser)
    return {name: torch.cat(parts) for name, parts in found.items()}


def summarise(errors: Tensor, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0) -> Curve:
    """The curve of errors [prompts, points]. The band holds the middle `level` of the means of `draws` resamples of whole prompts."""
    check_count("draws", draws, 2)
    if not 0 < check_number("level", level) < 1:
        raise IclError(f"level {level!r}: give a share between 0 and 1")
    prompts = errors.shape[0]
    generator = torch.Generator().manual_seed(seed)
    taken = torch.randint(prompts, (draws, prompts), generator=generator)
    times = torch.zeros(draws, prompts, dtype=torch.float64).scatter_add_(1, taken, torch.ones(draws, prompts, dtype=torch.float64))
    values = errors.double().cpu()
    means = (times @ values / prompts).sort(0).values  # [draws, points]
    low, high = means[int((1 - level) / 2 * draws)], means[min(int((1 + level) / 2 * draws), draws - 1)]
    spread = values.std(0) if prompts > 1 else torch.zeros_like(low)
    return Curve(values.mean(0).tolist(), low.tolist(), high.tolist(), spread.tolist())


def curves(predictors: Mapping[str, Predict], kind: FunctionClass, points: int, generator: torch.Generator, **settings) -> dict[str, Curve]:
    """The curve of each predictor on the same prompts; settings as for squared_errors."""
    return {name: summarise(errors) for name, errors in squared_errors(predictors, kind, points, generator, **settings).items()}


def by_nonzeros(
    predictors: Mapping[str, Predict],
    dims: int,
    points: int,
    *,
    nonzeros: Iterable[int] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    **settings,
) -> dict[int, dict[str, Curve]]:
    """Curves on linear functions with 1, 2, ... dims non-zeros: the model-selection picture of Yadlowsky et al. (arXiv 2311.00871). The
    errors of each number are divided by it. Settings as for squared_errors."""
    counts = range(1, dims + 1) if nonzeros is None else nonzeros
    kinds = {count: SparseLinear(dims, nonzeros=count) for count in counts}
    return {count: curves(predictors, kind, points, torch.Generator(device).manual_seed(seed), **settings) for count, kind in kinds.items()}


def asked_apart(answer: Callable[[Tensor, Tensor], Tensor]) -> Predict:
    """A predictor of answer(x [B, N, d], y [B, N]) -> [B, N], whose prediction k sees the examples before k and x_k.

    With queries of their own it is asked N times at full length, each time with point k replaced by query k."""

    def predict(x: Tensor, y: Tensor, query: Tensor | None = None) -> Tensor:
        if query is None:
            return answer(x, y)
        answers = torch.zeros_like(y)
        for k in range(x.shape[1]):
            asked = torch.cat([x[:, :k], query[:, k, None], x[:, k + 1 :]], dim=1)
            answers[:, k] = answer(asked, y)[:, k]
        return answers

    return predict


def sequence_predictor(read: Callable[[Tensor], Tensor]) -> Predict:
    """A predictor of a causal model: read(sequence [B, 2N, d]) -> predictions at the x positions [B, N] (prompts.py, `interleaved`)."""
    return asked_apart(lambda x, y: read(interleaved(x, y)))


@dataclass(frozen=True)
class Case:
    """One test outside the training distribution: what to draw, where to draw x, and how many points make sense."""

    kind: FunctionClass
    inputs: Inputs
    points: int


def out_of_distribution(dims: int, points: int) -> dict[str, Case]:
    """The tests that Garg et al. put a model of dense linear functions to, by their names in section 4 and src/eval.py. The zero predictor
    has error scale^2 in the scaled ones."""
    kind = DenseLinear(dims)
    names = ("random_quadrants", "orthogonal", "overlapping", "half_subspace", "skewed")
    cases = {name: Case(kind, INPUTS[name](), min(points, dims) if name == "orthogonal" else points) for name in names}
    for scale in SCALES:
        cases[f"scale_x={scale:.3g}"] = Case(kind, Inputs(scale=scale), points)
        cases[f"scale_y={scale:.3g}"] = Case(DenseLinear(dims, scale=scale), Inputs(), points)
    cases["noisy"] = Case(NoisyLinear(dims, noise=1.0, renormalise=True), Inputs(), points)
    return cases

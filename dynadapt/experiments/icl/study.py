"""What trained models make of prompts, as results that figures are drawn from: errors by number of examples on function classes,
outside the training distribution, by number of non-zeros and on convex combinations; predictions along a line; the gradient at
the query.

Every model and every baseline sees the same prompts. Results are plain data (JSON), the same for the same models and settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from .applicable_baselines import baselines_for, basis_of, in_basis
from .baselines import least_squares
from .combine import ConvexCombination, Mixture
from .defaults import BATCH, DRAWS, LEVEL, PROMPTS, WEIGHTS
from .evaluate import Case, Predict, asked_apart, out_of_distribution, squared_errors, summarise
from .function_class import FunctionClass, IclError, check_count
from .inputs import Inputs
from .linear import DenseLinear, SparseLinear
from .prompts import draw
from .unit_variance import UnitVariance

LINE = 121  # points of a line along which predictions are kept
STEP = 0.1  # of the central differences behind a gradient


@dataclass(frozen=True)
class Subject:
    """A trained model. answer(x [B, N, d], y [B, N]) -> [B, N], prediction k from the examples before k and x_k.

    points: the longest prompt, N. kind, inputs: what it was trained on. about: whatever the results should say of it."""

    name: str
    answer: Callable[[Tensor, Tensor], Tensor]
    dims: int
    points: int
    kind: FunctionClass
    inputs: Inputs = field(default_factory=Inputs)
    about: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    prompts: int = PROMPTS
    batch: int = BATCH
    points: int | None = None  # default: the fewest that a subject was trained on
    seed: int = 0
    draws: int = DRAWS
    level: float = LEVEL
    baselines: tuple[str, ...] | None = None  # default: all that apply


class Study:
    """Subjects of one dimension, examined on the same prompts."""

    def __init__(self, subjects: Sequence[Subject], settings: Settings = Settings(), announce: Callable[[str], None] = lambda text: None):
        if not subjects:
            raise IclError("subjects: none are given")
        first = subjects[0]
        for subject in subjects:
            if subject.dims != first.dims:
                raise IclError(f"{subject.name} has {subject.dims} dimensions and {first.name} {first.dims}: evaluate them apart")
        names = [subject.name for subject in subjects]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise IclError(f"two runs are called {twice!r}: give directories of different names")
        most = min(subject.points for subject in subjects)
        self.points = most if settings.points is None else settings.points
        check_count("points", self.points, 2, most, ", the prompt of the model")
        self.subjects, self.settings, self.announce, self.dims = tuple(subjects), settings, announce, first.dims
        check_count("prompts", settings.prompts, 2)

    @property
    def inputs(self) -> Inputs:
        return self.subjects[0].inputs

    def generator(self) -> torch.Generator:
        """Prompts are drawn and baselines computed on the CPU, wherever the models are."""
        return torch.Generator().manual_seed(self.settings.seed)

    def trained_classes(self) -> list[FunctionClass]:
        """The classes of the subjects' training mixtures, each once."""
        found = {}
        for subject in self.subjects:
            for part in subject.kind.classes if isinstance(subject.kind, Mixture) else [subject.kind]:
                found.setdefault(str(part.describe()), part)
        return list(found.values())

    def predictors(self, kind: FunctionClass) -> dict[str, Predict]:
        mixtures = [subject.kind for subject in self.subjects if isinstance(subject.kind, Mixture)]
        prior = mixtures[0] if len({str(mixture.describe()) for mixture in mixtures}) == 1 else None
        baselines, chosen = baselines_for(kind, prior), self.settings.baselines
        taken = {name: predict for name, predict in baselines.items() if chosen is None or name in chosen}
        for name in taken:
            if any(subject.name == name for subject in self.subjects):
                raise IclError(f"a run is called {name!r}, as a baseline is: rename its directory")
        return {**{subject.name: asked_apart(subject.answer) for subject in self.subjects}, **taken}

    # ---- parts of the results

    def case(self, title: str, case: Case) -> dict:
        """One class and one distribution of x: the curve of every predictor, and how far each subject is from every other on the
        same prompts (`excess`: mean of the subject's error less the other's, with its band)."""
        self.announce(title)
        s = self.settings
        errors = squared_errors(
            self.predictors(case.kind), case.kind, case.points, self.generator(), inputs=case.inputs, prompts=s.prompts, batch=s.batch
        )
        band = {"draws": s.draws, "level": s.level, "seed": s.seed}
        excess = {
            subject.name: {name: _with_total(errors[subject.name] - other, band) for name, other in errors.items() if name != subject.name}
            for subject in self.subjects
        }
        return {
            "title": title,
            "class": case.kind.describe(),
            "inputs": describe_inputs(case.inputs),
            "points": case.points,
            "normaliser": case.kind.normaliser,
            "excess": excess,
            "curves": {name: _with_total(found, band) for name, found in errors.items()},
        }

    def classes(self, kinds: Sequence[FunctionClass] | None = None) -> dict[str, dict]:
        """Error by number of examples (default: on the classes of the training mixtures)."""
        kinds = self.trained_classes() if kinds is None else kinds
        return {label(kind): self.case(label(kind), Case(kind, self.inputs, self.points)) for kind in kinds}

    def out_of_distribution(self, names: Sequence[str] | None = None) -> dict[str, dict]:
        """The tests of Garg et al. on dense linear functions (default: all that these dimensions allow)."""
        if self.dims < 2 and names and "half_subspace" in names:
            raise IclError(f"half_subspace: dims {self.dims}: give at least 2")
        cases = out_of_distribution(self.dims, self.points)
        if self.dims < 2:
            del cases["half_subspace"]
        for name in names or ():
            if name not in cases:
                raise IclError(f"test {name!r}: give one of {', '.join(cases)}, or all")
        return {name: self.case(name, cases[name]) for name in (names or cases)}

    def by_nonzeros(self, counts: Sequence[int] | None = None) -> dict[str, dict]:
        """Linear functions with 1, 2, ... non-zeros: the model-selection picture of Yadlowsky et al. (arXiv 2311.00871)."""
        counts = range(1, self.dims + 1) if counts is None else counts
        kinds = {str(count): SparseLinear(self.dims, nonzeros=count) for count in counts}
        return {count: self.case(f"{count} non-zeros", Case(kind, self.inputs, self.points)) for count, kind in kinds.items()}

    def combination(self, first: FunctionClass, second: FunctionClass, weights: Sequence[float] = WEIGHTS) -> dict:
        """weight * first + (1 - weight) * second: errors, and predictions along a line for one prompt of each weight."""
        found = []
        for weight in weights:
            kind = ConvexCombination(first, second, weight)
            title = f"{weight:g} {label(first)} + {1 - weight:g} {label(second)}"
            entry = self.case(title, Case(kind, self.inputs, self.points))
            found.append({"weight": weight, **entry, "line": self.line(kind)})
        return {"first": first.describe(), "second": second.describe(), "weights": found}

    def line(self, kind: FunctionClass, examples: int | None = None, seed: int | None = None) -> dict:
        """Predictions for queries along coordinate 0 (the others are zero), which is what functions of one number read, after
        `examples` examples of one prompt (default: one fewer than points)."""
        examples = self.points - 1 if examples is None else check_count("examples", examples, 1, self.points - 1)
        generator = self.generator().manual_seed(self.settings.seed if seed is None else seed)
        prompt = draw(kind, 1, self.points, generator, inputs=self.inputs)
        reach = float(prompt.x[:, :examples, 0].abs().max()) * 1.1
        along = torch.linspace(-reach, reach, LINE)
        queries = torch.zeros(LINE, 1, self.dims)
        queries[:, 0, 0] = along
        x = torch.cat([prompt.x[:, :examples].expand(LINE, -1, -1), queries], dim=1)  # [G, k + 1, d]
        y = torch.cat([prompt.y[:, :examples].expand(LINE, -1), torch.zeros_like(along)[:, None]], dim=1)  # [G, k + 1]
        answers = {subject.name: subject.answer(x, y)[:, examples] for subject in self.subjects}
        if (basis := basis_of(kind)) is not None:
            answers["basis_least_squares"] = in_basis(basis)(x, y)[:, examples]
        truth = kind.values(prompt.functions, queries)[:, 0]
        return {
            "examples": examples,
            "x": along.tolist(),
            "truth": truth.tolist(),
            "shown_x": prompt.x[0, :examples, 0].tolist(),
            "shown_y": prompt.y[0, :examples].tolist(),
            "predictions": {name: values.tolist() for name, values in answers.items()},
        }

    def gradient(self, prompts: int = 64) -> dict:
        """How well the gradient of the prediction in the query points along w, and along w's projection onto the span of the
        examples: mean cosine by number of examples, on dense linear functions (Garg et al., arXiv 2208.01066).

        The gradient is taken by central differences of width 2 * STEP."""
        self.announce("gradient at the query")
        prompt = draw(DenseLinear(self.dims), check_count("prompts", prompts), self.points, self.generator(), inputs=self.inputs)
        weights = prompt.functions["w"]
        projected = [torch.zeros_like(weights)]  # w in the span of the first k examples
        for k in range(1, self.points):
            span = prompt.x[:, :k].transpose(1, 2)  # [B, d, k]
            projected.append((span @ (torch.linalg.pinv(span) @ weights[:, :, None])).squeeze(2))
        predictors = {subject.name: asked_apart(subject.answer) for subject in self.subjects} | {"least_squares": least_squares}
        found = {}
        for name, predict in predictors.items():
            gradient = central_differences(predict, prompt.x, prompt.y)  # [B, N, d]
            found[name] = {
                "w": cosine(gradient, weights[:, None]).mean(0).tolist(),
                "projection": cosine(gradient, torch.stack(projected, dim=1)).mean(0).tolist(),
            }
        return {"prompts": prompts, "step": STEP, "cosine": found}

    def header(self) -> dict:
        about = {
            s.name: {"class": s.kind.describe(), "inputs": describe_inputs(s.inputs), "points": s.points, **s.about} for s in self.subjects
        }
        return {"kind": "icl-eval", "dims": self.dims, "points": self.points, "settings": asdict(self.settings), "subjects": about}


def _with_total(errors: Tensor, band: dict) -> dict:
    """The curve of errors [prompts, points], and under `overall` the mean over points with its band."""
    overall = summarise(errors.mean(1, keepdim=True), **band)
    return {**summarise(errors, **band).to_dict(), "overall": {key: values[0] for key, values in overall.to_dict().items()}}


def central_differences(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
    """[B, N, d]: the derivative of prediction k in the coordinates of its query, at x_k."""
    columns = []
    for index in range(x.shape[2]):
        moved = torch.zeros_like(x)
        moved[:, :, index] = STEP
        columns.append((predict(x, y, x + moved) - predict(x, y, x - moved)) / (2 * STEP))
    return torch.stack(columns, dim=2)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of the last dimension; 0 where one is zero."""
    size = a.norm(dim=-1) * b.norm(dim=-1)
    return torch.where(size > 0, (a * b).sum(-1) / size, 0.0)


def label(kind: FunctionClass) -> str:
    """A short name that tells classes of one evaluation apart."""
    said = {
        "sparse_linear": ("nonzeros",),
        "noisy_linear": ("noise", "pool"),
        "sinusoid": ("amplitude", "frequency"),
        "decision_tree": ("depth",),
        "relu_network": ("hidden",),
        "fourier_series": ("max_frequency",),
    }
    settings = kind.describe()
    parts = [_plain(settings[key]) for key in said.get(kind.name, ()) if settings[key] is not None]
    if settings.get("scale", 1.0) != 1.0:
        parts.append(f"scale={settings['scale']:.3g}")
    if isinstance(kind, Mixture):
        parts = ["+".join(label(part) for part in kind.classes)]
    if isinstance(kind, ConvexCombination):
        parts = [f"{label(kind.first)}+{label(kind.second)}", _plain(list(kind.weight))]
    if isinstance(kind, UnitVariance):
        parts = [label(kind.of)]
    return ":".join([kind.name, *parts])


def _plain(value) -> str:
    if isinstance(value, (list, tuple)):
        return f"{value[0]:g}" if value[0] == value[1] else "..".join(f"{part:g}" for part in value)
    return f"{value:g}"


def describe_inputs(inputs: Inputs) -> dict:
    return {"name": inputs.name, **{key: value for key, value in vars(inputs).items() if not key.startswith("_")}}

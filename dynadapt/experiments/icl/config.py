"""What a training run of `dynadapt icl` computes: one frozen dataclass; presets.py has its values by name."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dynadapt.common.options import check, check_names, like, setting
from dynadapt.experiments.config import EvalConfig
from dynadapt.runs.whole_files import RunError, read_json

from .by_name import make_function_class, make_inputs
from .checks import IclError, check_count, check_number
from .combine import Mixture
from .curriculum import SCHEDULES, Ramp, Rate
from .function_class import FunctionClass
from .geometry import Geometry
from .inputs import Inputs
from .unit_variance import UnitVariance

if TYPE_CHECKING:
    from dynadapt.adapt.optimizers import Adam
DTYPES = ("bf16", "fp32", "fp64")  # those of the engine

ALIASES = {"dense_linear": "linear"}
MAIN = {
    "sparse_linear": "nonzeros",
    "noisy_linear": "noise",
    "decision_tree": "depth",
    "relu_network": "hidden",
    "fourier_series": "max_frequency",
}  # the setting that a bare value after the colon gives


def parse_spec(what: str, text: str) -> tuple[str, dict]:
    """ "sparse-linear:2" or "noisy-linear:noise=0.5,pool=64" -> (name, settings). Values are JSON, or [low;high] for a range."""
    name, _, rest = text.partition(":")
    name = name.strip().replace("-", "_")
    name, settings = ALIASES.get(name, name), {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            key, value = MAIN.get(name), part
            if key is None:
                raise IclError(f"{what} {text!r}: {part!r} names no setting; give NAME:KEY=VALUE,KEY=VALUE")
        key = key.strip().replace("-", "_")
        if key in settings:
            raise IclError(f"{what} {text!r}: {key} is given twice")
        try:
            settings[key] = json.loads(value.replace(";", ","))
        except ValueError:
            raise IclError(f"{what} {text!r}: value {value!r} is no number, true, false or [low;high]") from None
    return name, settings


def parse_mixture(value) -> tuple[float, ...]:
    """ "0.5,0.5" or the numbers themselves."""
    try:
        return tuple(float(part) for part in value.split(",")) if isinstance(value, str) else tuple(value)
    except (ValueError, TypeError):
        raise IclError(f"mixture {value!r}: give numbers, as in 0.5,0.5") from None


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run.

    classes: function classes as `parse_spec` reads them; mixture: their weights, None: even; per: a prompt's class is drawn for
    each "prompt" or for the whole "batch"; unit_variance: every class is divided by its standard deviation (unit_variance.py).
    points: of a prompt. *_start, *_step, *_every: the curriculum (curriculum.py), start 0: none. lr and warmup (in steps) as in
    `Rate`; betas, clip (0: none) of Adam.
    """

    preset: str = setting("custom")
    classes: tuple[str, ...] = setting(("dense-linear",), "what functions are drawn from", metavar="CLASS")
    mixture: tuple[float, ...] | None = setting(
        None, "weights of the classes, which sum to one (default: even)", read=parse_mixture, metavar="W,W"
    )
    per: str = setting(
        "prompt",
        "with several classes: a class for each prompt, or one for a whole batch",
        choices=("prompt", "batch"),
        needs={"classes": lambda classes: len(classes) > 1},
    )
    unit_variance: bool = setting(
        False, "divide each class's outputs by their standard deviation, so that none has more of the loss than its weight"
    )
    inputs: str = setting("gaussian", "distribution of x: gaussian, uniform:low=-5,high=5, skewed, half_subspace")
    dims: int = setting(20, "dimensions of x", least=1)
    points: int = setting(41, "examples of a prompt", least=1)
    layers: int = setting(12, "layers", least=1)
    hidden: int = setting(256, "width", least=1)
    heads: int = setting(8, "attention heads", least=1)
    positions: int = setting(202, "learned positions; a prompt of n points needs 2n - 1", least=1)
    batch: int = setting(64, "prompts of a step", least=1)
    steps: int = setting(500_000, "steps to train", least=1)
    lr: float = setting(1e-4, "learning rate of Adam", above=0)
    schedule: str = setting("constant", "of the rate after the warm-up", choices=SCHEDULES)
    warmup: int = setting(0, "steps over which the rate rises from 0", least=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = setting(0.0, "largest gradient norm, 0 for no limit", least=0)
    dims_start: int = setting(0, "curriculum: dimensions at the start, 0 for all at once", least=0)
    dims_every: int = setting(2000, "curriculum: steps between one dimension and the next", least=1, needs={"dims_start": bool})
    points_start: int = setting(0, "curriculum: points at the start, 0 for all", least=0)
    points_step: int = setting(2, "curriculum: points added at a time", least=1, needs={"points_start": bool})
    points_every: int = setting(2000, "curriculum: steps between additions", least=1, needs={"points_start": bool})
    log: int = setting(500, "steps between lines of metrics; only then the host waits for the device", option="--log-every", least=1)
    dtype: str = setting("fp32", "arithmetic; masters are float32", choices=DTYPES)
    backend: str = like(EvalConfig, "backend")
    device: str = like(EvalConfig, "device")
    seed: int = setting(0, "of the weights and of the prompts", least=0)

    def __post_init__(self):
        check(self, IclError)
        object.__setattr__(self, "betas", tuple(self.betas))
        check_count("dims_start", self.dims_start, 0, self.dims, ", the dimensions of x")
        check_count("points_start", self.points_start, 0, self.points, ", the points of a prompt")
        self.geometry().check_points(self.points)
        if len(self.betas) != 2 or not all(0 <= check_number("betas", beta) < 1 for beta in self.betas):
            raise IclError(f"betas {self.betas!r}: give two numbers, each at least 0 and below 1")
        self.kind(), self.distribution(), self.rate(), self.dims_ramp(), self.points_ramp()

    def geometry(self) -> Geometry:
        return Geometry(self.dims, self.layers, self.hidden, self.heads, self.positions)

    def classes_by_name(self) -> dict[str, FunctionClass]:
        """Each class under the words that name it."""
        if not self.classes:
            raise IclError("classes: none are given")
        named = {}
        for text in self.classes:
            name, settings = parse_spec("class", text)
            kind = make_function_class(name, self.dims, **settings)
            named[text] = UnitVariance(kind) if self.unit_variance else kind
        if len(named) < len(self.classes):
            raise IclError(f"classes {list(self.classes)}: one is given twice")
        return named

    def kind(self) -> FunctionClass:
        """What prompts are drawn from: the class, or the mixture of the classes."""
        parts = list(self.classes_by_name().values())
        if len(parts) == 1 and self.mixture is None:
            return parts[0]
        return Mixture(parts, self.mixture, per=self.per)

    def distribution(self) -> Inputs:
        name, settings = parse_spec("inputs", self.inputs)
        return make_inputs(name, **settings)

    def rate(self) -> Rate:
        return Rate(self.schedule, self.lr, self.warmup, self.steps)

    def optimizer(self) -> Adam:
        from dynadapt.adapt.optimizers import Adam

        return Adam(lr=self.lr, betas=self.betas, clip=self.clip)

    def dims_ramp(self) -> Ramp:
        return Ramp(self.dims_start or self.dims, self.dims, 1, self.dims_every)

    def points_ramp(self) -> Ramp:
        return Ramp(self.points_start or self.points, self.points, self.points_step, self.points_every)

    def to_dict(self) -> dict:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: dict) -> TrainConfig:
        """What `to_dict` gave. IclError for a key that doesn't exist."""
        check_names(cls, content, IclError)
        return cls(**content)


def trained_on(path: str | Path) -> TrainConfig:
    """What a run directory's regressor was trained on. RunError for a directory that holds no such run."""
    content = read_json(Path(path) / "config.json")
    if "classes" not in content:
        raise RunError(f"{path} holds a run of another kind, not one of `dynadapt icl train`")
    return TrainConfig.from_dict(content)

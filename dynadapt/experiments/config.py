"""What a dynamic evaluation computes: one frozen dataclass, which is the one place where its defaults live."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real

CHOICES = {
    "adapt": ("none", "lora", "rows", "full"),
    "targets": ("all", "attn", "mlp", "model"),
    "refresh": ("keep", "reproject"),
    "optimizer": ("adam", "adamw", "sgd", "rms"),
    "dtype": ("auto", "bf16", "fp32", "fp64"),
    "base": ("same", "float8"),
    "backend": ("auto", "cpu", "triton", "reference"),
}

# Learning rates that are used when none is given, by what learns and by optimizer.
LEARNING_RATES = {
    "lora": {"adam": 2e-3, "adamw": 2e-3, "sgd": 1.0},
    "rows": {"adam": 3e-4, "adamw": 3e-4, "sgd": 1e-1, "rms": 1e-4},
    "full": {"adam": 1e-4, "adamw": 1e-4, "sgd": 1e-1, "rms": 2e-5},
}


OPEN = {"memory": None, "dtype": "auto"}


class ConfigError(ValueError):
    """A setting that can't be used; the message names it, its value and what is accepted."""


def check_alpha(alpha) -> None:
    """ConfigError unless it is None (twice the rank) or a number that can scale an adapter."""
    if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 1e-30 < alpha < 1e30):
        raise ConfigError(f"alpha {alpha!r}: give a number above 0; the adapter is scaled by alpha / rank (default: twice the rank)")


def without_usual_alpha(content: dict) -> dict:
    """A configuration's content without the alpha that every rank has by itself, so that runs begun before there was one go on."""
    usual = content["adapt"] != "lora" or content["alpha"] in (None, 2 * content["rank"])
    return {name: value for name, value in content.items() if name != "alpha" or not usual}


@dataclass(frozen=True)
class EvalConfig:
    """Settings of one run. Sizes are tokens; lr is per update; None means "the default for the rest".

    memory None and dtype "auto" are open: they are settled when a run begins (defaults.py), by the model's positions and by what this
    machine does fastest, and its config.json has what they became.
    """

    model: str = "smollm2-135m"
    text: tuple[str, ...] = ()
    field: str = "text"
    tokens: int | None = None
    adapt: str = "lora"
    rank: int = 16
    alpha: float | None = None
    targets: str = "all"
    layers: tuple[int, int] | None = None
    density: float = 0.1
    segment: int = 512
    memory: int | None = None
    sinks: int = 4
    refresh: str = "keep"
    context: int = 0
    every: int = 1
    optimizer: str = "adam"
    statistics: str = "builtin:python-reference"
    lr: float | None = None
    decay: float = 0.0
    clip: float = 1.0
    reset: str | int = "never"
    streams: int = 1
    split: bool = False
    dtype: str = "auto"
    backend: str = "auto"
    device: str = "auto"
    batch: int = 0
    recompute: bool = False
    base: str = "same"
    seed: int = 0

    def __post_init__(self):
        _check(self)

    @property
    def learning_rate(self) -> float:
        return 0.0 if self.adapt == "none" else LEARNING_RATES[self.adapt][self.optimizer] if self.lr is None else self.lr

    def to_dict(self) -> dict:
        """JSON-ready; the learning rate is the one that is used. An alpha that changes nothing is left out."""
        content = asdict(self)
        content.update(text=list(self.text), layers=list(self.layers) if self.layers else None, lr=self.learning_rate)
        if self.field == "text":  # as runs have it that were begun before there was another
            del content["field"]
        return without_usual_alpha(content)

    @classmethod
    def from_dict(cls, content: dict) -> EvalConfig:
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(content) - known)
        if unknown:
            raise ConfigError(f"unknown setting {unknown[0]!r}; there are {', '.join(sorted(known))}")
        content = dict(content)
        if isinstance(content.get("text"), str):
            content["text"] = (content["text"],)
        if "text" in content:
            content["text"] = tuple(str(text) for text in content["text"])
        if content.get("layers") is not None:
            content["layers"] = parse_layers(content["layers"])
        if "reset" in content:
            content["reset"] = parse_reset(content["reset"])
        return cls(**content)

    @property
    def open(self) -> tuple[str, ...]:
        """The settings that are still to be settled."""
        return tuple(name for name, value in OPEN.items() if getattr(self, name) == value)

    def matches(self, begun: dict) -> bool:
        """Whether `begun`, a run's config.json, is a run of this configuration, whatever its open settings became there."""
        mine = self.to_dict()
        return {**mine, **{name: begun[name] for name in self.open if name in begun}} == begun

    def as_begun(self, begun: dict) -> EvalConfig:
        """With the open settings that `begun`, a run's config.json, has."""
        return self.with_(**{name: begun[name] for name in self.open if name in begun})

    def with_(self, **changes) -> EvalConfig:
        return replace(self, **changes)

    def arguments(self) -> list[str]:
        """The options of `dynadapt eval` that give this configuration: those that are not the default."""
        words = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "text":
                words += ["--text", *value]
            elif isinstance(field.default, bool):
                words += [f"--{field.name}"] * value
            elif value != field.default:
                words += [f"--{field.name}", ":".join(map(str, value)) if field.name == "layers" else str(value)]
        return words


def parse_layers(value) -> tuple[int, int]:
    """ "A:B" or [A, B]: layers A..B-1."""
    try:
        first, stop = value.split(":") if isinstance(value, str) else value
        first, stop = int(first), int(stop)
    except (ValueError, TypeError):
        raise ConfigError(f"layers {value!r}: give A:B with A < B, for example 20:30 for layers 20 to 29") from None
    if not 0 <= first < stop:
        raise ConfigError(f"layers {value!r}: give A:B with 0 <= A < B")
    return first, stop


def parse_reset(value) -> str | int:
    if value in ("never", "document", "auto"):
        return value
    try:
        tokens = int(value)
    except (ValueError, TypeError):
        tokens = 0
    if tokens < 1 or isinstance(value, bool):
        raise ConfigError(f"reset {value!r}: give never, document, auto or a number of tokens")
    return tokens


def _check(config: EvalConfig) -> None:
    if not isinstance(config.field, str) or not config.field:
        raise ConfigError(f"field {config.field!r}: give the name of the key or column that holds the text")
    for name, accepted in CHOICES.items():
        if getattr(config, name) not in accepted:
            raise ConfigError(f"{name} {getattr(config, name)!r}: give one of {', '.join(accepted)}")
    for name, least in (
        ("rank", 1),
        ("segment", 1),
        ("memory", 0),
        ("sinks", 0),
        ("context", 0),
        ("every", 1),
        ("streams", 1),
        ("batch", 0),
        ("seed", 0),
    ):
        value = getattr(config, name)
        if name in config.open:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} {value!r}: give a whole number of at least {least}")
    if config.tokens is not None and (isinstance(config.tokens, bool) or not isinstance(config.tokens, int) or config.tokens < 2):
        raise ConfigError(f"tokens {config.tokens!r}: give a whole number of at least 2 (the first token is not scored)")
    for name, accepted in (
        ("density", lambda x: 0 < x <= 1),
        ("decay", lambda x: 0 <= x <= 1),
        ("clip", lambda x: x >= 0),
        ("lr", lambda x: x is None or x >= 0),
    ):
        value = getattr(config, name)
        number = isinstance(value, Real) and not isinstance(value, bool) or name == "lr" and value is None
        if not number or not accepted(value) or value == math.inf:
            raise ConfigError(
                f"{name} {value!r}: give "
                + {
                    "density": "a share of the rows, more than 0 and at most 1",
                    "decay": "a number from 0 to 1",
                    "clip": "a norm of at least 0 (0: no clipping)",
                    "lr": "a finite rate of at least 0",
                }[name]
            )
    check_alpha(config.alpha)
    if config.memory and config.context:
        raise ConfigError(
            f"memory {config.memory} and context {config.context}: give one of them (memory keeps keys and values, "
            "context runs the text again)"
        )
    if config.adapt == "lora" and config.optimizer == "rms":
        raise ConfigError(
            "optimizer 'rms' with adapt 'lora': an adapter has no gradient statistics before it learns; "
            "give adam, adamw or sgd, or adapt rows or full"
        )
    if config.targets == "model" and config.adapt in ("lora", "rows"):
        raise ConfigError(f"targets 'model' with adapt {config.adapt!r}: give adapt full, or targets all, attn or mlp")
    if config.targets == "model" and config.layers:
        raise ConfigError(f"layers {config.layers[0]}:{config.layers[1]} with targets 'model': every layer learns; give no layers")
    if config.split and len(config.text) > 1:
        raise ConfigError(f"split: cuts one text into streams, but {len(config.text)} texts are given")
    if config.split and config.streams < 2:
        raise ConfigError(f"streams {config.streams}: with split, give the number of parts, at least 2")
    parse_reset(config.reset)

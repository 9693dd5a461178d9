"""What a reweighting run computes: one frozen dataclass, which is the one place where its defaults live."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dynadapt.experiments.config import CHOICES, LEARNING_RATES, ConfigError, check_alpha, without_usual_alpha
from dynadapt.experiments.mixers import MIXERS

ACCEPTED = {
    "mixer": tuple(MIXERS),
    "policy": ("stop", "repeat", "renormalise"),
    "adapt": ("lora", "rows", "full"),
    "targets": CHOICES["targets"],
    "optimizer": ("adam", "adamw", "sgd"),
    "schedule": ("constant", "cosine"),
    "dtype": ("auto", "bf16", "fp32"),
    "backend": CHOICES["backend"],
    "compress": ("none", "bf16", "powersgd"),
}
SCRATCH_RATE = 1e-3  # learning rate of a model from scratch when none is given; docs/defaults.md has what it was held against


@dataclass(frozen=True)
class ReweightConfig:
    """Settings of one run. Sizes are tokens; rows are training samples of `segment` tokens; lr is per update.

    domains   name -> path of a file or directory (domains.py says what may be in it); corpus: what `dynadapt corpus build` made.
    field     of .jsonl, .json and .parquet files: the key or column that holds the text.
    scratch   "LAYERSxHIDDEN": a llama of this size with random weights in place of the model's, whose tokenizer it keeps.
    weights   "proportional", "uniform", or name -> weight: the mixer's initial ones.
    target    name -> nats, for velocitune and dynamic-batch-loading.   settings: the mixer's own, by name.
    heldout   share of the documents held out where a domain has no held-out file; heldout_rows: rows scored of each domain.
    dtype     auto: what is fastest where the run begins (experiments/defaults.py); its config.json has what that was.
    compress  of gradients on their way between processes (dynadapt/distributed); powersgd_rank: of what is sent for a matrix.
    """

    model: str = "smollm2-135m"
    scratch: str | None = None
    domains: Mapping[str, str] = dataclasses.field(default_factory=dict)
    corpus: str | None = None
    field: str = "text"
    mixer: str = "stratified"
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    weights: str | Mapping[str, float] = "proportional"
    target: Mapping[str, float] | None = None
    reference: str | None = None
    policy: str = "stop"
    pace: float = 1.0
    smoothing: float = 0.0
    floor: float = 0.0
    adapt: str = "full"
    targets: str = "all"
    rank: int = 16
    alpha: float | None = None
    density: float = 0.1
    optimizer: str = "adamw"
    lr: float | None = None
    decay: float = 0.0
    clip: float = 1.0
    warmup: int = 0
    schedule: str = "constant"
    segment: int = 512
    rows: int = 8
    steps: int = 100
    evaluate: int = 20
    heldout: float = 0.1
    heldout_rows: int = 16
    dtype: str = "auto"
    backend: str = "auto"
    device: str = "auto"
    recompute: bool = False
    compress: str = "none"
    powersgd_rank: int = 4
    seed: int = 0

    def __post_init__(self):
        _check(self)

    @property
    def learning_rate(self) -> float:
        if self.lr is not None:
            return self.lr
        return SCRATCH_RATE if self.scratch else LEARNING_RATES[self.adapt][self.optimizer]

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0: a linear warm-up, then constant, or a cosine down to a tenth."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.1 + 0.45 * (1.0 + math.cos(math.pi * done)))

    def to_dict(self) -> dict:
        """JSON-ready; the learning rate is the one that is used. Compression's settings are left out without it, and so are an alpha that
        changes nothing and the field that every run had before there was a choice."""
        content = {**without_usual_alpha(asdict(self)), "kind": "reweight", "lr": self.learning_rate}
        unused = {"none": ("compress", "powersgd_rank"), "bf16": ("powersgd_rank",)}.get(self.compress, ()) + ("field",) * (
            self.field == "text"
        )
        return {name: value for name, value in content.items() if name not in unused}

    @classmethod
    def from_dict(cls, content: Mapping) -> ReweightConfig:
        return cls(**{key: value for key, value in content.items() if key != "kind"})


def named_values(what: str, words: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE words as a dictionary. ConfigError for a word without =, or a name given twice."""
    found: dict[str, str] = {}
    form = {"domains": "NAME=PATH", "set": "KEY=VALUE"}.get(what, "NAME=NUMBER")
    for word in words:
        name, sign, value = word.partition("=")
        if not (name and sign and value):
            raise ConfigError(f"{what} {word!r}: give {form}")
        if name in found:
            raise ConfigError(f"{what}: {name!r} is given twice")
        found[name] = value
    return found


def named_numbers(what: str, words: Iterable[str]) -> dict[str, float]:
    """NAME=NUMBER words, or one JSON file that holds such a dictionary (by itself, or under "target", as of `reweight fit`)."""
    words = list(words)
    if len(words) == 1 and "=" not in words[0]:
        from dynadapt.runs.rundir import read_json

        content = read_json(Path(words[0]))
        content = content.get("target", content) if isinstance(content, dict) else content
        if not isinstance(content, dict):
            raise ConfigError(f"{what}: {words[0]} holds no dictionary of numbers by domain")
        return content
    numbers = {}
    for name, value in named_values(what, words).items():
        try:
            numbers[name] = float(value)
        except ValueError:
            raise ConfigError(f"{what}: {name!r} has {value!r}; give a number") from None
    return numbers


def setting_values(words: Iterable[str]) -> dict[str, object]:
    """KEY=VALUE words; a value is JSON where it reads as JSON, else a string."""
    found = {}
    for name, value in named_values("set", words).items():
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def scratch_size(text: str) -> tuple[int, int]:
    """(layers, hidden) of "LAYERSxHIDDEN"."""
    match = re.fullmatch(r"(\d+)x(\d+)", str(text))
    layers, hidden = map(int, match.groups()) if match else (0, 0)
    if layers < 1 or hidden < 16 or hidden % 16:
        raise ConfigError(f"scratch {text!r}: give LAYERSxHIDDEN, for example 6x384; HIDDEN is a multiple of 16")
    return layers, hidden


def _check(config: ReweightConfig) -> None:
    for name, accepted in ACCEPTED.items():
        if getattr(config, name) not in accepted:
            raise ConfigError(f"{name} {getattr(config, name)!r}: give one of {', '.join(accepted)}")
    for name, least in (
        ("rank", 1),
        ("segment", 1),
        ("rows", 1),
        ("steps", 1),
        ("evaluate", 1),
        ("heldout_rows", 1),
        ("warmup", 0),
        ("powersgd_rank", 1),
        ("seed", 0),
    ):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} {value!r}: give a whole number of at least {least}")
    for name, fits, wanted in (
        ("density", lambda x: 0 < x <= 1, "a share above 0 and at most 1"),
        ("decay", lambda x: 0 <= x <= 1, "a number from 0 to 1"),
        ("clip", lambda x: 0 <= x < float("inf"), "a norm of at least 0 (0: no clipping)"),
        ("lr", lambda x: x is None or 0 <= x < float("inf"), "a rate of at least 0"),
        ("heldout", lambda x: 0 < x <= 0.5, "a share above 0 and at most 0.5"),
    ):
        value = getattr(config, name)
        if isinstance(value, (bool, str)) or not fits(value):
            raise ConfigError(f"{name} {value!r}: give {wanted}")
    check_alpha(config.alpha)
    if not isinstance(config.field, str) or not config.field:
        raise ConfigError(f"field {config.field!r}: give the name of the key or column that holds the text")
    if config.corpus and config.field != "text":
        raise ConfigError(f'field {config.field!r} with a corpus: its lines have "text"; leave it out')
    if bool(config.domains) == bool(config.corpus):
        raise ConfigError(
            "domains: give them as NAME=PATH, or a corpus, and not both"
            if config.corpus
            else "domains: none are given; name them as NAME=PATH, or give a corpus"
        )
    if isinstance(config.weights, str) and config.weights not in ("proportional", "uniform"):
        raise ConfigError(f"weights {config.weights!r}: give proportional, uniform, or NAME=WEIGHT for every domain")
    if config.targets == "model" and config.adapt != "full":
        raise ConfigError(f"targets 'model' with adapt {config.adapt!r}: give adapt full, or targets all, attn or mlp")
    if config.scratch:
        scratch_size(config.scratch)
        if (config.adapt, config.targets) != ("full", "model"):
            raise ConfigError(
                f"scratch {config.scratch!r} with adapt {config.adapt!r} and targets {config.targets!r}: a "
                "model from scratch learns all of itself; give adapt full and targets model"
            )

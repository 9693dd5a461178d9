"""What a reweighting run computes: one frozen dataclass, which is the one place where its defaults live."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dynadapt.adapt.optimizers import WITHOUT_STATISTICS
from dynadapt.common.errors import ConfigError
from dynadapt.common.options import check, check_names, like, setting
from dynadapt.experiments.adapter_words import WORDS
from dynadapt.experiments.config import LEARNING_RATES, EvalConfig, without_usual_alpha
from dynadapt.experiments.mixers import MIXERS

SCRATCH_RATE = 1e-3  # learning rate of a model from scratch when none is given; docs/defaults.md has what it was held against


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
    """NAME=NUMBER words, or one JSON file that holds such a dictionary: by itself, or under "target", as of `reweight fit`, or for weights
    under "weights", as of `reweight search`."""
    words = list(words)
    if len(words) == 1 and "=" not in words[0]:
        from dynadapt.runs.rundir import read_json

        content = read_json(Path(words[0]))
        content = content.get("target" if what == "target" else "weights", content) if isinstance(content, dict) else content
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
    """KEY=VALUE words as a dictionary; a value is JSON where it reads as JSON, else a string."""
    found = {}
    for name, value in named_values("set", words).items():
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def named_weights(value) -> str | dict[str, float]:
    """proportional, uniform, or NAME=WEIGHT words as a dictionary."""
    if value in ("proportional", "uniform", ["proportional"], ["uniform"]):
        return value if isinstance(value, str) else value[0]
    if isinstance(value, str):
        raise ConfigError(f"weights {value!r}: give proportional, uniform, or NAME=WEIGHT for every domain")
    return named_numbers("weights", value)


def unless_named(read: Callable) -> Callable:
    """For words, as `read` does it; what is a dictionary already stays one."""
    return lambda value: value if isinstance(value, Mapping) else read(value)


def scratch_size(text: str, name: str = "scratch") -> tuple[int, int]:
    """(layers, hidden) of "LAYERSxHIDDEN", as the setting `name` says it."""
    match = re.fullmatch(r"(\d+)x(\d+)", str(text))
    layers, hidden = map(int, match.groups()) if match else (0, 0)
    if layers < 1 or hidden < 16 or hidden % 16:
        raise ConfigError(f"{name} {text!r}: give LAYERSxHIDDEN, for example 6x384; HIDDEN is a multiple of 16")
    return layers, hidden


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

    model: str = like(EvalConfig, "model")
    scratch: str | None = setting(
        None,
        "train a llama of this size from random weights, with --model's tokenizer (needs --targets model)",
        metavar="LAYERSxHIDDEN",
        what="LAYERSxHIDDEN, for example 6x384",
    )
    domains: Mapping[str, str] = setting(
        factory=dict,
        help="the domains: files or directories by name",
        read=unless_named(lambda words: named_values("domains", words)),
        nargs="+",
        metavar="NAME=PATH",
    )
    corpus: str | None = setting(
        None, "in place of --domains: a directory that `dynadapt corpus build` made", metavar="DIR", what="the name of a directory"
    )
    field: str = like(EvalConfig, "field")
    mixer: str = setting("stratified", "rule that sets the domains' weights", choices=tuple(MIXERS))
    settings: Mapping[str, object] = setting(
        factory=dict,
        help="settings of the mixer, a value in JSON or a plain word (the mixers' files name them)",
        read=unless_named(setting_values),
        nargs="+",
        option="--set",
        metavar="KEY=VALUE",
    )
    weights: str | Mapping[str, float] = setting(
        "proportional",
        "initial weights: proportional to the domains' rows, uniform, or given",
        read=unless_named(named_weights),
        nargs="+",
        metavar="NAME=WEIGHT",
    )
    target: Mapping[str, float] | None = setting(
        None,
        "target loss of each domain in nats per token, or the file of `reweight fit` (velocitune, dynamic-batch-loading)",
        read=unless_named(lambda words: named_numbers("target", words)),
        nargs="+",
        metavar="NAME=NATS",
    )
    reference: str | None = setting(None, "with --mixer doremi: the reference, a model or the directory of a run that trained one")
    policy: str = setting("stop", "what happens when a domain has no rows left", choices=("stop", "repeat", "renormalise"))
    pace: float = setting(1.0, "share of the way, in log weights, that an update goes; 1 is as published")
    smoothing: float = setting(0.0, "share of the weight spread evenly over the domains")
    floor: float = setting(0.0, "least weight of a domain")
    adapt: str = setting(
        "full", "what learns: low-rank adapters, the rows with the largest gradients, or whole weights", choices=("lora", "rows", "full")
    )
    targets: str = like(EvalConfig, "targets")
    rank: int = like(EvalConfig, "rank")
    alpha: float | None = like(EvalConfig, "alpha")
    density: float = like(EvalConfig, "density")
    optimizer: str = like(EvalConfig, "optimizer", "adamw", choices=WITHOUT_STATISTICS)
    lr: float | None = like(
        EvalConfig, "lr", help=f"learning rate per update (default: that of `dynadapt eval`; {SCRATCH_RATE:g} from scratch)"
    )
    decay: float = like(EvalConfig, "decay")
    clip: float = like(EvalConfig, "clip", help="largest gradient norm, 0 for no limit")
    warmup: int = setting(0, "steps over which the learning rate rises from 0", least=0)
    schedule: str = setting(
        "constant", "learning rate after the warm-up: as it is, or along a cosine to a tenth", choices=("constant", "cosine")
    )
    segment: int = setting(512, "tokens of a row", least=1)
    rows: int = setting(8, "rows of a step", least=1)
    steps: int = setting(100, "steps to train", least=1)
    evaluate: int = setting(20, "score the held-out rows every N steps", least=1)
    heldout: float = setting(0.1, "share of the documents held out, for domains without a held-out file", above=0, most=0.5, what="a share")
    heldout_rows: int = setting(32, "most held-out rows scored of each domain (docs/reweight.md: how many are enough)", least=1)
    dtype: str = like(
        EvalConfig,
        "dtype",
        help="arithmetic; masters of what learns are float32 (auto: bf16 on GPUs and on processors with AVX512-BF16, else fp32, which is "
        "faster there)",
        choices=("auto", "bf16", "fp32"),
    )
    backend: str = like(EvalConfig, "backend")
    device: str = like(EvalConfig, "device")
    recompute: bool = like(EvalConfig, "recompute")
    compress: str = setting(
        "none",
        "with several processes: gradients on their way between them as they are, in bf16, or as products of low rank",
        choices=("none", "bf16", "powersgd"),
    )
    powersgd_rank: int = setting(
        4, "with --compress powersgd: rank of what is sent for a matrix", least=1, needs={"compress": ("powersgd",)}
    )
    seed: int = setting(0, "of the rows' order, of what is held out and of random weights", least=0)

    def __post_init__(self):
        check(self)
        _check_together(self)

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
        content = {key: value for key, value in content.items() if key != "kind"}
        check_names(cls, content)
        return cls(**content)


def _check_together(config: ReweightConfig) -> None:
    if config.corpus and config.field != "text":
        raise ConfigError(f'field {config.field!r} with a corpus: its lines have "text"; leave it out')
    if bool(config.domains) == bool(config.corpus):
        raise ConfigError(
            "domains: give them as NAME=PATH, or a corpus, and not both"
            if config.corpus
            else "domains: none are given; name them as NAME=PATH, or give a corpus"
        )
    if config.targets not in WORDS and config.adapt != "lora":
        raise ConfigError(f"targets {config.targets!r} with adapt {config.adapt!r}: give adapt lora, or targets all, attn or mlp")
    if config.targets in WORDS[3:] and config.adapt != "full":
        raise ConfigError(f"targets {config.targets!r} with adapt {config.adapt!r}: give adapt full, or targets all, attn or mlp")
    if config.scratch:
        scratch_size(config.scratch)
        if (config.adapt, config.targets) != ("full", "model"):
            raise ConfigError(
                f"scratch {config.scratch!r} with adapt {config.adapt!r} and targets {config.targets!r}: a "
                "model from scratch learns all of itself; give adapt full and targets model"
            )

"""What a dynamic evaluation computes: one frozen dataclass, which is the one place where its defaults live."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from dynadapt.adapt.hypergradient import as_hypergradient
from dynadapt.adapt.methods import LATER
from dynadapt.adapt.optimizers import IN_WORDS, OPTIMIZERS, WITH_STATISTICS
from dynadapt.adapt.reset_policy import Alarm, check_reset
from dynadapt.adapt.selection import as_selection
from dynadapt.common.checks import shown
from dynadapt.common.errors import ConfigError
from dynadapt.common.options import check, check_names, setting

from . import kept_prior
from .adapter_words import WORDS, parse_alphas, parse_also, parse_factors, parse_ranks, parse_targets, pattern_of
from .guarded import ADDED, parse_guard, parse_rates
from .optimizer_words import parse_betas

# Learning rates that are used when none is given, by what learns and by optimizer.
LEARNING_RATES = {
    adapt: {kind: optimizer.rates[adapt] for kind, optimizer in OPTIMIZERS.items() if adapt in optimizer.rates}
    for adapt in ("lora", "rows", "full")
}
USUAL_RATES = "; ".join(f"{adapt}: " + ", ".join(f"{key} {rate:g}" for key, rate in by.items()) for adapt, by in LEARNING_RATES.items())
LEVELS = ("fast,slow", "slow")
LEARNS = {"adapt": ("lora", "rows", "full")}
NUMBERS = ("betas", "weight_decay", "slow_lr")  # left out where nothing was said, and where 0 says something
REMEMBERS = {"memory": lambda tokens: tokens != 0, "context": (0,)}
OPEN = {"memory": None, "dtype": "auto", "bos": "auto"}
UNSAID = {"bos": "no"}  # what a config.json means that does not name it


def without_usual_alpha(content: dict) -> dict:
    """A configuration's content without the alpha that every rank has by itself, so that runs begun before there was one go on."""
    usual = content["adapt"] != "lora" or content["alpha"] in (None, 2 * content["rank"])
    return {name: value for name, value in content.items() if name != "alpha" or not usual}


def check_rank(config, model_config) -> None:
    """ConfigError for adapters of a higher rank than the model's largest width, once that is known: no weight's rank is as high.

    config: an EvalConfig or a ReweightConfig. model_config: the ModelConfig.
    """
    width = max(model_config.hidden_size, model_config.ffn_size)
    if config.adapt != "lora":
        return
    if config.rank > width:
        raise ConfigError(f"rank {config.rank}: give a whole number from 1 to {width}, the model's largest width")
    own = getattr(config, "rank_pattern", None)  # which reweighting has none of
    if max(pattern_of(own, int).values(), default=0) > width:
        raise ConfigError(f"rank_pattern {own!r}: give ranks from 1 to {width}, the model's largest width")


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
    if isinstance(value, Alarm) or isinstance(value, str) and value.startswith("auto:"):
        try:
            alarm = check_reset(value)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return alarm.word
    try:
        tokens = int(value) if isinstance(value, (int, str)) else 0
    except ValueError:
        tokens = 0
    if tokens < 1 or isinstance(value, bool):
        raise ConfigError(f"reset {value!r}: give never, document, auto, with a guard auto:back=0.5 and the like, or a number of tokens")
    return tokens


def _word_by(read):
    """Words that ``read`` takes, or what they stand for, as words."""

    def parse(value) -> str:
        try:
            return read(value).word
        except ValueError as error:
            raise ConfigError(str(error)) from None

    return parse


@dataclass(frozen=True)
class EvalConfig:
    """Settings of one run. Sizes are tokens; lr is per update; None means "the default for the rest".

    memory None and dtype "auto" are open: they are settled when a run begins (defaults.py), by the model's positions and by what this
    machine does fastest, and its config.json has what they became.
    """

    model: str = setting(
        "smollm2-135m",
        "a name that `dynadapt fetch` knows, a Hugging Face directory, a GGUF file, a PEFT adapter's directory, or a hub id (org/name) in "
        "the Hugging Face cache",
    )
    text: tuple[str, ...] = setting(
        (),
        "files (each a document), directories of them, .jsonl or .parquet (each line or row a document), any of them as .gz, "
        "- for standard input, or builtin:python-reference, builtin:python-source",
        metavar="FILE",
        what="names of files",
    )
    field: str = setting(
        "text",
        "of .jsonl, .json and .parquet: the key or column that holds the text",
        what="the name of the key or column that holds the text",
    )
    tokens: int | None = setting(
        None, "read only the first N tokens, over all texts (default: all)", least=2, why=" (the first token is not scored)"
    )
    bos: str = setting(
        "auto",
        "whether each document begins with the tokenizer's beginning-of-text token, which is not scored: auto where the tokenizer itself puts "
        "it before a text",
        choices=("auto", "yes", "no"),
    )
    adapt: str = setting(
        "lora",
        "what learns: nothing, low-rank adapters, the rows with the largest gradients, or whole weights",
        choices=("none", "lora", "rows", "full"),
    )
    rank: int = setting(16, "rank of the low-rank adapters", least=1, needs={"adapt": ("lora",)})
    alpha: float | None = setting(
        None,
        "the adapters are scaled by alpha / rank (default: twice the rank)",
        above=0,
        why="; the adapter is scaled by alpha / rank (default: twice the rank)",
        needs={"adapt": ("lora",)},
    )
    targets: str = setting(
        "all",
        "which linear weights learn: all, attn or mlp; with --adapt lora also some of q,k,v,o,gate,up,down,head,embed or a regular "
        "expression over PEFT's module names; with --adapt full also model: every parameter there is, or norms, biases or norms,biases: these alone",
        read=parse_targets,
        metavar="WHICH",
        needs=LEARNS,
    )
    rank_pattern: str | None = setting(
        None,
        "ranks of some of the linears, for example q=4,down=32; the others have --rank",
        read=parse_ranks,
        metavar="LINEAR=R,...",
        needs={"adapt": ("lora",)},
    )
    alpha_pattern: str | None = setting(
        None,
        "alphas of some of the linears; the others have --alpha",
        read=parse_alphas,
        metavar="LINEAR=A,...",
        needs={"adapt": ("lora",)},
    )
    rslora: bool = setting(False, "the adapters are scaled by alpha / sqrt(rank)", needs={"adapt": ("lora",)})
    keep_a: bool = setting(
        False,
        "a reset takes B of the adapters back to zero and leaves A as it has learned",
        needs={"adapt": ("lora",), "reset": lambda when: when != "never"},
    )
    rate_pattern: str | None = setting(
        None,
        "factors of the learning rate for some of the linears, for example q=0.5,head=0; the others have 1",
        read=parse_factors,
        metavar="LINEAR=F,...",
        needs={"adapt": ("lora",)},
    )
    b_rate: float = setting(
        1.0, "factor of the learning rate of the adapters' B over that of A (LoRA+)", above=0, needs={"adapt": ("lora",)}
    )
    also: str | None = setting(
        None, "what learns beside the adapters: norms, biases or norms,biases", read=parse_also, metavar="WHAT", needs={"adapt": ("lora",)}
    )
    dora: bool = setting(False, "the rows of adapted weights have lengths that learn, too (DoRA)", needs={"adapt": ("lora",)})
    layers: tuple[int, int] | None = setting(
        None, "learn only in layers A to B-1 (default: all)", read=parse_layers, metavar="A:B", needs=LEARNS
    )
    density: float = setting(
        0.1,
        "with --adapt rows: share of each weight's rows that learn",
        above=0,
        most=1,
        what="a share of the rows",
        needs={"adapt": ("rows",)},
    )
    select: str = setting(
        "gradient",
        "with --adapt rows: which learn, chosen anew every 16 updates: those with the largest gradient, those whose gradient is largest "
        "beside its mean on --statistics (contrast), or evenly spaced ones, chosen once (fixed)",
        choices=("gradient", "contrast", "fixed"),
        needs={"adapt": ("rows",)},
    )
    segment: int = setting(512, "tokens scored, and then learned from, at a time", least=1)
    memory: int | None = setting(
        None,
        "tokens of earlier segments kept as keys and values, 0 for none (default: 512; fewer or none where the model's positions "
        "leave no room, or with --context)",
        least=0,
    )
    sinks: int = setting(4, "with --memory: first tokens of the document that are never dropped", least=0, needs=REMEMBERS)
    refresh: str = setting(
        "keep",
        "with --memory: keep keys and values as they were, or project them again with the current weights",
        choices=("keep", "reproject"),
        needs=REMEMBERS,
    )
    context: int = setting(0, "tokens of earlier segments run again in front of each segment, 0 for none (dearer than --memory)", least=0)
    every: int = setting(1, "update at every K-th segment", least=1, metavar="K", needs=LEARNS)
    accumulate: bool = setting(
        False,
        "with --every K: an update learns from the mean of its K segments' gradients, not from its own segment alone",
        needs={**LEARNS, "every": lambda k: k > 1},
    )
    learn_from: str | None = setting(
        None,
        "learn from a part alone: below=Q leaves out segments whose mean NLL is under the Q-quantile of the last 64, above=K those over their mean "
        "by K standard deviations; tokens=L:H counts of a segment the tokens between two quantiles of its NLLs (default: from all)",
        read=_word_by(as_selection),
        metavar="RULE,...",
        needs=LEARNS,
    )
    keep_prior: str | None = setting(
        None,
        "each update also pulls towards the model as it was on this other text, so that learning costs less elsewhere: FILE,weight=0.1,tokens=64,"
        "first=4096: the divergence on 64 tokens an update counts 0.1, of the text its first 4,096 are read (default: no pull)",
        read=kept_prior.parse,
        metavar="FILE[,NAME=VALUE...]",
        needs=LEARNS,
    )
    optimizer: str = setting("adam", "how the update is made", choices=tuple(OPTIMIZERS), needs=LEARNS)
    statistics: str = setting(
        "builtin:python-reference",
        f"with --optimizer {' or '.join(WITH_STATISTICS)} or --select contrast: text whose first 16,384 tokens give the frozen gradient "
        "statistics",
        metavar="FILE",
        what="the name of a file",
        needs=LEARNS,
        either={"optimizer": WITH_STATISTICS, "select": ("contrast",)},
    )
    lr: float | None = setting(
        None,
        f"learning rate per update (default: {USUAL_RATES}; of Gemma 3's adapters an eighth)",
        least=0,
        what="a finite rate",
        needs={**LEARNS, "rates": (None,)},
    )
    betas: str | None = setting(
        None,
        "with --optimizer adam or adamw: B1,B2, by which the averages of the gradient and of its square decay (default: 0.9,0.999)",
        read=parse_betas,
        metavar="B1,B2",
        needs={**LEARNS, "optimizer": ("adam", "adamw")},
    )
    hypergradient: str | None = setting(
        None,
        "with --adapt lora: the rate of each adapter's A and B moves by itself, up while its steps go one way, down where they turn back: on, or "
        "step=X,limit=F for other numbers than 0.02 and 8 (default: rates stay)",
        read=_word_by(as_hypergradient),
        metavar="on|step=X,...",
        needs={"adapt": ("lora",)},
    )
    weight_decay: float | None = setting(
        None,
        "with --optimizer adamw: lr times this is the share by which weights go to zero at each update (default: 0.01)",
        least=0,
        what="a finite number",
        needs={**LEARNS, "optimizer": ("adamw",)},
    )
    rates: str | None = setting(
        None,
        "learn at each of these rates side by side and mix the scores, in place of one --lr: as good as the best of them up to a bound",
        read=parse_rates,
        metavar="R,R,...",
        needs=LEARNS,
    )
    halve: int | None = setting(
        None,
        "with --rates: after every N segments of a document the half of the rates that scored worse in it is dropped",
        least=1,
        needs={**LEARNS, "rates": lambda rates: rates is not None},
    )
    guard: str | int | None = setting(
        None,
        "score the model without adaptation too, on every segment (exact) or every N-th, and mix the scores: never worse than it up to a "
        "bound",
        read=parse_guard,
        metavar="exact|N",
        needs=LEARNS,
    )
    levels: str | None = setting(
        None,
        "learn at two speeds: fast,slow adds to each stream's own adapter one level that learns from all streams every --slow-every tokens "
        "and is never reset; slow is that alone, with --adapt none (default: each stream's own)",
        choices=LEVELS,
        metavar="|".join(LEVELS),
    )
    slow_every: int | None = setting(
        None, "with --levels: tokens between updates of the slow level (default: 32768)", least=1, needs={"levels": LEVELS}
    )
    slow_lr: float | None = setting(
        None,
        "with --levels: learning rate of the slow level, SGD with momentum 0.9 on the linear weights (default: 1e-3)",
        least=0,
        what="a finite rate",
        needs={"levels": LEVELS},
    )
    decay: float = setting(0.0, "share by which weights go back to their first values at each update", least=0, most=1, needs=LEARNS)
    clip: float = setting(
        1.0, "largest gradient norm of a stream, 0 for no limit", least=0, what="a norm", why=" (0: no clipping)", needs=LEARNS
    )
    reset: str | int = setting(
        "never",
        "when the weights go back to their first values: never, at each document, every N tokens, or when the score jumps; with --guard "
        "auto:back=0.5,slower=0.5 or auto:ring=4 say how far (docs/adaptation.md)",
        read=parse_reset,
        metavar="never|document|N|auto",
        needs=LEARNS,
    )
    streams: int = setting(1, "streams scored side by side, each with weights of its own", least=1)
    split: bool = setting(False, "cut the one text into --streams contiguous parts, each a stream")
    dtype: str = setting(
        "auto",
        "arithmetic; masters of what learns are float32 (fp64: on the reference backend, for checks; auto: bf16 on GPUs and on "
        "processors with AVX512-BF16, else fp32, which is faster there)",
        choices=("auto", "bf16", "fp32", "fp64"),
    )
    backend: str = setting(
        "auto", "native kernels on the CPU, Triton kernels on a GPU, or the plain reference", choices=("auto", "cpu", "triton", "reference")
    )
    device: str = setting("auto", "cpu, cuda or cuda:N; auto takes the GPU where there is one", read=str)
    batch: int = setting(
        0,
        "streams that go through the layers together; fewer take less memory and score the same (0: on a GPU all, on a CPU as many as "
        "keep its threads at work)",
        least=0,
    )
    recompute: bool = setting(
        False,
        "make norm outputs and activations again in backward instead of keeping them: less memory, a little more time (the CPU's kernels "
        "make them on the way: always so there)",
        needs=LEARNS,
    )
    base: str = setting(
        "same",
        "frozen weights in the arithmetic of --dtype; float8: linear weights with a scale per row (GPU); int8: linear weights and head "
        "with a scale per row and group of 64 (CPU, nothing or LoRA learns); quants: those of a quantised GGUF file in its own integers "
        "(CPU; the same scores, in the file's memory)",
        choices=("same", "float8", "int8", "quants"),
    )
    seed: int = setting(0, "seed of the adapters' first values", least=0)

    def __post_init__(self):
        check(self)
        _check_together(self)

    @property
    def learning_rate(self) -> float:
        return 0.0 if self.adapt == "none" else LEARNING_RATES[self.adapt][self.optimizer] if self.lr is None else self.lr

    @property
    def reads_statistics(self) -> bool:
        """Whether gradient statistics of the text `statistics` are gathered before the first step."""
        return self.adapt != "none" and self.optimizer in WITH_STATISTICS or self.adapt == "rows" and self.select == "contrast"

    def to_dict(self) -> dict:
        """JSON-ready; the learning rate is the one that is used. An alpha that changes nothing is left out."""
        content = asdict(self)
        content.update(text=list(self.text), layers=list(self.layers) if self.layers else None, lr=self.learning_rate)
        if self.field == "text":  # as runs have it that were begun before there was another
            del content["field"]
        later = (*ADDED, "accumulate", "learn_from", "keep_prior", "hypergradient", *NUMBERS)
        for name, unsaid in {**LATER, "select": "gradient", **dict.fromkeys(later)}.items():
            if content[name] is None or content[name] == unsaid or not content[name] and name not in NUMBERS:
                del content[name]
        if self.bos != "yes":  # as runs have it that were begun before there was a choice
            del content["bos"]
        return without_usual_alpha(content)

    @classmethod
    def from_dict(cls, content: dict) -> EvalConfig:
        """What ``to_dict`` gave, or what a run's config.json has: without "bos", a run whose documents begin with no token of the tokenizer's,
        also where ``to_dict`` was asked before "auto" was settled.

        Raises:
            ConfigError: it is no dictionary, names what is no setting, or a value is not accepted.
        """
        if not isinstance(content, Mapping):
            raise ConfigError(f"settings {shown(content)}: give a dictionary of them by name, as to_dict makes it")
        check_names(cls, content)
        return cls(**{**UNSAID, **content})

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
        said = {**UNSAID, **begun}
        return self.with_(**{name: said[name] for name in self.open if name in said})

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
                words += [f"--{field.name.replace('_', '-')}"] * value
            elif value != field.default:
                words += [f"--{field.name.replace('_', '-')}", ":".join(map(str, value)) if field.name == "layers" else str(value)]
        return words


def _check_levels(config: EvalConfig) -> None:
    expected = ("none",) if config.levels == "slow" else ("lora",)
    if config.adapt not in expected:
        raise ConfigError(f"levels {config.levels!r} with adapt {config.adapt!r}: give adapt {expected[0]}")
    for name, why in (
        ("guard", "the prior that it scores has no weights of its own then"),
        ("rates", "each would feed it the same text"),
        ("keep_prior", "what streams read is then not what the prior was kept of"),
    ):
        if getattr(config, name) is not None:
            raise ConfigError(f"levels {config.levels!r} with {name} {getattr(config, name)!r}: {why}; leave one of them out")


def _check_together(config: EvalConfig) -> None:
    if config.memory and config.context:
        raise ConfigError(
            f"memory {config.memory} and context {config.context}: give one of them (memory keeps keys and values, "
            "context runs the text again)"
        )
    if config.adapt == "lora" and config.optimizer in WITH_STATISTICS:
        raise ConfigError(
            f"optimizer {config.optimizer!r} with adapt 'lora': an adapter has no gradient statistics before it learns; "
            f"give {IN_WORDS}, or adapt rows or full"
        )
    if config.adapt == "rows" and config.select == "contrast" and config.optimizer in WITH_STATISTICS:
        raise ConfigError(
            f"select 'contrast' with optimizer {config.optimizer!r}: its rows are chosen once, on the statistics text; give select 'gradient', "
            f"or {IN_WORDS}"
        )
    if config.targets not in WORDS and config.adapt in ("rows", "full"):
        raise ConfigError(
            f"targets {config.targets!r} with adapt {config.adapt!r}: give adapt lora, or targets all, attn or mlp (with full also model, norms, "
            "biases)"
        )
    if config.targets in WORDS[3:] and config.adapt in ("lora", "rows"):
        raise ConfigError(f"targets {config.targets!r} with adapt {config.adapt!r}: give adapt full, or targets all, attn or mlp")
    if config.targets == "model" and config.layers:
        raise ConfigError(f"layers {config.layers[0]}:{config.layers[1]} with targets 'model': every layer learns; give no layers")
    if str(config.reset).startswith("auto:") and config.rates:
        raise ConfigError(
            f"reset {config.reset!r} with rates {config.rates!r}: each rate's learner looks at its own score; give reset auto"
        )
    if str(config.reset).startswith("auto:") and config.guard is None:
        raise ConfigError(
            f"reset {config.reset!r} without a guard: there is no prior's score to raise an alarm by; give guard, or reset auto"
        )
    if config.levels:
        _check_levels(config)
    if config.accumulate and config.learn_from is not None and config.adapt != "none":
        raise ConfigError(
            f"learn_from {config.learn_from!r} with accumulate {config.accumulate!r}: an update of several segments' gradients would be made, or left "
            "out, by the last one's scores; leave one of them out"
        )
    if config.keep_prior and config.rates and config.adapt != "none":
        raise ConfigError(
            f"keep_prior {config.keep_prior!r} with rates {config.rates!r}: learners of different rates have no update in common; leave one of "
            "them out"
        )
    if config.split and len(config.text) > 1:
        raise ConfigError(f"split: cuts one text into streams, but {len(config.text)} texts are given")
    if config.split and config.streams < 2:
        raise ConfigError(f"streams {config.streams}: with split, give the number of parts, at least 2")

"""What a diagnosis compares: one frozen dataclass, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynadapt.common.errors import ConfigError
from dynadapt.common.options import check, setting
from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.guarded import refuse

from .verdict import MARGIN

WINDOWS = 24  # of a probe
SCORING = (
    "model",
    "text",
    "field",
    "tokens",
    "segment",
    "memory",
    "sinks",
    "refresh",
    "context",
    "bos",
    "dtype",
    "backend",
    "device",
    "recompute",
    "base",
)


@dataclass(frozen=True)
class DiagnoseConfig:
    """`eval` names the model before, the held-out text (its first `tokens` tokens) and how both models read it.

    The model after is either `after` (a model, or a PEFT adapter of the model before), or what the model before becomes by
    learning from the texts `learn` (their first `learn_tokens` tokens) as `dynadapt eval` does, with the settings of `eval`.
    Without a memory of its own in `eval`, a diagnosis has none.
    """

    eval: EvalConfig
    after: str | None = setting(None, "the model after: a name, a directory, a GGUF file, or a PEFT LoRA adapter of --model")
    learn: tuple[str, ...] = setting((), "make the model after now, by adapting --model to these texts", metavar="FILE")
    learn_tokens: int | None = setting(
        None, "learn from the first N tokens only (default: all)", least=2, why=" (the first token is not scored)"
    )
    reference: tuple[str, ...] = setting(
        (),
        "text to compare the held-out text with, for similarity and keywords: best a sample of what the model was trained on",
        metavar="FILE",
    )
    control: str = setting(
        "newlines",
        "score the text in normal forms too: lines of paragraphs joined, documents packed into one stream",
        choices=("none", "newlines", "packing", "all"),
    )
    margin: float = setting(
        MARGIN, "nats per token: a change whose interval lies within this on both sides of 0 is not worth naming", least=0.0
    )
    embeddings: str | None = setting(None, "with --reference: also compare by this sentence-transformers model")

    def __post_init__(self):
        check(self)
        if "memory" in self.eval.open:
            object.__setattr__(self, "eval", self.eval.with_(memory=0))
        if (self.after is None) == (not self.learn):
            raise ConfigError(
                f"after {self.after!r} and learn {list(self.learn)}: give one of them, a second model (or adapter) "
                "with --after, or texts to adapt to now with --learn"
            )
        if not self.eval.text:
            raise ConfigError("text: none given; name held-out files or directories, or builtin:python-reference")
        if "-" in (*self.eval.text, *self.learn, *self.reference):
            raise ConfigError("text -: a diagnosis reads its texts more than once, which a pipe does not allow; give files")
        if self.eval.streams != 1 or self.eval.split:
            raise ConfigError(
                f"streams {self.eval.streams}, split {self.eval.split}: a diagnosis scores one set of weights; leave both out"
            )
        if self.embeddings is not None and not self.reference:
            raise ConfigError(f"embeddings {self.embeddings!r}: give --reference too, the text to compare with")
        if self.learn:
            self._check_learning()
        elif self.learn_tokens is not None:
            raise ConfigError(f"learn_tokens {self.learn_tokens}: only with --learn")

    def _check_learning(self) -> None:
        if self.eval.adapt == "none":
            raise ConfigError("adapt 'none' with --learn: nothing would change; give lora, rows or full")
        if self.eval.reset != "never":
            raise ConfigError(f"reset {self.eval.reset!r} with --learn: what was learned must stay; leave --reset out")
        refuse(self.eval, "with --learn: a diagnosis compares one model with another")

    @property
    def control_names(self) -> tuple[str, ...]:
        return {"none": (), "all": ("newlines", "packing")}.get(self.control, (self.control,))

    def scoring(self, texts: Sequence[str], **changes) -> EvalConfig:
        """The static run that scores these texts."""
        settings = {name: getattr(self.eval, name) for name in SCORING}
        return EvalConfig(**{**settings, "text": tuple(texts), "adapt": "none", **changes})

    def learning(self, texts: Sequence[str]) -> EvalConfig:
        return self.eval.with_(text=tuple(texts), tokens=self.learn_tokens)

    def to_dict(self) -> dict:
        left_out = ("eval",) + ("margin",) * (self.margin == MARGIN)  # every run had the usual one before there was a choice
        own = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items() if name not in left_out}
        return {**self.eval.to_dict(), **own}

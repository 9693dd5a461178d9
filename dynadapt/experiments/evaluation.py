"""``dynadapt.evaluate``: a text scored and learned from in one call, as ``dynadapt eval`` does it, and its result as an object."""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynadapt.common.checks import shown
from dynadapt.common.notes import note
from dynadapt.common.options import note_idle
from dynadapt.common.reprs import safe
from dynadapt.model.fetch import KNOWN
from dynadapt.model.load import load
from dynadapt.model.tokenizer import Tokenizer
from dynadapt.runs.in_memory import Unwritten
from dynadapt.runs.rundir import read_json
from dynadapt.runs.text import TextError
from dynadapt.runs.texts.expanding import stands_for_something

from .config import ConfigError, EvalConfig
from .dyneval import Interrupted, RunOptions, build_engine, run
from .evaluation_settings import settings_from

if TYPE_CHECKING:
    from dynadapt.engine.engine import Engine
    from dynadapt.model.base import Model


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """What ``evaluate`` found. Losses are in nats a token; the first token of a document is scored where the
    tokenizer puts one before it (``bos``).

    ``documents``: one dict each, with name, tokens, bytes, nll and bits_per_byte. ``flops``: by phase. ``scores``: a structured array
    [tokens] with document, position, nll, token, start and stop (bytes), or None where they were not asked for. ``engine``: as it is
    after the last segment. ``out``: the run's directory, or None. ``summary``: all of summary.json.
    """

    nll: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int
    bytes: int
    seconds: float
    tokens_per_second: float
    flops: dict[str, int]
    documents: list[dict]
    config: EvalConfig
    engine: Engine
    scores: np.ndarray | None = None
    out: Path | None = None
    summary: dict = field(default_factory=dict)

    def gain_over(self, other: Evaluation) -> float:
        """How many nats a token lower this score is than another's of the same tokens; above 0: this one is better.

        Raises:
            ValueError: the other is of other documents, or of other tokens of them.
        """
        if not isinstance(other, Evaluation):
            raise ValueError(f"other={shown(other)}: expected what evaluate returned")
        ours, theirs = ([(d["name"], d["tokens"], d["bytes"]) for d in e.documents] for e in (self, other))
        if ours != theirs:
            one, two = next(((a, b) for a, b in zip(ours, theirs) if a != b), (f"{len(ours)} documents", f"{len(theirs)} documents"))
            raise ValueError(f"other scored other tokens: {two} there and {one} here")
        if self.scores is not None and other.scores is not None:
            order = ["document", "position"]
            if not np.array_equal(np.sort(self.scores, order=order)["token"], np.sort(other.scores, order=order)["token"]):
                raise ValueError("other scored other tokens: the ids differ")
        return other.nll - self.nll

    def _rows(self) -> list[tuple[str, str]]:
        bits, summary = self.bits_per_byte, self.summary
        return [
            ("model", f"{self.config.model}, {_learning(self.config)}"),
            ("NLL", f"{self.nll:.4f} nats/token"),
            ("perplexity", f"{self.perplexity:.2f}"),
            ("bits per byte", "-" if bits is None else f"{bits:.4f}"),
            ("scored", f"{self.tokens:,} tokens, {self.bytes:,} bytes, {len(self.documents):,} document{'s' * (len(self.documents) != 1)}"),
            ("time", f"{self.seconds:.1f} s, {self.tokens_per_second:,.0f} tokens/s"),
            ("learned", f"{summary['learned_parameters']:,} parameters, {summary['updates']:,} updates"),
            *([("written to", str(self.out))] if self.out else []),
        ]

    @safe
    def __repr__(self) -> str:
        return (
            "Evaluation("
            + ", ".join(
                [
                    f"nll={self.nll:.4f}",
                    f"bits_per_byte={self.bits_per_byte and round(self.bits_per_byte, 4)}",
                    f"tokens={self.tokens:,}",
                    f"documents={len(self.documents):,}",
                    f"{self.tokens_per_second:,.0f} tokens/s",
                    _learning(self.config),
                ]
            )
            + ")"
        )

    @safe
    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self._rows()
        )
        return f"<table>{rows}</table>"


def _learning(config: EvalConfig) -> str:
    how = {
        "none": "static",
        "lora": f"LoRA of rank {config.rank}",
        "rows": f"{config.density:g} of the rows" + ("" if config.select == "gradient" else f" ({config.select})"),
        "full": "all weights",
    }[config.adapt]
    how += f" at rates {config.rates}" if config.rates and config.adapt != "none" else ""
    how += f", guard {config.guard}" if config.guard and config.adapt != "none" else ""
    return how + (f", memory {config.memory}" if config.memory else f", context {config.context}" if config.context else "")


def evaluate(
    model="smollm2-135m",
    text: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    *,
    string: str | Sequence[str] | None = None,
    out: str | os.PathLike | None = None,
    resume: bool = False,
    scores: bool = False,
    checkpoint: int = 64,
    progress: bool = False,
    on_segment: Callable[[dict], Any] | None = None,
    tokenizer=None,
    **settings,
) -> Evaluation:
    """Score a text with a model and learn from each segment right after it is scored; the numbers are those of ``dynadapt eval``.

    Args:
        model: what ``dynadapt.load`` takes or returns: a name, a path, a hub id, a live transformers model.
        text: where the text is, as the command line takes it: a path or a list of them, "-", "builtin:python-reference".
        string: the text itself, or a list of texts, each a document; in place of ``text``. They go through temporary files.
        out: a run directory like the command line's, which ``resume=True`` goes on with. None: nothing is kept on the disk.
        scores: keep every scored token's NLL, id and place, as ``Evaluation.scores`` (and in ``out``, as scores.npy).
        checkpoint: with ``out``, save every so many segments; 0 for never.
        progress: show a bar on a terminal, else a line every few seconds.
        on_segment: called with each segment's metrics, a line of metrics.jsonl, and "fraction" and "gain".
        tokenizer: a ``dynadapt.model.Tokenizer`` for a model that came without one.
        settings: fields of ``EvalConfig``, the options of ``dynadapt eval``: adapt, rank, alpha, lr, segment, memory, streams, dtype ...
            ``adapt``, ``optimizer``, ``memory`` and ``guard`` may be what ``Engine`` takes: LoRA(rank=4), Adam(lr=1e-3), SegmentMemory(512),
            Guard(8), None; ``rates`` a list of numbers.

    Raises:
        ConfigError, TextError: (ValueErrors) naming the setting or text that does not fit. ModelError: the model. RunError: ``out``
            holds something else, or scores were not finite. KeyboardInterrupt: stopped; with ``out``, ``resume=True`` goes on.
    """
    if resume and out is None:
        raise ConfigError("resume=True without out: nothing was kept to go on with; give the run's directory as out")
    if on_segment is not None and not callable(on_segment):
        raise ConfigError(f"on_segment={shown(on_segment)}: expected a function of a segment's metrics, or None")
    if string is not None and out is not None:
        raise ConfigError(
            "string with out: a run's directory names its text, to read it again; write the string to a file and give that as text"
        )
    settings = settings_from(settings)
    with ExitStack() as stack:
        if string is None:
            names, texts = {}, _texts(text)
        else:
            names = stack.enter_context(_written(string, text))
            texts = tuple(names)
        given = None if isinstance(model, (str, os.PathLike)) else load(model)
        config = EvalConfig.from_dict(
            {"bos": "auto", **settings, "text": texts, "model": os.fspath(model) if given is None else _name(given)}
        )
        note_idle(config, settings)
        if tokenizer is not None:
            given = _with_tokenizer(given or load(config.model), tokenizer)
        return _run(
            config,
            given,
            out,
            RunOptions(resume=resume, scores=scores, checkpoint=checkpoint if out is not None else 0),
            progress,
            on_segment,
            names,
        )


def _run(config, model, out, options, progress, on_segment, names: Mapping[str, str]) -> Evaluation:
    made: list = []

    def make(loaded, settings):
        made.append((build_engine(loaded, settings), settings))
        return made[-1][0]

    directory = Path(out) if out is not None else Unwritten(options.scores)
    try:
        with _shown(progress) as show:

            def tell(event):
                for hear in (show, on_segment):
                    if hear is not None:
                        hear(event)

            summary = run(config, directory, options, tell, model, make)
    except Interrupted as stopped:
        raise KeyboardInterrupt(f"{stopped}{'' if out is None else f'; evaluate(..., out={str(out)!r}, resume=True) goes on'}") from None
    except (TextError, ConfigError) as error:
        raise type(error)(_renamed(str(error), names)) from None
    config = made[0][1] if made else _begun(config, directory)
    engine = made[0][0] if made else _finished_engine(config, model, directory)
    rows = None if not options.scores else directory.rows if out is None else np.load(directory / "scores.npy")
    documents = [{**d, "name": _document_name(d["name"], names)} for d in summary["documents"]]
    same = {f.name: summary[f.name] for f in fields(Evaluation) if f.name in summary and f.name not in ("documents",)}
    return Evaluation(
        **same, documents=documents, config=config, engine=engine, scores=rows, out=None if out is None else directory, summary=summary
    )


def _shown(progress: bool):
    if not progress:
        return nullcontext()
    from dynadapt.runs.progress import progress_for

    return progress_for()


def _begun(config: EvalConfig, directory: Path) -> EvalConfig:
    """With what was open as the run in `directory` settled it."""
    return config.as_begun(read_json(directory / "config.json"))


def _finished_engine(config, model, directory: Path):
    """The engine that a run which was finished before ended with; as it began where its last state was not kept."""
    from dynadapt.runs.checkpoints import last_state, saved_states

    engine = build_engine(model or load(config.model), config)
    if engine.learned_parameters:
        if saved_states(directory):
            engine.restore(last_state(directory) / "engine")
        else:
            note(f"{directory} kept no state (checkpoint 0): the engine has learned nothing")
    return engine


# ---- texts


def _texts(text) -> tuple[str, ...]:
    """The texts' names as the command line takes them; a string that is no file's name is refused here."""
    if text is None:
        raise ConfigError("text: none given; name a file as text, or give the text itself as string")
    specs = [text] if isinstance(text, (str, os.PathLike)) else text
    if isinstance(specs, (bytes, Mapping)) or not isinstance(specs, Sequence):
        raise ConfigError(
            f"text={shown(text)}: expected a path, a list of paths, or builtin:python-reference; the text itself is given as string"
        )
    for spec in specs:
        if not isinstance(spec, (str, os.PathLike)) or isinstance(os.fspath(spec), bytes):
            raise ConfigError(f"text={shown(spec)}: expected a path; the text itself is given as string, token ids to Engine.step")
        name = os.fspath(spec)
        if not stands_for_something(name):
            raise TextError(f"text {shown(name)}: no such file; if this is the text itself, give it as string=...")
    return tuple(map(os.fspath, specs))


@contextmanager
def _written(string, text):
    """{path of a temporary file: what the string is called}, for each string."""
    if text is not None:
        raise ConfigError("text and string: give one of them, the name of a file or the text itself")
    strings = [string] if isinstance(string, str) else string
    if isinstance(strings, (bytes, Mapping)) or not isinstance(strings, Sequence) or not all(isinstance(each, str) for each in strings):
        raise ConfigError(f"string={shown(string)}: expected the text as a str, or a list of them")
    names = ["string" if isinstance(string, str) else f"string[{i}]" for i in range(len(strings))]
    with tempfile.TemporaryDirectory(prefix="dynadapt-") as folder:
        written = {}
        for i, (name, each) in enumerate(zip(names, strings)):
            try:
                content = each.encode("utf-8")
            except UnicodeEncodeError as error:
                raise TextError(f"{name} is not valid Unicode: {error}") from None
            path = Path(folder) / f"string-{i}.txt"
            path.write_bytes(content)
            written[str(path)] = name
        yield written


def _renamed(message: str, names: Mapping[str, str]) -> str:
    for path, name in names.items():
        message = message.replace(f"text {path!r}", name).replace(path, name)
    return message


def _document_name(name: str, names: Mapping[str, str]) -> str:
    """The string's name where a document is one, or a part of one."""
    for path, called in names.items():
        if name.startswith(os.path.basename(path)):
            return called + name[len(os.path.basename(path)) :]
    return name


# ---- models


def _name(model: Model) -> str:
    return model.name if model.name in KNOWN else model.origin or model.name


def _with_tokenizer(model: Model, tokenizer) -> Model:
    if not isinstance(tokenizer, Tokenizer):
        raise ConfigError(f"tokenizer={shown(tokenizer)}: expected a dynadapt.model.Tokenizer, for example load(directory).tokenizer")
    other = model.converted(model.dtype)
    other._tokenizer = tokenizer
    return other

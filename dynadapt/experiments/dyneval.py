"""Dynamic evaluation: score a text segment by segment, learning from each one right after it is scored.

The first token of a document is not scored where nothing precedes it; where the tokenizer puts a beginning-of-text token before a text, that
one stands in front, unscored, and the document's own first token is scored. None is invented.
Bits per byte counts the bytes of scored tokens only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dynadapt.common.notes import note
from dynadapt.runs.in_memory import Unwritten
from dynadapt.runs.rundir import RunDirectory
from dynadapt.runs.stopping import Interrupted, StopRun, interruptible
from dynadapt.runs.text import TextError, streaming_tokenizer

from . import eval_model, eval_texts, kept_prior
from .baseline import find_baseline
from .config import ConfigError, EvalConfig
from .defaults import begin_of, settled
from .engine_of_config import adapt_of, build_engine, optimizer_of
from .eval_run import EvalRun

__all__ = ["Interrupted", "RunOptions", "StopRun", "adapt_of", "build_engine", "find_baseline", "interruptible", "optimizer_of", "run"]


@dataclass(frozen=True)
class RunOptions:
    """How a run is kept, as opposed to what it computes. `checkpoint` is in segments; 0 saves no state at all. `log`: names of logs that
    see every line of metrics too (logs.py)."""

    resume: bool = False
    scores: bool = False
    checkpoint: int = 64
    log: tuple[str, ...] = ()


def run(
    config: EvalConfig,
    out: str | Path | Unwritten,
    options: RunOptions = RunOptions(),
    progress: Callable[[dict], None] | None = None,
    model=None,
    make_engine: Callable | None = None,
) -> dict:
    """Runs to the end, or on to the end with options.resume, and returns the summary.

    1. Check the texts, settle what is open (defaults.py), look at the run directory (a finished one is returned as it is).
    2. Load the model, check that its weights are finite, build the engine and the feed; go back to the last checkpoint. Nothing
       is written before all of this has succeeded.
    3. For each segment: read, enter new documents, step, write scores and metrics; save every `options.checkpoint` segments.
    4. Write summary.json.

    progress is called after each segment, when its scores are written and before the next one is read, with its line of metrics plus
    "fraction" (of the text, None if unknown) and "gain" (over a static run on the same text next to this one, None if there is
    none). One that returns False or raises StopRun stops the run: it is saved, Interrupted is raised, and options.resume goes on.
    Whatever else it raises is raised here, once the run is saved. docs/logging.md has the keys.
    Raises TextError, ConfigError, RunError, Interrupted.
    """
    sources, facts = eval_texts.sources_of(config)
    kept = kept_prior.check(config, facts)
    loaded = cache(lambda: eval_model.load(config.model) if model is None else model)
    unwritten = isinstance(out, Unwritten)
    config = settled(config, None if unwritten else out, options.resume, loaded)
    if isinstance(config.reset, int) and config.adapt != "none" and config.every % -(-config.reset // config.segment) == 0:
        due = f" and every {config.every}" * (config.every > 1)  # each update falls on a segment that resets
        note(f"reset {config.reset} with segments of {config.segment}{due}: weights go back before any update counts; nothing is learned")
    directory = out if unwritten else RunDirectory(out, config.to_dict(), options.resume, options.scores, options.log)
    try:
        eval_texts.expect_texts(directory, sources, facts)
        if directory.finished:
            return directory.finished
        model = eval_model.checked(config, loaded())
        tokenizer, begin = streaming_tokenizer(model.tokenizer), begin_of(model.tokenizer, config.bos)
        begun = {} if begin is None else {"the token that texts begin with": begin}
        directory.expect({"the model": model.fingerprint(), "the tokenizer": model.tokenizer.fingerprint(), **begun, **kept})
        engine = (make_engine or build_engine)(model, config)
        if config.reads_statistics:
            statistics, digest = eval_texts.statistics_text(config, facts)
            directory.expect({f"statistics text {config.statistics!r}": digest})
            engine.gather_statistics(eval_texts.statistics_segments(statistics, config, tokenizer, begin))
        run = EvalRun(config, options, directory, engine, sources, facts, tokenizer, begin)
        run.baseline = find_baseline(directory.path, config)
        directory.begin(folder=str(Path.cwd()))  # to which the names of texts are relative
        return run.finish(progress or (lambda event: None))
    except (TextError, ConfigError):  # a text that turns out empty, a log that can't be opened
        directory.abandon()
        raise
    finally:
        directory.close()

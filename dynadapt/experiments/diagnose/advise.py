"""Whether adapting to a text looks worth its compute, from a short probe.

The probe is dynamic evaluation over windows spread over the text and read in random order: each is scored by the model as it
is and by the model adapted to the windows before, then learned from. Neighbouring windows are not neighbours in the text, and
nothing is remembered between them, so each is held-out text of the same domain for what was learned so far. The expected gain
is the mean over the second half of the windows, with Student's interval over them: what adapting to
about that much text gains on unseen text. A longer adaptation may gain more, or begin to hurt; the probe does not see that.

That interval says which windows were drawn by chance, no more: it held 33 of the 72 outcomes of benchmarks/odyssey.py. What an
adaptation ends with has a wider one (`outcome_interval`): a factor up and down from the estimate, as large as outcomes of other
domains were away from theirs. No text ends below 0 nats: no expectation and no interval reaches further down than that.

What `dynadapt tune` says is measured, this is foreseen; the advice ends with the command for it.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student

from dynadapt.adapt.optimizers import IN_WORDS
from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.experiments.defaults import begin_of, settle
from dynadapt.experiments.dyneval import build_engine
from dynadapt.runs.console import table_console
from dynadapt.runs.listing import minutes
from dynadapt.runs.logs import check_logs, show_finished
from dynadapt.runs.rundir import RunDirectory, RunError
from dynadapt.runs.text import TextError, streaming_tokenizer
from dynadapt.runs.whole_files import replace_file

from . import attribution, similarity
from .driver import REFERENCE_TOKENS, _load, _plain
from .texts import gather, read_tokens
from .verdict import DIVERGED, MARGIN, UNCHANGED, diverged

PROBE_TOKENS = 1 << 21  # of the text, among which the windows are spread
GAIN_FACTOR, RISE_FACTOR = 3.2, 5.3  # size_factor of a foreseen gain and rise, LoRA and full; benchmarks/results/odyssey.json
ADAPT, LEAVE, UNCLEAR = "adapt", "leave it alone", "no clear gain"


def advise(
    config: EvalConfig,
    texts: tuple[str, ...],
    reference: tuple[str, ...],
    windows: int,
    out: str | Path,
    embeddings: str | None = None,
    announce: Callable[[str], Callable | None] | None = None,
    model=None,
    log: Sequence[str] = (),
    margin: float = MARGIN,
) -> dict:
    """Runs the probe with the settings of `config` and returns its summary, which it writes to `out` with a page.

    1. Check the texts, load the model, choose the windows.
    2. Score them with the model as it is, then with the model that learns as it goes.
    3. Compare the text with the reference, estimate the gain and the cost of adapting to all of the text.

    log: names of logs (runs/logs.py) that get the summary.   margin: nats below which no change is worth naming.
    """
    log = check_logs(log)
    if config.adapt == "none":
        raise ConfigError("adapt 'none' with --advise: there is nothing to probe; give lora, rows or full")
    if config.reads_statistics or config.streams != 1 or config.split:
        raise ConfigError(
            f"optimizer {config.optimizer!r}, select {config.select!r}, streams {config.streams}, split {config.split}: a probe has one "
            f"stream and no statistics text; give {IN_WORDS}, select gradient and one stream"
        )
    announce, out = announce or (lambda what: None), Path(out)
    sources, others = gather(texts, config.field), gather(reference, config.field)
    model = _load(config.model) if model is None else model
    model.check_finite()
    config = settle(config, model.config, memory=0)
    settings = {**config.with_(text=texts).to_dict(), "advise": list(texts), "reference": list(reference), "windows": windows}
    settings.update({"margin": margin} if margin != MARGIN else {})
    directory = RunDirectory(out, settings, True, scores=False)
    try:
        if directory.finished:
            raise RunError(f"{out} holds this probe, finished; read {out / 'summary.json'}, or choose another --out")
        directory.begin()
        tokenizer = streaming_tokenizer(model.tokenizer)
        tokens = read_tokens(sources, tokenizer, config.tokens or PROBE_TOKENS)
        chosen = choose_windows(tokens, config.segment, windows, config.seed)
        if (begin := begin_of(model.tokenizer, config.bos)) is not None:
            chosen[:, 0] = begin  # a window is a document; its first token is not scored
        config = config.with_(memory=0, context=0, reset="never")
        static, _, _ = _score(model, config.with_(adapt="none", lr=None), chosen, announce("scoring with the model as it is"))
        adapted, flops, seconds = _score(model, config, chosen, announce("scoring, and learning from each window"))
        summary = advice(static, adapted, math.log(model.config.vocab_size), margin)
        summary.update(
            kind="advice",
            model=config.model,
            text=list(texts),
            windows=len(chosen),
            window=config.segment,
            probe_flops=flops,
            text_tokens=len(tokens),
            text_flops=flops / chosen[:, 1:].size * len(tokens),
            probe_minutes=seconds / 60,
            text_minutes=seconds / 60 / chosen[:, 1:].size * len(tokens),
            next_command=_command("eval", config, texts) if summary["advice"] == ADAPT else None,
            tune_command=_command("tune", config, texts),
            similarity=None,
        )
        if others:
            other = read_tokens(others, tokenizer, REFERENCE_TOKENS)
            summary["similarity"] = similarity.with_reference(
                tokens, sources, other, others, reference, model.config.vocab_size, embeddings
            )
        summary = directory.finish(summary)
        show_finished(log, out, directory.config, summary)
        write_advice(out / "page.html", summary)
        return summary
    finally:
        directory.close()


def choose_windows(tokens: np.ndarray, segment: int, windows: int, seed: int) -> np.ndarray:
    """[W, T + 1] windows spread evenly over the text without overlap, in random order; fewer where the text is short."""
    count = min(windows, len(tokens) // (segment + 1))
    if count < 4:
        raise TextError(
            f"the text to advise on has {len(tokens)} tokens: too short for 4 windows of {segment}; give more text or a smaller --segment"
        )
    starts = np.linspace(0, len(tokens) - segment - 1, count).astype(np.int64)
    starts = np.random.default_rng(seed).permutation(starts)
    return np.stack([tokens[start : start + segment + 1] for start in starts])


def _command(name: str, config: EvalConfig, texts: tuple[str, ...]) -> str:
    """The line that tunes on the texts, or scores them with what was probed."""
    if name == "eval":
        return shlex.join(["dynadapt", "eval", *config.with_(text=texts).arguments()])
    changed = {each: getattr(config, each) for each in ("model", "segment", "dtype", "backend", "device", "seed")}
    words = [word for each, value in changed.items() if value != getattr(EvalConfig, each) for word in (f"--{each}", str(value))]
    return shlex.join(["dynadapt", "tune", *texts, *words])


def _score(model, config: EvalConfig, windows: np.ndarray, progress) -> tuple[np.ndarray, int, float]:
    """Mean NLL of each window [W], each scored before it is learned from, and the FLOPs and seconds that took."""
    engine, means, started = build_engine(model, config), [], time.perf_counter()
    for i, window in enumerate(windows):
        engine.enter(0)
        nll = engine.step(torch.from_numpy(window)[None])
        means.append(float(nll.double().mean()))
        if not math.isfinite(means[-1]):
            raise RunError(
                f"the scores of window {i} are not finite: adaptation diverged at lr {config.learning_rate:g}; take a smaller --lr"
            )
        if progress:
            size, seconds = len(window) - 1, time.perf_counter() - started
            progress(
                {
                    "segment": i,
                    "tokens": size,
                    "total_tokens": (i + 1) * size,
                    "nll": means[-1],
                    "total_nll": float(np.mean(means)),
                    "seconds": seconds / (i + 1),
                    "total_seconds": seconds,
                    "fraction": (i + 1) / len(windows),
                    "gain": None,
                }
            )
    return np.array(means), sum(engine.flops.values()), time.perf_counter() - started


def advice(static: np.ndarray, adapted: np.ndarray, ceiling: float = math.inf, margin: float = MARGIN) -> dict:
    """What the NLLs of the windows [W], in the order in which they were learned from, say. ceiling: ln V, above which they diverged."""
    change = adapted - static
    late = change[len(change) // 2 :]
    low, high = attribution.ratio_interval(late, np.ones(len(late)))
    verdict = UNCHANGED if -margin <= low and high <= margin else ADAPT if high < 0 else LEAVE if low > 0 else UNCLEAR
    if diverged(float(static.mean()), float(adapted[len(change) // 2 :].mean()), ceiling):
        verdict = DIVERGED
    most = -float(static.mean())  # all the nats there are
    expected, low, high = (max(most, float(value)) for value in (late.mean(), low, high))
    outcome = outcome_interval(expected, (low, high), GAIN_FACTOR if expected < 0 else RISE_FACTOR, most)
    return _plain(
        {
            "advice": verdict,
            "expected_change": expected,
            "interval": [low, high],
            "outcome_interval": outcome,
            "base_nll": float(static.mean()),
            "margin": margin,
            "change": change.tolist(),
            "static": static.tolist(),
            "adapted": adapted.tolist(),
        }
    )


def size_factor(ratios: np.ndarray) -> float:
    """Within what factor of the estimate 95% of outcomes are expected; ratios [n]: outcome over estimate, of domains seen before.

    Logarithms of ratios are held to be normal around 0 with the spread seen: Student's t for n of them.
    """
    ratios = np.asarray(ratios, float)
    if not len(ratios) or not (np.isfinite(ratios) & (ratios > 0)).all():
        raise ValueError(
            f"ratios {ratios.tolist()!r}: give at least one, all above 0; where estimate and outcome differ in "
            "sign, there is no factor between them"
        )
    return float(np.exp(student.ppf(0.975, len(ratios)) * np.sqrt(np.mean(np.log(ratios) ** 2))))


def outcome_interval(expected: float, interval: tuple[float, float], factor: float, most: float = -math.inf) -> list[float]:
    """From expected / factor to expected * factor, and at least the probe's own interval; neither end below `most`, what there is to gain."""
    ends = (expected / factor, expected * factor, *interval)
    return [max(most, float(min(ends))), max(most, float(max(ends)))]


def sentences(summary: dict) -> list[str]:
    """The advice in words."""
    low, high = summary["interval"]
    least, most = summary["outcome_interval"]
    base = summary["base_nll"]
    said = [
        f"expected change on unseen text like it: {summary['expected_change']:+.4f} nats per token, 95% interval "
        f"[{low:+.4f}, {high:+.4f}], after learning from {summary['windows'] // 2} to {summary['windows']} windows of "
        f"{summary['window']} tokens",
        f"an adaptation to much text may end anywhere from {least:+.4f} to {most:+.4f}: as far from the estimate, by a "
        "factor, as the outcomes of nine domains were",
        f"the model as it is scores the text at {base:.3f} nats per token; that makes {base + summary['expected_change']:.3f} expected, and "
        f"from {base + least:.3f} to {base + most:.3f}",
        f"learning from all {summary['text_tokens']:,} tokens once takes {minutes(summary['text_minutes'])} here, {summary['text_flops'] / 1e12:,.3g} TFLOP; "
        f"the probe took {minutes(summary['probe_minutes'])}",
    ]
    if summary["advice"] == DIVERGED:
        said.append("the windows were scored worse than by a uniform guess: this rate diverges here; probe again with a smaller --lr")
    elif summary["advice"] == UNCHANGED:
        said.append(f"the whole interval lies within {summary['margin']:g} nats of 0: no change worth naming, nor worth the compute")
    if summary["next_command"]:
        said.append(f"next: {summary['next_command']}")
    return said + [f"measured instead of predicted: {summary['tune_command']}"]


def write_advice(path: Path, summary: dict) -> None:
    """Writes the page of a summary that `advise` made."""
    from . import figures, report
    from .page import COLOURS, page, svg, table

    colour = {ADAPT: COLOURS["helps"], LEAVE: COLOURS["hurts broadly"], DIVERGED: COLOURS["diverged"]}.get(
        summary["advice"], COLOURS["inconclusive"]
    )
    body = [
        f"<h1>Adapting {escape(summary['model'])} to {escape(', '.join(summary['text'][:3]))}</h1>",
        f'<p><span class="verdict" style="background:{colour}">{summary["advice"]}</span></p>',
        "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences(summary)) + "</ul>",
        svg(figures.probe(summary), "probe"),
        '<p class="note">Windows are spread over the text, in random order, each scored before it is learned from.</p>',
    ]
    if summary["similarity"]:
        body += ["<h2>Similarity</h2>", table(report.SIMILARITY_HEAD, report.similarity_rows(summary["similarity"]))]
    replace_file(path, page("dynadapt diagnose --advise", body))


def print_advice(summary: dict, out: Path) -> None:
    from rich.markup import escape as plain

    from .report import SIMILARITY_HEAD, print_table, similarity_rows

    console = table_console(soft_wrap=True, highlight=False)
    console.print(f"[bold]{summary['advice']}[/]")
    for sentence in sentences(summary):
        console.print(f"  {plain(sentence)}")
    if summary["similarity"]:
        console.print()
        print_table(console, SIMILARITY_HEAD, similarity_rows(summary["similarity"]))
    console.print(f"written to {plain(str(out))}: summary.json, page.html")

"""`dynadapt eval`: score a text and learn from it, into a run directory."""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from pathlib import Path

from dynadapt.common.collection import uncollected
from dynadapt.common.options import add_settings
from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.runs.progress import say

from .early import check_model
from .parsing import at_least
from .settings import add_log_option, add_preset_option, config_from

EXAMPLES = """\
examples:
  dynadapt eval --model smollm2-135m --text novel.txt --tokens 16384
      adapt a LoRA of rank 16 to a novel while scoring its first 16,384 tokens
  dynadapt eval --text novel.txt --adapt none
      the static score, to compare with
  dynadapt eval --text novel.txt --memory 0
      learn, and remember nothing: segments are disjoint windows
  dynadapt eval --text novel.txt --rates 5e-4,2e-3,8e-3 --guard exact
      learn at three rates side by side; the score is that of the best of them and of the static model, up to a bound
  dynadapt eval --text a.txt b.txt c.txt d.txt --streams 4 --reset document
      four documents at once, each with an adapter of its own, fresh for every document
  dynadapt eval --text src/ reviews.jsonl.gz --field body
      every file of a directory, and the "body" of every line, each a document
  torchrun --nproc-per-node 2 -m dynadapt eval --text books/*.txt --reset document --out runs/books
      documents shared out to two processes, and one result
  zcat log.gz | dynadapt eval --text - --out runs/log
      a pipe, of any length, in flat memory

The first token of a document is not scored: nothing comes before it. A run that was stopped goes on with --resume.
It writes config.json, env.json, metrics.jsonl (a line a segment) and summary.json into --out."""


def add_options(command) -> None:
    add_settings(command, EvalConfig)
    add_preset_option(command)
    command.add_argument("--out", metavar="runs/NAME", help="directory of the run (default: one named after model, text and adapt)")
    command.add_argument(
        "--resume", action="store_true", help="go on with a run that was stopped; the remaining scores are the same, bit for bit"
    )
    command.add_argument(
        "--scores",
        action="store_true",
        help="write every token's NLL, id and place in the text to scores.npy, which dynadapt compare reads",
    )
    command.add_argument("--checkpoint", type=at_least(0), default=64, metavar="N", help="save every N segments, 0 for never (default: 64)")
    add_log_option(command)
    command.add_argument("--quiet", action="store_true", help="end with one line instead of a table")


def run(arguments) -> int:
    config = config_from(arguments)
    check_texts(config)
    check_model(config.model)
    if not arguments.quiet:
        say(f"loading {config.model}, to score {', '.join(config.text[:3])}{' ...' * (len(config.text) > 3)}")
    from datetime import timedelta

    from dynadapt.distributed import join

    with join(patience=timedelta(days=30)) as processes:  # documents of very different lengths
        return _eval(arguments, config, processes)


def _eval(arguments, config: EvalConfig, processes) -> int:
    from dynadapt.experiments import dyneval
    from dynadapt.runs.progress import progress_for

    out = processes.from_first(lambda: choose_out(config, arguments.out, arguments.resume))
    loaded: list = []  # the model, where the first line needed it
    config = processes.from_first(lambda: _settled(config, out, arguments.resume, loaded))
    finished = (out / "summary.json").exists()
    options = dyneval.RunOptions(resume=arguments.resume, scores=arguments.scores, checkpoint=arguments.checkpoint, log=arguments.logs)
    try:
        with progress_for() if processes.first else nullcontext() as progress:
            if processes.world > 1:
                from dynadapt.experiments.distributed_eval import run_parts

                summary = run_parts(config, out, options, processes, progress)
            else:
                summary = dyneval.run(config, out, options, progress, loaded[0] if loaded else None)
    except dyneval.Interrupted as stopped:
        saved = "" if arguments.checkpoint else " (without checkpoints, it starts over)"
        print(f"dynadapt: {stopped}; go on with the same command and --out {out} --resume{saved}", file=sys.stderr)
        return 130
    if not processes.first:
        return 0
    if finished:
        print(f"{out}: this run is finished")
    if arguments.quiet:
        print(f"nll {summary['nll']:.4f}, {summary['tokens_per_second']:,.0f} tokens/s")
    else:
        print_summary(out, summary)
    return 0


def _settled(asked: EvalConfig, out: Path, resume: bool, loaded: list) -> EvalConfig:
    """The configuration with nothing open; the first line of output says what it is. A model that is loaded for it is added to ``loaded``."""
    with uncollected():
        import dynadapt.model
        from dynadapt.experiments.defaults import opening, settled

    def model():
        if not loaded:
            loaded.append(dynadapt.model.load(asked.model))
        return loaded[0]

    config = settled(asked, out, resume, model)
    if not loaded and config.model.endswith(".gguf") and Path(config.model).is_file():
        model()  # the line says what becomes of its integers
    print(fit_width(opening(asked, config, *((loaded[0].config, loaded[0]) if loaded else ()))), flush=True)
    return config


def fit_width(line: str) -> str:
    """Broken between words where a terminal is too narrow for it; elsewhere a line stays one."""
    import shutil
    import textwrap

    return (
        textwrap.fill(line, shutil.get_terminal_size().columns, break_long_words=False, break_on_hyphens=False)
        if sys.stdout.isatty()
        else line
    )


def check_texts(config: EvalConfig) -> None:
    """Refuses a text that is not there before the model's libraries are loaded."""
    if not config.text:
        raise ConfigError("text: none given; name files, - for standard input, or builtin:python-reference")
    from dynadapt.experiments import kept_prior
    from dynadapt.runs.texts import expand

    kept_prior.check(config, [source.check() for source in expand(config.text, config.field)])


def choose_out(config: EvalConfig, out: str | None, resume: bool) -> Path:
    """--out, or a free directory under runs/ named after the run; with --resume the one that holds this configuration."""
    from dynadapt.runs.rundir import RunError, read_json

    if out:
        return Path(out)
    text = Path(config.text[0].removeprefix("builtin:")).stem if config.text and config.text[0] != "-" else "stdin"
    model = re.sub(r"\.(gguf|safetensors)$", "", Path(config.model).name)
    name = "-".join([model, text, config.adapt] + [f"memory{config.memory}"] * (config.memory is not None))
    candidates = [Path("runs") / (name if number == 1 else f"{name}-{number}") for number in range(1, 1000)]
    if resume:
        for path in candidates:
            if (path / "config.json").exists() and config.matches(read_json(path / "config.json")):
                return path
        raise RunError(f"no run of this configuration under runs/{name}*; name its directory with --out, or leave out --resume")
    return next(path for path in candidates if not path.exists())


def learned_from(summary: dict) -> list[tuple[str, str]]:
    """The row of a table that says what part was learned from, where a rule chose."""
    if "learned_from" not in summary:
        return []
    of = summary["learned_from"]
    return [("from", f"{of['share']:.0%} of {of['of_segments']:,} segments, {of['tokens']:,} tokens")]


def print_summary(out: Path, summary: dict) -> None:
    from rich.table import Table

    from dynadapt.experiments import guarded, kept_prior
    from dynadapt.runs.console import table_console

    table = Table(box=None, show_header=False, pad_edge=False)
    bits = summary["bits_per_byte"]
    for name, value in (
        ("NLL", f"{summary['nll']:.4f} nats/token"),
        *guarded.rows(summary),
        ("perplexity", f"{summary['perplexity']:.2f}"),
        ("bits per byte", "-" if bits is None else f"{bits:.4f}"),
        ("scored", f"{summary['tokens']:,} tokens, {summary['bytes']:,} bytes"),
        ("time", f"{summary['seconds']:.1f} s, {summary['tokens_per_second']:,.0f} tokens/s"),
        ("FLOPs", f"{summary['flops_per_token'] / 1e9:,.4g} G/token"),
        ("peak memory", f"{summary['peak_memory_bytes'] / 1e6:,.0f} MB"),
        ("learned", f"{summary['learned_parameters']:,} parameters, {summary['updates']:,} updates, {summary['skipped_updates']} skipped"),
        *learned_from(summary),
        *kept_prior.rows(summary),
        ("written to", str(out)),
    ):
        table.add_row(name, value)
    table_console(soft_wrap=True).print(table)

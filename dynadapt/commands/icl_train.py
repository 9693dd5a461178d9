"""`dynadapt icl train`: a transformer on prompts of (x, f(x)) pairs."""

from __future__ import annotations

import sys
from pathlib import Path

from dynadapt.common.options import add_settings, given, note_idle
from dynadapt.experiments.icl.checks import IclError
from dynadapt.experiments.icl.config import TrainConfig
from dynadapt.experiments.icl.presets import PRESETS, from_preset
from dynadapt.runs.progress import say

from .settings import add_log_option, log_name

EXAMPLES = f"""\
presets (any option below replaces what the preset says):
  demo           {PRESETS["demo"].dims} dimensions, {PRESETS["demo"].points} points, for minutes on two CPU cores
  garg-tiny      5 dimensions, 11 points, 3 layers of 64 (Garg et al., arXiv 2208.01066)
  garg-small     20 dimensions, 41 points, 6 layers of 128, curriculum
  garg-standard  20 dimensions, 41 points, 12 layers of 256, curriculum
  raventos       8 dimensions, 16 points, noise 0.5, 8 layers of 128 (Raventos et al., arXiv 2306.15063)

a class is NAME or NAME:SETTING,...; a bare setting is the one that matters most:
  dense-linear  sparse-linear:3  noisy-linear:0.5  noisy-linear:noise=0.5,pool=64  quadratic  relu-network:100  decision-tree:4
  sinusoid  sinusoid:frequency=[0.5;2]  fourier-series:10

The run directory gets config.json, env.json, metrics.jsonl (a line every --log-every steps), checkpoint/, and summary.json: error by
number of examples for the model and for baselines, on each class. A run that was stopped goes on with --resume, bit for bit."""


def add_options(part) -> None:
    part.add_argument("preset", metavar="PRESET", help=f"one of {', '.join(PRESETS)}")
    add_settings(part, TrainConfig, say_defaults=False)
    part.add_argument("--out", metavar="runs/NAME", help="directory of the run (default: runs/icl-PRESET)")
    part.add_argument("--resume", action="store_true", help="go on with a run that was stopped: the same losses and weights, bit for bit")
    part.add_argument("--checkpoint", type=int, default=5000, metavar="N", help="save every N steps, 0 for the end only (default: 5000)")
    part.add_argument("--keep", type=int, default=0, metavar="N", help="keep the weights of every N-th step for good (default: none)")
    add_log_option(part, _log_or_steps)
    part.add_argument("--minutes", type=float, metavar="X", help="stop after so many minutes, with a checkpoint; --resume goes on")


def _log_or_steps(word: str) -> str | int:
    return int(word) if word.isdigit() else log_name(word)


def config_from(arguments) -> TrainConfig:
    settings = given(TrainConfig, arguments)
    config = from_preset(arguments.preset, **settings)
    note_idle(config, settings)
    return config


def run(arguments) -> int:
    config = config_from(arguments)
    out = Path(arguments.out or f"runs/icl-{config.preset}")
    for name in ("checkpoint", "keep"):
        if getattr(arguments, name) < 0:
            raise IclError(f"{name} {getattr(arguments, name)}: give a whole number of at least 0")
    if arguments.minutes is not None and not arguments.minutes >= 0:
        raise IclError(f"minutes {arguments.minutes:g}: give a number of at least 0")
    say(f"training a transformer on {', '.join(config.classes)}, {config.steps:,} steps: making the model")
    from dynadapt.experiments.dyneval import Interrupted
    from dynadapt.experiments.icl.progress import progress_for
    from dynadapt.experiments.icl.train import TrainOptions, train

    finished = (out / "summary.json").exists()
    options = TrainOptions(arguments.resume, arguments.checkpoint, arguments.keep, arguments.minutes, arguments.logs)
    try:
        with progress_for(config.steps) as progress:
            summary = train(config, out, options, progress)
    except Interrupted as stopped:
        print(f"dynadapt: {stopped}; go on with the same command and --out {out} --resume", file=sys.stderr)
        return 130
    if finished:
        print(f"{out}: this run is finished")
    print_summary(summary)
    print(f"written to {out}")
    return 0


def print_summary(summary: dict) -> None:
    """Errors by number of examples, a table for each class."""
    from rich.table import Table

    from dynadapt.runs.console import print_whole, table_console

    console = table_console(soft_wrap=True)
    for name, curves in summary["errors"].items():
        points = len(curves["model"]["mean"])
        shown = [k for k in range(points) if points <= 16 or k % (points // 10) == 0 or k == points - 1]
        table = Table(box=None, pad_edge=False, title=f"{name}: squared error after k examples, 1 is predicting zero", title_justify="left")
        table.add_column("k")
        for k in shown:
            table.add_column(str(k), justify="right")
        for who, curve in curves.items():
            table.add_row(who.replace("_", " "), *(f"{curve['mean'][k]:.3f}" for k in shown))
        print_whole(console, table)
        console.print(f"above least squares by at most {summary['above_least_squares'][name]:.3f}")
    flops = sum(summary["flops_last_step"].values())
    console.print(
        f"{summary['parameters']:,} parameters, {summary['steps']:,} steps, {summary['seconds']:.1f} s, "
        f"{summary['steps_per_second']:,.1f} steps/s, {flops / 1e9:,.4g} GFLOP a step"
    )

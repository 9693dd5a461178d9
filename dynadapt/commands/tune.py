"""`dynadapt tune`: which setting to score a text with, measured on windows of it."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from dynadapt.common.options import add_settings, settings_of
from dynadapt.experiments.config import EvalConfig

from .evaluate import check_texts
from .settings import config_from

SETTINGS = ("model", "field", "segment", "guard", "dtype", "backend", "device", "seed")  # of EvalConfig, taken as they are

EXAMPLES = """\
examples:
  dynadapt tune novel.txt
      in five minutes: does learning from the novel help, with which setting, by how much, and what does it cost?
  dynadapt tune docs/*.txt --minutes 20 --out runs/tuned-docs
      longer: more is tried, on more windows, and the interval is narrower
  dynadapt tune novel.txt --guard exact --rates 5e-4,1e-3,2e-3,4e-3
      which of four rates for LoRA, each guarded; all four learn from a window in one pass, beside one static score
  dynadapt tune builtin:python-reference --minutes 2 --model my-model/ --segment 256

What learns (nothing, LoRA, rows, everything), what is remembered (0, 512 and 1,536 tokens) and rates around the default are tried by successive
halving on windows drawn from all over the text. The best one that learns is then judged against the best static one on other windows. The
command it ends with scores the rest of the text, which is written to --out: nothing that was looked at for choosing is scored.
--out gets recommendation.json, picture.png and rest/."""


def add_options(command) -> None:
    command.add_argument("text", nargs="+", metavar="TEXT", help=settings_of(EvalConfig)["text"].help)
    command.add_argument(
        "--minutes", type=float, default=5.0, metavar="M", help="wall time for all of it, loading the model included (default: 5)"
    )
    command.add_argument("--out", metavar="DIR", help="directory that does not exist yet (default: runs/tune-MODEL-TEXT)")
    add_settings(command, EvalConfig, SETTINGS)
    command.add_argument(
        "--rates",
        default=argparse.SUPPRESS,
        metavar="R,R,...",
        help="learning rates of LoRA to compare, side by side where that is faster (default: a third of the usual one, that, three times that)",
    )
    command.add_argument("--quiet", action="store_true", help="print nothing but the recommendation's command")


def run(arguments) -> int:
    from dynadapt.experiments.tune.checks import check_minutes, free_directory

    started = time.monotonic()
    config = config_from(arguments)
    check_minutes(arguments.minutes)
    check_texts(config)
    out = free_directory(arguments.out or _free_directory(config))
    from dynadapt.experiments.tune.progress import progress_for

    with progress_for(sys.stdout, arguments.minutes, arguments.quiet) as progress:
        progress({"stage": "starting", "seconds": 0.0, "fraction": 0.0, "new": True})
        from dynadapt.experiments.tune import tune

        found = tune(config, arguments.minutes, out, progress, started=started)
    if arguments.quiet:
        print(found.command)
        return 0
    from dynadapt.experiments.tune.report import print_recommendation

    print_recommendation(found)
    return 0


def _free_directory(config: EvalConfig) -> Path:
    text = "stdin" if config.text[0] == "-" else Path(config.text[0].removeprefix("builtin:")).stem
    name = f"tune-{Path(config.model).stem}-{text}"
    return next(path for path in (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 1000)) if not path.exists())

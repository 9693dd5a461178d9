"""What the command lines of several commands share: the configuration that `dynadapt eval` takes, and --log."""

from __future__ import annotations

import argparse

from dynadapt.common.errors import ConfigError
from dynadapt.common.options import given, note_idle, settings_of
from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.guarded import ADDED
from dynadapt.experiments.presets import PRESETS, filled


def unmixed() -> set[str]:
    """The settings of `dynadapt eval` but those of a guard and of several rates, for commands that score by one model at a time, and of what is
    learned from, what is kept and how fast by scores and gradients, which no cost or comparison of theirs foresees."""
    return set(settings_of(EvalConfig)) - {*ADDED, "learn_from", "keep_prior", "hypergradient"}


def config_from(arguments, **defaults) -> EvalConfig:
    """The configuration that a command line gives, with a command's own `defaults` for what it leaves out; a note says which of what it
    gives change nothing, unless it asks for quiet."""
    settings = given(EvalConfig, arguments)
    config = EvalConfig(**{**defaults, **filled(getattr(arguments, "preset", None), settings)})
    if not getattr(arguments, "quiet", False):
        note_idle(config, settings)
    return config


def add_preset_option(parser: argparse.ArgumentParser) -> None:
    """--preset NAME, which ``config_from`` reads."""
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="settings of a recipe, over which all that is given goes; score-first: that of the Parameter Golf contest's adapting entries, "
        "64 documents at once, segments of 48, two levels (needs a model with a gate and 2,048 positions, else give --targets, --memory)",
    )


def log_name(name: str) -> str:
    """The type of --log: refuses a log that there is none of, or whose package is not installed."""
    from dynadapt.runs.logs import check_logs

    try:
        return check_logs([name])[0]
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None  # argparse reports its own kind's words


def add_log_option(parser: argparse.ArgumentParser, type=log_name) -> None:
    """--log NAME, which may be given several times, as `arguments.logs`: a tuple, for the `log` of a run's options."""
    parser.add_argument(
        "--log",
        "--log-to",
        dest="logs",
        type=type,
        action=_AppendLog,
        default=(),
        metavar="NAME",
        help="show every line of metrics.jsonl in wandb, trackio or tensorboard too; can be given several times (under "
        "torchrun, whose own options begin with --log, as --log-to)",
    )


class _AppendLog(argparse.Action):
    def __call__(self, parser, namespace, value, option=None):
        if isinstance(value, int):  # `icl train --log 100`, as --log-every was called
            namespace.log = value
        else:
            namespace.logs = tuple(dict.fromkeys((*namespace.logs, value)))

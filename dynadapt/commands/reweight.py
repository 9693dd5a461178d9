"""`dynadapt reweight`: its options, and what it prints."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

from dynadapt.common.errors import ConfigError
from dynadapt.common.options import add_settings, given, note_idle
from dynadapt.experiments.reweight.config import ReweightConfig, named_numbers
from dynadapt.runs.progress import say

from .early import check_model, check_run
from .settings import add_log_option

EXAMPLES = """\
examples:
  dynadapt reweight train --domains code=src/ prose=books.jsonl --mixer stratified --steps 500 --out runs/even
      go on training SmolLM2-135M on two domains, equally often drawn
  dynadapt reweight train --corpus corpus --mixer proportional --steps 200 --out runs/sample
  dynadapt reweight fit --out runs/sample --tokens 4000000
      held-out losses to expect after 4,000,000 tokens: runs/sample/targets.json
  dynadapt reweight train --corpus corpus --mixer velocitune --target runs/sample/targets.json --steps 1000 --out runs/velocitune
  dynadapt reweight train --corpus corpus --mixer replay --set run=runs/velocitune --out runs/control
      that run again with its average weights held still, which a mixer has to beat; steps, rates and domains are that run's
  dynadapt reweight compare runs/control runs/velocitune
      held-out losses of the second less those of the first, by domain, with intervals
  dynadapt reweight train --corpus corpus --scratch 6x384 --targets model --steps 2000 --out runs/small
      a small model from random weights
  torchrun --nproc-per-node 4 -m dynadapt reweight train --corpus corpus --mixer odm --rows 32 --shard --out runs/four
      four processes with eight rows of each step: what one would do, with masters and moments spread over them

A domain is a directory with train.jsonl and heldout.jsonl (or train/ and heldout/), or anything that `dynadapt eval` takes as a text
(a directory of files, a .jsonl or .parquet file, any of them as .gz), of which a tenth of the documents is held out. The run directory gets config.json, env.json,
metrics.jsonl, summary.json, weights.png and the last state; a run that was stopped goes on with --resume."""


def add_options(command) -> None:
    """The settings of ReweightConfig, and how a run is kept."""
    command.add_argument(
        "what",
        choices=("train", "fit", "plot"),
        help="train; predict target losses from a finished run with static weights; draw a run's picture again",
    )
    command.add_argument("--out", required=True, metavar="runs/NAME", help="directory of the run")
    add_settings(command, ReweightConfig)
    command.add_argument(
        "--resume", action="store_true", help="go on with a run that was stopped: the same rows, losses and weights, bit for bit"
    )
    command.add_argument(
        "--change", nargs="+", metavar="NAME=WEIGHT", help="with --resume: weights from here on, for all domains; no row is lost"
    )
    command.add_argument(
        "--shard", action="store_true", help="with several processes and --adapt full: each keeps a part of the masters and moments"
    )
    command.add_argument("--checkpoint", type=int, default=50, metavar="N", help="save every N steps, 0 for the end only (default: 50)")
    add_log_option(command)
    command.add_argument("--tokens", type=float, metavar="N", help="with fit: training tokens, of all domains, at which to predict")


def config_from(arguments) -> ReweightConfig:
    content = settings = given(ReweightConfig, arguments)
    if content.get("mixer") == "replay":
        from dynadapt.experiments.reweight.control import with_run

        content = with_run(settings)  # what was not given, a control takes from its run
    config = ReweightConfig(**content)
    note_idle(config, settings)
    return config


def run(arguments) -> int:
    return {"train": _train, "fit": _fit, "plot": _plot}[arguments.what](arguments)


def _train(arguments) -> int:
    if arguments.checkpoint < 0:
        raise ConfigError(f"checkpoint {arguments.checkpoint}: give a whole number of at least 0")
    config = config_from(arguments)
    change = named_numbers("change", arguments.change) if arguments.change else None
    check_model(config.model)
    for name, path in config.domains.items():
        if not Path(path).exists():
            raise ConfigError(f"domain {name!r}: {path}: no such file or directory")
    what = f"a model of {config.scratch} from random weights" if config.scratch else config.model
    say(f"training {what} on {config.corpus or ', '.join(config.domains)}, mixer {config.mixer}, {config.steps:,} steps: loading it")
    from dynadapt.distributed import join
    from dynadapt.experiments.dyneval import Interrupted
    from dynadapt.experiments.reweight import ReweightOptions, draw
    from dynadapt.experiments.reweight import run as train
    from dynadapt.experiments.reweight.heldout_power import of_run, told
    from dynadapt.experiments.reweight.progress import progress_for

    options = ReweightOptions(arguments.resume, arguments.checkpoint, change, arguments.shard, arguments.logs)
    finished = (Path(arguments.out) / "summary.json").exists()
    with join() as processes:
        try:
            with progress_for(config.steps) if processes.first else nullcontext() as progress:
                summary = train(config, arguments.out, options, progress)
        except Interrupted as stopped:
            saved = "" if arguments.checkpoint else " (without checkpoints, it starts over)"
            if processes.first:
                print(f"dynadapt: {stopped}; go on with the same command and --resume{saved}", file=sys.stderr)
            return 130
    if not processes.first:
        return 0
    if finished:
        print(f"{arguments.out}: this run is finished")
    _print_summary(summary)
    if small := told(of_run(arguments.out)):
        print(small)
    print(f"written to {arguments.out}; picture: {draw(arguments.out)}")
    return 0


def _print_summary(summary: dict) -> None:
    from rich.table import Table

    from dynadapt.runs.console import print_whole, table_console

    table = Table(box=None, pad_edge=False)
    table.add_column("domain")
    for name in ("tokens", "epochs", "weight", "mean weight", "held-out", "change"):
        table.add_column(name, justify="right")
    for domain, loss in summary["heldout"].items():
        of = lambda name: summary[name][domain]  # noqa: B023, E731
        table.add_row(
            domain,
            f"{of('tokens_by_domain'):,}",
            f"{of('epochs'):.2f}",
            f"{of('weights'):.3f}",
            f"{of('static_weights'):.3f}",
            f"{loss:.4f}",
            f"{loss - of('heldout_start'):+.4f}",
        )
    fall = summary["mean"] - summary["mean_start"]
    table.add_row("mean", f"{summary['tokens']:,}", "", "", "", f"{summary['mean']:.4f}", f"{fall:+.4f}")
    print_whole(table_console(), table)
    flops = summary["flops"]
    costs = [f"{summary['flops_per_token'] / 1e9:,.4g} GFLOP/token to train", f"{flops['heldout'] / 1e9:,.4g} GFLOP for held-out losses"]
    if flops["excess"]:
        costs.append(f"{flops['excess'] / 1e9:,.4g} GFLOP for the excess over the reference")
    print(f"{summary['steps']} steps, {summary['ended']}; {summary['seconds']:.1f} s, {', '.join(costs)}")


def _fit(arguments) -> int:
    if arguments.tokens is None:
        raise ConfigError("tokens: none given; say at how many training tokens the losses are to be predicted")
    check_run(arguments.out)
    from dynadapt.experiments.reweight import fit_run

    found = fit_run(arguments.out, arguments.tokens)
    for domain, loss in found["target"].items():
        low, high = found["interval"][domain]
        print(
            f"{domain}: {loss:.4f} nats at {found['tokens']:,.0f} tokens, 90% interval {low:.4f} to {high:.4f}, "
            f"{found['form'][domain]}, residual {found['residual'][domain]:.4f}, last third foreseen within {found['backtest'][domain]:.4f}"
        )
    print(f"written to {Path(arguments.out) / 'targets.json'}; picture: {Path(arguments.out) / 'targets.png'}")
    return 0


def _plot(arguments) -> int:
    check_run(arguments.out)
    from dynadapt.experiments.reweight import draw

    print(draw(arguments.out))
    return 0

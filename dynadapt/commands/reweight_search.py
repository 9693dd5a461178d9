"""`dynadapt reweight search`: the weights to train with, from losses measured on other mixtures."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

from dynadapt.common.errors import ConfigError
from dynadapt.common.options import add_settings, given, note_idle
from dynadapt.experiments.reweight.config import ReweightConfig
from dynadapt.experiments.reweight.search_config import SearchConfig
from dynadapt.runs.progress import say

from .early import check_model

EXAMPLES = """\
examples:
  dynadapt reweight search --corpus corpus --adapt lora --steps 400 --policy repeat --out runs/search
      OP-Mix: one LoRA probe a domain on SmolLM2-135M, 40 steps each, side by side; 20 mixtures of them scored, a law fitted to each domain
  dynadapt reweight train --corpus corpus --adapt lora --steps 400 --policy repeat --mixer fixed --weights runs/search/summary.json --out runs/found
      the run that it was for, with the weights that were found
  dynadapt reweight search --method proxies --corpus corpus --scratch 8x384 --proxy 4x128 --targets model --steps 5000 --mixtures 30 --out runs/proxies
      a small model from random weights trained on each of 30 mixtures, for a larger one from random weights
  dynadapt reweight train --corpus corpus --scratch 8x384 --targets model --steps 5000 --mixer stratified --out runs/large   # stopped after 1,000
  dynadapt export runs/large runs/begun
  dynadapt reweight search --model runs/begun --corpus corpus --steps 5000 --out runs/probes
  dynadapt reweight train ... --resume --change NAME=WEIGHT ...
      OP-Mix for a model from random weights: probes are learned on what it is after its first fifth, and the run goes on with what they found

Settings are those of the run that the mixture is for, which need not have been begun; its mixer is not asked. summary.json has the weights, what the
laws predict there, their error on mixtures that they did not see, and all FLOPs. A domain whose law foresees no better than a mean is refused by name.
A search that was stopped goes on with --resume, and so does one that was refused, with another --unforeseen or --penalty."""

NOT_ASKED = ("mixer", "settings", "target", "reference", "pace", "smoothing", "floor", "evaluate", "compress", "powersgd_rank")
RUN = tuple(field.name for field in fields(ReweightConfig) if field.name not in NOT_ASKED)


def add_options(command) -> None:
    command.add_argument("--out", required=True, metavar="runs/NAME", help="directory of the search")
    add_settings(command, SearchConfig)
    command.add_argument("--resume", action="store_true", help="go on with a search that was stopped, or that was refused")
    command.add_argument("--checkpoint", type=int, default=50, metavar="N", help="save every N steps, 0 for the end only (default: 50)")
    add_settings(command.add_argument_group("the run that the mixture is for"), ReweightConfig, only=RUN)


def run(arguments) -> int:
    if arguments.checkpoint < 0:
        raise ConfigError(f"checkpoint {arguments.checkpoint}: give a whole number of at least 0")
    wanted, settings = given(SearchConfig, arguments), given(ReweightConfig, arguments)
    how, config = SearchConfig(**wanted), ReweightConfig(**settings)
    note_idle(how, wanted)
    note_idle(config, settings)
    check_model(config.model)
    for name, path in config.domains.items():
        if not Path(path).exists():
            raise ConfigError(f"domain {name!r}: {path}: no such file or directory")
    if config.domains:
        how.check_for(config, len(config.domains))
    what = f"models of {how.proxy or config.scratch} from random weights" if config.scratch else config.model
    say(
        f"measuring {how.mixtures} mixtures of {config.corpus or ', '.join(config.domains)} with {what}, {how.steps(config):,} steps: loading it"
    )
    from dynadapt.experiments.dyneval import Interrupted
    from dynadapt.experiments.reweight.search import search_mixture

    try:
        found = search_mixture(config, how, arguments.out, arguments.resume, arguments.checkpoint, _show)
    except Interrupted as stopped:
        print(f"dynadapt: {stopped}; go on with the same command and --resume", file=sys.stderr)
        return 130
    _print(found)
    print(
        f"written to {Path(arguments.out) / 'summary.json'}; train with it: --mixer fixed --weights {Path(arguments.out) / 'summary.json'}"
    )
    return 0


def _show(line: dict) -> None:
    if line["kind"] == "mixture":
        mean = sum(line["heldout"].values()) / len(line["heldout"])
        say(f"mixture {line['mixture'] + 1}: mean held-out loss {mean:.4f}")


def _print(found: dict) -> None:
    from rich.table import Table

    from dynadapt.runs.console import print_whole, table_console

    table = Table(box=None, pad_edge=False)
    table.add_column("domain")
    for name in ("initial", "found", "predicted", "change", "error", "a mean's"):
        table.add_column(name, justify="right")
    for domain, weight in found["weights"].items():
        change = found["predicted"][domain] - found["predicted_of_prior"][domain]
        table.add_row(
            domain + " (held)" * (domain in found["held"]),
            f"{found['prior'][domain]:.3f}",
            f"{weight:.3f}",
            f"{found['predicted'][domain]:.4f}",
            f"{change:+.4f}",
            f"{found['error'][domain]:.4f}",
            f"{found['error_of_mean'][domain]:.4f}",
        )
    print_whole(table_console(), table)
    print(", ".join(f"{value / 1e9:,.4g} GFLOP for {what}" for what, value in found["flops"].items()))

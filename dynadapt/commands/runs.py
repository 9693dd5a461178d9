"""`dynadapt runs`: the runs that are there."""

from __future__ import annotations

from .parsing import at_least, meant

EXAMPLES = """\
examples:
  dynadapt runs
      every run under runs/: what it did, how far it is, what came out, what it took
  dynadapt runs runs/demo --sort result
  dynadapt runs --kind reweight icl --unfinished
  dynadapt runs --json | jq '.runs[] | select(.state == "finished") | .path'
  dynadapt runs diff runs/static runs/lora
      what two runs have been set to, read and found that differs
  dynadapt runs prune
      remove what failed before it scored anything

A run is finished, running (a process holds its .lock), stopped (--resume goes on with it), failed (nothing was scored) or damaged.
The result is the NLL in nats per token; of reweighting runs the mean over domains of the held-out NLL, of icl runs the squared error
of the last training steps over that of predicting zero, of diagnoses the change. A directory named diff or prune is ./diff, ./prune."""
KINDS = ("eval", "reweight", "icl", "diagnose", "advise")
SORT = ("date", "name", "kind", "state", "result", "tokens", "time", "size")


def add_options(command) -> None:
    command.add_argument("dir", nargs="?", default="runs", metavar="DIR", help="where to look, in directories below too (default: runs)")
    command.add_argument(
        "--kind", nargs="+", choices=KINDS, default=[], metavar="KIND", help=f"only runs of these kinds: {', '.join(KINDS)}"
    )
    command.add_argument("--unfinished", action="store_true", help="only runs that are not finished")
    command.add_argument(
        "--sort", choices=SORT, default="date", metavar="BY", help=f"order: {', '.join(SORT)} (default: date, the newest last)"
    )
    command.add_argument("--reverse", action="store_true", help="the other way round")
    command.add_argument("--depth", type=at_least(0), default=6, metavar="N", help="directories to go down at most (default: 6)")
    command.add_argument("--json", action="store_true", help="print them as JSON, with whole numbers and times")


def run(arguments) -> int:
    import json
    from pathlib import Path

    from dynadapt.runs.find import find_runs
    from dynadapt.runs.listing import chosen, runs_table, sentence
    from dynadapt.runs.whole_files import RunError

    if not Path(arguments.dir).exists():
        hint = meant(arguments.dir, ("diff", "prune")).replace("mean ", "mean dynadapt runs ")
        raise RunError(f"{arguments.dir}: no such directory" + (hint or "; runs are made by dynadapt eval and others, with --out"))
    rows = find_runs(arguments.dir, arguments.depth)
    kept = chosen(rows, arguments.kind, arguments.unfinished, arguments.sort, arguments.reverse)
    if arguments.json:
        print(json.dumps({"runs": [row.to_dict() for row in kept]}, indent=2, allow_nan=False))
        return 0
    if not kept:
        print(f"{arguments.dir}: no run here" if not rows else f"{arguments.dir}: none of its {len(rows)} runs")
        return 0

    from dynadapt.runs.console import print_whole, table_console

    console = table_console(highlight=False, markup=False, emoji=False)
    print_whole(console, runs_table(kept, console.width))
    console.print(sentence(kept, len(rows)), soft_wrap=True)
    return 0

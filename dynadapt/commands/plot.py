"""`dynadapt plot`: pictures from the files of runs."""

from __future__ import annotations

EXAMPLES = """\
example:
  dynadapt plot runs/demo/*/*/ --out demo.png"""


def add_options(command) -> None:
    command.add_argument("run", nargs="+", metavar="RUN", help="run directories")
    command.add_argument("--out", metavar="FILE", help="picture to write, .png, .svg or .pdf (default: plot.png in the runs' common directory)")


def run(arguments) -> int:
    from dynadapt.experiments.plot import plot_runs
    for path in plot_runs(arguments.run, arguments.out):
        print(path)
    return 0

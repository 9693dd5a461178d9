"""`dynadapt plot`: pictures from the files of runs."""

from __future__ import annotations

EXAMPLES = """\
examples:
  dynadapt plot runs/demo/*/*/ --out demo.png
  dynadapt plot runs/*
      whatever is there: runs of eval together in runs/plot.png (loss against FLOPs and seconds, loss over the stream), a reweighting
      run's weights and losses in its weights.png, an icl run's and a diagnosis's pictures in their figures/

What is no run, or has nothing to draw yet, is said and left out."""


def add_options(command) -> None:
    command.add_argument("run", nargs="+", metavar="RUN", help="run directories")
    command.add_argument(
        "--out",
        metavar="FILE",
        help="picture to write, .png, .svg or .pdf; of several ones, names beside it "
        "(default: plot.png in the common directory of eval runs; of others, in their own directories)",
    )


def run(arguments) -> int:
    from dynadapt.experiments.plot import plot_runs

    for path in plot_runs(arguments.run, arguments.out):
        print(path)
    return 0

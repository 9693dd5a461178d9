"""`dynadapt export`: what a run learned, in files that others read."""

from __future__ import annotations

from pathlib import Path

from dynadapt.commands.early import check_run
from dynadapt.commands.parsing import at_least

EXAMPLES = """\
example:
  dynadapt export runs/novel --out adapter
  PeftModel.from_pretrained(model, 'adapter') then loads it"""


def add_options(command) -> None:
    command.add_argument("run", metavar="RUN")
    command.add_argument("--out", required=True, metavar="DIR", help="directory to make")
    command.add_argument("--stream", type=at_least(0), default=0, metavar="N", help="which stream's adapter (default: 0)")


def run(arguments) -> int:
    check_run(arguments.run)
    from dynadapt.experiments.export import export_run
    print(export_run(Path(arguments.run), Path(arguments.out), arguments.stream))
    return 0

"""`dynadapt runs diff`: what differs between two runs."""

from __future__ import annotations

EXAMPLES = """\
example:
  dynadapt runs diff runs/static runs/lora
      settings, inputs (texts, model, tokenizer by their digests), machine and installation, and results that differ"""


def add_options(command) -> None:
    command.add_argument("run", metavar="RUN")
    command.add_argument("other", metavar="OTHER")
    command.add_argument("--json", action="store_true", help="print everything as JSON, digests whole")


def run(arguments) -> int:
    import json

    from dynadapt.runs.differ import differences, print_differences

    found = differences(arguments.run, arguments.other)
    if arguments.json:
        print(json.dumps(found, indent=2, allow_nan=False))
        return 0
    from dynadapt.runs.console import table_console

    print_differences(found, table_console(highlight=False, markup=False, emoji=False))
    return 0

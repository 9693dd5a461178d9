"""`dynadapt compare`: where in a text one run did better than another."""

from __future__ import annotations

from pathlib import Path

from .early import check_run

EXAMPLES = """\
examples:
  dynadapt eval --text novel.txt --adapt none --scores --out runs/static
  dynadapt eval --text novel.txt --scores --out runs/lora
  dynadapt compare runs/static runs/lora --out compare.html
      one page that opens in any browser: the text, every token coloured by what the second run gained on it, the gain along
      the text, by class of token and by document, and what each run cost
  dynadapt compare runs/static runs/lora runs/full --json compare.json
      several runs, each against the first; the numbers in a file

Runs must have scored the same text with --scores. Tokens that only some of them have scored are left out."""


def add_options(command) -> None:
    command.add_argument("run", nargs="+", metavar="RUN", help="run directories; all others are held against the first")
    command.add_argument("--out", metavar="FILE.html", help="page to write (default: compare.html in the runs' common directory)")
    command.add_argument("--json", metavar="FILE", help="write the tables there as JSON as well")
    command.add_argument("--csv", metavar="FILE", help="write a line a token there as well: its text, class and every run's NLL")


def run(arguments) -> int:
    import os

    for run in arguments.run:
        check_run(run)
    from dynadapt.experiments.compare import read_compared, summarise, write_page
    from dynadapt.experiments.compare.files import write_csv
    from dynadapt.runs.output_paths import check_product
    from dynadapt.runs.whole_files import write_summary

    out = (
        Path(arguments.out)
        if arguments.out
        else Path(os.path.commonpath([Path(run).absolute().parent for run in arguments.run])) / "compare.html"
    )
    files = [path.absolute() for path in (out, *(Path(name) for name in (arguments.json, arguments.csv) if name))]
    if len(set(files)) < len(files):
        raise ValueError(f"out {out}, json {arguments.json}, csv {arguments.csv}: give each a name of its own")
    for number, run in enumerate(arguments.run):
        if any(os.path.samefile(run, other) for other in arguments.run[:number]):
            raise ValueError(f"run {run} is given twice")
    compared = read_compared(arguments.run)
    for path in (out, arguments.json, arguments.csv):
        if path:
            check_product(path, (text for run in compared.runs for text in run.config["text"]))
    summary = summarise(compared)
    write_page(out, compared, summary)
    if arguments.json:
        write_summary(Path(arguments.json), summary)
    if arguments.csv:
        write_csv(Path(arguments.csv), compared, summary)
    _print(summary)
    for path in (out, arguments.json, arguments.csv):
        if path:
            print(path)
    return 0


def _print(summary: dict) -> None:
    from rich.table import Table

    from dynadapt.experiments.compare.tables import sentence
    from dynadapt.runs.console import print_whole, table_console

    console = table_console(soft_wrap=True, highlight=False, markup=False)
    for text in summary["notes"]:
        console.print(f"note: {text}")
    for pair in summary["pairs"]:
        console.print(sentence(summary, pair))
        table = Table(box=None, pad_edge=False)
        table.add_column("class of token")
        for name in ("tokens", "gain a token", "part of the gain"):
            table.add_column(name, justify="right")
        for row in pair["classes"]:
            table.add_row(row["name"], f"{row['tokens']:,}", f"{row['gain']:+.4f}", f"{row['part']:+.4f}")
        print_whole(console, table)

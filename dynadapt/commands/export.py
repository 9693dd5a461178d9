"""`dynadapt export`: what a run learned, and what it measured, in files that others read."""

from __future__ import annotations

from pathlib import Path

from .early import check_run
from .parsing import at_least

EXAMPLES = """\
examples:
  dynadapt export runs/novel --out adapter
      the adapter; PeftModel.from_pretrained(model, 'adapter') then loads it
  dynadapt export runs/novel --out adapter --dtype bf16
      the same rounded to bf16, half as large: what `dynadapt patch` takes
  dynadapt export runs/novel --csv novel.csv
      the metrics: a row a segment (of reweighting and icl runs, a step)
  dynadapt export runs/novel --parquet tokens.parquet --scores
      a row a scored token, of a run with --scores: document, position, NLL, id, bytes of the text (needs pyarrow)"""


def add_options(command) -> None:
    command.add_argument("run", metavar="RUN")
    command.add_argument("--out", metavar="DIR", help="directory to make, for the adapter or the model")
    command.add_argument("--stream", type=at_least(0), metavar="N", help="with --out: which stream's adapter (default: 0)")
    command.add_argument(
        "--dtype",
        choices=("fp32", "bf16"),
        help="with --out: how tensors are stored, rounded to it (default: an adapter fp32, a model as the run)",
    )
    command.add_argument("--csv", metavar="FILE", help="write the metrics there, a row a line of metrics.jsonl")
    command.add_argument("--parquet", metavar="FILE", help="the same as Parquet, with the columns' types (needs pyarrow)")
    command.add_argument("--scores", action="store_true", help="with --csv or --parquet: the scored tokens in place of the metrics")


def run(arguments) -> int:
    check_run(arguments.run)
    tables = [name for name in (arguments.csv, arguments.parquet) if name]
    if arguments.scores and not tables:
        raise ValueError("scores: with --csv FILE or --parquet FILE, which are to have them")
    if not arguments.out and not tables:
        raise ValueError("nothing to write: give --out DIR for what was learned, or --csv FILE or --parquet FILE for what was measured")
    if arguments.stream is not None and not arguments.out:
        raise ValueError(f"stream {arguments.stream}: with --out, the adapter of one stream; tables have all streams")
    if arguments.dtype is not None and not arguments.out:
        raise ValueError(f"dtype {arguments.dtype}: with --out, what was learned; tables have numbers of their own types")
    if len({Path(name).absolute() for name in (arguments.out, *tables) if name}) < len(tables) + bool(arguments.out):
        raise ValueError(f"out {arguments.out}, csv {arguments.csv}, parquet {arguments.parquet}: give each a name of its own")
    if tables:
        _tables(arguments)
    if arguments.out:
        from dynadapt.experiments.export import export_run

        print(export_run(Path(arguments.run), Path(arguments.out), arguments.stream or 0, arguments.dtype))
    return 0


def _tables(arguments) -> None:
    from dynadapt.runs.metrics import read_run
    from dynadapt.runs.output_paths import check_product
    from dynadapt.runs.tables import write_csv, write_parquet

    found = read_run(arguments.run)
    for name in filter(None, (arguments.csv, arguments.parquet)):
        check_product(name, found.config.get("text") or ())
    for name, write in ((arguments.csv, write_csv), (arguments.parquet, write_parquet)):
        if name:
            rows = write(Path(name), found, arguments.scores)
            print(f"{name}: {rows:,} {'tokens' if arguments.scores else 'rows'}")

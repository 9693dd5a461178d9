"""`dynadapt reweight compare`: which mixer left lower held-out losses, domain by domain."""

from __future__ import annotations

from pathlib import Path

EXAMPLES = """\
examples:
  dynadapt reweight compare runs/control runs/velocitune
      held-out losses of the second less those of the first, by domain, with intervals over held-out rows
  dynadapt reweight compare runs/even-0 runs/even-1 runs/even-2 runs/odm-0 runs/odm-1 runs/odm-2 --json odm.json
      two mixers with three seeds each: intervals over seeds

Runs that differ in nothing but --seed are one method; all others are held against the first run's. They are compared within a seed,
after the most training tokens at which both were evaluated. Runs of other domains, texts or tokenizers are refused."""


def add_options(command) -> None:
    command.add_argument("run", nargs="+", metavar="RUN", help="directories of `dynadapt reweight train`")
    command.add_argument(
        "--out", metavar="FILE", help="picture to write, .png, .svg or .pdf (default: reweighting.png in the runs' common directory)"
    )
    command.add_argument("--json", metavar="FILE", help="write the numbers there as JSON as well")


def run(arguments) -> int:
    import os

    from dynadapt.experiments.reweight.paired import compare_runs, draw_pairs
    from dynadapt.runs.whole_files import write_summary

    found = compare_runs(arguments.run)
    common = Path(os.path.commonpath([Path(run).absolute().parent for run in arguments.run]))
    out = draw_pairs(found, arguments.out or Path(os.path.relpath(common)) / "reweighting.png")
    if arguments.json:
        write_summary(Path(arguments.json), found)
    _print(found)
    for path in filter(None, (out, arguments.json)):
        print(path)
    return 0


def _print(found: dict) -> None:
    from rich.table import Table

    from dynadapt.experiments.reweight.paired import over
    from dynadapt.runs.console import print_whole, table_console

    console = table_console(highlight=False, markup=False, emoji=False)
    for text in found["notes"]:
        console.print(f"note: {text}", soft_wrap=True)
    for pair in found["pairs"]:
        tokens = sorted(set(pair["tokens"]))
        after = f"{tokens[0]:,}" if len(tokens) == 1 else f"{tokens[0]:,} to {tokens[-1]:,}"
        p = pair["mean"]["p_adjusted"]
        certain = "" if p is None else f" (p {p:.3f}{', adjusted by Holm' if len(found['pairs']) > 1 else ''})"
        power = "" if pair["sees"] is None else f"; a true difference of {pair['sees']:.3f} would be called 4 times of 5"
        console.print(
            f"{pair['of']} less {pair['against']}, after {after} tokens: {pair['says']}{certain}; {over(pair)}{power}", soft_wrap=True
        )
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("domain", overflow="fold")
        for name in ("first", "this", "difference", "95% interval"):
            table.add_column(name, justify="right", no_wrap=True)
        for name, value in [*pair["domains"].items(), ("mean", pair["mean"])]:
            interval = value["interval"]
            table.add_row(
                name,
                f"{value['base']:.4f}",
                f"{value['loss']:.4f}",
                f"{value['difference']:+.4f}",
                f"[{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else "-",
            )
        print_whole(console, table)

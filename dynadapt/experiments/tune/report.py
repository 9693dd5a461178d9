"""The recommendation on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dynadapt.runs.console import print_whole, table_console
from dynadapt.runs.listing import minutes


def sentences(result) -> list[str]:
    """What was found, in words."""
    said = []
    if result.gain_nats is None:
        said.append(f"{result.judged} diverged on the windows that it was judged on")
    else:
        (low, high), (low_bits, high_bits) = result.interval, result.interval_bits_per_byte
        said.append(
            f"expected gain over {result.static}: {result.gain_nats:+.4f} nats per token [{low:+.4f}, {high:+.4f}], "
            f"{result.gain_bits_per_byte:+.4f} bits per byte [{low_bits:+.4f}, {high_bits:+.4f}]"
        )
        said.append(f"{result.level:.0%} interval ({result.interval_kind}): {result.estimate}")
    about = "" if result.text["counted"] else "about "
    said.append(
        f"price: {minutes(result.minutes)} for the rest of the text, {about}{result.text['rest_tokens']:,} tokens"
        + (f"; static takes {minutes(result.static_minutes)}" if result.adapts else "")
    )
    windows = result.windows
    said.append(
        f"set apart: {windows['tokens']:,} of {about}{result.text['tokens']:,} tokens, {windows['choosing']} windows to choose on and {windows['judging']} to judge on"
    )
    return said


def headline(result) -> str:
    return (
        f"adapt: {result.judged}" if result.adapts else f"stay static: nothing that learns beats {result.static} by more than its interval"
    )


def print_recommendation(result, console: Console | None = None) -> None:
    """The table of all that was tried, the recommendation, and the command."""
    console = console or table_console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tried")
    for head in ("windows", "NLL", "gain", "s/1k tok", "GFLOP/tok"):
        table.add_column(head, justify="right")
    for row in result.tried:
        table.add_row(
            escape(row["label"]),
            f"{row['windows']}",
            "diverged" if row["diverged"] else f"{row['nll']:.4f}",
            "" if row["gain"] is None else f"{row['gain']:+.4f}",
            f"{1000 * row['seconds_per_token']:.2f}",
            f"{row['flops_per_token'] / 1e9:.2f}",
            style="bold" if row["judged"] else None,
        )
    print_whole(console, table)
    console.print("[dim]on the windows for choosing; gain over the best static one on the same of them[/]")
    for note in result.notes:
        console.print(f"note: {escape(note)}")
    console.print()
    console.print(f"[bold]{escape(headline(result))}[/]")
    for sentence in sentences(result):
        console.print(f"  {escape(sentence)}", highlight=False)
    wide = Console(file=console.file, soft_wrap=True)
    wide.print("\nrun, on the rest of the text:", highlight=False)
    wide.print(f"  {escape(result.command)}", highlight=False)
    if result.adapts:
        wide.print("to compare with:", highlight=False)
        wide.print(f"  {escape(result.static_command)}", highlight=False)
    if result.whole_text_command:
        wide.print("on all of it, windows included (its score has seen the choice):", highlight=False)
        wide.print(f"  {escape(result.whole_text_command)}", highlight=False)
    if result.out:
        wide.print(f"written to {escape(result.out)}: recommendation.json, picture.png, rest/", highlight=False)

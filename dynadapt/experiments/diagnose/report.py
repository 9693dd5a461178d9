"""A diagnosis as a table for the terminal, and its token types as a CSV file."""

from __future__ import annotations

from pathlib import Path

from dynadapt.runs.console import print_whole, table_console
from dynadapt.runs.tables import write_rows

from .classes import CLASSES, token_texts, visible

COLOURS = {
    "helps": "green",
    "hurts broadly": "red",
    "hurts on few types": "yellow",
    "inconclusive": "cyan",
    "no change worth naming": "cyan",
    "diverged": "red",
}


def number(value: float | None, form: str = "+.4f") -> str:
    return "-" if value is None else format(value, form)


def interval(ends: list[float | None]) -> str:
    return "-" if None in ends else f"[{ends[0]:+.4f}, {ends[1]:+.4f}]"


def both(perplexities: dict | None) -> str:
    return "-" if perplexities is None else f"{perplexities['before']:.2f} -> {perplexities['after']:.2f}"


def class_rows(summary: dict) -> list[tuple[str, ...]]:
    return [
        (
            c["class"],
            f"{c['share_of_tokens']:.1%}",
            number(c["change"]),
            number(c["contribution"]),
            interval(c["contribution_interval"]),
            both(c["perplexity"]),
            both(c["perplexity_without"]),
        )
        for c in summary["classes"]
    ]


CLASS_HEAD = ("class", "tokens", "change", "part of the change", "95%", "perplexity", "perplexity without it")


def share_rows(summary: dict) -> list[tuple[str, ...]]:
    forms = {"types": "d", "net": ".0%", "rise": ".0%", "held_out": ".0%", "tokens": ".1%"}
    return [tuple(number(record[key], form) for key, form in forms.items()) for record in summary["concentration"]]


def share_head(summary: dict) -> tuple[str, ...]:
    direction = "rise" if summary["change"] > 0 else "fall"
    return ("top types", "of the change", f"of all that {direction}s", "on the other half", "their tokens")


TYPE_HEAD = ("token", "class", "count", "before", "after", "part of the change")


def type_rows(summary: dict, count: int, which: str = "top_types") -> list[tuple[str, ...]]:
    return [
        (t["shown"], t["class"], f"{t['count']:,}", f"{t['before']:.3f}", f"{t['after']:.3f}", number(t["contribution"]))
        for t in summary[which][:count]
    ]


def similarity_rows(similarity: dict) -> list[tuple[str, ...]]:
    rows = [(f"{o['n']}-grams", f"{o['divergence']:.3f}", f"{o['within']:.3f}") for o in similarity["orders"]]
    if "embedding_cosine" in similarity:
        rows.append(("embeddings, cosine", f"{similarity['embedding_cosine']:.3f}", ""))
    return rows


SIMILARITY_HEAD = ("against the reference", "divergence (bits)", "within the text")


def print_diagnosis(summary: dict, out: Path) -> None:
    from rich.markup import escape

    console = table_console(soft_wrap=True, highlight=False)
    console.print(f"[bold {COLOURS[summary['verdict']]}]{summary['verdict']}[/]")
    for sentence in summary["evidence"]:
        console.print(f"  {escape(sentence)}")
    console.print()
    print_table(console, CLASS_HEAD, class_rows(summary))
    print_table(console, share_head(summary), share_rows(summary))
    print_table(console, TYPE_HEAD, type_rows(summary, 10))
    if summary["against"]:
        print_table(console, ("the other way", *TYPE_HEAD[1:]), type_rows(summary, 5, "against"))
    if summary["similarity"]:
        print_table(console, SIMILARITY_HEAD, similarity_rows(summary["similarity"]))
    if not summary["keywords_known"]:
        console.print("domain keywords: not told apart; they need a text to compare with (--reference)")
    console.print(f"written to {escape(str(out))}: summary.json, types.csv, page.html")


def print_table(console, head, rows) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    print_whole(console, table)
    console.print()


def write_types(path: Path, types, classes, tokenizer) -> None:
    """Every token type: id, text, class, count, NLL before and after, and its contribution."""
    texts = token_texts(tokenizer, types.ids)
    rows = (
        (
            int(types.ids[i]),
            visible(texts[i]),
            CLASSES[classes[i]],
            int(types.counts[i]),
            f"{types.before[i]:.6f}",
            f"{types.after[i]:.6f}",
            f"{types.contribution[i]:.9f}",
        )
        for i in abs(types.contribution).argsort(kind="stable")[::-1]
    )
    write_rows(path, ("id", "text", "class", "count", "before", "after", "contribution"), rows)

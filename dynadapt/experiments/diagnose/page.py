"""A diagnosis as one HTML page that needs no other file: its verdict, plots (SVG) and tables."""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from dynadapt.runs.whole_files import replace_file

from . import figures, report
from .verdict import plural

COLOURS = {
    "helps": "#0f8a5f",
    "hurts broadly": "#b91c1c",
    "hurts on few types": "#b45309",
    "inconclusive": "#4b5563",
    "no change worth naming": "#4b5563",
    "diverged": "#7f1d1d",
}

STYLE = """
body { font: 15px/1.55 system-ui, sans-serif; color: #1f2937; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem }
.verdict { color: white; display: inline-block; padding: .25rem .8rem; border-radius: .4rem; font-weight: 600 }
.said { color: #4b5563; margin-top: .3rem } .note { color: #6b7280; font-size: .9rem }
table { border-collapse: collapse; margin: .6rem 0; font-size: .9rem }
th, td { padding: .18rem .7rem .18rem 0; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { border-bottom: 1px solid #d1d5db; font-weight: 600 }
td.token { font-family: ui-monospace, monospace; background: #f3f4f6; padding-left: .4rem }
svg { max-width: 100%; height: auto } .wide { overflow-x: auto }
"""


def svg(figure: Figure, prefix: str) -> str:
    """The figure as an <svg> element whose ids no other figure of the page has."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', text)
    return re.sub(r'(href="#|url\(#)([^")]+)', rf"\1{prefix}-\2", text)


def table(head, rows, token_column: bool = False) -> str:
    first = '<td class="token">' if token_column else "<td>"
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + first + "</td><td>".join(map(escape, row)) + "</td></tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'


def page(title: str, body: list[str]) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def write_page(path: Path, summary: dict) -> None:
    """Writes the page of a summary that `driver.run_diagnosis` made."""
    replace_file(path, page("dynadapt diagnose", _body(summary)))


def _body(summary: dict) -> list[str]:
    texts = summary["text"]
    named = ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")
    body = [
        f"<h1>{escape(summary['model'])}, before and after</h1>",
        f'<p class="said">after: {escape(_after(summary))}; held-out text: {escape(named)}; {summary["tokens"]:,} tokens of '
        f"{summary['types']:,} types in {len(summary['documents']):,} document{'s' * (len(summary['documents']) != 1)}</p>",
        f'<p><span class="verdict" style="background:{COLOURS[summary["verdict"]]}">{summary["verdict"]}</span></p>',
        "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in summary["evidence"]) + "</ul>",
        '<p class="note">Changes are after minus before, in nats per token: positive is worse. A part of the change is the '
        "share of tokens times their mean change; the parts of all types, and of all classes, add up to the change exactly "
        f"(here to {summary['identity_error']:.0e}).</p>",
        "<h2>Classes</h2>",
        svg(figures.classes(summary), "classes"),
        table(report.CLASS_HEAD, report.class_rows(summary)),
    ]
    if not summary["keywords_known"]:
        body.append('<p class="note">Domain keywords are not told apart: they need a text to compare with (--reference).</p>')
    body += [
        "<h2>Token types</h2>",
        svg(figures.types(summary), "types"),
        svg(figures.concentration(summary), "shares"),
        table(report.share_head(summary), report.share_rows(summary)),
        '<p class="note">"On the other half": types are picked on one half of the documents and measured on the other, so that '
        "chance alone does not put types at the top.</p>",
        table(report.TYPE_HEAD, report.type_rows(summary, 30), token_column=True),
    ]
    if summary["against"]:
        body += [
            '<p class="note">The types that moved the mean most the other way:</p>',
            table(report.TYPE_HEAD, report.type_rows(summary, 15, "against"), token_column=True),
        ]
    body += [
        "<h2>Documents</h2>",
        svg(figures.documents(summary), "documents"),
        f'<p class="note">Intervals are Student\'s over {summary["units"]["count"]:,} {escape(plural(summary["units"]))}.</p>',
        "<h2>Format</h2>",
    ]
    if summary["controls"]:
        body.append(svg(figures.controls(summary), "controls"))
    body.append(svg(figures.places(summary), "places"))
    if summary["similarity"]:
        body += [
            "<h2>Similarity</h2>",
            table(report.SIMILARITY_HEAD, report.similarity_rows(summary["similarity"])),
            '<p class="note">Jensen-Shannon divergence of n-grams of tokens, samples of '
            f"{summary['similarity']['tokens']:,} tokens; reference: "
            f"{escape(', '.join(summary['similarity']['reference']))}. "
            '"Within the text" is what two samples of the text itself are apart. The model before scores the text at '
            f"{summary['base_nll']:.3f} nats per token.</p>",
        ]
    return body


def _after(summary: dict) -> str:
    if summary["learned"]:
        return f"what it learned in {summary['learned']['updates']:,} updates on {summary['learned']['tokens']:,} tokens"
    return summary["after"]

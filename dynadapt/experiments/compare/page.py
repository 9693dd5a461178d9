"""A comparison as one HTML page: the text with every token coloured by what the second run gained, chart, tables, costs."""

from __future__ import annotations

import base64
import json
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np

from dynadapt.experiments.diagnose.classes import CLASSES
from dynadapt.runs.whole_files import replace_file

from .joined_scores import Compared
from .tables import sentence


def write_page(path: Path, compared: Compared, summary: dict) -> None:
    """Writes the page of `summary`, which `summarise` made of `compared`; its size is about 30 bytes a token and the text."""
    template = resources.files(__package__).joinpath("page.html").read_text("utf-8")
    title = f"{Path(summary['model']).stem} on {', '.join(compared.names[:3])}" + (" and more" if len(compared.names) > 3 else "")
    # No "<" reaches the page as itself, so that no text can end the element that holds it.
    data = (
        json.dumps(_data(compared, summary), ensure_ascii=False, allow_nan=False)
        .replace("<", "\\u003c")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )
    replace_file(path, template.replace("@TITLE@", escape(title)).replace("@DATA@", data))


def _pack(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode()


def _data(compared: Compared, summary: dict) -> dict:
    pieces = compared.pieces
    units = [sum(2 if ord(c) > 0xFFFF else 1 for c in piece) for piece in pieces]  # JavaScript counts UTF-16 code units
    runs = summary["runs"]
    return {
        "what": f"{summary['tokens']:,} tokens, {summary['bytes']:,} bytes; before: {runs[0]['title']}"
        + (f"; after: {runs[1]['title']}" if len(runs) == 2 else ""),
        "notes": summary["notes"],
        "runs": [run["title"] for run in runs],
        "text": "".join(pieces),
        "length": _pack(units, "<u4"),
        "class": _pack(compared.classes, "u1"),
        "classes": list(CLASSES),
        "seen": _pack(compared.last_seen, "<u4"),
        "segment": _pack(compared.segment, "<u4"),
        "document": _pack(compared.document, "<u4"),
        "documents": [{"name": name} for name in compared.names],
        "nll": [_pack(nll, "<f4") for nll in compared.nll],
        "pairs": [
            {"sentence": sentence(summary, pair), "classes": pair["classes"], "documents": pair["documents"]} for pair in summary["pairs"]
        ],
        "costs": [["run", "NLL", "bits per byte", "GFLOP a token", "seconds", "peak MB"], *(_cost_row(run) for run in runs)],
    }


def _cost_row(run: dict) -> list[str]:
    show = lambda value, form: "\u2013" if value is None else form(value)  # noqa: E731
    return [
        run["title"] + ("" if run["finished"] else " (unfinished)"),
        f"{run['nll']:.4f}",
        show(run["bits_per_byte"], lambda x: f"{x:.4f}"),
        show(run["flops_per_token"], lambda x: f"{x / 1e9:,.3f}"),
        show(run["seconds"], lambda x: f"{x:,.1f}"),
        show(run["peak_memory_bytes"], lambda x: f"{x / 1e6:,.0f}"),
    ]

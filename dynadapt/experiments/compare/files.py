"""A comparison as files for other programs."""

from __future__ import annotations

from pathlib import Path

from dynadapt.experiments.diagnose.classes import CLASSES
from dynadapt.runs.tables import write_rows

from .joined_scores import Compared


def write_csv(path: Path, compared: Compared, summary: dict) -> None:
    """A line a token: document, place in it, id, first and last byte, text, class, tokens since it stood there last, and NLLs."""
    head = [
        "document",
        "position",
        "token",
        "start",
        "stop",
        "text",
        "class",
        "last_seen",
        *(f"nll {run['title']}" for run in summary["runs"]),
    ]
    columns = (
        compared.document,
        compared.position,
        compared.token,
        compared.start,
        compared.stop,
        compared.pieces,
        compared.classes,
        compared.last_seen,
        *compared.nll,
    )
    rows = (
        [compared.names[document], position, token, start, stop, piece, CLASSES[kind], seen, *(f"{x:.6f}" for x in nll)]
        for document, position, token, start, stop, piece, kind, seen, *nll in zip(*columns)
    )
    write_rows(path, head, rows)

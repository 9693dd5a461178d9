"""A run in a notebook: its facts in a small table and its loss as a line. Everything is escaped, and nothing is fetched."""

from __future__ import annotations

import math
from html import escape

from .kinds import what
from .listing import count, duration, printable

WIDTH, HEIGHT, MOST = 260, 48, 300  # pixels; points that are drawn
LOSSES = {"eval": ("nll", "NLL of each segment"), "reweight": ("loss", "training NLL of each step"), "icl": ("error", "normalised error")}


def html(run) -> str:
    name, value, unit = run.result()
    summary = run.summary or {}
    last = run.metrics[-1] if run.metrics else {}
    tokens, seconds = summary.get("tokens", last.get("total_tokens")), summary.get("seconds", last.get("total_seconds"))
    rows = [
        ("kind", run.kind),
        ("what", what(run.kind, run.config)),
        ("state", run.state),
        (name, "not known yet" if value is None else f"{value:.4f} {unit}"),
    ]
    if run.config.get("model"):
        rows.insert(2, ("model", str(run.config["model"])))
    if summary.get("bits_per_byte") and run.kind == "eval":
        rows.append(("bits per byte", f"{summary['bits_per_byte']:.4f}"))
    if tokens is not None:
        rows.append(("tokens", f"{tokens:,}" if tokens < 1e6 else count(tokens)))
    if seconds is not None:
        rows.append(("time", duration(seconds)))
    cell = 'style="text-align:left;padding:1px 10px 1px 0;border:0"'
    body = "".join(f'<tr><th scope="row" {cell}>{_safe(title)}</th><td {cell}>{_safe(text)}</td></tr>' for title, text in rows)
    drawn = sparkline(run)
    return (
        f'<div class="dynadapt-run" style="font-family:sans-serif;font-size:13px;max-width:640px;overflow-wrap:anywhere">'
        f'<strong>{_safe(str(run.path))}</strong><table style="border-collapse:collapse;margin:4px 0;font-size:inherit">{body}</table>{drawn}</div>'
    )


def _safe(text: str) -> str:
    return escape(printable(text))


def sparkline(run) -> str:
    """The loss over the run as an inline SVG, its first, last and smallest value said; "" where there are not two of them."""
    key, title = LOSSES.get(run.kind, ("", ""))
    values = [float(line[key]) for line in run.metrics if isinstance(line.get(key), (int, float)) and math.isfinite(line[key])]
    if len(values) < 2:
        return ""
    shown = thinned(values)
    low, high = min(shown), max(shown)
    if high == low:
        high, low = high + 1, low - 1  # a level line in the middle
    spread = high - low
    across, up = (WIDTH - 6) / (len(shown) - 1), HEIGHT - 8
    points = " ".join(f"{3 + i * across:.1f},{4 + up * (high - value) / spread:.1f}" for i, value in enumerate(shown))
    said = f"{title}: from {values[0]:.3f} to {values[-1]:.3f}, least {min(values):.3f}"
    return (
        f'<svg role="img" aria-label="{escape(said)}" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f'<polyline points="{points}" fill="none" stroke="#2563eb" stroke-width="1.5" stroke-linejoin="round"/></svg>'
        f'<div style="color:#6b7280;font-size:12px">{escape(said)}</div>'
    )


def thinned(values: list[float]) -> list[float]:
    """At most MOST means of neighbours."""
    every = -(-len(values) // MOST)
    return [math.fsum(values[i : i + every]) / len(values[i : i + every]) for i in range(0, len(values), every)]

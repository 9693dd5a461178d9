"""Numbers of a comparison: gain over all, by class of token and by document, with intervals, and what each run cost."""

from __future__ import annotations

import math

import numpy as np

from dynadapt.experiments.diagnose import attribution
from dynadapt.experiments.diagnose.classes import CLASSES
from dynadapt.experiments.diagnose.scored import Scored
from dynadapt.experiments.diagnose.verdict import plural
from dynadapt.runs.labels import labels_of
from dynadapt.runs.whole_files import finite_number

from .joined_scores import Compared

BITS = 1 / math.log(2)


def summarise(compared: Compared) -> dict:
    """Everything that the page shows, ready for JSON. The first run is the one that all others are held against."""
    labels, classes = labels_of(list(compared.runs)), compared.classes
    return {
        "text": list(compared.runs[0].config["text"]),
        "model": compared.runs[0].config["model"],
        "notes": notes(compared),
        "tokens": len(compared.token),
        "bytes": int((compared.stop - compared.start).sum()),
        "runs": [
            {"path": str(run.path), "title": label, "nll": float(nll.mean()), "bits_per_byte": _bits(compared, nll), **_costs(run)}
            for run, label, nll in zip(compared.runs, labels, compared.nll)
        ],
        "pairs": [_pair(compared, k, classes, labels) for k in range(1, len(compared.runs))],
    }


def notes(compared: Compared) -> list[str]:
    """What a reader has to know before reading a difference as the settings'."""
    first, said = compared.runs[0], []
    for run in compared.runs[1:]:
        mine, theirs = (each.inputs().get("the model") for each in (first, run))
        if run.config["model"] == first.config["model"] and None not in (mine, theirs) and mine != theirs:
            said.append(f"{run.path.name} and {first.path.name} name the same model, {run.config['model']}, but its weights were others")
        elif run.config["model"] != first.config["model"]:
            said.append(
                f"{run.path.name} scored with another model, {run.config['model']}, than {first.path.name}, {first.config['model']}"
            )
    for run in compared.runs:
        if run.summary is None:
            said.append(f"{run.path.name} is unfinished")
        elif run.summary["tokens"] != len(compared.token):
            said.append(f"{run.path.name} scored {run.summary['tokens']:,} tokens, {len(compared.token):,} of which all runs have scored")
    return said


def _bits(compared: Compared, nll: np.ndarray) -> float | None:
    size = int((compared.stop - compared.start).sum())
    return float(nll.sum()) * BITS / size if size else None


def _costs(run) -> dict:
    summary = run.summary or {}
    return {
        "finished": run.summary is not None,
        **{name: summary.get(name) for name in ("flops_per_token", "seconds", "peak_memory_bytes")},
    }


def _pair(compared: Compared, k: int, classes: np.ndarray, labels: list[str]) -> dict:
    scored = Scored(
        compared.token,
        compared.nll[0],
        compared.nll[k],
        compared.document,
        compared.position,
        compared.names,
        compared.runs[0].config["segment"],
    )
    gain, drawn = -scored.change, attribution.units(scored)
    by_class = [_class(name, gain, classes == c, drawn) for c, name in enumerate(CLASSES) if (classes == c).any()]
    by_document = [_document(compared, k, number) for number in np.unique(compared.document).tolist()]
    first_seen = compared.last_seen == 0
    return {
        "after": labels[k],
        "before": labels[0],
        "gain": float(gain.mean()),
        "interval": _interval(gain, drawn),
        "units": {"name": drawn.name, "count": drawn.count},
        "new": _part(gain, first_seen),
        "repeated": _part(gain, ~first_seen),
        "classes": by_class,
        "documents": by_document,
    }


def _interval(values: np.ndarray, drawn) -> list[float | None]:
    return [finite_number(end) for end in attribution.mean_interval(values, drawn)]


def _part(gain: np.ndarray, inside: np.ndarray) -> dict:
    return {"tokens": int(inside.sum()), "gain": float(gain[inside].mean()) if inside.any() else None}


def _class(name: str, gain: np.ndarray, inside: np.ndarray, drawn) -> dict:
    return {
        "name": name,
        "tokens": int(inside.sum()),
        "gain": float(gain[inside].mean()),
        "part": float(gain[inside].sum() / len(gain)),
        "interval": _interval(np.where(inside, gain, 0.0), drawn),
    }


def _document(compared: Compared, k: int, number: int) -> dict:
    inside = slice(*np.searchsorted(compared.document, [number, number + 1]))  # tokens are sorted by document
    alone = Scored(
        *(array[inside] for array in (compared.token, compared.nll[0], compared.nll[k], compared.document, compared.position)),
        compared.names,
    )
    return {
        "name": compared.names[number],
        "tokens": len(alone.tokens),
        "before": float(alone.before.mean()),
        "after": float(alone.after.mean()),
        "gain": float(-alone.change.mean()),
        "interval": _interval(-alone.change, attribution.units(alone)),
    }


def sentence(summary: dict, pair: dict) -> str:
    """The outcome of one pair in words."""
    gain, (low, high) = pair["gain"], pair["interval"]
    after, before = ([run for run in summary["runs"] if run["title"] == pair[which]][0] for which in ("after", "before"))
    bits = (
        ""
        if None in (after["bits_per_byte"], before["bits_per_byte"])
        else (f", {before['bits_per_byte']:.3f} to {after['bits_per_byte']:.3f} bits per byte")
    )
    known = "" if low is None else f" (95% interval {low:+.4f} to {high:+.4f}, from {pair['units']['count']:,} {plural(pair['units'])})"
    sure = "; the interval holds 0: not told apart" if low is not None and low <= 0 <= high else ""
    return f"{pair['after']} gains {gain:+.4f} nats a token over {pair['before']}{known}{sure}{bits}."

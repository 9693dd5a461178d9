"""A guard, learning rates and levels in the words of a run, and what such a run counts: scores of the prior and of each learner beside the mixture's."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from dynadapt.common.errors import ConfigError
from dynadapt.common.options import idle

ADDED = ("guard", "rates", "halve", "levels", "slow_every", "slow_lr")  # settings that a run begun without them doesn't name


def parse_guard(value) -> str | int:
    """ "exact", or after how many segments the prior is scored again."""
    if value == "exact":
        return value
    try:
        every = int(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else 0
    except ValueError:
        every = 0
    if every < 1:
        raise ConfigError(f"guard {value!r}: give exact, or N for the prior's score of every N-th segment")
    return every


def parse_rates(value) -> str:
    """ "5e-4,2e-3,8e-3", or a list of numbers, in the first form."""
    accepted = "two or more different learning rates with commas between them, for example 5e-4,2e-3,8e-3"
    try:
        rates = rates_of(value) if isinstance(value, str) else tuple(float(rate) for rate in value if not isinstance(rate, bool))
    except (TypeError, ValueError):
        raise ConfigError(f"rates {value!r}: give {accepted}") from None
    if len(rates) < 2 or len(set(rates)) < len(rates) or not all(math.isfinite(np.float32(rate)) and rate >= 0 for rate in rates):
        raise ConfigError(f"rates {value!r}: give {accepted}")
    return ",".join(f"{rate!r}" for rate in rates)


def rates_of(words: str) -> tuple[float, ...]:
    """The rates that ``parse_rates`` gave in words."""
    return tuple(map(float, words.split(",")))


def refuse(config, where: str, but: Collection[str] = ()) -> None:
    """ConfigError for a guard, rates or levels where they don't go; those in ``but`` do, and those that change nothing in this run."""
    nothing = idle(config, ADDED)
    for name in ADDED:
        if name not in (*but, *nothing) and getattr(config, name) is not None:
            raise ConfigError(f"{name} {getattr(config, name)!r} {where}; leave it out")


def count(documents: list[dict], segment, nll: np.ndarray, report) -> dict:
    """Adds one segment to the documents' totals; what its line of metrics says. Nothing where nothing was mixed.

    A learner whose score was not finite, or that rests, has no total from there on.
    """
    if report.nll_adapted is None:
        return {}
    shape = (len(nll), -1, nll.shape[1])
    adapted = report.nll_adapted.double().cpu().numpy().reshape(shape)
    static = None if report.nll_static is None else report.nll_static.double().cpu().numpy()
    sums = []
    for row, (document, n) in enumerate(zip(segment.documents, segment.lengths)):
        if document is None or not n:
            continue
        known = static is not None and not np.isnan(static[row, :n]).any()
        seen = {
            "tokens": int(n) if known else 0,
            "mixed": float(nll[row, :n].sum(dtype=np.float64)) if known else 0.0,
            "static": float(static[row, :n].sum()) if known else 0.0,
            "adapted": [_finite(total) for total in adapted[row, :, :n].sum(1)],
        }
        sums.append((int(n), seen))
        of = documents[document]
        of["experts"] = _added(of["experts"], seen) if "experts" in of else seen
        of["experts"]["bound"] = report.guard_bound[row]
    tokens, looked = sum(n for n, _ in sums), sum(seen["tokens"] for _, seen in sums)
    line = {"nll_adapted": _one([_mean(_sum(seen["adapted"][k] for _, seen in sums), tokens) for k in range(adapted.shape[1])])}
    return line if static is None else {"nll_static": _mean(_sum(seen["static"] for _, seen in sums), looked), **line}


def of_document(document: dict) -> dict:
    """What summary.json says of one document beside its score; nothing where nothing was mixed."""
    if "experts" not in document:
        return {}
    seen, tokens = document["experts"], document["tokens"]
    adapted = [_mean(total, tokens) for total in seen["adapted"]]
    return {
        **({"nll_static": _mean(seen["static"], seen["tokens"])} if seen["tokens"] else {}),
        "nll_adapted": _one(adapted),
        "guard_bound": seen["bound"] / tokens,
    }


def summary(documents: list[dict], config) -> dict:
    """What summary.json says of the whole run; nothing where nothing was mixed."""
    scored = [document for document in documents if "experts" in document]
    if not scored:
        return {}
    of, tokens = [document["experts"] for document in scored], sum(document["tokens"] for document in scored)
    adapted = [_mean(_sum(seen["adapted"][k] for seen in of), tokens) for k in range(len(of[0]["adapted"]))]
    names = [f"{rate:.9g}" for rate in rates_of(config.rates)] if config.rates else []
    found = {
        "nll_adapted": dict(zip(names, adapted)) if names else adapted[0],
        "guard_bound": math.fsum(seen["bound"] for seen in of) / tokens,
    }
    if config.guard is None:
        return found
    looked = sum(seen["tokens"] for seen in of)
    return {
        "nll_static": _mean(math.fsum(seen["static"] for seen in of), looked),
        **found,
        "guard_tokens": looked,
        "guard_nll": _mean(math.fsum(seen["mixed"] for seen in of), looked),
    }


def rows(found: dict) -> list[tuple[str, str]]:
    """What a table of a finished run shows of it."""
    shown = []
    if found.get("nll_static") is not None:
        part = "" if found["guard_tokens"] == found["tokens"] else f" on the {found['guard_tokens']:,} tokens looked at"
        beside = f", guarded {found['guard_nll']:.4f}" if part else ""
        shown.append(("static", f"{found['nll_static']:.4f} nats/token{part}{beside}"))
    if "nll_adapted" in found:
        adapted = found["nll_adapted"]
        say = lambda value: "-" if value is None else f"{value:.4f}"  # noqa: E731
        each = ", ".join(f"{name}: {say(value)}" for name, value in adapted.items()) if isinstance(adapted, dict) else say(adapted)
        shown.append(("adapted", f"{each} nats/token"))
        shown.append(("bound", f"at most {found['guard_bound']:.5f} nats/token above the best of these"))
    return shown


def _added(a: dict, b: dict) -> dict:
    return {
        **{name: a[name] + b[name] for name in ("tokens", "mixed", "static")},
        "adapted": [_sum(pair) for pair in zip(a["adapted"], b["adapted"])],
    }


def _sum(totals) -> float | None:
    """None where one of them is."""
    totals = list(totals)
    return None if None in totals else math.fsum(totals)


def _mean(total: float | None, tokens: int) -> float | None:
    return None if total is None or not tokens else total / tokens


def _one(values: list):
    return values[0] if len(values) == 1 else values


def _finite(value) -> float | None:
    return float(value) if math.isfinite(value) else None

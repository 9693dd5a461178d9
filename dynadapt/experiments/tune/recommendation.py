"""What tuning ends in: a command, what to expect of it, and all that was tried."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from dynadapt.common.environment import cpu_name, gpu_name, native
from dynadapt.experiments.config import EvalConfig
from dynadapt.runs.whole_files import finite_number, new_directory, write_json

from .estimate import KIND, LEVEL, Estimate, estimate
from .picture import draw_picture
from .plan import Candidate

MOST_NAMED = 8  # documents of the rest that a command names; of more, their directory, which is read in the same order


@dataclass(frozen=True)
class Recommendation:
    """Gains are over `static_command`, in nats per token or bits per byte, positive where the loss falls; intervals are (low, high).

    command scores the rest of the text, from which the windows are taken away; whole_text_command all of it (None for a pipe). gain and
    interval are those of `judged`, the best setting that learns, also where the static one is recommended (adapts is False).
    minutes: what `command` takes here. tried: a row for each candidate.
    """

    command: str
    static_command: str
    whole_text_command: str | None
    adapts: bool
    judged: str
    static: str
    gain_nats: float
    interval: tuple[float, float]
    gain_bits_per_byte: float
    interval_bits_per_byte: tuple[float, float]
    level: float
    interval_kind: str
    estimate: str
    minutes: float
    static_minutes: float
    static_nll: float
    text: dict
    windows: dict
    tried: list[dict]
    notes: list[str]
    machine: dict
    settings: dict
    seconds: float
    out: str | None = field(default=None)

    def to_dict(self) -> dict:
        return {
            "kind": "tune",
            **asdict(self),
            "interval": list(self.interval),
            "interval_bits_per_byte": list(self.interval_bits_per_byte),
        }


def recommend(
    config: EvalConfig,
    minutes: float,
    text,
    bench,
    out: Path | None,
    *,
    plan,
    tried,
    best,
    static,
    judged,
    notes,
    choosing,
    judging,
    apart,
    seconds,
) -> Recommendation:
    """From what was chosen and judged."""
    windows_tokens = sum(window.learned for window in apart)
    rest = text.tokens - windows_tokens
    before, after = np.array(judged[static].nll[: len(judging)]), np.array(judged[best].nll)
    finite = bool(np.isfinite(after).all())
    found = (
        estimate(before - after, sum(window.learned for window in judging), rest)
        if finite
        else Estimate(-math.inf, -math.inf, -math.inf, len(judging), 0.0)
    )
    found = replace(found, high=min(found.high, float(before.mean())))  # a loss can't fall below 0
    bits = sum(window.counted for window in judging) / (math.log(2) * sum(window.bytes for window in judging))
    adapts = finite and found.low > 0
    price = {each: rest * judged[each].seconds / max(1, judged[each].tokens) / 60 for each in (best, static)}
    notes = notes + _edge(best, plan)
    chosen = best if adapts else static
    return Recommendation(
        command=_command(config, chosen, bench, ["REST"], out, "run"),
        static_command=_command(config, static, bench, ["REST"], out, "static" if adapts else "run"),
        whole_text_command=None if "-" in config.text else _command(config, chosen, bench, list(config.text), out, "whole"),
        adapts=adapts,
        judged=best.label,
        static=static.label,
        gain_nats=finite_number(found.gain),
        interval=(finite_number(found.low), finite_number(found.high)),
        gain_bits_per_byte=finite_number(found.gain * bits),
        interval_bits_per_byte=(finite_number(found.low * bits), finite_number(found.high * bits)),
        level=LEVEL,
        interval_kind=KIND,
        estimate=_words(judging, rest),
        minutes=price[chosen],
        static_minutes=price[static],
        static_nll=float(before.mean()),
        text={
            "texts": list(config.text),
            "documents": len(text.sources),
            "bytes": text.bytes,
            "tokens": text.tokens,
            "counted": text.exact,
            "rest_tokens": rest,
        },
        windows={
            "choosing": len(choosing),
            "judging": len(judging),
            "segments": plan.segments,
            "segment": config.segment,
            "tokens": windows_tokens,
            "rounds": [asdict(each) for each in plan.rounds],
            "static_nll": before.tolist(),
            "judged_nll": [finite_number(value) for value in after],
        },
        tried=_rows(tried, judged),
        notes=list(notes),
        machine={
            "dtype": bench.dtype,
            "device": bench.device,
            "backend": bench.backend,
            "instruction_set": (native() or {}).get("isa"),
            "cpu": cpu_name(),
            "gpu": gpu_name() if bench.device != "cpu" else None,
            "streams": dict(bench.streams),
        },
        settings={"model": config.model, "segment": config.segment, "seed": config.seed, "minutes": minutes},
        seconds=seconds,
        out=None if out is None else str(out),
    )


def _edge(best: Candidate, plan) -> list[str]:
    rates = sorted(each.lr for each in plan.candidates if (each.adapt, each.memory) == (best.adapt, best.memory))
    if len(rates) > 1 and best.lr in (rates[0], rates[-1]):
        return [
            f"lr {best.lr:g} is the {'largest' if best.lr == rates[-1] else 'smallest'} that was tried with {best.adapt}: beyond it may be better"
        ]
    return []


def _words(judging, rest: int) -> str:
    learned = sum(window.learned for window in judging)
    return (
        f"mean gain per token of the rest of the text ({rest:,} tokens), from {len(judging)} windows that played no part in the choice; "
        f"by their end it had learned from {learned:,} tokens, and nothing is assumed to be gained by learning from more"
    )


def _command(config: EvalConfig, candidate: Candidate, bench, texts: list[str], out: Path | None, name_of_run: str) -> str:
    """The line that scores `texts` with the candidate; what it tried out is always named."""
    run = candidate.configure(config).with_(text=tuple(texts), dtype=bench.dtype)
    run = run.with_(field="text") if texts == ["REST"] else run  # the rest is written as plain text
    words = run.arguments()
    for name in ("model", "adapt", "memory", "segment", "dtype"):
        if f"--{name}" not in words:
            words += [f"--{name}", str(getattr(run, name))]
    words += ["--scores"]  # which `dynadapt compare` asks for
    words += ["--out", str(out / name_of_run)] if out else []
    return shlex.join(["dynadapt", "eval", *words])


def _rows(tried, judged) -> list[dict]:
    """nll: of the best static one on the windows for choosing, less the gain over it on those of them that the candidate saw."""
    rows, base = [], min(float(np.mean(each.scored.nll)) for each in tried if each.candidate.adapt == "none")
    for each in sorted(tried, key=lambda each: (each.candidate.adapt != "none", -each.round, -each.score)):
        scored, finite = each.scored, bool(np.isfinite(each.score))
        rows.append(
            {
                "label": each.candidate.label,
                "adapt": each.candidate.adapt,
                "memory": each.candidate.memory,
                "lr": each.candidate.lr,
                "round": each.round,
                "windows": len(scored.nll),
                "gain": float(each.score) if finite else None,
                "nll": float(base - each.score) if finite else None,
                "diverged": not finite,
                "seconds": scored.seconds,
                "setup_seconds": scored.setup,
                "tokens": scored.tokens,
                "seconds_per_token": scored.seconds / max(1, scored.tokens),
                "flops_per_token": scored.flops / max(1, scored.tokens),
                "judged": each.candidate in judged,
            }
        )
    return rows


def write(result: Recommendation, out: Path, text, apart) -> Recommendation:
    """The rest of the text, the picture and recommendation.json, all of them or none."""
    from .windows import write_rest

    if out.exists():
        out.rmdir()  # empty: free_directory has seen to that
    with new_directory(out) as folder:
        names = write_rest(text, apart, folder / "rest")
        rest = shlex.join(str(out / "rest" / name) for name in names) if len(names) <= MOST_NAMED else shlex.quote(str(out / "rest"))
        filled = {name: getattr(result, name).replace("--text REST", f"--text {rest}", 1) for name in ("command", "static_command")}
        result = replace(result, **filled)
        draw_picture(result, folder / "picture.png")
        write_json(folder / "recommendation.json", result.to_dict())
    return result

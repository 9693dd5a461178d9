"""Stages that time the whole adapt step, dynadapt beside its peers, one process for each provider and shape."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tempfile
from pathlib import Path

from .ahead import ahead
from .campaign import GRACE, STOPPED, child, write_json
from .geometry import MODELS, shapes, useful_flops
from .machine import best
from .ops import choices_digest

OURS = ("dynadapt", "dynadapt-float8")
DEPENDENT = "dynadapt-dependent"  # the same kernels with programmatic dependent launches, on the GPUs that have them
PEERS = ("stacked-graph", "stacked-compile", "peft-eager", "peft-liger")
SLOW = "stacked-compile"  # compiles for minutes
LIMITS = {SLOW: 240.0, "truth": 240.0}  # seconds of a worker; a provider that hangs costs its own time, not the others'
LIMIT = 180.0
LEAST = GRACE + 25  # seconds that must be left to start a worker
NEEDS = {"peft-eager": "peft", "peft-liger": "liger_kernel"}


def run(campaign, record, model: str) -> None:
    """Every provider at every shape, against the truth (step_worker.py); what is in the record already stays."""
    limits, chosen = best(campaign, record.card), choices_digest(campaign, record, model)
    record.note(ceilings=limits, model=model)
    record.data["rows"] = [r for r in record.data["rows"] if "median_ms" in r]
    ours = lambda row: row["provider"] in (*OURS, DEPENDENT)  # noqa: E731
    record.keep(
        lambda row: row.get("gpu") == record.card and (not ours(row) or (row.get("choices"), row.get("code")) == (chosen, record.code)),
        "of another GPU, of other code, or of other choices between an op's forms",
    )
    done = {(r["provider"], r["streams"], r["segment"]) for r in record.data["rows"]}
    absent = {p: package for p, package in NEEDS.items() if importlib.util.find_spec(package) is None}
    for provider, package in absent.items():
        record.add(provider=provider, streams=None, segment=None, failed=f"skipped: {package} is not installed")
    ahead(campaign, record, model, chosen)
    untrue = {}  # segments whose truth could not be made -> why
    with tempfile.TemporaryDirectory() as folder:
        for provider, streams, segment in order(shapes(campaign.tiny), absent, _has_dependent_launches(campaign)):
            if (provider, streams, segment) in done or segment in untrue:
                continue
            if campaign.left < LEAST:
                return record.finish("out of time")
            truth = campaign.out / f"truth-{model}-{segment}.json"
            if not truth.exists():
                found = _worker(campaign, folder, {"provider": "truth", "model": model, "segment": segment, "streams": 1})
                if "nll" not in found:
                    untrue[segment] = found.get("failed", "no scores")
                    record.add(provider="truth", streams=None, segment=segment, **found)
                    continue
                write_json(truth, found)
                if campaign.left < LEAST:
                    return record.finish("out of time")
            options = {
                "provider": provider,
                "model": model,
                "streams": streams,
                "segment": segment,
                "seconds": 0.2 if campaign.tiny else 6.0,
                "truth": str(truth),
            }
            row = _worker(campaign, folder, options)
            base = {
                "provider": provider,
                "streams": streams,
                "segment": segment,
                "gpu": record.card,
                "choices": chosen,
                "code": record.code,
            }
            record.add(**base, **row, **_rates(model, streams, segment, row, limits))
    if untrue:
        record.finish("no truth to hold scores against at " + "; ".join(f"segment {t}: {why}" for t, why in untrue.items()))


def peers_at(streams: int) -> list[str]:
    """Without the one that compiles for minutes. Of one stream peft-eager comes first: it decides a goal of its own and takes seconds."""
    return sorted((peer for peer in PEERS if peer != SLOW), key=lambda peer: streams == 1 and peer != "peft-eager")


def order(of_shapes, absent, dependent: bool) -> list[tuple[str, int, int]]:
    """(provider, streams, segment): dynadapt and its peers shape by shape, so that a cut leaves whole comparisons; then the peer that compiles for
    minutes, which would take the time of all of that; other forms of dynadapt last."""
    each = [(provider, *shape) for shape in of_shapes for provider in (OURS[0], *peers_at(shape[0])) if provider not in absent]
    others = (SLOW, *OURS[1:], *([DEPENDENT] if dependent else []))
    return each + [(provider, *shape) for provider in others for shape in of_shapes]


def _has_dependent_launches(campaign) -> bool:
    import torch

    return campaign.device == "cuda" and torch.cuda.get_device_capability() >= (9, 0)


def _worker(campaign, folder, options) -> dict:
    """What the worker saved before it ended, and why it ended if not well."""
    stem = Path(folder) / f"{options['provider']}-{options['streams']}-{options['segment']}"
    given, out = stem.with_suffix(".options"), stem.with_suffix(".json")
    given.write_text(json.dumps({**options, "device": campaign.device}))
    variables = {"DYNADAPT_DEPENDENT_LAUNCH": "1"} if options["provider"] == DEPENDENT else {}
    command = [sys.executable, "-m", "benchmarks.gpu.step_worker", str(given), str(out)]
    status, text = child(command, campaign.device, campaign.room(LIMITS.get(options["provider"], LIMIT)), **variables)
    found = json.loads(out.read_text()) if out.exists() else {}
    if status is None:
        found["failed"] = STOPPED
    elif status:
        errors = re.findall(r"^\w[\w.]*(?:Error|Exception|Interrupt)\b.*", text, re.MULTILINE)
        found["failed"] = (errors or text.strip().splitlines() or ["no output"])[-1][:400]
        found["said"] = text[-1500:]
    return found


def _rates(model, streams, segment, row, limits) -> dict:
    if "median_ms" not in row:
        return {}
    work, ms = useful_flops(MODELS[model], streams, segment, segment), row["median_ms"]
    return {
        "flops": work,
        "tokens_per_s": 1e3 * streams * segment / ms,
        "tflops": 1e-9 * work / ms,
        "share_of_ceiling": 1e-9 * work / ms / limits["tflops"],
    }

"""Stages that time the whole adapt step, dynadapt beside its peers, one process for each provider and shape."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tempfile
from pathlib import Path

from .campaign import child
from .geometry import MODELS, shapes, useful_flops
from .machine import best

OURS = ("dynadapt", "dynadapt-float8")
DEPENDENT = "dynadapt-dependent"  # the same kernels with programmatic dependent launches, on the GPUs that have them
PEERS = ("stacked-compile", "peft-eager", "peft-liger")
NEEDS = {"peft-eager": "peft", "peft-liger": "liger_kernel"}


def run(campaign, record, model: str) -> None:
    """Truth first (transformers + peft in float32), then every provider at every shape; what is in the record already stays."""
    limits = best(campaign.read("ceilings"))
    record.note(ceilings=limits, model=model)
    record.data["rows"] = [r for r in record.data["rows"] if "median_ms" in r]
    done = {(r["provider"], r["streams"], r["segment"]) for r in record.data["rows"]}
    with tempfile.TemporaryDirectory() as folder:
        absent = {p: package for p, package in NEEDS.items() if importlib.util.find_spec(package) is None}
        for provider, package in absent.items():
            record.add(provider=provider, streams=None, segment=None, failed=f"skipped: {package} is not installed")
        # ours at every shape first; then all peers shape by shape, so that a cut leaves whole comparisons
        order = [
            (p, s, t) for p in (*OURS, DEPENDENT) for s, t in shapes(campaign.tiny) if p != DEPENDENT or _has_dependent_launches(campaign)
        ]
        order += [(p, s, t) for s, t in shapes(campaign.tiny) for p in PEERS if p not in absent]
        work = [item for item in order if item not in done]
        for segment in sorted({t for _, _, t in work}):
            truth = _worker(campaign, folder, {"provider": "truth", "model": model, "segment": segment, "streams": 1})
            if "nll" not in truth:
                record.add(provider="truth", segment=segment, **truth)
        for provider, streams, segment in work:
            if campaign.left < 30:
                return record.finish("out of time")
            options = {
                "provider": provider,
                "model": model,
                "streams": streams,
                "segment": segment,
                "seconds": 0.2 if campaign.tiny else 6.0,
                "truth": str(Path(folder) / f"truth-1-{segment}.json"),
            }
            row = _worker(campaign, folder, options)
            record.add(provider=provider, streams=streams, segment=segment, **row, **_rates(model, streams, segment, row, limits))


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
    status, text = child(command, campaign.device, min(campaign.left - 5, 240.0), **variables)
    found = json.loads(out.read_text()) if out.exists() else {}
    if status is None:
        found["failed"] = "stopped at its time limit"
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

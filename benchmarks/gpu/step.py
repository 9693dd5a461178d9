"""Stages that time the whole adapt step, dynadapt beside its peers, shape by shape."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .ahead import ahead
from .campaign import GRACE, STOPPED, start, stop, write_json
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
ALONE = (DEPENDENT, "peft-liger")  # have processes of their own: one is decided when kernels are imported, one changes transformers
COMPILED = "stacked-graph"  # compiles for half a minute at each shape
TOGETHER = 4096  # tokens of a step up to which several are compiled at a time, which is what the card's memory has room for
WARM = 75.0  # seconds
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
    with tempfile.TemporaryDirectory() as folder, Workers(campaign, Path(folder)) as workers:
        if campaign.device == "cuda" and campaign.left >= 2 * WARM:
            _warm(campaign, workers, model, [shape for shape in shapes(campaign.tiny) if (COMPILED, *shape) not in done])
        for provider, streams, segment in order(shapes(campaign.tiny), absent, _has_dependent_launches(campaign)):
            if (provider, streams, segment) in done or segment in untrue:
                continue
            if campaign.left < LEAST:
                return record.finish("out of time")
            truth = campaign.out / f"truth-{model}-{segment}.json"
            if not truth.exists():
                found = _worker(campaign, workers, {"provider": "truth", "model": model, "segment": segment, "streams": 1})
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
            row = _worker(campaign, workers, options)
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


class Workers:
    """Processes of step_worker.py, each of which measures one thing after the other; what is left of them ends with the context."""

    def __init__(self, campaign, folder: Path):
        self.campaign, self.folder, self.running = campaign, folder, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for name in list(self.running):
            self.end(name)

    def new(self, name: str, **variables: str):
        """(process, its output's file)"""
        log = open(self.folder / f"{name}.log", "a+")
        command = [sys.executable, "-m", "benchmarks.gpu.step_worker"]
        return start(command, self.campaign.device, stdin=subprocess.PIPE, stdout=log, **variables), log

    def of(self, provider: str):
        name = provider if provider in ALONE else "step"
        if name not in self.running or self.running[name][0].poll() is not None:
            self.end(name)
            self.running[name] = self.new(name, **({"DYNADAPT_DEPENDENT_LAUNCH": "1"} if provider == DEPENDENT else {}))
        return name, *self.running[name]

    def end(self, name: str) -> None:
        if name in self.running:
            process, log = self.running.pop(name)
            stop(process, 1.0)
            log.close()


def _ask(process, folder: Path, options: dict) -> Path:
    """Where the process will say what it found; behind it ``.done`` is there."""
    stem = folder / "-".join(str(options[name]) for name in ("provider", "streams", "segment"))
    given, out = stem.with_suffix(".options"), stem.with_suffix(".json")
    for old in (out, out.with_suffix(".done")):
        old.unlink(missing_ok=True)
    given.write_text(json.dumps(options))
    process.stdin.write(f"{given}\t{out}\n")
    process.stdin.flush()
    return out


def _warm(campaign, workers: Workers, model: str, at) -> None:
    """The peer that compiles does so at all shapes before the first is timed: the smaller ones at a time, in processes of their own."""
    small = [shape for shape in at if shape[0] * shape[1] <= TOGETHER]
    lanes = [lane for lane in [*([shape] for shape in small), [shape for shape in at if shape not in small]] if lane]
    running = []
    for number, lane in enumerate(lanes):
        process, log = workers.new(f"warm-{number}")
        options = {"provider": COMPILED, "model": model, "warm": True, "device": campaign.device}
        running.append((process, log, [_ask(process, workers.folder, options | {"streams": s, "segment": t}) for s, t in lane]))
    end = time.monotonic() + campaign.room(WARM)
    for process, log, outs in running:
        while time.monotonic() < end and process.poll() is None and not all(out.with_suffix(".done").exists() for out in outs):
            time.sleep(0.05)
        stop(process, 1.0)
        log.close()
    print(f"{COMPILED} compiled ahead, {WARM - (end - time.monotonic()):.0f} s", flush=True)


def _worker(campaign, workers: Workers, options) -> dict:
    """What the worker saved before it ended, and why it ended if not well."""
    name, process, log = workers.of(options["provider"])
    log.seek(0, 2)
    before = log.tell()
    try:
        out = _ask(process, workers.folder, {**options, "device": campaign.device})
    except BrokenPipeError:
        workers.end(name)
        return {"failed": "its process ended before it was asked"}
    done = out.with_suffix(".done")
    end = time.monotonic() + campaign.room(LIMITS.get(options["provider"], LIMIT))
    while time.monotonic() < end and process.poll() is None and not done.exists():
        time.sleep(0.02)
    found = json.loads(out.read_text()) if out.exists() else {}
    if done.exists():
        failed = done.read_text()
    elif process.poll() is None:
        failed = STOPPED
        workers.end(name)
    else:
        failed = f"its process ended with status {process.poll()}"
    if failed:
        found["failed"] = failed[:400]
        found["said"] = (workers.folder / f"{name}.log").read_bytes()[before:].decode(errors="replace")[-1500:]
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

"""The totals of an evaluation, as its saved state has them: counted segment by segment, and summed up in summary.json."""

from __future__ import annotations

import math

import numpy as np
import torch

from dynadapt.common.environment import peak_memory_bytes
from dynadapt.engine.ledger import PHASES
from dynadapt.engine.report import StepReport, arrive
from dynadapt.runs.document_streams import Feed, Segment
from dynadapt.runs.text import Document

from . import guarded, kept_prior
from .config import EvalConfig


def begun(documents: list[Document]) -> dict:
    """The totals of a run that has scored nothing."""
    return {
        "segments": 0,
        "tokens": 0,
        "bytes": 0,
        "nll": 0.0,
        "seconds": 0.0,
        "updates": 0,
        "skipped_updates": 0,
        "resets": 0,
        "flops": dict.fromkeys(PHASES, 0),
        "documents": of_documents(documents),
    }


def of_documents(documents: list[Document]) -> list[dict]:
    return [{"name": d.name, "tokens": 0, "bytes": 0, "nll": 0.0} for d in documents]


def count(totals: dict, config: EvalConfig, segment: Segment, nll: np.ndarray, report: StepReport, seconds: float, divergence) -> dict:
    """Adds one segment, scored in ``seconds``, to the totals and returns its line of metrics; ``divergence``: by stream, where a prior is kept."""
    arrive(report)
    sums = [float(row[:length].astype(np.float64).sum()) for row, length in zip(nll, segment.lengths)]
    for stream, document in enumerate(segment.documents):
        if document is not None:
            of = totals["documents"][document]
            of["tokens"] += int(segment.lengths[stream])
            of["bytes"] += int(segment.sizes[stream])
            of["nll"] += sums[stream]
    tokens, size, flops = (
        int(segment.lengths.sum()),
        int(segment.sizes.sum()),
        {phase: int(report.flops.get(phase, 0)) for phase in PHASES},
    )
    chosen = config.learn_from is not None and config.adapt != "none"
    totals["tokens"] += tokens
    totals["bytes"] += size
    totals["nll"] += math.fsum(sums)
    totals["seconds"] += seconds
    totals["updates"] += sum(map(bool, report.updated))
    totals["skipped_updates"] += sum(map(bool, report.skipped))
    totals["resets"] += sum(map(bool, report.was_reset))
    if chosen:
        _count_learned(totals, segment, report.learned_tokens)
    for phase in PHASES:
        totals["flops"][phase] += flops[phase]
    index = totals["segments"]
    totals["segments"] += 1
    return {
        "segment": index,
        "documents": segment.documents,
        "lengths": segment.lengths.tolist(),
        "tokens": tokens,
        "nll": math.fsum(sums) / tokens,
        "stream_nll": [total / int(length) if length else None for total, length in zip(sums, segment.lengths)],
        "bytes": size,
        "total_tokens": totals["tokens"],
        "total_nll": totals["nll"] / totals["tokens"],
        "total_bits_per_byte": bits_per_byte(totals["nll"], totals["bytes"]),
        "seconds": seconds,
        "total_seconds": totals["seconds"],
        "flops": flops,
        "updated": [bool(x) for x in report.updated],
        "skipped": [bool(x) for x in report.skipped],
        "reset": [bool(x) for x in report.was_reset],
        "grad_norm": [finite(x) for x in report.grad_norm],
        **({"learned_tokens": report.learned_tokens} if chosen else {}),
        **kept_prior.count(totals, divergence, report.updated),
        **guarded.count(totals["documents"], segment, nll, report),
    }


def summary(totals: dict, config: EvalConfig, engine, feed: Feed) -> dict:
    """What summary.json says of a run that has ended."""
    mean = totals["nll"] / totals["tokens"]
    documents = [
        {
            "name": d["name"],
            "number": number,
            "tokens": d["tokens"],
            "bytes": d["bytes"],
            "nll": d["nll"] / d["tokens"],
            "bits_per_byte": bits_per_byte(d["nll"], d["bytes"]),
            **guarded.of_document(d),
        }
        for number, d in enumerate(totals["documents"])
        if d["tokens"]
    ]
    return {
        "nll": mean,
        **guarded.summary(totals["documents"], config),
        "perplexity": math.exp(min(mean, 700.0)),
        "bits_per_byte": bits_per_byte(totals["nll"], totals["bytes"]),
        "tokens": totals["tokens"],
        "bytes": totals["bytes"],
        "seconds": totals["seconds"],
        "tokens_per_second": totals["tokens"] / totals["seconds"],
        "flops": totals["flops"],
        "flops_per_token": sum(totals["flops"].values()) / totals["tokens"],
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated(engine.device) if engine.device.type == "cuda" else None,
        "learned_parameters": int(engine.learned_parameters),
        "updates": totals["updates"],
        "skipped_updates": totals["skipped_updates"],
        "resets": totals["resets"],
        **_learned_from(totals),
        **kept_prior.summary(totals),
        **({"levels": config.levels, "slow_updates": engine.slow_level.learner.updates} if config.levels else {}),
        "segments": totals["segments"],
        "short_documents": feed.short,
        **({} if feed.begin is None else {"begins_with": feed.begin}),
        "backend": engine.backend,
        "device": str(engine.device),
        "dtype": engine.dtype if isinstance(engine.dtype, str) else config.dtype,
        "model": config.model,
        "documents": documents,
    }


def _count_learned(totals: dict, segment: Segment, learned: list) -> None:
    """Adds the tokens that each stream learned from, None where its update was not due, and with rates each learner's."""
    of = totals.setdefault("learned_from", {"segments": 0, "tokens": 0, "of_segments": 0})
    of["segments"] += sum(map(bool, learned))
    of["tokens"] += sum(n or 0 for n in learned)
    of["of_segments"] += int((segment.lengths > 0).sum()) * (len(learned) // len(segment.lengths))


def _learned_from(totals: dict) -> dict:
    """What summary.json says of it; nothing where all was learned from."""
    if "learned_from" not in totals:
        return {}
    of = totals["learned_from"]
    return {"learned_from": {**of, "share": of["segments"] / of["of_segments"]}}


def bits_per_byte(nll: float, size: int) -> float | None:
    return nll / (math.log(2) * size) if size else None


def finite(value) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)

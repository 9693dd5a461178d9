"""Stage ``real``: dynamic evaluation of a real model over a long text, and its curve beside one that a CPU made.

``--device cpu`` makes the other curve: run it once anywhere, keep its real.json, and give that file as ``--curve``.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import torch

BLOCK = 50  # steps a point of the curve


def real(campaign, record) -> None:
    """1,000 steps (--steps) of LoRA with segment memory over --text with --model; needs both."""
    if not campaign.model or not campaign.text:
        record.add(skipped="give --model DIRECTORY and --text FILE (they travel with the working tree)")
        return
    import dynadapt
    from dynadapt import Adam, Engine, LoRA, SegmentMemory

    model = dynadapt.load(campaign.model)
    segment = 512
    text = Path(campaign.text).read_text()[: 6 * segment * (campaign.steps + 1)]
    tokens = torch.tensor(model.tokenizer.encode(text))
    steps = min(campaign.steps, (len(tokens) - 1) // segment)
    engine = Engine(
        model,
        adapt=LoRA(rank=16),
        optimizer=Adam(),
        memory=SegmentMemory(length=segment),
        segment=segment,
        dtype="bf16",
        device=campaign.device,
    )
    tokens = tokens.to(campaign.device)
    digest = hashlib.sha256(text.encode()).hexdigest()
    record.note(text_sha256=digest, model=model.name, steps_asked=campaign.steps, steps=steps, segment=segment, explain=engine.explain())
    start, scores, measured = time.perf_counter(), [], 0
    for step in range(steps):
        scores.append(engine.step(tokens[None, step * segment : (step + 1) * segment + 1]).float().mean().clone())
        if len(scores) == BLOCK or step == steps - 1:
            mean = torch.stack(scores).mean().item()  # waits for the device, once a block
            measured += len(scores)
            record.add(step=step + 1, nll=mean, seconds=time.perf_counter() - start, steps=len(scores))
            scores = []
            if campaign.left < 10:
                record.finish("out of time")
                break
    rows = record.data["rows"]
    late = [r for r in rows if r["step"] > BLOCK] or rows  # the first block holds warm-up and capture
    elapsed = late[-1]["seconds"] - (rows[0]["seconds"] if len(rows) > 1 else 0.0)
    record.note(
        mean_nll=sum(r["nll"] * r["steps"] for r in rows) / measured,
        tokens_per_s=segment * sum(r["steps"] for r in late) / elapsed,
        total_seconds=rows[-1]["seconds"],
        **_beside(campaign.curve, rows, digest),
    )


def _beside(path, rows, digest) -> dict:
    """How far the curve is from a stored one of the same text, over the steps that both have."""
    if not path:
        return {}
    stored = json.loads(Path(path).read_text())
    if stored.get("text_sha256", digest) != digest:
        return {"curve": f"of another text: {stored['text_sha256'][:12]}..., here {digest[:12]}..."}
    other = {r["step"]: r["nll"] for r in stored["rows"]}
    common = [(r["nll"], other[r["step"]]) for r in rows if r["step"] in other]
    if not common:
        return {"curve": "no common steps"}
    return {
        "curve": "compared",
        "points": len(common),
        "largest_difference": max(abs(a - b) for a, b in common),
        "mean_difference": sum(a - b for a, b in common) / len(common),
    }

"""Stages that time single ops: choices (fused or split, for kernels/choices.json) and ops (against floor and peers)."""

from __future__ import annotations

import os
from functools import cache

import torch

from dynadapt.kernels import choices as forms
from dynadapt.ops import UnsupportedOp, resolve

from . import choice_table
from .ahead import ahead
from .campaign import RESTARTED, ROOT, check_device
from .cases import BF16, OPS, Sizes, agrees, check, materialise
from .geometry import RANK, layers, models, shapes
from .machine import best
from .timing import Timer, comparable, within

JOINED = ("linear_activation_forward", "linear_activation_backward")
LINEAR = ("linear_forward", "linear_backward", *JOINED, "lora_gradient", "lora_gradient_update", "weight_gradient")
HEAD = ("cross_entropy",)
PEER = 15.0  # seconds of a peer at one case, its compiling and tuning included: a slow one costs its own time, not the others'


def rest() -> tuple[str, ...]:
    return tuple(op for op in OPS if op not in LINEAR + HEAD)


def ops_linear(campaign, record) -> None:
    """linear_forward, linear_backward (and with the activation), lora_gradient (and with the update), weight_gradient: time, floor, peers."""
    run(campaign, record, LINEAR)


def ops_head(campaign, record) -> None:
    """cross_entropy with and without the gradient: time, floor, peers (torch, liger-kernel, cut-cross-entropy)."""
    run(campaign, record, HEAD)


def ops_rest(campaign, record) -> None:
    """Norms, activations, attention, memory, embedding, update: time, floor, peers."""
    run(campaign, record, rest())


def run(campaign, record, names) -> None:
    dtype = torch.float32 if campaign.tiny else BF16
    timer, limits = Timer(campaign.device, 0.12), best(campaign, record.card)
    record.note(ceilings=limits)
    digests = {model: choices_digest(campaign, record, model) for model in models(campaign.tiny)}
    chosen = lambda r: r["op"] not in LINEAR + HEAD or r.get("choices") == digests[r["model"]]  # noqa: E731
    record.keep(
        lambda r: (r.get("gpu"), r.get("code")) == (record.card, record.code) and chosen(r),
        "of another GPU, of other code, or of other choices between an op's forms",
    )
    if RESTARTED not in os.environ:  # what failed before is tried again, but not in a run that it has just ended
        record.data["rows"] = [r for r in record.data["rows"] if "median_ms" in r]
    measured = {}  # place -> its rows; of a place that was cut between two cases fewer than it has cases
    for r in record.data["rows"]:
        measured.setdefault((r["op"], r["model"], r["streams"], r["segment"]), []).append(r)
    for model in models(campaign.tiny):
        for streams, segment in shapes(campaign.tiny):
            for op in names:
                rows = measured.get((op, model, streams, segment), [])
                if rows and (len(rows) >= rows[0].get("cases", 1) or RESTARTED in os.environ):
                    continue
                if campaign.left < 15:
                    return record.finish("out of time")
                base = {"op": op, "model": model, "streams": streams, "segment": segment}
                base |= {"gpu": record.card, "choices": digests[model], "code": record.code}
                _one(campaign, record, timer, limits, base, dtype, {r.get("label") for r in rows})
                if campaign.device == "cuda":
                    torch.cuda.empty_cache()


def choices_path(campaign):
    """The table that the kernels read; a dry run has its own."""
    return campaign.out / choice_table.KEPT if campaign.tiny else ROOT / "kernels" / "choices.json"


def choices_digest(campaign, record, model: str) -> str:
    """Of the choices that a model's step is made with: rows with another one are of another configuration."""
    return choice_table.digest(choices_path(campaign), record.card, layers(model))


def _one(campaign, record, timer, limits, base, dtype, done=frozenset()) -> None:
    """``done``: labels of the cases that have been timed."""
    op, model, streams, segment = (base[name] for name in ("op", "model", "streams", "segment"))
    try:
        function = resolve(op, "triton", dtype).function
    except UnsupportedOp as error:
        record.add(**base, skipped=str(error)[:300])
        return
    try:
        errors = _errors(op, model, min(streams, 2), min(segment, 128), campaign.device, dtype)
        cases = OPS[op](Sizes(model, streams, segment, campaign.device, dtype), segment)
    except torch.OutOfMemoryError as error:
        record.add(**base, failed=f"{type(error).__name__}: {str(error)[:400]}")
        return
    except Exception as error:  # whatever it is, the other ops are still worth their time
        record.add(**base, wrong=f"{type(error).__name__}: {str(error)[:400]}")
        return check_device(error)
    with_peers = campaign.tiny or model == "llama-3.2-1b" or op == "update"
    base |= {"cases": len(cases)}
    for case, error in zip(cases, errors):
        if case.label in done:
            continue
        try:
            _time(record, timer, limits, base, case, error, function, with_peers)
        except AssertionError as failure:
            record.add(**base, label=case.label, wrong=str(failure)[:300])
        except Exception as failure:
            record.add(**base, label=case.label, failed=f"{type(failure).__name__}: {str(failure)[:300]}")
            check_device(failure)


@cache
def _errors(op, model, streams, segment, device, dtype) -> list[float]:
    """Relative errors of the op's cases against float64, at a few rows of the model's widths."""
    few = Sizes(model, streams, segment, device, dtype)
    return [check(case) for case in OPS[op](few, segment)]


def _time(record, timer, limits, base, case, error, function, with_peers) -> None:
    difference = agrees(case, function)  # at the timed size, where a kernel may split its work otherwise
    arguments = materialise(case)
    t = timer(lambda: function(*arguments))
    memory_ms, compute_ms = 1e-6 * case.bytes / limits["gb_per_s"], 1e-9 * case.flops / limits["tflops"]
    floor = max(memory_ms, compute_ms)
    peers = {}
    for name, make in case.peers.items() if with_peers else ():
        try:
            with within(PEER):
                peers[name] = comparable(timer.made(make), t)
        except Exception as failure:  # absent, out of memory or of its time
            peers[name] = {"skipped": str(failure)[:200]}
            check_device(failure)
    record.add(
        **base,
        label=case.label,
        relative_error=error,
        difference=difference,
        **t,
        bound="bytes" if memory_ms > compute_ms else "FLOPs",
        floor_ms=floor,
        share_of_floor=floor / t["median_ms"],
        gb_per_s=1e-6 * case.bytes / t["median_ms"],
        tflops=1e-9 * case.flops / t["median_ms"],
        peers=peers,
    )


# ---- choices

CHOSEN = ("linear_forward", "linear_backward", *JOINED, "cross_entropy")


def choices(campaign, record, model: str | None = None) -> None:
    """Which form serves a linear group or the head: fused, split, and the library product alone, at each size; the winners go to
    kernels/choices.json under this GPU's name."""
    timer = Timer(campaign.device, 0.06)
    record.keep(lambda r: r.get("gpu") == record.card, "of another GPU")
    done = {(r["op"], r["model"], r["group"], r["tokens"]) for r in record.data["rows"] if "form" in r or RESTARTED in os.environ}
    for name in [model] if model else models(campaign.tiny):
        ahead(campaign, record, name, choices_digest(campaign, record, name))
        for streams, segment in shapes(campaign.tiny)[:3]:
            z = Sizes(name, streams, segment, campaign.device, torch.float32 if campaign.tiny else BF16)
            for op, group in [(o, g) for o in CHOSEN for g in (z.groups if o in CHOSEN[:2] else [OF_ONE.get(o, "")])]:
                if campaign.left < 10:
                    return record.finish("out of time")
                if (op, name, group, z.N) in done:
                    continue
                entry = _choice(timer, z, op, group)
                record.add(model=name, group=group, tokens=z.N, gpu=record.card, **entry)
                if "form" in entry:
                    choice_table.add(choices_path(campaign), campaign.out / choice_table.KEPT, record.card, entry)
                check_device(RuntimeError(entry.get("skipped", "")))


OF_ONE = {"linear_activation_forward": "mlp_in", "linear_activation_backward": "down"}  # the group whose product a joined op has


def _choice(timer, z, op, group) -> dict:
    found = OPS[op](z, 0)
    case = found[list(z.groups).index(group)] if op in CHOSEN[:2] else found[0]
    k, o, rank = (z.groups[group][0], sum(z.groups[group][1]), RANK) if group else (z.c.hidden_size, z.c.vocab_size, 0)
    entry = {"op": op, "rows": 1 << (z.N - 1).bit_length(), "k": k, "o": o, "rank": rank}
    try:
        function, arguments = resolve(op, "triton", z.draw.dtype).function, materialise(case)

        def of_form(form):
            def call(*given):
                with forms.force(form):
                    function(*given)

            return call

        calls = {form: of_form(form) for form in forms.FORMS}
        for call in calls.values():
            agrees(case, call)  # a wrong form must not win
        timed = {form: timer(lambda: call(*arguments)) for form, call in calls.items()}
    except Exception as error:
        return {**entry, "skipped": f"{type(error).__name__}: {str(error)[:200]}"}
    if "skipped" in (reason := comparable(timed["fused"], timed["split"])):
        return {**entry, "skipped": f"fused and split: {reason['skipped']}"}
    times = {f"{form}_ms": found["median_ms"] for form, found in timed.items()}
    baseline = case.peers.get("torch, base product alone")
    times["cublas_only_ms"] = timer.made(baseline)["median_ms"] if baseline else None
    return {**entry, "form": min(forms.FORMS, key=lambda form: times[f"{form}_ms"]), **times}

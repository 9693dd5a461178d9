"""Stage ``summary``: one markdown page from all JSON files of a campaign, and for each goal whether it was met."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from .campaign import STOPPED
from .step import PEERS

# What the GPU path is meant to reach. A goal nobody measured is said to be open, not met, and so is one against peers of which one
# has no number: it may be the fastest.
GOALS = {
    "correct": "every test of tests/gpu passes on the GPU",
    "sanitizers": "compute-sanitizer finds nothing",
    "compiled": "every kernel keeps its register, spill and tensor-core budget with the GPU machine's Triton",
    "memory-bound": "memory-bound ops reach 75% of the measured copy bandwidth (those of at least 50 us: below, launches are measured)",
    "cross-entropy": "linear cross-entropy reaches 75% of the best measured product",
    "step beats peers": "the step is 1.3 times as fast as the fastest peer at every shape, compiled and captured torch included",
    "step beats eager": "the step is 5 times as fast as transformers + peft at 1 x 512",
    "step, large": "the step reaches 65% of the best measured product at 64 x 512 and at 8 x 2048",
    "step, small": "SmolLM2-135M at 1 x 512 takes at most 3 times what its FLOPs take at the best measured product",
    "update": "the update is faster than clip + fused Adam + copy in torch",
    "head": "the head (score and gradient) is faster than every peer",
    "real": "the GPU's loss curve stays within 0.02 nats of the CPU's",
}
PREDICTIONS = Path(__file__).parents[1] / "results" / "gpu-predictions.json"
STEPS = ("step-135m", "step-1b", "step-8b")
# The stages whose every measurement a goal is about: it is not met before all of them have run to their end.
NEEDS = {
    "memory-bound": ("ops-linear", "ops-head", "ops-rest"),
    "cross-entropy": ("ops-head",),
    "head": ("ops-head",),
    "update": ("ops-rest",),
    **dict.fromkeys(("step beats peers", "step beats eager", "step, large"), STEPS),
    "step, small": STEPS[:1],
}
FASTER = {"step beats peers": 1.3, "step beats eager": 5.0}


def load(folder: Path) -> dict[str, dict]:
    found = {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json")) if p.stem != "choices-table"}
    return {name: data for name, data in found.items() if isinstance(data, dict) and "rows" in data}


def summary(campaign, record) -> None:
    """summary.md from what is there."""
    records = {name: data for name, data in load(campaign.out).items() if name != "summary"}
    verdicts = goals(records)
    (campaign.out / "summary.md").write_text(page(records, verdicts))
    for goal, (verdict, why) in verdicts.items():
        record.add(goal=goal, verdict=verdict, why=why)


def page(records, verdicts) -> str:
    parts = [
        "# GPU campaign",
        machine(records),
        "## Goals",
        table(("goal", "verdict", "why"), [(GOALS[g], v, w) for g, (v, w) in verdicts.items()]),
    ]
    for name, data in records.items():
        make = next((f for prefix, f in TABLES.items() if name.startswith(prefix)), None)
        add_predictions(data)
        body = make(data["rows"]) if make and data["rows"] else ""
        parts += [f"## {name} ({data['status']}{', dry run' if data['device'] == 'cpu' else ''})", body, *put_aside(data)]
    return "\n\n".join(p for p in parts if p) + "\n"


def add_predictions(data: dict, file: Path = PREDICTIONS) -> None:
    """What was predicted for dynadapt's step at each shape on this card, as ``predicted_ms`` of its row."""
    gpu = data.get("environment", {}).get("gpu") or {}
    name = gpu.get("name", "") if isinstance(gpu, dict) else gpu
    card = next((key for key in ("h200", "h100") if key.upper() in name.upper()), None)
    if card is None or "model" not in data:
        return
    predicted = {
        (r["model"], r["streams"], r["segment"]): 1e3 * r["predicted_seconds"]
        for r in json.loads(file.read_text())["rows"]
        if r["card"] == card
    }
    for row in data["rows"]:
        at = data["model"], row.get("streams"), row.get("segment")
        if row.get("provider") == "dynadapt" and at in predicted:
            row["predicted_ms"] = predicted[at]


def put_aside(data: dict) -> list[str]:
    """A sentence on measurements of an earlier call that don't stand beside the others, for each reason."""
    counts = Counter(row["why"] for row in data.get("aside", []))
    return [f"{count} earlier measurements do not count here: {why}." for why, count in counts.items()]


def tests_table(rows) -> str:
    names = lambda r: "; ".join([f["test"] for f in r.get("failures", [])] + [f"{t} (did not end)" for t in r.get("unfinished", [])])  # noqa: E731
    counted = ("file", "status", "tests", "collected", "skipped", "failed")
    return table((*counted, "which"), [[*(r.get(name) for name in counted), names(r)] for r in rows])


def machine(records) -> str:
    data = next((d for d in records.values() if d["device"] == "cuda"), next(iter(records.values()), None))
    if data is None:
        return "Nothing was measured."
    e = data["environment"]
    gpu = e.get("gpu") or {}
    name = gpu.get("name", "no GPU") if isinstance(gpu, dict) else gpu
    packages = ", ".join(f"{k} {v}" for k, v in (e.get("packages") or {}).items())
    return f"{name}; {e.get('cpu', '')}, {e.get('cores', '?')} cores; Python {e.get('python')}; {packages}"


def table(head, rows) -> str:
    cell = lambda v: "" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v).replace("|", "/")  # noqa: E731
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(cell(v) for v in row) + " |" for row in rows])


def columns(*names):
    return lambda rows: table(names, [[r.get(n) for n in names] for r in rows])


def shape(row) -> str:
    return f"{row.get('streams')}x{row['segment']}"


def ops_table(rows) -> str:
    def cells(r):
        case = (r["op"], r["model"], shape(r), r.get("label", ""))
        if "median_ms" not in r:
            return (*case, None, None, None, r.get("wrong") or r.get("skipped") or r.get("failed"))
        rate = f"{r['gb_per_s']:.0f} GB/s" if r["bound"] == "bytes" else f"{r['tflops']:.1f} TFLOP/s"
        peers = "; ".join(f"{n} {p['median_ms']:.4g}" if "median_ms" in p else f"{n}: {p['skipped'][:60]}" for n, p in r["peers"].items())
        return (*case, r["median_ms"], rate, f"{r['share_of_floor']:.0%}", peers)

    return table(("op", "model", "shape", "case", "ms", "rate", "of floor", "peers, ms"), map(cells, rows))


def step_table(rows) -> str:
    ours = {shape(r): r.get("median_ms") for r in rows if r["provider"] == "dynadapt"}

    def cells(r):
        mine, ms = ours.get(shape(r)), r.get("median_ms")
        faster = f"{ms / mine:.2f}x" if ms and mine and r["provider"] != "dynadapt" else ""
        gib = r["peak_memory_bytes"] / 2**30 if "peak_memory_bytes" in r else None
        measured = (r.get(name) for name in ("p20_ms", "p80_ms", "tokens_per_s", "tflops"))
        return (
            r["provider"],
            shape(r),
            ms,
            r.get("predicted_ms"),
            *measured,
            faster,
            gib,
            r.get("launches"),
            r.get("first_step_seconds"),
            r.get("failed", ""),
        )

    head = (
        "provider",
        "shape",
        "ms",
        "predicted ms",
        "20%",
        "80%",
        "tokens/s",
        "TFLOP/s",
        "dynadapt is",
        "peak GiB",
        "launches",
        "first step s",
        "failed",
    )
    return table(head, map(cells, rows))


TABLES = {
    "environment": columns("tool", "version", "package", "present"),
    "build": columns("what", "status", "seconds"),
    "ceilings": columns("what", "shape", "gb_per_s", "tflops", "microseconds", "median_ms"),
    "choices": columns("op", "model", "group", "rows", "form", "fused_ms", "split_ms", "cublas_only_ms", "skipped"),
    "compile": columns("file", "kernel", "variant", "arch", "registers", "spills", "shared", "tensor_core"),
    "core": tests_table,
    "correctness": tests_table,
    "sanitizers": columns("tool", "file", "status", "errors"),
    "profiles": columns("op", "kernel", "ns", "dram_percent", "sm_percent", "tensor_percent", "occupancy_percent", "registers"),
    "ops": ops_table,
    "step": step_table,
    "real": columns("step", "nll", "seconds"),
    "icl-claims": columns("run", "steps", "seconds", "steps_per_second", "claim", "verdict", "why"),
}


# ---- goals: (verdict, why)


def _verdict(bad: list[str], measured: int, unfinished: Sequence[str] = (), absent: Sequence[str] = ()):
    """unfinished: stages that have not run to their end; absent: what has no number, be it ours or a peer's, and where."""
    some = lambda said: "; ".join(said[:4]) + (f" and {len(said) - 4} more" if len(said) > 4 else "")  # noqa: E731
    if bad:
        return "missed", some(bad)
    if not measured:
        return "open", "nothing was measured" + (f": {some(absent)}" if absent else "")
    if absent:
        return "open", f"{measured} measured, all met, but no number of {some(absent)}"
    return (
        ("open", f"{measured} measured, all met; not run to its end: {', '.join(unfinished)}")
        if unfinished
        else ("met", f"{measured} measured")
    )


def goals(records) -> dict[str, tuple[str, str]]:
    """Only what was measured on a GPU counts."""
    records = {name: d for name, d in records.items() if d["device"] == "cuda"}
    rows = lambda prefix: [r for name, d in records.items() if name.startswith(prefix) for r in d["rows"]]  # noqa: E731
    unfinished = lambda *stages: [name for name in stages if records.get(name, {}).get("status") != "complete"]  # noqa: E731
    tests, checks, kernels, ops = (
        rows("core") + rows("correctness"),
        [r for r in rows("sanitizers") if "tool" in r],
        rows("compile"),
        rows("ops"),
    )
    timed = [r for r in ops if "median_ms" in r]
    cut = [r for r in checks if r["status"] == "stopped" and not r["errors"]]  # by its time, with nothing found so far
    said = lambda r: f"{r['tool']} {r['file']}"  # noqa: E731
    wrong = [f"{r['op']} {r['model']}: {r['wrong'][:80]}" for r in ops if "wrong" in r]
    found = {
        "correct": _verdict(
            [f"{r['file']}: status {r['status']}" for r in tests if r["status"] not in (0, "stopped")] + wrong,  # stopped: it goes on
            len(tests),
            unfinished("correctness"),
        ),
        "sanitizers": _verdict(
            [
                f"{said(r)}: {r['errors']} errors, status {r['status']}"
                for r in checks
                if r not in cut and (r["errors"] != 0 or r["status"])
            ],
            len(checks) - len(cut),
            unfinished("sanitizers"),
            [said(r) for r in cut],
        ),
        "compiled": _verdict(
            [f"{r['kernel']} {r['variant']} sm_{r['arch']}: {r['faults'][0][:60]}" for r in kernels if r["faults"]], len(kernels)
        ),
    }
    none = {}  # op -> cases of ours that have no time, and why
    for r in ops:
        if "median_ms" not in r and "wrong" not in r:
            why = r.get("failed") or r.get("skipped") or ""
            none.setdefault(r["op"], []).append(f"{r['op']} ({r['model']} {shape(r)}): {why[:60]}")
    of_goal = {
        "memory-bound": lambda r: r["bound"] == "bytes" and r["median_ms"] >= 0.05,
        "cross-entropy": lambda r: r["op"] == "cross_entropy",
    }
    for goal, belongs in of_goal.items():
        large = [r for r in timed if belongs(r)]
        bad = [f"{r['op']} {r['label']} {r['model']} {shape(r)}: {r['share_of_floor']:.0%}" for r in large if r["share_of_floor"] < 0.75]
        absent = [text for op, texts in none.items() for text in texts if goal != "cross-entropy" or op == "cross_entropy"]
        found[goal] = _verdict(bad, len(large), unfinished(*NEEDS[goal]), absent)
    found |= _step_goals(records, unfinished)
    for goal, op, label in (("update", "update", "adam, clip"), ("head", "cross_entropy", "score and gradient")):
        cases = [(r, n, p) for r in timed if r["op"] == op and r["label"] == label for n, p in r["peers"].items() if "alone" not in n]
        where = lambda r: f"({r['model']} {shape(r)})"  # noqa: E731
        judged = [case for case in cases if "median_ms" in case[2]]
        bad = [
            f"{n} {p['median_ms']:.3g} ms, ours {r['median_ms']:.3g} {where(r)}" for r, n, p in judged if p["median_ms"] <= r["median_ms"]
        ]
        absent = [f"{n} {where(r)}: {p['skipped'][:60]}" for r, n, p in cases if "median_ms" not in p]
        found[goal] = _verdict(bad, len(judged), unfinished(*NEEDS[goal]), absent + none.get(op, []))
    data = records.get("real", {})
    far = data.get("largest_difference")
    found["real"] = (
        ("open", "no curve to compare with") if far is None else ("met" if far <= 0.02 else "missed", f"largest difference {far:.4f} nats")
    )
    return found


def _step_goals(records, unfinished) -> dict[str, tuple[str, str]]:
    bad, count = {name: [] for name in GOALS if name.startswith("step")}, dict.fromkeys(GOALS, 0)
    absent = {name: [] for name in bad}

    def judge(goal, good, what):
        count[goal] += 1
        if not good:
            bad[goal].append(what)

    for name, data in records.items():
        if not name.startswith("step"):
            continue
        rows = [r for r in data["rows"] if r.get("streams")]
        ours = {(r["streams"], r["segment"]): r for r in rows if r["provider"] == "dynadapt"}
        for (streams, segment), r in ours.items():
            what, why = f"{name} {streams}x{segment}", r.get("failed", "")
            large, small = (streams, segment) in ((64, 512), (8, 2048)), (streams, segment) == (1, 512)
            of_shape = ["step, large"] * large + ["step, small"] * (small and name == "step-135m")
            if "median_ms" not in r:
                if why != STOPPED:
                    judge("step beats peers", False, f"{what}: dynadapt failed: {why[:60]}")
                for goal in of_shape + ["step beats peers"] + ["step beats eager"] * small:
                    absent[goal].append(f"dynadapt, {what}: {why[:60]}")
                continue
            for goal in of_shape:
                share, least = r["share_of_ceiling"], {"step, large": 0.65, "step, small": 1 / 3}[goal]
                judge(goal, share >= least, f"{what}: {share:.0%}" if goal == "step, large" else f"{what}: {1 / share:.1f} times")
        found = {(r["provider"], r["streams"], r["segment"]): r for r in rows}
        skipped = {r["provider"]: r for r in data["rows"] if not r.get("streams")}
        for at, peer in product((at for at, r in ours.items() if "median_ms" in r), PEERS):
            where, r = f"{name} {at[0]}x{at[1]}", found.get((peer, *at), skipped.get(peer, {}))
            for goal in ["step beats peers"] + ["step beats eager"] * (peer == "peft-eager" and at == (1, 512)):
                if "median_ms" not in r:
                    absent[goal].append(f"{peer}, {where}: {r.get('failed', 'did not run')[:60]}")
                    continue
                faster = r["median_ms"] / ours[at]["median_ms"]
                judge(goal, faster >= FASTER[goal], f"{where}: {peer} {faster:.2f}x")
    return {goal: _verdict(faults, count[goal], unfinished(*NEEDS[goal]), absent[goal]) for goal, faults in bad.items()}

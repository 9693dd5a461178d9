"""Saving and restoring an engine: adapters in PEFT's format, and all that resuming bit for bit needs.

A directory holds ``engine.json`` (configuration, counters), ``state.safetensors`` (masters, optimizer state, memory,
learning rates) and, for LoRA, ``adapter/`` or ``adapter-<stream>/`` as PEFT directories.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .adapt.peft_format import write_adapter
from .adapt.resets import ChangePoint
from .digests import differs, digests_under, sync_tree

FORMAT = 2
SAVING = ".saving"  # a directory of this name is a save that was cut short
SAMPLED = 1  # the format that has no digests, and whose model fingerprint covers a sample of the weights


def adapter_directory(root, stream: int, streams: int) -> Path:
    return Path(root) / ("adapter" if streams == 1 else f"adapter-{stream}")


def state_tensors(engine) -> dict[str, torch.Tensor]:
    named = {"lr": engine.lr}
    for i, learner in enumerate(engine.learners):
        named.update({f"learner.{i}.{name}": t for name, t in learner.tensors().items()})
    if engine.decoder.memory is not None:
        named.update({f"memory.{name}": t for name, t in engine.decoder.memory.tensors().items()})
    for s, state in enumerate(engine.state):
        named[f"history.{s}"] = torch.tensor(state.history, dtype=torch.int64)
    return {name: t.contiguous() for name, t in named.items()}


def state_counts(engine) -> dict:
    """What the engine counts, as plain data."""
    changes = (engine.static.change_points() if engine.static else None) or [s.change for s in engine.state]
    streams = [{"segments": s.segments, "since_reset": s.since_reset, "change": asdict(change)}
               for s, change in zip(engine.state, changes)]
    return {"streams": streams, "updates": engine.updates, "skipped_updates": engine.skipped_updates}


def save(engine, directory) -> None:
    """Write ``engine`` to ``directory`` (made if need be).

    All files are written beside the old ones and on the disk before the first takes its place, and engine.json, which has the
    digests of the others, comes last: what stops it on the way leaves the old state, or one that ``restore`` refuses by name.
    """
    root = Path(directory)
    new = root / SAVING
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        save_file(state_tensors(engine), str(new / "state.safetensors"))
        if engine.learners and not engine.learners[0].owns_weights:
            slots = engine.learners[0].state.master.shape[0]
            for slot in range(slots):
                write_adapter(adapter_directory(new, slot, slots), engine.learners[0], engine.config, slot, engine.model.name)
        files = digests_under(new)
        record = {"format": FORMAT, "engine": engine.describe(), **state_counts(engine), "flops": engine.ledger.totals, "files": files}
        (new / "engine.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        sync_tree(new)
        for name in (*files, "engine.json"):
            (root / name).parent.mkdir(exist_ok=True)
            os.replace(new / name, root / name)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    for folder in {root, *((root / name).parent for name in files)}:
        sync_tree(folder, deep=False)


def restore(engine, directory) -> None:
    """Read into ``engine`` what ``save`` wrote.

    Raises:
        ValueError: when the saved configuration differs, naming the first key that does.
    """
    root = Path(directory)
    record = json.loads((root / "engine.json").read_text("utf-8"))
    if record["format"] not in (FORMAT, SAMPLED):
        raise ValueError(f"{root}: state format {record['format']}; this version reads {SAMPLED} and {FORMAT}")
    here, saved = json.loads(json.dumps(engine.describe())), record["engine"]
    if record["format"] == SAMPLED:
        here["model"] = engine.model.fingerprint(sampled=True)
    for name, expected in record.get("files", {}).items():
        if wrong := differs(root / name, expected):
            raise ValueError(f"{wrong} (engine.json beside it was written with other files, or they changed since)")
    for name in here:
        if here[name] != saved.get(name):
            raise ValueError(f"{root}: saved with {name}={saved.get(name)!r}; this engine has {here[name]!r}")
    tensors = load_file(str(root / "state.safetensors"))
    set_state(engine, tensors, record)
    engine.ledger.totals = dict(record["flops"])


def set_state(engine, tensors: dict[str, torch.Tensor], counts: dict) -> None:
    """Put an engine of the same configuration where ``state_tensors`` and ``state_counts`` were taken. FLOPs stay counted."""
    engine.lr.copy_(tensors["lr"])
    pick = lambda prefix: {n[len(prefix):]: t for n, t in tensors.items() if n.startswith(prefix)}  # noqa: E731
    for i, learner in enumerate(engine.learners):
        learner.load(pick(f"learner.{i}."))
    if engine.decoder.memory is not None:
        engine.decoder.memory.load(pick("memory."))
    for s, (state, row) in enumerate(zip(engine.state, counts["streams"])):
        state.segments, state.since_reset = row["segments"], row["since_reset"]
        state.change = ChangePoint(**row["change"])
        state.history = tensors[f"history.{s}"].tolist()
    engine.restore_counts(counts["updates"], counts["skipped_updates"])

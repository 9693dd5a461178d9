"""Saving and restoring an engine: adapters in PEFT's format, and all that resuming bit for bit needs.

A directory holds ``engine.json`` (configuration, counters), ``state.safetensors`` (masters, optimizer state, memory,
learning rates) and, for LoRA, ``adapter/`` or ``adapter-<stream>/`` as PEFT directories.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from dynadapt.adapt.resets import ChangePoint
from dynadapt.adapt.selection import WINDOW
from dynadapt.common.digests import differs, digests_under, sync_tree
from dynadapt.model import ModelError
from dynadapt.model.base import count_not_finite
from dynadapt.model.json_file import MAX_INDEX_BYTES, MAX_TABLE_VALUES, read_json
from dynadapt.model.safetensors_file import SafetensorsFile

from .learners.peft import write_adapter

FORMAT = 2
SAVING = ".saving"  # a directory of this name is a save that was cut short
SAMPLED = 1  # the format that has no digests, and whose model fingerprint covers a sample of the weights
RECORD, TENSORS = "engine.json", "state.safetensors"
# what an engine has only once it has learned or gathered statistics, or in one kind of step alone
_OPTIONAL = re.compile(r"^(?:slow\.)?learner\.\d+\.(grad|prior|stat|prior_rate|reference\.\S+)$")


def adapter_directory(root, stream: int, streams: int) -> Path:
    return Path(root) / ("adapter" if streams == 1 else f"adapter-{stream}")


def state_tensors(engine) -> dict[str, torch.Tensor]:
    named = {"lr": engine.lr}
    for i, learner in enumerate(engine.learners):
        named.update({f"learner.{i}.{name}": t for name, t in learner.tensors().items()})
    if engine.decoder.memory is not None:
        named.update({f"memory.{name}": t for name, t in engine.decoder.memory.tensors().items()})
    if engine.guarding is not None:
        named.update({f"guard.{name}": t for name, t in engine.guarding.tensors().items()})
    if engine.slow_level is not None:
        level = {**state_tensors(engine.slow_level.learner), **engine.slow_level.tensors()}
        named.update({f"slow.{name}": t for name, t in level.items()})
    for s, state in enumerate(engine.state):
        named[f"history.{s}"] = torch.tensor(state.history, dtype=torch.int64)
        if engine.learn_from is not None:
            named[f"recent.{s}"] = torch.tensor(state.recent, dtype=torch.float64)
    return {name: t.contiguous() for name, t in named.items()}


def state_counts(engine) -> dict:
    """What the engine counts, as plain data."""
    changes = engine.driver.step.changes
    points = [ChangePoint()] * engine.streams if changes is None else changes.points()
    waiting = lambda s: {"waiting": s.waiting} if s.waiting or engine.accumulate else {}  # noqa: E731  (of a gradient without an update)
    streams = [
        {"segments": s.segments, "since_reset": s.since_reset, "change": asdict(point), **waiting(s)}
        for s, point in zip(engine.state, points)
    ]
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
        save_file(state_tensors(engine), str(new / TENSORS))
        if engine.learners and not engine.learners[0].owns_weights:
            step, sets = engine.driver.step, engine.settings.sets
            for stream in range(sets):
                to = adapter_directory(new, stream, sets)
                write_adapter(to, step.learner(stream), engine.config, step.slot(stream), engine.model.origin or engine.model.name)
        files = digests_under(new)
        record = {"format": FORMAT, "engine": engine.describe(), **state_counts(engine), "flops": engine.ledger.totals, "files": files}
        (new / RECORD).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        sync_tree(new)
        for name in (*files, RECORD):
            (root / name).parent.mkdir(exist_ok=True)
            os.replace(new / name, root / name)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    for folder in {root, *((root / name).parent for name in files)}:
        sync_tree(folder, deep=False)


def restore(engine, directory) -> None:
    """Read into ``engine`` what ``save`` wrote, or change nothing.

    Raises:
        ModelError (a ValueError): naming the file, when the saved configuration differs (with the first key that does), a
            file can't be read or is damaged, or a value that would be used is NaN or infinite.
    """
    root = Path(directory)
    record = read_json(root / RECORD, MAX_INDEX_BYTES, MAX_TABLE_VALUES)
    _check_record(engine, record, root)
    set_state(engine, _read_state(engine, root / TENSORS), record)
    engine.ledger.totals = dict(record["flops"])


def _check_record(engine, record, root: Path) -> None:
    where, get = root / RECORD, record.get if isinstance(record, dict) else lambda name: None
    if type(get("format")) is not int or not isinstance(get("engine"), dict):
        raise ModelError(f"{where}: not the record of a saved engine")
    if record["format"] not in (FORMAT, SAMPLED):
        raise ModelError(f"{root}: state format {record['format']}; this version reads {SAMPLED} and {FORMAT}")
    here, saved = json.loads(json.dumps(engine.describe())), record["engine"]
    if record["format"] == SAMPLED:
        here["model"] = engine.model.fingerprint(sampled=True)
    for name, expected in _files_of(record, where).items():
        if wrong := differs(root / name, expected):
            raise ModelError(f"{wrong} (engine.json beside it was written with other files, or they changed since)")
    later = {"guard", "keep", "mixture", "slow", "learn_from", "hypergradient"}
    for name in (*here, *(later & saved.keys() - here.keys())):  # said where used
        if name not in saved or name not in here or here[name] != saved[name]:
            raise ModelError(f"{root}: saved with {name}={saved.get(name)!r}; this engine has {here.get(name)!r}")
    is_count = lambda value: type(value) is int and 0 <= value < 2**63  # noqa: E731
    is_change = lambda value: (
        isinstance(value, dict)
        and value.keys() == asdict(ChangePoint()).keys()
        and is_count(value["count"])  # noqa: E731
        and all(type(n) in (int, float) and abs(n) < 1e300 for n in value.values())
    )
    is_stream = lambda value: (
        isinstance(value, dict)
        and value.keys() - {"waiting"} == {"segments", "since_reset", "change"}  # noqa: E731
        and type(value.get("waiting", True)) is bool
        and is_count(value["segments"])
        and is_count(value["since_reset"])
        and is_change(value["change"])
    )
    streams, flops = get("streams"), get("flops")
    checks = {
        "streams": isinstance(streams, list) and len(streams) == len(engine.state) and all(map(is_stream, streams)),
        "flops": (isinstance(flops, dict) and flops.keys() == engine.ledger.totals.keys() and all(map(is_count, flops.values()))),
        "updates": is_count(get("updates")),
        "skipped_updates": is_count(get("skipped_updates")),
    }
    for name, whole in checks.items():
        if not whole:
            raise ModelError(f"{where}: damaged: {name}={str(get(name))[:80]} is not what a saved engine has")


def _files_of(record, where: Path) -> dict[str, dict]:
    """The digests of the files beside a record; none in the format that has none."""
    files = record.get("files", {} if record["format"] == SAMPLED else None)
    is_digest = lambda value: (
        isinstance(value, dict)
        and value.keys() == {"bytes", "sha256"}
        and type(value["bytes"]) is int  # noqa: E731
        and isinstance(value["sha256"], str)
    )
    inside = lambda name: not Path(name).is_absolute() and ".." not in Path(name).parts  # noqa: E731
    if not isinstance(files, dict) or not all(inside(name) and is_digest(value) for name, value in files.items()):
        raise ModelError(f"{where}: damaged: files={str(files)[:80]} is not what a saved engine has")
    return files


def _read_state(engine, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a saved engine, each of the dtype and shape that this one has, with values that can be gone on from."""
    file, here = SafetensorsFile(path), state_tensors(engine)
    for name in here:
        if name not in file.tensors and not _OPTIONAL.search(name):
            raise ModelError(f"{path}: no tensor {name}, which this engine needs")
    tensors = {}
    for name, stored in file.tensors.items():
        expected = _expected(here, name)
        if expected is None:
            raise ModelError(f"{path}: tensor {name} has no place in this engine")
        dtype, *shapes = expected
        fits = lambda shape: len(stored.shape) == len(shape) and all(n in (m, -1) for m, n in zip(stored.shape, shape))  # noqa: E731
        if file.dtype(name) != dtype or not any(map(fits, shapes)):
            accepted = " or ".join(str(list(shape)) for shape in shapes)
            raise ModelError(
                f"{path}: tensor {name} has dtype {stored.dtype} and shape {list(stored.shape)}; expected {dtype} and {accepted}"
            )
        tensors[name] = file.read(name, accepted=(stored.dtype,))
    for name, value in tensors.items():
        _check_values(engine, path, name, value, tensors)
    return tensors


def _expected(here, name: str):
    """(dtype, accepted shapes...) of a saved tensor, -1 for any size; None for one that this engine has no place for."""
    match = _OPTIONAL.match(name)
    master = here.get(f"{name[: match.start(1)]}master") if match else None
    if name.endswith(".prior") and master is not None and name.replace(".prior", ".updates") not in here:  # of all adapters, or of each
        return master.dtype, tuple(master.shape[1:]), tuple(master.shape)
    if match and ".reference." in name:  # of each output row
        weight = here.get(name.replace(".reference.", ".weight."))
        return None if master is None or weight is None else (master.dtype, (weight.shape[0],))
    if name in here:
        return here[name].dtype, (-1,) if name.startswith(("history.", "recent.")) or name in ("slow.tokens", "slow.lengths") else tuple(
            here[name].shape
        )
    if master is None:
        return None
    return master.dtype, tuple(master.shape if name.endswith(".grad") else master.shape[1:])


def _check_values(engine, path: Path, name: str, value: torch.Tensor, tensors: dict) -> None:
    guarded = "guard." if name.startswith("guard.") else ""
    own = name.removeprefix(guarded)
    if value.is_floating_point():
        if own.startswith(("memory.keys.", "memory.values.", "memory.inputs.")):  # beyond a slot's length lies what it has forgotten
            value = torch.cat([rows[:count] for rows, count in zip(value, tensors[f"{guarded}memory.length"].tolist())])
        diverged = engine.guarding is not None and name.startswith(
            ("memory.", "learner.", "guard.alarm.ring.")
        )  # what did counts for nothing in a mixture
        if (
            not name.endswith(".grad") and not diverged and value.numel() and count_not_finite(value)
        ):  # such a gradient is skipped, and stays
            raise ModelError(f"{path}: tensor {name} holds a NaN or an infinity")
        if name.startswith("recent.") and value.numel() > WINDOW:
            raise ModelError(f"{path}: tensor {name} has {value.numel()} segments; expected at most {WINDOW}")
        if name == "lr" and (value < 0).any():
            raise ModelError(f"{path}: tensor lr holds a number below 0")
        return
    limit = 2**62
    if own == "memory.length":
        limit = engine.decoder.memory.memory.capacity
    elif name.startswith("history."):
        limit, context = engine.config.vocab_size - 1, getattr(engine.memory, "context", 0)
        if value.numel() > context:
            raise ModelError(f"{path}: tensor {name} has {value.numel()} tokens; this engine remembers {context}")
    elif own == "slow.tokens":
        limit = engine.config.vocab_size - 1
    elif own in ("slow.lengths", "slow.open"):
        limit = tensors["slow.tokens" if own == "slow.lengths" else "slow.lengths"].numel()
        if own == "slow.lengths" and (int(value.sum()) != limit or (value < 2).any()):
            raise ModelError(f"{path}: tensor {name} holds {value.tolist()[:8]}; expected numbers of at least 2 that sum to {limit}")
    elif ".rows." in name:
        limit = tensors[name.replace(".rows.", ".weight.")].shape[0] - 1
        if value.unique().numel() != value.numel():
            raise ModelError(f"{path}: tensor {name} has a row twice")
    if value.numel() and not 0 <= int(value.min()) <= int(value.max()) <= limit:
        raise ModelError(f"{path}: tensor {name} holds {int(value.min())}..{int(value.max())}; expected 0..{limit}")


def set_state(engine, tensors: dict[str, torch.Tensor], counts: dict) -> None:
    """Put an engine of the same configuration where ``state_tensors`` and ``state_counts`` were taken. FLOPs stay counted."""
    engine.calls.moving()
    engine.lr.copy_(tensors["lr"])
    pick = lambda prefix: {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}  # noqa: E731
    for i, learner in enumerate(engine.learners):
        learner.load(pick(f"learner.{i}."))
    if engine.decoder.memory is not None:
        engine.decoder.memory.load(pick("memory."))
    if engine.guarding is not None:
        engine.guarding.load(pick("guard."))
    if engine.slow_level is not None:
        engine.slow_level.load(pick("slow."), set_state)
    for s, (state, row) in enumerate(zip(engine.state, counts["streams"])):
        state.segments, state.since_reset = row["segments"], row["since_reset"]
        state.waiting = row.get("waiting", engine.accumulate and state.segments % engine.every > 0)  # older states don't say it
        state.history = tensors[f"history.{s}"].tolist()
        state.recent = tensors[f"recent.{s}"].tolist() if engine.learn_from is not None else []
    step = engine.driver.step
    step.fresh = False
    step.counters.copy_(torch.tensor([counts["updates"], counts["skipped_updates"]]))
    if step.changes is not None:
        step.changes.load([ChangePoint(**row["change"]) for row in counts["streams"]])
    engine.driver.drop_recordings()  # they may hold the addresses of buffers that were not there before

"""What every stage gets: the options, the time that is left, and a record that is whole on disk at any moment."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import code

ROOT = Path(__file__).resolve().parents[2]
STOPPED = "stopped at its time limit"
GRACE = 15.0  # seconds between being asked to stop and being killed


@dataclass
class Campaign:
    """Options of one run. ``tiny``: sizes for a dry run on a CPU; ``seconds``: what a stage may take."""

    out: Path
    device: str = "cuda"
    seconds: float = 520.0
    model: str | None = None
    text: str | None = None
    curve: str | None = None
    steps: int = 1000
    started: float = field(default_factory=time.monotonic)

    @property
    def tiny(self) -> bool:
        return self.device == "cpu"

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.started)

    def room(self, most: float) -> float:
        """Seconds that a child may take before it is asked to stop, so that it is gone in the stage's time."""
        return min(most, self.left - GRACE)

    def read(self, stage: str) -> dict | None:
        """The record of an earlier stage, or None."""
        path = self.out / f"{stage}.json"
        return json.loads(path.read_text()) if path.exists() else None


class Record:
    """One stage's JSON file: the machine and the versions first, then a row for each measurement, written as they come."""

    def __init__(self, path: Path, stage: str, device: str, resume: bool = False):
        """``resume``: rows of an earlier, unfinished run of the stage stay, and the stage measures what is missing."""
        self.path, self.stage, self.resume = path, stage, resume
        earlier = json.loads(path.read_text()) if resume and path.exists() else {}
        self.data = {
            "stage": stage,
            "status": "cut short",
            "device": device,
            "environment": header(device),
            "rows": earlier.get("rows", []),
        }
        if "aside" in earlier:
            self.data["aside"] = earlier["aside"]
        self.save()

    @property
    def card(self) -> str:
        """The GPU's name, under which kernels/choices.json knows it."""
        return self.data["environment"]["gpu"]["name"] if self.data["device"] == "cuda" else "dry run"

    @property
    def code(self) -> str:
        """A digest of the code that is measured."""
        return code.digest()

    def keep(self, wanted, why: str) -> None:
        """Only the rows that are ``wanted`` go on counting; the others are put aside, with the reason."""
        others = [{**row, "why": why} for row in self.data["rows"] if not wanted(row)]
        if others:
            self.note(rows=[row for row in self.data["rows"] if wanted(row)], aside=[*self.data.get("aside", []), *others])

    def add(self, **row) -> dict:
        self.data["rows"].append(row)
        self.save()
        print(text_of(row), flush=True)
        return row

    def note(self, **facts) -> None:
        self.data.update(facts)
        self.save()

    def finish(self, status: str = "complete") -> None:
        self.note(status=status)

    def save(self) -> None:
        write_json(self.path, self.data)


class Restart(RuntimeError):
    """A kernel took the device from this process: the stage goes on in a new one, behind what it has recorded."""


LOST = ("CUDA error", "illegal memory access", "device-side assert", "misaligned address", "unspecified launch failure")
RESTARTED = "DYNADAPT_CAMPAIGN_RESTARTED"


def check_device(error: Exception) -> None:
    """Raises Restart when after this error no call of this process to the GPU can succeed."""
    if any(text in str(error) for text in LOST):
        raise Restart(str(error)[:200]) from error


def write_json(path: Path, content) -> None:
    """Whole or not at all: a killed process leaves what was there before."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1, default=str) + "\n")
    os.replace(temporary, path)


def text_of(row: dict) -> str:
    short = lambda v: f"{v:.4g}" if isinstance(v, float) else str(v)  # noqa: E731
    return "  ".join(f"{k}={short(v)}" for k, v in row.items() if not isinstance(v, (dict, list)) and "\n" not in str(v))


def header(device: str) -> dict:
    """Hardware and versions. No host names, no paths."""
    try:
        from dynadapt.common.environment import environment

        found = environment()
    except ImportError as error:  # before the build stage, or with a package missing
        found = {"python": sys.version.split()[0], "dynadapt": f"does not import: {error}"}
    if device == "cuda":
        found["gpu"] = gpu()
    return found


def gpu() -> dict:
    import torch

    p = torch.cuda.get_device_properties(0)
    query = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
    said = output(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"])
    return {
        "name": p.name,
        "capability": [p.major, p.minor],
        "multiprocessors": p.multi_processor_count,
        "memory_bytes": p.total_memory,
        "l2_bytes": getattr(p, "L2_cache_size", 0),
        "cuda": torch.version.cuda,
        "smi": dict(zip(query.split(","), said.strip().split(", "))),
    }


def output(command: list[str]) -> str:
    """What a program prints, or "" when it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def environment_of_children(device: str) -> dict[str, str]:
    """Variables for worker processes: this source tree first, the interpreter on only without a GPU, no network."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        ),  # CMake and ninja may be its packages
        "TRITON_INTERPRET": "1" if device == "cpu" else "0",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "passive",
        "PYTHONUNBUFFERED": "1",
    }


def start(command: list[str], device: str, stdin=None, stdout=subprocess.PIPE, **variables: str) -> subprocess.Popen:
    """A process in its own group, ended with this one."""
    # a group, so that its own children end with it, but not a session: whoever ends this one ends it too
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",  # a profiler's report, or what was cut inside a letter, need not be UTF-8
        cwd=ROOT,
        preexec_fn=_alone,
        env={**environment_of_children(device), **variables},
    )


def child(command: list[str], device: str, seconds: float, **variables: str) -> tuple[int | None, str]:
    """(exit status, output) of a process in its own group; None when it had to be stopped at its time limit: asked first, and killed
    GRACE seconds later."""
    process = start(command, device, **variables)
    try:
        text, _ = process.communicate(timeout=max(1.0, seconds))
        return process.returncode, text
    except subprocess.TimeoutExpired:
        return None, stop(process, GRACE)
    except BaseException:  # this process is asked to stop itself, and has its own GRACE for it
        stop(process, GRACE / 3)
        raise


_libc = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _alone() -> None:
    os.setpgrp()
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a stage that is killed leaves nothing on the card
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a background job has switched off


def stop(process: subprocess.Popen, grace: float) -> str | None:
    """What it had printed. Python sees SIGINT as KeyboardInterrupt, and saves what it has."""
    _signal(process, signal.SIGINT)
    text = None
    try:
        text, _ = process.communicate(timeout=grace)
    except subprocess.TimeoutExpired:
        pass
    _signal(process, signal.SIGKILL)  # all that is left of the group
    return process.communicate()[0] if text is None else text


def _signal(process: subprocess.Popen, number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass

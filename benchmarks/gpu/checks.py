"""Stages that ask whether the kernels are right: correctness (pytest on the GPU), sanitizers, profiles."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

from dynadapt.bench.profile.ncu import kernels_of

from .campaign import ROOT, child


def test_files() -> list[str]:
    return sorted(
        str(p.relative_to(ROOT))
        for p in (ROOT / "tests" / "gpu").glob("test_*.py")
        if p.stem not in ("test_campaign", "test_compile", "test_sanitized")
    )


def outcomes(path) -> dict:
    """Counts and the failures of a junit file."""
    if not path.exists():
        return {"tests": 0, "failures": []}
    cases = xml.parse(path).getroot().iter("testcase")
    found, failures, skipped = 0, [], 0
    for case in cases:
        found += 1
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped += case.find("skipped") is not None
        if bad is not None:
            failures.append({"test": case.get("name"), "message": (bad.get("message") or bad.text or "")[:600]})
    path.unlink()
    return {"tests": found, "skipped": skipped, "failed": len(failures), "failures": failures}


# What a step is made of; the rest of tests/gpu is for optional ops and forms.
CORE = (
    "test_linear",
    "test_attention",
    "test_cross_entropy",
    "test_lora_gradient",
    "test_norm",
    "test_update",
    "test_decisions",
    "test_step",
)
WORKERS, BATCH = 6, 6  # pytest processes, and files given to them together: each process takes seconds to start


def core(campaign, record) -> None:
    """The tests of the kernels that every step launches, the real sizes too: four minutes at most."""
    _correctness(campaign, record, [f for f in test_files() if Path(f).stem in CORE])


def correctness(campaign, record) -> None:
    """Every test of tests/gpu, the real sizes too, in batches; the files of a batch that fails again, each by itself."""
    _correctness(campaign, record, test_files())


def _correctness(campaign, record, files: list[str]) -> None:
    passed = {name for row in record.data["rows"] if row["status"] == 0 for name in row["file"].split()}  # of an earlier call
    record.data["rows"] = [row for row in record.data["rows"] if row["status"] == 0]
    files = [file for file in files[:1] if campaign.tiny] or [file for file in files if Path(file).name not in passed]
    batches = [files[i : i + BATCH] for i in range(0, len(files), BATCH)]
    for i, batch in enumerate(batches):
        row = _pytest(campaign, batch, max(90.0, campaign.left / (len(batches) - i) * 2))  # a batch may take twice its share
        if row["status"] == 0 or len(batch) == 1 or campaign.left < 60:
            record.add(**row)
        else:  # what one file broke may show in another: the verdict is that of each alone
            for file in batch:
                if campaign.left < 20:
                    return record.finish("out of time")
                record.add(**_pytest(campaign, [file], max(60.0, campaign.left / 4)))
        if campaign.left < 20:
            return record.finish("out of time")


def _pytest(campaign, files, seconds) -> dict:
    """How a run of these files together went."""
    junit = campaign.out / "junit.xml"
    workers = ["-n", str(WORKERS)] if importlib.util.find_spec("xdist") and not campaign.tiny else []  # compiling takes most
    marks = "not slow and not model" if not campaign.tiny else "not gpu and not slow"  # a model: stage real has one
    command = [sys.executable, "-m", "pytest", *files, "-m", marks, "-q", "--tb=short", f"--junitxml={junit}", *workers]
    status, text = child(command, campaign.device, min(seconds, campaign.left), **({"OMP_NUM_THREADS": "2"} if workers else {}))
    return {
        "file": " ".join(file.rsplit("/", 1)[-1] for file in files),
        "status": "stopped" if status is None else status,
        **outcomes(junit),
        "said": text[-2500:] if status != 0 else "",
    }


def sanitizers(campaign, record) -> None:
    """compute-sanitizer over the small cases: memcheck everywhere first, then racecheck."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        record.add(skipped="compute-sanitizer is not installed")
        return
    files = [f for f in test_files() if not f.endswith("test_choices.py")]
    for check in ("memcheck", "racecheck"):
        for file in files:
            if campaign.left < 25:
                return record.finish("out of time")
            pytest = [sys.executable, "-m", "pytest", file, "-m", "not gpu and not slow", "-q", "-x", "--tb=line", "-p", "no:cacheprovider"]
            command = [tool, "--tool", check, "--kernel-regex", "kns=dynadapt", "--print-limit", "5", *pytest]
            # a buffer of its own for each tensor, so that none is overrun unseen; a graph cannot be captured so
            alone = {} if file.endswith("test_step.py") else {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            status, text = child(command, campaign.device, min(campaign.left, 90.0), **alone)
            errors = re.search(r"(?:ERROR SUMMARY: |RACECHECK SUMMARY: )(\d+)", text)
            record.add(
                tool=check,
                file=file,
                status="stopped" if status is None else status,
                errors=int(errors.group(1)) if errors else None,
                said=text[-1500:] if status or not errors or errors.group(1) != "0" else "",
            )


def profiles(campaign, record) -> None:
    """ncu's full set for the kernels of each op, the second call of each, summarised."""
    from .cases import OPS

    tool = shutil.which("ncu")
    if tool is None:
        record.add(skipped="ncu is not installed")
        return
    for op in OPS:
        if campaign.left < 40:
            return record.finish("out of time")
        # an op launches at most a few kernels of ours; the first call compiles and is skipped by --profile-from-start
        scope = ["--clock-control", "none", "--profile-from-start", "off", "-k", "regex:dynadapt", "--launch-count", "4"]
        report = ["--set", "full", "--csv", "--page", "raw"]
        command = [tool, *scope, *report, sys.executable, "-m", "benchmarks.gpu.profile_op", op]
        status, text = child(command, campaign.device, min(campaign.left, 120.0))
        rows = kernels_of(text)
        if not rows:
            record.add(op=op, status=status, said=text[-800:])
        for row in rows:
            record.add(op=op, **row)

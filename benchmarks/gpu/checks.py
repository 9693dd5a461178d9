"""Stages that ask whether the kernels are right: correctness (pytest on the GPU), sanitizers, profiles."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
from pathlib import Path

from dynadapt.bench.profile.ncu import kernels_of

from .campaign import GRACE, ROOT, child
from .verdicts import LIMIT, PASSED, VERDICTS, Verdicts, begin


def test_files() -> list[str]:
    """All but those of what needs no GPU (test_compile and test_rounding compile for minutes), and what stage sanitizers does."""
    return sorted(
        str(p.relative_to(ROOT))
        for p in (ROOT / "tests" / "gpu").glob("test_*.py")
        if not p.stem.startswith(("test_campaign", "test_compile", "test_rounding", "test_sanitized"))
    )


# What a step is made of; the rest of tests/gpu is for optional ops and forms.
CORE = (
    "test_step",
    "test_linear",
    "test_attention",
    "test_cross_entropy",
    "test_lora_gradient",
    "test_norm",
    "test_update",
    "test_decisions",
    "test_linear_activation",
    "test_activation",
    "test_lora_gradient_together",
    "test_memory",
    "test_embedding",
)
FIRST = "test_step"  # by itself: what all the others are for
WORKERS = min(14, os.cpu_count() or 1)  # pytest processes: compiling takes most of the time, and the card has room for that many
BATCH = 16  # files given to them together: each process takes seconds to start
LEAST = GRACE + 15  # seconds that must be left to start some tests


def core(campaign, record) -> None:
    """The tests of the kernels that every step launches, the real sizes too: the whole step's first."""
    _correctness(campaign, record, [f for f in test_files() if Path(f).stem in CORE])


def correctness(campaign, record) -> None:
    """Every test of tests/gpu, the real sizes too, in batches; what fails in a batch again, each file by itself."""
    _correctness(campaign, record, test_files())


def _correctness(campaign, record, files: list[str]) -> None:
    tests = Tests(campaign, record)
    record.data["rows"] = []
    files = sorted(files, key=lambda file: Path(file).stem != FIRST)  # the others stay in order
    files = files[:1] if campaign.tiny else files
    for file in [file for file in files if tests.passed_whole(file)]:  # in an earlier call, or in the other stage
        record.add(**tests.row(file, 0, ""))
        files.remove(file)
    for batch in batches(files):
        if campaign.left < LEAST:
            for file in (file for file in files if tests.known(file)):  # what failed in an earlier call has failed
                record.add(**tests.row(file, None, ""))
            return record.finish("out of time")
        files = [file for file in files if file not in batch]
        status, text = tests.run(batch)
        rows = [tests.row(file, status, text) for file in batch]
        for file, row in zip(batch, rows):  # what one file broke may show in another: the verdict is that of each alone
            if row["status"] not in (0, "stopped") and len(batch) > 1 and campaign.left >= 2 * LEAST:
                row = tests.row(file, *tests.run([file]))
            record.add(**row)
    if any(row["status"] == "stopped" for row in record.data["rows"]):
        record.finish("out of time")


def batches(files: list[str]) -> list[list[str]]:
    alone = [file for file in files if Path(file).stem == FIRST]
    rest = [file for file in files if file not in alone]
    return [*([alone] if alone else []), *(rest[i : i + BATCH] for i in range(0, len(rest), BATCH))]


class Tests:
    """Runs files of tests; each test's verdict is in DIR/tests.jsonl, of all stages, and one that has passed there with this code is not run again."""

    def __init__(self, campaign, record):
        self.campaign = campaign
        self.file = campaign.out / "tests.jsonl"
        self.passed = campaign.out / f"{record.stage}-passed.list"
        if not record.resume:
            self.file.unlink(missing_ok=True)
        begin(self.file, record.code)

    def of(self, file: str) -> Verdicts:
        return Verdicts.read(self.file).of(Path(file).name)

    def known(self, file: str) -> bool:
        return bool(self.of(file).tests)

    def passed_whole(self, file: str) -> bool:
        """Whether every test of a file that was collected has passed, or was skipped."""
        found = self.of(file)
        return bool(found.tests) and found.whole

    def run(self, files: list[str]) -> tuple[int | None, str]:
        """(status, output) of pytest on these files together."""
        self.passed.write_text(json.dumps(Verdicts.read(self.file).those("passed", "skipped")))
        workers = ["-n", str(WORKERS)] if importlib.util.find_spec("xdist") and not self.campaign.tiny else []
        limits = [f"--timeout={LIMIT}", "--timeout-method=thread"] if importlib.util.find_spec("pytest_timeout") else []
        marks = "not slow and not model" if not self.campaign.tiny else "not gpu and not slow"  # a model: stage real has one
        plugin = ["-p", "benchmarks.gpu.verdicts"]
        command = [sys.executable, "-m", "pytest", *files, "-m", marks, "-q", "--tb=short", *plugin, *workers, *limits]
        variables = {VERDICTS: str(self.file), PASSED: str(self.passed), **({"OMP_NUM_THREADS": "1"} if workers else {})}
        try:
            return child(command, self.campaign.device, self.campaign.room(self.campaign.left), **variables)
        finally:
            self.passed.unlink()

    def row(self, file: str, status: int | None, text: str) -> dict:
        """How one of the files that were run together went. ``status`` 0: all its tests have passed or were skipped, now or before."""
        found = self.of(file)
        row, whole = found.row(), found.whole
        if whole and (found.tests or status in (0, 1, 5)):  # 5: there was nothing left to run
            status = 0
        elif status is None:
            status = "stopped" if not row["failed"] else 1
        elif not row["failed"] and status in (0, 1, 5):
            status = "unfinished"
        return {"file": Path(file).name, "status": status, **row, "said": text[-2500:] if status != 0 else ""}


def sanitizers(campaign, record) -> None:
    """compute-sanitizer over the small cases: memcheck everywhere first, then racecheck."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        record.add(skipped="compute-sanitizer is not installed")
        return
    files = [f for f in test_files() if not f.endswith("test_choices.py")]
    record.data["rows"] = [row for row in record.data["rows"] if row.get("status", "stopped") != "stopped"]
    done = {(row["tool"], row["file"]) for row in record.data["rows"]}
    for check in ("memcheck", "racecheck"):
        for file in files:
            if (check, file) in done:
                continue
            if campaign.left < LEAST + 10:
                return record.finish("out of time")
            pytest = [sys.executable, "-m", "pytest", file, "-m", "not gpu and not slow", "-q", "-x", "--tb=line", "-p", "no:cacheprovider"]
            command = [tool, "--tool", check, "--kernel-regex", "kns=dynadapt", "--print-limit", "5", *pytest]
            # a buffer of its own for each tensor, so that none is overrun unseen; a graph cannot be captured so
            alone = {} if file.endswith("test_step.py") else {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            status, text = child(command, campaign.device, campaign.room(90.0), **alone)
            errors = re.search(r"(?:ERROR SUMMARY: |RACECHECK SUMMARY: )(\d+)", text)
            record.add(
                tool=check,
                file=file,
                status="stopped" if status is None else status,
                errors=int(errors.group(1)) if errors else None,
                said=text[-1500:] if status != 0 or not errors or errors.group(1) != "0" else "",
            )


def profiles(campaign, record) -> None:
    """ncu's full set for the kernels of each op, the second call of each, summarised."""
    from .cases import OPS

    tool = shutil.which("ncu")
    if tool is None:
        record.add(skipped="ncu is not installed")
        return
    record.data["rows"] = [row for row in record.data["rows"] if "kernel" in row]
    done = {row["op"] for row in record.data["rows"]}
    for op in OPS:
        if op in done:
            continue
        if campaign.left < LEAST + 10:
            return record.finish("out of time")
        # an op launches at most a few kernels of ours; the first call compiles and is skipped by --profile-from-start
        scope = ["--clock-control", "none", "--profile-from-start", "off", "-k", "regex:dynadapt", "--launch-count", "4"]
        report = ["--set", "full", "--csv", "--page", "raw"]
        command = [tool, *scope, *report, sys.executable, "-m", "benchmarks.gpu.profile_op", op]
        status, text = child(command, campaign.device, campaign.room(120.0))
        rows = kernels_of(text)
        if not rows:
            record.add(op=op, status="stopped" if status is None else status, said=text[-800:])
        for row in rows:
            record.add(op=op, **row)

"""Each test's verdict on disk as it comes, so that a run that is stopped loses none: a plugin of pytest's, and what reads its file.

    python -m pytest -p benchmarks.gpu.verdicts ...      # with the names of two files in these variables

DYNADAPT_VERDICTS is appended to: a line for what was collected, each start and each verdict. DYNADAPT_PASSED is a list of tests that are
left out, because they have passed before; it does not change while they run, which a process that takes a dead one's place needs.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from .campaign import LOST

VERDICTS, PASSED = "DYNADAPT_VERDICTS", "DYNADAPT_PASSED"
LIMIT = 90  # seconds of one test: a kernel that hangs costs its process, and the others go on


# ---- in pytest


def _write(line: dict) -> None:
    with open(os.environ[VERDICTS], "a") as file:
        file.write(json.dumps(line) + "\n")


def _works(config) -> bool:
    """Whether this is one of several processes, of which another one writes."""
    return hasattr(config, "workerinput")


def pytest_configure(config):
    if _works(config):
        config.pluginmanager.register(_Worker(), "dynadapt-worker")
    else:
        config.pluginmanager.register(_Writer(), "dynadapt-writer")


def pytest_collection_modifyitems(config, items):
    passed = set(json.loads(Path(os.environ[PASSED]).read_text()))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
    items[:] = [item for item in items if item.nodeid not in passed]


class _Worker:
    """Ends its process behind a test that has lost the device, as all its later ones would have: another process takes its place."""

    lost = False

    def pytest_runtest_logreport(self, report):
        self.lost |= report.failed and any(text in report.longreprtext for text in LOST)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        result = yield
        if self.lost:
            os._exit(70)
        return result


class _Writer:
    collected: set[str] = set()

    def _collected(self, tests) -> None:
        if new := [test for test in tests if test not in self.collected]:
            self.collected = {*self.collected, *new}
            _write({"collected": new})

    def pytest_collection_finish(self, session):
        self._collected([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node, ids):
        self._collected(ids)

    def pytest_runtest_logstart(self, nodeid):
        _write({"test": nodeid, "outcome": "started"})

    def pytest_runtest_logreport(self, report):
        if report.failed or report.skipped or report.when == "call":
            text = report.longreprtext
            crash = getattr(getattr(report.longrepr, "reprcrash", None), "message", text[-600:])
            said = {"message": crash[:600]} if report.failed else {}
            _write({"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2), **said})


# ---- of its file


def begin(path: Path, code: str) -> None:
    """What follows are verdicts on this code; those on another one count no longer."""
    with open(path, "a") as file:
        file.write("\n" + json.dumps({"code": code}) + "\n")  # the line before may have been cut short


@dataclass
class Verdicts:
    """Of each test collected: "passed", "failed", "skipped", "started" where it was not seen to end, "collected" where it has not begun.

    A test that ran more than once has the last run's, and what it said when it first failed.
    """

    tests: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Verdicts:
        found, code = cls(), None
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                one = json.loads(line)
            except json.JSONDecodeError:  # cut short as it was written, or empty
                continue
            if one.get("code", code) != code:
                found, code = cls(), one["code"]
            for test in one.get("collected", []):
                found.tests.setdefault(test, "collected")
            if "test" in one:
                found.tests[one["test"]] = one["outcome"]
                if "message" in one:
                    found.messages.setdefault(one["test"], one["message"])
        return found

    def of(self, file: str) -> Verdicts:
        """Those of one file, by its name."""
        mine = {test: outcome for test, outcome in self.tests.items() if test.split("::")[0].rsplit("/", 1)[-1] == file}
        return Verdicts(mine, {test: said for test, said in self.messages.items() if test in mine})

    def those(self, *outcomes: str) -> list[str]:
        return [test for test, outcome in self.tests.items() if outcome in outcomes]

    @property
    def whole(self) -> bool:
        """Whether every test that was collected has passed, or was skipped."""
        return not self.those("failed", "started", "collected")

    def row(self) -> dict:
        failed = self.those("failed")
        return {
            "tests": len(self.those("passed", "skipped", "failed")),
            "collected": len(self.tests),
            "skipped": len(self.those("skipped")),
            "failed": len(failed),
            "failures": [{"test": test.split("::", 1)[-1], "message": self.messages.get(test, "")} for test in failed],
            "unfinished": [test.split("::", 1)[-1] for test in self.those("started")],
            "failed_beside_others": [test.split("::", 1)[-1] for test in self.messages if test in self.those("passed")],
        }

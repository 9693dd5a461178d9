"""Commands that are killed, or whose disk fails, at any file operation go on to the same bits (campaign.py, file_faults.c)."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMMANDS = ("eval", "rows", "reweight", "change", "icl", "sweep")
COMPILER = shutil.which(os.environ.get("CC", "cc"))
pytestmark = pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="needs a C compiler and LD_PRELOAD")


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "file_faults.so"
    subprocess.run(
        [COMPILER, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(library), str(HERE / "file_faults.c"), "-ldl"],
        check=True,
    )
    return library


def campaign(shim: Path, command: str, *drawn) -> dict:
    one = {"OMP_NUM_THREADS": "1", "DYNADAPT_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive"}
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # thousands of small files
    with tempfile.TemporaryDirectory(dir=memory) as root:
        done = subprocess.run(
            [sys.executable, str(HERE / "campaign.py"), command, root, *map(str, drawn)],
            capture_output=True,
            text=True,
            env={**os.environ, **one, "LD_PRELOAD": str(shim)},
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(found: dict) -> None:
    assert not found["bad"], json.dumps(found["bad"], indent=1)
    ways = {ending.partition(":")[0] for ending in found["endings"]}
    assert found["tried"] < 20 or len(ways) == 10, found["endings"]
    assert any("signal 9" in ending for ending in found["endings"]) and any("said" in ending for ending in found["endings"])


@pytest.mark.parametrize("command", ["eval", "change", "icl"])
def test_a_few_places(command, shim):
    check(campaign(shim, command, 11, 14))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_place(command, shim):
    check(campaign(shim, command))


@pytest.mark.parametrize("command", ["eval", "icl"])
def test_what_is_named_is_on_the_disk(command, shim):
    """A name is given after what it names was synced, and synced itself before anything else goes on."""
    unsynced, renamed = set(), []
    log = campaign(shim, command, "log")
    for number, (what, path) in enumerate(log):
        name = Path(path).name
        if what in ("write", "truncate", "open"):
            unsynced.add(path)
        elif what == "fsync":
            passing = f"{Path(path).parent}/.tmp"  # what the writer of tensors renames, by a call that can't be seen
            unsynced = {at for at in unsynced if at != path and not at.startswith(passing)}
        elif what == "rename" and name[0] != "." and str(Path(path).parent) in (".", "checkpoint", "weights"):
            renamed.append(name)
            source = {f"{path}.tmp"} if path.endswith(".json") else {at for at in unsynced if f"{Path(path).parent}/." in at}
            assert not source & unsynced, (path, unsynced)
            if name == "summary.json" or name.isdigit():
                assert not {"metrics.jsonl", "scores.npy"} & unsynced, path
            assert log[number + 1] == ["fsync", str(Path(path).parent)], (path, log[number + 1])
    assert {"config.json", "inputs.json", "env.json", "summary.json"} <= set(renamed) and any(name.isdigit() for name in renamed)

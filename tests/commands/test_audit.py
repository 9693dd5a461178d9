"""`dynadapt audit` on a terminal: what it prints, its exit status, its file, what it refuses."""

import json
import shlex
import sys
from pathlib import Path

import pytest
from command_line import call, words_of
from tiny import tiny_root

PROGRAM = Path(__file__).parents[1] / "audited_program.py"
SMALL = ("--vocabulary", 30, "--count", 3, "--length", 40, "--positions", 6)


def program(kind: str) -> tuple:
    return "audit", "--command", shlex.join([sys.executable, "-S", "-E", str(PROGRAM), "30", kind]), *SMALL


@pytest.mark.parametrize(
    "kind, more, status, rows, end",
    [
        ("honest", ("--resets",), 0, ["later tokens  passed  6 positions", "scored once   passed  every position of 8 runs"], "PASSED: "),
        ("honest", ("--resets", "--segment", 16), 0, ["documents     passed"], "PASSED: "),
        ("leak", (), 0, ["documents     left out  the program is not said to reset"], "PASSED: "),
        ("leak", ("--resets",), 1, ["documents     FAILED  documents leak into each other: document "], "FAILED: "),
        ("noise", ("--resets",), 2, ["repeatable    not judged  the same documents gave other scores: by up to "], "NOT JUDGED: "),
        ("no-distributions", ("--resets", "--no-distributions"), 0, ["distribution  left out"], "PASSED: "),
    ],
)
def test_a_program(kind, more, status, rows, end, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    assert call(*program(kind), *more) == status
    out, err = capsys.readouterr()
    for row in rows:
        assert row in out
    assert "The documents as they are: " in out and " nats a token over 120 scores." in out
    assert f"\n{end}" in out and "escapes with probability (1 - p)^6" in " ".join(out.split())
    assert "run 1 of " in err and "the documents as they are" in err


def test_the_last_words_of_a_program_are_shown(capsys):
    assert call(*program("dies")) == 2
    out = capsys.readouterr().out
    assert "the program's last words on standard error:\n  Traceback" in out and "\n  MemoryError: no room for the second document" in out


def test_the_report_is_a_file_and_quiet_is_one_line(tmp_path, capsys):
    assert call(*program("after"), "--resets", "--quiet", "--out", tmp_path / "audit.json") == 1
    out, err = capsys.readouterr()
    assert out.startswith("FAILED: ") and out.count("\n") == 1 and err == ""
    report = json.loads((tmp_path / "audit.json").read_text())
    assert report["verdict"] == "failed" and report["settings"]["documents"] == [40, 40, 40] and report["power"]["positions"] == 6
    later = next(check for check in report["checks"] if check["name"] == "later tokens")
    moved = [place["moved"] for place in later["evidence"]]
    assert moved == sorted(moved, reverse=True) and {"document", "position", "changed_from", "ahead"} <= set(later["evidence"][0])


def test_documents_of_the_user(tmp_path, capsys):
    (tmp_path / "valid.jsonl").write_text("".join(json.dumps({"tokens": [n, 3, 5, 3, 5, n, 7, 3] * 5}) + "\n" for n in range(4)))
    words = ["--documents", tmp_path / "valid.jsonl", "--resets", "--quiet", "--out", tmp_path / "audit.json"]
    assert call(*program("honest"), *words) == 0
    assert json.loads((tmp_path / "audit.json").read_text())["settings"]["documents"] == [40, 40, 40]


def test_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    root = tiny_root(tmp_path, 60)
    run = tmp_path / "run"
    assert call(*words_of("eval", root / "model", root / "a.txt", run, "--scores", "--quiet")) == 0
    assert call("audit", run, "--positions", 4, "--tokens", 40, "--out", tmp_path / "audit.json") == 0
    out, err = capsys.readouterr()
    assert "record        passed    48 scores are what these settings give, to the bit" in out
    assert "48 of " in out and "\nPASSED: " in out and "segment 3 of 3" in err
    assert json.loads((tmp_path / "audit.json").read_text())["verdict"] == "passed"


@pytest.mark.parametrize(
    "words, said",
    [
        ((), "run and command: give one of them"),
        (("RUN", "--command", "x"), "run and command: give one of them"),
        (("--command", "x"), "vocabulary: none given"),
        (("--command", "no-such-program", "--vocabulary", 9), "can't be started: No such file"),
        (("--command", "x", "--vocabulary", 9, "--tokens", 5), "tokens 5 with --command: give --length"),
        (("--command", "x", "--vocabulary", 9, "--documents", "no.jsonl"), "no.jsonl"),
        (("RUN", "--resets"), "resets: for --command alone"),
        (("RUN", "--no-distributions"), "no-distributions: for --command alone"),
        (("no/such/run",), "no/such/run: no such run directory"),
        (("RUN", "--tolerance", -1), "'-1': give a number of nats of at least 0"),
        (("RUN", "--tolerance", "nan"), "'nan': give a number of nats of at least 0"),
        (("--command", "x", "--vocabulary", 9, "--timeout", 0), "'0': give seconds above 0"),
        (("RUN", "--out", "RUN/audit.json"), "lies in a run's directory"),
    ],
)
def test_what_is_refused(words, said, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (run / name).write_text("{}")
    assert call("audit", *(str(word).replace("RUN", str(run)) for word in words)) == 2
    out, err = capsys.readouterr()
    assert said in err and out == "" and err.count("dynadapt: error: ") == 1

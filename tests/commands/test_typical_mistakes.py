"""What a new user gets wrong, and what the command line answers: one line that names the argument, its value and what to do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import call
from tiny import english, tiny_directory

# The mistake -> the command (FOLDER stands for a directory with the files of `folder`), its answer after "dynadapt: error: ".
AT_ONCE = {  # needs no torch
    "a typo in the command": ("evla --text a.txt", "unknown command 'evla'; did you mean eval? (see dynadapt --help)"),
    "a typo in an option": ("eval --txet a.txt", "unrecognized arguments: --txet a.txt; did you mean --text? (see dynadapt eval --help)"),
    "a typo in a choice": (
        "eval --text a.txt --adapt lroa",
        "argument --adapt: invalid choice: 'lroa' (choose from 'none', 'lora', 'rows', 'full'); "
        "did you mean lora? (see dynadapt eval --help)",
    ),
    "a text without --text": ("eval a.txt", "unrecognized arguments: a.txt; did you mean --text a.txt? (see dynadapt eval --help)"),
    "options before the command": (
        "--text a.txt eval",
        "--text stands before the command; the command comes first: dynadapt eval --text a.txt (see dynadapt --help)",
    ),
    "no text": ("eval", "text: none given; name files, - for standard input, or builtin:python-reference (see dynadapt eval --help)"),
    "a text that is not there": ("eval --text nowhere.txt", "text 'nowhere.txt': no such file"),
    "a text in UTF-16": (
        "eval --text utf16.txt",
        "text 'utf16.txt' is not UTF-8: byte 0xff at offset 0 (invalid start byte); convert it first, for example with iconv -t UTF-8",
    ),
    "an empty text": ("eval --text empty.txt", "text 'empty.txt' is empty"),
    "a built-in text that is none": (
        "eval --text builtin:shakespeare",
        "text 'builtin:shakespeare': no such built-in text; there are builtin:python-reference, builtin:python-source",
    ),
    "rank 0": ("eval --text a.txt --rank 0", "rank 0: give a whole number of at least 1"),
    "a rate below 0": ("eval --text a.txt --lr -1", "lr -1.0: give a finite rate of at least 0"),
    "a word for a number": ("eval --text a.txt --tokens 16k", "argument --tokens: invalid int value: '16k' (see dynadapt eval --help)"),
    "two ways to remember": ("eval --text a.txt --memory 512 --context 512", "memory 512 and context 512"),
}
LATER = {  # answered by what reads models and runs
    "a typo in the model": (
        "eval --text a.txt --model smolm2-135m",
        "model = 'smolm2-135m' does not exist; accepted: smollm2-135m, gemma3-270m, a model directory, a .gguf file, a .safetensors file; did you mean smollm2-135m?",
    ),
    "a model that was not fetched": (
        "eval --text a.txt",
        "model 'smollm2-135m' is not in the cache yet: run `dynadapt fetch smollm2-135m`",
    ),
    "a model without tokenizer": ("eval --text a.txt --model untold", "no tokenizer"),
    "--resume without a run": ("eval --text a.txt --resume", "no run of this configuration under runs/smollm2-135m-a-lora"),
    "--out that holds other files": (
        "eval --text a.txt --model tiny --out taken",
        "taken is not empty and holds no run (no config.json); choose another --out",
    ),
    "--out that can't be written": ("eval --text a.txt --model tiny --out /proc/x/run", "/proc/x/run: can't make this directory"),
    "a sweep of no setting": (
        "sweep setting.yaml",
        "setting.yaml: unknown setting 'lora'; did you mean rslora?; there are accumulate, adapt, ",
    ),
    "a sweep that is no YAML": ("sweep broken.yaml", "broken.yaml: not readable as YAML"),
    "a plot of no run": ("plot folder", "folder is no run (no config.json)"),
    "a comparison of texts": ("compare a.txt b.txt", "a.txt: no such run directory"),
    "one run to compare": ("compare taken", "give at least two runs"),
    "a model to fetch that is not known": ("fetch llama", "model 'llama' is not known; accepted: smollm2-135m"),
    "a domain without a name": ("reweight train --domains code --out r", "domains 'code': give NAME=PATH"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(english(60))
    (folder / "utf16.txt").write_text(english(60), encoding="utf-16")
    (folder / "empty.txt").write_text("")
    (folder / "setting.yaml").write_text("base: {text: a.txt}\ngrid: {lora: [1]}\n")
    (folder / "broken.yaml").write_text("base: [\n")
    for name in ("taken", "folder"):
        (folder / name).mkdir()
        (folder / name / "notes.txt").write_text("mine")
    tiny_directory(folder / "tiny")
    tiny_directory(folder / "untold")
    (folder / "untold" / "tokenizer.json").unlink()
    return folder


@pytest.mark.parametrize("mistake", [*AT_ONCE, *LATER])
def test_a_mistake_gets_one_line_that_says_what_to_do(mistake, folder, monkeypatch, capsys):
    command, answer = {**AT_ONCE, **LATER}[mistake]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DYNADAPT_CACHE", str(folder / "cache"))
    before = sorted(path for path in folder.rglob("*") if "cache" not in path.parts)
    assert call(*command.split()) == 2
    captured = capsys.readouterr()
    said = [line for line in captured.err.splitlines() if mistake not in LATER or not line.startswith("loading ")]  # that comes at once
    assert not captured.out or mistake in LATER
    assert len(said) == 1 and said[0].startswith("dynadapt: error: ") and answer in said[0]
    if mistake in AT_ONCE and "memory 512" not in answer:
        assert said[0].removeprefix("dynadapt: error: ").removesuffix(" (see dynadapt eval --help)") == answer.removesuffix(
            " (see dynadapt eval --help)"
        )
    assert sorted(path for path in folder.rglob("*") if "cache" not in path.parts) == before  # and nothing was made


def test_what_is_answered_at_once_needs_no_torch(folder):
    """All of them in one process: each must leave torch alone."""
    program = """
import json, sys
from dynadapt.cli import main
slow = {}
for mistake, command in json.loads(sys.argv[1]).items():
    try:
        main(command.split())
    except SystemExit:
        pass
    slow[mistake] = sorted({"torch", "transformers", "matplotlib", "scipy"} & set(sys.modules))
print(json.dumps(slow))
"""
    commands = {mistake: command for mistake, (command, _) in AT_ONCE.items()}
    done = subprocess.run([sys.executable, "-c", program, json.dumps(commands)], cwd=folder, capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout.splitlines()[-1]) == dict.fromkeys(commands, [])

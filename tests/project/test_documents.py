"""Every code block of README.md and docs/ runs as it stands, or is on a list here that says why it can't.

A page is read from top to bottom in one directory that has the files its blocks name (`home`), with a tiny model in the cache under
the real one's name. Nothing is skipped by being new: what no rule of NOT_RUN names is run.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from corpora import write_manifest
from document_blocks import CODE, DATA, OUTPUT, PAGES, ROOT, SHELL, Block, blocks, prose, script_source
from tiny import english, tiny_directory

# Commands that are not run here -> why. Each is a pattern of the command's beginning; those of dynadapt still go through its parser.
NOT_RUN = {
    r"make (demo|test|package|sanitize|bench|venv)\b": "sets up .venv from a package index, or measures for minutes",
    r"torchrun\b": "tests/reweight/test_distributed.py and tests/experiments/test_distributed_eval.py start processes",
    r"vllm\b": "a server that is not installed",
    r"tensorboard\b": "a server that runs until it is stopped; tests/runs/test_logs.py reads what it shows",
    r"cmake\b": "builds the library; tests/native/test_linking.py installs and links it",
    r"(CMAKE_ARGS=\S+ )?pip install .*llama-cpp-python": "compiles for minutes",
    r"dynadapt fetch .*--gguf": "downloads; tests/model/test_fetch.py has a wheel of its own",
    r"dynadapt publish .*--notify": "asks a server that is not there; tests/hf/test_publish.py has one",
    r"dynadapt corpus build\b": "reads Debian packages from an index",
    r"dynadapt bench (step|score|products|delta|icl)\b": "times other libraries for minutes",
    r"dynadapt tune\b": "searches for minutes; its own tests do that",
    r"dynadapt profile --step": "a model of the real one's size; tests/bench/test_profiling.py has a smaller one",
    r"dynadapt profile .*--parse-ncu": "reads what ncu wrote on a GPU; tests/bench/test_profiling.py has such a file",
    r"dynadapt .*--device cuda": "needs a GPU",
    r"dynadapt icl train (?!demo)": "a training of hours",
    r"dynadapt reweight (fit|train .*velocitune|train .*replay)": "scaling laws need a model that learns; tests/reweight runs all of it",
    r"python benchmarks/": "measures for minutes to hours; its options are checked",
    r"python -m dynadapt\.lm_eval\b": "its tasks are on the network; tests/hf/test_lm_eval.py has some of its own",
}
# Python blocks that are compiled, but not run -> why: words that they contain.
NOT_RUN_PYTHON = {
    "from dynadapt.experiments.tune import tune": "searches for minutes; its own tests do that",
    'device="cuda"': "needs a GPU",
    "lm_eval.simple_evaluate": "its tasks are on the network; tests/hf/test_lm_eval.py has some of its own",
    'dynadapt.Server("http': "asks a server that is not there; tests/hf/test_publish.py has one",
}
SLOW = {
    "docs/icl.md",
    "docs/icl-claims.md",
    "docs/jax.md",
    "docs/runs.md",
}  # pages that train, compile or start processes: left out unless asked for with -m slow


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """What the blocks name: texts, a model in three forms, a corpus of domains, a copy of examples/."""
    home = tmp_path_factory.mktemp("home")
    text = lambda words, seed: english(words, seed=seed)  # noqa: E731
    for number, name in enumerate(("novel.txt", "a.txt", "b.txt", "c.txt", "d.txt", "train.txt", "news.txt", "mine.txt")):
        (home / name).write_text(text(2500, number))
    for folder in ("books", "held-out", "notes"):
        (home / folder).mkdir()
        for number in range(3):
            (home / folder / f"{number}.txt").write_text(text(700, 20 + number))
    (home / "log.gz").write_bytes(gzip.compress(text(900, 30).encode()))
    (home / "articles.jsonl").write_text("".join(json.dumps({"text": text(200, n), "body": text(200, n)}) + "\n" for n in range(4)))
    tiny_directory(home / "cache" / "smollm2-135m")
    directory = home / "cache" / "smollm2-135m"
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))  # as the real one: rotary, no table
    files = {path.name: {"bytes": path.stat().st_size} for path in directory.iterdir()}
    (directory / "dynadapt.json").write_text(json.dumps({"format": 1, "name": "smollm2-135m", "files": files}))
    for place in ("path/to/hf-directory", "model"):
        shutil.copytree(directory, home / place)
    for name in ("code", "prose", "manual"):
        (home / "corpus" / name).mkdir(parents=True)
        for part, count in (("train", 12), ("heldout", 4)):
            lines = [json.dumps({"id": f"{name}-{part}-{n}", "text": text(600, 40 + n)}) for n in range(count)]
            (home / "corpus" / name / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    write_manifest(home / "corpus")
    (home / "posts.jsonl").write_text("".join(json.dumps({"body": text(200, 60 + n)}) + "\n" for n in range(4)))
    ignore = shutil.ignore_patterns("adapt", "dynamic_evaluation", "build", "*.o")
    shutil.copytree(ROOT / "examples", home / "examples", ignore=ignore)
    (home / "examples" / "cpp").mkdir(exist_ok=True)
    _gguf(home)
    if (compiled := Path.home() / ".cache" / "dynadapt" / "xla").is_dir():  # what dynadapt.jax compiles at its first call
        shutil.copytree(compiled, home / "cache" / "xla")
    return home


def _gguf(home: Path) -> None:
    import numpy
    from gguf_files import write_gguf

    import dynadapt
    from dynadapt.model import random_model

    model = dynadapt.load(home / "model")
    whole_blocks = dict(hidden_size=64, heads=4, kv_heads=2, head_dim=16, ffn_size=96)
    bpe = json.loads((home / "model" / "tokenizer.json").read_text())["model"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": sorted(bpe["vocab"], key=bpe["vocab"].get),
        "tokenizer.ggml.token_type": [1] * len(bpe["vocab"]),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in bpe["merges"]],
    }
    write_gguf(model, home / "model.gguf", metadata=metadata)
    write_gguf(random_model(replace(model.config, **whole_blocks)), home / "model-Q4_0.gguf", "Q4_0", metadata=metadata)
    numpy.array(model.tokenizer.encode((home / "a.txt").read_text())[:1200], dtype="int32").tofile(home / "tokens.bin")


@pytest.fixture(scope="session")
def shell(made, tmp_path_factory):
    """Environment in which `dynadapt` and `python` answer at once, and the cache holds the tiny model."""
    tools, path = tmp_path_factory.mktemp("bin"), str(tmp_path_factory.mktemp("s") / "s")
    server = Path(__file__).parents[1] / "command_server.py"
    for name in ("dynadapt", "python"):
        (tools / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S {server} {path} {name} "$@"\n')
        (tools / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "COLUMNS": "100",
        "DYNADAPT_CACHE": str(made / "cache"),
        "DYNADAPT_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    }
    process = subprocess.Popen([sys.executable, server, path], stdin=subprocess.PIPE, env=environment)
    for _ in range(600):
        if os.path.exists(path) or process.poll() is not None:
            break
        time.sleep(0.1)
    yield environment
    process.stdin.close()
    process.wait(30)


def reason(command: str) -> str | None:
    """Why a command is not run, or None."""
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, command)), None)


def parsed(words: list[str]) -> None:
    """Arguments of dynadapt through its own parser, and the refusals that come before any work."""
    from dynadapt.cli import parse
    from dynadapt.commands.settings import config_from

    try:
        arguments = parse(words)
    except SystemExit as end:
        assert not end.code, words
        return
    if arguments.command == "eval":
        config_from(arguments)


def checked_only(command: str) -> None:
    """What can be said of a command without running it."""
    words = [word for word in shlex.split(command, comments=True) if word != "..."]
    at = next((at for at, word in enumerate(words) if word == "dynadapt" and (at == 0 or words[at - 1] == "-m")), None)
    if at is not None:
        parsed(words[at + 1 :])
    elif words[0] == "python" and words[1].startswith("benchmarks/"):
        source = script_source(words[1])
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in source, (command, option)
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), command


def run_shell(block: Block, home: Path, environment: dict) -> None:
    for command in block.commands():
        if reason(command):
            checked_only(command)
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command], cwd=home, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, f"{block.page}:{block.line}: {command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


def run_c(block: Block, home: Path) -> None:
    """A whole program, compiled as examples/README.md says; a command below it may run it."""
    from dynadapt.interop.linking import FLAGS

    source = home / (block.file or "block.c")
    source.write_text(block.text)
    flags = (
        shlex.split(FLAGS["includes"][1]())
        + ["-Wall", "-Wextra", "-Werror", "-o", str(home / "block"), str(source)]
        + shlex.split(FLAGS["libs"][1]())
    )
    done = subprocess.run(
        [os.environ.get("CC", "gcc" if block.language == "c" else "g++"), *flags], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{block.page}:{block.line}:\n{done.stderr}"


def run_data(block: Block, home: Path) -> None:
    content = yaml.safe_load(block.text) if block.language == "yaml" else json.loads(block.text)
    assert content
    if block.file:
        (home / block.file).write_text(block.text)


@pytest.mark.parametrize("page", [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in PAGES if blocks(page)])
def test_the_blocks_of_a_page_run_as_they_stand(page, made, shell, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(made, home, ignore=shutil.ignore_patterns("cache"))
    for name in ("benchmarks", "csrc", "Makefile"):
        (home / name).symlink_to(ROOT / name)
    program = []
    for block in blocks(page):
        if block.language in SHELL:
            run_shell(block, home, shell)
        elif block.language == "python":
            compile(block.text, f"{page}:{block.line}", "exec")
            if any(words in block.text for words in NOT_RUN_PYTHON):
                continue
            program.append(block.text)  # a page is one session: later blocks have what earlier ones made
            (home / "page.py").write_text("\n".join(program))
            if block.file:
                (home / block.file).write_text(block.text)
            done = subprocess.run(["python", "page.py"], cwd=home, env=shell, capture_output=True, text=True, timeout=240)
            assert done.returncode == 0, f"{page}:{block.line}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        elif block.language in CODE:
            run_c(block, home)
        elif block.language in DATA:
            run_data(block, home)


def test_every_block_is_of_a_kind_that_is_run_or_is_output():
    for page in PAGES:
        for block in blocks(page):
            assert block.language in (*SHELL, *CODE, *DATA, *OUTPUT), f"{page}:{block.line}: ```{block.language}"
            if block.language in OUTPUT:
                assert not re.search(r"(?m)^\$? ?(dynadapt|python|make|pip) [a-z-]", block.text), (
                    f"{page}:{block.line}: commands in a block of output"
                )
            if block.language == "console":
                assert block.commands(), f"{page}:{block.line}: no command in it"


def test_every_rule_of_what_is_not_run_is_needed():
    commands = [command for page in PAGES for block in blocks(page) if block.language in SHELL for command in block.commands()]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, command) for command in commands), pattern
    python = [block.text for page in PAGES for block in blocks(page) if block.language == "python"]
    for words in NOT_RUN_PYTHON:
        assert any(words in text for text in python), words


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_prose_are_accepted_by_the_parser(page):
    for command in re.findall(r"`(dynadapt [a-z][^`]*)`", " ".join(prose(page).split())):
        words = shlex.split(command)[1:]
        if "..." in command or "<" in command or words[-1].startswith("--"):  # an option named, its value left to the reader
            known = {word for word in words if word.startswith("--")}
            assert known <= set(re.findall(r"--[a-z-]+", _help(words))), command
        elif any(word.startswith("--") for word in words):
            parsed(words)


def _help(words: list[str]) -> str:
    from dynadapt.cli import COMMANDS, command_parser

    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    return command_parser(name).format_help()

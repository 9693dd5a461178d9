"""The command line answers at once: help, typos and refusals come without torch, and say where to look."""

import json
import os
import subprocess
import sys
import time
import warnings

import pytest
from command_line import call

from dynadapt.cli import COMMANDS, FAMILIES, GROUPS, command_parser

WITHOUT_TORCH = """
import sys
sys.argv = {argv}
from dynadapt.cli import main
try:
    main()
except SystemExit as end:
    status = end.code or 0
import json
print(json.dumps([status, sorted({{"torch", "transformers", "matplotlib", "scipy"}} & set(sys.modules))]))
"""


def start(*words):
    """(exit status, slow modules imported, output, errors) of a command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH.format(argv=["dynadapt", *words])], capture_output=True, text=True, timeout=60
    )
    *output, last = done.stdout.splitlines()
    status, slow = json.loads(last)
    return status, slow, "\n".join(output), done.stderr


@pytest.mark.parametrize(
    "words",
    [[], ["--help"], ["--version"], ["evla"], ["icl", "--help"], ["bench", "setp"], *([name, "--help"] for name in COMMANDS)],
    ids=" ".join,
)
def test_help_and_typos_need_no_torch(words):
    status, slow, output, errors = start(*(part for word in words for part in word.split(" ")))
    assert not slow
    assert status == (0 if "--help" in words or "--version" in words else 2)
    assert bool(output) != bool(errors)


def test_help_takes_less_than_a_third_of_a_second():
    """The least of five runs: what it takes on a quiet machine."""

    def once() -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "dynadapt", "--help"], capture_output=True, timeout=60, check=True)
        return time.perf_counter() - begun

    assert min(once() for _ in range(5)) < 0.3


@pytest.mark.parametrize(
    "words, message",
    [
        (["evla"], "unknown command 'evla'; did you mean eval? (see dynadapt --help)"),
        (["frobnicate"], "unknown command 'frobnicate'; there are eval, "),
        ([], "no command given; there are eval, "),
        (["icl", "trian"], "unknown command 'trian'; did you mean train? (see dynadapt icl --help)"),
        (["bench"], "no command given; there are step, score, products, delta, icl (see dynadapt bench --help)"),
        (["eval", "--txet", "a.txt"], "unrecognized arguments: --txet a.txt; did you mean --text? (see dynadapt eval --help)"),
        (["eval", "--adapt", "lroa"], "did you mean lora? (see dynadapt eval --help)"),
        (["bench", "step", "--agianst", "x"], "did you mean --against? (see dynadapt bench step --help)"),
        (["eval", "--rank", "many"], "(see dynadapt eval --help)"),
        (["eval", "--memory", "8", "--context", "8"], "memory 8 and context 8"),
        (["eval", "--text", "/nowhere.txt"], "no such file"),
    ],
)
def test_a_mistake_gets_one_line_that_helps(words, message, capsys):
    assert call(*words) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.startswith("dynadapt: error: ") and captured.err.count("\n") == 1
    assert message in captured.err


REFUSED = {
    "eval --memory 8 --context 8": "memory 8 and context 8",
    "eval": "text: none given",
    "eval --text /nowhere.txt": "text '/nowhere.txt': no such file",
    "eval --text builtin:python-reference --model smollm-135m": "'smollm-135m' does not exist; accepted: smollm2-135m, gemma3-270m, a model directory, ",
    "eval --text builtin:python-reference --log wnadb": "log 'wnadb': give wandb, trackio, tensorboard",
    "explain --model nowhere": "model = 'nowhere' does not exist",
    "diagnose": "give one of them",
    "diagnose --text /nowhere.txt --after x": "text '/nowhere.txt': no such file",
    "diagnose --advise /nowhere.txt": "text '/nowhere.txt': no such file",
    "diagnose --text builtin:python-reference --after nowhere": "model = 'nowhere' does not exist",
    "diagnose --advise builtin:python-reference --after x": "after 'x': not with --advise",
    "export /nowhere --out x": "/nowhere: no such run directory",
    "compare /nowhere /nowhere": "/nowhere: no such run directory",
    "publish /nowhere --to x --name x": "/nowhere: no such directory; give a run or a PEFT adapter",
    "sweep /nowhere.yaml": "/nowhere.yaml: no such file",
    "fetch smollm-135m": "model 'smollm-135m' is not known; accepted: smollm2-135m, gemma3-270m; did you mean smollm2-135m?",
    "icl train dmeo": "preset 'dmeo': give one of demo, ",
    "icl train demo --classes dense-liner": "function class 'dense_liner'",
    "icl train demo --lr -1": "lr -1.0: give a number above 0",
    "icl eval /nowhere": "/nowhere/config.json: no such file",
    "icl figures /nowhere --out x": "/nowhere: no such file",
    "bench step --against peft": "--against peft: expected some of",
    "bench step --model nowhere": "model = 'nowhere' does not exist",
    "bench step --dtype bf17": "--dtype bf17: expected some of bf16, fp32, with commas between (or all)",
    "bench score --against llama": "--against llama: expected some of llama.cpp, torch-eager, torch-compile, torch",
    "bench score --against llama.cpp": "--model smollm2-135m: it reads a .gguf file",
    "bench products --isa avx3": "--isa avx3: expected some of avx2",
    "bench delta --value-heads 3": "--value-heads 3: expected a multiple of --key-heads 16",
    "bench icl dmeo": "preset 'dmeo'",
    "profile --op norm_forward --iters 0": "--iters 0: expected at least 1",
    "reweight train --out x": "domains: none are given",
    "reweight train --out x --domains a=/nowhere": "domain 'a': /nowhere: no such file or directory",
    "reweight train --out x --domains a=/nowhere --mixer nothing": "invalid choice: 'nothing'",
    "reweight fit --out /nowhere": "tokens: none given",
    "reweight plot --out /nowhere": "/nowhere: no such run directory",
    "corpus build --domains nothing --out x": "unknown domain 'nothing'",
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_refused_setting_or_name_needs_no_torch(words):
    """And says nothing but that: no progress line before it."""
    status, slow, output, errors = start(*words.split())
    assert (status, slow, output) == (2, [], "")
    assert errors.startswith("dynadapt: error: ") and errors.count("\n") == 1 and REFUSED[words] in errors


@pytest.mark.parametrize(
    "words, said",
    [
        ("eval --model MODEL --text TEXT --out OUT", "loading MODEL, to score TEXT"),
        ("diagnose --advise TEXT --model MODEL --out OUT", "loading MODEL"),
        ("reweight train --domains a=TEXT --model MODEL --out OUT", "training MODEL on a, mixer stratified, 100 steps: loading it"),
        ("icl train demo --out OUT", "training a transformer on dense-linear, 25,000 steps: making the model"),
        ("sweep SWEEP", "[1/1] base"),
        ("bench step --model MODEL", "loading MODEL"),
        ("bench icl demo", "float64 truth: transformers"),
        ("profile --op norm_forward", "preparing op norm_forward, 3 calls ahead of 20 that are measured"),
    ],
)
def test_a_command_says_at_once_what_it_does(tmp_path, words, said):
    """Before torch is imported: here it can't be, and the line is there all the same."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is asked for')")
    (tmp_path / "model").mkdir()
    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "sweep.yaml").write_text(f"out: {tmp_path / 'out'}\ncells: [{{}}]\nbase: {{text: {tmp_path / 'a.txt'}}}\n")
    places = {"MODEL": tmp_path / "model", "TEXT": tmp_path / "a.txt", "OUT": tmp_path / "out", "SWEEP": tmp_path / "sweep.yaml"}
    for name, place in places.items():
        words, said = words.replace(name, str(place)), said.replace(name, str(place))
    done = subprocess.run(
        [sys.executable, "-m", "dynadapt", *words.split()],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert said in [text.splitlines()[0] for text in (done.stdout, done.stderr) if text]
    assert "torch is asked for" in done.stderr


def test_a_warning_is_a_line_without_source(capsys, monkeypatch):
    def warn(arguments):
        warnings.warn_explicit("an old\n  name", FutureWarning, "/some/library.py", 7)
        return 0

    monkeypatch.setattr(COMMANDS["info"].load(), "run", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert call("info") == 0
    assert capsys.readouterr().err == "dynadapt: warning: an old name\n"


def test_the_list_of_commands_is_the_table(capsys):
    assert call("--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for title, group in GROUPS.items():
        assert f"{title}:" in text
        for name, command in group.items():
            first = name.partition(" ")[0]
            assert FAMILIES.get(first, command.text) in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_what_the_table_promises(name):
    module = COMMANDS[name].load()
    assert callable(module.run) and (module.EXAMPLES is None or name.split()[0] in module.EXAMPLES or "presets" in module.EXAMPLES)
    assert command_parser(name).prog == f"dynadapt {name}"


def test_names_that_help_shows_are_those_that_the_code_knows():
    from dynadapt.bench.plan import GPUS
    from dynadapt.bench.profile.measure import Runs
    from dynadapt.commands import early, plan, profile
    from dynadapt.engine import DTYPES
    from dynadapt.experiments.icl import config as icl
    from dynadapt.model.fetch import KNOWN
    from dynadapt.model.geometries import GEOMETRIES

    assert tuple(KNOWN) == early.MODELS and tuple(DTYPES) == icl.DTYPES
    assert tuple(GEOMETRIES) == plan.MODELS and plan.GPUS == GPUS
    assert (Runs.warmup, Runs.iters) == (profile.Measured.warmup, profile.Measured.iters)

"""The command line answers at once: help, typos and refusals come without torch, and say where to look."""
import json
import subprocess
import sys
import time

import pytest

from dynadapt.cli import COMMANDS, FAMILIES, GROUPS, command_parser, main

NEEDS_TORCH: set[str] = set()
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
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH.format(argv=["dynadapt", *words])], capture_output=True, text=True, timeout=60)
    *output, last = done.stdout.splitlines()
    status, slow = json.loads(last)
    return status, slow, "\n".join(output), done.stderr


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["evla"], ["icl", "--help"], ["bench", "setp"],
                                   *([name, "--help"] for name in COMMANDS if name not in NEEDS_TORCH)], ids=" ".join)
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


@pytest.mark.parametrize("words, message", [
    (["evla"], "unknown command 'evla'; did you mean eval? (see dynadapt --help)"),
    (["frobnicate"], "unknown command 'frobnicate'; there are eval, "),
    ([], "no command given; there are eval, "),
    (["icl", "trian"], "unknown command 'trian'; did you mean train? (see dynadapt icl --help)"),
    (["bench"], "no command given; there are step, icl (see dynadapt bench --help)"),
    (["eval", "--txet", "a.txt"], "unrecognized arguments: --txet a.txt; did you mean --text? (see dynadapt eval --help)"),
    (["eval", "--adapt", "lroa"], "did you mean lora? (see dynadapt eval --help)"),
    (["bench", "step", "--agianst", "x"], "did you mean --against? (see dynadapt bench step --help)"),
    (["eval", "--rank", "many"], "(see dynadapt eval --help)"),
    (["eval", "--memory", "8", "--context", "8"], "memory 8 and context 8"),
    (["eval", "--text", "/nowhere.txt"], "no such file"),
])
def test_a_mistake_gets_one_line_that_helps(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    captured = capsys.readouterr()
    assert end.value.code == 2 and not captured.out
    assert captured.err.startswith("dynadapt: error: ") and captured.err.count("\n") == 1
    assert message in captured.err


def test_a_refused_setting_or_text_needs_no_torch():
    assert start("eval", "--memory", "8", "--context", "8")[:2] == (2, [])
    assert start("eval", "--text", "/nowhere.txt")[:2] == (2, [])


def test_the_list_of_commands_is_the_table(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
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
    from dynadapt.commands import plan, profile
    from dynadapt.model.geometries import GEOMETRIES
    from dynadapt.plan import GPUS
    from dynadapt.profiling.cases import OPS
    from dynadapt.profiling.measure import Runs
    assert plan.MODELS == tuple(GEOMETRIES) and plan.GPUS == GPUS
    assert profile.OPS == tuple(OPS) and (profile.WARMUP, profile.ITERS) == (Runs.warmup, Runs.iters)

"""The command line as it is promised: an option, a default, a choice or a field of a configuration changes where options.txt does.

    python tests/commands/test_options.py > tests/commands/options.txt

writes what there is now; its difference is then reviewed with the change that made it.
"""

import argparse
import re
import warnings
from contextlib import nullcontext
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from dynadapt.adapt.optimizers import OPTIMIZERS, WITH_STATISTICS
from dynadapt.cli import COMMANDS, command_parser, parse, top_parser
from dynadapt.common.errors import ConfigError
from dynadapt.common.options import WORDS, settings_of
from dynadapt.experiments.config import LEARNING_RATES, EvalConfig
from dynadapt.experiments.diagnose.config import DiagnoseConfig
from dynadapt.experiments.icl.config import TrainConfig
from dynadapt.experiments.reweight.config import ReweightConfig
from dynadapt.experiments.reweight.search_config import SearchConfig

CONFIGURATIONS = (EvalConfig, ReweightConfig, SearchConfig, TrainConfig, DiagnoseConfig)


def option(action: argparse.Action) -> str:
    """A line of an option: its names, what follows it, and its default, which of a setting stands in its help alone."""
    words = ", ".join(action.option_strings) or "(in place)"
    if action.nargs != 0:
        value = f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.metavar or action.dest
        words += f" {value}" + {"+": " ...", "*": " [...]", "?": "?"}.get(action.nargs, f" x{action.nargs}" if action.nargs else "")
    said = re.search(r"\(default: ([^()]*)\)$", action.help or "")
    if action.default is argparse.SUPPRESS:
        return words + (f" = {said[1]}" if said else "")
    return words + ("" if action.default in (None, False, [], ()) else f" = {action.default!r}") + (" required" if action.required else "")


def listing() -> str:
    """Every command with its options, then every configuration with its fields."""
    lines = []
    for name, parser in {"dynadapt": top_parser(), **{f"dynadapt {name}": command_parser(name) for name in COMMANDS}}.items():
        lines += ["", name, *(f"  {option(action)}" for action in parser._actions)]
    for kind in CONFIGURATIONS:
        lines += ["", kind.__name__]
        for field in fields(kind):
            said = settings_of(kind).get(field.name)
            default = "" if field.default is MISSING else f" = {field.default!r}"
            lines.append(f"  {field.name}: {field.type}{default}" + (f", {said.accepted}" if said and said.read is None else ""))
    return "\n".join(lines[1:]) + "\n"


def test_no_option_or_field_changes_unnoticed():
    assert listing() == Path(__file__).with_name("options.txt").read_text()


WRONG = {
    bool: ("yes", 1),
    int: (True, 1.5, "2", -1),
    float: (True, "0.5", -1.0, float("nan"), float("inf"), 1e60),
    str: ("", 5),
    WORDS: (5,),
}
LEAST = {ReweightConfig: {"domains": {"a": "x"}}, DiagnoseConfig: {"eval": EvalConfig(text=("a",)), "after": "b"}}


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_every_field_refuses_what_it_does_not_accept(kind):
    """In the same words, whichever the configuration: the field, the value, and what is accepted."""
    for name, said in settings_of(kind).items():
        if said.read is not None:
            continue
        bounds = [value for value in (said.above, said.most and said.most + 1) if value is not None]
        for value in (*WRONG[said.kind], *bounds, *(["nonsense"] if said.choices else []), *([] if said.optional else [None])):
            if said.kind is float and value == -1.0 and said.least is said.above is None:
                continue
            with pytest.raises(ConfigError) as refused:
                kind(**{**LEAST.get(kind, {}), name: value})
            assert str(refused.value) == f"{name} {value!r}: give {said.accepted}"


@pytest.mark.parametrize(
    "words, said",
    [
        (
            "eval --text TEXT --adapt none --rank 16 --lr 1",
            ["rank 16 has no effect with adapt 'none'", "lr 1.0 has no effect with adapt 'none'"],
        ),
        ("eval --text TEXT --memory 0 --sinks 2", ["sinks 2 has no effect with memory 0"]),
        ("eval --text TEXT --context 8 --refresh keep", ["refresh 'keep' has no effect with context 8"]),
        (
            "eval --text TEXT --density 0.2 --statistics x",
            ["density 0.2 has no effect with adapt 'lora'", "statistics 'x' has no effect with optimizer 'adam' and select 'gradient'"],
        ),
        ("eval --text TEXT --adapt rows --select contrast --statistics x", []),
        ("eval --text TEXT --adapt full --optimizer rms --statistics x", []),
        ("eval --text TEXT --select contrast", ["select 'contrast' has no effect with adapt 'lora'"]),
        ("eval --text TEXT --adapt none --rank 16 --quiet", []),
        ("eval --text TEXT --adapt rows --sinks 2 --density 0.5 --lr 0 --seed 1", []),
        ("reweight train --out OUT --domains a=TEXT --rank 3 --steps 1", ["rank 3 has no effect with adapt 'full'"]),
        ("reweight train --out OUT --domains a=TEXT --powersgd-rank 3", ["powersgd_rank 3 has no effect with compress 'none'"]),
        (
            "icl train demo --out OUT --per batch --dims-every 3",
            ["per 'batch' has no effect with classes ('dense-linear',)", "dims_every 3 has no effect with dims_start 0"],
        ),
        ("icl train garg-small --out OUT --dims-every 3 --points-step 3", []),
        (
            "diagnose --text TEXT --after MODEL --rank 3 --segment 9",
            ["rank 3 has no effect with after 'MODEL', since nothing is learned here"],
        ),
    ],
)
def test_a_setting_that_changes_nothing_is_said_in_a_note(words, said, tmp_path, monkeypatch):
    """Where it was given; a default is never meant."""
    places = {"MODEL": str(tmp_path / "model"), "TEXT": str(tmp_path / "a.txt"), "OUT": str(tmp_path / "out")}
    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "model").mkdir()
    for place, name in places.items():
        words, said = words.replace(place, name), [line.replace(place, name) for line in said]
    arguments = parse(words.split())
    module = COMMANDS[arguments.command].load()
    monkeypatch.setattr(module, "say", lambda text: (_ for _ in ()).throw(KeyboardInterrupt))  # the work would begin here
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        with pytest.raises(KeyboardInterrupt) if "--quiet" not in words else nullcontext():
            module.config_from(arguments) if "--quiet" in words else module.run(arguments)
    assert [str(line.message) for line in notes] == said


def every_choice():
    for name in COMMANDS:
        for action in command_parser(name)._actions:
            if action.choices and action.option_strings:
                yield pytest.param(name, action, id=f"{name} {action.option_strings[-1]}")


@pytest.mark.parametrize("name,action", list(every_choice()))
def test_what_is_suggested_is_another_word_that_is_accepted(name, action, capsys):
    """Of every choice of the command line: for its parts, and for it with a letter missing."""
    accepted = set(map(str, action.choices))
    near = {part for choice in accepted for part in (*re.split(r"[^\w-]", choice), choice[:-1], choice[1:], choice + "s")} - accepted - {""}
    suggested = 0
    for word in sorted(word for word in near if not word.startswith("-")):
        with pytest.raises(argparse.ArgumentError) as refused:
            command_parser(name)._check_value(action, word)
        assert f"invalid choice: {word!r} (choose from " in str(refused.value)
        if said := re.search("did you mean (.*)\\?$", str(refused.value)):
            assert said[1] in accepted and said[1] != word
            suggested += 1
    assert suggested or max(map(len, accepted)) < 4


def test_choices_with_commas_are_told_apart(capsys):
    with pytest.raises(SystemExit):
        parse(["eval", "--text", "a.txt", "--levels", "fast"])
    assert "invalid choice: 'fast' (choose from 'fast,slow', 'slow') (see dynadapt eval --help)" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="^levels 'fast': give one of 'fast,slow', 'slow'$"):
        EvalConfig(text=("a.txt",), levels="fast")


def test_every_optimizer_has_usual_rates():
    """Of whatever it can learn: an adapter has no statistics at its start."""
    for kind, optimizer in OPTIMIZERS.items():
        assert set(optimizer.rates) == {"rows", "full", *(() if kind in WITH_STATISTICS else ("lora",))}, kind
        assert {LEARNING_RATES[adapt][kind] for adapt in optimizer.rates} == set(optimizer.rates.values())


if __name__ == "__main__":
    print(listing(), end="")

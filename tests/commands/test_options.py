"""The command line as it is promised: an option, a default, a choice or a field of a configuration changes where options.txt does.

    python tests/commands/test_options.py > tests/commands/options.txt

writes what there is now; its difference is then reviewed with the change that made it.
"""

import argparse
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from dynadapt.cli import COMMANDS, command_parser, top_parser
from dynadapt.common.errors import ConfigError
from dynadapt.common.options import WORDS, settings_of
from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.diagnose.config import DiagnoseConfig
from dynadapt.experiments.icl.config import TrainConfig
from dynadapt.experiments.reweight.config import ReweightConfig

CONFIGURATIONS = (EvalConfig, ReweightConfig, TrainConfig, DiagnoseConfig)


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


if __name__ == "__main__":
    print(listing(), end="")

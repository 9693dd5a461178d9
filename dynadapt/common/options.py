"""A configuration's fields say what they are: help, choices and bounds stand beside the default.

From such a frozen dataclass `add_settings` makes the options of a command line, and `check` holds its values to what the fields say,
wherever they come from: a command line, a call, a saved config.json, a sweep file. Every refusal reads "NAME VALUE: give WHAT".
"""

from __future__ import annotations

import argparse
import ctypes
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from numbers import Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from .errors import ConfigError, meant
from .notes import note

WORDS = tuple[str, ...]
NOUNS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name", WORDS: "a list of names"}
METAVARS = {int: "N", float: "X"}


@dataclass(frozen=True)
class Setting:
    """What a field says of itself beside its type and default.

    help      of its option; "": it has none.
    choices   the words that are accepted.
    least, above, most   bounds of a number: from least, above `above`, up to most.
    what, why words before and after the bounds in a refusal, in place of the type's own.
    read      a value in another of its forms, such as the command line's words, to what the field holds; raises ConfigError.
    needs     settings by name, and of each what makes this one count: some of its values, or a function of it.
    either    the same of settings of which one is enough.
    option, metavar, nargs   as argparse takes them, where the name and the type don't give them.
    """

    help: str = ""
    choices: tuple[str, ...] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    what: str = ""
    why: str = ""
    read: Callable[[Any], Any] | None = None
    needs: Mapping[str, Any] = field(default_factory=dict)
    either: Mapping[str, Any] = field(default_factory=dict)
    option: str = ""
    metavar: str | None = None
    nargs: str | None = None
    # what the field itself says
    name: str = ""
    default: Any = None
    kind: Any = None
    optional: bool = False

    @property
    def accepted(self) -> str:
        if self.choices:
            apart = repr if any("," in choice for choice in self.choices) else str
            return f"one of {', '.join(map(apart, self.choices))}"
        bounds = {
            (True, False, True): f" from {self.least} to {self.most}",
            (True, False, False): f" of at least {self.least}",
            (False, True, True): f" above {self.above} and at most {self.most}",
            (False, True, False): f" above {self.above}",
        }.get((self.least is not None, self.above is not None, self.most is not None), "")
        return (self.what or NOUNS[self.kind]) + bounds + self.why

    def checked(self, value, error: type[ConfigError] = ConfigError):
        """The value as the field holds it; an error that names it otherwise."""
        if value is None and self.optional:
            return None
        if self.read is not None:
            return self.read(value)
        if self.kind == WORDS:
            value = (value,) if isinstance(value, str) else value
            fits = isinstance(value, (tuple, list))
            value = tuple(map(str, value)) if fits else value
        elif self.choices:
            fits = isinstance(value, str) and value in self.choices
        elif self.kind is bool:
            fits = isinstance(value, bool)
        elif self.kind is str:
            fits = isinstance(value, str) and value != ""
        else:
            fits = isinstance(value, int if self.kind is int else Real) and not isinstance(value, bool) and self._within(value)
        if not fits:
            raise error(f"{self.name} {value!r}: give {self.accepted}")
        return value

    def _within(self, value) -> bool:
        """Whether a number is finite and within the bounds, and still is as the float32 that kernels take."""
        try:
            numbers = (value,) if self.kind is int else (value, ctypes.c_float(float(value)).value)
        except OverflowError:
            return False
        low = lambda x: (self.least is None or x >= self.least) and (self.above is None or x > self.above)  # noqa: E731
        return all(math.isfinite(x) and low(x) and (self.most is None or x <= self.most) for x in numbers)


def setting(default=MISSING, help: str = "", *, factory=MISSING, **said) -> Any:
    """A field of a configuration, with its default (or the `factory` of one), its help and what else `Setting` has."""
    return field(default=default, default_factory=factory, metadata={"setting": Setting(help, **said)})


def like(config: type, name: str, default=MISSING, **otherwise) -> Any:
    """A field as another configuration has it, but for its default or what else is said `otherwise`."""
    found = settings_of(config)[name]
    said = replace(found, **otherwise)
    return field(default=found.default if default is MISSING else default, metadata={"setting": said})


@cache
def settings_of(config: type) -> dict[str, Setting]:
    """The settings of a configuration's class by name, each with its type and default."""
    hints, found = get_type_hints(config), {}
    for each in fields(config):
        if said := each.metadata.get("setting"):
            hint = hints[each.name]
            parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            found[each.name] = replace(
                said,
                name=each.name,
                default=None if each.default is MISSING else each.default,
                kind=next(part for part in parts if part is not NoneType),
                optional=NoneType in parts,
            )
    return found


def check(config, error: type[ConfigError] = ConfigError) -> None:
    """Holds a configuration's values to what its fields say, for its __post_init__; values in another form get their own.

    Raises:
        ConfigError: (or `error`) naming the first setting that does not fit, its value and what is accepted.
    """
    for name, said in settings_of(config.__class__).items():
        object.__setattr__(config, name, said.checked(getattr(config, name), error))


def check_names(config: type, names: Iterable[str], error: type[ConfigError] = ConfigError, without: Collection[str] = ()) -> None:
    """An error for a name that is no field of a configuration, or one of those `without`."""
    known = sorted(each.name for each in fields(config) if each.name not in without)
    for name in names:
        if name not in known:
            raise error(f"unknown setting {name!r}{meant(str(name), known)}; there are {', '.join(known)}")


def add_settings(parser, config: type, only: Collection[str] | None = None, say_defaults: bool = True, **defaults) -> None:
    """An option for each setting that has help (of those in `only`), in the order of the fields, for `given` to read.

    defaults: a command's own, which its help says in place of the field's. What a command line leaves out is not in its namespace.
    """
    for name, said in settings_of(config).items():
        if not said.help or only is not None and name not in only:
            continue
        text = said.help.partition(" (default: ")[0] if name in defaults else said.help
        default = defaults.get(name, said.default)
        how: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
        if said.kind is bool:
            how["action"] = "store_true"
        else:
            how["type"] = said.kind if said.kind in (int, float) else str
            how["nargs"] = "+" if said.kind == WORDS else said.nargs
            how["choices"] = said.choices or None
            how["metavar"] = said.metavar or (None if said.choices else METAVARS.get(said.kind, "NAME"))
            if say_defaults and default not in (None, (), ""):
                text += f" (default: {default})"
        parser.add_argument(said.option or "--" + name.replace("_", "-"), help=text, **how)


def given(config: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that a command line gave, as the fields hold them."""
    settings = {name: said for name, said in settings_of(config).items() if said.help and hasattr(arguments, name)}
    words = {name: getattr(arguments, name) for name in settings}
    return {name: said.read(words[name]) if said.read else words[name] for name, said in settings.items()}


def idle(config, names: Iterable[str] | None = None) -> dict[str, str]:
    """The settings (of `names`) that change nothing, each with the other setting that makes it so: {"rank": "adapt 'none'"}."""
    said = settings_of(config.__class__)
    found: dict[str, str] = {}

    def without(needs: Mapping[str, Any]) -> list[str]:
        """Those that don't make it count; a setting of another command that this one shares is not asked."""
        values = {other: getattr(config, other) for other in needs if other in said}
        counts = lambda other, value: needs[other](value) if callable(needs[other]) else value in needs[other]  # noqa: E731
        return [f"{other} {value!r}" for other, value in values.items() if not counts(other, value)]

    for name in said if names is None else names:
        if name not in said:
            continue
        lacking, enough = without(said[name].needs), said[name].either
        if not lacking and enough and len(none := without(enough)) == len(enough):
            lacking = [" and ".join(none)]
        if lacking:
            found[name] = lacking[0]
    return found


def note_idle(config, names: Iterable[str]) -> None:
    """A note for those of the settings `names`, which somebody gave, that change nothing."""
    for name, reason in idle(config, names).items():
        note(f"{name} {getattr(config, name)!r} has no effect with {reason}")

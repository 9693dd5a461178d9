"""What users may rely on, as text: public_names.txt. `python tests/project/public_names.py` writes it anew; the change is then reviewed
like any other, and a name that goes or a call that changes follows the rule for deprecation in CONTRIBUTING.md."""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = Path(__file__).with_suffix(".txt")
# Modules whose `__all__` is public. The first that has an object describes it; the others name it.
MODULES = (
    "dynadapt",
    "dynadapt.adapt",
    "dynadapt.callbacks",
    "dynadapt.distributed",
    "dynadapt.engine",
    "dynadapt.experiments.compare",
    "dynadapt.experiments.config",
    "dynadapt.experiments.dyneval",
    "dynadapt.experiments.icl",
    "dynadapt.experiments.mixers",
    "dynadapt.experiments.reweight",
    "dynadapt.experiments.tune",
    "dynadapt.jax",
    "dynadapt.lm_eval",
    "dynadapt.memory",
    "dynadapt.model",
    "dynadapt.nn",
    "dynadapt.numpy",
    "dynadapt.patches",
    "dynadapt.session",
    "dynadapt.text",
    "dynadapt.torch_ops",
)


def parameters(function) -> str:
    """Names, kinds and defaults, without annotations; a default that has no short form is `...`."""
    shown = []
    for parameter in inspect.signature(function).parameters.values():
        default = parameter.default
        if default is not parameter.empty and not isinstance(default, (bool, int, float, str, tuple, type(None))):
            default = ...
        shown.append(parameter.replace(annotation=parameter.empty, default=default))
    return re.sub(r"\bEllipsis\b", "...", str(inspect.Signature(shown)))


def lines_of(name: str, value) -> list[str]:
    """A function, a class with the public methods and properties that it adds to its bases and its arguments, a module, or a value."""
    if inspect.ismodule(value):
        return [f"module {name}"]
    if not inspect.isclass(value):
        return [f"{name}{parameters(value)}" if inspect.isroutine(value) else name]
    if issubclass(value, BaseException):
        return [f"class {name}"]
    lines = [f"class {name}{parameters(value)}"]
    known = {*inspect.signature(value).parameters, *(attribute for base in value.__mro__[1:] for attribute in vars(base))}
    for attribute, held in sorted(vars(value).items()):
        if not attribute.startswith("_") and attribute not in known:
            function = getattr(held, "__func__", held)
            lines.append(f"    {attribute}{parameters(function)}" if inspect.isfunction(function) else f"    {attribute}")
    return lines


def python_names() -> list[str]:
    lines, described = [], {}
    for path in MODULES:
        module = import_module(path)
        lines += ["", f"[{path}]"]
        for name in sorted(getattr(module, "__all__", None) or ["EvalConfig"]):
            value = getattr(module, name)
            first = described.setdefault(id(value), f"{path}.{name}") if callable(value) else f"{path}.{name}"
            lines += lines_of(name, value) if first == f"{path}.{name}" else [f"{name} is {first}"]
    return lines


def torch_names() -> list[str]:
    from dynadapt.torch_ops import SCHEMAS

    return ["", "[torch.ops.dynadapt]", *(SCHEMAS[name] for name in sorted(SCHEMAS))]


def c_names() -> list[str]:
    text = (ROOT / "csrc" / "include" / "dynadapt" / "dynadapt.h").read_text("utf-8")
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.S)
    found = re.findall(r"DYNADAPT_API ([^;{]*\));", text) + re.findall(r"(typedef (?:struct|enum) (?:\w+ )?\{.*?\} \w+);", text, re.S)
    return ["", "[dynadapt/dynadapt.h]", *sorted(" ".join(each.split()) for each in found)]


def described() -> str:
    return "\n".join([*__doc__.splitlines(), *python_names(), *torch_names(), *c_names()]) + "\n"


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # not this folder
    NAMES.write_text(described(), "utf-8")

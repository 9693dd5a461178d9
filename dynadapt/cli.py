"""The command line: a table of commands. `dynadapt COMMAND --help` explains each one with examples.

Only the module of the command that was asked for is imported, so help, typos and refusals answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from dataclasses import dataclass
from importlib import import_module

from dynadapt import __version__

from .commands import standard_streams as streams
from .commands.parsing import Parser
from .common.errors import ConfigError, meant
from .interop import linking


@dataclass(frozen=True)
class Command:
    """A row of the table: `module` under dynadapt.commands gives examples, options and `run`; `text` stands in the list."""

    module: str
    text: str

    def load(self):
        return import_module(f"dynadapt.commands.{self.module}")


# Title of the group in --help -> command -> row. A command of two words stands under its first word, which may be a command by itself.
GROUPS: dict[str, dict[str, Command]] = {
    "score and adapt": {
        "eval": Command("evaluate", "score a text, learning from each segment right after scoring it"),
        "compare": Command("compare", "show where in a text one run did better than another, token by token, as a page"),
        "tune": Command("tune", "find out which setting to score a text with, within some minutes, and what it gains"),
        "sweep": Command("sweep", "run a grid of evaluations"),
        "runs": Command("runs", "list the runs that are there: what each did, how far it is, what came out"),
        "runs diff": Command("runs_diff", "show which settings, inputs, machine and results differ between two runs"),
        "runs prune": Command("runs_prune", "remove runs in which nothing was scored, and checkpoints that nothing reads"),
        "audit": Command("audit", "check that scores were made before the learning: of a run, or of any program"),
        "plot": Command("plot", "draw pictures from runs' files, of each kind its own"),
        "demo": Command("demo", "compare what learns and what remembers, on a text that needs no download"),
        "diagnose": Command("diagnose", "compare two models on held-out text: where the change comes from, and whether adapting helps"),
    },
    "models, texts, adapters": {
        "fetch": Command("fetch", "get a model into the cache"),
        "corpus": Command("corpus", "make a corpus of several domains from Debian packages and this machine's own files"),
        "export": Command("export", "write the adapter that a LoRA run ended with as a PEFT directory, or the model of a reweighting run"),
        "publish": Command("publish", "write an adapter as a version of its own and have an inference server load it"),
        "patch make": Command("patch_make", "write what changed between two states of bf16 weights as a file"),
        "patch apply": Command("patch_apply", "write a copy of a model's files with patches applied, to the bit"),
        "patch show": Command("patch_show", "print what patches hold"),
    },
    "training experiments": {
        "reweight": Command("reweight", "train on several domains whose weights a mixer moves"),
        "reweight search": Command("reweight_search", "find the weights to train with, from probes interpolated or from small runs"),
        "reweight compare": Command("reweight_compare", "compare reweighting runs: held-out losses by domain, paired, with intervals"),
        "icl train": Command("icl_train", "train a transformer on prompts of (x, f(x)) pairs"),
        "icl eval": Command("icl_eval", "measure trained models and baselines on the same prompts"),
        "icl figures": Command("icl_figures", "draw what `icl eval` found, from its files alone"),
    },
    "this machine, and others": {
        "info": Command(
            "info", "print version, instruction set, threads, OpenMP runtimes, backends and cached models: put it into a bug report"
        ),
        "explain": Command("explain", "print which implementation each operation uses, and why"),
        "plan": Command("plan", "predict time, memory and the binding limit of a step, for a machine that need not be at hand"),
        "profile": Command("profile", "run one op or one step, checked, for a profiler or by itself"),
        "bench step": Command("bench_step", "time one adapt step against transformers + peft"),
        "bench score": Command("bench_score", "time scoring a text, nothing learning, against llama.cpp and transformers"),
        "bench products": Command("bench_products", "time a step's matrix products by themselves, against MKL and oneDNN"),
        "bench delta": Command("bench_delta", "time a layer of the gated delta rule against transformers' form of it"),
        "bench icl": Command("bench_icl", "time one training step of a preset against the same model in Hugging Face's GPT-2"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}
FAMILIES = {
    "icl": "in-context learning of function classes",
    "patch": "updates of bf16 weights as files of what changed",
    "bench": "a step, or scoring, side by side with the same in other libraries",
}
DESCRIPTION = "Score a text with a language model and learn from each segment right after scoring it."
START = "start with: dynadapt fetch smollm2-135m, then dynadapt eval --text builtin:python-reference --tokens 8192"


def _listing(names: dict[str, str]) -> str:
    """Names with their texts, wrapped as argparse would."""
    formatter = argparse.HelpFormatter(prog="dynadapt", max_help_position=16)
    formatter.start_section(None)
    formatter.add_arguments([argparse.Action([], dest=name, metavar=name, help=text) for name, text in names.items()])
    formatter.end_section()
    return formatter.format_help().strip("\n")


def _overview() -> str:
    parts = []
    for title, group in GROUPS.items():
        family = {name: name.partition(" ")[0] for name in group if name.partition(" ")[0] in FAMILIES}
        shown = {family.get(name, name): FAMILIES.get(family.get(name), command.text) for name, command in group.items()}
        parts.append(f"{title}:\n{_listing(shown)}")
    return "\n\n".join(parts) + f"\n\n{START}"


def _fill(parser: Parser, name: str, command: Command) -> Parser:
    module = command.load()
    parser.epilog, parser.formatter_class = module.EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    module.add_options(parser)
    parser.set_defaults(function=module.run, command=name)
    return parser


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def command_parser(name: str) -> Parser:
    """The parser of one command, by itself."""
    return _fill(Parser(prog=f"dynadapt {name}", description=_sentence(COMMANDS[name].text)), name, COMMANDS[name])


def top_parser() -> Parser:
    """What `dynadapt` by itself understands."""
    parser = Parser(
        prog="dynadapt",
        usage="dynadapt COMMAND ...",
        description=DESCRIPTION,
        epilog=_overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    for name, (text, _) in linking.FLAGS.items():
        parser.add_argument(f"--{name}", dest="linking", action="append_const", const=name, help=f"for C and C++: print {text}")
    return parser


def build_parser() -> Parser:
    """All commands in one parser, as argparse's own subcommands: for tools that walk it."""
    parser = top_parser()
    commands, families = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser), {}
    for name, command in COMMANDS.items():
        first, _, second = name.partition(" ")
        if second and first in COMMANDS:  # `runs diff` beside `runs DIR`: argparse has no such thing, `parse` has
            _fill(commands.add_parser(name, description=_sentence(command.text)), name, command)
            continue
        if second and first not in families:
            families[first] = commands.add_parser(first).add_subparsers(metavar="WHAT", required=True, parser_class=Parser)
        _fill((families[first] if second else commands).add_parser(second or first, description=_sentence(command.text)), name, command)
    return parser


def _family_parser(family: str) -> Parser:
    under = {name.partition(" ")[2]: command.text for name, command in COMMANDS.items() if name.startswith(family + " ")}
    return Parser(
        prog=f"dynadapt {family}",
        usage=f"dynadapt {family} WHAT ...",
        description=_sentence(FAMILIES[family]),
        epilog=f"WHAT is one of:\n{_listing(under)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def parse(words: list[str]) -> argparse.Namespace:
    """The options of the command that `words` name. Exits with a message as argparse does."""
    first, second = (words + ["", ""])[:2]
    if first in COMMANDS and f"{first} {second}" in COMMANDS:
        return command_parser(f"{first} {second}").parse_args(words[2:])
    if first in COMMANDS:
        return command_parser(first).parse_args(words[1:])
    if first in FAMILIES:
        if f"{first} {second}" in COMMANDS:
            return command_parser(f"{first} {second}").parse_args(words[2:])
        parser, known = _family_parser(first), [name.partition(" ")[2] for name in COMMANDS if name.startswith(first + " ")]
        words = words[1:]
    else:
        parser, known = top_parser(), list(dict.fromkeys(name.partition(" ")[0] for name in COMMANDS))
    if words and not words[0].startswith("-"):
        parser.error(f"unknown command {words[0]!r}" + (meant(words[0], known) or f"; there are {', '.join(known)}"))
    early = next((word for word in words if word in COMMANDS or word in FAMILIES), None)
    if early and words[0] not in parser._option_string_actions:
        options = " ".join(word for word in words if word != early)
        parser.error(f"{words[0]} stands before the command; the command comes first: dynadapt {early} {options}")
    found = parser.parse_args(words)
    if not getattr(found, "linking", None):
        parser.error(f"no command given; there are {', '.join(known)}")
    found.function, found.debug = _linking, False
    return found


def _linking(arguments) -> int:
    for name in arguments.linking:
        print(linking.FLAGS[name][1]())
    return 0


def main(argv: list[str] | None = None) -> None:
    streams.prepare()
    show, warnings.showwarning = warnings.showwarning, _say_warning
    try:
        code = _guarded(parse(list(sys.argv[1:] if argv is None else argv)))
    except SystemExit as end:
        code = end.code
    finally:
        warnings.showwarning = show
    raise SystemExit(streams.finish(code))


def _say_warning(message, category, *where, **more) -> None:
    """A line, whoever warns: where in a library's source it was says nothing to who reads it here."""
    kind = "note" if category.__name__ == "RunNote" else "warning"
    print(f"dynadapt: {kind}: {' '.join(str(message).split())}", file=sys.stderr)


def _see(error: Exception, arguments) -> str:
    """Where a setting that was refused is explained."""
    return f" (see dynadapt {arguments.command} --help)" if isinstance(error, ConfigError) else ""


def _guarded(arguments) -> int:
    """Errors are one line and exit 2; what nobody foresaw says so and exits 1."""
    try:
        return arguments.function(arguments)
    except KeyboardInterrupt:
        print("dynadapt: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and streams.reader_left():
            return 1  # as of `dynadapt ... | head`
        if arguments.debug:
            raise
        expected = isinstance(error, (ValueError, OSError, ImportError)) or type(error).__module__.startswith("dynadapt")
        message = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnicodeEncodeError) and sys.getfilesystemencoding() != "utf-8":
            message += "; file names have only such characters in this locale: set PYTHONUTF8=1"
        if type(error).__name__ == "ProcessError" and os.environ.get("RANK", "0") != "0":
            return 2  # of several processes, the first one says it
        if expected:
            print(f"dynadapt: error: {message}{_see(error, arguments)}", file=sys.stderr)
            return 2
        print(f"dynadapt: error: unexpected {type(error).__name__}: {message} (--debug shows where)", file=sys.stderr)
        return 1

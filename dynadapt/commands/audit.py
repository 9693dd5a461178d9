"""`dynadapt audit`: whether scores were made before the learning that saw their tokens."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from dynadapt.common.errors import ConfigError

from .early import check_run
from .parsing import at_least

EXAMPLES = """\
examples:
  dynadapt audit runs/novel
      plays the run again from its own record, model and text: are its scores what these settings give, segment by segment, with nothing
      of later segments there yet; does a score move when later tokens of its segment are others; do the probabilities of all tokens sum
      to one; do documents know of each other
  dynadapt audit --command "python mine.py" --vocabulary 50257 --resets --out audit.json
      the same questions to any program that speaks the protocol below: it is run anew some twenty times, on made-up documents
  dynadapt audit --command "python mine.py" --vocabulary 50257 --documents valid.jsonl --count 8 --length 4096 --segment 512
      on documents of your own (a JSON list of token ids a line), in pieces of 512 tokens, each sent when the one before is scored

the protocol, JSON lines on standard input and output:
  in   {"document": 0, "start": 0, "tokens": [5, 17, 3], "ask": [2]}     a document a line (with --segment: a piece of one)
  out  {"nll": [null, 4.1, 0.7], "logprobs": {"2": [-9.2, ...]}}         a line for each: scores in nats, and what was asked for
  nll has a number for each token; null for a document's first one, if it is not scored. logprobs has the log-probabilities of the whole
  vocabulary as they were before the token at that position was known. Answers come in the order of the lines, or name "document" and
  "start". Everything else goes to standard error. examples/audit/unigram.py is a whole program.

Exit status: 0 passed, 1 failed, 2 could not be judged. docs/audit.md says what each check proves, and what it does not."""


def add_options(command) -> None:
    command.add_argument("run", nargs="?", metavar="RUN", help="directory of a run of dynadapt eval")
    command.add_argument("--command", dest="program", metavar="'PROGRAM ...'", help="in its place: a program, and its arguments (no shell)")
    command.add_argument("--vocabulary", type=at_least(2), metavar="V", help="with --command: token ids are 0 to V-1")
    command.add_argument(
        "--documents",
        metavar="FILE",
        help='with --command: documents, each line a JSON list of ids or {"tokens": [...]} (default: made up, of phrases that come back)',
    )
    command.add_argument(
        "--count", type=at_least(1), metavar="N", help="with --command: how many documents (default: 4, or all of --documents)"
    )
    command.add_argument(
        "--length", type=at_least(2), metavar="T", help="with --command: tokens of each, at most (default: 1024, or all of --documents)"
    )
    command.add_argument(
        "--resets", action="store_true", help="with --command: the program says that a document's scores depend on no other document"
    )
    command.add_argument(
        "--segment", type=at_least(1), metavar="T", help="with --command: send T tokens at a time, the next ones when these are scored"
    )
    command.add_argument("--no-distributions", action="store_true", help="with --command: it has no log-probabilities; ask for none")
    command.add_argument("--timeout", type=_seconds, metavar="S", help="with --command: seconds that a run of it may take (default: 120)")
    command.add_argument("--tokens", type=at_least(2), metavar="N", help="with RUN: play its first N tokens again (default: 16384)")
    command.add_argument("--positions", type=at_least(1), default=32, metavar="N", help="positions whose tokens are changed (default: 32)")
    command.add_argument(
        "--tolerance", type=_nats, default=0.0, metavar="NATS", help="what a score may move by (default: 0, the same bits)"
    )
    command.add_argument(
        "--rounding",
        type=_nats,
        default=1e-4,
        metavar="NATS",
        help="what a sum of probabilities may miss one by, and a score its distribution (default: 1e-4)",
    )
    command.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="of the positions and of the other tokens (default: 0)")
    command.add_argument("--out", metavar="FILE.json", help="write the report there as JSON")
    command.add_argument("--quiet", action="store_true", help="print the verdict alone")


def _seconds(value: str) -> float:
    return _positive(value, "seconds above 0", lambda x: x > 0)


def _nats(value: str) -> float:
    return _positive(value, "a number of nats of at least 0", lambda x: x >= 0)


def _positive(value: str, what: str, holds) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and holds(number)):
        raise argparse.ArgumentTypeError(f"{value!r}: give {what}")
    return number


OF_PROGRAMS = ("vocabulary", "documents", "count", "length", "resets", "segment", "no_distributions", "timeout")


def run(arguments) -> int:
    _check(arguments)
    from dynadapt.experiments.audit.show import ENDS, print_report, progress

    with progress(arguments.quiet) as tell:
        report = _audit_program(arguments, tell) if arguments.program is not None else _audit_run(arguments, tell)
    if arguments.quiet:
        print(ENDS[report.verdict])
    else:
        print_report(report)
    if arguments.out:
        from dynadapt.runs.whole_files import write_summary

        write_summary(Path(arguments.out), report.to_dict())
        if not arguments.quiet:
            print(f"written to {arguments.out}")
    elif report.status == 1 and not arguments.quiet:
        print("(--out FILE.json writes all places, the worst first)")
    return report.status


def _check(arguments) -> None:
    """What can be refused at once."""
    if (arguments.run is None) == (arguments.program is None):
        raise ConfigError("run and command: give one of them, a run's directory or --command 'PROGRAM ...'")
    if arguments.program is not None:
        if arguments.vocabulary is None:
            raise ConfigError("vocabulary: none given; with --command, give --vocabulary V, the number of token ids")
        if arguments.tokens is not None:
            raise ConfigError(f"tokens {arguments.tokens} with --command: give --length, and --count")
    else:
        for name in OF_PROGRAMS:
            if getattr(arguments, name) not in (None, False):
                raise ConfigError(f"{name.replace('_', '-')}: for --command alone; a run has it in its record")
        check_run(arguments.run)
    if arguments.out:
        from dynadapt.runs.output_paths import check_product

        check_product(arguments.out, [arguments.documents] if arguments.documents else [])


def _audit_program(arguments, tell):
    from dynadapt.experiments.audit import Program, audit_program, documents

    vocabulary = arguments.vocabulary
    if arguments.documents:
        given = documents.read(arguments.documents, vocabulary)[: arguments.count]
        given = [document[: arguments.length] for document in given]
    else:
        given = documents.made_up(vocabulary, arguments.count or 4, arguments.length or 1024, arguments.seed)
    program = Program(arguments.program, arguments.segment, arguments.timeout or 120.0)
    return audit_program(
        program,
        given,
        vocabulary,
        resets=arguments.resets,
        positions=arguments.positions,
        distributions=not arguments.no_distributions,
        tolerance=arguments.tolerance,
        rounding=arguments.rounding,
        seed=arguments.seed,
        tell=tell,
    )


def _audit_run(arguments, tell):
    from dynadapt.experiments.audit import audit_run

    return audit_run(
        arguments.run,
        tokens=arguments.tokens or 16384,
        positions=arguments.positions,
        tolerance=arguments.tolerance,
        rounding=arguments.rounding,
        seed=arguments.seed,
        tell=tell,
    )

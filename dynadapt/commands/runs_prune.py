"""`dynadapt runs prune`: removing what no run needs."""

from __future__ import annotations

import sys

from .parsing import at_least

EXAMPLES = """\
examples:
  dynadapt runs prune
      show the runs under runs/ in which nothing was scored, and what removing them frees
  dynadapt runs prune --yes
      remove them
  dynadapt runs prune runs/sweep --checkpoints --yes
      also the saved states of finished runs that neither export, publish, icl eval nor --reference read

What is no run is not touched, nor a run that a process writes, nor one whose directory holds files of others."""


def add_options(command) -> None:
    command.add_argument("dir", nargs="?", default="runs", metavar="DIR", help="where to look, in directories below too (default: runs)")
    command.add_argument("--checkpoints", action="store_true", help="also saved states of finished runs that nothing reads any more")
    command.add_argument("--depth", type=at_least(0), default=6, metavar="N", help="directories to go down at most (default: 6)")
    command.add_argument("--yes", action="store_true", help="remove; without it, only show")


def run(arguments) -> int:
    from dynadapt.runs.listing import disk, printable
    from dynadapt.runs.prune import removable, remove
    from dynadapt.runs.whole_files import RunError

    found, stays = removable(arguments.dir, arguments.checkpoints, arguments.depth)
    failed, freed = 0, 0
    for removal in found:
        try:
            freed += remove(removal) if arguments.yes else removal.bytes
            print(printable(f"{'removed' if arguments.yes else 'would remove'} {removal.path} ({disk(removal.bytes)}): {removal.why}"))
        except RunError as error:
            failed += 1
            print(printable(f"dynadapt: {error}"), file=sys.stderr)
    for why, paths in stays.items():
        print(printable(f"stays: {paths[0] if len(paths) == 1 else f'{len(paths)} such as {paths[0]}'}: {why}"))
    done = len(found) - failed
    if not found:
        print(f"{arguments.dir}: nothing to remove")
    elif arguments.yes:
        print(f"{done} removed, {disk(freed)} freed")
    else:
        print(f"{done} to remove, {disk(freed)}; --yes removes {'them' if done != 1 else 'it'}")
    return 1 if failed else 0

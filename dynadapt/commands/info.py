"""`dynadapt info`: what this installation is."""

from __future__ import annotations

EXAMPLES = None


def add_options(command) -> None:
    pass


def run(arguments) -> int:
    from dynadapt.info import print_info
    print_info()
    return 0

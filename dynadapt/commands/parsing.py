"""The parser of every command: one-line errors that point to the command's own help, and to what was probably meant."""

from __future__ import annotations

import argparse
import re
import sys

from dynadapt.common.errors import meant


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, from the command that they concern."""

    def parse_known_args(self, args=None, namespace=None):
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def _check_value(self, action, value):
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            raise argparse.ArgumentError(action, error.message + meant(str(value), map(str, action.choices))) from None

    def error(self, message):
        print(f"dynadapt: error: {message}{self._meant(message)} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)

    def _meant(self, message: str) -> str:
        if match := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            return meant(match[1], [option for option in self._option_string_actions if option.startswith("--")])
        if match := re.search(r"unrecognized arguments: ([^-].*)", message):
            return f"; did you mean --text {match[1]}?" if "--text" in self._option_string_actions else ""
        return ""


def subcommand(parts, name: str, function, text: str, epilog: str | None = None) -> Parser:
    """A command under a command: `dynadapt bench step`."""
    part = parts.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    part.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    part.set_defaults(function=function)
    return part


def at_least(least: int):
    """A whole number of at least `least`."""

    def parse(value):
        try:
            number = int(value)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{value!r}: give a whole number of at least {least}")
        return number

    return parse

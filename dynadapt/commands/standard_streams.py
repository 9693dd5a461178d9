"""Standard input, output and error as a command finds them: closed, full, without a reader, or in an encoding of few characters."""

from __future__ import annotations

import codecs
import os
import select
import sys

ERRORS = "dynadapt.printable"


def prepare() -> None:
    """Opens what is closed, as /dev/null: a file opened later would get its number. What an encoding lacks is printed as \\xe9."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False))
        elif name != "stdin" and hasattr(stream, "reconfigure") and codecs.lookup(stream.encoding).name != "utf-8":
            codecs.register_error(ERRORS, _printable)
            stream.reconfigure(errors=ERRORS)


def _printable(error: UnicodeError):
    """The bytes of a file name that could not be decoded as they were; other characters by their numbers."""
    one = type(error)(error.encoding, error.object, error.start, error.start + 1, error.reason)
    try:
        return codecs.lookup_error("surrogateescape")(one)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(one)


def reader_left() -> bool:
    """Whether standard output is a pipe that nobody reads; then nothing more is written to it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard()
        return True
    except (OSError, ValueError):
        return False
    if _broken():  # without a buffer the write that failed has left nothing to flush
        _discard()
        return True
    return False


def _broken() -> bool:
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):
        return False


def finish(code):
    """The exit status, once what is still in the buffer is written; a failure to write is said and is one of the command."""
    if reader_left():
        return code or 1
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        _discard()
        if code:  # it was said already
            return code
        print(f"dynadapt: error: standard output: {error}", file=sys.stderr)
        return 2
    return code


def _discard() -> None:
    """What is left in the buffer goes to /dev/null; Python would try again at its end."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")

"""A program that scores documents, run anew for every question. docs/audit.md has the protocol.

It reads a line of JSON for each document (or piece of one) and writes one: {"nll": [...], "logprobs": {"POSITION": [...]}}, with
"document" and "start" where the scores are not those of the next request in order. It is a process group of its own, which is ended
whatever happens.
"""

from __future__ import annotations

import json
import math
import os
import queue
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dynadapt.common.errors import ConfigError

LAST_WORDS = 1000  # characters of what a program wrote to standard error that a message repeats
LONGEST_LINE = 1 << 30
WITHHELD = "with --segment, later tokens are sent when these are scored: it must not wait for them"
PATIENCE = 2.0  # seconds between asking a program to end and ending it


class ProgramError(RuntimeError):
    """A program that hangs, dies, or answers with something else than scores. `last_words`: what it wrote to standard error at the end."""

    def __init__(self, message: str, last_words: str = ""):
        super().__init__(message)
        self.last_words = last_words


@dataclass
class Scores:
    """What one run of a program answered.

    `nll`: float64 [L] of each document, NaN at what it does not score. `logprobs`: {(document, position): [V]}. `twice`: (document, position,
    how often) of positions scored more than once, whose first score counts.
    """

    nll: list[np.ndarray]
    logprobs: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    twice: list[tuple[int, int, int]] = field(default_factory=list)

    def unscored(self) -> list[tuple[int, int]]:
        """(document, position) without a score, the first tokens of documents aside: before them there is nothing."""
        return [(d, int(p)) for d, nll in enumerate(self.nll) for p in np.flatnonzero(np.isnan(nll)) if p > 0]


@dataclass(frozen=True)
class Program:
    """A command line, split as a shell would, without a shell. `segment`: tokens that are sent at a time, None: whole documents, all at
    once. `timeout`: seconds that one run may take."""

    command: str
    segment: int | None = None
    timeout: float = 120.0

    @property
    def words(self) -> list[str]:
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise ConfigError(f"command {self.command!r}: {error}") from None
        if not words:
            raise ConfigError("command '': give what runs the program, for example 'python mine.py'")
        return words

    def run(self, documents: Sequence[np.ndarray], ask: Mapping[int, Sequence[int]] = {}) -> Scores:
        """Its scores of `documents`, and the distributions at the positions of `ask`, {document: positions}.

        Raises:
            ProgramError: what it did instead, and its last words.
        """
        with tempfile.TemporaryFile() as errors:
            try:
                process = subprocess.Popen(self.words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
            except OSError as error:
                raise ConfigError(f"command {self.command!r}: can't be started: {error.strerror}") from None
            talk = _Talk(process, self.timeout, "" if self.segment is None else f"; {WITHHELD}")
            answers = _Answers([len(document) for document in documents])
            try:
                self._ask(talk, answers, list(_requests(documents, ask, self.segment)))
                talk.end(answers)
                return answers.scores()
            except ProgramError as error:
                _end(process)
                raise ProgramError(str(error), _last_words(errors)) from None
            finally:
                talk.close()
                _end(process)

    def _ask(self, talk: _Talk, answers: _Answers, requests: list[dict]) -> None:
        if self.segment is None:
            answers.pending = requests
            talk.send([*map(_line, requests)], last=True)
            return
        for number, request in enumerate(requests):
            answers.pending = [request]
            talk.send([_line(request)], last=number == len(requests) - 1)
            while not answers.complete(request):
                answers.take(talk.answer(answers.waits()))


def _requests(documents, ask, segment) -> Iterator[dict]:
    for number, document in enumerate(documents):
        for start in range(0, len(document), segment or len(document)):
            tokens = document[start : start + (segment or len(document))].tolist()
            asked = [int(p) for p in ask.get(number, ()) if start <= p < start + len(tokens)]
            yield {"document": number, "start": start, "tokens": tokens, "ask": asked}


def _line(request: dict) -> bytes:
    return json.dumps(request).encode() + b"\n"


class _Talk:
    """The two pipes of a process. Both are served by threads: a program may write before it has read, and the other way round."""

    def __init__(self, process, seconds: float, hint: str):
        self.process, self.deadline, self.seconds, self.hint = process, time.monotonic() + seconds, seconds, hint
        self.to_send: queue.SimpleQueue = queue.SimpleQueue()
        self.lines: queue.Queue = queue.Queue(maxsize=8)
        self.over = threading.Event()
        for work in (self._write, self._read):
            threading.Thread(target=work, daemon=True).start()

    def _write(self) -> None:
        try:
            while (line := self.to_send.get()) is not None:
                self.process.stdin.write(line)
                self.process.stdin.flush()
        except (OSError, ValueError):
            pass  # it reads no more: what it has answered says the rest
        finally:
            try:
                self.process.stdin.close()
            except OSError:
                pass

    def _read(self) -> None:
        with self.process.stdout as lines:
            for line in iter(lambda: lines.readline(LONGEST_LINE), b""):
                self._put(line)
        self._put(None)

    def _put(self, line) -> None:
        while not self.over.is_set():
            try:
                return self.lines.put(line, timeout=0.2)
            except queue.Full:
                continue

    def send(self, lines: list[bytes], last: bool) -> None:
        for line in [*lines, *([None] if last else [])]:
            self.to_send.put(line)

    def answer(self, waits_for: str) -> bytes:
        """The next line. ProgramError where there is none, or not in time."""
        line = self._next(waits_for)
        if line is None:
            raise ProgramError(f"the program {self._ended()} before it had answered all: {waits_for} is missing")
        return line

    def _next(self, waits_for: str) -> bytes | None:
        try:
            return self.lines.get(timeout=max(0.0, self.deadline - time.monotonic()))
        except queue.Empty:
            raise ProgramError(f"the program hangs: no answer for {waits_for} within {self.seconds:g} s (--timeout){self.hint}") from None

    def close(self) -> None:
        """Lets the threads go."""
        self.over.set()
        self.to_send.put(None)

    def end(self, answers: _Answers) -> None:
        """All that it still says, and its end."""
        while (line := self._next(answers.waits())) is not None:
            answers.take(line)
        if missing := answers.missing():
            raise ProgramError(f"the program {self._ended()} before it had answered all: {missing} is missing")
        if self._status():
            raise ProgramError(f"the program {self._ended()}, behind its last answer")

    def _status(self) -> int:
        try:
            return self.process.wait(max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise ProgramError(f"the program hangs: it has answered all and does not end within {self.seconds:g} s (--timeout)") from None

    def _ended(self) -> str:
        status = self._status()
        return f"died of signal {-status} ({signal.Signals(-status).name})" if status < 0 else f"ended with status {status}"


class _Answers:
    """The answers of one run, as they come."""

    def __init__(self, lengths: list[int]):
        self.lengths, self.pending = lengths, []
        self.nll = [np.full(length, np.nan) for length in lengths]
        self.times = [np.zeros(length, np.int64) for length in lengths]
        self.logprobs: dict[tuple[int, int], np.ndarray] = {}
        self.lines = 0

    def waits(self) -> str:
        request = next((request for request in self.pending if not self.complete(request)), None)
        return "its end" if request is None else _named(request)

    def missing(self) -> str | None:
        return next((_named(request) for request in self.pending if not self.complete(request)), None)

    def complete(self, request: dict) -> bool:
        start = request["start"]
        return bool(self.times[request["document"]][start : start + len(request["tokens"])].all())

    def take(self, line: bytes) -> None:
        self.lines += 1
        answer = _parsed(line, self.lines)
        document, start, size = self._place(answer)
        where = f"line {self.lines}, document {document}"
        nll = answer["nll"]
        if size is not None and len(nll) != size:
            few = "few" if len(nll) < size else "many"
            raise ProgramError(f"{where}: too {few} scores: {len(nll)} for the {size} tokens from {start} on")
        if start + len(nll) > self.lengths[document]:
            raise ProgramError(f"{where}: too many scores: {len(nll)} from {start} on, of {self.lengths[document]} tokens")
        for at, value in enumerate(nll, start):
            if not (value is None or _is_number(value) and math.isfinite(value)):
                raise ProgramError(f"{where}: the score of position {at} is {_short(value)}; expected a finite number of nats")
            if not self.times[document][at] and value is not None:
                self.nll[document][at] = value
            self.times[document][at] += 1
        for key, values in (answer.get("logprobs") or {}).items():
            self.logprobs[document, _position(key, self.lengths[document], where)] = _distribution(values, key, where)

    def _place(self, answer: dict) -> tuple[int, int, int | None]:
        """(document, first position, how many scores): of the answer itself, or of the next request without one."""
        if "document" in answer or "start" in answer:
            document, start = answer.get("document"), answer.get("start")
            if type(document) is not int or type(start) is not int or not 0 <= document < len(self.lengths) or start < 0:
                raise ProgramError(
                    f'line {self.lines}: "document" {_short(document)}, "start" {_short(start)}; expected a document of 0 to '
                    f"{len(self.lengths) - 1} and a position in it"
                )
            return document, start, None
        request = next((request for request in self.pending if not self.complete(request)), None)
        if request is None:
            raise ProgramError(
                f'line {self.lines}: too many answers: every request has had one (scores of other tokens need "document" and "start")'
            )
        return request["document"], request["start"], len(request["tokens"])

    def scores(self) -> Scores:
        twice = [(d, int(p), int(times[p])) for d, times in enumerate(self.times) for p in np.flatnonzero(times > 1)]
        return Scores(self.nll, self.logprobs, twice)


def _named(request: dict) -> str:
    end = request["start"] + len(request["tokens"])
    return f"document {request['document']}, positions {request['start']} to {end - 1}"


def _parsed(line: bytes, number: int) -> dict:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("nll"), list) or not isinstance(answer.get("logprobs") or {}, dict):
        shown = _short(line.decode("utf-8", "replace").rstrip("\n"))
        raise ProgramError(f'line {number} is no answer: {shown}; expected {{"nll": [...]}} and nothing else on standard output')
    return answer


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _position(key: str, length: int, where: str) -> int:
    if not key.isdecimal() or int(key) >= length:
        raise ProgramError(f"{where}: log-probabilities at {_short(key)}; expected a position from 0 to {length - 1}")
    return int(key)


def _distribution(values, key: str, where: str) -> np.ndarray:
    """float64 [V]; null is the logarithm of nought."""
    if not isinstance(values, list) or not all(value is None or _is_number(value) for value in values):
        raise ProgramError(f"{where}: log-probabilities at {key}: {_short(values)}; expected a list of numbers")
    return np.array([-math.inf if value is None else value for value in values], np.float64)


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _last_words(errors) -> str:
    errors.seek(0, os.SEEK_END)
    errors.seek(max(0, errors.tell() - LAST_WORDS))
    return errors.read().decode("utf-8", "replace").strip()


def _end(process) -> None:
    """The process and what it has started are gone when this returns."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()

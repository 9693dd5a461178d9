"""The checks of a run of this package: it is played again from its record, and beside its way other tokens are tried."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dynadapt.runs.whole_files import finite_number

from . import documents as texts
from .distributions import Question, asking
from .moves import Moves, at, difference, largest, nats, same
from .record import hold, once
from .replay import Replay, in_order, open_run, place_of, step, step_alone
from .report import FAILED, LEFT_OUT, NOT_JUDGED, PASSED, Report

BOUNDARIES = 8  # documents before whose beginning another text is put
REORDERED = 4096  # tokens of documents that are scored in another order
DISTRIBUTIONS = 8  # positions at which all tokens are scored, at most

Tell = Callable[[dict], None]


def audit_run(
    path: str | Path,
    *,
    tokens: int = 16384,
    positions: int = 32,
    tolerance: float = 0.0,
    rounding: float = 1e-4,
    seed: int = 0,
    tell: Tell = lambda event: None,
) -> Report:
    """Judges a run of `dynadapt eval` by playing its first `tokens` scored tokens again.

    Args:
        positions: how many positions are tried. tolerance: nats by which a score may move, or differ from the record.
        rounding: nats by which a sum of probabilities may miss one, and a score its distribution.
        tell: called before each segment, with "run" (from 1), "runs" and "what".

    Raises:
        RunError, TextError: it can't be played again, and why.
    """
    tell({"run": 1, "runs": 1, "what": "reading the record, the text and the model", "unit": "step"})
    replay = open_run(path, tokens)
    settings = {"tokens": replay.tokens, "positions": positions, "tolerance": tolerance, "rounding": rounding, "seed": seed}
    audit = _Audit(replay, settings, np.random.default_rng(seed), tell)
    audit.run()
    return audit.report


class _Audit:
    def __init__(self, replay: Replay, settings: dict, rng, tell):
        self.replay, self.engine, self.segments, self.rng, self.tell = replay, replay.engine, replay.segments, rng, tell
        self.report = Report(str(replay.run.path), settings)
        tolerance, rounding = settings["tolerance"], settings["rounding"]
        self.vocabulary, self.rounding = self.engine.config.vocab_size, rounding
        self.pool = np.concatenate([s.tokens[row, : n + 1] for s in self.segments for row, n in enumerate(s.lengths)])
        self.again, self.later, self.streams = (Moves(tolerance) for _ in range(3))
        self.own = Moves(rounding + tolerance)
        # A stream scores the same to the bit whoever shares its batch, but for the reference, whose products are torch's.
        together = self.engine.backend == "reference" and self.engine.streams > 1
        self.documents = Moves(tolerance + (rounding if together else 0.0))
        self.wrong: list[dict] = []
        self.masses: list[float] = []
        self.scored: list[np.ndarray] = []
        config = replay.config
        self.independent = config.adapt == "none" or (config.reset == "document" and not config.keep_a)

    def run(self) -> None:
        """
        1. Each segment as the run had it, none of the later ones being there yet; its scores are held against the record.
        2. At chosen places: the same segment with other tokens from there on, from the same state, to which the engine then goes back.
        3. In front of some documents: another text in the place of what was there.
        4. Some documents in another order.
        """
        tries, entries = self._tries(), self._entries()
        for number, segment in enumerate(self.segments):
            self.tell({"run": number + 1, "runs": len(self.segments), "what": self._what(tries[number]), "unit": "segment"})
            alone = {stream: self._behind_another_text(segment, stream) for stream in segment.entered if (number, stream) in entries}
            for stream in segment.entered:
                self.engine.enter(stream)
            again = self._try(segment, tries[number]) if tries[number] else None
            nll = step(self.engine, segment)
            self.scored.append(nll)
            for stream in np.flatnonzero(segment.lengths) if again is not None else ():
                self._see(self.again, segment, stream, again[stream], nll[stream])
            for stream, found in alone.items():
                self._see(self.documents, segment, stream, found, nll[stream])
        hold(self.report, self.replay, self.scored)
        once(self.report, self.replay)
        self._say("repeatable", self.again, f"{self.again.tried} segments again from the same state", "the same segment gave other scores")
        self._say(
            "later tokens",
            self.later,
            f"{self.later.tried} positions, all tokens from there on others: no earlier score moved",
            "scores see later tokens",
        )
        self._say(
            "own token",
            self.own,
            f"{self.own.tried} tokens exchanged for others: each scored as it was stated before",
            "scores see their own token",
        )
        self._distributions()
        self._streams()
        self._reordered()
        self.report.tried = sum(map(len, tries))
        self._notes()

    def _what(self, tries: list) -> str:
        return f"with {len(tries)} position{'s' * (len(tries) != 1)} to be tried" if tries else "as it was scored"

    # ---- what is tried

    def _tries(self) -> list[list[tuple[int, int, bool]]]:
        """(stream, place in its row, whether its distribution is looked at) of each segment: one of each of equal parts of all scored tokens."""
        places = [(k, row, j) for k, s in enumerate(self.segments) for row, n in enumerate(s.lengths) for j in range(n)]
        drawn = texts.strata(len(places), self.report.settings["positions"], self.rng)
        tries: list[list[tuple[int, int, bool]]] = [[] for _ in self.segments]
        for number, i in enumerate(drawn):
            k, row, j = places[i]
            tries[k].append((row, j, number % -(-len(drawn) // DISTRIBUTIONS) == 0))
        return tries

    def _entries(self) -> set[tuple[int, int]]:
        """(segment, stream) of documents before whose beginning another text is put."""
        entries = [(k, stream) for k, s in enumerate(self.segments) for stream in s.entered]
        return {entries[i] for i in texts.strata(len(entries), BOUNDARIES, self.rng)} if self.independent else set()

    def _see(self, moves: Moves, segment, stream: int, one: np.ndarray, other: np.ndarray, **more) -> None:
        n = min(len(one), int(segment.lengths[stream]))
        j, moved = largest(one[:n].astype(np.float64), other[:n].astype(np.float64))
        moves.see(moved, {**place_of(segment, stream, j), **more})

    def _behind_another_text(self, segment, stream: int) -> np.ndarray:
        """The stream's scores of a document that enters behind another text; the engine is where it was."""
        kept = self._snapshot()
        self.engine.step(self.pool[self.rng.integers(len(self.pool), size=(1, self.replay.config.segment + 1))], streams=[stream])
        self.engine.enter(stream)
        nll = step_alone(self.engine, stream, segment)
        self._rollback(kept)
        return nll

    def _try(self, segment, tries: list[tuple[int, int, bool]]) -> np.ndarray:
        """Tries the places of one segment, whose scores [S, T] it returns; the engine is where it was."""
        kept, base = self._snapshot(), {}
        changed = {
            (row, j): texts.changed(segment.tokens[row, : segment.lengths[row] + 1], j + 1, self.pool, self.vocabulary, self.rng)
            for row, j, _ in tries
        }
        stated: dict[tuple[int, int], float] = {}
        for stream in dict.fromkeys(row for row, _, _ in tries):
            others = {j: int(changed[stream, j][j + 1]) for row, j, _ in tries if row == stream}
            question = Question(others, [j for row, j, whole in tries if row == stream and whole])
            with asking(self.engine, question, stream):
                base[stream] = step_alone(self.engine, stream, segment)
            self._rollback(kept)
            stated.update({(stream, j): found for j, found in question.nats.items()})
            for j, found in question.distributions.items():
                self._see_distribution(place_of(segment, stream, j), found, float(base[stream][j]))
        whole = self._all_rows(segment, kept, base)
        for (row, j), tokens in changed.items():
            self._changed(segment, row, j, tokens, whole, stated[row, j])
            self._rollback(kept)
        return whole

    def _all_rows(self, segment, kept, base) -> np.ndarray:
        """[S, T] of all streams from the state that was kept."""
        if self.engine.streams == 1:
            return base[0][None]
        nll = step(self.engine, segment)
        self._rollback(kept)
        return nll

    def _changed(self, segment, row: int, j: int, tokens: np.ndarray, base: np.ndarray, stated: float) -> None:
        given = segment.tokens.copy()
        given[row, : len(tokens)] = tokens
        nll, place = step(self.engine, segment, given), place_of(segment, row, j)
        before, moved = largest(base[row, :j].astype(np.float64), nll[row, :j].astype(np.float64))
        self.later.see(moved, {**place_of(segment, row, before), "changed_from": place["position"], "ahead": j - before})
        moved = difference(float(nll[row, j]), stated)
        self.own.see(moved, {**place, "token": int(tokens[j + 1]), "stated": finite_number(stated)})
        for other in range(self.engine.streams):
            if other != row and segment.lengths[other]:
                self._see(self.streams, segment, other, base[other], nll[other], changed=place)

    def _see_distribution(self, place: dict, found, score: float) -> None:
        miss = abs(math.log(found.mass)) if found.mass > 0 else math.inf
        self.masses.append(miss)
        if not miss <= self.rounding + found.error:
            self.wrong.append({**place, "wrong": f"probabilities sum to {found.mass:.6g}"})
        if not abs(found.own - score) <= self.rounding:
            self.wrong.append({**place, "wrong": f"its score is {score:.6g} nats, its distribution says {found.own:.6g}"})

    def _snapshot(self) -> list:
        return [self.engine.snapshot(stream) for stream in range(self.engine.streams)]

    def _rollback(self, kept: list) -> None:
        for stream, snapshot in enumerate(kept):
            self.engine.rollback(stream, snapshot)

    # ---- what was found

    def _say(self, name: str, moves: Moves, well: str, ill: str) -> None:
        evidence = moves.sorted()
        if not moves.tried:
            self.report.add(name, NOT_JUDGED, "nothing of the kind was there to be tried")
        elif evidence:
            where = f"{ill}: {at(evidence[0])} moved {nats(evidence[0]['moved'])}; so at {len(evidence)} of {moves.tried} places"
            self.report.add(name, FAILED, where, moves.tried, evidence)
        else:
            self.report.add(name, PASSED, f"{well}, {same(moves.largest)}", moves.tried)

    def _distributions(self) -> None:
        tried = len(self.masses)
        if self.wrong:
            self.report.add(
                "distribution", FAILED, f"{at(self.wrong[0])}: {self.wrong[0]['wrong']}; {len(self.wrong)} such findings", tried, self.wrong
            )
        else:
            said = f"{tried} distributions over {self.vocabulary:,} tokens sum to one within {max(self.masses):.2g}, and scores are what they say"
            self.report.add("distribution", PASSED, said, tried)

    def _streams(self) -> None:
        if self.engine.streams > 1:
            self._say("streams", self.streams, "other tokens in one stream: no score of another moved", "streams leak into each other")

    def _reordered(self) -> None:
        if not self.independent:
            why = f"reset is {self.replay.config.reset!r}" + ", and A stays" * self.replay.config.keep_a
            self.report.add("documents", LEFT_OUT, f"documents learn from those before them ({why}): they are not said to be independent")
            return
        behind = self.documents.tried
        documents, base = self._whole_documents()
        if len(documents) > 1:
            order = list(reversed(documents))
            found = in_order(self.engine, documents, order, self.replay.config.segment)
            for d in order:
                j, moved = largest(base[d].astype(np.float64), found[d].astype(np.float64))
                self.documents.see(moved, {"document": d, "position": 1 + j, "order": order})
        said = (
            f"{behind} documents behind other texts, {len(documents)} in reverse order"
            if len(documents) > 1
            else "one document behind another text"
        )
        self._say("documents", self.documents, said, "documents leak into each other")

    def _whole_documents(self) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
        """Tokens [L + 1] and scores [L] of the first documents, as far as they were played."""
        tokens: dict[int, list] = {}
        scores: dict[int, list] = {}
        total = 0
        for segment, nll in zip(self.segments, self.scored):
            for stream, n in enumerate(segment.lengths):
                d = segment.documents[stream]
                if n and (d in tokens or total < REORDERED):
                    tokens.setdefault(d, [segment.tokens[stream, :1]]).append(segment.tokens[stream, 1 : n + 1])
                    scores.setdefault(d, []).append(nll[stream, :n])
                    total += int(n)
        return {d: np.concatenate(parts) for d, parts in tokens.items()}, {d: np.concatenate(parts) for d, parts in scores.items()}

    def _notes(self) -> None:
        run = self.replay.run
        if not self.replay.whole:
            self.report.notes.append(
                f"{self.replay.tokens:,} of {self.replay.recorded:,} scored tokens were played again (--tokens N plays more); nothing is said "
                "of the others."
            )
        if run.summary is None:
            self.report.notes.append(f"The run is not finished ({run.state}): what it had scored so far was looked at.")

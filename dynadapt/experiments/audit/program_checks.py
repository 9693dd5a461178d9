"""The checks of a program by its answers alone: it is run on documents as they are, and on documents that differ in chosen places."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from dynadapt.common.errors import ConfigError
from dynadapt.runs.whole_files import finite_number

from . import documents as texts
from .moves import Moves, at, difference, largest, nats, same
from .program import Program, ProgramError, Scores
from .report import FAILED, LEFT_OUT, NOT_JUDGED, PASSED, Report

CLEAR = 10  # times what the same documents differ by: from there on a difference is no noise

Tell = Callable[[dict], None]


def audit_program(
    program: Program,
    documents: Sequence[np.ndarray],
    vocabulary: int,
    *,
    resets: bool = False,
    positions: int = 32,
    distributions: bool = True,
    tolerance: float = 0.0,
    rounding: float = 1e-4,
    seed: int = 0,
    tell: Tell = lambda event: None,
) -> Report:
    """Judges a program by what it answers; what cannot be judged since it does not answer is said as a check "answers".

    Args:
        documents: int64 [L] each, of ids below `vocabulary`.
        resets: the program says that it knows nothing of other documents.
        positions: how many positions are tried.
        distributions: it gives the log-probabilities of all tokens where it is asked to.
        tolerance: nats by which a score may move. rounding: nats by which a sum of probabilities may miss one, and a score its distribution.
        tell: called before each run of the program, with "run" (from 1), "runs" and "what".

    Raises:
        ConfigError: a program that can't be started, documents that are too short.
    """
    for number, document in enumerate(documents):
        if len(document) < 2:
            raise ConfigError(f"document {number} has {len(document)} tokens; give at least 2")
    settings = {
        "documents": [len(document) for document in documents],
        "vocabulary": vocabulary,
        "resets": resets,
        "segment": program.segment,
        "positions": positions,
        "distributions": distributions,
        "tolerance": tolerance,
        "rounding": rounding,
        "seed": seed,
    }
    audit = _Audit(program, list(documents), vocabulary, settings, np.random.default_rng(seed), tell)
    try:
        audit.run()
    except ProgramError as error:
        audit.report.add("answers", NOT_JUDGED, f"{audit.doing}: {error}")
        audit.report.last_words = error.last_words
    return audit.report


class _Audit:
    """One audit: its runs are counted, and `doing` says which is on."""

    def __init__(self, program, documents, vocabulary, settings, rng, tell):
        self.program, self.documents, self.vocabulary, self.rng, self.tell = program, documents, vocabulary, rng, tell
        self.settings, self.report = settings, Report(program.command, settings)
        self.pool, self.tolerance, self.rounding = np.concatenate(documents), settings["tolerance"], settings["rounding"]
        self.runs, self.doing, self.independent = 0, "", settings["resets"]
        self.twice: list[dict] = []
        self.unscored: list[dict] = []
        self.spread = 0.0

    def run(self) -> None:
        """
        1. The documents as they are, distributions asked for at the positions to be tried; and again, asked for nothing.
        2. With `resets`: every second document another one, and the other half; the documents in another order.
        3. From each position on, other tokens: no earlier score may move, and the position's own must be what its distribution said.
        4. The documents end earlier.
        5. The distributions themselves.
        """
        self.places = self._places()
        self.rounds = self._rounds()
        self.planned = 3 + 3 * self.settings["resets"] + len(self.rounds)
        ask: dict[int, list[int]] = {}
        for document, position in self.places if self.settings["distributions"] else ():
            ask.setdefault(document, []).append(position)
        self.base = self._run("the documents as they are", self.documents, ask)
        scores = np.concatenate(self.base.nll)
        known = scores[~np.isnan(scores)]
        mean = f"{known.mean():.4f} nats a token over {len(known):,} scores" if len(known) else "no score"
        self.report.notes.append(f"The documents as they are: {mean}.")
        self._repeat()
        if self.settings["resets"]:
            self._documents()
        else:
            self.report.add("documents", LEFT_OUT, "the program is not said to reset at documents (--resets), which may learn from another")
        self._later_tokens()
        self._end_of_text()
        self._distribution(ask)
        self._scored_once()

    def _run(self, what: str, documents: Sequence[np.ndarray], ask=None) -> Scores:
        self.runs, self.doing = self.runs + 1, f"run {self.runs + 1} ({what})"
        self.tell({"run": self.runs, "runs": max(self.planned, self.runs), "what": what})
        scores = self.program.run(documents, ask or {})
        self.twice += [{"run": self.runs, "document": d, "position": p, "times": n} for d, p, n in scores.twice]
        self.unscored += [{"run": self.runs, "document": d, "position": p} for d, p in scores.unscored()]
        return scores

    # ---- what is tried

    def _places(self) -> list[tuple[int, int]]:
        """(document, position), one of each of equal parts of all that has a token before it."""
        known = [(d, p) for d, document in enumerate(self.documents) for p in range(1, len(document))]
        return [known[i] for i in texts.strata(len(known), self.settings["positions"], self.rng)]

    def _rounds(self) -> list[list[tuple[int, int]]]:
        """The places of one run each: of documents that know nothing of each other one in each, else one alone."""
        if not self.independent:
            return [[place] for place in self.places]
        queues = [[place for place in self.places if place[0] == d] for d in range(len(self.documents))]
        return [[queue[i] for queue in queues if i < len(queue)] for i in range(max(map(len, queues)))]

    def _other(self, document: int, start: int = 0) -> np.ndarray:
        return texts.changed(self.documents[document], start, self.pool, self.vocabulary, self.rng)

    # ---- the checks

    def _repeat(self) -> None:
        """Noise is what two runs differ by that were asked the same; being asked for distributions must not matter."""
        again = self._run("the same documents again, no distribution asked for", self.documents)
        asked = self._moves(self.base, again)
        count, tried = f"{texts.tokens_in(self.documents):,} scores", len(self.documents)
        if not asked.evidence:
            self.report.add("repeatable", PASSED, f"the same documents twice: {count}, {same(asked.largest)}", tried)
            return
        self.planned += 1
        worst = self._moves(again, self._run("the same documents once more", self.documents))
        self.spread = worst.largest
        if asked.largest > max(self.tolerance, CLEAR * self.spread):
            place = asked.sorted()[0]
            said = f"scores depend on whether a distribution is asked for: {at(place)} moved {nats(place['moved'])}"
            self.report.add("repeatable", FAILED, said, tried, asked.sorted())
            return
        self.spread = max(self.spread, asked.largest)
        place = max(asked.sorted() + worst.sorted(), key=lambda place: place["moved"])
        self.report.add(
            "repeatable",
            NOT_JUDGED,
            f"the same documents gave other scores: by up to {self.spread:.3g} nats ({at(place)}), above the tolerance of {self.tolerance:g}. "
            f"Make the program deterministic, or give --tolerance {_above(self.spread)}: what leaks less is then not seen. "
            f"Below, only what moves by {CLEAR} times as much counts as a failure",
            tried,
            asked.sorted() + worst.sorted(),
        )

    def _moves(self, one: Scores, other: Scores) -> Moves:
        moves = Moves(self.tolerance)
        for document, pair in enumerate(zip(one.nll, other.nll)):
            position, moved = largest(*pair)
            moves.see(moved, {"document": document, "position": position})
        return moves

    def _documents(self) -> None:
        if len(self.documents) < 2:
            self.report.add("documents", NOT_JUDGED, "one document alone can't leak into another; give at least two")
            return
        worst = Moves(self.tolerance)
        for parity, which in enumerate(("first, third, ...", "second, fourth, ...")):
            given = [self._other(d) if d % 2 == parity else document for d, document in enumerate(self.documents)]
            found = self._run(f"the {which} document is another one", given)
            for d in range(1 - parity, len(self.documents), 2):
                position, moved = largest(self.base.nll[d], found.nll[d])
                near = [other for other in (d - 1, d + 1) if other < len(self.documents)]
                worst.see(moved, {"document": d, "position": position, "changed": [other for other in near if other >= 0]})
        order = list(reversed(range(len(self.documents))))
        found = self._run("the documents in reverse order", [self.documents[d] for d in order])
        moved_by_order = Moves(self.tolerance)
        for place, d in enumerate(order):
            position, moved = largest(self.base.nll[d], found.nll[place])
            moved_by_order.see(moved, {"document": d, "position": position, "order": order})
        self.independent = not (worst.evidence or moved_by_order.evidence)
        if worst.evidence:
            place = worst.sorted()[0]
            said = f"documents leak into each other: {at(place)} moved {nats(place['moved'])} when documents beside it were others"
        elif moved_by_order.evidence:
            place = moved_by_order.sorted()[0]
            said = f"the order of documents matters: {at(place)} moved {nats(place['moved'])} when they came in reverse"
        else:
            said = f"{len(self.documents)} documents, their neighbours others, their order another: {same(worst.largest)}"
        self._judge("documents", said, worst.sorted() + moved_by_order.sorted(), worst.tried + moved_by_order.tried)
        if not self.independent:
            self.rounds = [[place] for place in self.places]
            self.planned = self.runs + len(self.rounds) + 1

    def _later_tokens(self) -> None:
        worst, own = Moves(self.tolerance), Moves(self.rounding + self.tolerance)
        for group in self.rounds:
            first = group[0]
            given = list(self.documents)
            for document, position in group:
                given[document] = self._other(document, position)
            if not self.independent:
                given[first[0] + 1 :] = [self._other(d) for d in range(first[0] + 1, len(given))]
            what = ", ".join(f"{document}:{position}" for document, position in group[:4]) + ", ..." * (len(group) > 4)
            found = self._run(f"other tokens from document:position {what} on", given)
            for document, position in group:
                self._see_earlier(worst, found, document, position)
                self._see_own(own, found, document, position, int(given[document][position]))
            self.report.tried += len(group)
        self._say_later(worst)
        self._say_own(own)

    def _see_earlier(self, worst: Moves, found: Scores, document: int, position: int) -> None:
        before = [] if self.independent else range(document)
        moves = [(d, *largest(self.base.nll[d], found.nll[d])) for d in before]
        moves.append((document, *largest(self.base.nll[document][:position], found.nll[document][:position])))
        d, place, moved = max(moves, key=lambda move: move[2])
        ahead = texts.tokens_in(self.documents[d:document]) + position - place
        worst.see(moved, {"document": d, "position": place, "changed_from": [document, position], "ahead": ahead})

    def _see_own(self, own: Moves, found: Scores, document: int, position: int, token: int) -> None:
        stated = self.base.logprobs.get((document, position))
        if stated is not None and token < len(stated):
            moved = difference(float(found.nll[document][position]), -float(stated[token]))
            own.see(moved, {"document": document, "position": position, "token": token, "stated": finite_number(-float(stated[token]))})

    def _say_later(self, worst: Moves) -> None:
        said = f"{worst.tried} positions, all tokens from there on others: no earlier score moved, {same(worst.largest)}"
        if worst.evidence:
            place = worst.sorted()[0]
            changed, far = place["changed_from"], max(e["ahead"] for e in worst.evidence)
            said = (
                f"scores see later tokens: {at(place)} moved {nats(place['moved'])} when tokens from "
                f"{changed[1]}{'' if changed[0] == place['document'] else f' of document {changed[0]}'} on were others. So it was at "
                f"{len(worst.evidence)} of {worst.tried} positions, up to {far} tokens ahead"
            )
        self._judge("later tokens", said, worst.sorted(), worst.tried)

    def _say_own(self, own: Moves) -> None:
        if not self.settings["distributions"]:
            self.report.add("own token", LEFT_OUT, "no distributions asked for (--no-distributions): whether a score sees its own token")
            return
        said = f"{own.tried} tokens exchanged for others: each scored as the distribution before it had said"
        if own.evidence:
            place = own.sorted()[0]
            said = (
                f"scores see their own token: {at(place)}, token {place['token']} in place of the one that was there had been stated "
                f"at {_stated(place['stated'])} and was scored otherwise, {nats(place['moved'])}; so at {len(own.evidence)} of {own.tried} positions"
            )
        if not own.tried:
            self.report.add("own token", NOT_JUDGED, NONE_GIVEN)
            return
        self._judge("own token", said, own.sorted(), own.tried)

    def _end_of_text(self) -> None:
        """Every document that is alone, else the last that is left, ends somewhere in its second half."""
        cut = lambda d: int(self.rng.integers(max(1, len(self.documents[d]) // 2), len(self.documents[d])))  # noqa: E731
        if self.independent:
            given = [document[: cut(d)] for d, document in enumerate(self.documents)]
        else:
            last = int(self.rng.integers(len(self.documents)))
            given = [*self.documents[:last], self.documents[last][: cut(last)]]
        found = self._run("the documents end earlier", given)
        worst = Moves(self.tolerance + self.rounding)  # sums of other shapes round otherwise
        for d, document in enumerate(given):
            position, moved = largest(self.base.nll[d][: len(document)], found.nll[d])
            worst.see(moved, {"document": d, "position": position, "ended_at": len(document)})
        said = f"documents that end earlier: no score moved, {same(worst.largest)}"
        if worst.evidence:
            place = worst.sorted()[0]
            said = f"scores know where the text ends: {at(place)} moved {nats(place['moved'])} when it had {place['ended_at']} tokens"
        self._judge("end of text", said, worst.sorted(), len(given))

    def _distribution(self, ask: dict[int, list[int]]) -> None:
        if not ask:
            self.report.add("distribution", LEFT_OUT, "no distributions asked for (--no-distributions): whether probabilities sum to one")
            return
        evidence, sums = [], []
        for document, nll in enumerate(self.base.nll):
            evidence += [
                {"document": document, "position": int(p), "wrong": f"its score is {nll[p]:.4g} nats, a probability above one"}
                for p in np.flatnonzero(nll < -self.rounding)
            ]
        for document, positions in ask.items():
            for position in positions:
                stated = self.base.logprobs.get((document, position))
                if stated is not None:
                    found, mass = self._of_one(stated, document, position)
                    sums.append(abs(mass))
                    evidence += found
        asked = sum(map(len, ask.values()))
        if evidence:
            place = evidence[0]
            said = f"{at(place)}: {place['wrong']}; {len(evidence)} such findings at {asked} positions"
            self.report.add("distribution", FAILED, said, len(sums), evidence)
        elif len(sums) < asked:
            self.report.add("distribution", NOT_JUDGED, f"{NONE_GIVEN} ({len(sums)} of {asked} came)", len(sums))
        else:
            said = f"{asked} distributions over {self.vocabulary:,} tokens sum to one within {max(sums):.2g}, and scores are what they say"
            self.report.add("distribution", PASSED, said, asked)

    def _of_one(self, stated: np.ndarray, document: int, position: int) -> tuple[list[dict], float]:
        """What is wrong with one distribution, and the logarithm of its sum."""
        place, token = {"document": document, "position": position}, int(self.documents[document][position])
        if len(stated) != self.vocabulary:
            return [{**place, "wrong": f"a distribution over {len(stated):,} tokens, of a vocabulary of {self.vocabulary:,}"}], math.inf
        if np.isnan(stated).any() or np.isposinf(stated).any():
            return [{**place, "wrong": "a log-probability is NaN or infinite"}], math.inf
        mass, found = _log_sum(stated), []
        if abs(mass) > self.rounding:
            found.append({**place, "wrong": f"probabilities sum to {math.exp(min(mass, 700.0)):.6g}", "log_sum": finite_number(mass)})
        own, score = -float(stated[token]), float(self.base.nll[document][position])
        if difference(own, score) > self.rounding:
            found.append(
                {**place, "wrong": f"its score is {score:.6g} nats, its distribution says {own:.6g}", "stated": finite_number(own)}
            )
        return found, mass

    def _scored_once(self) -> None:
        if self.twice:
            place = self.twice[0]
            said = f"scored {place['times']} times: {at(place)}, and {len(self.twice) - 1:,} more positions over {self.runs} runs"
        elif self.unscored:
            place = self.unscored[0]
            said = f"not scored: {at(place)}, and {len(self.unscored) - 1:,} more positions over {self.runs} runs"
        else:
            said = f"every position of {self.runs} runs, once (a document's first token may go without)"
        self.report.add("scored once", FAILED if self.twice or self.unscored else PASSED, said, self.runs, self.twice + self.unscored)

    def _judge(self, name: str, said: str, evidence: list[dict], tried: int) -> None:
        """Failed where something moved by more than noise does, not judged where it may be noise."""
        noise = CLEAR * self.spread if self.spread > self.tolerance else 0.0
        clear = any(place["moved"] > noise for place in evidence)
        if evidence and not clear:
            said = (
                f"can't be told from noise: scores moved by up to {evidence[0]['moved']:.3g} nats, the same documents by {self.spread:.3g}"
            )
        self.report.add(name, PASSED if not evidence else FAILED if clear else NOT_JUDGED, said, tried, evidence)


NONE_GIVEN = 'the program gave no log-probabilities ("logprobs") where it was asked for them; --no-distributions does not ask'


def _log_sum(logprobs: np.ndarray) -> float:
    top = logprobs.max()
    return float(top) if not math.isfinite(top) else float(top + np.log(np.exp(logprobs - top).sum()))


def _stated(value: float | None) -> str:
    return "no probability" if value is None else f"{value:.6g} nats"


def _above(spread: float) -> str:
    """A tolerance that holds twice the spread, in few digits."""
    return f"{2 * spread:.1e}"

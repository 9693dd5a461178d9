"""`dynadapt audit --command`: planted cheats are caught by the check that they are for, honest programs pass, faults are named."""

import json
import shlex
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from audited_engine import answer, tiny_engine
from audited_program import Counts, mixed, scored

from dynadapt.common.errors import ConfigError
from dynadapt.experiments.audit import Program, audit_program, documents
from dynadapt.experiments.audit.program import ProgramError, Scores, _Answers, _requests
from dynadapt.experiments.audit.report import FAILED, LEFT_OUT, NOT_JUDGED, PASSED, Report, escapes, power

HERE = Path(__file__).parents[1]
VOCABULARY = 30
TEXTS = documents.made_up(VOCABULARY, 3, 40, seed=1)


def command(kind: str, *python: str) -> str:
    return shlex.join([sys.executable, *(python or ("-S", "-E")), str(HERE / "audited_program.py"), str(VOCABULARY), kind])


@cache
def audited(kind: str, segment=None, timeout=30.0, **more) -> Report:
    settings = {"resets": True, "positions": 6, **more}
    report = audit_program(Program(command(kind), segment, timeout), TEXTS, VOCABULARY, **settings)
    json.dumps(report.to_dict(), allow_nan=False)
    return report


def verdicts(report: Report) -> dict[str, str]:
    return {check.name: check.verdict for check in report.checks}


def said(report: Report, name: str) -> str:
    return next(check.said for check in report.checks if check.name == name)


ALL = dict.fromkeys(("repeatable", "documents", "later tokens", "own token", "end of text", "distribution", "scored once"), PASSED)


@pytest.mark.parametrize("kind, segment", [("honest", None), ("honest", 16), ("cache", None)])
def test_honest_programs_pass(kind, segment):
    report = audited(kind, segment)
    assert verdicts(report) == ALL and report.status == 0 and report.tried == 6


def test_one_that_learns_over_documents_passes_unless_it_says_that_it_does_not():
    assert verdicts(audited("leak", resets=False)) == {**ALL, "documents": LEFT_OUT}
    assert audited("leak", resets=False).verdict == PASSED


@pytest.mark.parametrize(
    "kind, failed, words",
    [
        ("after", "later tokens", "scores see later tokens: document "),
        ("statistics", "later tokens", "scores see later tokens: document "),
        ("peeking-cache", "later tokens", "scores see later tokens: document "),
        ("leak", "documents", "documents leak into each other: document "),
        ("backward", "documents", "documents leak into each other: document "),
        ("unnormalised", "distribution", "probabilities sum to 1.2"),
        ("better-than-stated", "distribution", "its distribution says"),
        ("short-distribution", "distribution", "a distribution over 29 tokens, of a vocabulary of 30"),
        ("negative", "distribution", "its score is -0.5 nats, a probability above one; "),
        ("own", "own token", "scores see their own token: document "),
        ("own-unless-asked", "own token", "scores see their own token: document "),
        ("own-unless-asked", "repeatable", "scores depend on whether a distribution is asked for: document "),
        ("length", "end of text", "scores know where the text ends: document "),
        ("twice", "scored once", "scored 2 times: document 0, position 4"),
        ("hole", "scored once", "not scored: document 0, position 8"),
    ],
)
def test_planted_cheats_are_caught(kind, failed, words):
    report = audited(kind)
    assert verdicts(report)[failed] == FAILED and report.status == 1
    assert words in said(report, failed)
    assert next(check.evidence for check in report.checks if check.name == failed)


def test_what_was_caught_says_where_and_how_far_it_saw():
    """A score after the update of its segment of 8 sees up to 7 tokens ahead, and from the first positions of segments on nothing moves."""
    check = next(check for check in audited("after", positions=20).checks if check.name == "later tokens")
    for place in check.evidence:
        document, position = place["changed_from"]
        assert place["document"] == document and place["position"] // 8 == position // 8
        assert 1 <= place["ahead"] <= 7 and place["moved"] > 1e-3
    assert "up to 7 tokens ahead" in check.said


def test_a_cheat_within_a_piece_is_caught_there_too():
    assert verdicts(audited("after", segment=8))["later tokens"] == FAILED


def test_a_program_that_is_not_deterministic_is_a_matter_of_tolerance():
    report = audited("noise")
    assert verdicts(report)["repeatable"] == NOT_JUDGED and report.status == 2 and FAILED not in verdicts(report).values()
    words = said(report, "repeatable")
    assert "the same documents gave other scores: by up to " in words and "give --tolerance " in words
    spread = float(words.split("by up to ")[1].split(" ")[0])
    assert 1e-8 < spread < 1e-7
    assert audited("noise", tolerance=1e-6).status == 0


def test_a_cheat_is_caught_through_noise():
    """What moves by far more than noise is a failure all the same."""

    class Noisy(InProcess):
        def answer(self, request):
            return [x and x + 1e-7 * np.random.random() for x in super().answer(request)[0]], {}

    report = audit_program(Noisy("after"), TEXTS, VOCABULARY, resets=True, positions=12, distributions=False)
    assert verdicts(report)["later tokens"] == FAILED and verdicts(report)["repeatable"] == NOT_JUDGED and report.status == 1


@pytest.mark.parametrize("distributions, verdict, status", [(True, NOT_JUDGED, 2), (False, LEFT_OUT, 0)])
def test_without_distributions(distributions, verdict, status):
    report = audited("no-distributions", distributions=distributions)
    assert verdicts(report) == {**ALL, "own token": verdict, "distribution": verdict} and report.status == status


@pytest.mark.parametrize(
    "kind, words",
    [
        ("dies", "ended with status 1 before it had answered all: document 1, positions 0 to 39 is missing"),
        ("killed", "died of signal 9 (SIGKILL)"),
        ("stops", "ended with status 0 before it had answered all"),
        ("garbage", "line 2 is no answer: 'loading weights: 100%'"),
        ("nan", "line 2, document 1: the score of position 3 is nan; expected a finite number of nats"),
        ("words", "the score of position 2 is '2.5'"),
        ("many", "too many scores: 41 for the 40 tokens"),
        ("few", "too few scores: 39 for the 40 tokens"),
        ("chatty", "too many answers"),
        ("nowhere", 'line 2: "document" 99'),
        ("elsewhere", "log-probabilities at '900'"),
        ("fails-at-its-end", "ended with status 3, behind its last answer"),
    ],
)
def test_a_program_that_does_not_answer_is_named(kind, words):
    report = audited(kind)
    assert verdicts(report) == {"answers": NOT_JUDGED} and report.status == 2
    assert words in said(report, "answers") and said(report, "answers").startswith("run 1 (the documents as they are): ")


def test_what_a_program_said_at_last_is_kept():
    assert audited("dies").last_words.endswith("no room for the second document") and audited("nan").last_words == ""


def test_a_program_that_hangs_is_ended_with_what_it_has_started():
    started = time.monotonic()
    report = audited("hangs", timeout=0.7)
    assert "the program hangs: no answer for document 1, positions 0 to 39 within 0.7 s (--timeout)" in said(report, "answers")
    assert time.monotonic() - started < 10
    left = [line for line in _command_lines() if "audited_program.py" in line and "hangs" in line or line.startswith("sleep\x00600")]
    assert not left


def _command_lines() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            found.append((entry / "cmdline").read_text() if entry.name.isdecimal() else "")
        except OSError:
            pass
    return found


def test_one_that_waits_for_later_tokens_can_not_when_they_come_in_pieces():
    assert verdicts(audited("waits")) == ALL
    report = audited("waits", segment=8, timeout=0.7)
    assert "later tokens are sent when these are scored" in said(report, "answers") and report.status == 2


def test_a_program_that_can_not_be_started_is_refused():
    with pytest.raises(ConfigError, match="can't be started: No such file"):
        audit_program(Program("no/such/program"), TEXTS, VOCABULARY)
    for words in ("", "python 'mine.py"):
        with pytest.raises(ConfigError, match="command "):
            audit_program(Program(words), TEXTS, VOCABULARY)
    with pytest.raises(ConfigError, match="document 1 has 1 tokens"):
        audit_program(Program("true"), [TEXTS[0], TEXTS[0][:1]], VOCABULARY)


def test_one_document_alone_can_not_leak():
    report = audit_program(InProcess("honest"), TEXTS[:1], VOCABULARY, resets=True, positions=3)
    assert verdicts(report) == {**ALL, "documents": NOT_JUDGED}


# ---- power


class InProcess(Program):
    """The same answers without a process."""

    def __init__(self, kind: str, segment=None):
        super().__init__(kind, segment)

    def answer(self, request: dict):
        return scored(Counts(VOCABULARY), request["tokens"], request["start"], request["ask"], self.command, len(request["tokens"]))

    def run(self, given, ask={}) -> Scores:
        answers = _Answers([len(document) for document in given])
        for request in _requests(given, ask, self.segment):
            answers.pending = [request]
            nll, logprobs = self.answer(request)
            answers.take(json.dumps({"nll": nll, "logprobs": logprobs}).encode())
        return answers.scores()


class Rare(InProcess):
    """At some positions the probability of the next token is that of the one behind it as well."""

    def __init__(self, cheating):
        super().__init__("rare")
        object.__setattr__(self, "cheating", cheating)

    def run(self, given, ask={}) -> Scores:
        odd = np.append(given[0][1:] % 2, 0)
        return Scores([np.where(self.cheating[: len(odd)], odd, 2.0)])


@pytest.mark.parametrize("share, tried", [(0.05, 10), (0.02, 40)])
def test_cheats_escape_as_often_as_the_report_says(share, tried):
    """A cheat at a share of the positions which looks one token ahead is met where the token behind one of them is changed, if the other
    token is one that it tells from the old one (every second here)."""
    rng, length, escaped, audits = np.random.default_rng(3), 400, 0, 100
    text = [documents.made_up(VOCABULARY, 1, length, seed=2)[0]]
    other = np.mean([(documents.changed(text[0], 0, text[0], VOCABULARY, rng) % 2 != text[0] % 2).mean() for _ in range(20)])
    for audit in range(audits):
        cheating = rng.permutation(length) < round(share * length)
        report = audit_program(Rare(cheating), text, VOCABULARY, positions=tried, distributions=False, seed=audit)
        escaped += verdicts(report)["later tokens"] == PASSED
    expected = escapes(share * other, tried)
    assert abs(escaped / audits - expected) < 4 * (expected * (1 - expected) / audits) ** 0.5


def test_power_in_numbers():
    found = power(32)
    assert found["escapes"]["0.1"] == pytest.approx(0.9**32) and found["escapes"]["0.5"] == pytest.approx(0.5**32)
    assert (1 - found["met_from_share"]) ** 32 == pytest.approx(0.05)
    assert power(0)["met_from_share"] is None


# ---- documents


def test_changed_tokens_are_others_and_known_ones():
    rng = np.random.default_rng(0)
    for text in TEXTS:
        for start in (0, 7, len(text) - 1):
            new = documents.changed(text, start, np.concatenate(TEXTS), VOCABULARY, rng)
            assert (new[:start] == text[:start]).all() and (new[start:] != text[start:]).all()
            assert set(new) <= set(np.concatenate(TEXTS))
    alike = np.zeros(5, np.int64)
    assert (documents.changed(alike, 2, alike, 7, rng)[2:] > 0).all()


def test_made_up_documents_repeat_themselves_and_each_other():
    one, other = documents.made_up(5000, 2, 1000, seed=0)
    pairs = lambda text: set(zip(text, text[1:]))  # noqa: E731
    assert len(pairs(one)) < 900 and len(pairs(one) & pairs(other)) > 100
    assert one.max() < 5000 and len(one) == 1000


def test_positions_come_from_all_parts():
    rng = np.random.default_rng(0)
    drawn = documents.strata(100, 10, rng)
    assert [at // 10 for at in drawn] == list(range(10))
    assert documents.strata(3, 10, rng) == [0, 1, 2]


def test_documents_from_a_file(tmp_path):
    path = tmp_path / "valid.jsonl"
    path.write_text('[1, 2, 3]\n\n{"tokens": [4, 5]}\n')
    assert [list(document) for document in documents.read(path, 6)] == [[1, 2, 3], [4, 5]]
    for line, words in (("[1, 9]", "ids from 0 to 5"), ("[1.5]", "ids from 0 to 5"), ("{}", "ids"), ("[1]", "1 tokens"), ("x", "ids")):
        path.write_text(f"[1, 2]\n{line}\n")
        with pytest.raises(ConfigError, match=f"line 2: .*{words}"):
            documents.read(path, 6)
    path.write_text("\n")
    with pytest.raises(ConfigError, match="none in it"):
        documents.read(path, 6)


def test_the_runs_of_a_program_are_told_before_they_begin():
    told = []
    audit_program(InProcess("honest"), TEXTS, VOCABULARY, resets=True, positions=6, tell=told.append)
    assert [event["run"] for event in told] == list(range(1, len(told) + 1)) and told[0]["runs"] == told[-1]["runs"] == len(told)


def test_the_example_passes_and_is_short():
    example = HERE.parent / "examples" / "audit" / "unigram.py"
    assert len(example.read_text().splitlines()) <= 30
    for segment in (None, 16):
        program = Program(shlex.join([sys.executable, "-S", "-E", str(example), str(VOCABULARY)]), segment)
        assert verdicts(audit_program(program, TEXTS, VOCABULARY, resets=True, positions=6)) == ALL


# ---- the engine through the protocol


class EngineProgram(InProcess):
    """audited_engine.py without a process."""

    def __init__(self, reset: str = "document"):
        super().__init__("engine")
        object.__setattr__(self, "engine", tiny_engine(VOCABULARY, reset))

    def run(self, given, ask={}) -> Scores:
        self.engine.reset(0)
        return super().run(given, ask)

    def answer(self, request):
        return answer(self.engine, request)


def test_the_engine_passes_through_the_protocol():
    assert verdicts(audit_program(EngineProgram(), TEXTS, VOCABULARY, resets=True, positions=3)) == ALL


def test_the_engine_without_resets_is_no_program_that_resets():
    assert verdicts(audit_program(EngineProgram("never"), TEXTS, VOCABULARY, resets=True, positions=3))["documents"] == FAILED


@pytest.mark.slow
def test_the_engine_passes_as_a_process():
    words = shlex.join([sys.executable, str(HERE / "audited_engine.py"), str(VOCABULARY)])
    assert verdicts(audit_program(Program(words, timeout=300), TEXTS, VOCABULARY, resets=True, positions=3)) == ALL


def test_errors_of_a_program_are_of_one_kind():
    with pytest.raises(ProgramError, match="too few scores"):
        Program(command("few")).run(TEXTS)
    assert mixed([0.5, 0.5], 1, 0.5) == [0.25, 0.75]

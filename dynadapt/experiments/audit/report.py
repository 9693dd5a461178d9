"""What an audit found: a verdict a check, one for all of them, and what may have escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

PASSED, FAILED, NOT_JUDGED, LEFT_OUT = "passed", "failed", "not judged", "left out"
STATUS = {PASSED: 0, FAILED: 1, NOT_JUDGED: 2}
SHARES = (0.5, 0.1, 0.01)
SURE = 0.05  # what escapes less often than this is taken to have been met
EVIDENCE = 20  # places that a report lists of each check


@dataclass
class Check:
    """One question. `said`: the answer in words; `tried`: how many places it was asked of; `evidence`: the places that failed, the worst
    first, each with what was found there. LEFT_OUT: nobody asked, or nothing of the kind is claimed; it counts neither way."""

    name: str
    verdict: str
    said: str
    tried: int = 0
    evidence: list[dict] = field(default_factory=list)


@dataclass
class Report:
    """All checks of one audit. `subject`: what was audited; `settings`: how; `tried`: positions whose tokens were changed; `last_words`: of
    a program that did not answer, on standard error."""

    subject: str
    settings: dict
    checks: list[Check] = field(default_factory=list)
    tried: int = 0
    notes: list[str] = field(default_factory=list)
    last_words: str = ""

    @property
    def verdict(self) -> str:
        """FAILED if one check did, else NOT_JUDGED if one could not be, else PASSED."""
        found = {check.verdict for check in self.checks}
        return FAILED if FAILED in found else NOT_JUDGED if NOT_JUDGED in found or PASSED not in found else PASSED

    @property
    def status(self) -> int:
        """The exit status that says the verdict."""
        return STATUS[self.verdict]

    def add(self, name: str, verdict: str, said: str, tried: int = 0, evidence: Sequence[dict] = ()) -> Check:
        self.checks.append(Check(name, verdict, said, tried, list(evidence)[:EVIDENCE]))
        return self.checks[-1]

    def to_dict(self) -> dict:
        """Ready for JSON."""
        return {
            "format": 1,
            "subject": self.subject,
            "verdict": self.verdict,
            "settings": self.settings,
            "checks": [asdict(check) for check in self.checks],
            "power": power(self.tried),
            "notes": self.notes,
            "last_words": self.last_words,
        }


def escapes(share: float, tried: int) -> float:
    """The probability that a cheat goes unseen which shows at a `share` of all positions, where `tried` of them are drawn at random.

    Drawing one from each of as many equal parts of the text, as the audit does, lets no more escape: the product of (1 - p_i) over parts with
    shares p_i is at most (1 - mean p_i)^n, by the inequality of the means.
    """
    return (1.0 - share) ** tried


def power(tried: int) -> dict:
    """What `tried` positions can tell: `escapes` by share, and the share from which on a cheat is met in 19 of 20 audits."""
    return {
        "positions": tried,
        "escapes": {f"{share:g}": escapes(share, tried) for share in SHARES},
        "met_from_share": 1.0 - SURE ** (1.0 / tried) if tried else None,
    }


def power_in_words(tried: int) -> str:
    if not tried:
        return "No position was tried."
    said = ", ".join(f"at {share:.0%} of them {_probability(escapes(share, tried))}" for share in SHARES)
    return (
        f"{tried:,} positions were tried: a cheat that shows at a share p of all positions escapes with probability (1 - p)^{tried}, {said}. "
        f"From a share of {power(tried)['met_from_share']:.2g} on it is met in 19 of 20 audits; --positions N tries more."
    )


def _probability(value: float) -> str:
    return "below 1e-9" if value < 1e-9 else f"{value:.2g}"

"""What a diagnosis concludes, and the numbers it stands on.

helps               the interval of the mean change lies below 0;
inconclusive        it holds 0;
hurts on few types  it lies above 0, and at most FEW token types, picked on one half of the documents, explain at least
                    HALF of the rise on the other half, and at least CROWDED times their share of the tokens;
hurts broadly       it lies above 0 otherwise.
"""

from __future__ import annotations

FEW, HALF, CROWDED = 10, 0.5, 2.0
HELPS, BROADLY, FEW_TYPES, INCONCLUSIVE = "helps", "hurts broadly", "hurts on few types", "inconclusive"


def few_types(shares: list[dict]) -> dict | None:
    """The first record of `attribution.concentration` by which few types explain the change."""
    for record in shares:
        if (
            record["types"] <= FEW
            and record["held_out"] is not None
            and record["held_out"] >= HALF
            and record["held_out"] >= CROWDED * record["tokens"]
        ):
            return record
    return None


def judge(interval: tuple[float, float], shares: list[dict]) -> str:
    low, high = interval
    if low <= 0 <= high:
        return INCONCLUSIVE
    if high < 0:
        return HELPS
    return FEW_TYPES if few_types(shares) else BROADLY


def evidence(diagnosis: dict) -> list[str]:
    """Sentences that a person can check against the table."""
    change, low, high = diagnosis["change"], *diagnosis["interval"]
    perplexity, drawn = diagnosis["perplexity"], diagnosis["units"]
    said = [
        f"mean change {change:+.4f} nats per token, 95% interval {_range(low, high)} over {drawn['count']} {plural(drawn)}; "
        f"perplexity {perplexity['before']:.2f} to {perplexity['after']:.2f}",
        f"{diagnosis['tokens_improved']:.0%} of tokens and {diagnosis['types_improved']:.0%} of types got better; "
        f"every type weighted alike, the change is {diagnosis['macro_change']:+.4f}",
    ]
    said += _of_types(diagnosis, "rise" if change > 0 else "fall")
    classes = sorted(diagnosis["classes"], key=lambda c: -abs(c["contribution"]))[:2]
    said.append("by class: " + ", ".join(f"{c['class']} {c['contribution']:+.4f}" for c in classes) + " nats per token")
    return said + [_of_control(control, change, low > 0) for control in diagnosis["controls"]]


def _of_types(diagnosis: dict, direction: str) -> list[str]:
    few = few_types(diagnosis["concentration"])
    record = few or next(record for record in diagnosis["concentration"] if record["types"] == FEW)
    if record["held_out"] is None:
        return []
    largest = ", ".join(repr(t["shown"]) for t in diagnosis["top_types"][: min(3, record["types"])])
    one = record["types"] == 1
    return [
        f"the {'type' if one else str(record['types']) + ' types'} with the largest part in the {direction} ({largest}"
        f"{', ...' * (record['types'] > 3)}), picked on one half of the text, explain{'s' * one} {record['held_out']:.0%} of "
        f"it on the other half, being {record['tokens']:.1%} of its tokens"
    ]


def _of_control(control: dict, change: float, hurts: bool) -> str:
    text = f"with {control['title']}, the change is {control['change']:+.4f} {_range(*control['interval'])}"
    return text + ("; so the rise is one of format" if hurts and goes_away(control, change) else "")


def goes_away(control: dict, change: float) -> bool:
    """Whether a rise is gone, or less than half of what it was, once the format is normal."""
    return control["interval"][0] <= 0 or control["change"] < change / 2


def _range(low: float, high: float) -> str:
    return f"[{low:+.4f}, {high:+.4f}]"


def plural(drawn: dict) -> str:
    return drawn["name"] if drawn["count"] == 1 else drawn["name"].replace("document", "documents").replace("block", "blocks")

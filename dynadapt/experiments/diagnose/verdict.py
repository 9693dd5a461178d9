"""What a diagnosis concludes, and the numbers it stands on. The first that holds:

diverged                 the mean NLL after is above ln V, that of knowing nothing, where the one before was not;
no change worth naming   the interval of the mean change lies within the margin on both sides of 0;
helps                    it lies below 0;
inconclusive             it holds 0;
hurts on few types       it lies above 0, and at most FEW token types, picked on one half of the documents, explain at least
                         HALF of the rise on the other half, and at least CROWDED times their share of the tokens;
hurts broadly            it lies above 0 otherwise.
"""

from __future__ import annotations

FEW, HALF, CROWDED = 10, 0.5, 2.0
FEW_UNITS = 10  # documents or blocks: fewer are said to be few
MARGIN = 0.01  # nats per token, 1% of perplexity
HELPS, BROADLY, FEW_TYPES, INCONCLUSIVE = "helps", "hurts broadly", "hurts on few types", "inconclusive"
UNCHANGED, DIVERGED = "no change worth naming", "diverged"


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


def diverged(before: float, after: float, ceiling: float) -> bool:
    """Whether mean NLLs say so. ceiling: ln V, the NLL of a uniform guess."""
    return before <= ceiling < after


def judge(interval: tuple[float, float], shares: list[dict], margin: float) -> str:
    """The verdict on a change that did not diverge."""
    low, high = interval
    if -margin <= low and high <= margin:
        return UNCHANGED
    if high < 0:
        return HELPS
    if low <= 0:
        return INCONCLUSIVE
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
    said += _of_verdict(diagnosis) + _of_units(drawn, len(diagnosis["documents"])) + _of_repeats(diagnosis["repeats"])
    said += _of_types(diagnosis, "rise" if change > 0 else "fall")
    classes = sorted(diagnosis["classes"], key=lambda c: -abs(c["contribution"]))[:2]
    said.append("by class: " + ", ".join(f"{c['class']} {c['contribution']:+.4f}" for c in classes) + " nats per token")
    return said + [_of_control(control, change, low > 0) for control in diagnosis["controls"]]


def _of_verdict(diagnosis: dict) -> list[str]:
    if diagnosis["verdict"] == DIVERGED:
        return [
            f"the NLL after, {diagnosis['nll']['after']:.2f} nats, is above the {diagnosis['ceiling']:.2f} of a uniform guess: the "
            "adaptation diverged, which says nothing of whether adapting hurts; take a smaller rate"
        ]
    if diagnosis["verdict"] == UNCHANGED:
        return [f"the whole interval lies within {diagnosis['margin']:g} nats of 0, the margin below which no change is worth naming"]
    return []


def _of_units(drawn: dict, documents: int) -> list[str]:
    """What the number of units keeps an interval from saying."""
    said = []
    if drawn["count"] < FEW_UNITS:
        said.append(
            f"{drawn['count']} {plural(drawn)} are few: the interval is Student's, wide for that reason; more held-out text narrows it"
        )
    if drawn["name"] != "document":
        of = "one document" if documents == 1 else f"{documents} documents"
        said.append(f"the blocks are of {of}: the interval is about these, other documents may differ by more")
    return said


def _of_repeats(repeats: dict | None) -> list[str]:
    if not repeats or not repeats["repeated"]:
        return []
    without = repeats["change_without"]
    return [
        f"{repeats['repeated']} of {repeats['paragraphs']} paragraphs of the held-out text, {repeats['share_of_tokens']:.1%} of its tokens, "
        f"are in the learned text too, word for word or nearly (first: {repeats['examples'][0]!r}); "
        + ("nothing is left without them" if without is None else f"without them the change is {without:+.4f}")
    ]


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

"""What the results file of each script that adaptation.py runs says of its claims: a row a verdict, with its rule, what was found and its power."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scipy.stats import t as student

from benchmarks import distillation, guard, learning_from, levels, long_ranks, resets, score_first
from benchmarks.long_streams_rules import COMPARISONS
from benchmarks.script import OPEN, judged, mean_error, power_shown, said_by_itself, shown
from dynadapt.experiments.reweight.power import seen

WORST, CHECKED = 0.8, 0.05  # power that is wanted, and the level of Student's intervals


@dataclass(frozen=True)
class Row:
    """One verdict, in words."""

    claim: str
    rule: str
    verdict: str
    found: str
    power: str
    texts: str


def all_hold(n: int) -> str:
    """Of a rule that every one of n texts has to keep."""
    return f"{1 - (1 - WORST) ** (1 / n):.0%} of texts"


def of_guard(results: dict) -> list[Row]:
    v, n = results["verdicts"], len(results["rows"])
    rows = []
    for claim, key in (
        ("a guard: never worse", "never worse, guarded"),
        ("the same at 10 times the rate", "never worse, guarded, ten times the rate"),
    ):
        found = f"largest {v[key]['largest_excess']:+.4f} ({v[key]['text']})"
        rows.append(Row(claim, f"no text more than {guard.WORSE} above static", v[key]["verdict"], found, all_hold(n), str(n)))
    mixed = v["no rate to guess"]
    row = judged_row("no rate to guess", f"at most {guard.BEHIND} behind the best of each text, Student", mixed)
    placed = [(row["text"], value) for row, value in zip(results["rows"], mixed["by_text"]) if not row["text"].startswith("splice")]
    rows.append(replace(row, texts=f"{row.texts}; {of_fewer(by_domain(placed), 'domains alone')}"))
    bound = v["the bound"]
    over = f"largest {bound['largest_over_the_bound']:+.5f} over"
    return [*rows, Row("the bound of a mixture", "no run above it", bound["verdict"], over, all_hold(n), f"{n}, {bound['runs']} runs")]


def of_resets(results: dict) -> list[Row]:
    v, rows = results["verdicts"], []
    judged = {arm: found for arm, found in v["spliced"].items() if not arm.endswith("oracle")}
    for arm, found in judged.items():
        if arm in ("static", "never"):
            continue
        n = found["texts"]
        called = "half the rate, no reset" if arm == "lower" else f"reset {arm}"
        p = f"p {found['p']:.4f} (of {len(judged)} together {found['p_together']:.4f})"
        rows.append(
            Row(
                f"{called}: as good as an oracle", f"at most {resets.BEHIND} behind it, Student", said_by_itself(found),
                f"{found['behind_oracle']:+.4f} ± {found['error']:.4f}, {p}", f"{seen(found['error'], n - 1, CHECKED):.4f}", f"{n} spliced",
            )
        )  # fmt: skip
    for what, claim in (
        ("the alarm's part", "an alarm is worth more than the lower rate behind it"),
        ("a reset at the lower rate", "a reset at each splice helps at the lower rate too"),
    ):
        arm = resets.BESIDE_LOWER[what]
        rule = f"{arm} less lower below 0, Student"
        if part := v.get(what):
            n, found = part["texts"], f"{part[f'{arm}_less_lower']:+.4f} ± {part['error']:.4f}, p {part['p']:.4f}"
            rows.append(Row(claim, rule, part["verdict"], found, f"{seen(part['error'], n - 1, CHECKED):.4f}", f"{n} spliced"))
        elif arm != "lower-oracle":  # only one design has it
            rows.append(Row(claim, rule, "not run", "", "", ""))
    needed = resets.poisson(0, upper=True) * resets.SEGMENTS / resets.FALSE
    for kind in resets.KINDS:
        rule = f"under {resets.FALSE:.0%} in {resets.SEGMENTS} segments"
        if kind not in v["stationary"]:
            rows.append(Row(f"few false alarms, {kind}", rule, "not run", "", "", ""))
        for arm, found in v["stationary"].get(kind, {}).items():
            texts = len([row for row in results["rows"] if row["kind"] == kind and arm in row["arms"]])
            rows.append(
                Row(
                    f"few false alarms, {kind}: {arm}", rule, found["verdict"], f"{found['alarms']} in {found['segments']} segments",
                    f"confirms from {needed:,.0f} on", str(texts),
                )
            )  # fmt: skip
    return rows


def judged_row(claim: str, rule: str, found: dict, verdict: str | None = None) -> Row:
    """Of what ``script.judged`` gives."""
    return Row(claim, rule, verdict or found["verdict"], shown(found, 4), power_shown(found, 4), str(found["texts"]))


def of_levels(results: dict) -> list[Row]:
    v = results["verdicts"]
    beside = f"beside {v['best_pair']}"
    nats = judged_row(f"three levels {beside}", f"better by {levels.MARGIN}, Student", v["nats"])
    flops = f"{v['flops']['ratio']:.2f} times"
    n = nats.texts
    return [
        nats,
        Row("what the third level costs", f"at most {levels.COST} times the FLOPs", v["flops"]["verdict"], flops, "-", n),
        Row("both together", "both confirmed", v["verdict"], "", "-", n),
    ]


def of_score_first(results: dict) -> list[Row]:
    rows = []
    for rate in score_first.RATES:
        found = results["results"][f"{rate:g}"]
        less, n = found["memory_less_window_again"], found["documents"]
        low, high = less["interval"]
        error = (high - low) / 2 / float(student.ppf(1 - CHECKED / 2, n - 1))
        apart = [
            (row["text"], row["arms"][f"memory, {rate:g}"]["bits_per_byte"] - row["arms"][f"window again, {rate:g}"]["bits_per_byte"])
            for row in results["rows"]
        ]
        rows.append(
            Row(
                f"memory in place of the window run again, rate {rate:g}", f"at most {score_first.NEAR} bits per byte behind, {score_first.FEWER} times fewer FLOPs",
                found["verdict"], f"{less['mean']:+.4f} [{low:+.4f}, {high:+.4f}], {found['flops_ratio']:.1f} times", f"{seen(error, n - 1, CHECKED):.4f}",
                f"{n}; {of_fewer(by_domain(apart), 'domains')}",
            )
        )  # fmt: skip
    return rows


def of_fewer(values: list[float], what: str) -> str:
    """Mean and interval of values of which what is not independent has been made one; too few to judge."""
    return f"{len(values)} {what}: {shown(judged(values), 4)}"


def by_domain(found: list[tuple[str, float]]) -> list[float]:
    """The mean of each domain's values; found: (what the text is called, its value), "DOMAIN, PLACE" or else no domain's."""
    domains: dict[str, list[float]] = {}
    for text, value in found:
        domain, place, _ = text.partition(",")
        if place:
            domains.setdefault(domain, []).append(value)
    return [mean_error(values)[0] for values in domains.values()]


def pages_as_one(values: list[float], texts: list[str]) -> list[float]:
    """Of values by text: the manual pages' mean, and the others."""
    pages = [value for value, text in zip(values, texts) if text.startswith("man-")]
    return [value for value, text in zip(values, texts) if not text.startswith("man-")] + ([mean_error(pages)[0]] if pages else [])


LONG = (  # of a claim's comparisons: what they are called, by what rule
    ("5", "{online} as good as {static}, first {tokens:,} tokens", "below 0.01, Student"),
    ("4", "{lora} worse than {full}, first {tokens:,} tokens", "above 0, Student"),
    ("3b", "{online} below the static front", "below 0, Student"),
    ("growth", "the gain of {online} grows along {tokens:,} tokens", "last less first 16,384 above 0, Student"),
    ("kept", "the gain of {online} is kept along {tokens:,} tokens", "second less first half above -0.01, Student"),
)


def of_long(results: dict) -> list[Row]:
    texts = list(results["texts"])
    return [
        together_row(called.format(**of), rule, of, texts, COMPARISONS.get(claim))
        for claim, called, rule in LONG
        for of in results["verdicts"][claim]
    ]


def of_ranks(results: dict) -> list[Row]:
    texts = list(results["texts"])
    called = lambda of: f"{of['arm']} {'worse than' if of['less'] == 'full' else 'better than'} {of['less']}"  # noqa: E731
    rule = lambda of: f"{'above' if of['less'] == 'full' else 'below'} 0, Student"  # noqa: E731
    return [together_row(called(of), rule(of), of, texts, len(long_ranks.COMPARISONS)) for of in results["verdicts"]]


def of_orders(results: dict) -> list[Row]:
    texts = [row["text"] for row in results["rows"]]
    less = {"grows": "last less first place above 0, Student", "goes on growing": "last less second place above 0, Student"}
    return [
        together_row(f"the gain {of['claim']}, whatever text it is", less[of["claim"]], of, texts, len(less)) for of in results["verdicts"]
    ]


def together_row(claim: str, rule: str, of: dict, texts: list[str], comparisons: int | None) -> Row:
    """Of a comparison of long streams, which is counted with its claim's others where there are several."""
    row = judged_row(claim, rule, of, said_by_itself(of))
    p = f", p {of['p']:.4f}" + (f" (of {comparisons} together {of['p_together']:.4f})" if comparisons else "")
    fewer = of_fewer(pages_as_one(of["by_text"], texts), "with the manual pages as one")
    return replace(row, found=row.found + p, texts=f"{row.texts}; {fewer}")


def with_interval(claim: str, rule: str, verdict: str, found: dict, texts: int, ends: tuple[str, str] = ("low", "high")) -> Row:
    """Of a mean and its 95% interval over texts."""
    low, high = (found[end] for end in ends)
    error = (high - low) / 2 / float(student.ppf(1 - CHECKED / 2, texts - 1))
    return Row(
        claim, rule, verdict, f"{found['mean']:+.4f} [{low:+.4f}, {high:+.4f}]", f"{seen(error, texts - 1, CHECKED):.4f}", str(texts)
    )


def of_learning_from(results: dict) -> list[Row]:
    rows = []
    for arm, found in results["verdicts"].items():
        n = found["texts"]
        if kept := found.get("kept"):
            part = f"{learning_from.KEPT:.0%} of what learning from all gains"
            rows.append(with_interval(f"{arm} keeps {part}", f"gain less {part} above 0, Student", kept["says"], kept, n))
            passes = f"{found['passes']:.0%}"
            rows.append(
                Row(f"{arm}: few passes", f"at most {learning_from.PASSES:.0%} of the backward passes", found["few"], passes, "-", str(n))
            )
        if beside := found.get("beside_all"):
            rule = f"better by {learning_from.BETTER} on {learning_from.MOST} texts"
            rows.append(with_interval(f"{arm} beside one rate", f"{rule}, counted", found["verdict"], beside, n))
    return rows


def of_distillation(results: dict) -> list[Row]:
    v, ends = results["verdicts"], ("from", "to")
    n, rows = v["texts"], []
    for arm in ("distilled", "distilled, 4th"):
        claim = f"{arm}: half of what memory gains is kept without it"
        rows.append(with_interval(claim, "gain less half of memory's above 0, Student", v[arm]["verdict"], v[arm]["beyond_half"], n, ends))
    for arm in ("keep", "keep, 4x"):
        half = "forgotten less half of what is without it below 0, Student"
        rows.append(with_interval(f"{arm}: half is forgotten", half, v[arm]["verdict"], v[arm]["beyond_half"], n, ends))
        cost = f"at most {distillation.COST} on the text, Student"
        both = OPEN if v[arm]["verdict"] == "open" else v[arm]["verdict"]
        rows.append(with_interval(f"{arm}: what it costs", cost, f"{both} (both together)", v[arm]["cost"], n, ends))
    return rows

"""The tables and sentences of `benchmarks/odyssey.py`."""

from __future__ import annotations

from benchmarks.odyssey_rules import SHOWN, diverged
from benchmarks.script import TUNED
from dynadapt.experiments.diagnose.verdict import DIVERGED


def markdown(results: dict) -> str:
    lines = []
    for condition, found in results["conditions"].items():
        lines += [
            f"## {condition}",
            "",
            "| domain | bits per byte | divergence | change (95%) | verdict "
            "| top 10 types, other half (tokens) | foreseen (95%) | advice |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in found["rows"]:
            ends = lambda pair: "-" if None in pair else f"[{pair[0]:+.3f}, {pair[1]:+.3f}]"  # noqa: E731
            share = "-" if row["top10"]["held_out"] is None else f"{row['top10']['held_out']:.0%} ({row['top10']['tokens']:.0%})"
            cells = (
                row["domain"],
                f"{row['bits_per_byte']:.3f}",
                f"{row['divergence']:.3f}",
                f"{row['change']:+.3f} {ends(row['interval'])}",
                DIVERGED if diverged(row) else row["verdict"],
                share,
                f"{row['expected']:+.3f} {ends(row['expected_interval'])}",
                row["advice"],
            )
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", *_said(found["claims"]), ""]
    return "\n".join(lines) + "\n"


def _said(found: dict) -> list[str]:
    worse, advice = found["10"]["worse"], found["advice"]
    domains, named = found["10"]["domains"], f" ({', '.join(worse)})" * bool(worse)
    correlation = lambda rho: f"{rho['rho']:+.2f} [{rho['interval'][0]:+.2f}, {rho['interval'][1]:+.2f}]"  # noqa: E731
    said, seen = found["verdicts"], found["verdicts"]["rank correlation seen with 80%"]
    strong = found["verdicts"][f"power at a rank correlation of {SHOWN:g}"]
    ten = found["10"]
    unseen = (
        f", so that with 95% at most {ten['share_at_most']:.0%} of such domains do, by those that chose no default {ten['share_at_most, untuned']:.0%}"
        if not worse
        else ""
    )
    lines = [
        f"- Verdicts: claim 10 {said['10']}, claim 11 {said['11']}"
        + (f" (a true correlation of {seen:g} would show with 80%)" if seen else " (no true correlation below 1 shows with 80%")
        + ("" if seen else ")" if strong is None else f"; one of {SHOWN:g} with {strong:.0%})")
        + f", claim 12 {said['12']}; the advice beside one answer for all domains {said['advice']}.",
        f"- Claim 10: {len(worse)} of {domains} domains got worse{named}{unseen}; those whose texts chose defaults are {', '.join(TUNED)}."
        + (f" Confirmed with 80% where {ten['share seen with 80%']:.0%} of such domains get worse." if ten["share seen with 80%"] else ""),
    ]
    if found["10"]["diverged"]:
        lines.append(f"- Diverged (above ln V), and judged by no claim: {', '.join(found['10']['diverged'])}.")
    for name, rho in (found["11"] or {}).items():
        line = f"- Claim 11, {name}: Spearman {correlation(rho)} with the change, p = {rho['p']:.3f}, {rho['domains']} domains"
        own = (found["11, untuned"] or {}).get(name)
        lines.append(
            line + (f"; without those that chose defaults {own['rho']:+.2f}, p = {own['p']:.3f}, {own['domains']}." if own else ".")
        )
    few = [name for name, row in found["12"].items() if row["verdict"] == "hurts on few types"]
    twelve = found["12, share_at_most"]
    room = f", so that with 95% in at most {twelve['all']:.0%} of such domains do, by those that chose no default {twelve['untuned']:.0%}"
    lines.append(
        f"- Claim 12: in {len(few)} of the {len(worse)} domains that got worse, at most 10 token types explain at least half of it"
        + (f"{room}." if worse and not few else ".")
    )
    rho = advice["rank_correlation"]
    lines.append(
        f"- Advice: right in {advice['right']} of {advice['decided']} domains that it decided (always adapting: "
        f"{advice['always_adapting_right']}, never: {advice['never_adapting_right']}); measured less foreseen "
        f"{advice['mean_error']:+.3f} (mean absolute {advice['mean_absolute_error']:.3f}); {advice['covered']} of {domains} "
        "inside the interval" + (f"; rank correlation {correlation(rho)}." if rho else ".")
    )
    fit = advice["calibrated"]
    if fit["factor"]:
        lines.append(
            f"- Advice, calibrated: outcomes within a factor of {fit['factor']:.1f} of what was foreseen; with the factor "
            f"of the other domains, {fit['held']} of {fit['of']} inside."
        )
    return lines

"""Which method is better at equal FLOPs: against stratified sampling that trains for as long as the method's FLOPs last.

compare.py holds runs of equal tokens against each other, and what a method needs beside training (held-out losses that it reads, a reference, a sample
that targets are fitted to, probes, proxies, fits) costs it nothing there. Here stratified sampling goes on until it has spent all of that too, and its loss at
that step is what the method's is paired with. A stratified run of n steps at a constant rate is the beginning of a longer one, row by row, so that one long
run a seed serves all methods.

Rows are those of compare.py with "equal_flops": {"steps", "tokens", "flops", "test", "mean"} of stratified sampling. The rule is compare.py's, with a
family of its own for Holm's adjustment: every method that has such a row. It was fixed before any such run was made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .compare import BASE, UNTESTED, WANTS_LARGE_BATCHES, compared, nats, of_pairs, signed
from .power import POWER


def stratified_steps(whole: int, a_step: float) -> int:
    """Steps of stratified sampling, a_step FLOPs each, that spend no less than all that a method did."""
    return max(1, math.ceil(whole / a_step))


def at_equal_flops(rows: Sequence[Mapping], method: str, base: str = BASE) -> dict | None:
    """The method less stratified sampling with its FLOPs, paired by seed; None where no seed has both."""
    found = sorted((row for row in rows if row["method"] == method and row.get("equal_flops")), key=lambda row: row["seed"])
    if not found:
        return None
    return {
        **of_pairs([(row, row["equal_flops"]) for row in found]),
        "times_the_tokens": float(np.mean([row["equal_flops"]["tokens"] / row["tokens"] for row in found])),
    }


def judged_by_flops(rows: Sequence[Mapping], batch: int | None = None) -> dict:
    """Comparisons and verdict of one case; rows of a step, where it is known, as in compare.judged."""
    methods = list(dict.fromkeys(row["method"] for row in rows if row.get("equal_flops") and row["method"] != BASE))
    found = compared(rows, [(name, BASE) for name in methods], at_equal_flops)
    if rows and batch is not None and batch < len(rows[0]["test"]):
        for name in set(WANTS_LARGE_BATCHES) & set(found):
            found[name]["says"] = UNTESTED
    by_word = {
        word: [name for name, value in found.items() if value["says"] == word] for word in ("better", "worse", "undecided", UNTESTED)
    }
    said = [f"{word}: {', '.join(names) or 'none'}" for word, names in by_word.items() if names or word in ("better", "worse")]
    return {"against_stratified": found, "verdict": "; ".join(said)}


def bits_per_byte(rows: Sequence[Mapping]) -> dict[str, dict[str, float]]:
    """Mean over seeds, by method and domain, of rows that have "tokens_per_byte" by domain."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for domain, rate in (row.get("tokens_per_byte") or {}).items():
            found.setdefault(row["method"], {}).setdefault(domain, []).append(row["test"][domain] * rate / math.log(2))
    return {method: {domain: float(np.mean(values)) for domain, values in by.items()} for method, by in found.items()}


def flops_markdown(found: Mapping) -> list[str]:
    """Lines of one case: its comparisons at equal FLOPs, and its bits per byte."""
    lines: list[str] = []
    by_flops, bits = found.get("by_flops", {}), found.get("bits_per_byte", {})
    if by_flops.get("against_stratified"):
        lines += [
            "| method | seeds | stratified has | less stratified at equal FLOPs (95%) | Holm p | sees | |",
            "|---|---|---|---|---|---|---|",
        ]
        for method, value in by_flops["against_stratified"].items():
            p = "" if value["p_adjusted"] is None else f"{value['p_adjusted']:.3f}"
            sees = "" if value["sees"] is None else nats(value["sees"])
            times = f"{value['times_the_tokens']:.2f} times the tokens"
            lines.append(f"| {method} | {value['seeds']} | {times} | {signed(value)} | {p} | {sees} | {value['says']} |")
        lines += [
            "",
            f'- At equal FLOPs: {by_flops["verdict"]}. "sees" is the true difference that would have been called with probability {POWER:g}.',
            "",
        ]
    if bits:
        domains = list(next(iter(bits.values())))
        lines += ["| bits per byte | " + " | ".join(domains) + " |", "|---" * (len(domains) + 1) + "|"]
        lines += [f"| {method} | " + " | ".join(f"{by[domain]:.4f}" for domain in domains) + " |" for method, by in bits.items()]
        lines.append("")
    return lines


def searches_markdown(found: Mapping[str, Sequence[Mapping]]) -> list[str]:
    """Lines on the searches of a case, by method: what their laws foresaw, over seeds, and those that were refused."""
    lines = []
    for method, searches in found.items():
        made = [search for search in searches if "refused" not in search]
        refused = len(searches) - len(made)
        if made:
            explained = [
                1 - (search["error"][name] / mean) ** 2 for search in made for name, mean in search["error_of_mean"].items() if mean
            ]
            held = sum(len(search["held"]) for search in made)
            lines.append(
                f"- {method}: laws take away {np.median(explained):.2f} of the squared error of a mean on unseen mixtures (median over {len(explained)} laws; "
                f"{held} foresaw no better and were held at their mean)."
            )
        lines += [f"- {method}: refused in {refused} seeds, no law foresaw better than a mean."] * bool(refused)
    return [*lines, ""] if lines else []

"""results.json as a page: a verdict, its numbers and its picture for each claim."""

from __future__ import annotations

import numpy as np

from benchmarks.script import power_shown, shown
from benchmarks.shift import power

from .claims import spearman
from .scope import KEPT, LEAD, SCOPE, VERDICTS


def markdown(results: dict, pictures: str) -> str:
    """`pictures`: the folder of claim-*.png, relative to the page."""
    s = results["settings"]
    lines = [
        '# FLOPs against loss: claims 1 to 7 of "Revisiting Dynamic Evaluation"',
        "",
        f"{s['model']}, {s['dtype']}, the first {s['tokens'] - 1:,} scored tokens of held-out text of each domain "
        f"({', '.join(s['texts'])}; one stream, no reset). Every run scores the same tokens; a difference is in nats per token. By text its 95% interval is "
        "Student's over blocks of 256 tokens, says nothing of other texts, and judges nothing; the verdicts are those over texts: the mean, Student's 95% interval "
        'over texts, and under "seen with 80%" how far from its limit a true difference has to lie to be confirmed with a probability of 80%. To refute its claim, a comparison has to lie '
        "beyond its limit at 5% divided by the number of the claim's comparisons, and where that takes another distance it stands behind; the interval shown is the undivided one. Learning rates are the "
        "defaults of docs/defaults.md (measured for rank 16, 10% of rows and full). FLOPs are the ledger's without what causal attention masks. "
        "`benchmarks/flops/claims.py` has the rules, and says what was known when they were fixed.",
        "",
        f"`{s['command']}`",
        "",
        "| claim | verdict |",
        "|---|---|",
    ]
    for number, found in results["claims"].items():
        lines.append(f"| {number}. {found['claim'].split(': ')[0]} | **{_verdict(number, found, results)}** |")
    lines += ["", LEAD.strip()] if _is_kept(results) else []
    for number, found in results["claims"].items():
        lines += [
            "",
            f"## {number}. {_verdict(number, found, results)}",
            "",
            found["claim"],
            "",
            *([f"**What this is about.** {SCOPE[number]}", ""] if _is_kept(results) else []),
            *ROWS[number](found),
            "",
            f"![claim {number}]({pictures}/claim-{number}.png)",
        ]
    return "\n".join(lines) + "\n"


def _is_kept(results: dict) -> bool:
    """Whether these are the results that scope.py is written about, and not those of another model, size or choice of texts."""
    settings = results["settings"]
    return (settings["model"], settings["tokens"] - 1, settings["texts"]) == KEPT


def _verdict(number: str, found: dict, results: dict) -> str:
    return VERDICTS.get(number, found["verdict"]) if _is_kept(results) else found["verdict"]


def _table(titles: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles), *("| " + " | ".join(row) + " |" for row in rows)]


def _over(found: dict, first: str, second: str, more: str | None = None) -> list[str]:
    """The comparisons over texts; more: the heading of a column with the range of "flops_ratio" over texts."""
    rows = []
    for row in found["over_texts"]:
        ratios = [r["flops_ratio"] for r in found["rows"] if (r[first], r[second]) == (row[first], row[second])] if more else []
        rows.append([f"{row[first]} less {row[second]}", *_judged(row), *([_between(ratios)] if more else [])])
    return _table([f"over {found['over_texts'][0]['texts']} texts", *JUDGED, *([more] if more else [])], rows)


JUDGED = ("nats per token", "seen with 80%", "verdict")


def _judged(row: dict) -> list[str]:
    least = row.get("seen_to_refute")
    refuting = "" if least is None or least == row["seen_with_80%"] else f"; to refute {least:.3f}"
    return [shown(row), power_shown(row) + refuting, row["verdict"]]


def _between(ratios: list[float]) -> str:
    low, high = (f"{f(ratios):.2f}" for f in (min, max))
    return low if low == high else f"{low} to {high}"


def _differences(first: str, second: str, ratio: str | None = None):
    def rows(found: dict) -> list[str]:
        return [*_over(found, first, second, ratio), "", *_by_text(found, first, second)]

    return rows


def _by_text(found: dict, first: str, second: str) -> list[str]:
    pairs = list(dict.fromkeys((r[first], r[second]) for r in found["rows"]))
    texts = list(dict.fromkeys(r["text"] for r in found["rows"]))
    at = {(r[first], r[second], r["text"]): r for r in found["rows"]}
    return _table(["difference", *texts], [[f"{a} less {b}", *(shown(at[a, b, t]) for t in texts)] for a, b in pairs])


def _frequency(found: dict) -> list[str]:
    over, alone = found["over_texts"][0], found["frequency_alone"]
    said = "as good within 0.01" if alone["equivalent"] else alone["verdict"]
    step = lambda s: f"{s['nll']:.3f} ({s['cost'] / 1e9:.2f})"  # noqa: E731
    first = found["rows"][0]
    return [
        *_table(
            [f"less every 1, over {over['texts']} texts", *JUDGED],
            [
                ["every 8, learned from: an eighth of the text", *_judged(over)],
                ["every 8, learned from: all of it, eight segments at once", *_judged(alone)[:2], said],
                *(
                    [f"every {other['every']}, learned from: all of it", *_judged(other)[:2], "judged by no rule"]
                    for other in found["frequencies_between"]
                ),
            ],
        ),
        "",
        *_table(
            [
                "NLL (GFLOP per token)",
                *(f"every {s['every']}" for s in first["steps"]),
                *(f"every {s['every']}, from all" for s in first["accumulated"]),
                "static",
                "every 8 less every 1",
            ],
            [
                [
                    r["text"],
                    *map(step, r["steps"]),
                    *map(step, r["accumulated"]),
                    f"{r['static']:.3f} ({r['static_cost'] / 1e9:.2f})",
                    shown(r),
                ]
                for r in found["rows"]
            ],
        ),
    ]


def _fronts(found: dict) -> list[str]:
    named = [[row["online"], f"{row['cost'] / 1e9:.2f}", *_judged(row)] for row in found["over_texts"]]
    return [
        *_table(["online cell on the front, less the best static one for no more FLOPs", "GFLOP per token", *JUDGED], named),
        "",
        *_table(
            ["text", "online front: GFLOP per token, NLL, and the best static NLL up to that cost"],
            [
                [
                    r["text"],
                    "; ".join(
                        f"{s['cost'] / 1e9:.2f}: {s['online']:.3f} against {'none' if s['static'] is None else format(s['static'], '.3f')}"
                        for s in r["steps"]
                    ),
                ]
                for r in found["rows"]
            ],
        ),
    ]


def _kinds(found: dict) -> list[str]:
    kinds = found["kinds"]
    first = next(iter(kinds.values()))
    table = [
        [name, f"{first[name]['learned_parameters'] / 1e6:.2f}", *(f"{of_text[name]['nll']:.3f}" for of_text in kinds.values())]
        for name in first
    ]
    return [*_differences("lora", "full")(found), "", *_table(["NLL", "learned (millions)", *kinds], table)]


def _shift(found: dict) -> list[str]:
    said = "Too few domains for a correlation."
    if found["rho"] is not None:
        rows = found["rows"]
        # the gain's share of the loss is the same in every unit
        rho, p = spearman(np.array([r["bits_per_byte"] for r in rows]), np.array([r["bits_per_byte"] * r["share"] for r in rows]))
        said = (
            f"Spearman {found['rho']:+.2f}, p = {found['p']:.3f}, {len(rows)} domains; with bits per byte on both axes {rho:+.2f}, p = {p:.3f}. "
            "Power of the rule at a true correlation of " + ", ".join(f"{r}: {power([len(rows)], r):.0%}" for r in (0.2, 0.4, 0.8)) + "."
        )
    return [
        *_table(
            ["domain", "static bits per byte", "gain of LoRA", "share of the loss"],
            [
                [r["text"], f"{r['bits_per_byte']:.3f}", shown(r), f"{r['share']:.1%}"]
                for r in sorted(found["rows"], key=lambda r: r["bits_per_byte"])
            ],
        ),
        "",
        said,
    ]


def _tuned(found: dict) -> list[str]:
    over = found["over_texts"][0]
    return [
        *_table([f"gain after less gain before, over {over['texts']} texts", *JUDGED[1:]], [_judged(over)]),
        "",
        *_table(
            ["text", "static", "LoRA", "fine-tuned, static", "fine-tuned, LoRA", "gain before", "gain after", "after less before"],
            [
                [
                    r["text"],
                    *(f"{r['nll'][c]:.3f}" for c in ("static-512", "lora-512", "tuned-static-512", "tuned-lora-512")),
                    f"{r['before']:+.3f}",
                    f"{r['after']:+.3f}",
                    shown(r),
                ]
                for r in found["rows"]
            ],
        ),
    ]


def _memories(found: dict) -> list[str]:
    table = []
    for r in found["rows"]:
        parts = {"all tokens": {**r["gains"], "share": 1.0}, **r["classes"]}
        table += [
            [
                r["text"] if name == "all tokens" else "",
                name,
                f"{c['share']:.0%}",
                *("-" if c[k] is None else f"{c[k]:+.3f}" for k in ("weights", "activations", "both")),
                f"{r['of_the_sum']:.0%}" if name == "all tokens" and r["of_the_sum"] is not None else "",
            ]
            for name, c in parts.items()
        ]
    whole, said = found["share_less_1"], []
    if whole and whole["low"] is not None:
        said = [
            f"Together they gain {1 + whole['mean']:.0%} of the sum of their gains, interval over texts {1 + whole['low']:.0%} to {1 + whole['high']:.0%}: that "
            f"they add up in full is {whole['verdict']}.",
            "",
        ]
    return [
        *_over(found, "both", "alone"),
        "",
        *said,
        *_table(["text", "tokens", "share", "gain of weights", "of activations", "of both", "both, of the sum"], table),
    ]


ROWS = {
    "1": _differences("online", "static"),
    "2": _differences("memory", "overlap", "FLOPs of memory over overlap"),
    "3a": _frequency,
    "3b": _fronts,
    "4": _kinds,
    "5": _differences("online", "static", "FLOPs of online over static"),
    "6a": _shift,
    "6b": _tuned,
    "7": _memories,
}

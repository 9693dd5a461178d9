"""results.json as a page: a verdict, its numbers and its picture for each claim."""

from __future__ import annotations

import numpy as np

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
        f"({', '.join(s['texts'])}; one stream, no reset). Every run scores the same tokens; a difference is in nats per token with a 95% interval "
        "from drawing blocks of 256 tokens. Learning rates are the defaults of docs/defaults.md (measured for rank 16, 10% of rows and full). "
        "FLOPs are the ledger's. The rules were written before the runs (`benchmarks/flops/claims.py`).",
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
    return (results["settings"]["model"], results["settings"]["tokens"] - 1) == KEPT


def _verdict(number: str, found: dict, results: dict) -> str:
    return VERDICTS.get(number, found["verdict"]) if _is_kept(results) else found["verdict"]


def _table(titles: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles), *("| " + " | ".join(row) + " |" for row in rows)]


def _d(row: dict) -> str:
    return f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def _differences(first: str, second: str, ratio: str | None = None):
    def rows(found: dict) -> list[str]:
        pairs = list(dict.fromkeys((r[first], r[second]) for r in found["rows"]))
        texts = list(dict.fromkeys(r["text"] for r in found["rows"]))
        at = {(r[first], r[second], r["text"]): r for r in found["rows"]}
        table = []
        for a, b in pairs:
            ratios = [at[a, b, t]["flops_ratio"] for t in texts] if ratio else []
            table.append(
                [f"{a} less {b}", *(_d(at[a, b, t]) for t in texts), *([f"{min(ratios):.2f} to {max(ratios):.2f}"] if ratio else [])]
            )
        return _table(["difference", *texts, *([ratio] if ratio else [])], table)

    return rows


def _frequency(found: dict) -> list[str]:
    return _table(
        ["text", *(f"every {s['every']}: NLL (GFLOP)" for s in found["rows"][0]["steps"]), "static: NLL (GFLOP)", "every 8 less every 1"],
        [
            [
                r["text"],
                *(f"{s['nll']:.3f} ({s['cost'] / 1e9:.2f})" for s in r["steps"]),
                f"{r['static']:.3f} ({r['static_cost'] / 1e9:.2f})",
                _d(r),
            ]
            for r in found["rows"]
        ],
    )


def _fronts(found: dict) -> list[str]:
    return _table(
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
    )


def _kinds(found: dict) -> list[str]:
    names = list(found["rows"][0]["kinds"])
    table = [
        [
            name,
            f"{found['rows'][0]['kinds'][name]['learned_parameters'] / 1e6:.2f}",
            *(f"{r['kinds'][name]['nll']:.3f}" for r in found["rows"]),
        ]
        for name in names
    ]
    table += [
        ["LoRA r16 less full", "", *(_d(r["against_full"]) for r in found["rows"])],
        ["LoRA r16 less static", "", *(_d(r["against_static"]) for r in found["rows"])],
    ]
    return _table(["NLL", "learned (millions)", *(r["text"] for r in found["rows"])], table)


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
                [r["text"], f"{r['bits_per_byte']:.3f}", _d(r), f"{r['share']:.1%}"]
                for r in sorted(found["rows"], key=lambda r: r["bits_per_byte"])
            ],
        ),
        "",
        said,
    ]


def _tuned(found: dict) -> list[str]:
    return _table(
        ["text", "static", "LoRA", "fine-tuned, static", "fine-tuned, LoRA", "gain before", "gain after", "after less before"],
        [
            [
                r["text"],
                *(f"{r['nll'][c]:.3f}" for c in ("static-512", "lora-512", "tuned-static-512", "tuned-lora-512")),
                f"{r['before']:+.3f}",
                f"{r['after']:+.3f}",
                _d(r),
            ]
            for r in found["rows"]
        ],
    )


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
    return _table(["text", "tokens", "share", "gain of weights", "of activations", "of both", "both, of the sum"], table)


ROWS = {
    "1": _differences("online", "static"),
    "2": _differences("memory", "overlap", "FLOPs of overlap over memory"),
    "3a": _frequency,
    "3b": _fronts,
    "4": _kinds,
    "5": _differences("online", "static", "FLOPs of online over static"),
    "6a": _shift,
    "6b": _tuned,
    "7": _memories,
}

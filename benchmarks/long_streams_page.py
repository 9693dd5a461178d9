"""The tables and the picture of what benchmarks/long_streams.py found."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.long_streams_rules import ARMS, BLOCK
from benchmarks.script import power_shown, said_by_itself, shown


def page(results: dict) -> str:
    """results.json as markdown."""
    d = lambda r: f"{shown(r)} | {power_shown(r)} | {said_by_itself(r)}"  # noqa: E731
    v, rates = results["verdicts"], results["rates"]
    lines = ["| " + " | ".join(["NLL", "GFLOP per token", *results["texts"]]) + " |", "|---" * (2 + len(results["texts"])) + "|"]
    lines += [
        f"| {row['title']} | {row['flops_per_token'] / 1e9:.3f} | "
        + " | ".join("" if n is None else f"{n:.3f}" for n in row["nll"].values())
        + " |"
        for row in results["arms"]
    ]
    tables = (
        ("5", "online less static | tokens | FLOPs of online over static", lambda r: f"{r['online']} less {r['static']} | {r['tokens']:,} | {r['flops_ratio']:.2f}"),
        ("4", "LoRA less full | tokens", lambda r: f"{r['lora']} less {r['full']} | {r['tokens']:,}"),
        ("3b", "online arm | GFLOP per token", lambda r: f"{r['online']} | {r['flops_per_token'] / 1e9:.3f}"),
        ("growth", "gain, last less first 16,384 tokens | of tokens", lambda r: f"{r['online']} over {r['static']} | {r['tokens']:,}"),
        ("behind", "gain, last less second 16,384 tokens | of tokens", lambda r: f"{r['online']} over {r['static']} | {r['tokens']:,}"),
        ("kept", "gain, second less first half | of tokens", lambda r: f"{r['online']} over {r['static']} | {r['tokens']:,}"),
    )  # fmt: skip
    arms = lambda r: {name: r[name] for name in ("online", "static", "tokens")}  # noqa: E731
    v = {**v, "behind": [{**arms(r), **r["behind_the_first"]} for r in v["growth"] if r.get("behind_the_first")]}
    for key, heading, first in tables:
        if not v[key]:
            continue
        heads = f"| {heading} | nats per token | seen with 80% | verdict |"
        lines += ["", f"**{key}**", "", heads, "|---" * (heads.count("|") - 1) + "|", *(f"| {first(r)} | {d(r)} |" for r in v[key])]
    lines += ["", rates_line(rates)]
    return "\n".join(lines) + "\n"


def rates_line(rates: dict[str, dict]) -> str:
    """What learns at which rate, and where that is the end of its grid."""
    return "Rates: " + "; ".join(f"{name} {r['rate']:g}{' (the end of the grid)' if r['end'] else ''}" for name, r in rates.items()) + "."


def drawable(results: dict) -> list[dict]:
    """Of the gains along streams those of at least a block."""
    return [row for row in results["verdicts"]["growth"] if row["tokens"] >= BLOCK]


def draw(results: dict, path: Path) -> None:
    """The gain of each learning arm over the static one of its context, along the stream: mean over texts, and each text's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    from dynadapt.experiments.plot import STYLE

    rows = drawable(results)
    columns = min(len(rows), 3)
    lines = -(-len(rows) // columns)
    width = max(8.0, 3.2 * columns + 0.6)
    titles = {arm.name: arm.title for arm in ARMS}
    with pyplot.rc_context({**STYLE, "font.size": 9}):
        size = (width, 2.7 * lines + 1.1)
        figure, axes = pyplot.subplots(lines, columns, figsize=size, sharey=True, layout="constrained", dpi=100, squeeze=False)
        for axis in axes.ravel()[len(rows) :]:
            axis.set_visible(False)
        for axis, row in zip(axes.ravel(), rows):
            blocks = np.array(list(row["gain_by_block"].values()))
            x = (np.arange(blocks.shape[1]) + 1) * BLOCK
            for text, line in zip(row["gain_by_block"], blocks):
                axis.plot(x, line, linewidth=0.8, alpha=0.7, label=text)
            axis.plot(x, blocks.mean(0), color="black", linewidth=2, label="mean")
            axis.axhline(0, color="#374151", linewidth=0.8)
            axis.set(title=titles[row["online"]], xlabel="tokens read")
            axis.xaxis.set_major_locator(ticker.MultipleLocator(16384 if x[-1] <= 65536 else 32768))
            axis.xaxis.set_major_formatter(lambda v, _: f"{v / 1024:.0f}k")
        figure.supylabel(f"gain over no learning (nats per token, blocks of {BLOCK:,})", fontsize=9)
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=int(width / 2), frameon=False)
        figure.savefig(path)

"""The tables of README.md and docs/speed.md about CPUs, made from benchmarks/results/cpu/*.json alone.

    python benchmarks/cpu_tables.py            # writes them between their markers
    python benchmarks/cpu_tables.py --check    # says which page differs from the files, and fails

A table stands between `<!-- cpu_tables.py: NAME -->` and `<!-- end -->`; what is between them is not edited by hand. A row that loses
stays; what no file has is said to be not measured.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # a source tree needs no installation

from dynadapt.bench.bases import EXACT  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "cpu"
PAGES = ("README.md", "docs/speed.md")
BLOCK = re.compile(r"(<!-- cpu_tables\.py: ([\w ]+) -->\n)(.*?)(<!-- end -->)", re.S)
ISAS = {  # the fastest first
    "avx512_bf16": "AVX512-BF16 (Zen 4, Sapphire Rapids and later)",
    "avx512": "AVX-512 (Skylake-X, Ice Lake)",
    "avx2": "AVX2 (Haswell to Zen 3)",
}
DTYPES = ("bf16", "fp32")
ABSENT = "not measured"


@dataclass(frozen=True)
class Row:
    """A row of a results file, with what it is of."""

    kind: str  # "step" or "score"
    isa: str
    provider: str
    dtype: str
    base: str
    streams: int
    segment: int
    busy: bool
    run: int  # rows of one run took turns; only these are divided by each other
    found: dict

    @property
    def label(self) -> str:
        """What it is called among the rows of all runs: its dtype and base are said also where its own run had but one."""
        words = [self.provider, self.dtype, *([] if self.base == "same" else [self.base])]
        return " ".join(words) + (", a core busy" if self.busy else "")

    @property
    def seconds(self) -> float:
        return self.found["seconds"]["median"]


def results(folder: Path) -> Iterator[tuple[str, dict]]:
    """(instruction set, result) of each, also of files that hold several.

    Raises:
        SystemExit: there are none, or one is damaged: the tables would say that nothing was measured.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise SystemExit(f"--results {folder}: expected a folder of results files (.json)")
    for path in paths:
        try:
            content = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise SystemExit(f"{path}: damaged: {error}") from error
        for result in content.get("results", [content]):
            isa = result.get("isa") or (result.get("environment", {}).get("native") or {}).get("isa")
            if "benchmark" in result and isa in ISAS:
                yield isa, result


def rows_of(folder: Path) -> list[Row]:
    """Of all files.

    Raises:
        SystemExit: two files hold the same row, and no reader could tell which one counts.
    """
    found = []
    for run, (isa, result) in enumerate(results(folder)):
        if result["benchmark"] not in ("step", "score"):
            continue
        for name, row in result["providers"].items():
            dtype = row.get("dtype") or result["dtype"]
            provider = row.get("provider") or name
            base = next((word for word in name.partition(",")[0].split() if word not in (provider, *DTYPES)), "same")
            busy = row.get("busy_neighbour", False)
            sizes = (result.get("streams", 1), result["segment"])
            found.append(Row(result["benchmark"], isa, provider, dtype, base, *sizes, busy, run, row))
    seen = set()
    for row in found:
        key = tuple(getattr(row, name) for name in ("kind", "isa", "provider", "dtype", "base", "streams", "segment", "busy"))
        if key in seen:
            raise SystemExit(f"{folder}: {' '.join(map(str, key))}: in more than one file; remove the older one")
        seen.add(key)
    return found


def pick(rows: list[Row], kind: str = "step", streams: int = 1, segment: int = 512, busy: bool = False, **what) -> list[Row]:
    """Those of one kind and size whose other fields are as given, the fastest first."""
    wanted = {"kind": kind, "streams": streams, "segment": segment, "busy": busy, **what}
    return sorted((r for r in rows if all(getattr(r, key) == value for key, value in wanted.items())), key=lambda r: r.seconds)


def ms(row: Row) -> str:
    value = 1e3 * row.seconds
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def table(headings: list[str], lines: list[list[str]]) -> str:
    shown = [headings, ["---"] * len(headings), *lines]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in shown)


# ---- tables


def _ours(rows: list[Row], isa: str, **what) -> Row | None:
    return next(iter(pick(rows, isa=isa, provider="dynadapt", **{"base": "same", **what})), None)


def _times(ours: list[Row], theirs: list[Row]) -> float | None:
    """How many times as long the fastest of `theirs` takes as our fastest that took turns with any of them; both the fastest first."""
    return next((r.seconds / own.seconds for own in ours for r in theirs if r.run == own.run), None)


def _ratio(ours: Row, theirs: list[Row]) -> str:
    """The fastest of `theirs` that took turns with ours, and how many times as long it takes; a loss in bold."""
    theirs = [row for row in theirs if row.run == ours.run]
    if not theirs:
        return ABSENT
    times = theirs[0].seconds / ours.seconds
    said = f"{times:.2f}x"
    return f"{ms(theirs[0])} ({theirs[0].dtype}), {said if times >= 1 else f'**{said}**'}"


def adapt_step(rows: list[Row], products: list[dict]) -> str:
    """README: ours by instruction set and dtype, and, where peers were measured, the fastest of each kind in any dtype."""
    peers = any(row.provider.startswith("peft") for row in pick(rows))
    headings = ["one adapt step of SmolLM2-135M, LoRA r16, 1 x 512 tokens", *DTYPES]
    headings += ["transformers + peft, eager: dynadapt is", "under torch.compile: dynadapt is"] if peers else []
    lines = []
    for isa, title in ISAS.items():
        own = {dtype: _ours(rows, isa, dtype=dtype) for dtype in DTYPES}
        if not any(own.values()):
            continue
        best = min(filter(None, own.values()), key=lambda row: row.seconds)
        cells = []
        for row in own.values():
            rate = f", **{row.found['tokens_per_second']:.0f} tokens/s**" if row is best else ""
            cells.append(ms(row) + rate if row else ABSENT)
        for peer in ("peft-eager", "peft-compile") if peers else ():
            cells.append(_ratio(best, pick(rows, isa=isa, provider=peer)))
        lines.append([title, *cells])
    return table(headings, lines)


def arithmetic(rows: list[Row], products: list[dict]) -> str:
    lines = []
    for isa, title in ISAS.items():
        own = {dtype: _ours(rows, isa, dtype=dtype) for dtype in DTYPES}
        if all(own.values()):
            cells = [f"{ms(row)}, {row.found['tokens_per_second']:.0f} tokens/s" for row in own.values()]
            lines.append([title, *cells, min(own, key=lambda dtype: own[dtype].seconds)])
    return table(["instruction set", *DTYPES, "faster"], lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _race(rows: list[Row], kind: str) -> str:
    lines, several = [], any(row.provider != "dynadapt" for row in rows if row.kind == kind)
    for isa in ISAS:
        for row in [r for busy in (False, True) for r in pick(rows, kind, isa=isa, busy=busy)]:
            f, ours = row.found, _ours([r for r in rows if r.run == row.run], isa, kind=kind, busy=row.busy)
            times = row.seconds / ours.seconds if ours else 0.0
            loses = "" if row.provider == "dynadapt" or not ours else f"{times:.2f}x" if times >= 1 else f"**{times:.2f}x**"
            spread = "..".join(f"{1e3 * f['seconds'][q]:.0f}" for q in ("p20", "p80"))
            threads = ", ".join(f"{n}: {1e3 * s['median']:.0f}" for n, s in sorted(f.get("by_threads", {}).items()))
            exact = row.base in EXACT  # whole numbers are multiplied faster than the products and peaks that were measured
            shares = [_share(f.get(share) if exact else None) for share in ("share_of_ceiling", "share_of_peak")]
            cells = [f"{1e3 * row.seconds:.0f}", spread, f"{f['tokens_per_second']:.0f}", *shares, loses]
            lines.append([isa, row.label, *cells, threads])
    if not lines or not several:
        return f"Peers were {ABSENT} yet.\n"
    headings = ["instruction set", "", "ms", "20..80%", "tokens/s", "of the best product", "of the peak", "dynadapt is", "ms by threads"]
    return table(headings, lines)


def step_race(rows: list[Row], products: list[dict]) -> str:
    return _race(rows, "step")


def score_race(rows: list[Row], products: list[dict]) -> str:
    return _race(rows, "score")


def products_table(rows: list[Row], products: list[dict]) -> str:
    """By instruction set, dtype and threads: the least and the largest share of the best library, and which product has the least."""
    lines = []
    for isa in ISAS:
        found = [row for row in products if row["isa"] == isa]
        for dtype in DTYPES:
            for threads in sorted({row["threads"] for row in found}):
                shares = {r["product"]: r["share_of_best"] for r in found if (r["dtype"], r["threads"]) == (dtype, threads)}
                if shares:
                    least = min(shares, key=shares.get)
                    said = f"{shares[least]:.0%}"
                    said = said if shares[least] >= 1 else f"**{said}**"
                    lines.append([isa, dtype, str(threads), f"{said} ({least})", f"{max(shares.values()):.0%}"])
    headings = ["instruction set", "dtype", "threads", "least share of the best library", "largest"]
    return table(headings, lines) if lines else f"Products were {ABSENT} yet.\n"


# ---- goals


@dataclass(frozen=True)
class Goal:
    """What was aimed at: `measured(rows, products)` is a number, None where no file has it; better the larger, or with `most` the smaller."""

    title: str
    goal: float
    unit: str  # format of the number
    measured: Callable[[list[Row], list[dict]], float | None]
    most: bool = False

    def line(self, rows: list[Row], products: list[dict]) -> list[str]:
        value = self.measured(rows, products)
        aim = f"{'<=' if self.most else '>='} {self.unit.format(self.goal)}"
        if value is None:
            return [self.title, aim, ABSENT]
        met = value <= self.goal if self.most else value >= self.goal
        said = self.unit.format(value)
        return [self.title, aim, said if met else f"**{said}, missed**"]


def _faster(isa: str, peer: str | tuple[str, ...], dtype: str | None = None, kind: str = "step"):
    """How many times our fastest, its weights as they are, is as fast as the fastest of these peers, both in `dtype` or in any."""

    def measured(rows, products):
        of = {"dtype": dtype} if dtype else {}
        ours = pick(rows, kind, isa=isa, provider="dynadapt", base="same", **of)
        theirs = [r for name in ((peer,) if isinstance(peer, str) else peer) for r in pick(rows, kind, isa=isa, provider=name, **of)]
        return _times(ours, sorted(theirs, key=lambda row: row.seconds))

    return measured


def _of_best_product(isa: str):
    def measured(rows, products):
        row = _ours(rows, isa)
        return row.found["share_of_ceiling"] if row else None

    return measured


def _least_product(isa: str):
    return lambda rows, products: min((row["share_of_best"] for row in products if row["isa"] == isa), default=None)


def _int8(isa: str, beside: str):
    """How many times the step with an int8 base is as fast as our own in `beside`."""

    def measured(rows, products):
        own = [pick(rows, isa=isa, provider="dynadapt", **of) for of in ({"base": "int8"}, {"base": "same", "dtype": beside})]
        return _times(*own)

    return measured


def _against_llama(base: str):
    """The least over instruction sets of how many times we score as fast as llama.cpp."""

    def measured(rows, products):
        found = []
        for isa in ISAS:
            ours = pick(rows, "score", isa=isa, provider="dynadapt", base=base)
            found.append(_times(ours, pick(rows, "score", isa=isa, provider="llama.cpp")))
        return min((times for times in found if times is not None), default=None)

    return measured


def _adapting_to_scoring(rows, products):
    """The largest over instruction sets, each in its fastest dtype."""
    found = []
    for isa in ISAS:
        step, score = _ours(rows, isa), _ours(rows, isa, kind="score")
        if step and score:
            found.append(step.seconds / score.seconds)
    return max(found, default=None)


def _gigabytes_of_four(rows, products):
    row = _ours(rows, "avx512_bf16", streams=4, dtype="bf16")
    return 1e-9 * row.found["peak_memory_bytes"] if row else None


def _first_step(rows, products):
    return max((r.found["first_step_seconds"] for r in (_ours(rows, isa) for isa in ISAS) if r), default=None)


GOALS = (
    Goal("AVX2: products, of the best of MKL and oneDNN, least", 0.90, "{:.0%}", _least_product("avx2")),
    Goal("AVX2: adapt step, times the fastest torch of any dtype", 1.6, "{:.2f}x", _faster("avx2", ("peft-eager", "peft-compile"))),
    Goal("AVX2: adapt step, times eager", 2.2, "{:.2f}x", _faster("avx2", "peft-eager")),
    Goal("AVX2: adapt step, of the best product", 0.85, "{:.0%}", _of_best_product("avx2")),
    Goal("AVX-512, fp32: adapt step, times peft compiled", 2.5, "{:.2f}x", _faster("avx512", "peft-compile", "fp32")),
    Goal("AVX512-BF16: adapt step, times peft compiled bf16", 3.0, "{:.2f}x", _faster("avx512_bf16", "peft-compile", "bf16")),
    Goal("AVX512-BF16: adapt step, of the best product", 0.85, "{:.0%}", _of_best_product("avx512_bf16")),
    Goal("AVX512-BF16: int8 base, times our bf16 step", 1.5, "{:.2f}x", _int8("avx512_bf16", "bf16")),
    Goal("AVX2: int8 base, times our fp32 step", 1.0, "{:.2f}x", _int8("avx2", "fp32")),
    Goal("scoring, times llama.cpp on the same file, least", 3.0, "{:.2f}x", _against_llama("same")),
    Goal("scoring, int8 base, times llama.cpp, least", 3.0, "{:.2f}x", _against_llama("int8")),
    Goal("adapting, times the time of scoring, most", 2.3, "{:.2f}x", _adapting_to_scoring, most=True),
    Goal("four streams of 512, bf16: peak memory", 1.2, "{:.2f} GB", _gigabytes_of_four, most=True),
    Goal("first step, from the start of the process, most", 2.0, "{:.1f} s", _first_step, most=True),
)


def goals(rows: list[Row], products: list[dict]) -> str:
    return table(["", "goal", "measured"], [goal.line(rows, products) for goal in GOALS])


TABLES = {
    "adapt step": adapt_step,
    "arithmetic": arithmetic,
    "step race": step_race,
    "score race": score_race,
    "products": products_table,
    "goals": goals,
}


def rendered(page: str, rows: list[Row], products: list[dict]) -> str:
    """The page with every table made anew.

    Raises:
        KeyError: a marker names no table.
    """
    return BLOCK.sub(lambda m: m[1] + TABLES[m[2]](rows, products) + m[4], page)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the files (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page differs from the files")
    settings = parser.parse_args(argv)
    rows = rows_of(settings.results)
    products = [
        {"isa": isa, **row} for isa, found in results(settings.results) if found["benchmark"] == "products" for row in found["rows"]
    ]
    stale = []
    for name in PAGES:
        page = (ROOT / name).read_text("utf-8")
        if (new := rendered(page, rows, products)) != page:
            stale.append(name)
            if not settings.check:
                (ROOT / name).write_text(new, "utf-8")
    if stale:
        print(f"{'differs from the results' if settings.check else 'written'}: {', '.join(stale)}")
    return 1 if settings.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())

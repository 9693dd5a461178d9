"""Every verdict on adaptation that can't hurt: runs what guard.py, resets.py, levels.py, score_first.py, long_streams.py, learning_from.py and distillation.py
measure, and says in one table what came of it.

    python benchmarks/adaptation.py                                   # the table of benchmarks/results, nothing is run
    python benchmarks/adaptation.py --write                           # and puts it where docs/adaptation.md marks its place
    dynadapt corpus build --out corpus
    python benchmarks/adaptation.py corpus --out runs/adaptation      # runs all of it first, on both models: hours; stopped, the same command goes on
    python benchmarks/adaptation.py corpus --out runs/adaptation --only levels --models smollm2-135m

The rules are those of the scripts, fixed before their runs and said in full in each; the table has them in a few words. Power: where the unit is the text, how far
from the rule's limit a true difference has to lie to be called with a probability of 80%, at the spread that was found; where every text has to hold, the share of
texts for which it doesn't that would show with 80%. Beside these, judging nothing: Holm's p over the comparisons of a claim on long streams, and intervals in which
what is not independent counts once: manual pages in four languages, three places and splices of the same domains. What has no results file is "not run".

What is run lies under --out, one directory a model and script, and the results files together in its "results".
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import distillation, guard, learning_from, levels, resets, score_first  # noqa: E402
from benchmarks.script import OPEN, judged, mean_error, power_shown, shown  # noqa: E402
from dynadapt.experiments.reweight.compare import holm  # noqa: E402
from dynadapt.experiments.reweight.power import seen  # noqa: E402
from dynadapt.runs.rundir import read_json  # noqa: E402

MODELS = ("smollm2-135m", "gemma3-270m")
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "adaptation.md"
BLOCK = re.compile(r"(<!-- adaptation\.py: (\w+) -->\n)(.*?)(<!-- end -->)", re.S)
HEAD = ("claim", "rule", "verdict", "found", "power", "texts")
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


@dataclass(frozen=True)
class Piece:
    """A script of this folder. ``results``: the stem of its results file. ``rows``: what of that file is a verdict. ``takes_model``: it has --model.
    ``fixed``: the commits that fixed its rules. ``changes``: what would change its verdicts. ``options``: what more its command line is given."""

    script: str
    results: str
    rows: Callable[[dict], list[Row]]
    fixed: str = ""
    changes: str = ""
    takes_model: bool = True
    options: tuple[str, ...] = ()

    def file(self, folder: Path, model: str) -> Path:
        return folder / f"{self.results}{'' if model == MODELS[0] or not self.takes_model else '-' + model}.json"


# ---- what each script's results say


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
    for arm, found in v["spliced"].items():
        if arm in ("static", "never", "lower") or arm.endswith("oracle"):
            continue
        n = found["texts"]
        rows.append(
            Row(
                f"reset {arm}: as good as an oracle", f"at most {resets.BEHIND} behind it, Student", found["verdict"],
                f"{found['behind_oracle']:+.4f} ± {found['error']:.4f}", f"{seen(found['error'], n - 1, CHECKED):.4f}", f"{n} spliced",
            )
        )  # fmt: skip
    for what, claim in (
        ("the alarm's part", "an alarm is worth more than the lower rate behind it"),
        ("a reset at the lower rate", "a reset at each splice helps at the lower rate too"),
    ):
        arm = resets.BESIDE_LOWER[what]
        rule = f"{arm} less lower below 0, Student"
        if part := v.get(what):
            n, found = part["texts"], f"{part[f'{arm}_less_lower']:+.4f} ± {part['error']:.4f}"
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
        error = (high - low) / 2 / float(resets.student.ppf(1 - CHECKED / 2, n - 1))
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
    rows, texts = [], list(results["texts"])
    for claim, called, rule in LONG:
        found = results["verdicts"][claim]
        for of, together in zip(found, holm([of["p"] for of in found])):
            row = judged_row(called.format(**of), rule, of)
            p = f", p {of['p']:.4f}" + (f" (of {len(found)} together {together:.4f})" if len(found) > 1 else "")
            fewer = of_fewer(pages_as_one(of["by_text"], texts), "with the manual pages as one")
            rows.append(replace(row, found=row.found + p, texts=f"{row.texts}; {fewer}"))
    return rows


def with_interval(claim: str, rule: str, verdict: str, found: dict, texts: int, ends: tuple[str, str] = ("low", "high")) -> Row:
    """Of a mean and its 95% interval over texts."""
    low, high = (found[end] for end in ends)
    error = (high - low) / 2 / float(resets.student.ppf(1 - CHECKED / 2, texts - 1))
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


PIECES = (
    Piece(
        "guard",
        "guard",
        of_guard,
        '480b7ce; "no rate to guess" by an interval since the runs, which is stricter',
        "other models, longer streams, texts whose better expert changes often",
    ),
    Piece(
        "resets",
        "resets",
        of_resets,
        "fbf138b; Student's intervals since the first runs (490dc9b), which are stricter; false alarms take segments as independent",
        "an oracle at the lower rate, segments of 512 (`--design long`)",
    ),
    Piece("resets", "resets-long", of_resets, options=("--design", "long")),
    Piece(
        "levels",
        "levels",
        of_levels,
        "5642bf3, with smaller sizes by 780e870 and e865889, before a judged text was scored",
        "a slow level that learns from a part of the tokens, more updates than eight, rates beyond the end of the grid",
    ),
    Piece(
        "score_first",
        "score-first",
        of_score_first,
        "20a2189 and 916b488; a larger model by abff654, before it scored a document",
        "the contest's own model and documents, a window of 2,048",
        takes_model=False,
    ),
    Piece(
        "long_streams",
        "long-streams",
        of_long,
        "28fb978, cfb802c (rates on 8,192 tokens) and 6aa2815 (131,072 tokens); static memories of 6,144 and 7,676 by 61a7ae6, when the other arms had been run",
        "more texts, other models, rates chosen on longer texts",
    ),
    Piece(
        "learning_from",
        "learning-from",
        of_learning_from,
        "18b0f3e and 0b2f2d0",
        "a higher rate for fewer updates, other segments, more or longer texts",
        takes_model=False,
    ),
    Piece(
        "distillation",
        "distillation",
        of_distillation,
        "d87ad3f; that nothing is judged where nothing is forgotten by b8b6b01, when five arms had been run",
        "texts that repeat what was taught, other shares, more updates a segment",
        takes_model=False,
    ),
)


# ---- the page


def machine(results: dict) -> str:
    env = results["environment"]
    return f"{env['cpu']}, {env['cores']} cores, {env['native']['isa']}"


def table(folder: Path) -> str:
    """Every verdict there is in a folder of results files, and what was not run."""
    lines = []
    for piece in PIECES:
        for model in MODELS if piece.takes_model else ("",):
            file = piece.file(folder, model or MODELS[0])
            of = f"`{' '.join((f'{piece.script}.py', *piece.options))}`" + (f", {model}" if model else "")
            if not file.exists():
                lines += [f"**{of}**: not run.", ""]
                continue
            results = read_json(file)
            lines += [f"**{of}** ({machine(results)}):", "", f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
            for row in piece.rows(results):
                cells = [row.claim, row.rule, OPEN if row.verdict == "open" else row.verdict, row.found, row.power, row.texts]
                lines.append(f"| {' | '.join(cells)} |")
            lines += ["", f"Rules of {piece.fixed}. What would change it: {piece.changes}.", ""] if piece.fixed else [""]
    return "\n".join(lines).rstrip() + "\n"


def levels_table(folder: Path) -> str:
    file = folder / "levels.json"
    return levels.page(read_json(file)) if file.exists() else "Not run.\n"


BLOCKS = {"verdicts": table, "levels": levels_table}


def rendered(page: str, folder: Path) -> str:
    return BLOCK.sub(lambda m: m[1] + BLOCKS[m[2]](folder) + m[4], page)


# ---- runs


def run(corpus: Path, out: Path, pieces: list[Piece], models: list[str]) -> None:
    """Each script on each model, one after the other; its results.json also in out/results.

    Raises:
        SystemExit: naming the script that did not come to its end.
    """
    (out / "results").mkdir(parents=True, exist_ok=True)
    for piece in pieces:
        for model in models if piece.takes_model else MODELS[:1]:
            here = out / (model if piece.takes_model else "own") / piece.results.replace("-", "_")
            command = [sys.executable, str(ROOT / "benchmarks" / f"{piece.script}.py"), str(corpus), "--out", str(here), *piece.options]
            print(f"{piece.results} {model if piece.takes_model else ''}".rstrip(), flush=True)
            if subprocess.run([*command, *(["--model", model] if piece.takes_model else [])]).returncode:
                raise SystemExit(f"{piece.script}.py on {model} did not come to its end; the same command goes on with it")
            shutil.copyfile(here / "results.json", piece.file(out / "results", model))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [piece.script for piece in PIECES]
    parser.add_argument("corpus", nargs="?", type=Path, help="what `dynadapt corpus build` made; without it nothing is run")
    parser.add_argument("--out", type=Path, default=Path("runs/adaptation"), help="directory of what is run (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="run only these (default: all)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="on these (default: both)")
    parser.add_argument(
        "--results", type=Path, default=None, help="folder of results files that are read (default: those run, or the repository's)"
    )
    parser.add_argument("--write", action="store_true", help="put the tables of the repository's results into docs/adaptation.md")
    parser.add_argument("--check", action="store_true", help="fail where docs/adaptation.md has others")
    given = parser.parse_args(argv)
    if given.corpus:
        run(given.corpus, given.out, [piece for piece in PIECES if piece.script in given.only], given.models)
    if given.write or given.check:
        page = PAGE.read_text("utf-8")
        new = rendered(page, given.results or RESULTS)
        if new != page and given.write:
            PAGE.write_text(new, "utf-8")
        elif new != page:
            print(f"{PAGE.relative_to(ROOT)} differs from the results: python benchmarks/adaptation.py --write")
            return 1
        return 0
    print(table(given.results or (given.out / "results" if given.corpus else RESULTS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

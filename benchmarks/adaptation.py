"""Every verdict on adaptation that can't hurt: runs what guard.py, resets.py, levels.py, score_first.py, long_streams.py, long_ranks.py, long_orders.py, learning_from.py and distillation.py
measure, and says in one table what came of it.

    python benchmarks/adaptation.py                                   # the table of benchmarks/results, nothing is run
    python benchmarks/adaptation.py --write                           # and puts it where docs/adaptation.md marks its place
    dynadapt corpus build --out corpus
    python benchmarks/adaptation.py corpus --out runs/adaptation      # runs all of it first, on both models: hours; stopped, the same command goes on
    python benchmarks/adaptation.py corpus --out runs/adaptation --only levels --models smollm2-135m

The rules are those of the scripts, fixed before their runs and said in full in each; the table has them in a few words. Power: where the unit is the text, how far
from the rule's limit a true difference has to lie to be called with a probability of 80%, at the spread that was found; where every text has to hold, the share of
texts for which it doesn't that would show with 80%. Beside these, judging nothing: intervals in which
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
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import levels  # noqa: E402
from benchmarks.adaptation_rows import (  # noqa: E402
    Row,
    of_distillation,
    of_guard,
    of_learning_from,
    of_levels,
    of_long,
    of_orders,
    of_ranks,
    of_resets,
    of_score_first,
)
from benchmarks.script import OPEN  # noqa: E402
from dynadapt.runs.rundir import read_json  # noqa: E402

MODELS = ("smollm2-135m", "gemma3-270m")
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "adaptation.md"
BLOCK = re.compile(r"(<!-- adaptation\.py: (\w+) -->\n)(.*?)(<!-- end -->)", re.S)
HEAD = ("claim", "rule", "verdict", "found", "power", "texts")


@dataclass(frozen=True)
class Piece:
    """A script of this folder. ``results``: the stem of its results file. ``rows``: what of that file is a verdict. ``takes_model``: it has --model.
    ``fixed``: the commits that fixed its rules. ``changes``: what would change its verdicts. ``options``: what more its command line is given.
    ``beside``: the stem of the results file that it reads by --beside, of the same run where that made it."""

    script: str
    results: str
    rows: Callable[[dict], list[Row]]
    fixed: str = ""
    changes: str = ""
    takes_model: bool = True
    options: tuple[str, ...] = ()
    beside: str = ""

    def file(self, folder: Path, model: str) -> Path:
        return folder / f"{self.results}{'' if model == MODELS[0] or not self.takes_model else '-' + model}.json"


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
        "fbf138b; Student's intervals since the first runs (490dc9b), and arms counted together (Holm) since the last, both stricter; "
        "false alarms take segments as independent",
        "segments of 512 (`--design long`, below), another rate, other models",
    ),
    Piece(
        "resets",
        "resets-long",
        of_resets,
        "34307042, before its runs; that arms are counted together (Holm) since, which is stricter; false alarms take segments as independent",
        "more texts, another rate, other models, texts whose domains have less in common, splices that are further apart or inside a segment",
        options=("--design", "long"),
    ),
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
        "28fb978, cfb802c (rates on 8,192 tokens) and 6aa2815 (131,072 tokens); static memories of 6,144 and 7,676 by 61a7ae6, when the other arms had been run; "
        "that a claim's comparisons are counted together (Holm) since the runs, which is stricter",
        "more texts, other models, rates chosen on longer texts",
    ),
    Piece(
        "long_ranks",
        "long-ranks",
        of_ranks,
        "17e23d6d, before its runs",
        "more texts, other models, rates chosen on longer texts, an alpha that doesn't grow with the rank",
        takes_model=False,
        beside="long-streams",
    ),
    Piece(
        "long_orders",
        "long-orders",
        of_orders,
        "e217bdd9, before its runs",
        "more texts, other models, another rate, memory",
        takes_model=False,
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
                cells = [row.claim, row.rule, re.sub(r"^open\b", OPEN, row.verdict), row.found, row.power, row.texts]
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
            if piece.takes_model:
                command += ["--model", model]
            if piece.beside and (made := out / "results" / f"{piece.beside}.json").exists():
                command += ["--beside", str(made)]
            print(f"{piece.results} {model if piece.takes_model else ''}".rstrip(), flush=True)
            if subprocess.run(command).returncode:
                raise SystemExit(f"{piece.script}.py on {model} did not come to its end; the same command goes on with it")
            shutil.copyfile(here / "results.json", piece.file(out / "results", model))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(dict.fromkeys(piece.script for piece in PIECES))
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

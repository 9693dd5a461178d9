"""Holds the numbers in the tables of the documents to the results files that they name.

    python benchmarks/check_documents.py             # fails where a table has a number that its file does not
    python benchmarks/check_documents.py --list      # every table, its file and how many numbers of it were found there

A table's file is the results file that the paragraph before it names last, or else the one behind it. Every number of a row has to be in one and
the same part of that file (one run, one provider, one domain), rounded to the digits that stand in the table, in the unit that its cell or
the head of its column has. Pages that a program makes from a file are held to what it makes of it; DERIVED has the few numbers that are made of
others. A table below `<!-- no results file: REASON -->` says itself that it has none; check_prose.py finds those that say nothing. Not read are the tables
between `<!-- cpu_tables.py: ... -->` or `<!-- adaptation.py: ... -->` marks, which these scripts' `--check` holds to theirs.
The part between the marks of icl_page.py has to be what that makes.

A number may be right by chance where a file has many: tests/project/test_check_documents.py changes each number and says how often that is seen.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMED = re.compile(r"`benchmarks/results/((?:(?:cpu|h200)/)?[\w.*-]+\.json)")
MADE = re.compile(r"<!-- (?:(?:cpu_tables|adaptation)\.py: [\w ]+|icl_page\.py) -->\n.*?<!-- end -->", re.S)
WITHOUT = re.compile(r"<!-- no results file: .+ -->")  # and why there is none
COUNTED = 25  # whole numbers below it are counts in words
SERIES = 50  # a longer list of numbers holds what was timed, one by one, and no result
CODE = re.compile(r"^```.*?^```$", re.S | re.M)
NUMBER = re.compile(r"(?<![\w.,-])([+-]?)(\d[\d,]*(?:\.\d+)?)(?=(%| ?[A-Za-z]+)?)(?![\d\w]*[A-Za-wyz_])")
UNITS = {"%": 100.0, "GB": 1e-9, "MB": 1e-6, "ms": 1e3, "PFLOP": 1e-15, "TFLOP": 1e-12, "GFLOP": 1e-9, "millions": 1e-6}


def _update_against_the_same_work(content: dict) -> float:
    calls = next(row["calls"] for row in content["rows"] if row["op"] == "update")
    median = lambda name: calls[name]["seconds"]["median"]  # noqa: E731
    return median("torch clip, fused Adam, zero, copy") / median("dynadapt")


DERIVED = {("docs/speed.md", "1.77"): _update_against_the_same_work}  # page and number -> what it is made of


@dataclass(frozen=True)
class Table:
    page: str
    line: int
    file: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Number:
    """As it stands in a table. scale: what a value in the file is multiplied with to be in its unit."""

    text: str
    value: float
    decimals: int
    signed: bool
    scale: float

    def is_of(self, leaf: float) -> bool:
        found = leaf if self.signed else abs(leaf)
        scales = (self.scale, 1.0) if self.scale < 1 else (self.scale,)  # a file may count in GB or TFLOP itself
        return any(abs(found * scale - self.value) <= 0.5 * 10.0**-self.decimals * (1 + 1e-6) for scale in scales)


def tables(page: str, text: str) -> Iterator[Table]:
    """The tables of a page that name a results file."""
    blank = lambda found: "\n" * found[0].count("\n")  # noqa: E731
    text = MADE.sub(blank, CODE.sub(blank, text))
    lines = text.split("\n")
    number = 0
    while number < len(lines):
        end = number
        while end < len(lines) and lines[end].startswith("|"):
            end += 1
        if end > number:
            if file := file_of(lines, number, end):
                rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[number:end]]
                yield Table(page, number + 1, file, rows[0], tuple(rows[2:]))
            number = end
        number += 1


def file_of(lines: list[str], first: int, end: int) -> str | None:
    """The results file that the paragraph before a table names last, or the one behind it first."""
    before, behind = paragraph(lines, first - 1, -1), paragraph(lines, end, 1)
    if WITHOUT.search(before):
        return None
    return next(iter([*NAMED.findall(before)[::-1], *NAMED.findall(behind)]), None)


def paragraph(lines: list[str], at: int, step: int) -> str:
    while 0 <= at < len(lines) and not lines[at].strip():
        at += step
    found = []
    while 0 <= at < len(lines) and lines[at].strip() and not lines[at].startswith(("|", "#")):
        found.append(lines[at])
        at += step
    return "\n".join(found[::step])


def results_of(file: str):
    """The content of a results file; of a name with a star that of all files it stands for."""
    folder = ROOT / "benchmarks" / "results"
    found = {path.name: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob(file))}
    return found if "*" in file else found[Path(file).name]


def without_environment(content):
    if isinstance(content, list):
        return [without_environment(each) for each in content]
    return (
        {key: without_environment(value) for key, value in content.items() if key != "environment"}
        if isinstance(content, dict)
        else content
    )


def numbers(cell: str, head: str) -> list[Number]:
    """The numbers of a cell; names that hold digits, what stands in code marks and small counts in words are none."""
    cell = re.sub(r"`[^`]*`", "", cell)
    of_head = next((scale for unit, scale in UNITS.items() if unit != "%" and re.search(rf"(?<!\w){unit}(?!\w)", head)), 1.0)
    found = []
    for sign, digits, unit in NUMBER.findall(cell):
        plain = digits.replace(",", "")
        scale = UNITS.get(unit.strip(), of_head)
        if scale == 1.0 and not sign and plain.isdigit() and int(plain) < COUNTED:
            continue
        found.append(Number(sign + digits, float(sign + plain), len(plain.partition(".")[2]), bool(sign), scale))
    return found


def leaves(content) -> list[float]:
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list) and (len(content) <= SERIES or not isinstance(content[0], (int, float))):
        return [leaf for each in content for leaf in leaves(each)]
    return [float(content)] if isinstance(content, (int, float)) and not isinstance(content, bool) else []


def parts(content) -> Iterator[list[float]]:
    """The numbers of every part of a file, the smallest parts first."""
    inner = list(content.values()) if isinstance(content, dict) else content if isinstance(content, list) else []
    for each in inner:
        yield from parts(each)
    if inner:
        yield leaves(content)


def missing(row: list[Number], there: list[list[float]]) -> list[Number]:
    """The numbers of a row that the part of a file which has most of them lacks."""
    least = row
    for part in there:
        lacks = [number for number in row if not any(number.is_of(leaf) for leaf in part)]
        if len(lacks) < len(least):
            least = lacks
        if not least:
            break
    return least


def wrong(table: Table, content) -> list[str]:
    """What a table has that its file does not."""
    there = sorted(parts(without_environment(content)), key=len)
    said = []
    for at, row in enumerate(table.rows):
        found = [number for cell, head in zip(row[1:], table.head[1:]) for number in numbers(cell, head)]
        said += [
            f"{table.page}:{table.line + 2 + at}: {row[0]}: {number.text} is not in benchmarks/results/{table.file} with the rest of its row"
            for number in missing(found, there)
            if not ((made := DERIVED.get((table.page, number.text))) and number.is_of(made(content)))
        ]
    return said


def made_pages() -> dict[str, list[str]]:
    """Lines that programs make of results files, by the page that has them."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.flops.report import markdown as of_claims
    from benchmarks.reweighting import page as of_size
    from dynadapt.experiments.reweight.compare import markdown as of_mixers

    read = lambda name: json.loads((ROOT / "benchmarks" / "results" / name).read_text("utf-8"))  # noqa: E731
    tables = lambda text: [line for line in text.split("\n") if line.startswith("|")]  # noqa: E731
    return {
        "docs/reweight.md": tables(of_mixers(read("reweighting.json")["cases"])),
        "docs/reweight-1m.md": of_size(read("reweighting-1m.json")["cases"]).split("\n")[1:],
        "docs/flops-vs-loss.md": of_claims(read("flops-vs-loss.json"), "flops").split("\n"),
    }


def pages() -> list[str]:
    return ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def check() -> list[str]:
    made = made_pages()
    from benchmarks.icl_page import stale  # found once made_pages has put the repository's root among the paths

    said = stale()
    for page in pages():
        text = (ROOT / page).read_text("utf-8")
        lines = set(text.split("\n"))
        said += [
            f"{page}: its results file makes this line, which the page does not have: {line}"
            for line in made.get(page, [])
            if line not in lines
        ]
        for table in [] if page in made else tables(page, text):
            said += wrong(table, results_of(table.file))
    return said


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say which tables are read, too")
    if parser.parse_args(argv).list:
        for page in pages():
            for table in tables(page, (ROOT / page).read_text("utf-8")):
                count = sum(len(numbers(cell, head)) for row in table.rows for cell, head in zip(row[1:], table.head[1:]))
                print(f"{page}:{table.line}: {count} numbers, benchmarks/results/{table.file}")
    said = check()
    print("\n".join(said))
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())

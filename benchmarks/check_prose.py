"""Holds the figures in the documents' sentences to results files, and finds those that no file has.

    python benchmarks/check_prose.py             # fails where a figure is in no file and not in benchmarks/without_file.txt either
    python benchmarks/check_prose.py --list      # where each figure was found

A figure is a number with a decimal point, or a whole one in ms, MB, GB or GFLOP, outside tables, code and what a program made of a results file. Its
files are those that its paragraph or list item names, else those of its page, and with them those of the pages that it links. `without_file.txt` has the
figures that are in none, page by page and with a reason (a closed form, a setting, made of two that are in a file, measured by hand): a new one is not
in it and fails, and so does a line of it whose figure has gone or is in a file by now.

Tables are check_documents.py's; here those are found that have figures and name no file, and do not say so.

What this can't see: a figure of two digits is found by chance in a file of thousands of numbers, and a file that is the wrong one may have it, too.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks import check_documents as documents  # noqa: E402

FILE = re.compile(r"`(?:benchmarks/results/)?((?:(?:cpu|h200)/)?[\w.*-]+\.json)")
WHOLE = re.compile(r"\s?(?:ms|[MG]B|GFLOP)\b")  # units of figures without a decimal point
NAMES = re.compile(  # what has a point in it and is no figure
    r"`[^`]*`|\]\([^)]*\)|https?://\S+|arXiv \d{4}\.\d+|\b(?:Python|Triton|[Tt]orch|Zen|CUDA|version|of|with|from|in) \d\.\d+(?= (?:or later|and|it)|,)"
    r"|\b(?:Python|Triton|Torch|torch|CUDA|Llama|Llama-|Qwen|Qwen-|GPT-|Phi-)\s?\d\.\d+"
)
LINK = re.compile(r"\]\(([\w/-]+\.md)")
ITEM = re.compile(r"\s*(?:[-*]|\d+\.) ")
LISTED = "benchmarks/without_file.txt"


@dataclass(frozen=True)
class Figure:
    page: str
    line: int
    number: documents.Number
    files: tuple[str, ...]


def figures(page: str, text: str) -> Iterator[Figure]:
    """The figures of a page's sentences, with the results files that they may be in."""
    of_page = _files(_read(text))
    for line, block in _blocks(text):
        files = (_files(block) or of_page) + tuple(file for linked in _linked(page, block) for file in _files(linked))
        plain = NAMES.sub("", block)
        for found in documents.NUMBER.finditer(plain):
            if "." in found[2] or WHOLE.match(plain, found.end()):
                scale = documents.UNITS.get((found[3] or "").strip(), 1.0)
                digits = found[2].replace(",", "")
                number = documents.Number(
                    found[1] + found[2], float(found[1] + digits), len(digits.partition(".")[2]), bool(found[1]), scale
                )
                yield Figure(page, line, number, tuple(dict.fromkeys(files)))


def _linked(page: str, block: str) -> list[str]:
    """The texts of the pages that a paragraph links."""
    paths = {((ROOT / page).parent / link).resolve() for link in LINK.findall(block)}
    return [_read(path.read_text("utf-8")) for path in sorted(paths) if path.exists()]


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    """(first line, text in one line) of paragraphs and list items."""
    block, first = [], 0
    for at, line in enumerate([*_read(text).split("\n"), ""], 1):
        ends = not line.strip() or line.startswith(("#", "|"))
        if (ends or ITEM.match(line)) and block:
            yield first, " ".join(block)
            block = []
        if not ends:
            first = first if block else at
            block.append(line.strip())


def _read(text: str) -> str:
    blank = lambda found: "\n" * found[0].count("\n")  # noqa: E731
    return documents.MADE.sub(blank, documents.CODE.sub(blank, text))


@cache
def _numbers(file: str) -> tuple[float, ...]:
    return tuple(documents.leaves(documents.without_environment(documents.results_of(file))))


def _files(block: str) -> tuple[str, ...]:
    """Those named in it that there are; `sweep-*.json` are all of them. A name without `cpu/` may be one of that folder."""
    results = ROOT / "benchmarks" / "results"
    found = []
    for name in FILE.findall(block):
        found += sorted(results.glob(name)) + sorted(results.glob(f"cpu/{name}"))
    return tuple(dict.fromkeys(path.relative_to(results).as_posix() for path in found))


def held(figure: Figure) -> str | None:
    """The first of its files that has it."""
    return next((file for file in figure.files if any(map(figure.number.is_of, _numbers(file)))), None)


def listed(text: str) -> dict[tuple[str, str], str]:
    """(page, figure) -> why it is in no file, from lines `page | figures | why`."""
    found = {}
    for line in filter(lambda line: line.strip() and not line.startswith("#"), text.split("\n")):
        page, numbers, why = (part.strip() for part in line.split("|"))
        found |= {(page, number): why for number in numbers.split()}
    return found


def unmarked(page: str, text: str) -> list[str]:
    """Tables with figures that name no results file and are not marked as having none."""
    lines, said, at = _read(text).split("\n"), [], 0
    while at < len(lines):
        end = at
        while end < len(lines) and lines[end].startswith("|"):
            end += 1
        if end > at:
            cells = [cell for line in lines[at + 2 : end] for cell in NAMES.sub("", line).strip("|").split("|")[1:]]
            count = sum("." in number.text for cell in cells for number in documents.numbers(cell, ""))
            marked = documents.WITHOUT.search(documents.paragraph(lines, at - 1, -1))
            if count and not marked and not documents.file_of(lines, at, end):
                said.append(
                    f"{page}:{at + 1}: a table with {count} figures names no results file and has no <!-- no results file: REASON --> above it"
                )
        at = max(at + 1, end)
    return said


def judge(texts: dict[str, str], without: dict[tuple[str, str], str], made: frozenset[str] = frozenset()) -> list[str]:
    """What is wrong with pages (path -> text). made: those whose tables a program makes of results files."""
    said, used = [], set()
    for page, text in texts.items():
        if page not in made:
            said += unmarked(page, text)
        for figure in figures(page, text):
            key = (page, figure.number.text)
            if held(figure):
                continue
            if key in without:
                used.add(key)
                continue
            where = f"not in {', '.join(figure.files)}" if figure.files else "and its page names no results file"
            said.append(f"{page}:{figure.line}: {key[1]} is {where}; correct it, name its file, or give the reason in {LISTED}")
    gone = [key for key in without if key not in used]
    return said + [f"{LISTED}: {page}: {number} is not in that page, or is in a results file by now" for page, number in gone]


def check() -> list[str]:
    texts = {page: (ROOT / page).read_text("utf-8") for page in documents.pages()}
    return judge(texts, listed((ROOT / LISTED).read_text("utf-8")), frozenset(documents.made_pages()))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say where each figure was found, too")
    if parser.parse_args(argv).list:
        without = listed((ROOT / LISTED).read_text("utf-8"))
        for page in documents.pages():
            for figure in figures(page, (ROOT / page).read_text("utf-8")):
                print(f"{page}:{figure.line}: {figure.number.text}: {held(figure) or without.get((page, figure.number.text), 'nowhere')}")
    said = check()
    print("\n".join(said))
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())

"""The numbers in the documents' tables are those of the results files, and a number that is not would be seen."""

import json
import sys
from dataclasses import replace

import pytest
from document_blocks import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.check_documents import Table, check, made_pages, numbers, tables, wrong

RESULTS = {
    "runs": [{"name": "one", "nll": 2.6528, "flops": 304349184.0}, {"name": "two", "nll": 2.4004, "flops": 610e6}],
    "change": -0.0123,
}


def table(*rows, head=("run", "NLL", "GFLOP per token")) -> Table:
    return Table("docs/x.md", 1, "x.json", head, rows)


def test_every_table_has_the_numbers_of_its_file():
    assert check() == []


def test_what_is_not_in_the_file_is_named_with_its_line():
    assert wrong(table(("one", "2.653", "0.304"), ("two", "2.400", "0.610")), RESULTS) == []
    (said,) = wrong(table(("one", "2.653", "0.304"), ("two", "2.401", "0.610")), RESULTS)
    assert said.startswith("docs/x.md:4: two: 2.401 is not in benchmarks/results/x.json")


def test_a_row_is_of_one_part_of_the_file():
    """Each number is somewhere in the file; the first row has the one run's loss beside the other's FLOPs and a run that there is not."""
    mixed = table(("one", "2.653", "0.610"))
    assert wrong(mixed, {"a": RESULTS["runs"][0], "b": [RESULTS["runs"][1]]}) == []  # the whole file is a part, too
    assert len(wrong(table(("one", "2.653", "0.611")), RESULTS)) == 1


@pytest.mark.parametrize(
    "cell, head, leaf, fits",
    [
        ("+0.012", "", 0.0123, True),
        ("-0.012", "", 0.0123, False),
        ("0.012", "", -0.0123, True),
        ("12%", "", 0.1234, True),
        ("12.3%", "", 0.1214, False),
        ("**2.02 GB**", "", 2020126720, True),
        ("6.9", "ms", 0.00691, True),
        ("4.50x", "", 4.5029, True),
        ("15,000", "", 15000, True),
    ],
)
def test_numbers_have_their_sign_their_unit_and_their_digits(cell, head, leaf, fits):
    (number,) = numbers(cell, head)
    assert number.is_of(leaf) == fits


def test_names_and_small_counts_are_no_numbers():
    assert numbers("GPT-2 of 4 layers, `--rank 16`, LoRA r64, SmolLM2", "") == []


def test_which_tables_are_read():
    text = (
        "# T\n\nFrom `benchmarks/results/a.json`:\n\n| x | y |\n|---|---|\n| r | 1.5 |\n\nand more\n\n| x | y |\n|---|---|\n| r | 2.5 |\n\n"
    )
    assert [(each.file, each.line, each.rows) for each in tables("p", text)] == [("a.json", 5, (("r", "1.5"),))]
    assert list(tables("p", text.replace("From", "<!-- no results file -->\nFrom"))) == []
    marked = "`benchmarks/results/a.json`\n\n<!-- cpu_tables.py: x -->\n| x | y |\n|---|---|\n| r | 1.5 |\n<!-- end -->\n"
    assert list(tables("p", marked)) == []


def test_made_pages_have_tables():
    assert all(len(lines) > 40 for lines in made_pages().values())


@pytest.mark.parametrize("page", ["docs/results.md", "docs/icl.md", "docs/lm-eval.md", "docs/quants.md"])
def test_a_changed_number_is_seen(page):
    """Every number of a page's tables, moved by one in its last digit, one at a time; but for the table of claims, whose two digits are
    in a file of thousands of numbers by chance."""
    seen = count = 0
    for each in tables(page, (ROOT / page).read_text("utf-8")):
        if each.file == "flops-vs-loss.json":
            continue
        content = json.loads((ROOT / "benchmarks" / "results" / each.file).read_text("utf-8"))
        for at, row in enumerate(each.rows):
            for column in range(1, len(row)):
                for number in numbers(row[column], each.head[column]):
                    moved = f"{number.value + 10.0**-number.decimals:,.{number.decimals}f}"
                    cells = [*row[:column], row[column].replace(number.text, moved, 1), *row[column + 1 :]]
                    changed = replace(each, rows=(tuple(cells),))
                    seen += bool(wrong(changed, content))
                    count += 1
    assert count >= 8 and seen >= 0.9 * count, (seen, count)

"""The numbers in the documents' tables and sentences are those of the results files, and a number that is not would be seen."""

import re
import sys
from dataclasses import replace

import pytest
from document_blocks import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import check_prose
from benchmarks.check_documents import Table, check, made_pages, numbers, results_of, tables, wrong

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
    assert list(tables("p", text.replace("From", "<!-- no results file: a formula -->\nFrom"))) == []
    assert len(list(tables("p", text.replace("From", "<!-- no results file: -->\nFrom")))) == 1  # a mark gives its reason
    marked = "`benchmarks/results/a.json`\n\n<!-- cpu_tables.py: x -->\n| x | y |\n|---|---|\n| r | 1.5 |\n<!-- end -->\n"
    assert list(tables("p", marked)) == []


def test_made_pages_have_tables():
    assert all(len(lines) > 40 for lines in made_pages().values())


@pytest.mark.parametrize("page", ["docs/results.md", "docs/icl.md", "docs/lm-eval.md", "docs/quants.md"])
def test_a_changed_number_is_seen(page):
    """Every number of a page's tables, moved by one in its last digit, one at a time; but for the tables of claims, whose two or three digits
    are in files of thousands of numbers by chance."""
    seen = count = 0
    for each in tables(page, (ROOT / page).read_text("utf-8")):
        if each.file in ("flops-vs-loss.json", "odyssey.json"):
            continue
        content = results_of(each.file)
        for at, row in enumerate(each.rows):
            for column in range(1, len(row)):
                for number in numbers(row[column], each.head[column]):
                    moved = f"{number.value + 10.0**-number.decimals:,.{number.decimals}f}"
                    cells = [*row[:column], row[column].replace(number.text, moved, 1), *row[column + 1 :]]
                    changed = replace(each, rows=(tuple(cells),))
                    seen += bool(wrong(changed, content))
                    count += 1
    assert count >= 8 and seen >= 0.9 * count, (seen, count)


def test_each_of_the_sixteen_claims_has_a_verdict_what_it_sees_and_what_would_change_it():
    text = (ROOT / "docs" / "claims.md").read_text("utf-8")
    claims = dict(re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |^## |\Z)", text, re.M | re.S))
    assert list(map(int, claims)) == list(range(1, 17))
    for number, said in claims.items():
        assert re.search(r"\*\*[^*]*(confirmed|refuted|not decided|not tested)[^*]*\*\*", said), number
        assert re.search(r"[Ww]ould\s+change|may\s+change|(would|may)\s+decide", said), number
        if "not tested" not in said.partition(".")[0]:
            assert re.search(r"\bsees\b|power|leaves room for", said), number


def test_every_figure_in_sentences_is_in_a_file_or_has_a_reason():
    assert check_prose.check() == []


PROSE = "# T\n\nThe loss is 2.653 nats (`benchmarks/results/demo.json`),\nin `0.1` of Python 3.10 (arXiv 2403.01518).\n\n- With 12 rows.\n"


@pytest.mark.parametrize(
    "text, says",
    [
        (PROSE, []),
        (PROSE.replace("2.653", "2.6537"), ["docs/x.md:3: 2.6537 is not in demo.json"]),
        (PROSE + "- It is 7.77 times as fast.\n", ["docs/x.md:7: 7.77 is not in demo.json"]),
        (PROSE + "\nIt takes 98765 ms and 4321 rows.\n", ["docs/x.md:8: 98765 is not in demo.json"]),
        ("It is 2.653.\n", ["docs/x.md:1: 2.653 is and its page names no results file"]),
        ("It is as in [results](results.md): 2.653.\n", []),
        ("```\nIt is 7.77.\n```\n\n| a | b |\n|---|---|\n| c | d |\n", []),
        ("| a | b |\n|---|---|\n| c | 1.5 |\n", ["docs/x.md:1: a table with 1 figures names no results file"]),
        ("<!-- no results file: a formula -->\n\n| a | b |\n|---|---|\n| c | 1.5 |\n", []),
    ],
)
def test_which_figures_are_found(text, says):
    said = check_prose.judge({"docs/x.md": text}, {})
    assert len(said) == len(says) and all(one.startswith(begin) for one, begin in zip(said, says)), said


def test_a_listed_figure_passes_and_a_line_without_its_figure_is_said():
    without = check_prose.listed("# why\ndocs/x.md | 7.77 8.88 | by hand\n")
    assert without == {("docs/x.md", "7.77"): "by hand", ("docs/x.md", "8.88"): "by hand"}
    (said,) = check_prose.judge({"docs/x.md": "It is 7.77.\n"}, without)
    assert said.startswith("benchmarks/without_file.txt: docs/x.md: 8.88 is not in that page")


def test_a_changed_figure_is_seen_where_it_has_digits():
    """Every figure of four digits or more in sentences, moved by one in its last digit: how often that is seen. Shorter ones may be right by chance."""
    seen = count = 0
    for page in ("docs/defaults.md", "docs/results.md", "docs/gpu.md", "docs/int8.md"):
        for figure in check_prose.figures(page, (ROOT / page).read_text("utf-8")):
            if len(figure.number.text.replace(".", "").lstrip("+-0")) >= 4 and check_prose.held(figure):
                moved = replace(figure.number, value=figure.number.value + 10.0**-figure.number.decimals)
                seen += check_prose.held(replace(figure, number=moved)) is None
                count += 1
    assert count >= 10 and seen >= 0.8 * count, (seen, count)

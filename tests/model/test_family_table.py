"""The README's table of families says what each of them does here and now."""

from pathlib import Path

from model.family_table import BEGIN, END, NAMES, table
from model.mutated_configs import TYPES


def test_the_table_is_what_runs():
    assert set(NAMES) == set(TYPES)
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    assert readme.split(BEGIN)[1].split(END)[0] == table()

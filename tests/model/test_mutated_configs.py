"""Edited config.json files: what all three load they score alike, and what is refused is refused by name, in Python and in C."""

import pytest

pytest.importorskip("transformers")

from mutated_configs import TYPES, sweep  # noqa: E402


@pytest.mark.parametrize("model_type", TYPES)
def test_a_few_edits(model_type, tmp_path):
    check(model_type, 25, 0, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("model_type", TYPES)
def test_many_edits(model_type, seed, tmp_path):
    check(model_type, 400, seed, tmp_path)


def check(model_type, count, seed, tmp_path):
    faults, outcomes = sweep(model_type, count, seed, tmp_path / "tiny")
    assert not faults, "\n".join(faults)
    assert outcomes["scored alike"] > count / 10 and outcomes["refused"] > count / 10, outcomes

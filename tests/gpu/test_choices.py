"""The table that says which form serves a shape."""

import json
from unittest import mock

import pytest
import torch

from dynadapt.kernels import choices, linear, linear_activation

BF16 = torch.bfloat16


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table with one layer measured at two numbers of rows, on the GPU that the process believes to have."""
    entry = {"op": "linear_forward", "k": 64, "o": 96, "rank": 16, "fused_ms": 1.0, "split_ms": 2.0, "cublas_only_ms": 0.5}
    path = tmp_path / "choices.json"
    path.write_text(json.dumps({"GPU A": [{**entry, "rows": 512, "form": "fused"}, {**entry, "rows": 8192, "form": "split"}]}))
    monkeypatch.setattr(choices, "TABLE", path)
    monkeypatch.setattr(choices, "gpu_name", lambda: "GPU A")
    choices.reload()
    yield path
    choices.reload()


@pytest.mark.parametrize("rows, form", [(100, "fused"), (512, "fused"), (1100, "fused"), (5000, "split"), (32768, "split")])
def test_the_nearest_measured_number_of_rows_decides(table, rows, form):
    assert choices.choose("linear_forward", rows, 64, 96, 16, BF16) == form


@pytest.mark.parametrize("rows", [1, 64, 40000, 10**6])
def test_a_measurement_far_away_decides_nothing(table, rows):
    """As where a campaign was cut behind its smallest shape: the largest is served as if nothing had been measured."""
    for otherwise in choices.FORMS:
        assert choices.choose("linear_forward", rows, 64, 96, 16, BF16, otherwise) == otherwise


@pytest.mark.parametrize("change", [{"op": "linear_backward"}, {"k": 65}, {"o": 64}, {"rank": 0}, {"dtype": torch.float32}])
def test_an_unmeasured_layer_is_split(table, change):
    assert choices.choose(**{"op": "linear_forward", "rows": 512, "k": 64, "o": 96, "rank": 16, "dtype": BF16, **change}) == "split"


def test_another_gpu_has_not_been_measured(table, monkeypatch):
    assert "fused at 1 of 2 measured shapes" in choices.reason("linear_forward")
    monkeypatch.setattr(choices, "gpu_name", lambda: "GPU B")
    assert choices.choose("linear_forward", 512, 64, 96, 16, BF16) == "split"
    assert "has not been measured: python benchmarks/gpu_campaign.py choices" in choices.reason("linear_forward")


@pytest.mark.parametrize(
    "change, form",
    [
        ({}, "fused"),
        ({"rows": 4096}, "split"),
        ({"o": 16384, "k": 2048}, "split"),
        ({"rank": 0}, "split"),  # cuBLAS alone is one launch too
        ({"dtype": torch.float32}, "split"),  # no tensor cores
        ({"arch": 80}, "split"),  # a third of Hopper's rate
    ],
)
def test_where_nothing_was_measured_launches_decide_small_products(change, form):
    assert choices.unmeasured(**{"rows": 512, "k": 576, "o": 3072, "rank": 16, "dtype": torch.bfloat16, "arch": 90, **change}) == form


def test_a_small_group_takes_the_fused_form_and_a_measurement_goes_first(table):
    x, bt = torch.zeros(1, 64, dtype=torch.bfloat16), torch.zeros(1, 16, 96, dtype=torch.bfloat16)
    chosen = lambda rows, scale=1.0: linear.form_of("linear_forward", x.expand(rows, 64), 64, 96, bt, scale, 1)  # noqa: E731
    assert chosen(512) == "fused" and chosen(8192) == "split"  # as measured
    with mock.patch.object(choices, "gpu_name", lambda: "GPU B"):
        assert chosen(512) == "fused" and choices.choose("linear_forward", 512, 64, 96, 16, BF16) == "split"
        assert chosen(8192) == "fused" and chosen(512, scale=[(16, 1.0)]) == "split"


def test_float32_does_not_take_what_was_measured_in_bfloat16(table):
    table.write_text(table.read_text().replace("linear_forward", "linear_activation_forward"))
    choices.reload()
    bt = torch.zeros(1, 16, 96, dtype=BF16)
    for dtype in (BF16, torch.float32):
        x, parts = torch.zeros(512, 64, dtype=dtype), [None, None]
        joins = linear_activation._joins("linear_activation_forward", x, parts, 64, 96, bt.to(dtype), 1.0, 2, 16)
        assert joins == (dtype == BF16)


def test_the_reason_of_joined_activations_is_their_own_choice(table):
    table.write_text(table.read_text().replace("linear_forward", "linear_activation_forward"))
    choices.reload()
    assert "fused at 1 of 2 measured shapes" in linear_activation.reason("linear_activation_forward")
    assert "has not been measured" in linear_activation.reason("linear_activation_backward")


def test_force_is_for_its_context_only(table):
    with choices.force("split"):
        assert choices.choose("linear_forward", 512, 64, 96, 16, BF16) == "split"
        with choices.force(None):
            assert choices.choose("linear_forward", 512, 64, 96, 16, BF16) == "fused"
    assert choices.choose("linear_forward", 512, 64, 96, 16, BF16) == "fused"
    with pytest.raises(ValueError, match="form='fast', accepted is one of"):
        with choices.force("fast"):
            pass


def test_an_unknown_form_in_the_table_is_refused(table):
    table.write_text(table.read_text().replace('"split"', '"fastest"'))
    choices.reload()
    with pytest.raises(ValueError, match="choices.json: form 'fastest'"):
        choices.choose("linear_forward", 512, 64, 96, 16, BF16)


def test_the_shipped_table_is_valid_and_other_gpus_are_unmeasured(monkeypatch):
    shipped = json.loads(choices.TABLE.read_text())
    for gpu in (*shipped, "GPU without measurements"):
        monkeypatch.setattr(choices, "gpu_name", lambda gpu=gpu: gpu)
        entries = shipped.get(gpu, [])
        assert sum(map(len, choices._measured(gpu).values())) == len(entries)  # every form is known, no shape stands twice
        for op in ("linear_forward", "linear_backward", "cross_entropy"):
            assert ("has not been measured" in choices.reason(op)) == (op not in {entry["op"] for entry in entries})

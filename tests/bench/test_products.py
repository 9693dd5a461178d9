"""bench products: the shapes are the model's, a wrong or absent product is named, shares are of the best peer."""

import pytest
from made_worker import Made

from dynadapt.bench import products, products_worker
from dynadapt.bench.side_by_side import OURS


def test_shapes_are_those_of_the_model():
    found = products.shapes("smollm2-135m", 512)
    assert found["qkv forward"] == {"rows": 512, "outputs": 960, "inputs": 576, "backward": False}
    assert found["down input gradient"] == {"rows": 512, "outputs": 576, "inputs": 1536, "backward": True}
    assert found["head forward"]["outputs"] == 49152 and "head input gradient" not in found and len(found) == 9


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_library_makes_the_product_or_says_why_not(dtype, monkeypatch):
    for name in products_worker.CALLS:
        for backward in (False, True):
            worker = products_worker.Products({"provider": name, "dtype": dtype, "threads": 1})
            made = worker.make(16, 40, 24, backward)
            if "absent" in made:
                assert name in ("oneDNN packed", "MKL packed"), made
                continue
            assert made["error"] < products_worker.LIMIT[worker.dtype] and len(worker.time(2)["seconds"]) == 2
    monkeypatch.setitem(products_worker.CALLS, "torch.mm", lambda x, weight, y, backward: lambda: y.zero_())
    wrong = products_worker.Products({"provider": "torch.mm", "dtype": dtype, "threads": 1}).make(16, 40, 24, False)
    assert "its result is off by 1 " in wrong["absent"]


def test_rows_are_by_threads_and_beside_the_best_peer(monkeypatch):
    monkeypatch.setattr(products, "thread_choices", lambda: (2, 1))
    shape = {"rows": 10, "outputs": 50, "inputs": 100, "backward": False}
    workers = {
        OURS: Made({1: 2.0, 2: 1.0}),
        "torch.mm": Made({1: 4.0, 2: 0.9}),
        "oneDNN packed": Made({1: 1.6, 2: 1.5}),
        "MKL packed": Made({}, {"absent": "float32 only"}),
    }
    one, two = products.measure("qkv forward", shape, workers, 5)
    assert (one["threads"], one["best_peer"], one["share_of_best"]) == (1, "oneDNN packed", pytest.approx(0.8))
    assert (two["threads"], two["best_peer"], two["share_of_best"]) == (2, "torch.mm", pytest.approx(0.9))
    assert one["calls"][OURS]["gflops"] == pytest.approx(1e-9 * 2 * 10 * 50 * 100 / 2.0) and "gflops" not in one["calls"]["MKL packed"]
    with pytest.raises(RuntimeError, match="qkv forward: it is wrong; nothing was timed"):
        products.measure("qkv forward", shape, {**workers, OURS: Made({}, {"absent": "it is wrong"})}, 5)

"""Weights are read while those before them are packed: in order, one ahead, and an error comes where its weight was due."""

import threading
import weakref

import pytest

from dynadapt.engine import Engine
from dynadapt.engine.weights import read_ahead
from dynadapt.model import ModelError, random_model, tiny_config
from dynadapt.model.base import Model


class Read:
    """A result that knows whether it is still held."""


def test_results_come_in_order_and_one_more_is_read_while_one_is_used():
    second = threading.Event()
    reads = read_ahead([lambda: 1, lambda: second.set() or 2, lambda: 3])
    assert next(reads) == 1 and second.wait(60)
    assert list(reads) == [2, 3]
    assert list(read_ahead([])) == [] and list(read_ahead([lambda: 5])) == [5]


def test_what_was_used_is_let_go_of_and_only_one_more_is_read():
    made = []

    def read():
        result = Read()
        made.append(weakref.ref(result))
        return result

    reads = read_ahead([read] * 5)
    held = next(reads)
    for used in range(1, 5):
        del held
        held = next(reads)
        assert made[used - 1]() is None and len(made) <= used + 2
    assert made[4]() is held


def test_an_error_in_the_reading_thread_reaches_who_makes_the_engine(monkeypatch):
    readers = []

    def tensor(self, name, whole=Model.tensor):
        readers.append(threading.current_thread().name)
        if name == "layers.1.down.weight":
            raise ModelError(f"tensor {name} is damaged")
        return whole(self, name)

    monkeypatch.setattr(Model, "tensor", tensor)
    with pytest.raises(ModelError, match=r"tensor layers\.1\.down\.weight is damaged"):
        Engine(random_model(tiny_config("llama")), segment=4, backend="reference", dtype="fp32")
    assert all(name.startswith("dynadapt-read") for name in readers)

"""Importing is not interrupted by Python's garbage collector, which is as the caller had it afterwards."""

import gc
import subprocess
import sys

import pytest

from dynadapt.common.collection import uncollected

STARTS = ("import dynadapt; dynadapt.load", "from dynadapt.engine import Engine")
COUNTED = """
import gc
passes = []
gc.callbacks.append(lambda phase, about: passes.append(about["generation"]) if phase == "start" else None)
{start}
assert gc.isenabled() and 2 not in passes, passes
kept = [[] for _ in range(2000)]  # more than the youngest generation takes
assert passes
import torch
assert any(value is torch.Tensor for value in gc.get_objects(2))  # counted as old
"""


@pytest.mark.parametrize("start", STARTS)
def test_no_full_collection_while_torch_is_imported_for_the_engine(start):
    done = subprocess.run([sys.executable, "-c", COUNTED.format(start=start)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_collector_that_is_off_stays_off_and_frozen_objects_stay_frozen():
    gc.disable()
    try:
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert gc.get_freeze_count() == 0
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with uncollected():
            pass
        assert gc.isenabled() and gc.get_freeze_count() > frozen // 2  # a frozen object may end meanwhile
    finally:
        gc.unfreeze()


def test_the_collector_is_on_again_after_an_error_and_what_was_made_inside_is_collected_once_it_is_garbage():
    class Cycle:
        gone = False

        def __init__(self):
            self.self = self

        def __del__(self):
            Cycle.gone = True

    with pytest.raises(ImportError), uncollected():
        Cycle()
        raise ImportError
    assert gc.isenabled() and not Cycle.gone
    gc.collect()
    assert Cycle.gone

"""The thread pool: its size can change, callers may overlap, a forked process gets its own."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dynadapt import _C


def product(x, weight):
    y = torch.full((x.shape[0], weight.shape[0]), float("nan"))
    _C.linear_forward(x, [weight], None, None, None, None, 1.0, None, y)
    return y


def test_any_number_of_threads_gives_the_same_result():
    x, weight = torch.randn(200, 96), _C.PackedMatrix(torch.randn(300, 96))
    expected = product(x, weight)
    for threads in (1, 2, 7, 3, 16, 1, 2):
        _C.set_num_threads(threads)
        assert _C.num_threads() == threads
        assert all(torch.equal(product(x, weight), expected) for _ in range(20))
    _C.set_num_threads(0)


def test_callers_may_overlap():
    x, weight = torch.randn(200, 96), _C.PackedMatrix(torch.randn(300, 96))
    expected = product(x, weight)
    _C.set_num_threads(2)
    with ThreadPoolExecutor(4) as callers:
        results = list(callers.map(lambda _: product(x, weight), range(200)))
    _C.set_num_threads(0)
    assert all(torch.equal(r, expected) for r in results)


def test_follows_torch_and_the_environment():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert _C.num_threads() == 1
    torch.set_num_threads(before)
    program = "from dynadapt import _C; print(_C.num_threads())"
    run = lambda value: subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,  # noqa: E731
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "DYNADAPT_NUM_THREADS": value},
    )
    assert run("3").stdout.strip() == "3"
    assert 'DYNADAPT_NUM_THREADS is "many", accepted is a whole number' in run("many").stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_its_own_pool():
    program = """
import os, torch
from dynadapt import _C
_C.set_num_threads(2)
x, weight, y = torch.ones(200, 96), _C.PackedMatrix(torch.ones(300, 96)), torch.zeros(200, 300)
_C.linear_forward(x, [weight], None, None, None, None, 1.0, None, y)
child = os.fork()
if child == 0:
    z = torch.empty(200, 300)
    _C.linear_forward(x, [weight], None, None, None, None, 1.0, None, z)
    os._exit(0 if z.numpy().min() == 96 == z.numpy().max() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr

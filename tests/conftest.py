"""Fixtures that every test may use."""

import os
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # before dynadapt.kernels is imported: Triton decides at decoration
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))  # tests/helpers.py


def pytest_collection_modifyitems(items) -> None:
    """The longest file first: where files are shared out to processes, none is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_instruction_sets.py")


@pytest.fixture(scope="session")
def smollm2_directory() -> Path:
    """The directory of SmolLM2-135M, fetched into the cache once."""
    from dynadapt.model.fetch import fetch

    return fetch("smollm2-135m")


@pytest.fixture
def case(request):
    """A case of an op, made when the test runs: see ``op_cases.each``."""
    from op_cases import make_case

    return make_case(*request.param)


@pytest.fixture(scope="module", autouse=True)
def threads_as_they_were():
    """A file that sets the number of threads in this process leaves it to the next one as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    native = sys.modules.get("dynadapt._C")
    if native is not None:
        native.set_num_threads(0)


@pytest.fixture(scope="module")
def one_thread(threads_as_they_were):
    """Where tensors are tiny, threads would only wait for each other."""
    torch.set_num_threads(1)

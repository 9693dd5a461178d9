"""Native tests need the extension; their inputs are the same in every run."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)

"""Blocks of integers: their definition against the gguf package, bit by bit, and which blocks are refused."""

import gguf
import numpy as np
import pytest
import torch

from dynadapt.bench.made_up_quants import random_blocks
from dynadapt.ops.quants import BLOCK_FORMATS, QuantisedWeight

FORMATS = pytest.mark.parametrize("name", BLOCK_FORMATS)


def package(weight: QuantisedWeight) -> np.ndarray:
    return gguf.quants.dequantize(weight.blocks.numpy(), gguf.GGMLQuantizationType[weight.name.upper()])


@FORMATS
def test_definition_is_the_packages_to_the_bit(name):
    weight = random_blocks(name, 40, 768)
    value = weight.dequantise()
    assert value.shape == (40, 768)
    np.testing.assert_array_equal(value.numpy().view(np.uint32), package(weight).view(np.uint32))


@FORMATS
def test_sizes_are_the_formats(name):
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]] == (BLOCK_FORMATS[name].columns, BLOCK_FORMATS[name].size)


@FORMATS
def test_random_blocks_have_the_deviation_asked_for(name):
    value = random_blocks(name, 256, 1024, std=0.05).dequantise()
    assert abs(value.mean()) < 0.01 and 0.04 < value.std() < 0.065


@FORMATS
def test_rows_move_whole(name):
    weight, order = random_blocks(name, 12, 256), torch.randperm(12, generator=torch.Generator().manual_seed(1))
    moved = weight.rows(order)
    assert moved.shape == (12, 256) and torch.equal(moved.dequantise(), weight.dequantise()[order])


@FORMATS
def test_a_scale_that_is_not_finite_is_found_where_a_value_is_not(name):
    form = BLOCK_FORMATS[name]
    for at in form.halves:
        for bits in (0x7C00, 0xFC00, 0x7E01, 0x7BFF, 0x0001):
            weight = random_blocks(name, 4, 512)
            weight.blocks[2, form.size + at : form.size + at + 2] = torch.tensor([bits & 255, bits >> 8], dtype=torch.uint8)
            assert weight.finite() == bool(torch.isfinite(weight.dequantise()).all()) == (bits & 0x7C00 != 0x7C00)

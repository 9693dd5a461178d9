"""Cards and models of the plan by name: as drivers and hubs write them, with the figures and parameters that are published."""

import math

import pytest
import torch

from dynadapt.bench.plan import GPUS, datasheet
from dynadapt.model import ModelError
from dynadapt.model.geometries import GEOMETRIES, geometry
from dynadapt.model.hf_config import config_to_hf
from dynadapt.model.layout import tensor_shapes


@pytest.mark.parametrize(
    "said, card",
    [
        ("h100", "NVIDIA H100 SXM"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
        ("H100-NVL", "NVIDIA H100 NVL"),
        ("NVIDIA H200", "NVIDIA H200 SXM"),
        ("B200", "NVIDIA B200 SXM"),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100 SXM 40GB"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 SXM 80GB"),
        ("NVIDIA A100-PCIE-40GB", "NVIDIA A100 PCIe 40GB"),
        ("NVIDIA A100 80GB PCIe", "NVIDIA A100 PCIe 80GB"),
        ("a100 40 GB", "NVIDIA A100 SXM 40GB"),
        ("L40S", "NVIDIA L40S"),
        ("4090", "NVIDIA GeForce RTX 4090"),
        ("rtx5090", "NVIDIA GeForce RTX 5090"),
        ("NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 3090"),
        ("NVIDIA RTX 6000 Ada Generation", "NVIDIA RTX 6000 Ada"),
    ],
)
def test_cards_by_their_usual_names(said, card):
    assert datasheet(said).name == card


def test_cards_are_what_they_are_sold_as():
    for name in GPUS:
        card = datasheet(name)
        # Within what silicon of these generations does: products a byte of traffic, and tensor cores above the others.
        assert 70 < card.product_rate("bf16") / card.bandwidth < 500
        assert 1.9 < card.product_rate("bf16") / card.product_rate("fp32") < 31 and 20e9 < card.memory < 200e9
        assert datasheet(card.name).name == card.name
    with pytest.raises(ValueError, match="did you mean h100"):
        datasheet("h10")
    for unknown in ("", "a100 20gb", "rtx 6000", "mi300x", "nvidia"):
        with pytest.raises(ValueError, match="expected one of b200, h200"):
            datasheet(unknown)


PARAMETERS = {  # as the published checkpoints have them
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "mistral-7b-v0.2": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "granite-3.0-2b": 2_533_531_648,
    "granite-3.0-8b": 8_170_848_256,
    "phi-3-mini-4k": 3_821_079_552,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
}


def test_geometries_have_the_published_numbers_of_parameters():
    assert {name: sum(map(math.prod, tensor_shapes(config).values())) for name, config in GEOMETRIES.items()} == PARAMETERS


@pytest.mark.parametrize(
    "name",
    ["llama-2-7b", "gpt2", "smollm2-360m", "qwen2.5-0.5b", "qwen3-0.6b", "granite-3.0-2b", "phi-3-mini-4k", "pythia-160m", "gemma-2-2b"],
)
def test_geometries_are_models_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    raw = config_to_hf(GEOMETRIES[name])
    kind, architecture = raw.pop("model_type"), raw.pop("architectures")[0]
    config = transformers.CONFIG_MAPPING[kind](**raw)
    if name in ("gpt2", "llama-2-7b"):  # whose sizes are the defaults
        plain = type(config)()
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            assert getattr(config, key) == getattr(plain, key)
    with torch.device("meta"):
        model = getattr(transformers, architecture)(config)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    "said, name",
    [
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("llama3.2-1b", "llama-3.2-1b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("Qwen/Qwen3-0.6B-Base", "qwen3-0.6b"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"),
        ("openai-community/gpt2-xl", "gpt2-xl"),
        ("gpt2-small", "gpt2"),
        ("GPT-2", "gpt2"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("mistral-7b", "mistral-7b-v0.3"),
        ("EleutherAI/pythia-160m-deduped", "pythia-160m"),
        ("microsoft/Phi-3-mini-4k-instruct", "phi-3-mini-4k"),
        ("ibm-granite/granite-3.0-2b-base", "granite-3.0-2b"),
    ],
)
def test_models_by_their_usual_names(said, name):
    assert geometry(said) is GEOMETRIES[name]


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ModelError, match="did you mean llama-3.1-8b\\?"):
        geometry("Llama-3.1-8C")
    for unknown in ("", "/", "qwen3", "8b", "llama", "qwen-2.7b"):
        with pytest.raises(ModelError, match="no known geometry"):
            geometry(unknown)

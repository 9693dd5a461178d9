"""Weights that are no numbers, or of a dtype that holds none: refused by every way in, naming file or model and tensor."""

import struct
import sys
from pathlib import Path

import pytest
import torch
from gguf_files import write_gguf
from helpers import to_transformers
from safetensors.torch import load_file, save_file

import dynadapt
from dynadapt import Engine, LoRA
from dynadapt.model import ModelError, from_state, load, random_model, tensor_shapes, tiny_config
from dynadapt.model.convert import write_directory

sys.path.insert(0, str(Path(__file__).parents[1] / "native"))
MARK = 1.2345678e-3  # a value that no other weight has
CONFIG = tiny_config("qwen3", layers=1, tied_head=False)
BAD = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
DTYPES = (torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2)
NAMES = [
    "embed.weight",
    "layers.0.attn_norm.weight",
    "layers.0.k.weight",
    "layers.0.q_norm.weight",
    "layers.0.down.weight",
    "norm.weight",
    "head.weight",
]


def marked(name):
    model = random_model(CONFIG, seed=1, std=0.1)
    state = {n: model.tensor(n).clone() for n in model.names()}
    state[name].view(-1)[-1] = MARK
    return from_state(CONFIG, state)


def spoil(file: Path, value: float) -> None:
    content, mark = file.read_bytes(), struct.pack("<f", MARK)
    assert content.count(mark) == 1
    file.write_bytes(content.replace(mark, struct.pack("<f", value)))


def engine(source):
    return Engine(source, adapt=LoRA(rank=2), segment=8, dtype="fp32", backend="cpu")


def in_c(directory):
    from engine_c import EngineC

    return EngineC(directory, dtype=1, segment=8)


@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_is_not_finite(tmp_path, name):
    from engine_c import Refused

    model, message = marked(name), r"tensor .*(weight|norm).* holds (1 values|a value) that (are|is) NaN or infinite"
    write_directory(model, tmp_path / "model", torch.float32)
    file = tmp_path / "model" / "model.safetensors"
    whole = file.read_bytes()
    for value in BAD.values():
        spoil(file, value)
        with pytest.raises(ModelError, match=f"{tmp_path}/model: {message}"):
            engine(load(tmp_path / "model"))
        with pytest.raises(Refused, match=f"{file}: {message}"):
            in_c(tmp_path / "model")
        file.write_bytes(whole)
    engine(load(tmp_path / "model")), in_c(tmp_path / "model")
    gguf = write_gguf(model, tmp_path / "tiny.gguf")
    spoil(gguf, float("nan"))
    with pytest.raises(ModelError, match=f"{gguf}: {message}"):
        engine(load(gguf))


@pytest.mark.parametrize("name", ["embed.weight", "layers.0.k.weight", "norm.weight"])
def test_a_live_model_that_is_not_finite(name):
    model = random_model(CONFIG, seed=1)
    live = to_transformers(model)
    key = dynadapt.model.hf_name(CONFIG, name)
    with torch.no_grad():
        live.get_parameter(key).view(-1)[3] = float("inf")
    for use in (lambda: engine(load(live)), lambda: dynadapt.attach(live, adapt=LoRA(rank=2), segment=8)):
        with pytest.raises(ModelError, match=f"tensor {name} holds 1 values that are NaN or infinite"):
            use()
    with torch.no_grad():
        live.get_parameter(key).view(-1)[3] = 0.5
    dynadapt.attach(live, adapt=LoRA(rank=2), segment=8).detach()  # the refusal left nothing behind


@pytest.mark.parametrize("dtype", (*DTYPES, torch.float64), ids=str)
def test_a_file_of_another_dtype(tmp_path, dtype):
    from engine_c import Refused

    write_directory(random_model(CONFIG, seed=1), tmp_path / "model", torch.float32)
    file = tmp_path / "model" / "model.safetensors"
    whole = load_file(file)
    for key in ("model.layers.0.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"):
        save_file({**whole, key: whole[key].to(dtype)}, file)
        with pytest.raises(ModelError, match=f"{file}: tensor {key} has dtype .*; accepted: F32, F16, BF16"):
            load(tmp_path / "model")
        with pytest.raises(Refused, match=f"{file}: tensor {key} has dtype .*; accepted: F32, F16, BF16"):
            in_c(tmp_path / "model")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_live_model_or_a_state_of_another_dtype(dtype):
    model = random_model(CONFIG, seed=1)
    live = to_transformers(model)
    live.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(live.model.layers[0].mlp.up_proj.weight.to(dtype), requires_grad=False)
    for use in (lambda: load(live), lambda: dynadapt.attach(live, adapt=LoRA(rank=2), segment=8)):
        with pytest.raises(ModelError, match=f"up_proj.weight has dtype {dtype}; accepted: torch.float32"):
            use()
    state = {name: model.tensor(name) for name in tensor_shapes(CONFIG)} | {"norm.weight": torch.ones(CONFIG.hidden_size).to(dtype)}
    with pytest.raises(ModelError, match=f"tensor norm.weight has dtype {dtype}"):
        from_state(CONFIG, state)
    with pytest.raises(ModelError, match="dtype = torch.* is not a dtype of weights"):
        load(to_transformers(model), dtype=dtype)

"""The engine of the C ABI: its scores, updates, ledger and adapters are those of dynadapt.Engine, bit for bit.

Both call the same kernels in the same order. What each computes for itself, the adapters' first A and the rotary tables, comes
out equal too: A is drawn from the same generator, and the tables are rounded once, from float64.
"""

import ctypes
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from dynadapt import SGD, Adam, AdamW, Lion, LoRA, SegmentMemory
from dynadapt.model import ModelError
from dynadapt.model.directory import load_directory
from dynadapt.model.rope_settings import yarn

from .engine_c import (
    DTYPES,
    SEGMENT,
    EngineC,
    Params,
    Refused,
    assert_same_adapters,
    assert_same_steps,
    check,
    defaults,
    library,
    pair,
    text,
    write,
)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("memory", [None, SegmentMemory(20, 3)], ids=["no memory", "memory"])
@pytest.mark.parametrize("streams", [1, 2])
def test_equals_the_python_engine(tmp_path, dtype, memory, streams):
    c, python = pair(write(tmp_path / "model"), dtype, streams, memory)
    assert_same_steps(c, python)
    assert_same_adapters(c, python, tmp_path)


CASES = {
    "static": {"adapt": None, "memory": SegmentMemory(9, 2)},
    "attention alone": {"adapt": LoRA(rank=2, targets="attn")},
    "feed-forward of the upper layers": {"adapt": LoRA(rank=4, targets="mlp", layers=range(1, 3)), "memory": SegmentMemory(9, 2)},
    "one layer in the middle": {"adapt": LoRA(rank=4, layers=range(1, 2))},
    "adamw, decay to the start": {"optimizer": AdamW(lr=1e-2, weight_decay=0.1, decay=0.05, clip=0.01)},
    "adam without a first moment": {"optimizer": Adam(lr=1e-2, betas=(0.0, 0.99), clip=0.0)},
    "sgd with momentum": {"optimizer": SGD(lr=0.1, momentum=0.9)},
    "sgd": {"optimizer": SGD(lr=0.1)},
    "lion": {"optimizer": Lion(lr=1e-3, weight_decay=0.1, decay=0.05)},
    "lion without a moment": {"optimizer": Lion(lr=1e-3, betas=(0.0, 0.99))},
    "every third segment": {"every": 3, "memory": SegmentMemory(9, 2)},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_equals_the_python_engine_whatever_learns(tmp_path, case, dtype):
    c, python = pair(write(tmp_path / "model"), dtype, streams=2, **CASES[case])
    assert_same_steps(c, python)
    assert_same_adapters(c, python, tmp_path)


@pytest.mark.parametrize(
    "family,changes",
    [
        ("llama", {"tied_head": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("granite", {}),
        ("llama", {"windows": (7, 7, 7)}),
        ("qwen3", {"windows": (None, 14, 14)}),
        ("smollm3", {}),
        ("smollm3", {"windows": (None, 14, None, 14)}),
        ("olmo2", {}),
        ("olmo2", {"windows": (7, None, 7), "window_rope_theta": 500.0, "rope_scaling": yarn(4.0, 16, beta_fast=2.0)}),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        (
            "llama",
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                }
            },
        ),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
        ("llama", {"rope_scaling": yarn(4.0, 16, beta_fast=2.0)}),
        (
            "llama",
            {
                "rope_scaling": {
                    "rope_type": "longrope",
                    "short_factor": (1.0,) * 5,
                    "long_factor": (1.0, 1.5, 2.0, 3.0, 4.0),
                    "attention_factor": 1.2,
                    "original_max_position_embeddings": 16,
                }
            },
        ),
    ],
    ids=(
        "tied,biases,qwen2,qwen3,granite,mistral windows,qwen3 windows,smollm3,smollm3 windows,olmo2,olmo3,linear rope,llama3 rope,"
        "dynamic rope,yarn rope,longrope"
    ).split(","),
)
def test_equals_the_python_engine_for_every_family(tmp_path, family, changes):
    directory = write(tmp_path / "model", family, **changes)
    for dtype in DTYPES:
        c, python = pair(directory, dtype, 2, SegmentMemory(9, 2))
        assert_same_steps(c, python, 3)
        assert_same_adapters(c, python, tmp_path / dtype)
    assert c.info.family.decode() == family
    assert c.info.parameters == sum(python.model.tensor(name).numel() for name in python.model.names())
    assert c.info.learned_parameters == python.learned_parameters
    assert c.info.bytes > 4 * c.info.parameters + 2 * 4 * 4 * c.info.learned_parameters  # masters, gradients, two moments
    assert (c.info.window, c.info.vocabulary, c.info.layers) == (SEGMENT + 11, python.config.vocab_size, python.config.layers)


def test_ragged_segments_resting_streams_and_documents(tmp_path):
    c, python = pair(write(tmp_path / "model"), "bf16", 3, SegmentMemory(20, 3), every=2)
    assert_same_steps(c, python, lengths=[[12, 5, 12], [12, 0, 3], [1, 12, 12], [12, 12, 12]])
    for engine in (c, python):
        engine.enter(1)
        engine.set_lr(0, 0.05)
    c.reset(2), python.reset(2)
    assert_same_steps(c, python, lengths=[[12, 12, 12], [12, 0, 12], [12, 12, 12]], steps=3, seed=1)
    assert_same_adapters(c, python, tmp_path)


def test_takes_an_adapter(tmp_path):
    directory = write(tmp_path / "model")
    _, teacher = pair(directory, seed=9)
    teacher.step(text(1, SEGMENT + 1, teacher.config.vocab_size, 3))
    teacher.save(tmp_path / "taught")
    c, python = pair(directory, "bf16", 2)
    assert_same_steps(c, python, 2)
    c.load_adapter(1, tmp_path / "taught" / "adapter"), python.load_adapter(tmp_path / "taught" / "adapter", 1)
    assert_same_steps(c, python, 2, seed=1)
    assert_same_adapters(c, python, tmp_path)


def test_a_gradient_that_is_not_finite_skips_its_stream_alone(tmp_path):
    c, python = pair(write(tmp_path / "model"), "fp32", 2)
    python.save(tmp_path)
    broken = load_file(str(tmp_path / "adapter-0" / "adapter_model.safetensors"))
    name = next(iter(broken))
    broken[name].fill_(3e38)  # no infinity is loaded: the products make them
    save_file(broken, str(tmp_path / "adapter-0" / "adapter_model.safetensors"))
    c.load_adapter(0, tmp_path / "adapter-0"), python.load_adapter(tmp_path / "adapter-0", 0)
    tokens = text(2, SEGMENT + 1, python.config.vocab_size)
    expected, nll = python.step(tokens), c.step(tokens)
    assert list(c.outcome) == [2, 1] and (c.report.updated, c.report.skipped) == (1, 1)
    assert python.last.skipped == [True, False]
    assert torch.isnan(nll[0]).any() and torch.equal(nll[1], expected[1])
    assert torch.equal(c.step(tokens)[1], python.step(tokens)[1])


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_every_dtype_are_rounded_alike(tmp_path, stored):
    directory = write(tmp_path / "model", dtype=stored)
    for dtype in DTYPES:
        assert_same_steps(*pair(directory, dtype), steps=1)


def test_sharded_and_bare_checkpoints(tmp_path):
    whole = write(tmp_path / "whole", tied_head=True)
    tensors = load_file(str(whole / "model.safetensors"))
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "config.json").write_text((whole / "config.json").read_text())
    names = sorted(tensors)
    files = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, str(shards / file))
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((whole / "config.json").read_text())
    save_file({name.removeprefix("model."): value for name, value in tensors.items()}, str(bare / "model.safetensors"))
    tokens = text(1, SEGMENT + 1, 131)
    expected = pair(whole)[0].step(tokens)
    for directory in (shards, bare):
        assert torch.equal(pair(directory)[0].step(tokens), expected)
    (shards / "model-2.safetensors").unlink()
    with pytest.raises(Refused, match="model-2.safetensors, which model.safetensors.index.json names, is missing"):
        EngineC(shards)


@pytest.mark.parametrize("differs", [False, True])
def test_a_head_beside_a_tied_embedding(tmp_path, differs):
    directory = write(tmp_path / "model", tied_head=True)
    tensors = load_file(str(directory / "model.safetensors"))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + differs
    save_file(tensors, str(directory / "model.safetensors"))
    assert_same_steps(*pair(directory), steps=2)


# ---- what is refused


@pytest.mark.parametrize(
    "options,message",
    [
        ({"struct_size": 4}, r"params.struct_size is 4, accepted is sizeof\(\*params\)"),
        ({"struct_size": 5000}, "params.struct_size is 5000"),
        ({"dtype": 7}, "dtype is 7, accepted is 0 .bf16. or 1"),
        ({"streams": 0}, "streams is 0"),
        ({"segment": -2}, "segment is -2"),
        ({"every": 0}, "every is 0"),
        ({"memory_length": -1}, "memory_length is -1"),
        ({"memory_sinks": -1}, "memory_sinks is -1"),
        ({"rank": -1}, "rank is -1"),
        ({"alpha": -1.0}, "alpha is -1"),
        ({"alpha": float("nan")}, "alpha is -?nan"),
        ({"targets": b"q"}, 'targets is "q", accepted is all, attn or mlp'),
        ({"targets": None}, 'targets is ""'),
        ({"first_layer": 2, "last_layer": 2}, "first_layer and last_layer are 2 and 2"),
        ({"last_layer": 9}, "the model's layers 0 to 3"),
        ({"optimizer": 3}, "optimizer is 3.*rms needs gradient statistics"),
        ({"lr": -1.0}, "lr is -1"),
        ({"clip": -1.0}, "clip is -1"),
        ({"decay": 2.0}, "decay is 2"),
        ({"beta1": 1.0}, "beta1 is 1"),
        ({"beta2": 0.0}, "beta2 is 0"),
        ({"eps": 0.0}, "eps is 0"),
        ({"weight_decay": 0.1}, "weight_decay is 0.1, accepted is 0 to 0"),
        ({"momentum": 0.9}, "momentum is 0.9, accepted is 0 to 0"),
        ({"segment": 600}, "window of 600 tokens, the model has 512 positions"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, options, message):
    directory = write(tmp_path / "model")
    with pytest.raises(Refused, match=message) as refused:
        EngineC(directory, **{"segment": SEGMENT, **options})
    assert refused.value.code == 1


def test_wrong_calls_are_named(tmp_path):
    c, python = pair(write(tmp_path / "model"), streams=2)
    fine = text(2, SEGMENT + 1, 131)
    before = c.step(fine)
    for tokens, lengths, message in [
        (text(2, SEGMENT + 2, 131), None, "T is 13, accepted is 1 to 12"),
        (fine + 131, None, r"tokens\[0\]\[0\] is "),
        (fine - 131, None, "accepted is 0 to 130"),
        (fine, [13, 1], r"lengths\[0\] is 13"),
        (fine, [1, -1], r"lengths\[1\] is -1"),
    ]:
        with pytest.raises(Refused, match=message):
            c.step(tokens, lengths)
    for call, message in [
        (lambda: c.enter(2), "stream is 2, accepted is 0 to 1"),
        (lambda: c.reset(-1), "stream is -1"),
        (lambda: c.set_lr(0, -1.0), "lr is -1"),
        (lambda: c.load_adapter(0, tmp_path), "adapter_config.json: cannot be read"),
    ]:
        with pytest.raises(Refused, match=message):
            call()
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="cannot be made") as refused:
        c.save(0, tmp_path / "file" / "adapter")
    assert refused.value.code == 4
    with pytest.raises(Refused, match="engine is NULL"):
        check(library.dynadapt_engine_enter(None, 0))
    python.step(fine)
    assert not torch.equal(c.step(fine), before), "refused calls must leave an engine that still learns"
    with pytest.raises(Refused, match="nothing learns in this engine"):
        pair(tmp_path / "model", adapt=None)[0].save(0, tmp_path / "adapter")


def test_an_adapter_that_does_not_fit_changes_nothing(tmp_path):
    directory = write(tmp_path / "model")
    c, python = pair(directory)
    for name, adapt, message in [
        ("rank", LoRA(rank=2, alpha=4.0), "r = 2; the engine's has 3"),
        ("alpha", LoRA(rank=3, alpha=4.0), "lora_alpha = 4; the engine's has 6.0"),
        ("targets", LoRA(rank=3, alpha=6.0, targets="attn"), "has no base_model.*targets = all needs"),
    ]:
        pair(directory, adapt=adapt)[1].save(tmp_path / name)
        with pytest.raises(Refused, match=message):
            c.load_adapter(0, tmp_path / name / "adapter")
    python.save(tmp_path / "fits")
    config = tmp_path / "fits" / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_rslora": True}))
    with pytest.raises(Refused, match="use_rslora = true, which is not supported"):
        c.load_adapter(0, config.parent)
    assert_same_steps(c, python, 2)


def test_defaults_are_those_of_python():
    p, lora, adam = defaults(), LoRA(), Adam()
    assert (p.rank, p.alpha, p.targets.decode()) == (lora.rank, 0, lora.targets) and lora.alpha == 2 * lora.rank  # 0: twice the rank
    assert (p.lr, p.beta1, p.beta2, p.eps, p.clip, p.decay) == (adam.lr, *adam.betas, adam.eps, adam.clip, adam.decay)
    assert (p.streams, p.segment, p.every, p.dtype, p.memory_sinks) == (1, 512, 1, 0, SegmentMemory().sinks)
    with pytest.raises(Refused, match="struct_size is 8"):
        check(library.dynadapt_engine_params_default(ctypes.byref(Params()), 8))


def test_alpha_alone_is_twice_the_rank(tmp_path):
    directory = write(tmp_path / "model")
    for rank in (3, 5):
        alone = EngineC(directory, dtype=DTYPES["fp32"], segment=SEGMENT, rank=rank, targets=b"all", last_layer=2)
        alone.save(0, tmp_path / str(rank))
        settings = json.loads((tmp_path / str(rank) / "adapter_config.json").read_text())
        assert (settings["r"], settings["lora_alpha"]) == (rank, 2 * rank)
    given = EngineC(directory, dtype=DTYPES["fp32"], segment=SEGMENT, rank=3, alpha=6.0, targets=b"all", last_layer=2)
    given.load_adapter(0, tmp_path / "3")


def config_of(directory, **changes):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    "changes,message",
    [
        (
            {"model_type": "gpt2"},
            'model_type "gpt2" is not .* this engine, which does not compute learned positions.*; accepted: llama, mistral,',
        ),
        ({"model_type": "phi3"}, 'model_type "phi3" is not supported by this engine, which does not compute fused queries'),
        ({"model_type": "gpt_neox"}, 'model_type "gpt_neox" is not .*, which does not compute attention and feed-forward side by side'),
        ({"model_type": "qwen3_5_text"}, 'model_type "qwen3_5_text" is not .*, which does not compute layers of the gated delta rule'),
        ({"model_type": "mamba"}, 'model_type "mamba" is not supported by this engine; accepted: .*, granite$'),
        ({"sliding_window": 64}, "sliding_window = 64, context 512"),
        ({"model_type": "mistral", "sliding_window": 1}, "sliding_window = 1 is not supported"),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1, "sliding_window": 1}, "sliding_window = 1"),
        ({"hidden_act": "gelu"}, 'hidden_act = "gelu"'),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50 is not"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config = .*gptq"),
        ({"num_experts": 4}, "num_experts = 4"),
        ({"rope_scaling": {"rope_type": "ntk", "factor": 4.0}}, 'type "ntk" is not supported'),
        ({"hidden_size": "60"}, 'hidden_size = "60" must be'),
        ({"num_hidden_layers": 4}, "model.layers.3.* is missing"),
        ({"num_hidden_layers": 2}, "model.layers.2.* has no place in this model"),
        ({"num_key_value_heads": 4}, "does not divide"),
        ({"vocab_size": 130}, r"has shape \[131, 60\], the config expects \[130, 60\]"),
        ({"rms_norm_eps": -1}, "rms_norm_eps = -1 must be a number"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ],
)
def test_models_that_are_not_supported_are_named(tmp_path, changes, message):
    directory = write(tmp_path / "model")
    config_of(directory, **changes)
    with pytest.raises(Refused, match=message) as refused:
        EngineC(directory)
    assert refused.value.code == 1
    with pytest.raises(ModelError, match=re.escape(str(directory))):  # the Python side does not load it either
        load_directory(directory)


def test_a_window_that_changes_nothing_is_served(tmp_path):
    directory = write(tmp_path / "model")
    for window, positions in ((None, 8192), (512, 512)):
        config_of(
            directory, model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=window, max_position_embeddings=positions
        )
        assert_same_steps(*pair(directory), steps=1)


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(Refused, match="nowhere.* is not a directory"):
        EngineC(tmp_path / "nowhere")
    directory = write(tmp_path / "model")
    weights, config = directory / "model.safetensors", directory / "config.json"
    whole, text_of_config = weights.read_bytes(), config.read_text()
    for content, message in [
        (whole[:-4], "does not fit: F32"),
        (whole[:5], "not a whole safetensors file"),
        (b"\xff" * 16, "not a whole"),
        (whole[:8] + b"[" + whole[9:], "not valid JSON"),
        (whole[:9] + b"\xff" + whole[10:], "not UTF-8"),
        (whole + b"x", "its header describes"),
    ]:
        weights.write_bytes(content)
        with pytest.raises(Refused, match=message):
            EngineC(directory)
    weights.unlink()
    with pytest.raises(Refused, match="no model.safetensors"):
        EngineC(directory)
    weights.write_bytes(whole)
    for content, message in [
        ("{", "a name was expected"),
        ("[1]", "must be a JSON object"),
        ("[" * 100, "nested too deeply"),
        (text_of_config + "x", "more after its value"),
        ('{"a": 1e999}', "out of range"),
        ('{"a": "\\x"}', "unknown escape"),
        ('{"a": "\\ud83d"}', "half of a surrogate pair"),
    ]:
        config.write_text(content)
        with pytest.raises(Refused, match=message):
            EngineC(directory)
    rest = json.loads(text_of_config)
    del rest["model_type"], rest["architectures"]
    config.write_text('{"model_\\u0074ype": "llama", "_name_or_path": "\\ud83d\\ude00 \\n", ' + json.dumps(rest)[1:])
    EngineC(directory)  # escapes are read: nothing else says which family it is


def test_no_damage_ends_the_process(tmp_path):
    """Mutations of both files load or are refused with a text; nothing else happens."""
    directory = write(tmp_path / "model", layers=1)
    generator = torch.Generator().manual_seed(0)
    pick = lambda high: int(torch.randint(high, (1,), generator=generator))  # noqa: E731
    outcomes = set()
    for path in (directory / "config.json", directory / "model.safetensors"):
        whole = path.read_bytes()
        reach = min(len(whole), 1500)
        for _ in range(150):
            content = bytearray(whole)
            for _ in range(1 + pick(3)):
                content[pick(reach)] = pick(256) if pick(2) else b'0123456789[]{},:"-.e'[pick(20)]
            path.write_bytes(content)
            try:
                EngineC(directory, segment=SEGMENT)
                outcomes.add("loaded")
            except Refused as refused:
                outcomes.add("refused")
                assert refused.code in (1, 2) and str(refused)
        path.write_bytes(whole)
    assert outcomes == {"loaded", "refused"}

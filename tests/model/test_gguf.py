"""GGUF files: every family and type, config from metadata, refusals by name."""

import math
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from gguf_files import write_gguf

from dynadapt.model import ModelError, load, random_model, rope_tables, tiny_config
from dynadapt.model.config import FAMILIES
from dynadapt.model.gguf_file import GGUFFile
from dynadapt.model.gguf_model import gguf_name
from dynadapt.model.rope import rope_frequencies
from dynadapt.model.rope_settings import yarn


def wide_config(family, **changes):
    """A tiny config whose rows are multiples of 256, as block types need."""
    return tiny_config(
        family, hidden_size=256, heads=4, kv_heads=4 if family == "gpt2" else 2, head_dim=64, ffn_size=256, layers=2, **changes
    )


@pytest.mark.parametrize("tied", (True, False), ids=("tied", "untied"))
@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.from_gguf is not None])
def test_round_trip(family, tied, tmp_path):
    model = random_model(tiny_config(family, tied_head=tied), seed=5)
    loaded = load(write_gguf(model, tmp_path / "tiny.gguf"))
    assert loaded.config == model.config and loaded.name == "tiny" and loaded.tokenizer is None
    for name in model.names():
        value = loaded.tensor(name)
        assert value.is_contiguous() and value.dtype == torch.float32 and torch.equal(value, model.tensor(name)), name


def test_llama_biases_are_permuted_too(tmp_path):
    model = random_model(tiny_config("llama", attention_bias=True, mlp_bias=True), seed=5)
    loaded = load(write_gguf(model, tmp_path / "tiny.gguf"))
    assert loaded.config == model.config
    assert all(torch.equal(loaded.tensor(name), model.tensor(name)) for name in model.names())


@pytest.mark.parametrize("kind, error", [("F16", 1e-3), ("BF16", 5e-3), ("Q8_0", 1e-2), ("Q4_1", 0.1), ("Q4_0", 0.15), ("Q5_1", 0.05)])
def test_types_that_can_be_written(kind, error, tmp_path):
    model = random_model(wide_config("llama"), seed=2)
    loaded = load(write_gguf(model, tmp_path / "tiny.gguf", kind))
    for name in model.names():
        value, exact = loaded.tensor(name), model.tensor(name)
        assert value.dtype == {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind if exact.ndim == 2 else "", torch.float32)
        assert (value.float() - exact).norm() <= error * exact.norm(), name
    converted = load(tmp_path / "tiny.gguf", dtype=torch.bfloat16)
    assert all(converted.tensor(name).dtype == torch.bfloat16 for name in converted.names())


@pytest.mark.parametrize("kind", ("Q4_K", "Q6_K", "Q5_K", "Q2_K"))
def test_k_quants_hold_what_the_package_dequantises(kind, tmp_path):
    """The package cannot write these types: random blocks with sane scales stand in for a tensor."""
    quantised = gguf.GGMLQuantizationType[kind]
    rows, row_bytes = 256, gguf.GGML_QUANT_SIZES[quantised][1]
    raw = np.random.default_rng(0).integers(0, 60, (rows, row_bytes), dtype=np.uint8)  # small bytes keep the scales finite
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tensor("probe", raw, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    value = GGUFFile(path).read("probe")
    assert value.shape == (256, 256) and value.isfinite().all() and value.abs().max() > 0
    np.testing.assert_array_equal(value.numpy(), gguf.quants.dequantize(raw, quantised))


def test_linear_rope_scaling(tmp_path):
    model = random_model(tiny_config("llama", rope_scaling={"rope_type": "linear", "factor": 4.0}))
    metadata = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert load(write_gguf(model, tmp_path / "tiny.gguf", metadata=metadata)).config == model.config


def scaling(**keys):
    return {f"llama.rope.{key.replace('__', '.')}": value for key, value in keys.items()}


@pytest.mark.parametrize(
    "keys, factor",
    [
        (scaling(scaling__type="none", scaling__factor=4.0), None),
        (scaling(scaling__factor=4.0), 4.0),
        (scaling(scale_linear=4.0), 4.0),
        (scaling(scaling__factor=2.0, scale_linear=4.0), 2.0),
        (scaling(scaling__factor=0.0, scale_linear=4.0), None),
        (scaling(scaling__type="linear", scaling__factor=1.0), None),
        (scaling(scaling__type="linear"), None),
        (scaling(scaling__factor=4.0, scaling__attn_factor=1.0, scaling__original_context_length=64, scaling__finetuned=False), 4.0),
    ],
)
def test_rope_scaling_keys(keys, factor, tmp_path):
    loaded = load(write_gguf(random_model(tiny_config("llama")), tmp_path / "tiny.gguf", metadata=keys))
    assert loaded.config.rope_scaling == (factor and {"rope_type": "linear", "factor": factor})


def test_yarn(tmp_path):
    """As llama.cpp computes it: the paper's bands and scale, of the original context or else the whole one."""
    keys = scaling(scaling__type="yarn", scaling__factor=4.0)
    for original in ({}, scaling(scaling__original_context_length=64)):
        scaled = yarn(4.0, original.get("llama.rope.scaling.original_context_length", 512))
        model = random_model(tiny_config("llama", rope_scaling=scaled))
        assert load(write_gguf(model, tmp_path / f"{len(original)}.gguf", metadata=keys | original)).config == model.config
    assert scaled["attention_factor"] == pytest.approx(1 + 0.1 * math.log(4.0))


def test_olmo3_is_an_olmo2_with_windows(tmp_path):
    """Each fourth layer has none, and llama.cpp scales the rotations of those layers alone."""
    config = tiny_config("olmo2", layers=5, windows=(7, 7, 7, None, 7), rope_scaling=yarn(4.0, 64), window_rope_theta=1e4)
    keys = {"rope.freq_base_swa": None, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
    for i, pattern in enumerate((4, None, [True, True, True, False, True], [True] * 5)):
        metadata = {f"olmo2.{key}": value for key, value in (keys | {"attention.sliding_window_pattern": pattern}).items()}
        path = write_gguf(random_model(config), tmp_path / f"{i}.gguf", metadata=metadata)
        if pattern == [True] * 5:
            with pytest.raises(ModelError, match="sliding_window_pattern = .* is not supported; accepted: 4, or a window"):
                load(path)
        else:
            assert load(path).config == config


def test_rope_factors_are_llama3_scaling(tmp_path):
    scaled = tiny_config(
        "llama",
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )
    factors = rope_frequencies(replace(scaled, rope_scaling=None)) / rope_frequencies(scaled)
    path = write_gguf(random_model(scaled), tmp_path / "tiny.gguf", extra={"rope_freqs.weight": factors.float().numpy()})
    loaded = load(path)
    assert loaded.config.rope_scaling["rope_type"] == "factors"
    for ours, theirs in zip(rope_tables(loaded.config, 200), rope_tables(scaled, 200)):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


REFUSED = {
    "general.architecture = .mamba. is not supported; accepted: .*llama": dict(metadata={"general.architecture": "mamba"}),
    "sliding-window attention": dict(metadata={"llama.attention.sliding_window": 64}),
    "rope.scaling.type = 'longrope'": dict(metadata={"llama.rope.scaling.type": "longrope"}),
    "rope.scaling.factor = 0.5 must be a number in 1": dict(metadata={"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 0.5}),
    "expert_count": dict(metadata={"llama.expert_count": 8}),
    "partial rotary": dict(metadata={"llama.rope.dimension_count": 4}),
    "llama.logit_scale": dict(metadata={"llama.logit_scale": 0.5}),
    "llama.block_count is missing": dict(metadata={"llama.block_count": None}),
    "blk.2.attn_norm.weight of shape .60. is missing": dict(skip=("blk.2.attn_norm.weight",)),
    "token_embd.weight": dict(skip=("token_embd.weight",)),
    "blk.0.attn_sinks has shape|blk.0.attn_sinks of shape .6. has no place": dict(extra={"blk.0.attn_sinks": np.zeros(6)}),
    "blk.0.ffn_gate.weight has shape .84, 60., the config expects .85, 60.": dict(metadata={"llama.feed_forward_length": 85}),
    "general.type = 'adapter' is not supported": dict(metadata={"general.type": "adapter"}),
    "llama.unheard_of = 3 is not supported; accepted: absent": dict(metadata={"llama.unheard_of": 3}),
    "llama.attention.causal = False is not supported; accepted: True or absent": dict(metadata={"llama.attention.causal": False}),
    "llama.attention.scale = 0.5": dict(metadata={"llama.attention.scale": 0.5}),
    "llama.rope.scaling.attn_factor = 1.5": dict(metadata={"llama.rope.scaling.attn_factor": 1.5}),
    "llama.rope.scaling.yarn_ext_factor": dict(metadata={"llama.rope.scaling.yarn_ext_factor": 1.0}),
    "llama.attention.value_length = 12 differs": dict(metadata={"llama.attention.value_length": 12}),
    "llama.attention.layer_norm_epsilon = ": dict(metadata={"llama.attention.layer_norm_epsilon": 1e-5}),
    "llama.vocab_size = 130 differs from the 131 rows": dict(metadata={"llama.vocab_size": 130}),
    "llama.block_count = 3.0 must be a whole number": dict(metadata={"llama.block_count": 3.0}),
    "llama.rope.freq_base = True must be a number": dict(metadata={"llama.rope.freq_base": True}),
    "tokenizer.ggml.bos_token_id": dict(metadata={"tokenizer.ggml.bos_token_id": "x"}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused_by_name(message, tmp_path):
    if "mamba" in message:
        path = write_gguf(random_model(tiny_config("llama")), tmp_path / "tiny.gguf")
        path.write_bytes(path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba", 1))
    else:
        path = write_gguf(random_model(tiny_config("llama")), tmp_path / "tiny.gguf", **REFUSED[message])
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_keys_that_do_not_matter(tmp_path):
    model = random_model(tiny_config("llama"))
    keys = {
        "general.name": "näme",
        "general.file_type": 1,
        "llama.vocab_size": 131,
        "llama.expert_count": 0,
        "llama.expert_used_count": 0,
        "llama.attention.causal": True,
        "llama.tensor_data_layout": "Meta AI original pth",
        "quantize.imatrix.entries_count": 3,
        "someone.else": 5,
        "llama.logit_scale": 0.0,
    }
    assert load(write_gguf(model, tmp_path / "tiny.gguf", metadata=keys)).config == model.config


@pytest.mark.parametrize(
    "family, metadata, extra, message",
    [
        ("gpt2", {"gpt2.attention.head_count_kv": 1}, {}, "kv_heads = heads"),
        ("gpt2", {"gpt2.rope.freq_base": 1e4}, {}, "gpt2.rope.freq_base"),
        ("qwen2", {}, {"rope_freqs.weight": np.ones(7)}, "rope_freqs.weight of shape .7. has no place"),
        ("gpt2", {"gpt2.attention.value_length": 6}, {}, "gpt2.attention.value_length = 6 differs"),
    ],
)
def test_refused_by_name_in_other_families(family, metadata, extra, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        load(write_gguf(random_model(tiny_config(family)), tmp_path / "tiny.gguf", metadata=metadata, extra=extra))


def split(model, directory, parts=2, name="tiny", **changes):
    """Write `model` as the parts of a split file, tensors dealt round in turn; `changes` replace keys of the last part."""
    names = [gguf_name(tensor) for tensor in model.names()]
    paths = [directory / f"{name}-{i + 1:05d}-of-{parts:05d}.gguf" for i in range(parts)]
    for i, path in enumerate(paths):
        keys = {"split.no": i, "split.count": parts, "split.tensors.count": len(names)} | (changes if i == parts - 1 else {})
        write_gguf(model, path, metadata=keys, skip=[tensor for j, tensor in enumerate(names) if j % parts != i])
    return paths


@pytest.mark.parametrize("family", ("llama", "gpt2"))
def test_all_parts_of_a_split_file_are_read(family, tmp_path):
    model = random_model(tiny_config(family, tied_head=False), seed=5)
    for path in split(model, tmp_path, 3):
        loaded = load(path)
        assert loaded.config == model.config and not loaded.config.tied_head and loaded.name == "tiny"
        assert all(torch.equal(loaded.tensor(name), model.tensor(name)) for name in model.names())
    other = split(random_model(tiny_config(family, tied_head=False), seed=6), tmp_path, 3, "other")
    path.write_bytes(other[-1].read_bytes())
    assert load(other[0]).fingerprint() != loaded.fingerprint()


def test_split_files_that_are_not_whole(tmp_path):
    model = random_model(tiny_config("llama"))
    first, second = split(model, tmp_path)
    second.rename(tmp_path / "kept")
    with pytest.raises(ModelError, match="tiny-00002-of-00002.gguf, one of its 2 parts, is missing"):
        load(first)
    alone = first.rename(tmp_path / "alone.gguf")
    with pytest.raises(ModelError, match="split.count = 2, so that its parts must be named NAME-00001-of-00002.gguf"):
        load(alone)
    second.write_bytes(alone.read_bytes()), first.write_bytes(alone.read_bytes())
    with pytest.raises(ModelError, match="00002-of-00002.gguf: split.count and split.no are 2 and 0, its name says 2 and 1"):
        load(first)
    for changes, message in ((("split.count", 3), "split.count and split.no are 3 and 1"), (("split.no", 1.0), "split.no = 1.0 must be")):
        split(model, tmp_path, **dict([changes]))
        with pytest.raises(ModelError, match=message):
            load(first)
    names = [gguf_name(name) for name in model.names()]
    for total, skip, message in ((None, (), "also in tiny-00001"), (len(names), names[-1:], "count = 30, the 2 parts hold 29")):
        keys = {"split.count": 2, "split.tensors.count": total}
        write_gguf(model, first, metadata=keys | {"split.no": 0}, skip=skip)
        write_gguf(model, second, metadata=keys | {"split.no": 1}, skip=names[:-1] if total is None else names)
        with pytest.raises(ModelError, match=message):
            load(first)


def test_a_directory_of_gguf_files_says_so(tmp_path):
    split(random_model(tiny_config("llama")), tmp_path)
    with pytest.raises(ModelError, match="config.json: cannot be read.*has 2 GGUF files: give one of them.*tiny-00001-of-00002.gguf"):
        load(tmp_path)


def test_fingerprint_follows_the_content_not_the_place(tmp_path):
    config = tiny_config("qwen3")
    a, b = (write_gguf(random_model(config, seed), tmp_path / f"{seed}.gguf") for seed in (1, 2))
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(a.read_bytes())
    assert load(a).fingerprint() == load(copy).fingerprint() != load(b).fingerprint()


@pytest.mark.model
def test_smollm2_loads_in_transformers_with_our_tensors(smollm2_directory):
    """The fetched directory loads in transformers with our tensors."""
    import transformers

    live = transformers.AutoModelForCausalLM.from_pretrained(smollm2_directory, dtype=torch.bfloat16)
    ours, theirs = load("smollm2-135m"), load(live)
    assert ours.config == theirs.config
    for name in ours.names():
        value = ours.tensor(name)
        assert value.dtype == torch.bfloat16 and torch.equal(value, theirs.tensor(name)), name
    ours.check_finite()

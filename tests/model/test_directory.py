"""Hugging Face directories: shards, prefixes, dtypes, tying, and everything that is refused by name."""

import json

import pytest
import torch
from helpers import to_transformers
from safetensors.torch import load_file, save_file

from dynadapt.model import ModelError, from_state, load, random_model, tiny_config
from dynadapt.model.convert import write_directory


@pytest.fixture
def saved(tmp_path):
    """A tiny untied llama written as a directory in float32, and the model."""
    model = random_model(tiny_config("llama"), seed=7)
    write_directory(model, tmp_path / "tiny", torch.float32)
    return tmp_path / "tiny", model


def edit_config(path, **changes):
    raw = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))


def edit_tensors(path, edit):
    state = load_file(path / "model.safetensors")
    edit(state)
    save_file({key: value.contiguous() for key, value in state.items()}, path / "model.safetensors")


def assert_equal(loaded, model, names=None):
    for name in names or model.names():
        assert torch.equal(loaded.tensor(name), model.tensor(name)), name


def test_shards(saved, tmp_path):
    path, model = saved
    to_transformers(model).save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert_equal(load(tmp_path / "shards"), model)
    assert load(next((tmp_path / "shards").glob("*.safetensors"))).names() == model.names()
    shard = sorted((tmp_path / "shards").glob("*.safetensors"))[1]
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=shard.name):
        load(tmp_path / "shards")


@pytest.mark.parametrize("family", ("llama", "gpt2"))
def test_names_without_the_base_prefix(family, tmp_path):
    model = random_model(tiny_config(family, tied_head=True), seed=1)
    write_directory(model, tmp_path / "tiny", torch.float32)
    prefix = "transformer." if family == "gpt2" else "model."
    state = {key.removeprefix(prefix): value for key, value in load_file(tmp_path / "tiny/model.safetensors").items()}
    if family == "gpt2":
        state |= {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    save_file(state, tmp_path / "tiny/model.safetensors")
    assert_equal(load(tmp_path / "tiny"), model)


@pytest.mark.parametrize("family", ("llama", "gpt2"))
def test_tied_config_with_a_head_in_the_file(family, tmp_path):
    model = random_model(tiny_config(family, tied_head=True), seed=1)
    write_directory(model, tmp_path / "tiny", torch.float32)
    embed = model.tensor("embed.weight")
    edit_tensors(tmp_path / "tiny", lambda state: state.update({"lm_head.weight": embed.clone()}))
    assert load(tmp_path / "tiny").config == model.config
    edit_tensors(tmp_path / "tiny", lambda state: state.update({"lm_head.weight": 2 * embed}))
    loaded = load(tmp_path / "tiny")
    assert not loaded.config.tied_head and torch.equal(loaded.tensor("head.weight"), 2 * embed)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_stored_and_converted_dtypes(dtype, tmp_path):
    model = random_model(tiny_config("qwen3"), seed=1)
    write_directory(model, tmp_path / "tiny", dtype)
    for asked in (None, torch.float32, torch.float64):
        loaded = load(tmp_path / "tiny", dtype=asked)
        for name in model.names():
            assert torch.equal(loaded.tensor(name), model.tensor(name).to(dtype).to(asked or dtype))


def test_tensors_are_read_when_asked_and_not_kept(saved):
    path, model = saved
    loaded = load(path)
    first = loaded.tensor("embed.weight")
    first.zero_()
    assert_equal(loaded, model)
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-1000])
    with pytest.raises(ModelError, match="model.safetensors: ended"):
        for name in loaded.names():
            loaded.tensor(name)
    (path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="model.safetensors: cannot be read"):
        loaded.tensor("embed.weight")


def test_check_finite_names_the_tensor(saved):
    path, model = saved
    load(path).check_finite()
    for value in (float("nan"), float("-inf")):
        edit_tensors(path, lambda state: state["model.layers.1.mlp.up_proj.weight"].__setitem__((3, 4), value))
        with pytest.raises(ModelError, match="layers.1.up.weight holds 1 values"):
            load(path).check_finite()
    edit_tensors(path, lambda state: state["model.layers.1.mlp.up_proj.weight"].fill_(3e38))
    load(path).check_finite()


REFUSED_CONFIGS = {
    "architecture 'mamba2' is not supported; accepted model_type: .*llama, mistral, .*qwen2, qwen3": dict(model_type="mamba2"),
    "architecture 'mpt'": dict(model_type="mpt"),
    "architecture 5": dict(model_type=5),
    "hidden_size is missing": dict(hidden_size=...),
    "hidden_size = 'x' must be": dict(hidden_size="x"),
    "hidden_size = -60 must be": dict(hidden_size=-60),
    "layers|num_hidden_layers": dict(num_hidden_layers=10**9),
    "rms_norm_eps = None|rms_norm_eps = 'x'": dict(rms_norm_eps="x"),
    "hidden_act = 'relu' is not supported": dict(hidden_act="relu"),
    "rope_scaling type 'ntk' is not supported; accepted: default, linear, dynamic, yarn, longrope, llama3": dict(
        rope_scaling={"rope_type": "ntk", "factor": 4.0}
    ),
    "rope_scaling.factor = None must be a number": dict(rope_scaling={"type": "dynamic"}),
    "rope_scaling.long_factor = None must be a list": dict(rope_scaling={"rope_type": "longrope", "short_factor": [1.0]}),
    "rope_scaling.factor = None": dict(rope_scaling={"rope_type": "linear"}),
    "rope_scaling.low_freq_factor": dict(rope_scaling={"rope_type": "llama3", "factor": 8.0}),
    "rope_parameters by layer type": dict(rope_parameters={"full_attention": {"rope_theta": 1.0}}),
    "partial_rotary_factor = 0.5": dict(partial_rotary_factor=0.5),
    "partial_rotary_factor = 0.25": dict(rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.25}),
    "not valid JSON .Infinity is no JSON number": dict(rope_theta=float("inf")),
    "quantization_config .awq. is not supported": dict(quantization_config={"quant_method": "awq"}),
    "attention_multiplier = 0.1": dict(attention_multiplier=0.1),
    "logits_scaling = 8": dict(logits_scaling=8.0),
    "num_experts = 4": dict(num_experts=4),
    "sliding-window attention .sliding_window = 64": dict(sliding_window=64),
    "sliding_window = 1 is not supported": dict(model_type="mistral", sliding_window=1),
    "sliding-window attention .sliding_window = 128": dict(
        layer_types=["full_attention", "sliding_attention", "full_attention"], sliding_window=128
    ),
    "num_key_value_heads = 4 does not divide num_attention_heads = 6": dict(num_key_value_heads=4),
    "tie_word_embeddings = 'no'": dict(tie_word_embeddings="no"),
    "head_dim = 9 is odd": dict(head_dim=9),
    "q_proj.weight has shape .60, 60., the config expects .72, 60.": dict(head_dim=12),
    "q_proj.bias of shape .60. is missing": dict(attention_bias=True),
    "model.layers.2.* has no place in this model": dict(num_hidden_layers=2),
    "model.layers.3.input_layernorm.weight of shape .60. is missing": dict(num_hidden_layers=4),
    "embed_tokens.weight has shape .131, 60., the config expects .130": dict(vocab_size=130),
    "eos_token_id = 'x'": dict(eos_token_id="x"),
}


@pytest.mark.parametrize("message", REFUSED_CONFIGS)
def test_config_refused_by_name(message, saved):
    path, _ = saved
    edit_config(path, **REFUSED_CONFIGS[message])
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_qwen2_sliding_window(tmp_path):
    write_directory(random_model(tiny_config("qwen2")), tmp_path / "tiny")
    windows = lambda: load(tmp_path / "tiny").config.windows  # noqa: E731
    edit_config(tmp_path / "tiny", use_sliding_window=False, sliding_window=64, max_window_layers=1)
    assert windows() == ()
    edit_config(tmp_path / "tiny", use_sliding_window=True, max_window_layers=3)
    assert windows() == ()
    edit_config(tmp_path / "tiny", max_window_layers=2)
    assert windows() == (None, None, 64)


@pytest.mark.parametrize(
    "change",
    (
        dict(scale_attn_by_inverse_layer_idx=True),
        dict(scale_attn_weights=False),
        dict(add_cross_attention=True),
        dict(activation_function="relu"),
        dict(n_head=5),
    ),
)
def test_gpt2_variants_refused(change, tmp_path):
    write_directory(random_model(tiny_config("gpt2")), tmp_path / "tiny")
    edit_config(tmp_path / "tiny", **change)
    with pytest.raises(ModelError, match=next(iter(change))):
        load(tmp_path / "tiny")


def test_weights_refused_by_name(saved):
    path, model = saved
    key = "model.layers.0.mlp.down_proj.weight"
    edit_tensors(path, lambda state: state.update({key: state[key].to(torch.float64)}))
    with pytest.raises(ModelError, match=f"{key} has dtype F64.*accepted: F32, F16, BF16"):
        load(path)
    edit_tensors(path, lambda state: state.pop(key))
    with pytest.raises(ModelError, match=f"{key} of shape .60, 84. is missing"):
        load(path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pytorch_model.bin is a pickle"):
        load(path)


def test_nothing_to_load(tmp_path, saved):
    path, model = saved
    for source, message in (
        (tmp_path / "absent", "does not exist; accepted: smollm2-135m"),
        (3, "model is a int"),
        (path / "config.json", "is a part of a model; give its directory"),
        (tmp_path, "config.json: cannot be read"),
    ):
        with pytest.raises(ModelError, match=message):
            load(source)
    (path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config.json: not valid JSON"):
        load(path)
    with pytest.raises(ModelError, match="dtype = torch.int8"):
        from_state(model.config, {name: model.tensor(name) for name in model.names()}, dtype=torch.int8)
    assert load(model) is model


def test_from_state_is_exact():
    model = random_model(tiny_config("llama"))
    state = {name: model.tensor(name) for name in model.names()}
    assert from_state(model.config, state).tensor("norm.weight").data_ptr() == state["norm.weight"].data_ptr()
    with pytest.raises(ModelError, match="norm.weight of shape .60. is missing"):
        from_state(model.config, {key: value for key, value in state.items() if key != "norm.weight"})
    with pytest.raises(ModelError, match="more of shape .2. has no place"):
        from_state(model.config, state | {"more": torch.zeros(2)})
    with pytest.raises(ModelError, match="norm.weight has dtype torch.int64"):
        from_state(model.config, state | {"norm.weight": torch.zeros(60, dtype=torch.int64)})
    with pytest.raises(KeyError, match="no tensor 'nope'"):
        model.tensor("nope")


def test_peft_model_is_refused():
    peft = pytest.importorskip("peft")
    live = peft.get_peft_model(to_transformers(random_model(tiny_config("llama"))), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ModelError, match="merge_and_unload"):
        load(live)


def test_fingerprint_sees_other_weights_and_not_the_place(saved, tmp_path):
    path, model = saved
    before = load(path).fingerprint()
    path = path.rename(tmp_path / "moved")
    assert load(path).fingerprint() == before
    edit_tensors(path, lambda state: state["lm_head.weight"].mul_(1.01))
    assert load(path).fingerprint() != before
    edit_config(path, rms_norm_eps=1e-5)
    assert len({before, load(path).fingerprint(), model.fingerprint()}) == 3


def test_fingerprint_covers_every_byte_of_the_weights(saved, tmp_path):
    path, model = saved
    for change in (lambda state: state["lm_head.weight"][7, 3:4].add_(0.5), lambda state: state["lm_head.weight"][7, 5:6].add_(0.5)):
        before = load(path).fingerprint()
        edit_tensors(path, change)
        assert load(path).fingerprint() != before
    state = {name: model.tensor(name).clone() for name in model.names()}
    held = from_state(model.config, state)
    seen = held.fingerprint()
    assert held.fingerprint() == seen == from_state(model.config, {name: t.clone() for name, t in state.items()}).fingerprint()
    state[model.names()[-1]].view(-1)[5] += 1.0
    assert held.fingerprint() != seen

"""Each family against transformers: names, transposes, tying and rotary scaling survive both directions."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from helpers import nll_of, to_transformers
from safetensors.torch import load_file, save_file

from dynadapt import Engine
from dynadapt.model import (
    ModelError,
    hf_name,
    layout,
    linear_shapes,
    load,
    peft_name,
    random_model,
    rope_tables,
    tensor_shapes,
    tiny_config,
)
from dynadapt.model.config import FAMILIES
from dynadapt.model.convert import write_directory
from dynadapt.model.hf_config import config_to_hf
from dynadapt.model.layout import from_hf_rows, hf_rows, to_hf_rows
from dynadapt.model.rope_settings import yarn

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 3.0}
YARN = {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.2, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}
YARN |= {"original_max_position_embeddings": 64}
LONGROPE = {"rope_type": "longrope", "short_factor": (1.0, 1.1, 1.2, 1.3, 1.4), "long_factor": (1.0, 2.0, 4.0, 9.0, 20.0)}
LONGROPE |= {"attention_factor": 1.3, "original_max_position_embeddings": 64}
CASES = {f"{family}-{'tied' if tied else 'untied'}": tiny_config(family, tied_head=tied) for family in FAMILIES for tied in (True, False)}
CASES |= {
    "llama-llama3": tiny_config("llama", rope_scaling=LLAMA3, rope_theta=500000.0),
    "llama-linear": tiny_config("llama", rope_scaling=LINEAR),
    "qwen2-linear": tiny_config("qwen2", rope_scaling=LINEAR),
    "llama-dynamic": tiny_config("llama", rope_scaling=DYNAMIC),
    "llama-dynamic-beyond": tiny_config("llama", rope_scaling=DYNAMIC, max_positions=100),
    "llama-yarn": tiny_config("llama", rope_scaling=YARN),
    "qwen3-yarn": tiny_config("qwen3", rope_scaling=YARN | {"truncate": True, "beta_fast": 2.0, "beta_slow": 2.0}, rope_theta=1e6),
    "llama-longrope-long": tiny_config("llama", rope_scaling=LONGROPE),
    "llama-longrope-short": tiny_config("llama", rope_scaling=LONGROPE | {"original_max_position_embeddings": 400}),
    "llama-biases": tiny_config("llama", attention_bias=True, mlp_bias=True),
    "qwen3-bias": tiny_config("qwen3", attention_bias=True),
    "mistral-windows": tiny_config("llama", windows=(7, 7, 7)),
    "qwen2-windows": tiny_config("qwen2", windows=(None, 9, 9)),
    "qwen3-windows": tiny_config("qwen3", windows=(6, None, 6)),
    "gpt2-gelu": tiny_config("gpt2", activation="gelu"),
    "llama-one-head": tiny_config("llama", hidden_size=10, heads=1, kv_heads=1),
    "smollm3-windows-bias": tiny_config("smollm3", windows=(6, None, None, 6), attention_bias=True, mlp_bias=True),
    "smollm3-rotated": tiny_config("smollm3", rotated=()),
    "olmo2-yarn-bias": tiny_config("olmo2", rope_scaling=YARN, attention_bias=True),
    "olmo3": tiny_config("olmo2", windows=(7, 7, None), window_rope_theta=3e4),
    "olmo3-yarn": tiny_config("olmo2", windows=(None, 7, 7), window_rope_theta=1e4, rope_scaling=YARN | {"truncate": True}),
    "olmo3-one-theta": tiny_config("olmo2", windows=(7, 7, 7)),
    "gemma3-scale": tiny_config("gemma3", attention_scale=10**-0.5),
    "gemma3-linear-bias": tiny_config("gemma3", rope_scaling=LINEAR, attention_bias=True),
    "gemma3-full": tiny_config("gemma3", windows=()),
    "granite-biases": tiny_config("granite", attention_bias=True, mlp_bias=True),
    "phi3-whole-heads": tiny_config("phi3", rotary_dim=None),
    "phi3-window": tiny_config("phi3", windows=(7, 7, 7)),
    "gptneox-sequential": tiny_config("gptneox", parallel_residual=False, activation="gelu"),
    "gptneox-linear-no-bias": tiny_config("gptneox", rope_scaling=LINEAR, attention_bias=False),
    "gptneox-whole-heads": tiny_config("gptneox", rotary_dim=None),
    "granite-usual": tiny_config("granite", attention_scale=None, embedding_scale=1.0, residual_scale=1.0, logits_scaling=1.0),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def model(request):
    return random_model(CASES[request.param], seed=3)


def assert_same_tensors(ours, theirs):
    assert ours.names() == theirs.names()
    for name in ours.names():
        value = theirs.tensor(name)
        assert value.is_contiguous()
        assert torch.equal(ours.tensor(name), value), name


def test_directory_that_transformers_saved(model, tmp_path):
    to_transformers(model).save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.config == model.config
    assert_same_tensors(model, loaded)
    assert loaded.tokenizer is None


def test_live_model(model):
    live = to_transformers(model)
    loaded = load(live)
    assert loaded.config == model.config
    assert_same_tensors(model, loaded)
    embed = live.get_input_embeddings().weight
    assert loaded.tensor("embed.weight").data_ptr() == embed.data_ptr()


def test_rope_tables_are_transformers_own(model):
    config = model.config
    if config.rope_theta is None:
        with pytest.raises(ValueError, match="learned positions"):
            rope_tables(config, 4)
        return
    live, half, rotated = to_transformers(model), config.head_dim // 2, config.rotated_dims // 2
    kinds = {False: ()}
    if isinstance(live.base_model.rotary_emb.rope_type, dict):  # one for each kind of layer
        kinds = {kind == "sliding_attention": (kind,) for kind in live.config.layer_types}
    for windowed, kind in kinds.items():
        cos, sin = rope_tables(config, 300, windowed)
        expected_cos, expected_sin = live.base_model.rotary_emb(torch.zeros(1, dtype=torch.float32), torch.arange(300)[None], *kind)
        assert cos.shape == sin.shape == (300, half) and cos.dtype == torch.float32
        for ours, theirs, of_zero in ((cos, expected_cos[0], 1.0), (sin, expected_sin[0], 0.0)):
            torch.testing.assert_close(ours[:, :rotated], theirs[:, :rotated], atol=5e-5, rtol=0)
            torch.testing.assert_close(ours[:, :rotated], theirs[:, rotated:], atol=5e-5, rtol=0)
            assert (ours[:, rotated:] == of_zero).all()


def test_layout_names_every_linear(model):
    config = model.config
    parts = {i: [part for group in layout(config, i).values() for part in group] for i in range(config.layers)}
    assert all(found == list(linear_shapes(config, i)) for i, found in parts.items())
    modules = dict(to_transformers(model).named_modules())
    shapes = tensor_shapes(config)
    for layer in range(config.layers):
        for part, shape in linear_shapes(config, layer).items():
            assert modules[peft_name(config, layer, part)].weight.ndim == 2
            assert shapes[f"layers.{layer}.{part}.weight"] == shape
    assert len({hf_name(config, name) for name in shapes}) == len(shapes)
    with pytest.raises(ValueError, match="part = 'nope'"):
        peft_name(config, 0, "nope")


def test_old_spellings_of_rope_scaling(tmp_path):
    model = random_model(tiny_config("llama", rope_scaling=LINEAR), seed=1)
    to_transformers(model).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw.pop("rope_parameters", None)
    for scaling in ({"type": "linear", "factor": 4.0}, LINEAR):
        (tmp_path / "config.json").write_text(json.dumps(raw | {"rope_theta": 10000.0, "rope_scaling": scaling}))
        assert load(tmp_path).config == model.config
    (tmp_path / "config.json").write_text(json.dumps(raw | {"rope_parameters": LINEAR | {"rope_theta": 500.0}}))
    assert load(tmp_path).config == replace(model.config, rope_theta=500.0)


def test_what_rope_settings_leave_out_is_transformers_own(tmp_path):
    """Attention factors, bands and contexts that a file does not name: the tables are those of the model that transformers makes."""
    model = random_model(tiny_config("llama"), seed=1)
    live = to_transformers(model)
    live.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw.pop("rope_parameters", None)
    yarn, short = {"rope_type": "yarn", "factor": 4.0}, {"short_factor": [1, 1, 1, 1, 2], "long_factor": [1, 2, 3, 4, 5.5]}
    for scaling in (
        yarn,
        yarn | {"factor": None, "original_max_position_embeddings": 32},
        yarn | {"factor": 0.5},
        yarn | {"mscale": 0.7, "mscale_all_dim": 1.5, "beta_fast": None},
        yarn | {"mscale": 0.7},
        yarn | {"mscale": 0, "mscale_all_dim": 2.0},
        yarn | {"original_max_position_embeddings": 7, "beta_slow": 1},
        {"rope_type": "longrope", "original_max_position_embeddings": 128} | short,
        {"rope_type": "longrope", "factor": 32.0, "original_max_position_embeddings": 512} | short,
        {"type": "longrope"} | short,
    ):
        (tmp_path / "config.json").write_text(json.dumps(raw | {"rope_scaling": scaling}))
        rotary = type(live).from_pretrained(tmp_path).model.rotary_emb
        for length in (30, 130, 600):
            theirs = rotary(torch.zeros(1), torch.arange(length)[None])
            for ours, expected in zip(rope_tables(load(tmp_path).config, length), theirs):
                torch.testing.assert_close(ours, expected[0, :, :5], atol=1e-4, rtol=0)
    for change, said in (
        ({"rope_type": "yarn"}, "rope_scaling.factor is missing; accepted: a number, or null"),
        (yarn | {"truncate": None}, "rope_scaling.truncate = None must be true or false"),
        (yarn | {"attention_factor": -1.0}, "rope_scaling.attention_factor = -1.0"),
        (yarn | {"rope_theta": 1.0}, "rope_theta = 1.0 with rope_scaling of type yarn"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 5}, "rope_scaling.long_factor = None must be a list of numbers"),
        (
            {"rope_type": "longrope"} | short | {"long_factor": [1.0]},
            "rope_scaling.long_factor has 1 numbers; 10 rotated dimensions of a head need 5",
        ),
        ({"rope_type": "longrope", "original_max_position_embeddings": 1} | short, "original_max_position_embeddings = 1 is not"),
        ({"rope_type": "dynamic"}, "rope_scaling.factor = None"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(raw | {"rope_scaling": change}))
        with pytest.raises(ModelError, match=said):
            load(tmp_path)


def test_mistral_is_a_llama(tmp_path):
    model = random_model(tiny_config("llama"), seed=1)
    to_transformers(model).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    for window in (None, model.config.max_positions):
        changed = raw | {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": window}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        assert load(tmp_path).config == model.config
    (tmp_path / "config.json").write_text(json.dumps(changed | {"sliding_window": 100}))
    assert load(tmp_path).config == replace(model.config, windows=(100, 100, 100))


def test_windows_that_a_family_has_no_form_for():
    for family, changes, said in (
        ("llama", dict(windows=(7, None, 7)), "windows = .7, None, 7."),
        ("llama", dict(windows=(7, 7, 7), mlp_bias=True), "mlp_bias = True"),
        ("qwen2", dict(windows=(7, None, 8)), "windows of .7, 8. tokens have no Hugging Face form"),
        ("olmo2", dict(windows=(7, None, 7), rope_scaling=YARN), "rope_scaling in layers with a window has no Hugging Face form"),
    ):
        with pytest.raises(ModelError, match=said):
            config_to_hf(tiny_config(family, **changes))


def test_gemma_files_of_every_age(tmp_path):
    """Which layers have a window, and their rotations, as older and newer transformers write them; the rest is refused by name."""
    model = random_model(tiny_config("gemma3"), seed=1)
    to_transformers(model).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    raw = json.loads(file.read_text())
    assert "sliding_attention" in raw["rope_parameters"]
    newer = {key: value for key, value in raw.items() if key != "layer_types"} | {"sliding_window_pattern": 2}
    older = {key: value for key, value in newer.items() if key != "rope_parameters"} | {"rope_theta": 1e6, "rope_local_base_freq": 1e4}
    for changed in (raw, newer, older, older | {"rope_scaling": LINEAR}):
        file.write_text(json.dumps(changed))
        assert load(tmp_path).config == replace(model.config, rope_scaling=changed.get("rope_scaling"))
    for change, said in (
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ({"sliding_window": None}, "sliding_window = None"),
        ({"sliding_window": 1}, "sliding_window = 1"),
        ({"hidden_activation": "silu"}, "hidden_activation = 'silu'"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar = 0"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters.rope_theta = 10000.0"),
        ({"rope_parameters": {"sliding_attention": LINEAR}}, "rope_parameters.sliding_attention of type linear"),
        ({"layer_types": ["attention"] * 3}, "layer_types = "),
        ({"rope_parameters": {"sliding_attention": {}}, "rope_scaling": LINEAR}, "rope_scaling beside rope_parameters without full"),
    ):
        file.write_text(json.dumps(raw | change))
        with pytest.raises(ModelError, match=said):
            load(tmp_path)


def test_olmo3_files_of_every_age(tmp_path):
    """Rotations by kind of layer, or an older file's scaling of those without a window; transformers gives the others its own base."""
    config = tiny_config("olmo2", layers=4, windows=(7, 7, 7, None), rope_scaling=yarn(2.0, 64), rope_theta=3e4, window_rope_theta=5e5)
    to_transformers(random_model(config, seed=1)).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    raw = json.loads(file.read_text())
    assert (raw["model_type"], raw["sliding_window"]) == ("olmo3", 7) and "sliding_attention" in raw["rope_parameters"]
    older = {key: value for key, value in raw.items() if key not in ("rope_parameters", "layer_types")}
    older |= {"rope_theta": 3e4, "rope_scaling": yarn(2.0, 64)}
    for changed in (raw, older, older | {"original_max_position_embeddings": 7}):
        file.write_text(json.dumps(changed))
        assert load(tmp_path).config == config
        assert load(transformers.AutoModelForCausalLM.from_pretrained(tmp_path)).config == config
    for change, said in (
        ({"sliding_window": None}, "sliding_window = None is not supported for olmo3"),
        ({"sliding_window": 1}, "sliding_window = 1 is not supported"),
        ({"layer_types": ["attention"] * 4}, "layer_types = "),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_parameters.rope_type = 'default'"),
        ({"rope_parameters": {"sliding_attention": yarn(2.0, 64)}}, "rope_parameters.sliding_attention of type yarn"),
        ({"rope_parameters": {"full_attention": yarn(2.0, 64, truncate=False)}}, "truncate = False must be true"),
        ({"clip_qkv": 8.0}, "clip_qkv = 8.0"),
    ):
        file.write_text(json.dumps(raw | change))
        with pytest.raises(ModelError, match=said):
            load(tmp_path)


def test_fields_that_say_nothing_leave_fingerprints_alone():
    """A state names the model that it was made with: it stays readable when a field comes that this model does not use."""
    config = tiny_config("llama")
    assert set(config.told()) == {
        *"family vocab_size hidden_size layers heads kv_heads head_dim ffn_size norm norm_eps activation rope_theta".split(),
        *"rope_scaling max_positions tied_head attention_bias mlp_bias qk_norm bos_token_id eos_token_id".split(),
    }
    assert "windows" in tiny_config("gemma3").told()


@pytest.mark.parametrize("family", ["phi3", "gptneox"])
def test_rows_go_there_and_back(family):
    """Of a head of 6 of which 2 are rotated, 0 and 1 become the first pair, j and j + 3, of our order."""
    config = tiny_config(family, hidden_size=12, heads=2, kv_heads=2, head_dim=6, rotary_dim=2)
    head = [0, 2, 3, 1, 4, 5]
    q, k, v = (0, 12, 24) if family == "phi3" else (0, 6, 12)
    step = 6 if family == "phi3" else 18
    expected = [first + step * h + j for first, order in ((q, head), (k, head), (v, range(6))) for h in range(2) for j in order]
    assert hf_rows(config, "qkv").tolist() == expected and sorted(expected) == list(range(36))
    there = torch.randn(36, 3)
    back = from_hf_rows(config, "qkv", to_hf_rows(config, "qkv", there))
    assert torch.equal(back, there) and not torch.equal(to_hf_rows(config, "qkv", there), there)
    assert hf_rows(config, "o") is None and hf_rows(tiny_config("llama"), "q") is None


def test_scores_of_the_whole_row_order(tmp_path):
    """What the order is for: scores in a window are those of transformers, where a window is."""
    for config in (tiny_config("phi3", windows=(7, 7, 7)), tiny_config("gptneox", rope_scaling=LINEAR, parallel_residual=False)):
        model = random_model(config, seed=2, std=0.2)
        tokens = torch.randint(config.vocab_size, (2, 31), generator=torch.Generator().manual_seed(1))
        found = Engine(model, segment=30, streams=2, dtype="fp32", backend="cpu").step(tokens).double()
        assert torch.allclose(found, nll_of(to_transformers(model), tokens), atol=5e-5)


@pytest.mark.parametrize("kind", ["su", "yarn", "longrope"])
def test_longrope_of_phi3_by_its_older_names(tmp_path, kind):
    factors = {"short_factor": (1.0,) * 5, "long_factor": (1.0, 1.5, 2.0, 3.0, 4.0)}
    scaling = {"rope_type": "longrope", **factors, "attention_factor": 1.1, "original_max_position_embeddings": 16}
    model = random_model(tiny_config("phi3", hidden_size=84, rope_scaling=scaling), seed=1)
    write_directory(model, tmp_path / "phi3", torch.float32)
    file = tmp_path / "phi3" / "config.json"
    raw = json.loads(file.read_text())
    raw["rope_scaling"] = {"type": kind} | {key: value for key, value in raw["rope_scaling"].items() if key != "rope_type"}
    file.write_text(json.dumps(raw))
    assert load(tmp_path / "phi3").config == model.config
    for wrong in ({"type": "linear", "factor": 2.0}, {"type": "llama3"}):
        file.write_text(json.dumps(raw | {"rope_scaling": wrong}))
        with pytest.raises(ModelError, match="rope_scaling"):
            load(tmp_path / "phi3")


def test_old_files_of_pythia(tmp_path):
    """The head's name, and buffers, as they are in files of before transformers 5."""
    model = random_model(tiny_config("gptneox"), seed=1)
    write_directory(model, tmp_path / "ours", torch.float32)
    state = load_file(tmp_path / "ours" / "model.safetensors")
    assert "embed_out.weight" in state and "lm_head.weight" not in state
    assert_same_tensors(model, load(tmp_path / "ours"))
    live = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert torch.equal(live.lm_head.weight, model.tensor("head.weight"))
    renamed = {("lm_head.weight" if name == "embed_out.weight" else name): value for name, value in state.items()}
    save_file(renamed, tmp_path / "ours" / "model.safetensors")
    assert_same_tensors(model, load(tmp_path / "ours"))
    buffers = {f"gpt_neox.layers.0.attention.{name}": torch.zeros(1) for name in ("bias", "masked_bias", "rotary_emb.inv_freq")}
    save_file(state | buffers, tmp_path / "ours" / "model.safetensors")
    assert_same_tensors(model, load(tmp_path / "ours"))


def test_partial_rotary_is_refused_where_it_is_not_known():
    for changes in (dict(rotary_dim=3), dict(rotary_dim=14), dict(rotary_dim=0)):
        with pytest.raises(ModelError, match="rotary_dim = "):
            tiny_config("phi3", **changes)
    with pytest.raises(ModelError, match="rotary_dim = 4 with head_dim = 10.* accepted: None, or an even number .* in gptneox, phi3"):
        tiny_config("llama", rotary_dim=4)


def test_random_model_depends_on_the_seed_alone():
    config = tiny_config("qwen2")
    a, b, c = random_model(config, 1), random_model(config, 1), random_model(config, 2)
    assert_same_tensors(a, b)
    assert a.fingerprint() == b.fingerprint() != c.fingerprint()
    assert not torch.equal(a.tensor("embed.weight"), c.tensor("embed.weight"))
    assert all(random_model(config, 1, std=3.0).tensor(name).abs().max() < 2 for name in a.names() if name.endswith("norm.weight"))


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_configs_are_awkward(family):
    config = tiny_config(family)
    assert all(size % 32 for size in (config.hidden_size, config.ffn_size, config.vocab_size))
    hash(config)

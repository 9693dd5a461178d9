"""Every key of a config.json: the files that are about load, what is not known is refused, in Python and C alike."""

import ast
import json
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from mutated_configs import LLAMA3, NOT_IN_C, POSITIONS, TYPES, Readers, off  # noqa: E402

from dynadapt.model import ModelError, load  # noqa: E402
from dynadapt.model.config_keys import IGNORED  # noqa: E402
from dynadapt.model.family import FAMILIES  # noqa: E402
from dynadapt.model.rope_settings import IGNORED as ROPE_IGNORED  # noqa: E402
from dynadapt.model.rope_settings import READ as ROPE_READ

ROOT = Path(__file__).parents[2]
KEYS = {model_type: keys for family in FAMILIES.values() for model_type, keys in family.hf_keys.items()}
LINEAR = {"type": "linear", "factor": 4.0}


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    made = {}

    def get(model_type):
        if model_type not in made:
            made[model_type] = Readers(model_type, tmp_path_factory.mktemp("models") / model_type)
        return made[model_type]

    return get


def assert_alike(reader, raw):
    """All three score, and the same; the Python engine's nll."""
    reader.write(raw)
    ours, c, theirs = reader.python(), reader.c(), reader.theirs()
    assert not isinstance(ours, str), ours
    assert not isinstance(theirs, str), theirs
    assert off(ours, theirs) < 1e-4
    assert isinstance(c, str) if reader.model_type in NOT_IN_C else torch.equal(c, ours)
    return ours


def assert_refused(reader, raw, match):
    reader.write(raw)
    for text in (reader.python(), *([] if reader.model_type in NOT_IN_C else [reader.c()])):
        assert isinstance(text, str) and re.search(match, text), text


def changed(reader, **changes):
    return {key: value for key, value in (reader.base[0] | changes).items() if value is not ...}


def test_the_c_engine_has_the_same_lists():
    text = (ROOT / "csrc/engine/config_keys.cpp").read_text(encoding="utf-8")
    rows = re.search(r"kTypeKeys\[\] = \{(.*?)\};", text, re.S)[1].replace("{", "(").replace("}", ")").replace("()", "{}")
    found = {row[0]: [set(words.split()) for words in row[1:]] for row in ast.literal_eval(f"[{rows}]")}
    assert found.pop("rope") == [ROPE_READ, ROPE_IGNORED, set()]
    common = found.pop("")
    assert set(found) == set(KEYS) - set(NOT_IN_C)
    for model_type, row in found.items():
        keys = KEYS[model_type]
        neutral = {f"{key}={json.dumps(value)}" for key, value in keys.all_neutral.items()}
        read, ignored, do_nothing = (a | b for a, b in zip(common, row))
        do_nothing = {word for word in do_nothing if word.split("=")[0] not in read}  # a key that a type reads has any value there
        assert [read, ignored, do_nothing] == [set(keys.read), IGNORED | keys.ignored, neutral]


@pytest.mark.parametrize("model_type", TYPES)
def test_no_key_is_on_two_lists(model_type):
    lists = (KEYS[model_type].read, KEYS[model_type].ignored | IGNORED, set(KEYS[model_type].all_neutral))
    assert sum(map(len, lists)) == len(set().union(*lists))


REAL = {  # the keys of well-known files, at the sizes of the tiny models
    "llama 1": (
        "llama",
        dict(
            max_sequence_length=POSITIONS,
            pad_token_id=0,
            use_cache=True,
            torch_dtype="float16",
            transformers_version="4.28.1",
            head_dim=...,
            attention_bias=...,
            mlp_bias=...,
            rope_theta=...,
            rope_scaling=...,
        ),
    ),
    "llama 2": ("llama", dict(_name_or_path="x/y", initializer_range=0.02, pretraining_tp=1, transformers_version="4.31.0.dev0")),
    "llama 3.2": ("llama", dict(attention_dropout=0.0, rope_theta=500000.0, rope_scaling=LLAMA3, eos_token_id=[1, 2, 3])),
    "smollm2": ("llama", {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}}),
    "unsloth": ("llama", dict(unsloth_fixed=True, unsloth_version="2024.9", _attn_implementation_autoset=True)),
    "transformers 4.20": (
        "llama",
        dict(
            output_hidden_states=False,
            torchscript=False,
            use_bfloat16=False,
            tf_legacy_loss=False,
            pruned_heads={},
            is_decoder=False,
            is_encoder_decoder=False,
            cross_attention_hidden_size=None,
            add_cross_attention=False,
            tie_encoder_decoder=False,
            chunk_size_feed_forward=0,
            finetuning_task=None,
            id2label={"0": "LABEL_0"},
            label2id={"LABEL_0": 0},
            prefix=None,
            tokenizer_class=None,
            sep_token_id=None,
            task_specific_params=None,
            problem_type=None,
            max_length=20,
            do_sample=False,
            exponential_decay_length_penalty=None,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        ),
    ),
    "mistral 0.3": ("mistral", dict(attention_dropout=0.0, sliding_window=None, rope_theta=1000000.0)),
    "qwen 2.5": (
        "qwen2",
        dict(attention_dropout=0.0, max_window_layers=1, sliding_window=8, use_sliding_window=False, use_mrope=False, rope_theta=1000000.0),
    ),
    "qwen 3": ("qwen3", dict(attention_dropout=0.0, max_window_layers=1, sliding_window=None, use_sliding_window=False)),
    "granite 3": (
        "granite",
        dict(
            attention_dropout=0.1,
            attention_multiplier=0.015625,
            embedding_multiplier=12.0,
            logits_scaling=8.0,
            residual_multiplier=0.22,
            rope_theta=10000,
            rope_scaling=None,
            initializer_range=0.02,
        ),
    ),
    "granite without factors": (
        "granite",
        dict(attention_multiplier=..., embedding_multiplier=..., logits_scaling=..., residual_multiplier=...),
    ),
    "gpt2": (
        "gpt2",
        dict(
            attn_pdrop=0.1,
            embd_pdrop=0.1,
            resid_pdrop=0.1,
            n_ctx=POSITIONS,
            summary_activation=None,
            summary_first_dropout=0.1,
            summary_proj_to_labels=True,
            summary_type="cls_index",
            summary_use_proj=True,
            _num_labels=1,
            n_inner=100,
            task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
        ),
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_load(name, readers):
    model_type, changes = REAL[name]
    reader = readers(model_type)
    assert_alike(reader, changed(reader, **changes))


PRECEDENCE = {  # (keys), and keys that say the same in one place
    "rope_scaling wins over rope_parameters": (
        dict(rope_scaling=LINEAR, rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
        dict(rope_theta=10000.0, rope_scaling=LINEAR),
    ),
    "an empty rope_scaling says nothing": (
        dict(rope_scaling={}, rope_parameters={"rope_type": "linear", "factor": 4.0}),
        dict(rope_scaling=LINEAR),
    ),
    "rope_theta of the object wins": (dict(rope_theta=7.0, rope_parameters={"rope_theta": 300.0}), dict(rope_theta=300.0)),
    "rope_theta at the top without one in the object": (
        dict(rope_theta=300.0, rope_scaling=LINEAR),
        dict(rope_scaling=LINEAR | {"rope_theta": 300.0}),
    ),
    "rope_theta of rope_parameters is not that of rope_scaling": (
        dict(rope_theta=..., rope_scaling=LINEAR, rope_parameters={"rope_theta": 300.0}),
        dict(rope_theta=..., rope_scaling=LINEAR),
    ),
    "rope_type wins over type": (dict(rope_scaling={"rope_type": "linear", "type": "yarn", "factor": 4.0}), dict(rope_scaling=LINEAR)),
    "the original length at the top wins": (
        dict(rope_scaling=LLAMA3, original_max_position_embeddings=30),
        dict(rope_scaling=LLAMA3 | {"original_max_position_embeddings": 30}),
    ),
    "the original length is the whole one by default": (
        dict(rope_scaling={key: value for key, value in LLAMA3.items() if not key.startswith("original")}),
        dict(rope_scaling=LLAMA3 | {"original_max_position_embeddings": POSITIONS}),
    ),
    "a factor of the default type is not applied": (dict(rope_scaling={"rope_type": "default", "factor": 4.0}), dict(rope_scaling=None)),
}


@pytest.mark.parametrize("model_type", ("llama", "qwen3"))
@pytest.mark.parametrize("name", PRECEDENCE)
def test_precedence_is_that_of_transformers(name, model_type, readers):
    reader, (keys, same) = readers(model_type), PRECEDENCE[name]
    nll = assert_alike(reader, changed(reader, **{"rope_theta": 10000.0, **keys}))
    assert torch.equal(nll, assert_alike(reader, changed(reader, **{"rope_theta": 10000.0, **same})))


@pytest.mark.parametrize(
    "changes, match",
    [
        (dict(rope_scaling={"type": "yarn", "factor": 4.0}, rope_parameters={"rope_type": "default"}), "rope_scaling type .yarn. is not"),
        (dict(rope_parameters={"rope_type": "yarn", "factor": 4.0}, rope_scaling=None), "rope_parameters type .yarn. is not supported"),
        (dict(rope_scaling={"rope_type": None}), "rope_scaling type (None|null) is not supported"),
        (dict(rope_scaling=None, rope_theta=None), "rope_theta = (None|null) must be a number"),
        (dict(rope_scaling={"rope_theta": None}), "rope_scaling.rope_theta = (None|null) must be a number"),
        (dict(rope_scaling={"mrope_section": [1, 1]}), "rope_scaling.mrope_section = .1, 1. is not read"),
        (dict(rope_scaling="linear"), "rope_scaling = .linear. must be an object or null"),
        (dict(layer_types=["full_attention"]), "layer_types = .* must be a list of num_hidden_layers = 2"),
        (dict(some_new_scaling=2.0), "some_new_scaling = 2(.0)? is not read for model_type llama"),
        (dict(is_causal=None), "is_causal = (None|null) is not supported; accepted: [Tt]rue or absent"),
        (dict(quantization_config={}), "quantization_config"),
        (dict(sliding_window=8), "sliding-window attention"),
        (dict(num_hidden_layers=2.0), "num_hidden_layers = 2(.0)? must be a whole number"),
        (dict(attention_bias=None), "attention_bias = (None|null) must be true or false"),
        (dict(hidden_act=None), "hidden_act = (None|null) is not supported"),
        (dict(residual_multiplier=0.5), "residual_multiplier = 0.5 is not supported; accepted: 1.0 or absent"),
    ],
)
def test_refused_by_name_in_both_engines(changes, match, readers):
    reader = readers("llama")
    assert_refused(reader, changed(reader, **changes), match)


@pytest.mark.parametrize("value", (0, -0.22, None, "0.22", True, 1e300))
@pytest.mark.parametrize("key", ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"))
def test_factors_that_are_none(key, value, readers):
    reader = readers("granite")
    assert_refused(reader, changed(reader, **{key: value}), f"{key} = .* must be a number in")


QWEN_SLIDES = dict(use_sliding_window=True, sliding_window=8, max_window_layers=0)
WINDOWS = [  # model_type, keys, whether it loads
    ("mistral", dict(sliding_window=None), True),
    ("mistral", dict(sliding_window=POSITIONS), True),
    ("mistral", dict(sliding_window=8), False),
    ("mistral", dict(sliding_window=...), True),
    ("mistral", dict(sliding_window=8, layer_types=["full_attention"] * 2), False),
    ("mistral", dict(sliding_window=..., max_position_embeddings=8192), False),
    ("llama", dict(layer_types=["full_attention"] * 2), True),
    ("llama", dict(sliding_window=POSITIONS), True),
    ("llama", dict(layer_types=["full_attention", "sliding_attention"]), False),
    *(
        (kind, QWEN_SLIDES | keys, loads)
        for kind in ("qwen2", "qwen3")
        for keys, loads in (
            ({}, False),
            (dict(use_sliding_window=False), True),
            (dict(use_sliding_window=...), True),
            (dict(max_window_layers=2), True),
            (dict(max_window_layers=1), False),
            (dict(max_window_layers=...), True),
            (dict(sliding_window=None), True),
            (dict(sliding_window=...), True),
            (dict(sliding_window=..., max_position_embeddings=8192), False),
            (dict(layer_types=["full_attention"] * 2), True),
            (dict(max_window_layers=2, layer_types=["full_attention", "sliding_attention"]), False),
            (dict(use_sliding_window=False, layer_types=["full_attention", "sliding_attention"]), False),
        )
    ),
]


@pytest.mark.parametrize("model_type, keys, loads", WINDOWS)
def test_windows_are_decided_as_the_family_decides(model_type, keys, loads, readers):
    reader = readers(model_type)
    raw = changed(reader, **keys)
    assert_alike(reader, raw) if loads else assert_refused(reader, raw, "sliding|layer_types")


@pytest.mark.parametrize("model_type", [kind for kind in TYPES if kind not in NOT_IN_C])
def test_every_type_of_every_key_alike_in_both_engines(model_type, readers):
    reader = readers(model_type)
    values = (None, 2.0, "2", True, 0, -1, [1], {}, 2**31, ...)
    for key in sorted(KEYS[model_type].read | set(KEYS[model_type].all_neutral) | {"use_cache", "unheard_of"}):
        for value in values:
            reader.write(changed(reader, **{key: value}))
            python, c = reader.python(), reader.c()
            assert isinstance(python, str) == isinstance(c, str), (key, value, python, c)
            if not isinstance(python, str):
                assert torch.equal(python, c), (key, value)
            else:
                assert key in python or "tensor" in python, (key, value, python)


@pytest.mark.parametrize(
    "keys",
    [
        dict(hidden_size=36),
        dict(num_attention_heads=3, n_head=7),
        dict(num_hidden_layers=2, n_layer=5),
        dict(n_positions=7, max_position_embeddings=POSITIONS),
        dict(n_layer=..., num_hidden_layers=2),
    ],
)
def test_gpt2_aliases_win(keys, readers):
    reader = readers("gpt2")
    assert_alike(reader, changed(reader, **keys))


@pytest.mark.parametrize(
    "text, match",
    [('{"a": NaN', "NaN is no JSON number"), ('{"a": 1e999', "a number out of range: 1e999"), ('{"a": "\\ud800"', "not valid JSON")],
)
def test_json_that_the_c_engine_does_not_read(text, match, readers):
    reader = readers("llama")
    raw = json.dumps(reader.base[0])
    (reader.directory / "config.json").write_text(f"{text}, {raw[1:]}", encoding="utf-8")
    with pytest.raises(ModelError, match=match):
        load(reader.directory)
    assert "not valid JSON" in reader.c()

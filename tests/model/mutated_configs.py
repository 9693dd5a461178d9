"""Edited config.json files of tiny models, and what transformers, the Python engine and the C engine make of each.

    python mutated_configs.py FAMILY COUNT SEED

prints the edits on which they disagree. Every edit is drawn from a seed: keys are added, dropped, retyped, set to null and set
against each other; the values are those of real files, and wrong ones.
"""

import json
import random
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
import transformers  # noqa: E402
from native.engine_c import EngineC, Refused  # noqa: E402

from dynadapt import Engine, load  # noqa: E402
from dynadapt.model import ModelError, random_model, tiny_config  # noqa: E402
from dynadapt.model.config_keys import IGNORED, NEUTRAL  # noqa: E402
from dynadapt.model.convert import write_directory  # noqa: E402
from dynadapt.model.family import FAMILIES  # noqa: E402

TOKENS, POSITIONS, LAYERS = 20, 48, 2
TOLERANCE = 1e-4  # nats
TYPES = (
    "llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "olmo3", "gpt2", "gemma2", "gemma3_text", "granite", "phi3", "gpt_neox", "qwen3_5_text"
)  # fmt: skip
FAMILY = {"mistral": "llama", "gemma3_text": "gemma3", "olmo3": "olmo2", "gpt_neox": "gptneox", "qwen3_5_text": "qwen3_5"}  # where other
NOT_IN_C = ("gpt2", "gemma2", "gemma3_text", "phi3", "gpt_neox", "qwen3_5_text")
OWN = {"smollm3": {"rotated": (True, False)}, "olmo3": {"windows": (7, None), "window_rope_theta": 2e4}}  # what a tiny config lacks
DROP = object()

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPES = [
    {"rope_type": "longrope", "short_factor": [1.0] * n, "long_factor": [1.0 + i for i in range(n)], "original_max_position_embeddings": 16}
    for n in (5, 6, 7, 8)  # half a head, of one family or another
]
SCALINGS = (
    None,
    {},
    [],
    "linear",
    {"type": "linear", "factor": 4.0},
    {"rope_type": "linear", "factor": 2},
    {"rope_type": "linear"},
    {"rope_type": "linear", "factor": 0.5},
    {"rope_type": "linear", "factor": None},
    {"rope_type": "linear", "factor": "2"},
    {"rope_type": "linear", "factor": True},
    {"factor": 4.0},
    {"type": "default"},
    {"rope_type": "default", "factor": 4.0},
    {"rope_type": None, "factor": 4.0},
    {"type": None},
    {"rope_type": "linear", "type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "type": "linear", "factor": 4.0},
    {"type": "linear", "factor": 4.0, "rope_theta": 100.0},
    {"rope_theta": 500.0},
    {"rope_theta": None},
    {"rope_type": "default", "rope_theta": "500"},
    {"rope_theta": 0.5},
    LLAMA3,
    {"rope_type": "llama3", "factor": 8.0},
    {k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"},
    LLAMA3 | {"high_freq_factor": 1.0},
    LLAMA3 | {"original_max_position_embeddings": 16.0},
    LLAMA3 | {"attention_factor": 2.0},
    LLAMA3 | {"original_max_position_embeddings": None},
    {"rope_type": "yarn", "factor": 4.0},
    YARN,
    YARN | {"attention_factor": 0.5, "beta_fast": 4, "beta_slow": 0.5},
    YARN | {"factor": None, "truncate": False},
    YARN | {"mscale": 0.5, "mscale_all_dim": 2.0},
    YARN | {"beta_fast": "32"},
    YARN | {"attention_factor": 0},
    {"type": "yarn", "original_max_position_embeddings": 16},
    {"type": "dynamic", "factor": 2.0},
    {"type": "dynamic"},
    {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
    {"rope_type": "longrope", "short_factor": [1.0] * 5},
    *LONGROPES,
    *({**each, "factor": 3} for each in LONGROPES),
    {"rope_type": "proportional", "rope_theta": 1e4},
    {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
    {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
    {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 1.0},
    {"rope_type": "default", "mrope_section": [1, 2, 2]},
    {"full_attention": {"rope_type": "linear", "factor": 2.0}},
    {"rope_type": "linear", "factor": 2.0, "beta_fast": 32},
)
WINDOWS = (None, 4, 8, POSITIONS - 1, POSITIONS, 4096, 0, -1, 8.0, "8", True, DROP)
KINDS = ("full_attention", "sliding_attention")
NOTES = {
    "note": "mine",
    "sliding_window_pattern": 2,
    "attention_chunk_size": 4,
    "num_experts": 4,
    "quantization": {"bits": 4},
    "quantization_config": {"quant_method": "gptq"},
    "per_layer_config": {"0": {"attention_dropout": 0.5}},
    "is_causal": None,
    "attention_multiplier": 0.5,
    "final_logit_softcapping": 30.0,
    "clip_qkv": 1.0,
    "no_rope_layers": [0, 1],
    "foo": None,
    "query_pre_attn_scalar": 4,
    "rope_interleaved": True,
    "use_mrope": False,
    "num_local_experts": None,
    "n_embd": 4,
    "partial_rotary_factor": 0.5,
    "rotary_pct": 0.25,
    "transformers_weights": "other.safetensors",
    "residual_multiplier": 0.5,
    "embedding_multiplier": 3,
    "logits_scaling": 0.25,
    "qk_layernorm": True,
}
PLAIN = (
    None,
    {"type": "linear", "factor": 4.0},
    {"rope_type": "linear", "factor": 2.0, "rope_theta": 700.0},
    {"rope_theta": 900.0},
    {"rope_type": "default", "rope_theta": 400.0},
    LLAMA3,
    LLAMA3 | {"factor": 4, "rope_theta": 250.0},
    {},
    {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"},
    YARN | {"rope_theta": 350.0},
    {"rope_type": "dynamic", "factor": 4.0},
)
VALID = (
    ("rope_scaling", PLAIN),
    ("rope_parameters", PLAIN),
    ("rope_theta", (300.0, 1e6, 5000, DROP)),
    ("rms_norm_eps", (1e-3, 0.1)),
    ("original_max_position_embeddings", (8, 20, 4096)),
    ("max_position_embeddings", (20, 32, 64, 512, 100000, DROP)),
    ("sliding_window", (64, POSITIONS, 5, None, DROP)),
    ("layer_types", ([KINDS[0]] * LAYERS, DROP)),
    ("use_sliding_window", (True, False, DROP)),
    ("max_window_layers", (2, 5, 28, DROP)),
    ("hidden_act", ("silu", "swish", DROP)),
    ("eos_token_id", ([1, 2], None, 3, DROP)),
    ("partial_rotary_factor", (1.0, DROP)),
)
VALID_SMOLLM3 = (*VALID, ("no_rope_layers", ([0, 1], [1, 1], [1, 0, 1], [0, 0], None, DROP)), ("no_rope_layer_interval", (1, 2, 3, DROP)))
VALID_GPT2 = (
    ("layer_norm_epsilon", (1e-3, 0.1)),
    ("activation_function", ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", DROP)),
    ("reorder_and_upcast_attn", (True, False)),
    ("eos_token_id", ([1, 2], None, 3, DROP)),
    ("n_ctx", (7, DROP)),
    ("num_hidden_layers", (LAYERS,)),
    ("max_position_embeddings", (POSITIONS,)),
    ("resid_pdrop", (0.0, 0.5)),
)
VALID_NEOX = (
    ("rope_scaling", PLAIN),
    ("rope_parameters", PLAIN),
    ("rotary_emb_base", (300.0, 1e6, 5000, DROP)),
    ("rotary_pct", (0.5, 1.0, 1, 6 / 14, DROP)),
    ("layer_norm_eps", (1e-3, 0.1)),
    ("max_position_embeddings", (20, 64, 512, DROP)),
    ("hidden_act", ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", DROP)),
    ("use_parallel_residual", (True, False, DROP)),
    ("eos_token_id", ([1, 2], None, 3, DROP)),
)
VALID_PHI3 = (
    ("rope_parameters", ({"rope_theta": 900.0}, {"rope_type": "default", "partial_rotary_factor": 0.5}, {"type": "default"}, DROP)),
    ("partial_rotary_factor", (1.0, 1, 0.5, 10 / 14, DROP)),
    ("rope_theta", (300.0, 1e6, 5000, DROP)),
    ("rms_norm_eps", (1e-3, 0.1, DROP)),
    ("max_position_embeddings", (20, 64, 512, DROP)),
    ("original_max_position_embeddings", (8, 4096, DROP)),
    ("sliding_window", (4, 8, 64, None, DROP)),
    ("hidden_act", ("silu", "swish", DROP)),
    ("eos_token_id", ([1, 2], None, 3, DROP)),
)
OTHERS = (None, 0, 1, 2, -1, 1.0, 0.5, "", "x", True, False, [], [1], {}, {"a": 1}, 1e300, 2**40)


def flip(raw, key, default):
    raw[key] = not raw.get(key, default)


def put(raw, key, value):
    if value is DROP:
        raw.pop(key, None)
    else:
        raw[key] = json.loads(json.dumps(value))


def edit(raw: dict, pick: random.Random) -> list[str]:
    """Changes `raw` in one way; the keys that it touched."""
    gpt2, layers = raw.get("model_type") == "gpt2", LAYERS
    kind = pick.choice(
        (
            "retype",
            "null",
            "drop",
            "other",
            "known",
            "note",
            "valid",
            "valid",
            "valid",
            *(
                ("alias", "flags", "size")
                if gpt2
                else ("rope", "rope", "rope", "rope top", "window", "window", "layers", "flags", "size", "act", "type")
            ),
        )
    )
    key = pick.choice(sorted(raw))
    value = raw[key]
    if kind == "valid":
        valid = {"gpt2": VALID_GPT2, "smollm3": VALID_SMOLLM3, "gpt_neox": VALID_NEOX, "phi3": VALID_PHI3}
        key, values = pick.choice(valid.get(str(raw.get("model_type")), VALID))
        put(raw, key, pick.choice(values))
    elif kind == "retype":
        choices = [str(value), [value], {"value": value}, bool(value)]
        if isinstance(value, (int, float)):
            choices += [float(value), int(value), -value, value * 2]
        put(raw, key, pick.choice(choices))
    elif kind == "null":
        raw[key] = None
    elif kind == "drop":
        del raw[key]
    elif kind == "other":
        put(raw, key, pick.choice(OTHERS))
    elif kind == "known":
        key = pick.choice(sorted(IGNORED | set(NEUTRAL)))
        put(raw, key, pick.choice((NEUTRAL.get(key), None, True, False, 1.0, "x")))
    elif kind == "note":
        key = pick.choice(sorted(NOTES))
        put(raw, key, NOTES[key])
    elif kind == "rope":
        key = pick.choice(("rope_scaling", "rope_parameters"))
        put(raw, key, pick.choice(SCALINGS))
    elif kind == "rope top":
        key = pick.choice(("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"))
        key = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}.get(key, key) if "rotary_pct" in raw else key
        put(raw, key, pick.choice((None, 1.0, 0.5, 20, 300.0, "300", DROP, True)))
    elif kind == "window":
        put(raw, "sliding_window", pick.choice(WINDOWS))
        if pick.random() < 0.6:
            put(raw, "use_sliding_window", pick.choice((True, True, False, None, 1, DROP)))
            put(raw, "max_window_layers", pick.choice((0, 1, 2, 28, None, 1.0, DROP)))
        return ["sliding_window", "use_sliding_window", "max_window_layers", "layer_types"]
    elif kind == "layers":
        key = "layer_types"
        put(
            raw,
            key,
            pick.choice(
                (
                    [pick.choice(KINDS) for _ in range(layers)],
                    [KINDS[0]] * layers,
                    [KINDS[1]] * layers,
                    None,
                    ["attention"] * layers,
                    [KINDS[0]],
                    ["chunked_attention"] * layers,
                    "full_attention",
                    [1, 2],
                )
            ),
        )
        return [key, "sliding_window"]
    elif kind == "flags":
        key, default = pick.choice(
            (
                ("tie_word_embeddings", gpt2),
                ("attention_bias", False),
                ("mlp_bias", False),
                ("scale_attn_weights", True),
                ("scale_attn_by_inverse_layer_idx", False),
                ("reorder_and_upcast_attn", False),
            )
        )
        flip(raw, key, default)
    elif kind == "size":
        key = pick.choice(
            (
                "vocab_size",
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "head_dim",
                "max_position_embeddings",
                "intermediate_size",
            )
        )
        put(raw, key, pick.choice((1, 2, 3, 4, 8, 10, 14, 16, 40, 48, 64, 2.0, "2", 0, 3000000000, None, DROP)))
    elif kind == "alias":
        key, alias = pick.choice(
            (
                ("n_embd", "hidden_size"),
                ("n_head", "num_attention_heads"),
                ("n_layer", "num_hidden_layers"),
                ("n_positions", "max_position_embeddings"),
            )
        )
        put(raw, alias, pick.choice((raw.get(key), None, 2, 3, 48, "3", 2.0)))
        if pick.random() < 0.3:
            raw.pop(key, None)
        return [key, alias]
    elif kind == "act":
        key = "hidden_act"
        put(raw, key, pick.choice(("silu", "swish", "gelu", "relu", "gelu_new", "SiLU", None, 1, DROP)))
    elif kind == "type":
        put(raw, "model_type", pick.choice(("llama", "mistral", "qwen2", "qwen3", "smollm3", "gpt2", "phi3", None, 3, DROP)))
        return ["model_type", *raw]  # any key may be one that the other does not read
    return [key]


def edited(base: list[dict], pick: random.Random) -> tuple[dict, list[str]]:
    """A copy of one of `base` with one to three edits, and the keys they touched."""
    raw, touched = json.loads(json.dumps(pick.choice(base))), []
    for _ in range(pick.choice((1, 1, 1, 2, 2, 3))):
        if raw:
            touched += edit(raw, pick)
    return raw, touched


class Readers:
    """A tiny model of one type in a directory, and the three that score it."""

    def __init__(self, model_type: str, directory: Path):
        family = FAMILY.get(model_type, model_type)
        self.directory = directory
        self.config = tiny_config(family, layers=LAYERS, max_positions=POSITIONS, **OWN.get(model_type, {}))
        write_directory(random_model(self.config, seed=7, std=0.2), directory, torch.float32)
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(self.config.vocab_size, (1, TOKENS + 1), generator=generator)
        self.model_type, self.gpt2 = model_type, model_type == "gpt2"
        raw = json.loads((directory / "config.json").read_bytes())
        if model_type == "mistral":
            raw |= {"model_type": model_type, "architectures": ["MistralForCausalLM"], "sliding_window": None}
        saved = transformers.CONFIG_MAPPING[model_type](**{key: value for key, value in raw.items() if key != "model_type"})
        self.base = [
            raw,
            json.loads(json.dumps(json.loads(saved.to_json_string(use_diff=True)))),
            json.loads(saved.to_json_string(use_diff=False)),
        ]

    def write(self, raw: dict) -> None:
        (self.directory / "config.json").write_text(json.dumps(raw), encoding="utf-8")

    def theirs(self):
        """nll [TOKENS], or why transformers does not load or run it."""
        try:
            live, info = transformers.AutoModelForCausalLM.from_pretrained(
                self.directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
            )
            if any(info.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")):
                return f"tensors: {info}"[:200]
            self.live = live
            with torch.no_grad():
                logits = live.eval()(self.tokens[:, :-1])[0]
            return torch.nn.functional.cross_entropy(logits[0], self.tokens[0, 1:], reduction="none")
        except Exception as error:  # whatever it is: it does not score
            return f"{type(error).__name__}: {str(error)[:160]}"

    def python(self):
        """nll [TOKENS], or the text of the refusal. Any other error is a fault."""
        try:
            model = load(self.directory)
            if model.config.max_positions < TOKENS:
                return f"max_position_embeddings = {model.config.max_positions} is less than the text"
            return Engine(model, adapt=None, segment=TOKENS, dtype="fp32", backend="cpu").step(self.tokens)[0].clone()
        except ModelError as error:
            return str(error)

    def c(self):
        """nll [TOKENS], or the text of the refusal."""
        try:
            return EngineC(self.directory, dtype=1, segment=TOKENS, rank=0).step(self.tokens)[0]
        except Refused as refused:
            assert refused.code in (1, 2), (refused.code, refused)
            return str(refused)


def plain(raw: dict, model_type: str) -> dict:
    """The same model without what transformers refuses and no score depends on: settings and nulls that are not read, a
    number without a fraction, a list of begin tokens, a file without a model_type."""
    keys = FAMILIES[FAMILY.get(model_type, model_type)].hf_keys[model_type]
    raw = {key: value for key, value in raw.items() if key in keys.read or key in NEUTRAL or key in keys.neutral}
    raw |= {"model_type": model_type, "pad_token_id": None}  # SmolLM3's and Phi-3's own are beyond a tiny vocabulary
    for key in ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps"):
        if type(raw.get(key)) is int:
            raw[key] = float(raw[key])
    if isinstance(raw.get("bos_token_id"), list):
        raw["bos_token_id"] = None
    return raw


def disagreement(readers: Readers, raw: dict, touched: list[str]) -> tuple[str, str]:
    """("", what came of it), or (what is wrong, "")."""
    readers.write(raw)
    try:
        python, c = readers.python(), readers.c()
    except Exception as error:
        return f"unexpected {type(error).__name__}: {error}", ""
    loads = not isinstance(python, str)
    if readers.model_type in NOT_IN_C or raw.get("model_type") in NOT_IN_C:
        if not isinstance(c, str):
            return f"the C engine scores a {readers.model_type}", ""
    elif loads != (not isinstance(c, str)):
        return f"python {python if isinstance(python, str) else 'scores'} | C {c if isinstance(c, str) else 'scores'}", ""
    elif loads and not torch.allclose(python, c, atol=1e-6):
        return f"python and C differ by {(python - c).abs().max():.2g}", ""
    if not loads:
        places = {"rope_parameters": "rope_scaling."}  # ModelConfig's name of both
        named = any(key in python or places.get(key, key) in python for key in touched) or "tensor " in python or "positions" in python
        return ("", "refused") if named else (f"the refusal names none of {touched}: {python}", "")
    if isinstance(theirs := readers.theirs(), str):
        readers.write(plain(raw, raw.get("model_type") or readers.model_type))
        why, theirs = theirs, readers.theirs()
        if isinstance(theirs, str):
            return f"scored, transformers: {why}, then {theirs}", ""
        return (f"off by {worst:.3g} nats", "") if (worst := off(python, theirs)) > TOLERANCE else ("", "scored alone")
    if (worst := off(python, theirs)) > TOLERANCE:
        return f"off by {worst:.3g} nats", ""
    if (live := load(readers.live).config) != (config := load(readers.directory).config):
        return f"of the live model {live}, of its directory {config}", ""
    return "", "scored alike"


def off(ours, theirs) -> float:
    """The largest difference in nats; infinite if either is not finite."""
    worst = float((ours - theirs).abs().max())
    return worst if worst == worst else float("inf")


def sweep(model_type: str, count: int, seed: int, directory: Path) -> tuple[list[str], Counter]:
    """(disagreements in words, how often each outcome came) over `count` edited configs."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    readers, faults, outcomes = Readers(model_type, directory), [], Counter()
    pick = random.Random(f"{model_type} {seed}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for raw in readers.base:
            fault, outcome = disagreement(readers, raw, [])
            assert outcome == "scored alike", (fault, raw)
        for _ in range(count):
            raw, touched = edited(readers.base, pick)
            fault, outcome = disagreement(readers, raw, touched)
            outcomes[outcome] += 1
            if fault:
                faults.append(f"{sorted(set(touched))} {fault}: {json.dumps({key: raw.get(key, 'absent') for key in touched})}")
    return faults, outcomes


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        found, counts = sweep(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(work) / "tiny")
    print(*found, dict(counts), sep="\n")
    sys.exit(bool(found))

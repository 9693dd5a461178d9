"""Every field of PEFT's config, each with values that are not neutral, through each reader of adapters: scored as PEFT scores
it, or refused with the field's name."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers import LINEARS, nll_of, peft_model, to_transformers, token_rows
from safetensors.torch import load_file, save_file

from dynadapt import SGD, Engine, LoRA, publish
from dynadapt.experiments.diagnose.models import complete_adapter
from dynadapt.model import ModelError, random_model, tiny_config
from dynadapt.model.convert import write_directory
from dynadapt.model.peft_fields import FIELDS

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).parents[1] / "native"))
REGEX = r".*\.(q|k|v|o|gate|up|down)_proj"
RANK, ALPHA, T = 2, 4.0, 12
CASES = [
    *({"peft_type": value} for value in ("LOHA", "IA3", None, 3)),
    *({"task_type": value} for value in ("SEQ_CLS", "FEATURE_EXTRACTION", "SEQ_2_SEQ_LM", None)),
    *({"r": value} for value in (3, 0, "2", True, None)),
    *({"lora_alpha": value} for value in (5, "4", True, None)),
    *(
        {"target_modules": value}
        for value in (
            LINEARS[:2],
            LINEARS + ["lm_head"],
            LINEARS + ["embed_tokens"],
            LINEARS + ["no_such"],
            "all-linear",
            "ALL-linear",
            REGEX,
            r".*q_proj",
            "(",
            [],
            None,
            LINEARS + [3],
        )
    ),
    *({"exclude_modules": value} for value in (["q_proj"], "q_proj", r".*q_proj", ["lm_head"], ["proj"], [], ")")),
    *({"layers_to_transform": value} for value in (0, [0], [0, 1, 2, 3], [], "0", [0.5])),
    *({"layers_pattern": value} for value in ("layers", ["layers"], [])),
    {"layers_pattern": "layers", "layers_to_transform": [0, 1, 2, 3]},
    {"layers_pattern": "h", "layers_to_transform": [0, 1, 2, 3]},
    {"layers_pattern": ["h", "layers"], "layers_to_transform": [0, 1, 2, 3]},
    {"layers_pattern": "lay.*", "layers_to_transform": [0, 1, 2, 3]},
    {"layers_to_transform": [0, 1, 2, 3], "target_modules": "all-linear"},
    *({"bias": value} for value in ("all", "lora_only", None, "some")),
    *(
        {"init_lora_weights": value}
        for value in (
            False,
            None,
            "gaussian",
            "orthogonal",
            "eva",
            "pissa",
            "pissa_niter_4",
            "olora",
            "corda",
            "loftq",
            "lora_ga",
            "mica",
            "nonsense",
            1,
        )
    ),
    {"use_rslora": True},
    {"use_rslora": "yes"},
    {"use_dora": True},
    {"rank_pattern": {"q_proj": 1}},
    {"alpha_pattern": {"q_proj": 8}},
    {"modules_to_save": ["lm_head"]},
    {"lora_bias": True},
    {"target_parameters": ["mlp.experts"]},
    {"trainable_token_indices": [1]},
    {"layer_replication": [[0, 2], [1, 2]]},
    {"alora_invocation_tokens": [1]},
    {"use_qalora": True},
    {"qalora_group_size": 8},
    {"use_bdlora": {"nblocks": 2}},
    {"arrow_config": {"top_k": 2}},
    {"kasa_config": {"beta": 1e-4}},
    {"velora_config": {"num_groups": 1}},
    {"monteclora_config": {"num_samples": 2}},
    {"megatron_config": {"a": 1}},
    {"megatron_core": "elsewhere"},
    {"loftq_config": {"loftq_bits": 4}},
    {"eva_config": {"rho": 2.0}},
    {"eva_config": {"rho": 2.0}, "init_lora_weights": "eva"},
    {"corda_config": {"corda_method": "kpm"}},
    {"lora_ga_config": {"scale": "unit"}},
    {"enable_lora": [True, False, True]},
    {"auto_mapping": {"base_model_class": "LlamaForCausalLM"}},
    {"peft_version": "0.1.0"},
    {"revision": "abc"},
    {"base_model_name_or_path": "elsewhere"},
    {"inference_mode": False},
    {"lora_dropout": 0.5},
    {"merge_weights": True},
    {"runtime_config": {"ephemeral_gpu_offload": True}},
    {"fan_in_fan_out": True},
    {"ensure_weight_tying": True},
    {"some_later_option": True},
    {"some_later_option": 1},
    {"some_later_option": {"a": 1}},
    {"some_later_option": None},
]


def ids():
    return token_rows(1, T + 1, seed=2)


def save_adapter(model, path, **options):
    """An adapter that PEFT has written, B not zero."""
    live = peft_model(model, std=0.2, r=RANK, lora_alpha=ALPHA, **options)
    live.save_pretrained(path)
    return path


class Readers:
    """Each way in, as a function of an adapter's directory that gives the scores."""

    def __init__(self, model, work):
        self.model, self.work, self.live = model, work, None
        self.engine = Engine(model, adapt=LoRA(rank=RANK, alpha=ALPHA), optimizer=SGD(), segment=T, dtype="fp32")
        self.c = None
        if model.config.family != "gpt2":  # a family that the C engine has not
            from engine_c import EngineC

            write_directory(model, work / "model", torch.float32)
            self.c = EngineC(work / "model", dtype=1, segment=T, rank=RANK, alpha=ALPHA, targets=b"all", last_layer=model.config.layers)

    def python(self, directory):
        self.engine.load_adapter(directory)
        return self.engine.score(ids())

    def native(self, directory):
        self.c.load_adapter(0, directory)
        return self.c.step(ids())

    def diagnose(self, directory):
        whole = self.work / "whole"
        shutil.rmtree(whole, ignore_errors=True)
        engine = Engine(self.model, adapt=complete_adapter(directory, self.model.config, whole), optimizer=SGD(), segment=T, dtype="fp32")
        engine.load_adapter(whole)
        return engine.score(ids())

    def peft(self, directory):
        live, self.live = self.live or to_transformers(self.model), None  # one that PEFT has failed on is not used again
        adapted = peft.PeftModel.from_pretrained(live, directory)
        scores = nll_of(adapted.eval(), ids())
        self.live = adapted.unload()
        return scores

    def publish(self, directory):
        return self.peft(publish(directory, self.work / "published", "a", keep=1).path)

    def all(self):
        return [self.python, *([self.native] if self.c else []), self.diagnose, self.publish]


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    return Readers(random_model(tiny_config("llama"), seed=1, std=0.1), tmp_path_factory.mktemp("readers"))


@pytest.fixture(scope="module")
def adapter(readers):
    return save_adapter(readers.model, readers.work / "adapter", target_modules=LINEARS)


def change(adapter, path, changes):
    shutil.copytree(adapter, path)
    settings = json.loads((path / "adapter_config.json").read_text()) | changes
    (path / "adapter_config.json").write_text(json.dumps(settings))
    return path


def outcomes(readers, directory, names):
    """{reader: "equal"}, or what it refused the adapter with, which names one of ``names``; anything else fails."""
    from engine_c import Refused

    found, expected = {}, None
    for read in readers.all():
        try:
            scores = read(directory)
        except (ModelError, Refused) as error:
            assert any(name in str(error) for name in names), error
            found[read.__name__] = str(error)
            continue
        expected = readers.peft(directory) if expected is None else expected
        assert torch.allclose(scores.double(), expected, atol=5e-5), (read.__name__, (scores - expected).abs().max())
        found[read.__name__] = "equal"
    return found


@pytest.mark.parametrize("changes", CASES, ids=lambda changes: ",".join(f"{k}={v}"[:40] for k, v in changes.items()))
def test_each_field_is_scored_as_peft_does_or_refused_by_name(readers, adapter, tmp_path, changes):
    name, value = next(iter(changes.items()))
    found = outcomes(
        readers, change(adapter, tmp_path / "adapter", changes), (f"{name}=", f"{name} =", "of type", f"for {name}=", "target_modules")
    )
    accepts = FIELDS.get(name, "off")
    if accepts == "any" or not isinstance(accepts, str) and any(value is one or value == one and isinstance(one, str) for one in accepts):
        assert set(found.values()) == {"equal"}
    if name == "use_rslora" and value is True:  # the engine's alpha is what it says; the others make it say the scale
        assert found["diagnose"] == found["publish"] == "equal" != found["python"]
    if accepts == "off" and name != "use_rslora" and value:
        assert "equal" not in found.values()


@pytest.mark.parametrize(
    "changes",
    [
        {"r": float(RANK)},
        {"r": str(RANK)},
        {"r": True},
        {"r": None},
        {"r": -RANK},
        {"r": [RANK]},
        {"lora_alpha": str(ALPHA)},
        {"lora_alpha": None},
        {"lora_alpha": True},
    ],
    ids=str,
)
def test_numbers_of_another_kind_are_refused_by_every_reader(readers, adapter, tmp_path, changes):
    (name,) = changes
    found = outcomes(readers, change(adapter, tmp_path / "adapter", changes), (f"{name}=", f"{name} ="))
    assert "equal" not in found.values()


def test_every_field_of_this_peft_is_known_and_has_a_case():
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert not fields - FIELDS.keys(), "fields of the installed PEFT that no reader has looked at"
    assert not FIELDS.keys() - {name for case in CASES for name in case}


def test_the_c_engine_has_the_same_table():
    header = Path(__file__).parents[2] / "csrc" / "engine" / "peft_fields.h"
    rows = re.findall(r'^    \{"(\w+)", (?:"(\w+)"|R"\((.*)\)")\},$', header.read_text(), flags=re.M)
    table = {name: word or tuple(json.loads(values)) for name, word, values in rows}
    assert table == FIELDS and list(map(str, table.values())) == list(map(str, FIELDS.values()))


@pytest.mark.parametrize(
    "options",
    [
        dict(target_modules=["q_proj", "v_proj"]),
        dict(target_modules=LINEARS, exclude_modules=["down_proj"]),
        dict(target_modules=LINEARS, layers_to_transform=[0], layers_pattern="layers"),
        dict(target_modules=r".*\.layers\.[01]\.mlp\.up_proj"),
    ],
    ids=str,
)
def test_an_adapter_of_some_modules(readers, tmp_path, options):
    directory = save_adapter(readers.model, tmp_path / "adapter", **options)
    found = outcomes(readers, directory, ("has no", "target_modules"))
    assert found["diagnose"] == found["publish"] == "equal"


@pytest.mark.parametrize("fan_in_fan_out", [True, False])
def test_a_transposed_weight(tmp_path, fan_in_fan_out):
    """GPT-2's Conv1D: PEFT looks at the module, whatever the file says."""
    readers = Readers(random_model(tiny_config("gpt2"), seed=1, std=0.1), tmp_path)
    directory = save_adapter(readers.model, tmp_path / "saved", target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
    found = outcomes(readers, change(directory, tmp_path / "adapter", {"fan_in_fan_out": fan_in_fan_out}), ())
    assert set(found.values()) == {"equal"}


# ---- the tensors

FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
TENSORS = {
    "without the model's prefix": (
        lambda t: {key.replace("model.model.model.", "model.model."): value for key, value in t.items()},
        r"tensors of layers\.0|base_model.model.layers.0|no linear|has no base_model",
    ),
    "without PEFT's prefix": (lambda t: {key.replace("base_model.model.", ""): value for key, value in t.items()}, "lora_A|lora_B"),
    "an adapter's name in the key": (
        lambda t: {key.replace(".weight", ".default.weight"): v for key, v in t.items()},
        "default|has no base_model",
    ),
    "a magnitude": (lambda t: {**t, FIRST.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(64)}, "lora_magnitude_vector"),
    "an embedding": (lambda t: {**t, "base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 131)}, "lora_embedding_A"),
    "a head": (lambda t: {**t, "base_model.model.lm_head.weight": torch.ones(131, 64)}, "lm_head.weight"),
    "A alone": (lambda t: {key: value for key, value in t.items() if key != FIRST.replace("_A", "_B")}, "q_proj.lora_"),
    "another rank": (lambda t: {**t, FIRST: torch.ones(3, 64)}, "lora_A.weight has shape"),
    "a NaN": (lambda t: {**t, FIRST: torch.full_like(t[FIRST], float("nan"))}, f"{FIRST} holds"),
    "an infinity": (lambda t: {**t, FIRST: t[FIRST].index_fill(1, torch.tensor([3]), float("-inf"))}, f"{FIRST} holds"),
    "beyond float32": (lambda t: {**t, FIRST: t[FIRST].double() * 1e300}, f"{FIRST} holds"),
    **{
        str(dtype): (lambda t, dtype=dtype: {**t, FIRST: t[FIRST].to(dtype)}, f"{FIRST} has dtype")
        for dtype in (torch.int64, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2)
    },
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_are_no_adapter_are_refused_by_name(readers, adapter, tmp_path, name):
    from engine_c import Refused

    make, message = TENSORS[name]
    directory = change(adapter, tmp_path / "adapter", {})
    tensors = load_file(directory / "adapter_model.safetensors")
    save_file({key: value.contiguous() for key, value in make(tensors).items()}, directory / "adapter_model.safetensors")
    before = readers.engine.learners[0].state.master.clone()
    for read in readers.all():
        with pytest.raises(Refused if read == readers.native else ModelError, match=message):
            read(directory)
    assert torch.equal(readers.engine.learners[0].state.master, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_floating_dtype_of_a_file_is_read(readers, adapter, tmp_path, dtype):
    directory = change(adapter, tmp_path / "adapter", {})
    tensors = load_file(directory / "adapter_model.safetensors")
    save_file({key: value.to(dtype) for key, value in tensors.items()}, directory / "adapter_model.safetensors")
    assert set(outcomes(readers, directory, ()).values()) == {"equal"}

"""base="quants": the integers of a GGUF file, with the scores that the dequantised weights have, bit by bit."""

from dataclasses import replace

import gguf
import pytest
import torch
from gguf_files import write_gguf

from dynadapt import Adam, Engine, Full, LoRA, RowSparse, SegmentMemory
from dynadapt.bench.made_up_quants import write_made_up
from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.defaults import opening, settle
from dynadapt.model import ModelError, from_state, load, random_model, tiny_config
from dynadapt.model.gguf_file import GGUFFile
from dynadapt.ops.quants import BLOCK_FORMATS

WIDE = dict(hidden_size=256, heads=4, kv_heads=2, head_dim=64, ffn_size=512, layers=2)
LEARNS = dict(adapt=LoRA(rank=3), optimizer=Adam(lr=0.01), memory=SegmentMemory(12, 2), streams=2, segment=16, backend="cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A Llama in every format, K-quants with another one in embedding and head, tied and not."""
    folder, paths = tmp_path_factory.mktemp("quants"), {}
    for i, name in enumerate(BLOCK_FORMATS):
        config = tiny_config("llama", **WIDE, tied_head=i % 2 == 1)
        head = {"q4_k": "q6_k", "q6_k": "q4_0"}.get(name, name)
        paths[name] = write_made_up(config, folder / f"{name}.gguf", name, head, std=0.06)
    return paths


def tokens(seed):
    return torch.randint(100, (2, 17), generator=torch.Generator().manual_seed(seed))


def package(path):
    """The model of a file whose tensors the gguf package dequantises, all of them."""
    model = load(path)
    return from_state(model.config, {name: model.tensor(name) for name in model.names()})


def both(path, **settings):
    """The engine that keeps a file's integers, and the one that is given the package's values."""
    return [Engine(model, **{**LEARNS, **settings}, base=base) for model, base in ((load(path), "quants"), (package(path), "same"))]


def test_norms_learn_as_beside_the_dequantised_ones(files):
    ours, plain = both(files["q4_k"], adapt=Full("norms"), dtype="bf16")
    before = ours.learners[0].parameters()
    for seed in range(3):
        assert torch.equal(ours.step(tokens(seed)), plain.step(tokens(seed)))
    assert ours.flops == plain.flops and all(not torch.equal(before[name], value) for name, value in ours.learners[0].parameters().items())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_scores_and_what_is_learned_are_the_dequantised_ones(name, dtype, files, tmp_path):
    ours, plain = both(files[name], dtype=dtype)
    for seed in range(3):
        assert torch.equal(ours.step(tokens(seed)), plain.step(tokens(seed)))
        assert ours.last.updated == [True, True] and ours.last.grad_norm == plain.last.grad_norm
    assert ours.flops == plain.flops
    assert ours.generate([1, 2, 3], 5).ids == plain.generate([1, 2, 3], 5).ids
    ours.save(tmp_path / "state")
    plain = Engine(load(files[name]), **LEARNS, dtype=dtype)
    plain.restore(tmp_path / "state")  # a state of the one goes on in the other
    assert torch.equal(ours.step(tokens(4)), plain.step(tokens(4)))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
@pytest.mark.parametrize("tied", (True, False), ids=("tied", "untied"))
def test_every_family(family, tied, tmp_path):
    """With biases and head norms, permuted rows and learned positions; base="same" of the file, too."""
    sizes = {**WIDE, "kv_heads": 4 if family == "gpt2" else 2}
    path = write_gguf(random_model(tiny_config(family, **sizes, tied_head=tied), seed=3), tmp_path / "a.gguf", "Q8_0")
    ours, plain = both(path, dtype="fp32", memory=None)
    same = Engine(load(path), **{**LEARNS, "dtype": "fp32", "memory": None})
    for seed in range(2):
        scores = ours.step(tokens(seed))
        assert torch.equal(scores, plain.step(tokens(seed))) and torch.equal(scores, same.step(tokens(seed)))


def test_base_same_makes_no_float32_of_a_whole_weight(files, monkeypatch):
    model = load(files["q4_k"])
    expected = package(files["q4_k"])
    monkeypatch.setattr(gguf.quants, "dequantize", lambda *arguments: pytest.fail("a tensor was dequantised"))
    engine = Engine(model, **LEARNS, dtype="bf16")
    weight = torch.empty(512, 256, dtype=torch.bfloat16)
    engine.weights.parts[1, "mlp_in"][0].unpack(weight)
    assert torch.equal(weight, expected.tensor("layers.1.gate.weight").bfloat16())
    assert engine.weights.parts[1, "mlp_in"][0].storage == engine.weights.head.storage == "bfloat16"


def test_no_weight_is_ever_dequantised_whole(files, monkeypatch):
    def refused(*arguments):
        raise AssertionError("a tensor was dequantised")

    model = load(files["q4_k"])
    monkeypatch.setattr(gguf.quants, "dequantize", refused)
    model.check_finite()
    engine = Engine(model, **LEARNS, dtype="bf16", base="quants")
    assert torch.isfinite(engine.step(tokens(0))).all()
    assert engine.weights.table is None and engine.weights.head.nbytes < 210 * (model.config.vocab_size + 32)


def test_what_can_not_be_kept_is_named(tmp_path):
    """Matrices in a format that no kernel keeps, and in floats."""
    model = random_model(tiny_config("llama", **WIDE), seed=3)
    path = write_gguf(model, tmp_path / "a.gguf", "Q4_1", kinds={"blk.1.ffn_up.weight": "Q5_1", "blk.0.attn_v.weight": "F16"})
    ours, plain = both(path, dtype="bf16")
    assert ours.weights.kept == {"q4_1": 14, "f16 as floats": 1, "q5_1 as floats": 1}
    said = ours.explain()
    assert "frozen weights as the file has them: 14 x q4_1, 1 x f16 as floats, 1 x q5_1 as floats, expanded and rounded" in said
    assert "as the file has them" not in plain.explain()
    assert torch.equal(ours.step(tokens(0)), plain.step(tokens(0)))


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"adapt": RowSparse(0.1)}, r"base='quants' with adapt=RowSparse.*blocks of integers can't hold what it learns; use adapt=LoRA"),
        ({"adapt": Full()}, r"base='quants' with adapt=Full"),
        ({"backend": "reference"}, r"base='quants' with backend='reference': .*use base='same', whose values are the same"),
        ({"base": "int3"}, r"base='int3'"),
    ],
)
def test_refused_by_name(settings, text, files):
    with pytest.raises(ValueError, match=text):
        Engine(load(files["q4_0"]), **{**LEARNS, "dtype": "fp32", "base": "quants", **settings})


def test_models_without_such_weights_are_refused(files, tmp_path):
    model = random_model(tiny_config("llama", **WIDE), seed=3)
    engine = lambda source: Engine(source, **LEARNS, dtype="fp32", base="quants")  # noqa: E731
    with pytest.raises(ValueError, match="base='quants' with model 'random-llama': it is not from a GGUF file; accepted are"):
        engine(model)
    with pytest.raises(ValueError, match="base='quants' with model 'a': its weights are Q5_1; accepted are GGUF files in q8_0, q4_0"):
        engine(write_gguf(model, tmp_path / "a.gguf", "Q5_1"))
    with pytest.raises(ValueError, match=r"its weights are Q4_0, loaded with dtype=torch.bfloat16"):
        engine(load(files["q4_0"], dtype=torch.bfloat16))


@pytest.mark.parametrize("bits", [0x7C00, 0x7E00], ids=["infinite", "NaN"])
def test_a_damaged_scale_is_refused_as_it_is_dequantised(bits, files, tmp_path):
    stored = GGUFFile(files["q4_1"]).tensors["blk.0.attn_q.weight"]
    content = bytearray(files["q4_1"].read_bytes())
    content[stored.begin + 20 : stored.begin + 22] = bits.to_bytes(2, "little")
    (tmp_path / "bad.gguf").write_bytes(content)
    model = load(tmp_path / "bad.gguf")
    texts = []
    for use in (lambda: Engine(model, **LEARNS, base="quants"), lambda: Engine(model, **LEARNS), model.check_finite):
        with pytest.raises(ModelError, match=r"bad.gguf: tensor layers.0.q.weight holds 32 values that are NaN or infinite") as found:
            use()
        texts.append(str(found.value))
    assert len(set(texts)) == 1


def test_a_cut_file_is_refused(files, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(files["q4_k"].read_bytes()[:-100])
    with pytest.raises(ModelError, match="lies outside the file of .* is it truncated"):
        Engine(tmp_path / "cut.gguf", **LEARNS, base="quants")


def test_the_first_line_says_what_becomes_of_the_integers(files):
    model = load(files["q4_k"])
    asked = EvalConfig(model="a.gguf", device="cpu", dtype="fp32")
    line = lambda **changes: opening(a := replace(asked, **changes), settle(a, model.config), model.config, model)  # noqa: E731
    assert "q6_k/q4_k made fp32 (--base quants: as in the file)" in line()
    assert "q6_k/q4_k as in the file" in line(base="quants")
    assert "q6_k/q4_k made fp32, " in line(adapt="full")

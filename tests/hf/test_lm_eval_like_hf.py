"""Without learning, the harness' scores are those of its own `hf` model on the same directory, whatever stands around a text."""

import json
import logging

import pytest
import torch
from tiny import english
from tiny_tokenizers import byte_level, metaspace, template
from tokenizers import Tokenizer as Backend

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402

from dynadapt.experiments.config import ConfigError  # noqa: E402
from dynadapt.interop.lm_eval import DynadaptLM  # noqa: E402
from dynadapt.model import Tokenizer, random_model, tiny_config  # noqa: E402
from dynadapt.model.convert import write_directory  # noqa: E402

WINDOW = 40


def begin_token(backend, token):
    """The tokenizer with a post-processor that begins a text with `token`."""
    content = json.loads(backend.to_str())
    return Backend.from_str(json.dumps({**content, "post_processor": template(token, backend.token_to_id(token))}))


KINDS = {  # name -> family, tokenizer, tokenizer_config.json
    "llama2": ("llama", metaspace, {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "legacy": False}),
    "llama3": (
        "llama",
        lambda: begin_token(byte_level(), "<|endoftext|>"),
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|eot|>"},
    ),
    "gpt2": ("gpt2", byte_level, {"tokenizer_class": "GPT2Tokenizer"}),
    "qwen2": ("qwen2", byte_level, {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>"}),
}


@pytest.fixture(scope="module", params=KINDS)
def directory(request, tmp_path_factory):
    return make_directory(tmp_path_factory.mktemp("lm") / request.param, request.param)


def make_directory(path, kind, **generation):
    family, make, settings = KINDS[kind]
    backend = make()
    config = tiny_config(family, vocab_size=backend.get_vocab_size() + 1, layers=2, bos_token_id=0, eos_token_id=7)
    write_directory(random_model(config, seed=3, std=0.25, tokenizer=Tokenizer(backend)), path, dtype=torch.float32)
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9], **generation}), encoding="utf-8")
    return path


def both(path, add_bos_token=None, **settings):
    """(ours, theirs), each made from the directory's name."""
    from lm_eval.models.huggingface import HFLM

    # without its cache of logits, which takes the wrong ones for pairs that cut one text at different places
    theirs = HFLM(
        str(path),
        device="cpu",
        dtype="float32",
        max_length=WINDOW,
        batch_size=1,
        add_bos_token=add_bos_token,
        logits_cache=False,
        **settings,
    )
    ours = DynadaptLM(
        str(path), reset="stateless", dtype="fp32", segment=WINDOW, max_length=WINDOW, add_bos_token=add_bos_token, **settings
    )
    return ours, theirs


def requests(kind, arguments):
    return [Instance(kind, {}, tuple(a), i, ("task", i, 1)) for i, a in enumerate(arguments)]


def spelled(path):
    """The beginning- and end-of-text tokens as a text may spell them."""
    settings = json.loads((path / "tokenizer_config.json").read_text())
    return settings.get("bos_token") or "<|endoftext|>", settings.get("eos_token") or "<|endoftext|>"


@pytest.mark.parametrize("add_bos_token", [None, True, False])
def test_everything_equals_the_harness_own_model(directory, add_bos_token):
    if add_bos_token and directory.name == "qwen2":
        pytest.skip("the harness' model needs a beginning-of-text token to add")
    ours, theirs = both(directory, add_bos_token)
    begin, end = spelled(directory)
    long, longer = english(12, 1), english(80, 2)
    texts = ["the cat", "", " ", long, longer, begin + "the cat", f"the {end} cat", "naïve 漢字 🙂\n\n", "cat" + begin]
    assert (ours.prefix_token_id, ours.eot_token_id) == (theirs.prefix_token_id, theirs.eot_token_id)
    for text in texts:
        for special in (None, True, False):
            assert ours.tok_encode(text, special) == theirs.tok_encode(text, special), (text, special)
        assert ours.tok_encode(text, left_truncate_len=3) == theirs.tok_encode(text, left_truncate_len=3)

    pairs = requests(
        "loglikelihood",
        [
            ("the cat sat", " on a mat"),
            ("", "the cat"),
            ("", begin + "the cat"),
            ("the cat ", "sat"),
            (longer, " near"),
            (begin + "the", " cat"),
            ("naïve", " 漢字 🙂"),
            ("a", "\n\nb"),
        ],
    )
    pairs = [pair for pair in pairs if not pair.args[0] or theirs._encode_pair(*pair.args)[1]]  # both refuse an empty continuation
    assert len(pairs) > 5
    for request, (score, greedy), (expected, expected_greedy) in zip(
        pairs, ours.loglikelihood(pairs, True), theirs.loglikelihood(pairs, True)
    ):
        assert score == pytest.approx(expected, abs=3e-4) and greedy == expected_greedy, request.args

    whole = requests("loglikelihood_rolling", [(text,) for text in texts if text.strip()])
    assert ours.loglikelihood_rolling(whole, True) == pytest.approx(theirs.loglikelihood_rolling(whole, True), abs=3e-3)

    settings = [{"until": ["a", "\n"], "max_gen_toks": 9}, {"until": end, "max_gen_toks": 20}, {"max_gen_toks": 12}]
    prompts = ["the cat sat", longer, begin + "the cat "]
    wanted = requests("generate_until", [(prompt, setting) for prompt in prompts for setting in settings])
    assert ours.generate_until(wanted, True) == theirs.generate_until(wanted, True)


def test_a_prefix_token_of_ones_own(tmp_path):
    ours, theirs = both(make_directory(tmp_path / "lm", "llama2"), prefix_token_id=11)
    pairs = requests("loglikelihood", [("", "the cat sat"), ("the cat", " sat")])
    assert [score for score, _ in ours.loglikelihood(pairs, True)] == pytest.approx(
        [score for score, _ in theirs.loglikelihood(pairs, True)], abs=3e-4
    )
    whole = requests("loglikelihood_rolling", [("the cat sat",)])
    assert ours.loglikelihood_rolling(whole, True) == pytest.approx(theirs.loglikelihood_rolling(whole, True), abs=3e-4)


@pytest.mark.parametrize(
    "generation", [{"repetition_penalty": 1.3}, {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20}, {"eos_token_id": 5}]
)
def test_generation_follows_the_models_own_settings(generation, tmp_path):
    ours, theirs = both(make_directory(tmp_path / "lm", "llama3", **generation))
    wanted = requests("generate_until", [(english(9, seed), {"until": ["\n"], "max_gen_toks": 20}) for seed in range(4)])
    assert ours.generate_until(wanted, True) == theirs.generate_until(wanted, True)


def test_generation_settings_refused_by_name(tmp_path):
    ask = lambda lm, **settings: lm.generate_until(requests("generate_until", [("the", {"max_gen_toks": 3, **settings})]), True)  # noqa: E731
    for settings, message in [
        ({"num_beams": 4}, "num_beams = 4"),
        ({"max_new_tokens": 7}, "max_new_tokens = 7"),
        ({"suppress_tokens": [3]}, "suppress_tokens = .3."),
    ]:
        path = make_directory(tmp_path / next(iter(settings)), "gpt2", **settings)
        with pytest.raises(ConfigError, match=f"generation_config.json: {message} is not supported"):
            ask(DynadaptLM(str(path), reset="stateless", dtype="fp32", segment=WINDOW, max_length=WINDOW))
    lm, _ = both(make_directory(tmp_path / "lm", "gpt2"))
    assert ask(lm, num_beams=1, top_p=0.3) == ask(lm)
    for settings, message in [
        ({"num_beams": 2}, "num_beams=2"),
        ({"frequency_penalty": 1}, "frequency_penalty=1"),
        ({"repetition_penalty": -1}, "repetition_penalty=-1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            ask(lm, **settings)
    with pytest.raises(ConfigError, match="chat templates are not supported"):
        lm.chat_template(True)
    for settings, message in [
        ({"add_bos_token": "yes"}, "add_bos_token='yes'"),
        ({"tokenizer": byte_level()}, "tokenizer is a Tokenizer; expected a dynadapt"),
    ]:
        with pytest.raises(ConfigError, match=message):
            DynadaptLM(str(tmp_path / "lm"), **settings)


def test_a_cut_context_is_said(tmp_path, caplog):
    lm, _ = both(make_directory(tmp_path / "lm", "gpt2"))
    with caplog.at_level(logging.WARNING, "dynadapt.lm_eval"):
        lm.loglikelihood(requests("loglikelihood", [(english(60, 1), " near")]), True)
    assert "exceed max_length=40" in caplog.text

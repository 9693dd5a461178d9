"""Engine.generate: the text that transformers generates, draws that follow the softmax, and nothing of the engine moved by it."""

import pytest
import torch
from helpers import to_transformers
from tiny import english, tiny_tokenizer

import dynadapt
from dynadapt import Adam, Engine, LoRA, SegmentMemory
from dynadapt.engine.sampling import Sampler
from dynadapt.engine.state import state_counts, state_tensors
from dynadapt.model import Tokenizer, from_state, random_model, tiny_config

TEXT = english(60)
T = 32


def model(family="llama", tokenizer=True):
    backend = tiny_tokenizer()
    made = random_model(tiny_config(family, vocab_size=backend.get_vocab_size()), seed=3, std=0.2)
    state = {name: made.tensor(name) for name in made.names()}
    return from_state(made.config, state, Tokenizer(backend, eos_id=7) if tokenizer else None, name="tiny")


def engine(source=None, **options):
    source = source or model()
    memory = None if source.config.family == "gpt2" else SegmentMemory(16, 2)
    return Engine(source, adapt=LoRA(rank=2), optimizer=Adam(lr=0.02), memory=memory, segment=T, dtype="fp32", **options)


def learned(source=None, steps=4, **options):
    e = engine(source, **options)
    ids = torch.tensor(e.model.tokenizer.encode(english(200, seed=1)))
    for i in range(steps):
        e.step(ids[i * T : (i + 1) * T + 1].repeat(e.streams, 1))
    return e


def hf_processed(logits, sampler):
    """The distribution that transformers' own sampling draws from."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = TemperatureLogitsWarper(sampler.temperature)(None, logits[None].double())
    if sampler.top_k is not None:
        scores = TopKLogitsWarper(sampler.top_k)(None, scores)
    if sampler.top_p is not None:
        scores = TopPLogitsWarper(sampler.top_p)(None, scores)
    return scores.softmax(-1)[0]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_the_likeliest_tokens_are_those_of_transformers(family):
    source = model(family)
    live, e = to_transformers(source), engine(source)
    live.generation_config.eos_token_id = live.generation_config.pad_token_id = None
    prompt = source.tokenizer.encode("the cat sat on")
    expected = live.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, use_cache=True)[0, len(prompt) :].tolist()
    assert e.generate(prompt, 20, end=False).ids == expected
    made = e.generate("the cat sat on", 20, end=False)
    assert (made.ids, made.prompt_ids, made.ended) == (expected, prompt, "length")
    assert str(made) == made.text == source.tokenizer.decode(prompt + expected)[len("the cat sat on") :]


def test_a_window_of_one_token_sees_no_other():
    source = model()
    live, ids = to_transformers(source), [5]
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(live(torch.tensor([ids[-1:]])).logits[0, -1].argmax()))
    e = Engine(source, segment=1, dtype="fp32")
    assert e.generate([9, 3, 5], 6, end=False).ids == ids[1:]
    e.step(torch.tensor([[3, 5]]))
    assert e.generate([5], 6, end=False).ids == ids[1:]


def test_it_uses_what_was_learned_and_moves_nothing():
    used, left = learned(streams=2), learned(streams=2)
    assert used.generate("the cat", 12, end=False).ids != engine(streams=2).generate("the cat", 12, end=False).ids
    before, counts = {name: t.clone() for name, t in state_tensors(used).items()}, state_counts(used)
    for stream in (0, 1):
        used.generate("the cat", 12, stream=stream, temperature=0.7, top_p=0.9, seed=1)
    after = state_tensors(used)
    assert state_counts(used) == counts and all(torch.equal(after[name], t) for name, t in before.items())
    ids = torch.tensor(used.model.tokenizer.encode(english(200, seed=2)))[: T + 1].repeat(2, 1)
    assert torch.equal(used.step(ids), left.step(ids)) and torch.equal(used.score(ids), left.score(ids))
    assert used.flops["forward"] > left.flops["forward"] and used.flops["update"] == left.flops["update"]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.3, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 0.8, "top_k": 9, "top_p": 0.5},
        {"temperature": 1.0, "top_p": 1e-6},
        {"temperature": 1.0, "top_k": 1},
    ],
)
def test_the_distribution_is_that_of_transformers(settings):
    pytest.importorskip("transformers")
    for seed in range(20):
        logits = torch.randn(40, generator=torch.Generator().manual_seed(seed)) * 3
        sampler = Sampler(**settings)
        assert torch.allclose(sampler.probabilities(logits), hf_processed(logits, sampler), atol=1e-12)


def test_draws_follow_the_softmax():
    """Pearson's statistic of 20,000 draws; 40.8 is exceeded once in a hundred thousand times at 9 degrees of freedom."""
    logits, draws = torch.linspace(-1, 2, 10), 20000
    sampler = Sampler(temperature=0.8, seed=0)
    counts = torch.bincount(torch.tensor([sampler(logits) for _ in range(draws)]), minlength=10).double()
    expected = draws * (logits.double() / 0.8).softmax(0)
    assert ((counts - expected) ** 2 / expected).sum() < 40.8


def test_seeds_and_the_global_generator():
    e = engine()
    draw = lambda **settings: e.generate("the cat", 12, temperature=1.5, end=False, **settings).ids  # noqa: E731
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert draw(seed=1) == draw(seed=1) != draw(seed=2)
    assert draw() != draw()
    assert torch.equal(torch.get_rng_state(), state)


def test_stop_strings_end_the_text_and_are_never_told():
    e = engine()
    whole = e.generate("the cat", 30, end=False).text
    stop = whole[11:15]
    at = whole.index(stop)
    pieces = []
    made = e.generate("the cat", 30, end=False, stop=["no such text", stop], on_text=pieces.append)
    assert (made.text, made.ended) == (whole[:at], "stop") and "".join(pieces) == made.text and len(made.ids) < 30
    count = len(made.ids)  # the stop string comes with the very last token
    assert e.generate("the cat", count, end=False, stop=stop).ended == "stop"


def test_end_tokens():
    e = engine()
    ids = e.generate("the cat", 30, end=False).ids
    last = ids[9]
    made = e.generate("the cat", 30, end=[last])
    assert made.ended == "end" and made.ids == ids[: ids.index(last) + 1]
    assert made.text == e.generate("the cat", ids.index(last), end=False).text if ids.index(last) else made.text == ""
    source = model()
    source._tokenizer = Tokenizer(source.tokenizer.backend, eos_id=last)
    assert engine(source).generate("the cat", 30).ids == made.ids
    assert e.generate("the cat", len(made.ids), end=[last]).ended == "end"


def test_text_is_told_whole_characters_at_a_time():
    """Random weights make broken UTF-8 as well; joined, the pieces are the text."""
    e = engine()
    for seed in range(8):
        pieces = []
        made = e.generate("the café", 25, temperature=2.0, seed=seed, end=False, on_text=pieces.append)
        assert made.text.startswith("".join(pieces[:-1])) and not any(piece.endswith("\ufffd") for piece in pieces[:-1])
        assert "".join(pieces) == made.text


def test_a_model_without_tokenizer_takes_ids():
    e = engine(model(tokenizer=False))
    made = e.generate([1, 2, 3], 5, end=False)
    assert made.text is None and len(made.ids) == 5 and "Continuation" in str(made)
    for given in ({"prompt": "the"}, {"prompt": [1], "stop": "x"}, {"prompt": [1], "on_text": print}):
        with pytest.raises(ValueError, match="has no tokenizer"):
            e.generate(**given)


@pytest.mark.parametrize(
    "given,said",
    [
        ({"prompt": ""}, "prompt='': expected text of at least 1 token"),
        ({"prompt": []}, "prompt: empty"),
        ({"prompt": [[1, 2]]}, "prompt has shape"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 5}, "top_k=5: expected None with temperature=0"),
        ({"seed": 5}, "seed=5: expected None with temperature=0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k=0"),
        ({"temperature": 1.0, "top_p": 0}, "top_p=0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p=1.5"),
        ({"temperature": 1.0, "seed": -1}, "seed=-1"),
        ({"stop": [""]}, "stop="),
        ({"stop": 3}, "stop=3"),
        ({"stop": [3]}, "stop="),
        ({"end": 5}, "end=5"),
        ({"end": [10**6]}, "end=1000000"),
        ({"stream": 1}, "stream=1"),
        ({"on_text": "x"}, "on_text='x'"),
    ],
)
def test_what_does_not_fit_is_named(given, said):
    with pytest.raises(ValueError, match=said):
        engine().generate(**{"prompt": "the cat", "max_tokens": 3, **given})


def test_the_callback_may_not_call_the_engine():
    e = learned()
    with pytest.raises(RuntimeError, match="the engine is in another call"):
        e.generate("the cat", 5, on_text=lambda piece: e.reset(0))
    e.generate("the cat", 5)


def test_a_session_generates_what_its_model_does():
    source = model()
    live = to_transformers(source)
    live.generation_config.eos_token_id = live.generation_config.pad_token_id = None
    prompt = torch.tensor([source.tokenizer.encode("the cat sat")])
    with dynadapt.attach(live, adapt=LoRA(rank=2), optimizer=Adam(lr=0.05), segment=T, streams=2) as session:
        session.step(torch.tensor(source.tokenizer.encode(english(200)))[: T + 1].repeat(2, 1))
        session.stream = 1
        expected = live.generate(prompt, max_new_tokens=10, do_sample=False)[0, prompt.shape[1] :].tolist()
        assert session.generate(prompt[0], 10, end=False).ids == expected
    with pytest.raises(RuntimeError, match="session is closed"):
        session.generate([1], 2)

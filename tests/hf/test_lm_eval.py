"""The harness' model class: same numbers as its own for transformers, and scores that never saw what they score."""

import json
import math
import sys
from functools import partialmethod

import pytest
import torch
from helpers import to_transformers
from tiny import english, tiny_tokenizer

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from dynadapt import Adam, Engine, LoRA, SegmentMemory  # noqa: E402
from dynadapt.engine.generation import generate, score_continuations  # noqa: E402
from dynadapt.experiments.config import ConfigError  # noqa: E402
from dynadapt.interop.lm_eval import DynadaptLM  # noqa: E402
from dynadapt.model import Tokenizer, random_model, tiny_config  # noqa: E402

SEGMENT = 16


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(tiny_tokenizer(), bos_id=0, eos_id=1)


def model(tokenizer, family="llama"):
    config = tiny_config(family, vocab_size=tokenizer.vocab_size, layers=2, bos_token_id=0, eos_token_id=1)
    return random_model(config, seed=1, std=0.3, tokenizer=tokenizer)


def make(tokenizer, family="llama", **settings):
    return DynadaptLM(model(tokenizer, family), **{**dict(dtype="fp32", segment=SEGMENT, rank=2, lr=0.02), **settings})


def requests(kind, arguments, task="task", doc=None):
    """One request a document, or with ``doc`` all of one."""
    return [Instance(kind, {}, tuple(a), i, (task, i if doc is None else doc, 1)) for i, a in enumerate(arguments)]


TEXTS = [english(60, seed) for seed in range(3)]
PAIRS = [("the cat sat on", " a mat"), ("the cat sat on", " some food and ran"), ("an old house", " near"), ("", "the other cat")]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_stateless_equals_the_harness_own_model(tokenizer, family):
    import transformers
    from lm_eval.models.huggingface import HFLM

    ours = make(tokenizer, family, reset="stateless", max_length=100)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer())
    fast.bos_token_id, fast.eos_token_id, fast.pad_token_id = 0, 1, 1
    theirs = HFLM(to_transformers(model(tokenizer, family)), tokenizer=fast, max_length=100, batch_size=1, device="cpu")
    pairs = requests("loglikelihood", PAIRS)
    for (nll, greedy), (expected, expected_greedy) in zip(ours.loglikelihood(pairs, True), theirs.loglikelihood(pairs, True)):
        assert nll == pytest.approx(expected, abs=2e-4) and greedy == expected_greedy
    whole = requests("loglikelihood_rolling", [(english(12, seed),) for seed in range(3)])
    long = make(tokenizer, family, reset="stateless", segment=100, max_length=100)
    assert long.loglikelihood_rolling(whole, True) == pytest.approx(theirs.loglikelihood_rolling(whole, True), abs=1e-3)
    wanted = requests("generate_until", [(text[:40], {"until": ["."], "max_gen_toks": 9}) for text in TEXTS])
    assert ours.generate_until(wanted, True) == theirs.generate_until(wanted, True)


@pytest.mark.parametrize("reset", ["document", "stream"])
def test_rolling_scores_are_those_of_the_engine(tokenizer, reset):
    """Segment by segment, each scored before it is learned; documents start fresh, or where the last one ended."""
    lm = make(tokenizer, reset=reset, memory=8, sinks=2)
    scores = lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in TEXTS]), True)
    engine = Engine(
        model(tokenizer),
        adapt=LoRA(rank=2, alpha=4),
        optimizer=Adam(lr=0.02),
        memory=SegmentMemory(8, 2),
        segment=SEGMENT,
        dtype="fp32",
        reset="document" if reset == "document" else "never",
    )
    for text, score in zip(TEXTS, scores):
        tokens = torch.tensor([[0, *tokenizer.encode(text)]])
        engine.enter(0)
        rows = [tokens[:, i : i + SEGMENT + 1] for i in range(0, tokens.shape[1] - 1, SEGMENT)]
        assert score == pytest.approx(-sum(float(engine.step(row).double().sum()) for row in rows), abs=1e-3)
    static = make(tokenizer, reset="stateless", memory=8, sinks=2)
    plain = static.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in TEXTS]), True)
    assert sum(scores) > sum(plain) + 1  # it learns


def test_policies_differ_in_what_a_document_sees(tokenizer):
    texts = requests("loglikelihood_rolling", [(text,) for text in TEXTS])
    reverse = list(reversed(texts))
    document, stream = make(tokenizer, reset="document"), make(tokenizer, reset="stream")
    assert document.loglikelihood_rolling(texts, True) == document.loglikelihood_rolling(reverse, True)[::-1]
    ordered = stream.loglikelihood_rolling(texts, True)
    assert ordered[0] == document.loglikelihood_rolling(texts[:1], True)[0]  # nothing came before the first
    assert ordered[2] != document.loglikelihood_rolling(texts[2:], True)[0]
    assert ordered == stream.loglikelihood_rolling(texts, True)  # a call starts anew
    first = requests("loglikelihood_rolling", [(text,) for text in TEXTS[:2]], task="first")
    assert stream.loglikelihood_rolling(first + texts, True)[2:] == ordered  # and so does a task


def test_a_score_never_saw_its_tokens(tokenizer):
    """Changing what comes later changes no score before it; changing what was read changes what comes after."""
    lm = make(tokenizer, reset="stream")
    ask = lambda texts: lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(t,) for t in texts]), True)  # noqa: E731
    base = ask(TEXTS)
    assert ask([TEXTS[0], TEXTS[1], "something else"])[:2] == base[:2]
    assert ask(["something else", TEXTS[1], TEXTS[2]])[1:] != base[1:]


def test_answers_do_not_see_each_other(tokenizer):
    lm = make(tokenizer, reset="stream")
    context = english(40, 7)
    answers = [(context, " a mat"), (context, " some food"), (context, " the old house near it")]
    more = [(context, " food")]
    ask = lambda pairs, doc: requests("loglikelihood", pairs, doc=doc)  # noqa: E731
    together = lm.loglikelihood(ask(answers, 0) + ask(more, 1), True)
    for i, pair in enumerate(answers):
        alone = lm.loglikelihood(ask([pair], 0) + ask(more, 1), True)
        assert alone[0][0] == pytest.approx(together[i][0], abs=1e-5)
        assert alone[1][0] == pytest.approx(together[3][0], abs=1e-5)  # answers are not learned: the next document is the same
    static = make(tokenizer, reset="stateless").loglikelihood(ask(answers, 0), True)
    assert abs(static[0][0] - together[0][0]) > 1e-3  # the context was learned
    fresh = make(tokenizer, reset="document").loglikelihood(ask(answers, 0) + ask(more, 1), True)
    assert fresh[:3] == together[:3] and fresh[3] != together[3]


def test_contexts_that_differ_are_learned_as_far_as_they_agree(tokenizer):
    lm, learned = make(tokenizer, reset="document"), []
    read = lm._read
    lm._read = lambda tokens: learned.append(tokenizer.decode(tokens)) or read(tokens)
    both = [("the cat sat on the mat and", " saw"), ("the cat sat on some food and", " saw"), ("", " saw")]
    lm.loglikelihood(requests("loglikelihood", both, doc=0), True)
    assert learned == ["the cat sat on"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_generation_with_a_cache_equals_running_the_text_again(tokenizer, family):
    engine = Engine(
        model(tokenizer, family),
        adapt=LoRA(rank=2),
        streams=2,
        segment=48,
        dtype="fp32",
        optimizer=Adam(lr=0.05),
        memory=SegmentMemory(8, 2) if family == "llama" else None,
    )
    for seed in range(3):
        engine.step(torch.randint(200, (2, 41), generator=torch.Generator().manual_seed(seed)))
    before = engine.learners[0].state.master.clone()
    prompt = tokenizer.encode(TEXTS[0])[:12]
    made = {}
    for stream in (0, 1):
        made[stream] = generate(engine, prompt, 20, stream=stream)
        ((_, likeliest),) = score_continuations(engine, [prompt + made[stream]], [20], stream)
        assert likeliest.all() and len(made[stream]) == 20
    assert made[0] != made[1]
    assert generate(engine, prompt, 20, lambda ids: ids[-1] == made[0][4]) == made[0][: made[0].index(made[0][4]) + 1]
    assert torch.equal(engine.learners[0].state.master, before)
    assert len(generate(engine, prompt, 100)) == 100  # further than the window
    with pytest.raises(ValueError, match="prompt: empty"):
        generate(engine, [], 3)


def write_tasks(folder):
    """A perplexity, a multiple-choice and a generation task over a local file."""
    rows = [
        {"text": text, "question": "the cat sat on", "choices": ["a mat", "some food"], "answer": i % 2} for i, text in enumerate(TEXTS)
    ]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    common = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder / 'data.jsonl'}\ntest_split: test\n"
    metrics = lambda *names: "metric_list:\n" + "".join(f"  - metric: {name}\n" for name in names)  # noqa: E731
    (folder / "perplexity.yaml").write_text(
        common
        + "task: local_perplexity\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        + metrics("word_perplexity", "byte_perplexity", "bits_per_byte")
    )
    (folder / "choice.yaml").write_text(
        common + "task: local_choice\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: '{{answer}}'\n" + metrics("acc")
    )
    (folder / "generate.yaml").write_text(
        common + "task: local_generate\noutput_type: generate_until\ndoc_to_text: '{{question}}'\n"
        "doc_to_target: '{{choices[0]}}'\n"
        "generation_kwargs:\n  until: ['.']\n  max_gen_toks: 5\n" + metrics("exact_match")
    )
    return folder


def test_the_harness_runs_tasks_without_a_download(tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    tasks = TaskManager(include_path=str(write_tasks(tmp_path)), include_defaults=False)
    lm = make(tokenizer, reset="stream")
    names = ["local_perplexity", "local_choice", "local_generate"]
    results = lm_eval.simple_evaluate(model=lm, tasks=names, task_manager=tasks, bootstrap_iters=0, verbosity="ERROR")
    scores = lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in TEXTS]), True)
    expected = -sum(scores) / sum(len(text.encode()) for text in TEXTS) / math.log(2)
    assert results["results"]["local_perplexity"]["bits_per_byte,none"] == pytest.approx(expected, rel=1e-6)
    assert 0 <= results["results"]["local_choice"]["acc,none"] <= 1 and "local_generate" in results["results"]
    assert results["config"]["reset_policy"] == "stream"
    assert results["config"]["dynadapt"] in capsys.readouterr().err
    json.dumps(lm.get_model_info())


def test_the_command_line_prints_the_policy_with_the_score(tmp_path, monkeypatch, capsys):
    from tiny import tiny_directory

    from dynadapt.interop.lm_eval.__main__ import main

    write_tasks(tmp_path)
    directory = tiny_directory(tmp_path / "model")
    settings = f"model={directory},reset=document,rank=2,segment=16,prefix_token_id=0"
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("lm_eval.tasks.TaskManager.__init__", partialmethod(TaskManager.__init__, include_defaults=False))
    monkeypatch.setattr(
        sys,
        "argv",
        ["lm-eval", "--model", "dynadapt", "--include_path", str(tmp_path), "--tasks", "local_choice", "--model_args", settings],
    )
    monkeypatch.setattr(DynadaptLM, "made", [])
    main()
    scores = capsys.readouterr().out
    last = scores.strip().splitlines()[-1]
    assert "local_choice" in scores
    assert last.startswith(
        "dynadapt: reset policy document (learns within each document, which starts from the loaded weights; "
        "lora, adam, lr 0.002, segments of 16)"
    )


def test_what_is_refused_by_name(tokenizer):
    from lm_eval.api.model import CacheHook

    for settings, message in [
        (dict(reset="never"), "reset='never': expected one of stateless, document, stream"),
        (dict(batch_size=8), "batch_size=8"),
        (dict(streams=2), "streams=2: expected one of"),
        (dict(adapt="none", levels="slow"), "levels='slow': expected one of"),  # every request would change the next one's scores
        (dict(learning_rate=1), "learning_rate=1: expected one of"),
        (dict(optimizer="rms", adapt="full"), "optimizer='rms'"),
        (dict(select="contrast", adapt="rows"), "select='contrast'"),
        (dict(max_length=10**6), "max_length=1000000"),
        (dict(segment=64, max_length=32), "segment=64 exceeds max_length=32"),
        (dict(tokenizer=None), "has no tokenizer"),
    ]:
        source = random_model(tiny_config("llama"), seed=1) if "tokenizer" in settings else model(tokenizer)
        with pytest.raises(ConfigError, match=message):
            DynadaptLM(source, **settings)
    with pytest.raises(ConfigError, match="use_cache with reset='stream'"):
        make(tokenizer, reset="stream").set_cache_hook(CacheHook(None))
    make(tokenizer, reset="stateless").set_cache_hook(CacheHook(None))
    lm = make(tokenizer, max_length=32)
    with pytest.raises(ConfigError, match="do_sample"):
        lm.generate_until(requests("generate_until", [("the cat", {"do_sample": True, "temperature": 0.7})]), True)
    with pytest.raises(ConfigError, match="max_gen_toks=32"):
        lm.generate_until(requests("generate_until", [("the cat", {"max_gen_toks": 32})]), True)
    with pytest.raises(ValueError, match="continuation has .* expected 1..32"):
        lm.loglikelihood(requests("loglikelihood", [("the", english(60))]), True)
    diverging = make(tokenizer, lr=1e30, optimizer="sgd", clip=0.0)
    with pytest.raises(RuntimeError, match="not finite: adaptation diverged at lr 1e"):
        diverging.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in TEXTS]), True)

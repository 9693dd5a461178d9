"""HeldOutScore in the real transformers.Trainer: the value is that of the weights before the update, and training does not notice."""

import copy
import math
import warnings

import pytest
import torch
from helpers import to_transformers
from torch.nn.functional import cross_entropy

import dynadapt
from dynadapt import SegmentMemory
from dynadapt.interop.callbacks import HeldOutScore
from dynadapt.model import ModelError, random_model, tiny_config

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
T, STEPS = 12, 5


def live_model(family="llama", dropout=0.0):
    model = to_transformers(random_model(tiny_config(family), seed=1, std=0.2))
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = dropout
    return model


def ids(count, seed):
    return torch.randint(100, (count,), generator=torch.Generator().manual_seed(seed))


HELD_OUT = ids(3 * T + 5, seed=7)


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, i):
        row = ids(T, seed=i)
        return {"input_ids": row, "labels": row}


class Watch(transformers.TrainerCallback):
    """The held-out loss by hand, and the weights, as they are when the step begins."""

    def __init__(self):
        self.nll, self.modes, self.grads = [], [], []

    def on_step_begin(self, args, state, control, model=None, **more):
        self.nll.append(by_hand(model))
        self.modes.append([module.training for module in model.modules()])
        self.grads.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])


@torch.no_grad()
def by_hand(model) -> float:
    """Segments of T tokens, each seen by itself."""
    model, scores = copy.deepcopy(model).eval(), []
    for start in range(0, len(HELD_OUT) - 1, T):
        row = HELD_OUT[start : start + T + 1]
        scores.append(cross_entropy(model(row[None, :-1]).logits[0].double(), row[1:], reduction="none"))
    return float(torch.cat(scores).mean())


def train(model, tmp_path, *callbacks, add=(), **settings):
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        seed=3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=Rows(), callbacks=list(callbacks))
    for callback in add:
        callback.add_to(trainer)
    trainer.train()
    return trainer


def values(trainer, key="dynadapt/heldout_nll"):
    return [(entry["step"], entry[key]) for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_value_is_the_loss_before_that_update(tmp_path, family, accumulate):
    watch = Watch()
    trainer = train(
        live_model(family), tmp_path, watch, HeldOutScore(HELD_OUT, steps=1, segment=T, rows=2), gradient_accumulation_steps=accumulate
    )
    found = values(trainer)
    assert [step for step, _ in found] == [0, 1, 2, 3, 4, STEPS]
    wanted = [*watch.nll, by_hand(trainer.model)]
    assert [nll for _, nll in found] == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) - min(wanted) > 1e-2  # the weights did change


def test_training_does_not_notice(tmp_path):
    """With dropout, so that a random number more or less would show; and to the bit."""
    runs = []
    for extra in ([], [HeldOutScore(HELD_OUT, steps=2, segment=T), HeldOutScore(HELD_OUT, steps=1, segment=T, memory=T)]):
        watch = Watch()
        trainer = train(live_model(dropout=0.3), tmp_path, *extra, watch)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        runs.append((losses, list(trainer.model.parameters()), watch.modes, watch.grads, torch.get_rng_state()))
    (losses, parameters, modes, grads, rng), others = runs[0], runs[1]
    assert losses == others[0] and len(losses) == STEPS
    assert all(torch.equal(a, b) for a, b in zip(parameters, others[1], strict=True))
    assert modes == others[2] and any(modes[1])
    assert [[g is None for g in step] for step in grads] == [[g is None for g in step] for step in others[3]]
    assert torch.equal(rng, others[4])
    assert losses != [entry["loss"] for entry in train(live_model(), tmp_path).state.log_history if "loss" in entry]  # dropout was on


def test_memory_is_that_of_the_engine(tmp_path):
    model = live_model()
    expected = dynadapt.Engine(copy.deepcopy(model), memory=SegmentMemory(length=T, sinks=4), segment=T, dtype="fp32")
    wanted = torch.cat([expected.step(HELD_OUT[start : start + T + 1][None])[0] for start in range(0, len(HELD_OUT) - 1, T)]).mean()
    trainer = train(model, tmp_path, HeldOutScore(HELD_OUT, steps=[0], segment=T, memory=T))
    assert values(trainer)[0] == (0, pytest.approx(float(wanted), abs=1e-6))
    assert [step for step, _ in values(trainer)] == [0, STEPS]


def test_a_model_that_the_engine_refuses_is_scored_by_its_own_forward(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(live_model(), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    watch = Watch()
    with pytest.warns(UserWarning, match="scored by the model's own forward: .*PEFT"):
        trainer = train(model, tmp_path, watch, HeldOutScore(HELD_OUT, steps=1, segment=T))
    assert [nll for _, nll in values(trainer)][:STEPS] == pytest.approx(watch.nll, abs=1e-5)
    with pytest.raises(ModelError, match="PEFT"):
        train(model, tmp_path, HeldOutScore(HELD_OUT, steps=1, segment=T, memory=T))


def test_bits_per_byte_and_what_the_trainer_reports_to(tmp_path):
    from tiny import english, tiny_tokenizer

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer())
    text = english(30, seed=4)
    (tmp_path / "held-out.txt").write_text(text)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    model = to_transformers(random_model(tiny_config("llama", vocab_size=len(tokenizer)), seed=1, std=0.2))
    heard = []

    class Reporter(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **more):
            heard.append(dict(logs))

    callback = HeldOutScore(tmp_path / "held-out.txt", steps=2, tokenizer=tokenizer, segment=T)
    trainer = train(model, tmp_path / "out", Reporter(), add=[callback])
    size = len(text.encode()) - len(tokenizer.decode(tokens[:1]).encode())
    for made, nll, bits in callback.history:
        assert bits == pytest.approx(nll * (len(tokens) - 1) / (math.log(2) * size))
    assert [made for made, *_ in callback.history] == [0, 2, 4, STEPS]
    assert [entry["dynadapt/heldout_nll"] for entry in heard if "dynadapt/heldout_nll" in entry] == [nll for _, nll, _ in callback.history]
    assert values(trainer, "dynadapt/heldout_bits_per_byte") == [(made, bits) for made, _, bits in callback.history]


@pytest.fixture(scope="module")
def begun():
    """(tokenizer that puts a token before a text and one behind it, a model, a text)."""
    from tiny import english, tiny_tokenizer
    from tokenizers import processors

    backend, name = tiny_tokenizer(), "<|endoftext|>"
    backend.add_special_tokens([name])
    put = processors.TemplateProcessing(single=f"{name} $A {name}", special_tokens=[(name, backend.token_to_id(name))])
    backend.post_processor = put
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=name)
    return tokenizer, to_transformers(random_model(tiny_config("llama", vocab_size=len(tokenizer)), seed=1, std=0.2)), english(30, seed=4)


@torch.no_grad()
def in_one_segment(model, tokens: list[int]) -> float:
    return float(cross_entropy(model(torch.tensor([tokens[:-1]])).logits[0].double(), torch.tensor(tokens[1:])))


@pytest.mark.parametrize("memory", [0, T])
def test_a_text_begins_as_its_tokenizer_begins_one(begun, memory):
    tokenizer, model, text = begun
    ids, whole = tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer(text)["input_ids"][:-1]
    assert whole == [tokenizer.bos_token_id, *ids]
    callback = HeldOutScore(text, tokenizer=tokenizer, segment=len(ids), memory=memory)
    assert callback.score(model) == pytest.approx(in_one_segment(model, whole), abs=1e-5)
    assert callback._bytes == len(text.encode())  # every byte is scored, and the token before them has none
    without = HeldOutScore(text, tokenizer=tokenizer, segment=len(ids), memory=memory, bos="no")
    assert without.score(model) == pytest.approx(in_one_segment(model, ids), abs=1e-5)
    assert without._bytes == len(text.encode()) - len(tokenizer.decode(ids[:1]).encode())


@torch.no_grad()
@pytest.mark.parametrize("by_engine", [True, False])
@pytest.mark.parametrize("bos", ["auto", "no"])
@pytest.mark.parametrize("rows", [1, 3])
def test_every_segment_begins_as_the_text_does(begun, by_engine, bos, rows, segment=5):
    tokenizer, model, text = begun
    begin = [tokenizer.bos_token_id] if bos == "auto" else []
    tokens, losses = [*begin, *tokenizer(text, add_special_tokens=False)["input_ids"]], []
    for start in range(0, len(tokens) - 1, segment):
        row = torch.tensor([[*(begin if start else []), *tokens[start : start + segment + 1]]])
        losses.append(cross_entropy(model(row[:, :-1]).logits[0].double(), row[0, 1:], reduction="none")[len(begin) if start else 0 :])
    callback = HeldOutScore(text, tokenizer=tokenizer, segment=segment, rows=rows, bos=bos)
    callback._by_engine = by_engine
    assert sum(map(len, losses)) == len(tokens) - 1
    assert callback.score(model) == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)


def test_a_text_that_spells_its_beginning_is_not_given_a_second_one(begun):
    tokenizer, model, text = begun
    spelled = HeldOutScore(tokenizer.bos_token + text, tokenizer=tokenizer)
    plain = HeldOutScore(text, tokenizer=tokenizer)
    assert spelled.score(model) == plain.score(model) and spelled._bytes == plain._bytes
    assert torch.equal(spelled._tokens, plain._tokens)


def test_a_beginning_that_is_asked_for(begun):
    _, model, text = begun
    from tiny import tiny_tokenizer

    backend = tiny_tokenizer()
    plain = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    named = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>")
    by_default, asked = HeldOutScore(text, tokenizer=named), HeldOutScore(text, tokenizer=named, bos="yes")
    assert by_default.score(model) != asked.score(model)
    assert asked._tokens.tolist() == [named.bos_token_id, *by_default._tokens.tolist()]
    with pytest.raises(ValueError, match="bos='yes': the tokenizer has no beginning-of-text token"):
        HeldOutScore(text, tokenizer=plain, bos="yes").score(model)


def test_refused_by_name(tmp_path):
    for settings, message in (
        ({"steps": 0}, "steps"),
        ({"segment": 0}, "segment"),
        ({"dtype": "fp8"}, "dtype='fp8'"),
        ({"rows": 0}, "rows"),
        ({"bos": "maybe"}, "bos='maybe': expected one of auto, yes, no"),
    ):
        with pytest.raises(ValueError, match=message):
            HeldOutScore(HELD_OUT, **settings)
    with pytest.raises(ValueError, match="at least 2"):
        HeldOutScore(HELD_OUT[:1]).score(live_model())
    with pytest.raises(ValueError, match="tokenizer: none given"):
        train(live_model(), tmp_path, HeldOutScore("a text"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert HeldOutScore(HELD_OUT, segment=T).score(live_model()) == pytest.approx(by_hand(live_model()), abs=1e-5)

"""add_lora: a live transformers model learns through dynadapt's layers and loss what it learns through PEFT's."""

import copy
import io
import pickle

import pytest
import torch
from helpers import to_transformers, token_rows

from dynadapt.interop.nn import Adapters, LoRALinear, add_lora
from dynadapt.model import random_model, tiny_config

FAMILIES = ["llama", "qwen2", "qwen3", "gpt2", "gemma3", "phi3", "gptneox", "qwen3_5"]
TARGETS = {"all": {"llama": 7, "gpt2": 4}, "attn": {"llama": 4, "gpt2": 2}, "mlp": {"llama": 3, "gpt2": 2}}
EPS = {torch.float32: 1e-5, torch.float64: 1e-12}
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def live(family="llama", dtype=torch.float32):
    torch.manual_seed(0)
    return to_transformers(random_model(tiny_config(family), seed=1, std=0.1), dtype)


def ids(rows=2, count=13, seed=0):
    return token_rows(rows, count, seed)


def moved(model, seed=5):
    """B away from zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05, generator=generator)


def labelled(seed=0):
    tokens = ids(seed=seed)
    labels = tokens.clone()
    labels[0, :4] = labels[1, -2:] = -100
    return {"input_ids": tokens, "labels": labels}


def peft_like(model, adapters, dtype=torch.float32):
    """PEFT's model with the same A and B on the same layers, by its own code."""
    endings = adapters._settings(adapters.record, adapters.modules)["target_modules"]
    theirs = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=adapters.record.rank,
            lora_alpha=adapters.record.alpha,
            target_modules=endings,
            fan_in_fan_out=type(model).__name__.startswith("GPT2"),
            task_type="CAUSAL_LM",
        ),
        autocast_adapter_dtype=False,
    )
    ours = dict(adapters.named_parameters())
    names = {}
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_" in name:
                key = name.removeprefix("base_model.model.").replace(".default.weight", "")
                p.data = ours[key].detach().to(dtype, copy=True)
                names[key] = p
    assert names.keys() == ours.keys()
    return theirs, names


def truth(adapters, family, batch):
    """Loss and gradients of PEFT's model in float64, whose loss is too (transformers' rounds the logits to float32)."""
    theirs, names = peft_like(live(family, torch.float64), adapters, torch.float64)
    logits, labels = theirs(batch["input_ids"]).logits[:, :-1], batch["labels"][:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in names.items()}


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loss", ["fused", "model"])
def test_loss_and_gradients_are_pefts(family, dtype, loss):
    """No further from PEFT in float64 than PEFT in this dtype is, plus EPS of the largest value."""
    model = live(family, dtype)
    adapters = add_lora(model, rank=3, loss=loss)
    moved(model)
    batch = labelled()
    exact, gradients = truth(adapters, family, batch)
    theirs, names = peft_like(live(family, dtype), adapters, dtype)
    ours, expected = model(**batch), theirs(**batch)
    ours.loss.backward()
    expected.loss.backward()
    assert abs(ours.loss.double() - exact) <= abs(expected.loss.double() - exact) + EPS[dtype] * exact
    for name, p in adapters.named_parameters():
        g = gradients[name]
        assert g.abs().max() > 0 and (p.grad - g).abs().max() <= (names[name].grad - g).abs().max() + EPS[dtype] * g.abs().max(), name
    assert all(p.grad is None for name, p in model.named_parameters() if "lora_" not in name)
    assert (ours.logits is None) == (loss == "fused") and ours.loss.dtype == (dtype if loss == "fused" else torch.float32)
    torch.testing.assert_close(model(batch["input_ids"]).logits, theirs(batch["input_ids"]).logits, rtol=EPS[dtype], atol=EPS[dtype])


def test_divided_logits_have_no_fused_loss():
    with pytest.raises(ValueError, match="changes its logits after the head .logits_scaling=3.0.; give loss='model'"):
        add_lora(live("granite"), rank=2, loss="fused")
    add_lora(live("granite"), rank=2, loss="model")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_argument_of_the_loss(family):
    """What transformers' loss takes: items in the batch, shifted labels, another ignored label, no label at all."""
    model, plain = live(family), live(family)
    add_lora(model, rank=2)
    batch = labelled()
    tokens, labels = batch["input_ids"], batch["labels"]
    shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:].contiguous()
    ninety = torch.where(labels == -100, 7, labels)
    calls = [
        dict(labels=labels),
        dict(labels=labels, num_items_in_batch=5),
        dict(labels=labels, num_items_in_batch=torch.tensor(31)),
        dict(labels=ninety, ignore_index=7),
        dict(labels=labels, shift_labels=shifted),
        dict(labels=torch.full_like(labels, -100)),
        dict(labels=labels, attention_mask=torch.ones_like(tokens)),
        dict(labels=labels, output_hidden_states=True),
    ]
    for call in calls:
        ours, theirs = model(tokens, **call), plain(tokens, **call)
        torch.testing.assert_close(ours.loss, theirs.loss, equal_nan=True, rtol=1e-5, atol=1e-6)
        assert ours.logits is None and set(ours.keys()) == set(theirs.keys()) - {"logits"}
    ours, theirs = model(tokens, labels=labels, return_dict=False), plain(tokens, labels=labels, return_dict=False)
    assert isinstance(ours, tuple) and len(ours) == len(theirs) - 1
    torch.testing.assert_close(ours[0], theirs[0])
    with pytest.raises(ValueError, match="labels has shape .*logits_to_keep"):
        model(tokens, labels=labels, logits_to_keep=3)
    torch.testing.assert_close(model(tokens, logits_to_keep=3).logits, model(tokens).logits[:, -3:])
    with pytest.raises(ValueError, match="target"):
        model(tokens, labels=torch.full_like(labels, 5000))
    assert model(tokens).logits.shape[-1] == model.config.vocab_size  # a call that failed leaves nothing behind


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("targets", [*TARGETS, "endings", "expression"])
def test_targets(family, targets):
    model = live(family)
    layers = model.config.num_hidden_layers
    named = {
        "llama": (["q_proj", "mlp.down_proj"], r".*\.0\.self_attn\.(q|v)_proj"),
        "gpt2": (["c_attn", "mlp.c_proj"], r"transformer\.h\.0\..*c_(attn|fc)"),
    }
    given = targets if targets in TARGETS else named[family][targets == "expression"]
    adapters = add_lora(model, rank=2, targets=given)
    expected = TARGETS[targets][family] * layers if targets in TARGETS else 2 * layers if targets == "endings" else 2
    assert len(adapters.modules) == expected and "lm_head" not in adapters.modules
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {n for n, _ in adapters.named_parameters()}
    assert len(adapters.parameters()) == 2 * expected


@pytest.mark.parametrize(
    "arguments, said",
    [
        (dict(targets=["q_proj", "nix"]), "'nix' matches no module.*model.layers.\\*.self_attn.q_proj"),
        (dict(targets="q_proj"), "for all modules whose name ends so give \\['q_proj'\\]"),
        (dict(targets=["embed_tokens"]), "names model.embed_tokens, a Embedding"),
        (dict(targets="(q"), "no regular expression"),
        (dict(targets=[]), "matches no linear layer"),
        (dict(targets=None), "targets=None"),
        (dict(targets=[3]), "targets="),
        (dict(targets=["lm_head"]), "names the head"),
        (dict(rank=0), "rank=0"),
        (dict(rank=2.5), "rank=2.5"),
        (dict(alpha="x"), "alpha='x'"),
        (dict(alpha=float("nan")), "alpha=nan"),
        (dict(loss="mean"), "loss='mean': expected one of fused, model"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_changes_nothing(arguments, said):
    model = live()
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=said):
        add_lora(model, **arguments)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert all(p.requires_grad for p in model.parameters())


def test_models_that_do_not_fit_are_refused_by_name():
    with pytest.raises(ValueError, match="model='llama'"):
        add_lora("llama")
    with pytest.raises(ValueError, match="weight has dtype torch.float16"):
        add_lora(live().half())
    hooked = live()
    hooked.model.layers[1].self_attn.q_proj.register_forward_hook(lambda *a: None)
    with pytest.raises(ValueError, match="model.layers.1.self_attn.q_proj: .* has hooks"):
        add_lora(hooked)
    assert hooked.model.layers[0].self_attn.q_proj.weight.requires_grad
    plain = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    with pytest.raises(ValueError, match="Sequential, without a language-model head.*loss='model'"):
        add_lora(plain)
    assert len(add_lora(plain, rank=2, loss="model").modules) == 2 and plain(torch.ones(3, 4)).shape == (3, 2)
    scaled = live()
    scaled.config.logits_scaling = 4.0
    with pytest.raises(ValueError, match="logits_scaling=4.0"):
        add_lora(scaled)
    own = live()
    own.loss_function = lambda **_: None
    with pytest.raises(ValueError, match="a loss or a forward of its own"):
        add_lora(own)
    twice = live()
    add_lora(twice, rank=2)
    with pytest.raises(ValueError, match="adapters already"):
        add_lora(twice)
    with pytest.raises(ValueError, match="adapters already"):
        add_lora(peft.get_peft_model(live(), peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")), loss="model")
    with pytest.raises(ValueError, match="without adapters of add_lora"):
        Adapters(live())


def test_logits_that_change_after_the_head_are_noticed():
    from transformers import LlamaForCausalLM

    class Doubled(LlamaForCausalLM):
        def forward(self, input_ids=None, labels=None, **kwargs):
            logits = 2 * self.lm_head(self.model(input_ids).last_hidden_state)
            return {"loss": self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size), "logits": logits}

    model = Doubled(live().config)
    add_lora(model, rank=2)
    with pytest.raises(ValueError, match="Doubled changes its logits between head and loss"):
        model(**labelled())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", ["all", "mlp", "one"])
def test_peft_loads_what_is_saved(tmp_path, family, targets):
    model = live(family)
    one = r".*\.1\.mlp\.(c_proj|down_proj|dense_4h_to_h)"
    adapters = add_lora(model, rank=3, alpha=5, targets=one if targets == "one" else targets)
    moved(model)
    adapters.save(tmp_path / "new" / "adapter")
    theirs = peft.PeftModel.from_pretrained(live(family), tmp_path / "new" / "adapter")
    loaded = {n.removeprefix("base_model.model.").replace(".default.weight", ""): p for n, p in theirs.named_parameters() if "lora_" in n}
    assert loaded.keys() == dict(adapters.named_parameters()).keys()
    assert all(torch.equal(p, loaded[name]) for name, p in adapters.named_parameters())
    torch.testing.assert_close(model(ids()).logits, theirs(ids()).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_and_removed(family):
    model = live(family)
    model.get_input_embeddings().requires_grad_(False)
    plain, kinds = model(ids()).logits, {n: type(m) for n, m in model.named_modules()}
    weights = dict(model.named_parameters())
    learned = {n for n, p in model.named_parameters() if p.requires_grad}
    adapters = add_lora(model, rank=2)
    torch.testing.assert_close(model(ids()).logits, plain, rtol=1e-4, atol=1e-5)
    moved(model)
    expected, batch = model(ids()).logits, labelled()
    loss = model(**batch).loss
    merged = Adapters(copy.deepcopy(model)).merge()
    torch.testing.assert_close(merged(ids()).logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(merged(**batch).loss, loss, rtol=1e-5, atol=1e-6)
    assert merged(**batch).logits is not None and not any("lora" in n for n in merged.state_dict())
    assert adapters.remove() is model and torch.equal(model(ids()).logits, plain)
    assert {n: type(m) for n, m in model.named_modules()} == kinds and dict(model.named_parameters()).keys() == weights.keys()
    assert all(p is weights[n] for n, p in model.named_parameters())
    assert {n for n, p in model.named_parameters() if p.requires_grad} == learned
    with pytest.raises(ValueError, match="merged or removed"):
        adapters.save("nowhere")
    assert "merged or removed" in repr(adapters)
    add_lora(model, rank=2)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_copies_and_files(tmp_path, family):
    """deepcopy, pickle, torch.save, state_dict and save_pretrained: the copy computes the same and learns by itself."""
    model = live(family)
    adapters = add_lora(model, rank=2)
    moved(model)
    loss = model(**labelled()).loss
    assert f"of {type(model).__name__}, rank=2, alpha=4, {len(adapters.modules)} layers" in repr(adapters)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert torch.equal(other(**labelled()).loss, loss) and other(**labelled()).logits is None
        assert all(module.lora_A is not adapters.modules[name].lora_A for name, module in Adapters(other).modules.items())
        other(**labelled()).loss.backward()
        assert all(p.grad is not None for p in Adapters(other).parameters()) and all(p.grad is None for p in adapters.parameters())
    fresh = live(family)
    add_lora(fresh, rank=2)
    assert not fresh.load_state_dict(model.state_dict()).missing_keys
    assert torch.equal(fresh(**labelled()).loss, loss)
    model.save_pretrained(tmp_path)
    assert type(model).__name__ in (tmp_path / "config.json").read_text()
    assert isinstance(model, type(live(family)))
    assert torch.equal(
        model.generate(ids(1, 4), max_new_tokens=3, do_sample=False),
        copy.deepcopy(model).generate(ids(1, 4), max_new_tokens=3, do_sample=False),
    )


def test_a_tied_head_stays_tied():
    model = live("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    adapters = add_lora(model, rank=2)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert copy.deepcopy(model).lm_head.weight is not model.lm_head.weight
    other = copy.deepcopy(model)
    assert other.lm_head.weight is other.transformer.wte.weight
    assert adapters.merge().lm_head.weight is model.transformer.wte.weight


def losses(model, adapters, steps=4, context=None, compiled=None):
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=0.01)
    found = []
    for i in range(steps):
        with context() if context else torch.enable_grad():
            loss = (model if compiled is None else compiled)(**labelled(i % 2)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_checkpointing_learns_the_same(family):
    model = live(family).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.manual_seed(3)
    adapters = add_lora(model, rank=2)
    other = copy.deepcopy(model)
    other.gradient_checkpointing_enable()
    other.enable_input_require_grads()
    expected = losses(model, adapters)
    assert losses(other, Adapters(other)) == pytest.approx(expected, rel=1e-6) and expected[-1] < expected[0]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_autocast(family):
    model = live(family)
    adapters = add_lora(model, rank=2)
    other = copy.deepcopy(model)
    expected = losses(model, adapters)
    found = losses(other, Adapters(other), context=lambda: torch.autocast("cpu", torch.bfloat16))
    assert found == pytest.approx(expected, abs=0.03) and found != expected
    with torch.autocast("cpu", torch.bfloat16):
        assert other(**labelled()).loss.dtype == torch.float32 and other(ids()).logits.dtype == torch.bfloat16
    half = live(family, torch.bfloat16)
    learned = add_lora(half, rank=2)
    assert {p.dtype for p in learned.parameters()} == {torch.float32}
    assert losses(half, learned) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_compiled(family):
    model = live(family)
    torch.manual_seed(3)
    adapters = add_lora(model, rank=2)
    other = copy.deepcopy(model)
    expected = losses(model, adapters)
    torch._dynamo.reset()
    found = losses(other, Adapters(other), compiled=torch.compile(other, backend="aot_eager", fullgraph=True))
    assert found == pytest.approx(expected, rel=1e-5)


def test_trainer_learns_as_with_peft(tmp_path):
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": ids(1, 9, seed)[0], "labels": ids(1, 9, seed)[0], "unused": 1} for seed in range(8)]

    def trained(model, name):
        arguments = TrainingArguments(
            str(tmp_path / name),
            max_steps=4,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=0.01,
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            seed=1,
            disable_tqdm=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
        trainer.train()
        return [line["loss"] for line in trainer.state.log_history if "loss" in line] + [trainer.evaluate()["eval_loss"]]

    model = live()
    adapters = add_lora(model, rank=2)
    theirs, _ = peft_like(live(), adapters)
    ours = trained(model, "ours")
    assert ours == pytest.approx(trained(theirs, "theirs"), rel=2e-3) and ours[-1] < ours[0]
    assert all(isinstance(module, LoRALinear) for module in adapters.modules.values())

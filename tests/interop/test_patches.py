"""Patches: every bit arrives, and what does not fit is refused before anything changes."""

import numpy as np
import pytest
import torch
from helpers import to_transformers, token_rows
from safetensors.torch import load_file, save_file

import dynadapt
from dynadapt import Adam, Full, LoRA, RowSparse, Slow
from dynadapt.interop.patch_coding import ordered, pack, unordered, unpack, unzigzag, zigzag
from dynadapt.model import random_model, tiny_config
from dynadapt.patches import PatchError, PatchSender, apply_patch, read_patch, write_patch


def bits(state):
    return {name: value.view(torch.int16).clone() for name, value in state.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name].view(torch.int16), b[name].view(torch.int16)) for name in a)


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"b": (7, 33), "a": (5,), "empty": (0, 3), "one": ()}
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


def moved(state, seed=1, share=0.2):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.where(torch.rand(v.shape, generator=generator) < share, v * 1.01 - 1e-3, v) for name, v in state.items()}


def test_every_bf16_number_keeps_its_place_in_the_order():
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16)
    places = ordered(every)
    assert torch.equal(unordered(places).view(torch.int16), every.view(torch.int16)) and len(np.unique(places)) == 1 << 16
    finite = every.isfinite().numpy()
    by_place = every.float().numpy()[finite][np.argsort(places[finite])]
    assert (np.diff(by_place) >= 0).all()


@pytest.mark.parametrize("numbers", [[], [0], [127, 128, 0, 16383, 16384, 2**40, 2**63 - 1], list(range(1000))])
def test_numbers_come_back(numbers):
    numbers = np.array(numbers, dtype=np.int64)
    stored = pack(numbers)
    assert (unpack(stored, len(numbers)) == numbers).all()
    for wrong in (len(numbers) + 1, *([len(numbers) - 1] if len(numbers) else ())):
        with pytest.raises(ValueError, match=f"not {wrong} numbers"):
            unpack(stored, wrong)
    differences = np.array([1, -1, 2, -2, 65535, -65535])
    assert (unzigzag(zigzag(differences)) == differences).all() and zigzag(differences).tolist()[:4] == [1, 0, 3, 2]


def test_a_patch_has_every_bit(tmp_path):
    before = weights()
    after = moved(before)
    after["a"][0], before["a"][1], after["a"][1] = float("-0.0"), 0.0, float("-0.0")  # a sign alone is a change
    after["b"][3, 3], after["b"][3, 4] = 3e38, -1e-40  # far away, and subnormal
    written = write_patch(before, after, tmp_path / "p", number=3)
    read = read_patch(tmp_path / "p")
    assert (read.number, read.changed, read.elements, read.whole_bytes) == (3, written.changed, 237, 474)
    assert read.changed == sum(int((before[n].view(torch.int16) != after[n].view(torch.int16)).sum()) for n in before)
    target = {**{name: value.clone() for name, value in before.items()}, "beside": torch.ones(2)}
    apply_patch(target, tmp_path / "p")
    assert same({name: target[name] for name in after}, after) and torch.equal(target["beside"], torch.ones(2))


def test_nothing_changed_is_a_patch_too(tmp_path):
    before = weights()
    assert write_patch(before, before, tmp_path / "p").changed == 0
    target = {name: value.clone() for name, value in before.items()}
    apply_patch(target, tmp_path / "p")
    assert same(target, before)


def test_views_and_transposes_are_changed_where_they_lie(tmp_path):
    whole = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    after = {"w": (whole.t() * 1.02).contiguous()}
    write_patch({"w": whole.t()}, after, tmp_path / "p")
    target = {"w": whole.t()}
    apply_patch(target, tmp_path / "p")
    assert torch.equal(whole, after["w"].t())


def test_one_flipped_bit_of_a_file_is_refused(tmp_path):
    before = {"a": weights()["a"]}
    write_patch(before, moved(before, share=0.5), tmp_path / "p")
    raw, target = (tmp_path / "p").read_bytes(), {name: value.clone() for name, value in before.items()}
    for place in range(len(raw)):
        for bit in range(8) if place % 7 == 0 else (place % 8,):
            damaged = bytearray(raw)
            damaged[place] ^= 1 << bit
            (tmp_path / "p").write_bytes(damaged)
            with pytest.raises(PatchError):
                apply_patch(target, tmp_path / "p")
            assert same(target, before), (place, bit)


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    before = {"a": weights()["a"]}
    write_patch(before, moved(before, share=0.5), tmp_path / "p")
    raw = (tmp_path / "p").read_bytes()
    for length in (0, 4, 100, len(raw) - 1):
        (tmp_path / "p").write_bytes(raw[:length])
        with pytest.raises(PatchError, match="p: "):
            read_patch(tmp_path / "p")


@pytest.mark.parametrize("name", ["a", "b", "one"])
def test_one_flipped_bit_of_the_base_is_refused_by_name(tmp_path, name):
    before = weights()
    after = moved(before)
    after["one"] = before["one"].clone()  # a tensor in which nothing changes is part of the base as well
    write_patch(before, after, tmp_path / "p")
    target = {key: value.clone() for key, value in before.items()}
    target[name].view(-1).view(torch.int16)[-1] ^= 1
    held = bits(target)
    with pytest.raises(PatchError, match=f"starts from other weights: {name} has sha256"):
        apply_patch(target, tmp_path / "p")
    assert all(torch.equal(held[key], target[key].view(torch.int16)) for key in held)


def chain(tmp_path, count=3):
    states = [weights()]
    for k in range(count):
        states.append(moved(states[-1], seed=k + 1))
        write_patch(states[-2], states[-1], tmp_path / f"{k + 1}", number=k + 1)
    return states


def test_a_chain_is_applied_whole_or_not_at_all(tmp_path):
    states = chain(tmp_path)
    fresh = lambda: {name: value.clone() for name, value in states[0].items()}  # noqa: E731
    target = fresh()
    assert [patch.number for patch in apply_patch(target, [tmp_path / "1", tmp_path / "2"])] == [1, 2]
    assert same(target, states[2])
    with pytest.raises(PatchError, match="patch 2 has been applied to these weights already"):
        apply_patch(target, tmp_path / "2")
    with pytest.raises(PatchError, match="patch 1 starts from other weights"):
        apply_patch(target, tmp_path / "1")
    apply_patch(target, tmp_path / "3")
    assert same(target, states[3])
    for order in (["1", "3"], ["1", "3", "2"], ["1", "2", "2"]):
        target = fresh()
        with pytest.raises(PatchError, match="does not start where .* ends: out of order, or one is missing"):
            apply_patch(target, [tmp_path / name for name in order])
        assert same(target, states[0])
    (tmp_path / "3").write_bytes(b"")
    with pytest.raises(PatchError, match="3: not a whole safetensors file"):
        apply_patch(target, [tmp_path / name for name in "123"])
    assert same(target, states[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("a"), "is for a tensor a, which is not there"),
        (lambda s: s.update(b=s["b"].flatten()), r"is for b of bf16 \[7, 33\]; there it is a tensor \(231,\)"),
        (lambda s: s.update(b=s["b"].float()), "is for b of bf16 .* of float32"),
    ],
)
def test_another_target_is_refused(tmp_path, change, message):
    chain(tmp_path, 1)
    target = weights()
    change(target)
    with pytest.raises(PatchError, match=message):
        apply_patch(target, tmp_path / "1")


def test_what_is_no_patch_or_can_be_none_is_refused(tmp_path):
    state = weights()
    save_file({"a": state["a"]}, str(tmp_path / "other"))
    with pytest.raises(PatchError, match="other: not a patch"):
        read_patch(tmp_path / "other")
    with pytest.raises(PatchError, match="only one of them has b"):
        write_patch(state, {name: state[name] for name in ("a", "one", "empty")}, tmp_path / "p")
    with pytest.raises(PatchError, match=r"before\['a'\]=a tensor \(5,\) of float32: expected a tensor of bf16"):
        write_patch({"a": state["a"].float()}, {"a": state["a"]}, tmp_path / "p")
    with pytest.raises(PatchError, match=r"after\['a'\] has shape \[1, 5\]; before it had \[5\]"):
        write_patch({"a": state["a"]}, {"a": state["a"][None]}, tmp_path / "p")
    with pytest.raises(PatchError, match=r"after\['a'\] holds 5 values that are NaN or infinite"):
        write_patch({"a": state["a"]}, {"a": state["a"] * float("nan")}, tmp_path / "p")
    with pytest.raises(ValueError, match="target=3: expected a module"):
        apply_patch(3, tmp_path / "p")
    assert not (tmp_path / "p").exists()


# ---- from an engine


def engine_of(adapt, family="llama", lr=1e-4, **more):
    model = random_model(tiny_config(family), seed=1, dtype=torch.bfloat16)
    return dynadapt.Engine(model, adapt=adapt, optimizer=Adam(lr=lr), segment=16, dtype="bf16", **more)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen3"])
@pytest.mark.parametrize("targets", ["all", "model"])
def test_a_live_model_follows_a_chain_of_eight(tmp_path, family, targets):
    engine = engine_of(Full(targets=targets), family)
    sender, live = PatchSender(engine), to_transformers(engine.model, torch.bfloat16)
    for k in range(8):
        engine.step(token_rows(1, 17, seed=k))
        patch = sender.send(tmp_path / f"{k}")
        apply_patch(live, tmp_path / f"{k}")
        assert 0 < patch.changed < patch.elements and patch.number == k + 1
        there = live.state_dict()
        assert same({name: there[name] for name in sender.sent}, sender.sent)
    fresh = to_transformers(engine.model, torch.bfloat16)
    apply_patch(fresh, [tmp_path / f"{k}" for k in range(8)])
    assert same(fresh.state_dict(), live.state_dict())


def test_what_is_sent_is_what_the_engine_scores_with(tmp_path):
    engine = engine_of(Full(targets="model"))
    sender, live = PatchSender(engine), to_transformers(engine.model, torch.bfloat16)
    engine.step(token_rows(1, 17))
    sender.send(tmp_path / "p")
    apply_patch(live, tmp_path / "p")
    other = dynadapt.Engine(live, segment=16, dtype="bf16", device="cpu")
    assert torch.equal(other.score(token_rows(2, 17, seed=9)), engine.score(token_rows(2, 17, seed=9)))


@pytest.mark.parametrize("adapt", [LoRA(rank=2), LoRA(rank=2, targets=("q", "head")), RowSparse(density=0.2)])
def test_each_stream_has_patches_of_its_own(tmp_path, adapt):
    engine = engine_of(adapt, streams=2)
    senders = [PatchSender(engine, stream) for stream in (0, 1)]
    held = [{name: value.clone() for name, value in sender.sent.items()} for sender in senders]
    for k in range(3):
        engine.step(token_rows(2, 17, seed=k))
        for stream, sender in enumerate(senders):
            sender.send(tmp_path / f"{stream}-{k}")
            apply_patch(held[stream], tmp_path / f"{stream}-{k}")
            assert same(held[stream], sender.sent)
    assert not same(held[0], held[1])
    with pytest.raises(PatchError, match="starts from other weights"):
        apply_patch(held[1], tmp_path / "0-2")


def test_small_updates_of_an_adapter_add_up_to_what_the_sender_has(tmp_path):
    """Each update is far below a step of bf16 of A; their sum is not, and arrives whole."""
    engine = engine_of(LoRA(rank=2), lr=2e-6)
    sender = PatchSender(engine)
    held, start = ({name: value.clone() for name, value in sender.sent.items()} for _ in range(2))
    few = 0
    for k in range(60):
        engine.step(token_rows(1, 17))
        patch = sender.send(tmp_path / "p")
        few += patch.changed < patch.elements // 2
        apply_patch(held, tmp_path / "p")
    dynadapt.publish(engine, tmp_path, "a")
    masters = load_file(tmp_path / "a-v1" / "adapter_model.safetensors")  # in float32
    assert same(held, {name: value.bfloat16() for name, value in masters.items()})
    As = [name for name in held if "lora_A" in name]
    assert few > 30 and all((held[name] != start[name]).any() for name in As)


def test_a_chain_goes_on_with_another_sender(tmp_path):
    engine = engine_of(LoRA(rank=2))
    first = PatchSender(engine)
    held = {name: value.clone() for name, value in first.sent.items()}
    for k, make in enumerate([lambda: first, lambda: PatchSender(engine, sent=first.sent, number=first.number)]):
        sender = make()
        engine.step(token_rows(1, 17, seed=k))
        assert sender.send(tmp_path / f"{k}").number == k + 1
    apply_patch(held, [tmp_path / "0", tmp_path / "1"])
    assert same(held, sender.sent)
    with pytest.raises(PatchError, match="sent has not the tensors of this engine"):
        PatchSender(engine_of(LoRA(rank=3)), sent=first.sent)


def test_a_patch_that_could_not_be_written_is_in_the_next(tmp_path):
    engine = engine_of(LoRA(rank=2))
    sender = PatchSender(engine)
    held = {name: value.clone() for name, value in sender.sent.items()}
    engine.step(token_rows(1, 17))
    (tmp_path / "taken").mkdir()
    with pytest.raises(RuntimeError, match="taken: can't write"):
        sender.send(tmp_path / "taken")
    sender.send(tmp_path / "p")
    apply_patch(held, tmp_path / "p")
    assert same(held, sender.sent) and sender.number == 1


def test_an_adapter_of_peft_follows(tmp_path):
    peft = pytest.importorskip("peft")
    engine = engine_of(LoRA(rank=2))
    dynadapt.publish(engine, tmp_path, "a")
    live = peft.PeftModel.from_pretrained(
        to_transformers(engine.model, torch.bfloat16), str(tmp_path / "a-v1"), autocast_adapter_dtype=False
    )
    live = live.to(torch.bfloat16)
    sender = PatchSender(engine)
    engine.step(token_rows(1, 17))
    sender.send(tmp_path / "p")
    apply_patch(peft.get_peft_model_state_dict(live), tmp_path / "p")
    assert same({name: value.detach() for name, value in peft.get_peft_model_state_dict(live).items()}, sender.sent)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dynadapt.Engine(random_model(tiny_config("llama"))), "adapt=None: nothing learns"),
        (lambda: engine_of(LoRA(rank=2), slow=Slow()), "slow=Slow.*: an adapter fits the slow level's weights alone"),
        (
            lambda: dynadapt.RateMixture(random_model(tiny_config("llama")), [1e-3, 1e-2], adapt=LoRA(rank=2)),
            "rates=.*: a mixture has weights",
        ),
    ],
)
def test_what_can_not_be_sent_is_refused(make, message):
    with pytest.raises(PatchError, match=message):
        PatchSender(make())

"""One provider of ``dynadapt bench step``, in a process of its own (worker.py).

{"do": "check", "out": FILE} writes NLL and adapter gradients of the first stream, under PEFT's names, with the adapter that the
options name in place.
"""

from __future__ import annotations

from pathlib import Path

import torch

from .worker import Worker, serve

LR = 2e-3


class StepWorker(Worker):
    """Steps over pieces of real text, the same order for all; a provider has `learn(tokens)` and `gradients(adapter, tokens)`."""

    COMMANDS = (*Worker.COMMANDS, "check")

    def __init__(self, o: dict, native: bool):
        super().__init__(o, native)
        self.generator = torch.Generator().manual_seed(1)
        self.texts = [torch.tensor(t, dtype=torch.int64) for t in o["tokens"]]

    def begin(self) -> dict:
        if self.dtype != torch.float64:
            self.step()
        return {}

    def step(self) -> None:
        self.learn(self.texts[int(torch.randint(len(self.texts), (1,), generator=self.generator))])

    def check(self, out: str) -> dict:
        from safetensors.torch import save_file

        save_file(self.gradients(Path(self.options["adapter"]), self.texts[0]), out)
        return {}


class Native(StepWorker):
    """dynadapt's own step."""

    def __init__(self, o: dict):
        super().__init__(o, native=True)
        from dynadapt.adapt import Adam, LoRA
        from dynadapt.engine import Engine
        from dynadapt.model import load

        self.engine = Engine(
            load(o["model"]),
            adapt=LoRA(o["rank"]),
            optimizer=Adam(lr=LR),
            streams=o["streams"],
            segment=o["segment"],
            dtype=o["dtype"],
            base=o["base"],
            backend="cpu",
        )

    def learn(self, tokens) -> None:
        self.engine.step(tokens)

    def flops(self) -> int:
        return sum(n for phase, n in self.engine.last.flops.items() if phase != "update")

    def gradients(self, adapter: Path, tokens) -> dict[str, torch.Tensor]:
        from dynadapt.engine.learners.peft import adapted_modules
        from dynadapt.model.layout import to_hf_rows
        from dynadapt.model.peft import tensor_key

        learner, kept = self.engine.learners[0], {}
        self.engine.load_adapter(adapter)
        update = learner.update

        def looking(*a):
            if not kept:  # the first stream's pass; those of others follow where not all go together
                kept["grad"] = learner.state.grad[:1].clone()
            return update(*a)

        learner.update = looking
        nll = self.engine.step(tokens)[0]
        learner.update = update
        found = {"nll": nll.double()}
        for adapted in adapted_modules(learner, self.engine.config):
            A, Bt = (learner.layout.view(kept["grad"], f"{adapted.layer}.{adapted.group}.{name}")[0] for name in ("A", "Bt"))
            A, Bt = adapted.halves(A, Bt)
            found[tensor_key(adapted.module, "A")] = A.double().contiguous()
            found[tensor_key(adapted.module, "B")] = to_hf_rows(self.engine.config, adapted.part, Bt.t().double()).contiguous()
        for stream in range(self.engine.streams):
            self.engine.reset(stream)
        return found


class Peft(StepWorker):
    """transformers + peft: forward, per-token NLL, backward, clip, Adam. Streams go one after the other."""

    def __init__(self, o: dict):
        super().__init__(o, native=False)
        import peft
        import transformers

        compiled = o["provider"] == "peft-compile"
        transformers.logging.set_verbosity_error()
        base = transformers.AutoModelForCausalLM.from_pretrained(o["directory"], dtype=self.dtype, attn_implementation="sdpa")
        settings = peft.LoraConfig(r=o["rank"], lora_alpha=2 * o["rank"], target_modules="all-linear", task_type="CAUSAL_LM")
        # adapters in the working precision: less work than peft's default of float32 adapters in a bf16 model
        self.live = peft.get_peft_model(base, settings, autocast_adapter_dtype=False)
        self.live.config.use_cache = False
        self.parameters = [p for p in self.live.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=LR, fused=self.dtype != torch.float64)
        if compiled and o["isa"] == "avx2":
            from torch._inductor import config

            config.cpp.simdlen = 256  # it looks at the processor, not at what ATen was told
        self.nll = torch.compile(self._nll, dynamic=False) if compiled else self._nll

    def _nll(self, row):
        logits = self.live(input_ids=row[:, :-1], use_cache=False).logits[0]
        wide = logits if self.dtype == torch.float64 else logits.float()
        return torch.nn.functional.cross_entropy(wide, row[0, 1:], reduction="none")

    def learn(self, tokens) -> None:
        for row in tokens.split(1):
            self.nll(row).mean().backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def gradients(self, adapter: Path, tokens) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        named = {n.replace(".default", ""): p for n, p in self.live.named_parameters() if p.requires_grad}
        before = {n: p.detach().clone() for n, p in named.items()}
        with torch.no_grad():
            for name, value in load_file(str(adapter / "adapter_model.safetensors")).items():
                named[name].copy_(value)
        nll = self.nll(tokens[:1])
        nll.mean().backward()
        found = {"nll": nll.detach().double(), **{n: p.grad.double() for n, p in named.items()}}
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(before[name])
        return found


if __name__ == "__main__":
    serve(lambda o: Native(o) if o["provider"] == "dynadapt" else Peft(o))

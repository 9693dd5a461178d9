"""One provider of ``dynadapt bench step``, in a process of its own.

Reads a command a line from standard input and answers each with a line of JSON: ``check DIR``, ``threads N``, ``time N``,
``ceiling``, ``peak``, ``quit``. A process waiting for its turn uses no processor, so providers take turns without disturbing each
other, and each has its own peak memory and its own thread settings.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

import torch

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
LR = 2e-3


class Native:
    """dynadapt's own step."""

    def __init__(self, o):
        import dynadapt

        self.native = dynadapt.ops.dispatch.native_module()
        self.threads(o["threads"])
        self.o, self.model = o, dynadapt.load(o["model"])
        self.engine = dynadapt.Engine(
            self.model,
            adapt=dynadapt.LoRA(o["rank"]),
            optimizer=dynadapt.Adam(lr=LR),
            streams=o["streams"],
            segment=o["segment"],
            dtype=o["dtype"],
            backend="cpu",
        )

    def threads(self, n: int) -> None:
        torch.set_num_threads(n)
        self.native.set_num_threads(n)

    def step(self, tokens):
        return self.engine.step(tokens)

    def flops(self) -> int:
        return sum(n for phase, n in self.engine.last.flops.items() if phase != "update")

    def check(self, adapter: Path, tokens) -> dict[str, torch.Tensor]:
        """NLL of the first stream and its adapter's gradients, under PEFT's names."""
        from dynadapt.engine.learners.peft import adapted_modules
        from dynadapt.model.peft import tensor_key

        learner, kept = self.engine.learners[0], {}
        self.engine.load_adapter(adapter)
        update = learner.update
        learner.update = lambda *a: (kept.update(grad=learner.state.grad.clone()), update(*a))[1]
        nll = self.engine.step(tokens)[0]
        learner.update = update
        found, rank = {"nll": nll.double()}, self.o["rank"]
        for layer, group, p, lo, hi, module in adapted_modules(learner, self.engine.config):
            A, Bt = (learner.layout.view(kept["grad"], f"{layer}.{group}.{name}")[0] for name in ("A", "Bt"))
            found[tensor_key(module, "A")] = A[p * rank : (p + 1) * rank].double().contiguous()
            found[tensor_key(module, "B")] = Bt[:, lo:hi].t().double().contiguous()
        for stream in range(self.engine.streams):
            self.engine.reset(stream)
        return found


class Peft:
    """transformers + peft: forward, per-token NLL, backward, clip, Adam. Streams go one after the other."""

    def __init__(self, o, compiled: bool):
        import peft
        import transformers

        transformers.logging.set_verbosity_error()
        self.o, self.dtype = o, DTYPES[o["dtype"]]
        self.threads(o["threads"])
        from dynadapt.model.load import directory_of

        directory = directory_of(o["model"])
        base = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=self.dtype, attn_implementation="sdpa")
        target = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        settings = peft.LoraConfig(r=o["rank"], lora_alpha=2 * o["rank"], target_modules=target, task_type="CAUSAL_LM")
        # adapters in the working precision: less work than peft's default of float32 adapters in a bf16 model
        self.live = peft.get_peft_model(base, settings, autocast_adapter_dtype=False)
        self.live.config.use_cache = False
        self.parameters = [p for p in self.live.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=LR, fused=self.dtype != torch.float64)
        if compiled and o["isa"] == "avx2":
            from torch._inductor import config

            config.cpp.simdlen = 256  # it looks at the processor, not at what ATen was told
        self.nll = torch.compile(self._nll, dynamic=False) if compiled else self._nll

    def threads(self, n: int) -> None:
        torch.set_num_threads(n)

    def _nll(self, row):
        logits = self.live(input_ids=row[:, :-1], use_cache=False).logits[0]
        wide = logits if self.dtype == torch.float64 else logits.float()
        return torch.nn.functional.cross_entropy(wide, row[0, 1:], reduction="none")

    def step(self, tokens):
        scores = []
        for row in tokens.split(1):
            nll = self.nll(row)
            nll.mean().backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            scores.append(nll.detach())
        return torch.stack(scores)

    def flops(self) -> int:
        return 0  # the ledger is dynadapt's; rates of all providers use its count

    def check(self, adapter: Path, tokens) -> dict[str, torch.Tensor]:
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


def make(o):
    if o["provider"] == "dynadapt":
        return Native(o)
    return Peft(o, o["provider"] == "peft-compile")


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(o, answer) -> None:
    """Load, make the first step, then obey."""
    generator = torch.Generator().manual_seed(1)
    texts = [torch.tensor(t, dtype=torch.int64) for t in o["tokens"]]
    pick = lambda: texts[int(torch.randint(len(texts), (1,), generator=generator))]  # noqa: E731
    provider = make(o)
    if o["provider"] != "peft-fp64":
        provider.step(pick())
    answer({"first_step_at": time.time()})
    threads = o["threads"]
    for line in sys.stdin:
        command, *rest = line.split()
        if command == "time":
            seconds = []
            for _ in range(int(rest[0])):
                start = time.perf_counter()
                provider.step(pick())
                seconds.append(time.perf_counter() - start)
            answer({"seconds": seconds, "peak_memory_bytes": peak_memory(), "flops": provider.flops()})
        elif command == "threads":
            threads = int(rest[0])
            provider.threads(threads)
            answer({})
        elif command == "check":
            from safetensors.torch import save_file

            save_file(provider.check(Path(rest[0]), texts[0]), rest[1])
            answer({})
        elif command == "ceiling":
            from .ceiling import gemm_ceiling

            answer(gemm_ceiling(DTYPES[o["dtype"]], o["threads"], 1.0))
            provider.threads(threads)
        elif command == "peak":
            from .ceiling import instruction_peak

            answer({"gflops": instruction_peak(DTYPES[o["dtype"]], o["threads"])})
            provider.threads(threads)
        else:
            return


def main() -> None:
    options = json.loads(sys.stdin.readline())
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to standard error

    def answer(record):
        print(json.dumps(record), file=channel, flush=True)

    serve(options, answer)


if __name__ == "__main__":
    main()

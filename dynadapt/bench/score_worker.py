"""One provider of ``dynadapt bench score``, in a process of its own (worker.py).

{"do": "check", "out": FILE} writes the NLL of every token of the first piece.
"""

from __future__ import annotations

import ctypes
import sys

import torch
import torch.nn.functional as F

from .worker import Worker, serve, timed


class ScoreWorker(Worker):
    """Scores pieces of real text, each by itself, the same order for all; a provider has `score(rows) -> nll [S, T]` for ids [S, T+1]."""

    COMMANDS = (*Worker.COMMANDS, "check")

    def __init__(self, o: dict, native: bool):
        super().__init__(o, native)
        self.texts, self.turn = [torch.tensor(piece, dtype=torch.int64) for piece in o["tokens"]], 0

    def begin(self) -> dict:
        if self.dtype != torch.float64:
            self.step()
        return {}

    def step(self) -> None:
        self.turn += 1
        self.score(self.texts[self.turn % len(self.texts)])

    def check(self, out: str) -> dict:
        from safetensors.torch import save_file

        nll = self.score(self.texts[0]).double()
        save_file({"nll": nll}, out)
        return {"nats_per_token": float(nll.mean())}


class Native(ScoreWorker):
    """dynadapt's step with nothing that learns."""

    def __init__(self, o: dict):
        super().__init__(o, native=True)
        from dynadapt.engine import Engine
        from dynadapt.model import load

        sizes = {"streams": o["streams"], "segment": o["segment"]}
        self.engine = Engine(load(o["model"]), **sizes, dtype=o["dtype"], base=o["base"], backend="cpu")

    def score(self, rows: torch.Tensor) -> torch.Tensor:
        for stream in range(len(rows)):
            self.engine.reset(stream)
        return self.engine.step(rows)

    def flops(self) -> int:
        return sum(self.engine.last.flops.values())


class Torch(ScoreWorker):
    """transformers without gradients: forward, per-token NLL of float32 logits. Streams go one after the other or, with `together`, as
    one batch."""

    def __init__(self, o: dict):
        super().__init__(o, native=False)
        self.together, self.warm = False, {False}
        import transformers

        transformers.logging.set_verbosity_error()
        self.live = transformers.AutoModelForCausalLM.from_pretrained(o["directory"], dtype=self.dtype, attn_implementation="sdpa").eval()
        self.live.requires_grad_(False)
        self.live.config.use_cache = False
        compiled = o["provider"] == "torch-compile"
        if compiled:
            from torch._inductor import config

            config.freezing = True  # weights are packed once, as ours are
            if o["isa"] == "avx2":
                config.cpp.simdlen = 256  # it looks at the processor, not at what ATen was told
        self.nll = torch.compile(self._nll, dynamic=False) if compiled else self._nll

    def _nll(self, inputs, targets):
        logits = self.live(input_ids=inputs, use_cache=False).logits.flatten(0, 1)
        nll = F.cross_entropy(logits if self.dtype == torch.float64 else logits.float(), targets.flatten(), reduction="none")
        return nll.view(targets.shape)

    @torch.no_grad()
    def score(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.nll(part[:, :-1], part[:, 1:]) for part in rows.split(len(rows) if self.together else 1)])

    def time(self, runs: int, together: bool = False) -> dict:
        self.together = together
        if together not in self.warm:
            self.warm.add(together)
            timed(self.step, 1)  # the first one of a shape compiles
        return super().time(runs)


class LlamaCpp(ScoreWorker):
    """llama.cpp on the .gguf file itself: one llama_decode that keeps the logits of all tokens, then their NLL by torch where they lie.

    Streams go one after the other. A context for each setting: tokens that go through the layers together (n_ubatch), and its fused attention or the plain one.
    """

    def __init__(self, o: dict):
        super().__init__(o, native=False)
        if o["llama_cpp"]:
            sys.path.insert(0, o["llama_cpp"])
        import llama_cpp

        self.library, self.contexts = llama_cpp, {}
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(o["model"].encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {o['model']}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(o["segment"], 0, 1)
        self.setting = (min(512, o["segment"]), True)

    def threads(self, count: int) -> dict:
        for context in getattr(self, "contexts", {}).values():
            self.library.llama_set_n_threads(context, count, count)
        return super().threads(count)

    def _context(self):
        if self.setting not in self.contexts:
            api, (ubatch, flash) = self.library, self.setting
            settings = api.llama_context_default_params()
            settings.n_ctx = settings.n_batch = self.options["segment"]
            settings.n_ubatch = ubatch
            settings.n_threads = settings.n_threads_batch = self.count
            settings.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else api.LLAMA_FLASH_ATTN_TYPE_DISABLED
            self.contexts[self.setting] = api.llama_init_from_model(self.model, settings)
            if not self.contexts[self.setting]:
                raise RuntimeError(f"llama.cpp makes no context with n_ubatch={ubatch}, flash attention {flash}")
        return self.contexts[self.setting]

    def score(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._score(row) for row in rows])

    def _score(self, row: torch.Tensor) -> torch.Tensor:
        api, context, batch, count = self.library, self._context(), self.batch, len(row) - 1
        for i, token in enumerate(row[:-1].tolist()):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
        batch.n_tokens = count
        api.llama_memory_clear(api.llama_get_memory(context), True)
        if status := api.llama_decode(context, batch):
            raise RuntimeError(f"llama.cpp: llama_decode gave {status}")
        size = count * self.vocabulary
        lies = ctypes.cast(api.llama_get_logits(context), ctypes.POINTER(ctypes.c_float * size)).contents
        return F.cross_entropy(torch.frombuffer(lies, dtype=torch.float32).view(count, -1), row[1:], reduction="none")

    def time(self, runs: int, n_ubatch: int, flash: bool) -> dict:
        self.setting = (n_ubatch, flash)
        if self.setting not in self.contexts:
            timed(self.step, 1)  # the first one of a context makes its buffers
        return super().time(runs)


PROVIDERS = {"dynadapt": Native, "llama.cpp": LlamaCpp}

if __name__ == "__main__":
    serve(lambda o: PROVIDERS.get(o["provider"], Torch)(o))

"""A loopback server that speaks the load and unload endpoints of vLLM and SGLang, with faults on request."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class AdapterServer:
    """``loaded``: name -> path. ``faults``: name -> what happens when it is loaded or unloaded ("refuse", "hang", "drop")."""

    def __init__(self, kind: str, max_rank: int = 16, token: str | None = None, endpoints: bool = True):
        self.kind, self.max_rank, self.token, self.endpoints = kind, max_rank, token, endpoints
        self.loaded: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []
        self.faults: dict[tuple[str, str], str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                outer.answer(self)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.http.shutdown()
        self.http.server_close()

    def answer(self, request) -> None:
        content = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        prefix = "/v1/" if self.kind == "vllm" else "/"
        if not self.endpoints or request.path not in (prefix + "load_lora_adapter", prefix + "unload_lora_adapter"):
            return self.send(request, 404, '{"detail":"Not Found"}')
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return self.send(request, 401, '{"error":"Unauthorized"}')
        what, name = request.path.rsplit("/", 1)[1].removesuffix("_lora_adapter"), content["lora_name"]
        self.calls.append((what, name))
        fault = self.faults.get((what, name))
        if fault == "drop":
            return request.connection.close()
        if fault == "hang":  # the work is done, the answer comes too late
            getattr(self, what)(name, content)
            time.sleep(1.0)
            return self.send(request, 200, "late")
        error = "out of memory" if fault == "refuse" else getattr(self, what)(name, content)
        self.report(request, what, name, error)

    def load(self, name, content):
        if name in self.loaded:
            return f"The lora adapter '{name}' has already been loaded."
        path = Path(content["lora_path"])
        if not (path / "adapter_config.json").is_file():
            return f"Loading lora {name} failed: No adapter found for {path}"
        assert (path / "adapter_model.safetensors").is_file(), "a version is whole when the server hears of it"
        rank = json.loads((path / "adapter_config.json").read_text())["r"]
        if rank > self.max_rank:
            return f"LoRA rank {rank} is greater than max_lora_rank {self.max_rank}."
        self.loaded[name] = str(path)
        return None

    def unload(self, name, content):
        if name not in self.loaded:
            return f"The lora adapter '{name}' cannot be found." if self.kind == "vllm" else f"LoRA adapter {name} is not loaded"
        del self.loaded[name]
        return None

    def report(self, request, what, name, error) -> None:
        if self.kind == "sglang":
            body = {"success": error is None, "error_message": error or "", "loaded_adapters": self.loaded}
            return self.send(request, 200 if error is None else 400, json.dumps(body))
        if error is None:
            return self.send(request, 200, f"Success: LoRA adapter '{name}' {'added' if what == 'load' else 'removed'} successfully.")
        kind, status = ("NotFoundError", 404) if "cannot be found" in error else ("BadRequestError", 400)
        return self.send(request, status, json.dumps({"error": {"message": error, "type": kind, "code": status}}))

    @staticmethod
    def send(request, status, body) -> None:
        try:
            request.send_response(status)
            request.end_headers()
            request.wfile.write(body.encode())
        except OSError:
            pass  # the client has given up

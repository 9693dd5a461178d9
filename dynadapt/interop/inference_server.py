"""The load and unload endpoints of vLLM and SGLang: what ``publish`` asks of a server, and which answers it takes for a yes.

A redirect is refused, not followed: the address that was given is the only one that gets the adapter's path and the token.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from dynadapt.runs.rundir import RunError

ABSENT = re.compile(r"not (?:be )?(?:found|loaded|registered|exist)")
ENDPOINTS = {  # to load, to unload
    "vllm": ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
    "sglang": ("/load_lora_adapter", "/unload_lora_adapter"),
}
KEEP = 2  # versions of an adapter that stay, unless it is asked for otherwise
ANSWER_BYTES, SHOWN_CHARACTERS = 1 << 20, 1000  # SGLang's answer lists every adapter that it has


class PublishError(RunError):
    """An adapter that was not published; what was served before still is."""


@dataclass(frozen=True)
class Server:
    """An inference server. ``kind``: one of ENDPOINTS; ``seconds``: how long it may take to load an adapter.

    ``url``: http(s)://HOST:PORT, with a path in front of the endpoints if need be; no user, password, query or fragment.
    ``directory``: where the server sees the directory that is published to, if not under the same path.
    ``token``: sent as "Authorization: Bearer", for servers that ask for one.
    """

    url: str
    kind: str = "vllm"
    seconds: float = 60.0
    directory: str | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self):
        if self.kind not in ENDPOINTS:
            raise PublishError(f"server={self.kind!r}: expected one of {', '.join(ENDPOINTS)}")
        _check_url(self.url)
        number = isinstance(self.seconds, (int, float)) and not isinstance(self.seconds, bool)
        if not number or not 0 < self.seconds <= threading.TIMEOUT_MAX:
            raise PublishError(f"seconds={self.seconds!r}: expected a number above 0")
        if self.token is not None and (
            not isinstance(self.token, str) or not re.fullmatch(r"[ -~]+", self.token) or self.token.strip() != self.token
        ):
            raise PublishError("token: expected ASCII characters without line ends or spaces around them (it is not shown here)")

    def load(self, name: str, path: Path) -> None:
        """PublishError with the server's own words unless it says that it has loaded the adapter."""
        seen = path if self.directory is None else Path(self.directory) / path.name
        status, answer = self._post(ENDPOINTS[self.kind][0], {"lora_name": name, "lora_path": str(seen)})
        if status == 404 and self.kind == "vllm" and name not in answer:
            answer += " (vLLM has this endpoint with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1)"
        if status != 200 or not self._succeeded(answer, name, loaded=True):
            raise PublishError(f"{self.url} did not load {name}: {self._said(status, answer)}")

    def unload(self, name: str) -> None:
        """PublishError unless the server says that it has unloaded the adapter, or that it does not have it."""
        status, answer = self._post(ENDPOINTS[self.kind][1], {"lora_name": name})
        absent = status in (400, 404) and name in answer and ABSENT.search(answer)
        if not absent and (status != 200 or not self._succeeded(answer, name, loaded=False)):
            raise PublishError(f"{self.url} did not unload {name}: {self._said(status, answer)}")

    def _succeeded(self, answer: str, name: str, loaded: bool) -> bool:
        """Whether the answer is the one that this kind of server gives when it has done what it was asked.

        vLLM: the text "Success: LoRA adapter 'NAME' added successfully." (or removed). SGLang: an object that says "success",
        whatever the status, and which adapters are loaded now.
        """
        if self.kind == "vllm":
            return re.match(rf"\"?Success: LoRA adapter '{re.escape(name)}' \w+ successfully", answer) is not None
        try:
            content = json.loads(answer)
        except (ValueError, RecursionError):
            return False
        if not isinstance(content, dict) or content.get("success") is not True:
            return False
        there = content.get("loaded_adapters")
        return not isinstance(there, dict) or (name in there) == loaded

    def _said(self, status: int, answer: str) -> str:
        unlike = f" (not {self.kind}'s answer to this call)" if status == 200 else ""
        return f"HTTP {status}{unlike}: {answer[:SHOWN_CHARACTERS]}"

    def _post(self, endpoint: str, content: dict) -> tuple[int, str]:
        """(status, answer), within ``seconds`` from the call to the answer's last byte."""
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.token}"} if self.token else {})}
        address = self.url.rstrip("/") + endpoint
        request = urllib.request.Request(address, json.dumps(content).encode(), headers, method="POST")
        done: list = []

        def ask():
            try:
                done.append(self._answer(request))
            except Exception as error:
                done.append(error)

        thread = threading.Thread(target=ask, daemon=True)  # a server that sends a byte now and then never times out by itself
        thread.start()
        thread.join(self.seconds)
        result = done[0] if done else TimeoutError("timed out")
        if isinstance(result, (OSError, ValueError, http.client.HTTPException)):  # refused, no route, timed out, not HTTP
            raise PublishError(f"{address}: {getattr(result, 'reason', result) or type(result).__name__}") from result
        if isinstance(result, Exception):
            raise result
        status, answer, location = result
        if 300 <= status < 400:
            raise PublishError(
                f"{address} answered with a redirect (HTTP {status}) to {_host(address, location)}, which is not "
                "followed: give the address of the server itself"
            )
        return status, answer.replace(self.token, "***") if self.token else answer

    def _answer(self, request):
        try:
            answer = _OPENER.open(request, timeout=self.seconds)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            text = answer.read(ANSWER_BYTES).decode(errors="replace").strip()
            return answer.status, text, answer.headers.get("Location") or ""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments):
        return None  # and so the redirect itself is the answer


_OPENER = urllib.request.build_opener(_NoRedirect)


def _host(address: str, location: str) -> str:
    """The host that a redirect leads to; the rest of its address may be somebody's secret."""
    try:
        return urlsplit(urljoin(address, location)).hostname or "no host"
    except ValueError:
        return "no valid address"


def _check_url(url) -> None:
    shown = re.sub(r"[?#].*", "?...", re.sub(r"//.*@", "//***@", url, flags=re.S), flags=re.S) if isinstance(url, str) else repr(url)
    if isinstance(url, str) and "@" in url:
        raise PublishError(
            f"url={shown!r}: a user or password in an address ends in logs and records and is not used; "
            "give a token (--token-from) to a server that asks for one"
        )
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        fits = parts and parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        fits = False
    if not fits or parts.query or parts.fragment or "?" in url or "#" in url or not re.fullmatch(r"[!-~]+", url):
        raise PublishError(f"url={shown!r}: expected http://HOST:PORT or https://..., without a query")

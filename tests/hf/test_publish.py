"""publish: versions whole or not at all, and a server that always serves something."""

import contextlib
import http.server
import json
import os
import socket
import threading
import time

import pytest
import torch
from adapter_server import AdapterServer
from command_line import call
from safetensors.torch import load_file, save_file

import dynadapt
from dynadapt import LoRA, Server, publish
from dynadapt.interop import publish as module
from dynadapt.interop.publish import PublishError
from dynadapt.model import ModelError, random_model, tiny_config
from dynadapt.runs.rundir import RunError

KINDS = ["vllm", "sglang"]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def engine():
    e = dynadapt.Engine(random_model(tiny_config("llama"), seed=1), adapt=LoRA(rank=2), streams=2, segment=8, dtype="fp32")
    e.step(torch.randint(100, (2, 9), generator=torch.Generator().manual_seed(0)))
    return e


@pytest.fixture
def adapter(engine, tmp_path):
    return publish(engine, tmp_path / "source", "a").path


def names(directory):
    return sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))


def leftovers(directory):
    return [entry.name for entry in directory.iterdir() if entry.name.endswith(".tmp")]


def test_versions_on_disk(engine, tmp_path):
    to = tmp_path / "to"
    paths = [publish(engine, to, "novel", stream=s).path for s in (0, 1)]
    assert [path.name for path in paths] == ["novel-v1", "novel-v2"]
    first, second = (load_file(path / "adapter_model.safetensors") for path in paths)
    assert set(os.listdir(paths[0])) == {"adapter_config.json", "adapter_model.safetensors"}
    assert any(not torch.equal(first[key], second[key]) for key in first)
    publish(paths[0], to, "novel")
    assert names(to) == ["novel-v2", "novel-v3", "novel.json"]  # two are kept
    third = load_file(to / "novel-v3" / "adapter_model.safetensors")
    assert all(torch.equal(first[key], third[key]) for key in first)
    publish(paths[1], to, "novel", keep=1)
    assert names(to) == ["novel-v4", "novel.json"]
    publish(engine, to, "novel.other")
    assert names(to) == ["novel-v4", "novel.json", "novel.other-v1", "novel.other.json"] and not leftovers(to)


def test_a_session_publishes_what_it_has_learned(tmp_path):
    from helpers import to_transformers

    live = to_transformers(random_model(tiny_config("llama"), seed=1))
    with dynadapt.attach(live, adapt=LoRA(rank=2), segment=8) as session:
        session.step(torch.arange(9))
        path = publish(session, tmp_path, "novel").path
        fresh = dynadapt.Engine(session.engine.model, adapt=LoRA(rank=2), segment=8, dtype="fp32")
        fresh.load_adapter(path)
        assert torch.equal(fresh.learners[0].state.master, session.engine.learners[0].state.master)


def test_a_number_is_used_once(engine, tmp_path):
    publish(engine, tmp_path, "a")
    for entry in tmp_path.glob("a-v1/*"):
        entry.unlink()
    (tmp_path / "a-v1").rmdir()
    assert publish(engine, tmp_path, "a").name == "a-v2"
    (tmp_path / "a.json").unlink()
    assert publish(engine, tmp_path, "a").name == "a-v3"  # what lies there counts too


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_takes_the_new_and_gives_up_the_stale(adapter, tmp_path, kind):
    to = tmp_path / "to"
    with AdapterServer(kind) as http:
        server = Server(http.url + "/", kind)
        for count in (1, 2, 3, 4):
            done = publish(adapter, to, "novel", server=server)
            assert http.loaded[f"novel-v{count}"] == str(to / f"novel-v{count}") and done.left == ()
        assert sorted(http.loaded) == ["novel-v3", "novel-v4"]
        assert names(to) == ["novel-v3", "novel-v4", "novel.json"]
        assert http.calls[-2:] == [("load", "novel-v4"), ("unload", "novel-v2")]  # first the new one, then away with the old
        http.loaded.clear()  # the server has been started again
        done = publish(adapter, to, "novel", server=server, keep=1)
        assert done.left == () and sorted(http.loaded) == ["novel-v5"] and names(to) == ["novel-v5", "novel.json"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault, message", [("refuse", "HTTP 400.*out of memory"), ("hang", "timed out"), ("drop", "was taken back")])
def test_a_failure_leaves_the_old_one_served(adapter, tmp_path, kind, fault, message):
    to = tmp_path / "to"
    with AdapterServer(kind) as http:
        server = Server(http.url, kind, seconds=0.3)
        publish(adapter, to, "novel", server=server, keep=1)
        http.faults["load", "novel-v2"] = fault
        with pytest.raises(PublishError, match=message):
            publish(adapter, to, "novel", server=server, keep=1)
        assert names(to) == ["novel-v1", "novel.json"] and not leftovers(to)
        assert sorted(http.loaded) == ["novel-v1"]  # what a late server had loaded after all is unloaded
        assert publish(adapter, to, "novel", server=server, keep=1).name == "novel-v3"
        assert sorted(http.loaded) == ["novel-v3"] and names(to) == ["novel-v3", "novel.json"]


def test_what_can_not_be_unloaded_is_tried_again(adapter, tmp_path):
    to = tmp_path / "to"
    with AdapterServer("vllm") as http:
        server = Server(http.url)
        publish(adapter, to, "novel", server=server, keep=1)
        http.faults["unload", "novel-v1"] = "refuse"
        done = publish(adapter, to, "novel", server=server, keep=1)
        assert [version for version, _ in done.left] == ["novel-v1"] and "out of memory" in done.left[0][1]
        assert names(to) == ["novel-v1", "novel-v2", "novel.json"]  # a server may still read it
        http.faults.clear()
        assert publish(adapter, to, "novel", server=server, keep=1).left == ()
        assert sorted(http.loaded) == ["novel-v3"] and names(to) == ["novel-v3", "novel.json"]


def test_two_servers_share_a_directory(adapter, tmp_path):
    to = tmp_path / "to"
    with AdapterServer("vllm") as one, AdapterServer("sglang") as two:
        publish(adapter, to, "novel", server=Server(one.url), keep=1)
        publish(adapter, to, "novel", server=Server(two.url, "sglang"), keep=1)
        assert names(to) == ["novel-v1", "novel-v2", "novel.json"]  # the first server has not been told of the second version
        publish(adapter, to, "novel", server=Server(one.url), keep=1)
        assert sorted(one.loaded) == ["novel-v3"] and names(to) == ["novel-v2", "novel-v3", "novel.json"]


def test_servers_that_can_not_serve(adapter, tmp_path):
    with AdapterServer("vllm", endpoints=False) as http:
        with pytest.raises(PublishError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            publish(adapter, tmp_path / "to", "novel", server=Server(http.url))
    with AdapterServer("vllm", token="open sesame") as http:
        with pytest.raises(PublishError, match="HTTP 401.*Unauthorized"):
            publish(adapter, tmp_path / "to", "novel", server=Server(http.url))
        server = Server(http.url, token="open sesame")
        assert "sesame" not in repr(server)
        publish(adapter, tmp_path / "to", "novel", server=server)
    with pytest.raises(PublishError, match="refused"):
        publish(adapter, tmp_path / "to", "novel", server=Server(http.url, seconds=2))
    with AdapterServer("vllm", max_rank=1) as http:
        with pytest.raises(PublishError, match="greater than max_lora_rank"):
            publish(adapter, tmp_path / "to", "novel", server=Server(http.url))
        with pytest.raises(PublishError, match="rank 2 exceeds max_rank=1"):
            publish(adapter, tmp_path / "to", "novel", server=Server(http.url), max_rank=1)
        assert [call for call in http.calls if call[0] == "load"] == [("load", "novel-v5")]  # the last one never got that far


def test_a_server_that_sees_the_directory_elsewhere(adapter, tmp_path):
    to = tmp_path / "to"
    (tmp_path / "mounted").symlink_to(to)
    with AdapterServer("vllm") as http:
        publish(adapter, to, "novel", server=Server(http.url, directory=str(tmp_path / "mounted")))
        assert http.loaded["novel-v1"] == str(tmp_path / "mounted" / "novel-v1")


def test_what_is_not_published(engine, adapter, tmp_path):
    to = tmp_path / "to"
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    refused = [
        (dict(name="../escape"), "name='../escape'"),
        (dict(keep=0), "keep=0"),
        (dict(source=tmp_path / "nowhere"), "no such directory"),
        (dict(source=dynadapt.Engine(engine.model, adapt=dynadapt.Full(), segment=8, dtype="fp32")), "adapt=Full"),
        (dict(source=dynadapt.RateMixture(engine.model, [1e-3, 1e-2], adapt=LoRA(2), segment=8, dtype="fp32")), "an adapter of each rate"),
    ]
    for changes, message in refused:
        with pytest.raises(PublishError, match=message):
            publish(**{**dict(source=adapter, to=to, name="novel"), **changes})
    with pytest.raises(PublishError, match="server='triton'"):
        Server("http://localhost", "triton")
    with pytest.raises(PublishError, match="url='localhost:8000'"):
        Server("localhost:8000")
    with pytest.raises(ValueError, match="stream=2"):
        publish(engine, to, "novel", stream=2)
    first = next(iter(tensors))
    save_file({**tensors, first: torch.full_like(tensors[first], float("nan"))}, file)
    with pytest.raises(ModelError, match=f"{first} holds a NaN"):
        publish(adapter, to, "novel")
    file.write_bytes(b"short")
    with pytest.raises(ModelError, match="adapter_model.safetensors: not a whole safetensors file"):
        publish(adapter, to, "novel")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3", "r": 1, "lora_alpha": 1}))
    with pytest.raises(ModelError, match="'IA3'"):
        publish(adapter, to, "novel")
    file.unlink()
    with pytest.raises(PublishError, match="has no adapter_model.safetensors"):
        publish(adapter, to, "novel")
    assert names(to) == [] and not leftovers(to)  # not even a number was used


def test_publishers_take_turns(adapter, tmp_path):
    to, found = tmp_path / "to", []
    threads = [threading.Thread(target=lambda: found.append(publish(adapter, to, "novel", keep=9).name)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"novel-v{i}" for i in range(1, 6)]


def test_a_publisher_that_dies_leaves_no_half_version(adapter, tmp_path, monkeypatch):
    to = tmp_path / "to"
    child = os.fork()
    if not child:
        monkeypatch.setattr(module, "sync_tree", lambda *a, **k: os._exit(9))
        publish(adapter, to, "novel")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert names(to) == [] and len(leftovers(to)) == 1
    assert publish(adapter, to, "novel").name == "novel-v1" and not leftovers(to)


def test_a_full_disk_is_said(adapter, tmp_path, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "sync_tree", full)
    with pytest.raises(PublishError, match="No space left on device"):
        publish(adapter, tmp_path / "to", "novel")
    assert names(tmp_path / "to") == [] and not leftovers(tmp_path / "to")


def test_command_line(adapter, tmp_path, capsys, monkeypatch):
    to = tmp_path / "to"
    assert call("publish", adapter, "--to", to, "--name", "novel") == 0
    assert capsys.readouterr().out.strip() == str(to / "novel-v1")
    with AdapterServer("sglang", token="word") as http:
        words = (
            "publish",
            adapter,
            "--to",
            to,
            "--name",
            "novel",
            "--keep",
            1,
            "--notify",
            http.url,
            "--server",
            "sglang",
            "--token-from",
            "THE_TOKEN",
        )
        assert call(*words) == 2
        assert "THE_TOKEN: this environment variable is not set" in capsys.readouterr().err
        monkeypatch.setenv("THE_TOKEN", "word")
        assert call(*words) == 0 and sorted(http.loaded) == ["novel-v2"]
        http.faults["unload", "novel-v2"] = "refuse"
        assert call(*words) == 0
        assert "warning: novel-v2 is still loaded" in capsys.readouterr().err
    assert call("publish", adapter, "--to", to, "--name", "novel", "--max-rank", 1) == 2
    assert "rank 2 exceeds max_rank=1" in capsys.readouterr().err


# ---- what a server says, and who says it


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers every call with ``status``, ``headers`` and ``body``; ``seen``: (port, path, Authorization) of each."""

    status, headers_to_send, body, seen, delay = 200, {}, b"", [], 0.0

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.append((self.server.server_port, self.path, self.headers.get("Authorization")))
        self.send_response(self.status)
        for name, value in self.headers_to_send.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for i in range(len(self.body)):
                self.wfile.write(self.body[i : i + 1])
                self.wfile.flush()
                time.sleep(self.delay)
        except OSError:
            pass

    do_GET = do_POST

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def answering(status=200, body=b"", delay=0.0, **headers):
    kind = type("Kind", (Answers,), dict(status=status, body=body, delay=delay, headers_to_send=headers, seen=[]))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", kind.seen
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_a_redirect_is_refused_and_nothing_goes_elsewhere(adapter, tmp_path, kind, status):
    with answering(body=b"Success: LoRA adapter 'novel-v1' added successfully.") as (elsewhere, seen):
        location = elsewhere.replace("127.0.0.1", "localhost") + "/taken?key=hidden"
        with answering(status, Location=location) as (front, asked):
            with pytest.raises(PublishError, match=rf"redirect \(HTTP {status}\) to localhost, which is not followed") as refused:
                publish(adapter, tmp_path / "to", "novel", server=Server(front, kind, token="open sesame"))
        assert seen == [] and [call[2] for call in asked] == ["Bearer open sesame"] * 2  # to load, and to take it back
        assert "hidden" not in str(refused.value) and "sesame" not in str(refused.value)
    assert names(tmp_path / "to") == ["novel.json"]


@pytest.mark.parametrize(
    "kind, body",
    [
        ("vllm", b"<html>Welcome</html>"),
        ("vllm", b""),
        ("vllm", b"Success: LoRA adapter 'other-v1' added successfully."),
        ("vllm", b'{"success": true}'),
        ("vllm", b"Bearer open sesame is not known"),
        ("sglang", b"<html>Welcome</html>"),
        ("sglang", b"[true]"),
        ("sglang", b'{"success": "true"}'),
        ("sglang", b"[" * 3000),
        ("sglang", b'{"success": true, "loaded_adapters": {"other-v1": "/x"}}'),
    ],
)
def test_a_page_is_no_success(adapter, tmp_path, kind, body):
    with answering(body=body) as (url, _):
        with pytest.raises(PublishError, match=rf"did not load novel-v1: HTTP 200 \(not {kind}'s answer") as refused:
            publish(adapter, tmp_path / "to", "novel", server=Server(url, kind, token="open sesame"))
    assert "sesame" not in str(refused.value) and len(str(refused.value)) < 2000


def test_a_server_with_many_adapters(adapter, tmp_path):
    many = {f"adapter-{i}": "/a/long/path/to/it" for i in range(2000)} | {"novel-v1": "/x"}
    with answering(body=b"") as (url, _):
        server = Server(url, "sglang")
        assert server._succeeded(json.dumps({"success": True, "loaded_adapters": many}), "novel-v1", loaded=True)
    with AdapterServer("sglang") as http_server:
        http_server.loaded.update(many)
        publish(adapter, tmp_path / "to", "a", server=Server(http_server.url, "sglang"))
        assert "a-v1" in http_server.loaded


def test_an_answer_that_never_ends_times_out(tmp_path):
    with answering(body=b"Success: " * 100, delay=0.1) as (url, _):
        start = time.monotonic()
        with pytest.raises(PublishError, match="timed out"):
            Server(url, seconds=0.4).load("novel-v1", tmp_path)
        assert time.monotonic() - start < 5


def test_what_is_not_http_is_said(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            call, _ = listener.accept()
            call.recv(1 << 16)
            call.sendall(b"220 mail.example ESMTP\r\n\r\n")
            call.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(PublishError, match=f"127.0.0.1:{listener.getsockname()[1]}/v1/load_lora_adapter: "):
            Server(f"http://127.0.0.1:{listener.getsockname()[1]}").load("novel-v1", tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@127.0.0.1:1",
        "https://hunter2@host",
        "http://user:hunter2/x@host/path",
        "http://host/?key=hunter2",
        "http://host/#hunter2",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
        "http://",
        "http://ho st",
        "ftp://host",
        "http://host/\nX: y",
        "http://hóst",
        None,
        8000,
    ],
)
def test_an_address_with_secrets_or_of_no_server_is_refused(url):
    with pytest.raises(PublishError, match="^url=") as refused:
        Server(url)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        dict(token="hunter2\nX: y"),
        dict(token="hunter2 "),
        dict(token=""),
        dict(token="hunter2é"),
        dict(seconds=0),
        dict(seconds=float("nan")),
        dict(seconds="1"),
        dict(seconds=float("inf")),
    ],
    ids=str,
)
def test_settings_of_a_server_are_checked_without_showing_the_token(options):
    with pytest.raises(PublishError, match=f"^{next(iter(options))}") as refused:
        Server("http://localhost:8000", **options)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("content", ["[]", "{}", '{"last": "3", "loaded": {}}', '{"last": 1, "loaded": {"http://a": "a-v1"}}', "{"])
def test_a_damaged_record_is_named(adapter, tmp_path, content):
    (tmp_path / "novel.json").write_text(content)
    with pytest.raises(RunError, match="novel.json"):
        publish(adapter, tmp_path, "novel")
    assert (tmp_path / "novel.json").read_text() == content

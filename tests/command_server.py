"""`dynadapt` and `python` for a shell, from one process that has imported torch already: each call is a fork of it.

Shell blocks of the documents call `dynadapt` dozens of times. Each call gets the caller's arguments, directory, environment and
standard streams, and its exit status, as if it had been started; only the seconds of importing are spent once.

  python command_server.py SOCKET              serves until its standard input ends
  python -S command_server.py SOCKET NAME ...  a call: NAME is dynadapt or python
"""

import json
import os
import socket
import sys

CAPS = {
    "--tokens": 600,
    "--steps": 4,
    "--evaluate": 2,
    "--rows": 4,
    "--iters": 2,
    "--warmup": 1,
    "--seeds": 1,
    "--minutes": 0.05,
    "--streams": 4,
}


DEFAULTS = {("icl", "train"): ("--steps", "4"), ("reweight", "train"): ("--steps", "4"), ("eval",): ("--tokens", "600")}


def small(words: list[str]) -> list[str]:
    """The same command with sizes that a test can wait for: an option of CAPS gets its cap where it asks for more, or is not there."""
    words = list(words)
    for command, (option, value) in DEFAULTS.items():
        if tuple(words[: len(command)]) == command and option not in words:
            words += [option, value]
    for at, word in enumerate(words[:-1]):
        if word in CAPS and float(words[at + 1]) > CAPS[word]:
            words[at + 1] = str(CAPS[word])
    return words


def call(path: str, words: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        request = json.dumps({"words": words, "directory": os.getcwd(), "environment": dict(os.environ)}).encode()
        socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(request)
        return int(server.makefile().readline())


def receive(client) -> tuple[dict, list[int]]:
    size, streams, *_ = socket.recv_fds(client, 8, 3)
    body = b""
    while len(body) < int.from_bytes(size, "big"):
        body += client.recv(1 << 16)
    return json.loads(body), streams


def work(request: dict, streams: list[int]) -> None:
    """The call itself, in the forked process."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in ((0, "r"), (1, "w"), (2, "w")))
    sys.path.insert(0, request["directory"])
    name, *words = request["words"]
    if name == "dynadapt":
        from dynadapt.cli import main

        main(small(words))
    elif words[:1] == ["-m"]:
        import runpy

        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        with open(words[0]) as file:
            exec(compile(file.read(), words[0], "exec"), {"__name__": "__main__"})


def serve(path: str) -> None:
    import selectors
    import traceback

    import matplotlib.pyplot  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import dynadapt.cli  # noqa: F401
    import dynadapt.experiments.dyneval  # noqa: F401

    torch.set_num_threads(1)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        wait = selectors.DefaultSelector()
        for source in (server, sys.stdin):
            wait.register(source, selectors.EVENT_READ)
        while all(key.fileobj is server for key, _ in wait.select()):
            client, _ = server.accept()
            if os.fork():  # the answer is the child's; this process serves the next call, of a pipe perhaps
                client.close()
                continue
            request, streams = receive(client)
            if not (child := os.fork()):
                status = 1
                try:
                    work(request, streams)
                    status = 0
                except SystemExit as end:
                    status = end.code if isinstance(end.code, int) else int(bool(end.code))
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
            client.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
            os._exit(0)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        sys.exit(call(sys.argv[1], sys.argv[2:]))

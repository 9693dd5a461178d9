"""`dynadapt publish`: versions of an adapter, and a server that loads them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .early import check_run
from .parsing import at_least

EXAMPLES = """examples:
  dynadapt publish runs/novel --to adapters --name novel
      adapters/novel-v1, then novel-v2, ...: written whole or not at all, a number never used twice
  dynadapt publish runs/novel --to adapters --name novel --notify http://localhost:8000 --max-rank 16
      and vLLM (--enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=1) serves it as model "novel-v3"
If the server does not load it, the version is taken back and what was served before stays. docs/serving.md has the rest."""


def add_options(command) -> None:
    from dynadapt.interop.inference_server import ENDPOINTS, KEEP, Server

    command.add_argument("source", metavar="RUN|ADAPTER", help="a run with --adapt lora, or a PEFT adapter's directory")
    command.add_argument("--to", required=True, metavar="DIR", help="directory of the versions, made if need be")
    command.add_argument("--name", required=True, metavar="NAME", help="versions are NAME-v1, NAME-v2, ...")
    command.add_argument(
        "--keep",
        type=at_least(1),
        default=KEEP,
        metavar="K",
        help=f"versions that stay on disk and loaded, the new one included (default: {KEEP})",
    )
    command.add_argument("--notify", metavar="URL", help="have the server at this address load it, and unload what is older than --keep")
    command.add_argument("--server", default=Server.kind, choices=tuple(ENDPOINTS), help=f"which server it is (default: {Server.kind})")
    command.add_argument("--max-rank", type=at_least(1), metavar="R", help="refuse a larger rank: the server's --max-lora-rank")
    command.add_argument("--stream", type=at_least(0), default=0, metavar="N", help="which stream's adapter of a run (default: 0)")
    command.add_argument(
        "--timeout",
        type=float,
        default=Server.seconds,
        metavar="X",
        help=f"seconds that the server may take for a call (default: {Server.seconds:g})",
    )
    command.add_argument("--server-directory", metavar="DIR", help="where the server sees --to, if not under the same path")
    command.add_argument("--token-from", metavar="VARIABLE", help="environment variable with the bearer token that the server asks for")


def run(arguments) -> int:
    from dynadapt.interop.inference_server import PublishError, Server

    token = None
    if arguments.token_from:
        token = os.environ.get(arguments.token_from)
        if not token:
            raise PublishError(f"--token-from {arguments.token_from}: this environment variable is not set")
    server = None
    if arguments.notify:
        server = Server(arguments.notify, arguments.server, arguments.timeout, arguments.server_directory, token)
    check_run(arguments.source, "no such directory; give a run or a PEFT adapter")
    from dynadapt.interop.publish import publish

    done = publish(
        Path(arguments.source),
        arguments.to,
        arguments.name,
        keep=arguments.keep,
        server=server,
        max_rank=arguments.max_rank,
        stream=arguments.stream,
    )
    for version, reason in done.left:
        print(f"dynadapt: warning: {version} is still loaded; the next publication tries again ({reason})", file=sys.stderr)
    print(done.path)
    return 0

"""`dynadapt patch apply`: a copy of a model's files with patches applied."""

from __future__ import annotations

EXAMPLES = """examples:
  dynadapt patch apply model-v1 v2.patch --out model-v2
      a new directory with the sender's weights, to the bit, and all else that model-v1 holds
  dynadapt patch apply model-v1 v2.patch v3.patch --out model-v3
      a chain at once; a patch that is missing, comes twice or is out of order is refused
All or nothing: names, shapes and the SHA-256 of every tensor are checked before anything is written, and --out is whole or not there."""


def add_options(command) -> None:
    command.add_argument(
        "base", metavar="BASE", help="the weights to begin with: a model's or adapter's directory, or a .safetensors file; it stays"
    )
    command.add_argument("patches", nargs="+", metavar="PATCH", help="in their order")
    command.add_argument(
        "--out", required=True, metavar="PATH", help="what is made: a directory of a directory, a file of a file; must not exist"
    )


def run(arguments) -> int:
    from dynadapt.interop.patch_files import apply_to_files

    from .patch_make import said

    for patch in apply_to_files(arguments.base, arguments.patches, arguments.out):
        print(said(patch))
    print(arguments.out)
    return 0

"""`dynadapt patch show`: what patches hold."""

from __future__ import annotations

EXAMPLES = """examples:
  dynadapt patch show v2.patch v3.patch
      number, share of the weights that change, bytes; and the tensors of which most changes
  dynadapt patch show v2.patch --json
      every tensor with its shape, how many of its weights change, and its SHA-256 before and after"""

MOST = 10  # tensors that are shown


def add_options(command) -> None:
    command.add_argument("patches", nargs="+", metavar="PATCH")
    command.add_argument("--json", action="store_true", help="print everything as JSON")


def run(arguments) -> int:
    import json

    from dynadapt.interop.patches import read_patch

    from .patch_make import said

    patches = [read_patch(path) for path in arguments.patches]
    if arguments.json:
        print(json.dumps([_described(patch) for patch in patches], indent=2))
        return 0
    for patch in patches:
        print(said(patch))
        changed = sorted(patch.changed_by_tensor().items(), key=lambda item: -item[1])
        width = max((len(name) for name, _ in changed[:MOST]), default=0)
        for name, count in changed[:MOST]:
            if count:
                print(f"  {name:{width}}  {'x'.join(map(str, patch.shapes[name])) or 'scalar':>14}  {count:,}")
        left = sum(count > 0 for _, count in changed[MOST:])
        if left:
            print(f"  and {left:,} tensors more")
    return 0


def _described(patch) -> dict:
    changed = patch.changed_by_tensor()
    return {
        "path": str(patch.path),
        "number": patch.number,
        "changed": patch.changed,
        "weights": patch.elements,
        "bytes": patch.patch_bytes,
        "whole_bytes": patch.whole_bytes,
        "tensors": {
            name: {"shape": list(shape), "changed": changed[name], "before": patch.before[name], "after": patch.after[name]}
            for name, shape in patch.shapes.items()
        },
    }

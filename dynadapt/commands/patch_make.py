"""`dynadapt patch make`: what changed between two states of bf16 weights, as a file."""

from __future__ import annotations

from .parsing import at_least

EXAMPLES = """examples:
  dynadapt patch make model-v1 model-v2 --out v2.patch
      what leads from one directory's weights (or one .safetensors file's) to the other's, both in bf16
  dynadapt patch make model-v2 model-v3 --out v3.patch --number 2
      the next one of a chain: a receiver applies v2.patch, then v3.patch
An update at a low rate leaves most bf16 weights as they are; a patch holds the others alone, and the SHA-256 of every tensor before and
after. `dynadapt patch apply` has every bit of the sender's. docs/serving.md has the rest."""


def add_options(command) -> None:
    command.add_argument("before", metavar="BEFORE", help="what receivers have: a model's or adapter's directory, or a .safetensors file")
    command.add_argument("after", metavar="AFTER", help="what they shall have: the same tensors")
    command.add_argument("--out", required=True, metavar="FILE", help="the patch; one that is there is replaced")
    command.add_argument("--number", type=at_least(1), default=1, metavar="N", help="of the patch in its chain (default: 1)")


def run(arguments) -> int:
    from dynadapt.interop.patch_files import make_patch

    patch = make_patch(arguments.before, arguments.after, arguments.out, arguments.number)
    print(said(patch))
    return 0


def said(patch) -> str:
    """One line about a patch."""
    share = patch.changed / patch.elements if patch.elements else 0.0
    times = (
        f", {patch.whole_bytes / patch.patch_bytes:,.1f} times fewer bytes than the weights"
        if patch.whole_bytes > patch.patch_bytes
        else ""
    )
    return (
        f"{patch.path}: patch {patch.number}, {patch.changed:,} of {patch.elements:,} weights in {len(patch.shapes):,} tensors change "
        f"({share:.2%}); {patch.patch_bytes:,} bytes{times}"
    )

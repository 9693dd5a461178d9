"""The commands of `dynadapt`, a module each.

A module has EXAMPLES (the end of its `--help`, or None), `add_options(command)` and `run(arguments) -> exit status`. What the
options need at once is imported at the top, everything that takes time inside `run`: help and refusals answer without torch.
dynadapt/cli.py is the table of them.
"""

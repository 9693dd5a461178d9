"""Texts that every installation has."""

from __future__ import annotations


def _python_reference() -> str:
    from pydoc_data import topics

    return "\n\n".join(topics.topics[name].strip("\n") for name in sorted(topics.topics)) + "\n"


SOURCES = """
argparse ast collections configparser csv datetime decimal difflib email.message fractions gettext heapq inspect ipaddress json.decoder
logging mailbox optparse pathlib statistics
""".split()


def _python_source() -> str:
    import inspect
    from importlib import import_module

    return "\n\n".join(inspect.getsource(import_module(name)) for name in SOURCES)


BUILTINS = {
    "python-reference": _python_reference,  # the language reference that CPython carries for help(): English prose
    "python-source": _python_source,  # modules of the standard library: code
}

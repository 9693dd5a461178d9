"""Texts that every installation has."""

from __future__ import annotations


def _python_reference() -> str:
    from pydoc_data import topics

    return "\n\n".join(topics.topics[name].strip("\n") for name in sorted(topics.topics)) + "\n"


def _python_source() -> str:
    import argparse  # noqa: E401
    import ast
    import collections
    import configparser
    import csv
    import datetime
    import decimal
    import difflib
    import email.message
    import fractions
    import gettext  # noqa: E401
    import heapq
    import inspect
    import ipaddress
    import json.decoder
    import logging
    import mailbox
    import optparse
    import pathlib
    import statistics

    modules = [
        argparse,
        ast,
        collections,
        configparser,
        csv,
        datetime,
        decimal,
        difflib,
        email.message,
        fractions,
        gettext,
        heapq,
        inspect,
        ipaddress,
        json.decoder,
        logging,
        mailbox,
        optparse,
        pathlib,
        statistics,
    ]
    return "\n\n".join(inspect.getsource(module) for module in modules)


BUILTINS = {
    "python-reference": _python_reference,  # the language reference that CPython carries for help(): English prose
    "python-source": _python_source,  # modules of the standard library: code
}

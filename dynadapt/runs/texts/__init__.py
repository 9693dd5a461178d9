"""The one loader of a user's texts: files, directories, JSON lines, Parquet, gzip, a pipe, built-in texts.

`expand` makes one `Source` a document of them; `dynadapt.text` turns a source into tokens. docs/texts.md says what is accepted.
"""

from .expanding import expand, inputs
from .source import Source, TextError

__all__ = ["Source", "TextError", "expand", "inputs"]

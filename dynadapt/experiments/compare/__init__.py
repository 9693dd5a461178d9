"""Runs over one text, side by side and token by token: `dynadapt compare`.

`read_compared` joins what two or more runs wrote, `summarise` makes the tables, `write_page` one HTML file that needs no other.
"""

from .joined_scores import Compared, read_compared
from .page import write_page
from .tables import summarise

__all__ = ["Compared", "read_compared", "summarise", "write_page"]

"""Manual pages and HTML as plain text: paragraphs are lines, blank lines between them, code kept as it is.

Both are made for a training corpus: what a person reads stays, layout and links go. Not a renderer: tables become lines of cells.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

# ------------------------------------------------------------------------------------------------------------- man pages

CHARACTERS = {
    "aq": "'",
    "dq": '"',
    "lq": "“",
    "rq": "”",
    "oq": "‘",
    "cq": "’",
    "Fo": "«",
    "Fc": "»",
    "Bq": "„",
    "bu": "•",
    "em": "—",
    "en": "–",
    "hy": "-",
    "ha": "^",
    "ti": "~",
    "rs": "\\",
    "co": "©",
    "rg": "®",
    "tm": "™",
    "mu": "×",
    "+-": "±",
    "->": "→",
    "<-": "←",
    "ga": "`",
    "sl": "/",
    "ba": "|",
    "lB": "[",
    "rB": "]",
    "lC": "{",
    "rC": "}",
    "at": "@",
    "sh": "#",
    "Do": "$",
    "de": "°",
    "<=": "≤",
    ">=": "≥",
    "!=": "≠",
    "..": "",
}
ESCAPE = re.compile(
    r"""\\(?:
    f(?:\[[^]]*\]|\(..|.)                        # font
  | [mMFgkYVn](?:\[[^]]*\]|\(..|.)               # colours, registers
  | s(?:[+-]?\d{1,2}|\[[^]]*\]|\([+-]?..)        # size
  | \*(?:\[[^]]*\]|\(..|.)                       # strings
  | [hvwxZloLNXbDHSR]'[^']*'                     # motion, drawing
  | \[(?P<name>[^]]*)\] | \((?P<two>..)          # characters
  | (?P<one>.) )""",
    re.VERBOSE,
)
SINGLE = {"-": "-", "e": "\\", "\\": "\\", "~": " ", " ": " ", "0": " ", "'": "'", "`": "`", "t": "\t", ".": ".", "_": "_", '"': '"'}
SPACED, JOINED = {"B", "I", "SM", "SB"}, {"BR", "RB", "BI", "IB", "IR", "RI"}
BREAKS = {"PP", "P", "LP", "sp", "TP", "TQ", "IP", "HP", "RS", "RE", "SH", "SS", "nf", "fi", "EX", "EE", "br", "TS", "TE"}


def man_to_text(source: str) -> str:
    """The text of a page written with the man macros; "" for an alias of another page (.so) and for mdoc pages (.Dd)."""
    lines = re.sub(r"\\\n", "", source).split("\n")
    if any(line.startswith((".so ", ".Dd")) for line in lines):
        return ""
    page = _Page()
    skipping = False  # a macro's definition, .de to ..
    for line in lines:
        if skipping or line.startswith((".de", ".ig")):
            skipping = not line.startswith("..")
        elif line[:1] in (".", "'"):
            page.macro(line[1:].lstrip())
        else:
            page.text(line)
    return page.finished()


class _Page:
    """The text so far. In fill mode lines of a paragraph are joined. `label` goes in front of the next paragraph (a bullet, a term);
    `tag` says that the next line is a label."""

    def __init__(self):
        self.blocks: list[str] = []
        self.words: list[str] = []
        self.label = ""
        self.verbatim = self.tag = False
        self.table = ""  # "format": between .TS and the line of formats that ends in "."; "rows"

    def macro(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name.startswith('\\"') or not name:
            return
        if name in BREAKS:
            self.close()
        if name in ("SH", "SS"):
            self.label = ""
            self.blocks.append(_plain(" ".join(_arguments(rest))))
        elif name in SPACED or name in JOINED:
            self.text((" " if name in SPACED else "").join(_arguments(rest)))
        elif name == "IP" and rest:
            self.label = _plain(_arguments(rest)[0]).strip()
        elif name in ("nf", "EX"):
            self.verbatim = True
        elif name in ("fi", "EE"):
            self.verbatim = False
        elif name in ("TP", "TQ"):
            self.tag = True
        elif name in ("UR", "MT") and rest:
            self.text(rest)
        elif name == "TS":
            self.table = "format"
        elif name == "TE":
            self.table = ""

    def text(self, line: str) -> None:
        if self.table:
            self._cells(line)
            return
        line = _plain(line)
        if not line.strip() and not self.verbatim:
            self.close()
        elif self.tag:
            self.label = (self.label + "\n" + line.strip()).strip()
            self.tag = False
        else:
            self.words.append(line)

    def _cells(self, line: str) -> None:
        if self.table == "format":
            self.table = "rows" if line.rstrip().endswith(".") else "format"
        elif line.strip(" _=\t"):
            self.words.append(re.sub(r"\s+", " ", _plain(line.replace("T{", "").replace("T}", ""))).strip())

    def close(self) -> None:
        if any(word.strip() for word in self.words):
            block = (
                "\n".join(word.rstrip() for word in self.words)
                if self.verbatim or self.table
                else " ".join(word.strip() for word in self.words)
            )
            space = "" if not self.label else " " if len(self.label) <= 3 else "\n"
            self.blocks.append(self.label + space + block.strip("\n"))
            self.label = ""
        self.words = []

    def finished(self) -> str:
        self.close()
        return "\n\n".join(block for block in self.blocks if block.strip()) + "\n"


def _arguments(rest: str) -> list[str]:
    """A macro's arguments: words, or "quoted" with a doubled quote for a quote."""
    rest = re.sub(r'\s*\\".*', "", rest)
    found = re.findall(r'"((?:[^"]|"")*)"?|([^\s"][^\s]*(?:\\ [^\s]*)*)', rest)
    return [quoted.replace('""', '"') if quoted else word for quoted, word in found] or [""]


def _plain(line: str) -> str:
    line = re.sub(r'\\".*', "", line)

    def replace(match: re.Match) -> str:
        name = match["name"] or match["two"]
        if name:
            code = re.fullmatch(r"u([0-9A-F]{4,6})", name)
            return chr(int(code[1], 16)) if code else CHARACTERS.get(name, "")
        return SINGLE.get(match["one"], "") if match["one"] else ""

    return ESCAPE.sub(replace, line)


# ------------------------------------------------------------------------------------------------------------------ HTML

BLOCKS = set("p div h1 h2 h3 h4 h5 h6 li ul ol dl dt dd table tr pre section blockquote br".split())
UNREAD = {"script", "style", "head", "nav", "footer"}
VOID = {"br", "img", "hr", "meta", "link", "input", "col", "area", "base"}


def html_to_text(source: str, unread: tuple[str, ...] = ()) -> str:
    """The text of a page, without the elements in `unread`, given as "#id" or ".class" (navigation and the like)."""
    reader = _Html(unread)
    reader.feed(source)
    reader.close()
    return reader.text()


class _Html(HTMLParser):
    def __init__(self, unread: tuple[str, ...]):
        super().__init__(convert_charrefs=True)
        self.unread, self.skipped, self.verbatim = set(unread), 0, 0
        self.blocks: list[str] = []
        self.parts: list[str] = []

    def handle_starttag(self, tag, attributes):
        names = [mark + name for key, value in attributes if (mark := {"class": ".", "id": "#"}.get(key)) for name in (value or "").split()]
        if self.skipped or tag in UNREAD or self.unread.intersection(names):
            self.skipped += tag not in VOID
            return
        if tag in BLOCKS:
            self._close()
        self.verbatim += tag == "pre"

    def handle_startendtag(self, tag, attributes):
        if tag in BLOCKS and not self.skipped:
            self._close()

    def handle_endtag(self, tag):
        if self.skipped:
            self.skipped -= tag not in VOID
            return
        if tag in BLOCKS:
            self._close()
        self.verbatim -= tag == "pre" and self.verbatim > 0

    def handle_data(self, data):
        if not self.skipped:
            self.parts.append(data)

    def _close(self):
        text = "".join(self.parts)
        text = text.strip("\n") if self.verbatim else re.sub(r"\s+", " ", text).strip()
        if text.strip():
            self.blocks.append(text)
        self.parts = []

    def text(self) -> str:
        self._close()
        return "\n\n".join(self.blocks) + "\n" if self.blocks else ""

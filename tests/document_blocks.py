"""The code blocks of the documents: where they are, what kind they are, and the commands in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
    "examples/README.md",
)
SHELL, CODE, DATA, OUTPUT = ("", "bash", "sh", "console"), ("python", "c", "cpp"), ("yaml", "json"), ("text",)


@dataclass(frozen=True)
class Block:
    page: str
    line: int  # of its fence, counted from 1
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """A first line that is a comment with a file's name says where the block belongs: `# sweep.yaml`, `/* adapt.c: ... */`."""
        found = re.match(r"(?:#|//|/\*) ([\w.-]+\.(?:py|c|cpp|yaml|json))\b", self.text)
        return found and found[1]

    def commands(self) -> list[str]:
        """Of a shell block; in a `console` block they are the lines after `$ `. A heredoc or a continued line is one command."""
        found, until, more = [], None, False
        for line in self.text.splitlines():
            if until or more:
                found[-1] += "\n" + line
                until = None if line == until else until
            elif self.language == "console":
                if line.startswith("$ "):
                    found.append(line[2:])
                else:
                    continue
            elif line.strip():
                found.append(line)
            else:
                continue
            if not until and (begun := re.search(r"<<-?\s*['\"]?(\w+)", line)):
                until = begun[1]
            more = not until and line.endswith("\\")
        return [command for command in found if not command.startswith("#")]


def blocks(page: str) -> list[Block]:
    found, begun = [], None
    for number, line in enumerate((ROOT / page).read_text().splitlines(), 1):
        fence = re.match(r"\s*(```+|~~~+)(.*)", line)
        if begun is None and fence:
            begun = (number, fence[1], fence[2].strip(), [])
        elif begun and fence and fence[1].startswith(begun[1]) and not fence[2].strip():
            found.append(Block(page, begun[0], begun[2], "\n".join(begun[3]) + "\n"))
            begun = None
        elif begun:
            begun[3].append(line)
    assert begun is None, f"{page}:{begun[0]}: a block that does not end"
    return found


def prose(page: str) -> str:
    """A page without its code blocks, fenced or indented; line breaks are kept."""
    return re.sub(r"(?ms)^\s*(```+|~~~+).*?^\s*\1\s*$", "", (ROOT / page).read_text())

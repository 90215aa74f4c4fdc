"""Refuse docstrings and comments that open with a pronoun or a dangling preposition.

Checked are the docstrings of modules, classes, functions and attributes, the entries of their
sections (``Args`` and the like), and comments. Each finding is printed as ``file:line: text``.

Usage: ``python tools/check_words.py [file or folder ...]``
"""

from __future__ import annotations

import ast
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("mtl_plugins", "tools", "demo", "configs")
REFUSED = re.compile(
    r"(what|those|of|whose|its|their|as for|as in|likewise|which|looks no more|that|the same|so"
    r"|this many|it|they|them|he)\b",
    re.IGNORECASE,
)
SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):")
NAME = re.compile(r"[\w.*`, ]+(\([^)]*\))?: ")


def docstring_openings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every docstring's opening and of every section's entries."""
    for parent in ast.walk(ast.parse(source)):
        body = getattr(parent, "body", None)
        for node in body if isinstance(body, list) else ():
            match node:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield from _openings(text.splitlines(), node.lineno)


def _openings(lines: list[str], start: int) -> Iterator[tuple[int, str]]:
    opened, section, indent = False, "", 0
    for number, line in enumerate(lines, start):
        text = line.strip()
        depth = len(line) - len(line.lstrip())
        if text and not opened:
            opened = True
            yield number, text
        elif match := SECTION.fullmatch(text):
            section, indent = match[1], 0
        elif text and section:
            first, indent = not indent, indent or depth
            if depth < indent:
                section = ""
            elif section in ("Returns", "Yields"):  # prose: its later lines are no entries
                if first:
                    yield number, text
            elif depth == indent:
                yield number, NAME.sub("", text, count=1)


def comment_openings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every comment, of a block of comments only its first line."""
    last = (0, 0)
    lines = iter(source.splitlines(keepends=True))
    for token in tokenize.generate_tokens(lambda: next(lines, "")):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            if last != (row - 1, column):
                yield row, token.string.lstrip("#! ")
            last = token.start


def findings(source: str) -> list[tuple[int, str]]:
    """Return the line and the text of every opening of ``source`` that is refused, in order."""
    openings = [*docstring_openings(source), *comment_openings(source)]
    return sorted((number, text) for number, text in openings if REFUSED.match(text))


def main(paths: list[str]) -> int:
    """Print the findings in ``paths`` and return how many there are."""
    count = 0
    for path in map(Path, paths):
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            for number, text in findings(file.read_text(encoding="utf-8")):
                print(f"{file}:{number}: {text}")
                count += 1
    return count


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(FOLDERS)) > 0)

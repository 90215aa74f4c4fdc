"""Turns the reStructuredText of docstrings into the Markdown that mkdocstrings renders."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

# A directive with its text on the same line and on the indented ones below.
_MATH = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +\S.*| *(?=\n)))*)", re.MULTILINE)
_LINK = re.compile(r"`([^`<]+?)\s*<([^>`]+)>`_")
_ROLE = re.compile(r":(?:class|meth|func|attr|mod):`~?([^`]+)`")
_INLINE = re.compile(r":math:`([^`]+)`")


class Rst(griffe.Extension):
    """Rewrite every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """Return a docstring with its math, links and roles in Markdown."""
    text = _MATH.sub(_display, text)
    text = _INLINE.sub(lambda found: rf"\({found[1]}\)", text)
    text = _LINK.sub(lambda found: f"[{' '.join(found[1].split())}]({found[2]})", text)
    return re.sub(r"``([^`]+)``", r"`\1`", _ROLE.sub(r"`\1`", text))


def _display(found: re.Match[str]) -> str:
    first, _, rest = found[2].partition("\n")
    body = textwrap.dedent(rest).strip("\n")
    lines = [line for line in (first.strip(), *body.splitlines()) if line.strip()]
    return "\n".join(found[1] + line for line in (r"\[", *lines, r"\]")) + "\n"

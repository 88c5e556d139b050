"""Turns the reStructuredText of docstrings into Markdown when the pages are built.

Docstrings are written for `help` and for editors, with the few marks of
reStructuredText that optax and flax use, too: roles and blocks of math, links, and
indented code after `::`. mkdocstrings reads Markdown.
"""

import re
import textwrap

import griffe

_LINK = re.compile(r"`([^`<]+?)\s*<(https?://[^>]+)>`_+")
_INLINE_MATH = re.compile(r":math:`([^`]+)`")
_MATH_ON_THE_LINE = re.compile(r"^( *)\.\. math:: *(\S.*)$", re.MULTILINE)
_BLOCK = re.compile(r"^(?P<indent> *)(?P<start>\.\. math::|.*\S::)$")


class Docstrings(griffe.Extension):
    """Rewrites each docstring before its sections are parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Rewrites the docstring of a module, class, function or attribute."""
        del kwargs
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Returns a docstring with its reStructuredText written as Markdown."""
    text = _LINK.sub(lambda link: f"[{' '.join(link[1].split())}]({link[2]})", text)
    text = _INLINE_MATH.sub(lambda math: f"${' '.join(math[1].split())}$", text)
    text = _MATH_ON_THE_LINE.sub(r"\1.. math::\n\1  \2", text)
    lines, result = text.split("\n"), []
    while lines:
        block = _BLOCK.match(lines[0])
        if not block:
            result.append(lines.pop(0))
            continue
        indent, start = block["indent"], block["start"]
        lines.pop(0)
        body = []
        while lines and (not lines[0] or lines[0].startswith(indent + "  ")):
            body.append(lines.pop(0))
        body = textwrap.dedent("\n".join(body)).strip("\n").split("\n")
        if start == ".. math::":
            is_aligned = any("&" in line for line in body)
            opening = [r"$$\begin{aligned}"] if is_aligned else ["$$"]
            closing = [r"\end{aligned}$$"] if is_aligned else ["$$"]
        else:
            # A colon alone at the end would begin a section of Google style.
            result += [f"{indent}{start[:-1].removesuffix('Example:')}"] * (
                start != "Example::"
            )
            opening, closing = ["", "```python"], ["```"]
        result += [
            indent + line if line else "" for line in [*opening, *body, *closing]
        ]
        result.append("")
    return "\n".join(result)

"""Each decimal number in the prose has its claim, with an agreeing value, or its source.

A number is looked at in its own paragraph, list item or table row. It is backed when the same
paragraph refers to a claim, ``(claim 2.1)``, that measured, expected or bounds that number; or
when its own sentence or table cell cites a source, ``[...](references.md#key)``. Code and
mathematics are not prose: settings and given quantities stand there. Neither are the numbers of
sections, equations and versions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from book.source import Line

_FENCE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.DOTALL | re.MULTILINE)
_NOT_PROSE = re.compile(
    r"<!--.*?-->|``.+?``|`[^`\n]+`|\$\$.*?\$\$|(?<![\\$])\$(?!\s)[^$]+?(?<!\s)\$|"
    r"\\begin\{(\w+\*?)\}.*?\\end\{\1\}|<[^<>\n]+>",
    re.DOTALL,
)
_CITATION = re.compile(r"\[[^\]]*\]\((?:\./)?references\.md#[\w-]+\)")
_LINK_TARGET = re.compile(r"\]\([^()\s]*\)")
_LIST = r"\(?\d+(?:\.\d+)+\)?(?:(?:,|\s+and|\s+to|\s*-|\s*\u2013)\s*\(?\d+(?:\.\d+)+\)?)*"
_NUMBERED = re.compile(
    r"\b(?:claims?|exercises?|sections?|secs?\.?|eqs?\.?|equations?|figures?|figs?\.?|tables?|"
    r"chapters?|appendix|app\.|algorithms?|alg\.?|versions?|python|pytorch|torch|numpy|arxiv:?)"
    r"\s*" + _LIST,
    re.IGNORECASE,
)
_CLAIMS = re.compile(r"\(claims?\s+([^()]*)\)", re.IGNORECASE)
_ID = re.compile(r"\b\d+\.\d+\b")
_HEADING_NUMBER = re.compile(r"^#{1,6}\s+\d+(?:\.\d+)*\.?\s", re.MULTILINE)
_DECIMAL = re.compile(r"(?<![\w.])[-+\u2212]?(?:\d+\.\d+|\.\d+)(?:e[-+]?\d+)?(?!\.?\d)(\s*%)?")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")


def paragraphs(markdown: str) -> Iterator[str]:
    """Yield the paragraphs, list items, table rows and headings of a Markdown text."""
    lines: list[str] = []
    for line in _FENCE.sub("", markdown).splitlines():
        text = line.strip().lstrip(">").strip()
        row = text.startswith("|")
        begins = row or re.match(r"([-*+]|\d+[.)])\s|#{1,6}\s", text)
        if (not text or begins) and lines:
            yield "\n".join(lines)
            lines = []
        if row or text.startswith("#"):
            yield text
        elif text:
            lines.append(text)
    if lines:
        yield "\n".join(lines)


def _display_math_joined(markdown: str) -> str:
    """Remove displayed mathematics first: a blank line may not split it."""
    return re.sub(r"\$\$.*?\$\$", " ", _FENCE.sub("", markdown), flags=re.DOTALL)


def decimals(paragraph: str) -> list[tuple[float, float, str]]:
    """Return the decimal numbers of a paragraph's prose: value, unit of the last digit, as written.

    A percentage is returned as a share of one.
    """
    text = _NOT_PROSE.sub(" ", paragraph)
    text = _LINK_TARGET.sub("] ", text)
    for pattern in (_CLAIMS, _HEADING_NUMBER, _NUMBERED):
        text = pattern.sub(" ", text)
    found = []
    for match in _DECIMAL.finditer(text):
        written = match[0].strip()
        plain = written.rstrip("% ").replace("\u2212", "-")
        mantissa, _, exponent = plain.partition("e")
        unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
        share = 0.01 if match[1] else 1.0
        found.append((float(plain) * share, unit * share, written))
    return found


def agrees(value: float, unit: float, line: Line) -> bool:
    """Say whether a number in prose is what a claim measured, expected or took as its bound.

    It agrees with the measured value when that rounds to it, with a little room for the last
    digit of another machine, or within the claim's tolerance; with a bound or an expected value
    it is equal. Signs may be left to the words.
    """
    numbers = [float(n) for n in _NUMBER.findall(line.expected.replace("+-", " "))]
    near = 0.6 * unit
    if line.expected.startswith("expected ") and len(numbers) == 2:
        near = max(near, numbers[1])
    try:
        measured = float(line.measured)
    except ValueError:
        return False
    if abs(abs(value) - abs(measured)) <= near:
        return True
    return any(abs(abs(value) - abs(n)) <= 1e-9 * max(1.0, abs(n)) for n in numbers)


def unbacked(markdown: str, claims: Mapping[str, Line]) -> list[str]:
    """Return a message for each decimal number that neither a claim nor a source backs."""
    problems = []
    for paragraph in paragraphs(_display_math_joined(markdown)):
        ids = _ids(paragraph)
        problems += [f"(claim {i}) is not in the book" for i in ids if i not in claims]
        known = [claims[i] for i in ids if i in claims]
        uncited = [part for part in _sentences(paragraph) if not _CITATION.search(part)]
        for value, unit, written in decimals("\n".join(uncited)):
            if any(agrees(value, unit, line) for line in known):
                continue
            start = " ".join(paragraph.split())[:60]
            if known:
                said = "; ".join(f"{c.id}: {c.measured}, {c.expected}" for c in known)
                problems.append(f"{written} disagrees with {said} in {start!r}")
            else:
                problems.append(f"{written} has neither claim nor source in {start!r}")
    return problems


def _sentences(paragraph: str) -> list[str]:
    """Split a table row into cells, and other prose into sentences."""
    if paragraph.startswith("|"):
        return re.split(r"(?<!\\)\|", paragraph)
    return re.split(r"(?<=[.!?])\s+(?=[A-Z(\[*])", paragraph)


def _ids(paragraph: str) -> Iterable[str]:
    return [i for match in _CLAIMS.finditer(paragraph) for i in _ID.findall(match[1])]

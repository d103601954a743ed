"""The references page, made from references.bib."""

from __future__ import annotations

import codecs
import re
from pathlib import Path


def _plain(text: str) -> str:
    import latexcodec  # noqa: F401  (registers the codec; comes with pybtex)

    readable = codecs.decode(text.replace("~", " "), "ulatex")
    return readable.replace("{", "").replace("}", "")


def _names(persons: list) -> str:
    def one(person) -> str:
        family = " ".join(person.prelast_names + person.last_names)
        initials = " ".join(n[0] + "." for n in person.first_names + person.middle_names)
        return _plain(f"{family}, {initials}" if initials else family)

    names = [one(p) for p in persons]
    if names[-1] == "others":
        return ", ".join(names[:-1]) + " et al."
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def keys(bib: Path) -> list[str]:
    """Return the keys of a .bib file in the order of the page."""
    from pybtex.database import parse_file

    entries = parse_file(str(bib)).entries
    return sorted(entries, key=lambda k: (_names(entries[k].persons["author"]), k))


def markdown(bib: Path, for_sphinx: bool) -> str:
    """Return the page as Markdown, each entry with an anchor of its key.

    ``for_sphinx`` chooses the target that Sphinx resolves; otherwise a plain HTML anchor, which
    code hosts and JupyterLab follow.
    """
    from pybtex.database import parse_file

    entries = parse_file(str(bib)).entries
    lines = ["# References", ""]
    if not for_sphinx:
        lines += ["<!-- made from references.bib by `make chapters` -->", ""]
    for key in keys(bib):
        entry = entries[key]
        fields = entry.fields
        place = _plain(fields.get("booktitle") or fields.get("journal") or "")
        parts = [f"{_names(entry.persons['author'])} ({fields['year']})."]
        parts.append(f"*{_plain(fields['title'])}.*")
        if place:
            parts.append(place + ".")
        if "eprint" in fields:
            number = fields["eprint"]
            parts.append(f"[arXiv:{number}](https://arxiv.org/abs/{number}).")
        elif "url" in fields:
            shown = re.sub(r"^https?://(www\.)?", "", fields["url"]).rstrip("/")
            parts.append(f"[{shown}]({fields['url']}).")
        if "note" in fields:
            parts.append(_plain(fields["note"]) + ".")
        anchor = [f"({key})="] if for_sphinx else [f'<a id="{key}"></a>']
        lines += [*anchor, " ".join(parts), ""]
    return "\n".join(lines)

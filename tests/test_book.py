"""The book builds without a warning and reads with no network."""

import contextlib
import io
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from book import CHAPTERS, chapters, html, references, source

LOADING = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "object": ("data",),
    "embed": ("src",),
    "link": ("href",),
}


class Page(HTMLParser):
    """What a page holds, links to and loads."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads, self.no_alt = set(), [], [], []
        self.titles, self.in_article, self.text = 0, False, text
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.ids.update(v for k in ("id", "name") if (v := named.get(k)))
        self.in_article |= tag == "article"
        self.titles += tag == "h1" and self.in_article  # the theme has another one for printing
        if tag == "a" and named.get("href"):
            self.links.append(named["href"])
        if named.get("rel") not in ("canonical", "next", "prev", "search", "index"):
            self.loads += [named[a] for a in LOADING.get(tag, ()) if named.get(a)]
        if tag == "img" and not (named.get("alt") or "").strip():
            self.no_alt.append(named.get("src"))

    def handle_endtag(self, tag):
        self.in_article &= tag != "article"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book") / "html"
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(said):
        warnings.simplefilter("ignore")  # of Sphinx about itself; those about the book are errors
        code = html.build(CHAPTERS, folder)
    assert code == 0, said.getvalue()
    return folder


@pytest.fixture(scope="module")
def site(out):
    return {p: Page(p.read_text(encoding="utf-8")) for p in out.glob("*.html")}


def test_no_page_loads_anything_from_a_network(site):
    bad = {p.name: [u for u in page.loads if urlsplit(u).netloc] for p, page in site.items()}
    assert not {name: urls for name, urls in bad.items() if urls}


def test_no_style_and_no_inline_script_loads_anything_from_a_network(out, site):
    far = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])(?:https?:)?//")
    assert not [p.name for p in out.rglob("*.css") if far.search(p.read_text(encoding="utf-8"))]
    call = re.compile(r"(?:fetch|import|importScripts)\(\s*['\"](?:https?:)?//")
    assert not [p.name for p, page in site.items() if far.search(page.text)]
    assert not [p.name for p, page in site.items() if call.search(page.text)]


def test_local_links_and_anchors_resolve(site):
    broken = []
    for path, page in site.items():
        for href in page.links + page.loads:
            url = urlsplit(href)
            if url.scheme or url.netloc or not (url.path or url.fragment):
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path.resolve()
            if not target.is_file():
                broken.append((path.name, href))
            elif url.fragment and target.suffix == ".html":
                if unquote(url.fragment) not in site[target].ids:
                    broken.append((path.name, href))
    assert not broken


def test_every_image_has_a_text_alternative(site):
    assert not [(p.name, page.no_alt) for p, page in site.items() if page.no_alt]


def test_every_chapter_has_its_title_its_mathematics_and_its_notebook(site, out):
    for path in chapters():
        page = next(page for p, page in site.items() if p.stem == path.stem)
        assert page.titles == 1
        assert any("mathjax/tex-svg.js" in u for u in page.loads)
        assert any(u.endswith(path.name) for u in page.links)
        assert (out / "_sources" / path.name).read_bytes() == path.read_bytes()


def test_every_claim_can_be_linked_to_and_is_listed(site):
    pages = {p.stem: page for p, page in site.items()}
    for path in chapters():
        for claim in source.claims(source.read(path), path.stem):
            assert html.anchor(claim.id) in pages[path.stem].ids
            assert f"{path.stem}.html#{html.anchor(claim.id)}" in pages["claims"].links


def test_the_index_lists_every_chapter():
    text = (CHAPTERS / "index.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if re.match(r"\d\d_\w+$", line)] == [
        path.stem for path in chapters()
    ]


def test_the_references_page_is_the_one_made_from_the_bib_file():
    stored = (CHAPTERS / "references.md").read_text(encoding="utf-8")
    assert stored == references.markdown(CHAPTERS / "references.bib", for_sphinx=False)


def test_every_citation_names_a_reference():
    known = set(references.keys(CHAPTERS / "references.bib"))
    for path in [*chapters(), CHAPTERS / "index.md", *Path(CHAPTERS).parent.glob("*.md")]:
        used = set(re.findall(r"references\.md#([\w-]+)", path.read_text(encoding="utf-8")))
        assert used <= known, (path.name, used - known)

"""Check a built site: every internal link and picture is there, and nothing is loaded from the network.

    python docs/check_links.py docs/_build/html
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}  # by the browser, unasked


@dataclass
class Page(HTMLParser):
    """What a page links to, loads, and can be linked to by."""

    links: set[str] = field(default_factory=set)
    loaded: set[str] = field(default_factory=set)
    anchors: set[str] = field(default_factory=lambda: {"", "top"})
    unnamed: int = 0  # pictures without a description

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := given.get(name))}
        if tag == "a" and given.get("href"):
            self.links.add(given["href"] or "")
        if (name := LOADED.get(tag)) and given.get(name):
            self.loaded.add(given[name] or "")
        self.unnamed += tag == "img" and not given.get("alt")


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text("utf-8"))
    return page


def problems(site: Path) -> list[str]:
    """A line for every broken link, missing file, picture without a description, and file loaded from the network."""
    pages = {path.resolve(): read(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}
    found = [] if pages else [f"{site}: there are no pages"]
    for path, page in pages.items():
        where = path.relative_to(site.resolve())
        found += [f"{where}: {page.unnamed} pictures without a description"] * (page.unnamed > 0)
        found += [f"{where}: loads {url} from the network" for url in sorted(page.loaded) if urlsplit(url).netloc]
        for url in sorted(page.links | page.loaded):
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{where}: {url} is not there")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{where}: {url} has no such place in the page")
    return found


if __name__ == "__main__":
    lines = problems(Path(sys.argv[1]))
    print(*lines, f"{len(lines)} problems with links", sep="\n")
    sys.exit(bool(lines))

"""HTML mail made harmless: what is known to be safe is written anew, and nothing else.

Knows text only. The page shows the result in a sandboxed frame with a policy of its own; this is
the first of three fences. What comes out is never a part of the page.
"""

from __future__ import annotations

import re
from html import escape, unescape
from typing import Callable, Dict, Iterator, Mapping, Match, Tuple

__all__ = ["harmless"]

ELEMENTS = frozenset(
    re.findall(
        r"\w+",
        """
    a abbr acronym address article aside b bdi bdo big blockquote body br caption center cite code
    col colgroup dd del details dfn dir div dl dt em figcaption figure font footer h1 h2 h3 h4 h5 h6
    header hr i img ins kbd li main mark menu nav ol p pre q rp rt ruby s samp section small span
    strike strong style sub summary sup table tbody td tfoot th thead time tr tt u ul var wbr
    """,
    )
)
"""What is kept; of every other element the content alone."""

UNSEEN = frozenset(
    ("iframe", "noembed", "noframes", "script", "template", "textarea", "title", "xmp")
)
"""Elements of which not even the content is kept."""

ATTRIBUTES = frozenset(
    re.findall(
        r"\w+",
        """
    align alt bgcolor border cellpadding cellspacing class clear color colspan compact dir face
    height hspace id lang noshade nowrap open reversed rowspan rules scope size span start style
    summary title type valign value vspace width
    """,
    )
)
"""What is kept as it is: none of them names anything outside."""

START = (
    '<!doctype html><html><head><meta charset="utf-8">'
    '<meta name="color-scheme" content="light">'
    "<style>html{color:#111;font:15px/1.5 system-ui,sans-serif;"
    "overflow-wrap:anywhere}body{margin:16px}img{max-width:100%}</style></head><body>"
)
EMPTY_IMAGE = "data:,"
IMAGE = re.compile(r"data:image/(?:png|jpeg|gif|webp|bmp|svg\+xml)[;,]", re.IGNORECASE)

# As browsers read them (HTML 13.2.5): a tag goes on to its ">", whatever stands before that.
_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]*)")
_ATTRIBUTE = re.compile(
    r"""[\s/]*([^\s/>][^\s/>=]*)(?:\s*=\s*(?:"([^"]*)(?:"|\Z)|'([^']*)(?:'|\Z)|([^\s>]+)))?"""
)
_TAG_END = re.compile(r"[\s/]*>")
_CSS_LOADS = re.compile(r"url\(([^()]*)\)|(?:url|image-set|src)\(|@import", re.IGNORECASE)
"""What of a style sheet may load something; first what says plainly what."""

Images = Callable[[str], str]
"""Gives the ``data:`` URL of a Content-ID, ``""`` where there is none."""


def harmless(html: str, image: Images) -> str:
    """Write a document with what is safe of another; ``cid:`` images become part of it.

    Scripts, forms, frames, ``<base>``, ``<meta>``, ``<link>``, SVG, handlers and all that is remote
    are left out; links show where they would lead, and lead nowhere.
    """
    return START + "".join(_written(html, image))


def _written(html: str, image: Images) -> Iterator[str]:
    position = 0
    while position < len(html):
        opening = html.find("<", position)
        if opening < 0:
            break
        yield _text(html[position:opening])
        tag = _TAG.match(html, opening)
        if tag is None:
            position, text = _no_tag(html, opening)
            yield text
            continue
        name = tag[2].lower()
        attributes, position = _attributes(html, tag.end())
        if tag[1]:
            if name in ELEMENTS:
                yield f"</{name}>"
            continue
        if name in UNSEEN or name == "style":
            content, position = _up_to_end(html, position, name)
            if name == "style":
                yield f"<style>{_css(content, image)}</style>"
        elif name in ELEMENTS:
            kept = _kept(name, attributes, image)
            yield "<" + " ".join((name, *(f'{key}="{escape(kept[key])}"' for key in kept))) + ">"
    yield _text(html[position:])


def _text(text: str) -> str:
    return escape(unescape(text), quote=False) if "&" in text or ">" in text else text


def _no_tag(html: str, opening: int) -> Tuple[int, str]:
    """Give the position behind a comment or the like, or behind a "<" that is text."""
    if html.startswith("<!--", opening):
        end = html.find("-->", opening + 2)
        return (end + 3 if end >= 0 else len(html)), ""
    if html.startswith(("<!", "<?", "</"), opening):
        end = html.find(">", opening)
        return (end + 1 if end >= 0 else len(html)), ""
    return opening + 1, "&lt;"


def _attributes(html: str, position: int) -> Tuple[Dict[str, str], int]:
    """Read up to the end of a tag; of two attributes with one name the first counts."""
    found: Dict[str, str] = {}
    while True:
        end = _TAG_END.match(html, position)
        if end is not None:
            return found, end.end()
        attribute = _ATTRIBUTE.match(html, position)
        if attribute is None:  # the text ends within the tag
            return found, len(html)
        name, *values = attribute.groups()
        value = next((each for each in values if each is not None), "")
        found.setdefault(name.lower(), unescape(value))
        position = attribute.end()


def _up_to_end(html: str, position: int, name: str) -> Tuple[str, int]:
    """Give the content of an element in which no tag counts but its end."""
    end = re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE).search(html, position)
    if end is None:
        return html[position:], len(html)
    return html[position : end.start()], _attributes(html, end.end())[1]


def _kept(name: str, given: Mapping[str, str], image: Images) -> Dict[str, str]:
    kept = {key: value for key, value in given.items() if key in ATTRIBUTES}
    if "style" in kept:
        kept["style"] = _css(kept["style"], image)
    if name == "img":
        kept["src"] = _embedded(given.get("src", ""), image) or EMPTY_IMAGE
    if name == "a" and given.get("href", "").strip():
        kept["title"] = given["href"].strip()
        kept["style"] = "color:#0645ad;text-decoration:underline;" + kept.get("style", "")
    return kept


def _css(text: str, image: Images) -> str:
    """Give a style sheet that loads nothing, and ends no element.

    Without backslashes, behind which names can hide.
    """

    def loaded(found: Match[str]) -> str:
        if found[1] is None:
            return "blocked"
        source = _embedded(found[1].strip().strip("\"'"), image) or EMPTY_IMAGE
        return 'url("{}")'.format("".join(source.split()).replace('"', "%22"))

    return _CSS_LOADS.sub(loaded, text.replace("\\", "")).replace("</", "< /")


def _embedded(source: str, image: Images) -> str:
    """Give the ``data:`` URL of an image that came with the message, or ``""``."""
    source = source.strip()
    if source[:4].lower() == "cid:":
        source = image(source[4:])
    return source if IMAGE.match(source) else ""

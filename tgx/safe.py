"""What a stranger wrote, made safe to show: text, JSON, and the policy of every page we write.

Text. Characters that nobody sees are shown: controls as their pictures (␛ ␍ ␀), marks that turn a
line around, join, hide or have no width by their number in brackets, `[U+202E]`. What is left can
neither steer a terminal, nor break XML, nor make a line read as what it is not. Nothing is dropped,
so two names that differ look different. (Letters that look alike, such as а and a, are letters, and
stay.)

Pages. A page may run the one script and use the one style sheet it came with, each known by its
hash, and nothing else: no network, no eval, no markup made from text, no frame, no form that goes
anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from html import escape
from typing import Any

UNSEEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1, but for tab and newline
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"  # hyphens and fillers with no width
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"  # and turning marks
    "\ud800-\udfff\ufffe\uffff"  # halves of characters, and what XML forbids
    "\U000e0000-\U000e0fff"  # tags
)
"""What `clean` shows, as the inside of a regular expression's brackets."""

_UNSEEN = re.compile(f"[{UNSEEN}]")
_IN_JSON = re.compile(rf"\\(\\|[bfr]|u00[01][0-9a-f])|[{UNSEEN}]")


def clean(text: str) -> str:
    """Text whose every character can be seen; see above. Equal where there is nothing to show."""
    return _UNSEEN.sub(_shown, text)


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return "\N{REPLACEMENT CHARACTER}" if 0xD800 <= code < 0xE000 else f"[U+{code:04X}]"


# **** JSON ****


def to_json(value: object, indent: int | None = None) -> str:
    """JSON that says the same on any terminal: what cannot be seen is written `\\u202e`. Numbers
    that JSON does not have are null."""
    return _UNSEEN.sub(_escaped, _dumped(value, indent))


def shown_json(value: object) -> str:
    """JSON without spaces, all of whose texts are `clean`."""
    return _IN_JSON.sub(_shown_in_json, _dumped(value, None))


def _dumped(value: object, indent: int | None) -> str:
    separators = (",", ":") if indent is None else None
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent,
                          separators=separators, default=list)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent,
                          separators=separators)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [*map(_finite, value)] if isinstance(value, (list, tuple)) else value


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def _shown_in_json(found: re.Match[str]) -> str:
    if found[1] == "\\":
        return found[0]
    return clean(json.loads(f'"{found[0]}"') if found[1] else found[0])


# **** pages ****


def policy(style: str, script: str = "") -> str:
    """The content security policy of a page with this style sheet and this script: the exact text
    between their tags. It goes into a meta element, before both."""
    return "; ".join((
        "default-src 'none'",
        f"script-src {_hash(script) if script else _NONE}",
        f"style-src {_hash(style)}",
        f"base-uri {_NONE}",
        f"form-action {_NONE}",
        # the browser itself refuses innerHTML and its like, whatever a script may do one day
        "require-trusted-types-for 'script'",
        f"trusted-types {_NONE}",
    ))


_NONE = "'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def frame(page: str, height: int) -> str:
    """A page inside a notebook, in a frame where it is a stranger to the notebook around it."""
    return (
        f'<iframe sandbox="allow-scripts" srcdoc="{escape(page)}" style="width:100%;'
        f'height:{height}px;border:1px solid #8886;border-radius:6px"></iframe>'
    )

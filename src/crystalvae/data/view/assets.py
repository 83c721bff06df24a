"""Files that come with the viewer, and data as they can stand in a page."""

from __future__ import annotations

import json
from pathlib import Path

ASSETS = Path(__file__).with_name("assets")


def asset(name: str) -> str:
    """Return the text of a file that comes with the viewer."""
    return (ASSETS / name).read_text(encoding="utf-8")


def vendored() -> dict[str, dict[str, str]]:
    """Return the record of the libraries that come with the package: version, licence, origin and hash of each."""
    return json.loads(asset("vendored.json"))


def embeddable(data: object) -> str:
    """Return JSON that can stand inside a script element, whatever texts are in it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text

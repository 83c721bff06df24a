"""How the documentation becomes a site: `make docs`, then open docs/_build/index.html. Needs no network."""

import re
from typing import Any

import crystalvae

project = "crystalvae"
author = "the crystalvae developers"
copyright = author  # noqa: A001  Sphinx's name
version = release = crystalvae.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
autosummary_generate = True
default_role = "code"  # `name` in a docstring is code, as it is in Markdown

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True

html_theme = "furo"
html_title = f"crystalvae {version}"
html_static_path: list[str] = []


def _as_restructured_text(
    _app: object, _what: str, _name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    """Escape what our docstrings mean as it stands, outside of code: |x|, *, and names that end with an underscore."""
    for number, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [
            re.sub(r"(\||\*|\w_\b)", lambda found: found[0][:-1] + "\\" + found[0][-1], part) for part in parts[::2]
        ]
        lines[number] = "`".join(parts)


def setup(app: Any) -> None:
    """Register what differs from Sphinx's ways."""
    app.connect("autodoc-process-docstring", _as_restructured_text)

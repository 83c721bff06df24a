"""Pages from templates: everything that a page shows is part of it."""

from __future__ import annotations

from pathlib import Path

from crystalvae.data.view.assets import ASSETS as VIEWER
from crystalvae.data.view.assets import vendored
from crystalvae.data.view.scene import BOND

ASSETS = Path(__file__).with_name("assets")


def render(template: str, *, assets: Path | None = None, **values: object) -> str:
    """Return a page; templates and what they embed are in `assets`, in the folder of all reports, or the viewer's."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folders = [ASSETS, VIEWER] if assets is None else [assets, ASSETS, VIEWER]

    def asset(name: str) -> str:
        return next(folder / name for folder in folders if (folder / name).is_file()).read_text(encoding="utf-8")

    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    common = {"libraries": vendored(), "asset": asset, "bond": f"{BOND:g}"}
    return environment.get_template(template).render(**common, **values)

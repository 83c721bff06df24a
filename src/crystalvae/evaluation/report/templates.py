"""Pages from templates: everything that a page shows is part of it."""

from __future__ import annotations

from pathlib import Path

from crystalvae.evaluation.report.page import ASSETS, vendored
from crystalvae.evaluation.report.scene import BOND


def render(template: str, *, assets: Path | None = None, **values: object) -> str:
    """Return a page; templates and what they embed are in `assets`, before the folder that all reports share."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folders = [ASSETS] if assets is None else [assets, ASSETS]

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

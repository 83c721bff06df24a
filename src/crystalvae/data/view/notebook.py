"""Crystals as a notebook shows them: a table anybody can read, and a viewer where there is JavaScript."""

from __future__ import annotations

import base64
import gzip
import re
from collections.abc import Sequence
from functools import lru_cache
from html import escape

import numpy as np

from crystalvae.data.distances import shortest_distances
from crystalvae.data.formulas import GRAM_PER_CM3, formulas_and_masses
from crystalvae.data.symmetry import moyo_dataset, space_group_symbol
from crystalvae.data.view.assets import asset, embeddable
from crystalvae.data.view.scene import Scene, look, scene

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Atomic numbers (n,), fractional coordinates (n, 3) and lattice (3, 3) in Å of a crystal."""
MOST_SHOWN = 12
"""How many crystals of a batch are drawn and listed."""
TOLERANCE = 0.1
"""Å within which atoms may be off, for the space group that is shown."""
_COLUMNS = ("", "formula", "atoms", f"space group ({TOLERANCE:g} Å)", "density, g/cm³", "shortest contact, Å")


def crystals_html(crystals: Sequence[Arrays], total: int, num_atoms: int) -> str:
    """Return HTML of the first crystals of a batch that holds `total` of them with `num_atoms` atoms.

    The table is plain HTML. The viewer stands in a frame of its own, with everything it needs and closed to the page
    around it; it asks the network for nothing. Crystals that cannot be drawn or measured say so, and raise nothing.
    """
    summary = f"<b>CrystalBatch</b>: {_count(total, 'crystal')}, {_count(num_atoms, 'atom')}"
    if total > len(crystals):
        summary += f"; the first {len(crystals)}:"
    if not crystals:
        return f"<p>{summary}</p>"
    rows = [(str(index), *facts) for index, facts in enumerate(map(_facts, crystals))]
    scenes = [scene(*arrays) for arrays in crystals]
    tiles = [
        {
            "title": f"{index}: {formula} · {group}",
            "scene": drawn.to_dict() if isinstance(drawn, Scene) else None,
            "obstacle": drawn if isinstance(drawn, str) else "",
        }
        for (index, formula, _, group, *_), drawn in zip(rows, scenes, strict=True)
    ]
    return f"<p>{summary}</p>{_frame({**look(scenes), 'tiles': tiles})}{_table(rows)}"


def _frame(data: dict[str, object]) -> str:
    page = (
        f'<!DOCTYPE html><meta charset="utf-8"><style>{asset("notebook.css")}</style><div id="crystals"></div>'
        f'<script type="application/json" id="data">{embeddable(data)}</script>'
        f'<script type="text/plain" id="library">{_library()}</script>'
        f"<script>{asset('crystal.js')}</script><script>{asset('notebook.js')}</script>"
    )
    style = "width: 100%; height: 380px; border: 0; background: white"
    attributes = f'sandbox="allow-scripts" title="crystals in three dimensions" style="{style}"'
    return f'<iframe {attributes} srcdoc="{escape(page)}"></iframe>'


@lru_cache(maxsize=1)
def _library() -> str:
    """Return 3Dmol.js, packed, as it stands in every output: a third of its size."""
    return base64.b64encode(gzip.compress(asset("3Dmol-min.js").encode(), mtime=0)).decode()


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{_subscripts(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _facts(crystal: Arrays) -> tuple[str, str, str, str, str]:
    """Return formula, atoms, space group, density and shortest contact as texts; "–" where there is none."""
    numbers, frac_coords, lattice = crystal
    (formula,), (mass,) = formulas_and_masses(numbers, np.array([len(numbers)]))
    finite = bool(np.isfinite(lattice).all() and np.isfinite(frac_coords).all()) and len(numbers) > 0
    volume = abs(float(np.linalg.det(lattice))) if finite else 0.0
    density = f"{mass / volume * GRAM_PER_CM3:.2f}" if volume > 0 else "–"
    contact = f"{shortest_distances(lattice[None], frac_coords, np.array([len(numbers)]))[0]:.2f}" if finite else "–"
    return formula, str(len(numbers)), _space_group(crystal), density, contact


def _space_group(crystal: Arrays) -> str:
    try:
        number = moyo_dataset(*crystal, TOLERANCE).number
    except ValueError:  # no symmetry is found, or the cell has no volume
        return "–"
    return f"{space_group_symbol(number)} ({number})"


def _subscripts(text: str) -> str:
    """Return HTML with the amounts of a formula, and what follows a _ in a space group's symbol, as subscripts."""
    if re.fullmatch(r"([A-Z][a-z]?[\d.]*|[()]\d*)+", text):
        return re.sub(r"([\d.]+)", r"<sub>\1</sub>", text)
    return re.sub(r"_(\d)", r"<sub>\1</sub>", escape(text))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

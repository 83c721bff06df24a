"""Heat maps of elements on the periodic table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from crystalvae.evaluation.report.style import INK, Plot, finish, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.typing import ColorType

SHOWN = 103
"""The table is drawn as far as lawrencium."""
STRONGEST = 3.0
"""Differences of more than this many doublings look the same."""


def element_plot(
    generated: Float[np.ndarray, "119"], reference: Float[np.ndarray, "119"], names: tuple[str, str]
) -> Plot:
    """Return two tables: the share of generated crystals with each element, and how that differs from the reference.

    The difference is the binary logarithm of the ratio of shares, +1 for twice as often; an element that only one of
    the sets has gets the strongest colour.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize, TwoSlopeNorm

    percent = generated[1 : SHOWN + 1] * 100
    other = reference[1 : SHOWN + 1] * 100
    positive = percent[percent > 0]
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (0.1, 1.0)
    shares: Normalize = LogNorm(low, high) if high > low else Normalize(0.0, high)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.clip(np.log2(percent / other), -STRONGEST, STRONGEST)
    ratio[(percent == 0) & (other == 0)] = math.nan

    figure = new_figure(11.4, 10.2)
    panels = (
        (
            np.where(percent > 0, percent, math.nan),
            colormaps["YlGnBu"],
            shares,
            f"{names[0]} crystals with the element (%)",
        ),
        (
            ratio,
            colormaps["PuOr_r"],
            TwoSlopeNorm(0.0, -STRONGEST, STRONGEST),
            f"{names[0]} over {names[1]} (log₂ of the ratio: +1 is twice as often)",
        ),
    )
    for row, (values, colours, norm, label) in enumerate(panels):
        axes = figure.add_subplot(2, 1, row + 1)
        _table(axes, values, colours, norm, numbers=percent if row == 0 else None)
        bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, shrink=0.72, pad=0.01, aspect=28)
        bar.set_label(label)
        bar.ax.spines["outline"].set_visible(False)
    new = int(np.count_nonzero((percent > 0) & (other == 0)))
    lost = int(np.count_nonzero((percent == 0) & (other > 0)))
    caption = (
        f"Above: share of {names[0]} crystals that hold each element. Below: against the {names[1]} crystals. "
        f"{np.count_nonzero(percent)} elements occur; {lost} occur in the {names[1]} crystals only, {new} in the "
        f"{names[0]} ones only. Grey: in neither."
    )
    return finish(figure, name="elements", title="Elements", caption=caption, wide=True)


def position(number: int) -> tuple[int, float]:
    """Return the column (1 to 18) and the row of an element; lanthanides and actinides stand apart, at 8.5 and 9.5."""
    from ase.data import chemical_symbols
    from pymatgen.core import Element

    if 57 <= number <= 71:
        return 3 + number - 57, 8.5
    if 89 <= number <= 103:
        return 3 + number - 89, 9.5
    element = Element(chemical_symbols[number])
    return int(element.group), float(element.row)


def _table(
    axes: Axes, values: Float[np.ndarray, "E"], colours: Colormap, norm: Normalize, *, numbers: np.ndarray | None
) -> None:
    from ase.data import chemical_symbols
    from matplotlib.patches import FancyBboxPatch

    for number in range(1, SHOWN + 1):
        column, row = position(number)
        value = values[number - 1]
        colour = "#eef1f4" if math.isnan(value) else colours(norm(value))
        dark = not math.isnan(value) and _luminance(colour) < 0.45
        axes.add_patch(
            FancyBboxPatch(
                (column - 0.46, row - 0.46), 0.92, 0.92, boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=colour, edgecolor="white", linewidth=0.6,
            )
        )  # fmt: skip
        ink = "white" if dark else "#a7b0ba" if math.isnan(value) else INK
        axes.text(column, row - 0.06, chemical_symbols[number], ha="center", va="center", fontsize=10.5, color=ink)
        axes.text(column - 0.4, row - 0.3, str(number), ha="left", va="center", fontsize=5.0, color=ink, alpha=0.85)
        below = "" if math.isnan(value) else f"{value:+.1f}" if numbers is None else _percent(numbers[number - 1])
        axes.text(column, row + 0.29, below, ha="center", va="center", fontsize=6.0, color=ink)
    axes.set(xlim=(0.4, 18.6), ylim=(10.1, 0.4), aspect="equal")
    axes.axis("off")


def _percent(value: float) -> str:
    return f"{value:.1f}" if value >= 0.95 else f"{value:.2f}"


def _luminance(colour: ColorType) -> float:
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue

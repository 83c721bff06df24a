"""Colours of motifs, the same in all pictures and in the page."""

from __future__ import annotations

_FIRST = (
    "#0b6fb8", "#e08214", "#1b9e77", "#c2378f", "#7a5bb5", "#8c6d31", "#d7301f", "#4d9ba8", "#7fae2e", "#5b6674",
)  # fmt: skip


def motif_colours(number: int) -> list[str]:
    """Return a colour for each of so many motifs; beyond ten, they go round the colour circle."""
    if number <= len(_FIRST):
        return list(_FIRST[:number])
    from matplotlib.colors import hsv_to_rgb, to_hex

    shades = [(row / number, 0.55 + 0.35 * (row % 2), 0.85 - 0.2 * (row % 3)) for row in range(number)]
    return [to_hex(tuple(hsv_to_rgb(shade).tolist())) for shade in shades]

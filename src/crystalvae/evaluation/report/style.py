"""One look for all plots of the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

GENERATED = "#0b6fb8"
REFERENCE = "#8b94a0"
INK = "#1c2430"
FAINT = "#dfe4ea"
PNG_DPI = 200

RC: dict[RcKeyType, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa3ad",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
    "text.color": INK,
    "svg.fonttype": "path",
    "svg.hashsalt": "crystalvae",  # the same report gives the same bytes
}


@dataclass(frozen=True)
class Plot:
    """A finished plot: its file name without suffix, what it shows, its caption, and both of its forms.

    `wide` plots take the whole width of the page.
    """

    name: str
    title: str
    caption: str
    svg: bytes
    png: bytes
    wide: bool = False

    @property
    def data_uri(self) -> str:
        """The drawing as a link that needs no file."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode("ascii")

    def write(self, folder: Path) -> Path:
        """Write the PNG to a folder and return its path."""
        path = folder / f"{self.name}.png"
        path.write_bytes(self.png)
        return path


@contextmanager
def plotting() -> Iterator[None]:
    """Draw in the report's style, without touching anybody else's settings or windows."""
    import matplotlib as mpl

    with mpl.rc_context(RC):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of that many inches, outside of pyplot's list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def finish(figure: Figure, *, name: str, title: str, caption: str, wide: bool = False) -> Plot:
    """Render a figure to both forms."""
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", dpi=PNG_DPI, metadata={"Date": None, "Creator": "crystalvae"})
    figure.set_layout_engine("none")  # it has been laid out, and does not change any more
    figure.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": "crystalvae"})
    return Plot(name=name, title=title, caption=caption, svg=svg.getvalue(), png=png.getvalue(), wide=wide)


def legend(axes: Axes) -> None:
    """Draw the legend above the data, so that it hides none of them."""
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.1, handlelength=1.2)

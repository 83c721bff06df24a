"""Plots of predictions against their targets."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from crystalvae.data.batch import CrystalBatch
from crystalvae.evaluation.report.numbers import with_unit
from crystalvae.evaluation.report.style import GENERATED, INK, Plot, finish, new_figure

DENSE = 3000
"""From this many crystals on, density is drawn instead of points."""


def lattice_parity_plot(targets: CrystalBatch, predictions: CrystalBatch) -> Plot:
    """Return predicted against true lengths (Å) and angles (degrees), crystal i against crystal i."""
    truth, guess = _parameters(targets), _parameters(predictions)
    usable = np.isfinite(truth).all(axis=1) & np.isfinite(guess).all(axis=1)
    truth, guess = truth[usable], guess[usable]
    figure = new_figure(10.6, 6.9)
    for place, label in enumerate(("a (Å)", "b (Å)", "c (Å)", "α (°)", "β (°)", "γ (°)")):
        axes = figure.add_subplot(2, 3, place + 1)
        x, y = truth[:, place], guess[:, place]
        low, high = _limits(x, y)
        if len(x) >= DENSE:
            axes.hexbin(
                x,
                y,
                gridsize=70,
                extent=(low, high, low, high),
                bins="log",
                mincnt=1,
                cmap="YlGnBu",
                linewidths=0.1,
                rasterized=True,
            )
        else:
            axes.scatter(x, y, s=9, alpha=0.45, color=GENERATED, linewidths=0, rasterized=len(x) > 500)
        axes.plot((low, high), (low, high), color=INK, linewidth=0.8, zorder=0 if len(x) < DENSE else 3, alpha=0.7)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set_xlabel(f"target {label}")
        axes.set_ylabel(f"prediction {label}")
        axes.grid(visible=True, axis="both")
        if len(x):
            unit = "Å" if place < 3 else "°"
            error = float(np.abs(y - x).mean())
            written = f"{error:.3g}" if error >= 1e-3 else "below 0.001"
            axes.set_title(f"mean error {with_unit(written, unit)}", fontsize=8.5, fontweight="normal")
    caption = f"{len(truth)} crystals" + (
        f"; {np.count_nonzero(~usable)} without finite cells left out" if not usable.all() else ""
    )
    return finish(
        figure,
        name="lattice_parity",
        title="Lattice parameters: prediction against target",
        caption=f"{caption}. On the diagonal they agree; the mean of absolute errors stands above each panel.",
        wide=True,
    )


def rms_plot(rms: Float[np.ndarray, "B"]) -> Plot:
    """Return a histogram of the RMS displacements of the matched pairs (NaN: no match)."""
    matched = rms[np.isfinite(rms)]
    figure = new_figure(5.2, 3.1)
    axes = figure.add_subplot()
    high = max(0.02, float(np.percentile(matched, 99.5))) if len(matched) else 0.5
    shares = np.histogram(matched, np.linspace(0, high, 49))[0] / max(len(rms), 1) * 100
    axes.stairs(shares, np.linspace(0, high, 49), fill=True, color=GENERATED, alpha=0.75)
    axes.set(xlabel="RMS displacement / (V/n)$^{1/3}$", ylabel="of all crystals (%)", xlim=(0, high))
    axes.set_title("RMS displacement of matched crystals")
    middle = f"; median {np.median(matched):.4f}" if len(matched) else ""
    return finish(
        figure,
        name="rms",
        title="RMS displacement",
        caption=f"{len(matched)} of {len(rms)} crystals match{middle}.",
    )


def _parameters(crystals: CrystalBatch) -> Float[np.ndarray, "B 6"]:
    from crystalvae.data.lattice import lattice_to_parameters

    lengths, radians = lattice_to_parameters(crystals.detach().to("cpu").lattices.double())
    return np.concatenate((lengths.numpy(), np.rad2deg(radians.numpy())), axis=1)


def _limits(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    if not len(x):
        return 0.0, 1.0
    both = np.concatenate((x, y))
    low, high = float(np.percentile(both, 0.1)), float(np.percentile(both, 99.9))
    margin = max(0.04 * (high - low), 0.02 * abs(high), 0.05)
    return low - margin, high + margin

"""Pictures of the model: its training, what it gives back of a window, what it predicts, and how far that errs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from crystalvae.evaluation.report.style import GENERATED, INK, Plot, finish, legend, new_figure
from crystalvae.sequence_module.generated_files import Forecast

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_FEATURES = 6
_PREDICTED = "#e08214"
_LINES = {
    "model": ("this model", _PREDICTED, "-"),
    "last_frame": ("last frame", "#5b6674", "--"),
    "linear": ("linear extrapolation", "#8b94a0", ":"),
    "ar1": ("AR(1) of each feature", "#1b9e77", "--"),
    "mean": ("training mean", "#7a5bb5", ":"),
}
_LOGGED = ("loss", "reconstruction", "future", "kl", "cluster")


def reconstruction_plot(forecast: Forecast, names: list[str]) -> Plot:
    """Draw the features that vary the most in a window: true, given back, and predicted beyond it."""
    rows = varying(forecast)
    window = len(forecast.window)
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure = new_figure(3.5 * columns, 1.9 * lines + 0.3)
    time = (forecast.start + np.arange(window + max(len(forecast.true), _length(forecast)))) * forecast.step / 1000.0
    for number, row in enumerate(rows.tolist()):
        axes = figure.add_subplot(lines, columns, number + 1)
        axes.axvspan(time[0], time[window - 1], color="#f0f3f7", linewidth=0)
        true = torch.cat((forecast.window, forecast.true))[:, row].cpu().numpy()
        axes.plot(time[: len(true)], true, color=INK, linewidth=1.0, label="true")
        axes.plot(time[:window], forecast.reconstruction[:, row].cpu().numpy(), color=GENERATED, label="reconstruction")
        if forecast.predicted is not None:
            predicted = forecast.predicted[:, row].cpu().numpy()
            axes.plot(time[window : window + len(predicted)], predicted, color=_PREDICTED, label="prediction")
        axes.set_title(names[row])
        if number + columns >= len(rows):
            axes.set_xlabel("time (ps)")
        if number == 0:
            axes.legend(fontsize=7.5, loc="best")
    return finish(
        figure,
        name="reconstruction",
        title="Reconstruction and future against truth",
        caption=f"Trajectory {forecast.id}: the features that vary the most in the window (grey), in units of their "
        "standard deviation. The window is decoded from its latent; what follows is predicted from the window alone.",
        wide=True,
    )


def varying(forecast: Forecast) -> Int[np.ndarray, "_"]:
    """Return the numbers of the features that vary the most within the window, at most six, in order."""
    spread = forecast.window.std(dim=0).cpu().numpy()
    return np.sort(np.argsort(-spread, kind="stable")[:MOST_FEATURES])


def _length(forecast: Forecast) -> int:
    return 0 if forecast.predicted is None else len(forecast.predicted)


def forecast_plot(errors: pd.DataFrame, *, held_out: str) -> Plot:
    """Draw the error of predictions over the horizon, beside what needs no model."""
    figure = new_figure(5.0, 3.6)
    axes = figure.add_subplot()
    for name, (label, colour, style) in _LINES.items():
        width = 2.0 if name == "model" else 1.3
        axes.plot(errors["horizon"], errors[name], style, color=colour, label=label, linewidth=width)
    axes.set(xlabel="frames ahead", ylabel="mean squared error", yscale="log")
    axes.set_ylim(top=2.0 * float(errors[["model", "last_frame", "mean"]].to_numpy().max()))
    axes.legend(loc="lower right")
    return finish(
        figure,
        name="forecast_errors",
        title="Errors of predictions",
        caption=f"Of standardised features, over all windows of the {held_out} part; the axis ends where only the "
        "linear extrapolation goes on.",
    )


def training_plot(training: pd.DataFrame) -> Plot:
    """Draw the parts of the loss over epochs, each in a panel of its own, and the annealing weight."""
    parts = [name for name in _LOGGED if f"val/{name}" in training or f"train/{name}" in training]
    figure = new_figure(10.4, 2.4)
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    for axes, name in zip(panels, parts, strict=True):
        for split, colour in (("train", "#8b94a0"), ("val", GENERATED)):
            if f"{split}/{name}" in training:
                values = training[f"{split}/{name}"].dropna()
                axes.plot(values.index, values, color=colour, label=split, linewidth=1.3)
        axes.set(title=name, xlabel="epoch", yscale="log" if _positive(training, name) else "linear")
        _shade_annealing(axes, training)
    legend(panels[-1])
    return finish(
        figure,
        name="training",
        title="Training",
        caption="Parts of the loss, unweighted, over epochs. Grey: epochs in which KL and cluster loss do not weigh "
        "fully yet; no model is kept as the best there.",
        wide=True,
    )


def _positive(training: pd.DataFrame, name: str) -> bool:
    columns = [f"{split}/{name}" for split in ("train", "val") if f"{split}/{name}" in training]
    values: Float[np.ndarray, "_"] = training[columns].to_numpy(dtype=float).ravel()
    return bool((values[np.isfinite(values)] > 0).all())


def _shade_annealing(axes: Axes, training: pd.DataFrame) -> None:
    if "train/annealing_weight" not in training:
        return
    weight = training["train/annealing_weight"].dropna()
    partial = weight.index.to_numpy(dtype=float)[weight.to_numpy() <= 0.99]
    if len(partial):
        axes.axvspan(float(partial.min()), float(partial.max()), color="#f0f3f7", linewidth=0)

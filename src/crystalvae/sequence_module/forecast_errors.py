"""How well frames are predicted, beside the last frame, a straight line and an autoregression of each feature."""

from __future__ import annotations

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from crystalvae.errors import DataError
from crystalvae.sequence_module.generation import forecast
from crystalvae.sequence_module.sequence_module import SequenceModule
from crystalvae.sequence_module.windows import FrameSet


@torch.no_grad()
def forecast_errors(
    module: SequenceModule, train: FrameSet, test: FrameSet, *, horizons: int = 15, batch_size: int = 1024
) -> pd.DataFrame:
    """Return mean squared errors of standardised features, a row a horizon from 1 to `horizons` frames ahead.

    Columns: the `model`; `last_frame`, which stays; `linear`, which goes on as from the last frame but one to the last;
    `ar1`, x' = c + φ (x - c) for each feature, fitted to the training frames; and `mean`, the training mean. All
    predict the same frames, after every window of the test set. Features that are constant in training count nowhere.
    """
    window = module.model.window
    starts = test.starts(window + horizons)
    if len(starts) == 0:
        raise DataError(f"no window of {window} frames with {horizons} after it; the longest is {max(test.lengths)}")
    varies = module.features.std > 0
    centre, factor = autoregression(train)
    ahead = torch.arange(1, horizons + 1, device=test.frames.device, dtype=test.frames.dtype)[None, :, None]
    sums: dict[str, Tensor] = {}
    for part in starts.split(batch_size):
        whole = test.gather(part, window + horizons)
        past, future = whole[:, :window], whole[:, window:]
        last, before = past[:, -1:], past[:, -2:-1]
        predictions = {
            "model": forecast(module, past, horizons),
            "last_frame": last.expand_as(future),
            "linear": last + ahead * (last - before),
            "ar1": centre + factor**ahead * (last - centre),
            "mean": torch.zeros_like(future),
        }
        for name, predicted in predictions.items():
            errors = (predicted - future).square()[..., varies].mean(dim=-1).double().sum(dim=0)
            sums[name] = sums.get(name, torch.zeros_like(errors)) + errors
    columns = {name: (total / len(starts)).cpu().numpy() for name, total in sums.items()}
    return pd.DataFrame({"horizon": range(1, horizons + 1), **columns})


def autoregression(train: FrameSet) -> tuple[Float[Tensor, "F"], Float[Tensor, "F"]]:
    """Return centre c and factor φ of each feature, the least-squares fit of x(t + 1) - c = φ (x(t) - c).

    Pairs of frames are taken within segments. Where a feature does not vary, φ is 0.
    """
    pairs = train.gather(train.starts(2), 2).double()
    now, then = pairs[:, 0], pairs[:, 1]
    mean_now, mean_then = now.mean(dim=0), then.mean(dim=0)
    variance = (now - mean_now).square().mean(dim=0)
    covariance = ((now - mean_now) * (then - mean_then)).mean(dim=0)
    factor = torch.where(variance > 0, covariance / variance.clamp_min(1e-300), 0.0)
    moving = (1.0 - factor).abs() > 1e-9
    centre = torch.where(moving, (mean_then - factor * mean_now) / torch.where(moving, 1.0 - factor, 1.0), mean_now)
    return centre.to(train.frames.dtype), factor.to(train.frames.dtype)

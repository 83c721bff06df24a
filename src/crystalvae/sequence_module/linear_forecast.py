"""The frames after a window as a linear map of its last frames, by ridge regression."""

from __future__ import annotations

import logging

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystalvae.sequence_module.windows import FrameSet
from crystalvae.vae_module.layers.precision import full_precision

log = logging.getLogger(__name__)

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Of the squared weights, in units of the mean square of the inputs."""
_WINDOWS_AT_A_TIME = 4096


class LinearForecast(nn.Module):
    """Each of S frames after a window as a linear map of its last P frames, all of F standardised features.

    What a latent of few dimensions cannot carry, where each atom is and how quickly it moves, goes past it. `fit` finds
    the map before the rest is trained, and it stays; until then it predicts the mean, 0. An autoregressive part beside
    a recurrent one: Lai et al., SIGIR 2018, doi:10.1145/3209978.3210006.
    """

    weight: Tensor

    def __init__(self, *, last_frames: int, steps: int, num_features: int) -> None:
        super().__init__()
        self.last_frames, self.steps = last_frames, steps
        self.register_buffer("weight", torch.zeros(steps, last_frames * num_features, num_features))

    def forward(self, windows: Float[Tensor, "B T F"]) -> Float[Tensor, "B S F"]:
        """Predict from windows."""
        with full_precision(windows):
            return torch.einsum("bi,sif->bsf", self._inputs(windows.float()), self.weight)

    @torch.no_grad()
    def fit(self, train: FrameSet, val: FrameSet) -> None:
        """Fit to all windows of `train`: for each frame ahead with the penalty that errs the least on `val`."""
        gram, cross, count = self._moments(train)
        scale = gram.diagonal().mean().clamp_min(1e-12)
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        right = cross.transpose(0, 1).flatten(1)  # (PF, S F)
        weights = [torch.linalg.solve(gram + p * scale * eye, right).unflatten(1, (self.steps, -1)) for p in PENALTIES]
        candidates = torch.stack([entry.transpose(0, 1) for entry in weights])  # (penalties, S, PF, F)
        errors = self._errors(candidates, val)
        best = errors.argmin(dim=0)
        self.weight.copy_(candidates[best, torch.arange(self.steps, device=best.device)])
        log.info(
            "linear forecast of %d frames, fitted to %d windows: squared error %.3g one frame ahead, %.3g %d ahead",
            self.last_frames,
            count,
            float(errors[best[0], 0]),
            float(errors[best[-1], -1]),
            self.steps,
        )

    def _inputs(self, windows: Float[Tensor, "B T F"]) -> Float[Tensor, "B PF"]:
        return windows[:, -self.last_frames :].flatten(1)

    def _moments(self, frames: FrameSet) -> tuple[Float[Tensor, "PF PF"], Float[Tensor, "S PF F"], int]:
        """Return XᵀX and XᵀY over the number of windows, and that number."""
        length = self.last_frames + self.steps
        starts = frames.starts(length)
        gram: Tensor | float = 0.0
        cross: Tensor | float = 0.0
        for part in starts.split(_WINDOWS_AT_A_TIME):
            windows = frames.gather(part, length).double()
            inputs = windows[:, : self.last_frames].flatten(1)
            gram = gram + inputs.T @ inputs / len(starts)
            cross = cross + torch.einsum("bi,bsf->sif", inputs, windows[:, self.last_frames :]) / len(starts)
        assert isinstance(gram, Tensor)  # noqa: S101  a part to train on has windows
        assert isinstance(cross, Tensor)  # noqa: S101
        return gram, cross, len(starts)

    def _errors(self, candidates: Float[Tensor, "C S PF F"], frames: FrameSet) -> Float[Tensor, "C S"]:
        """Return the mean squared error of each candidate on each frame ahead."""
        length = self.last_frames + self.steps
        starts = frames.starts(length)
        total = torch.zeros(candidates.shape[:2], dtype=candidates.dtype, device=candidates.device)
        for part in starts.split(_WINDOWS_AT_A_TIME):
            windows = frames.gather(part, length).double()
            inputs, future = windows[:, : self.last_frames].flatten(1), windows[:, self.last_frames :]
            for row, weight in enumerate(candidates):
                predicted = torch.einsum("bi,sif->bsf", inputs, weight)
                total[row] += (predicted - future).square().mean(dim=-1).sum(dim=0) / len(starts)
        return total

"""The sequence VAE: a window of frames to one latent, and back to the window and the frames that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from crystalvae.checks import check_count, check_dropout
from crystalvae.errors import CheckpointError, ConfigError
from crystalvae.sequence_module.linear_forecast import LinearForecast
from crystalvae.sequence_module.windows import FrameSet
from crystalvae.vae_module.layers.precision import full_precision

_LAYERS = 2
"""Of the encoder; the published weights have as many."""
_SHARE_WINDOWS = 2000
"""About so many decide on the share of the future decoder."""


@dataclass(frozen=True)
class SequencePosterior:
    """q(z | window) of B windows: mean and log σ², each (B, L)."""

    mean: Float[Tensor, "B L"]
    logvar: Float[Tensor, "B L"]

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "B L"]:
        """Draw z = μ + exp(½ log σ²) ε with ε from N(0, I)."""
        normal = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * normal


class SequenceEncoder(nn.Module):
    """A bidirectional GRU (Cho et al. 2014) of two layers; its four final states, side by side, give μ and log σ².

    The states are those of layer 0 forwards, layer 0 backwards, layer 1 forwards, layer 1 backwards. With `softplus`
    log σ² is never negative, as one published variant has it. Dropout acts between the layers.
    """

    def __init__(
        self, *, num_features: int, hidden_size: int, latent_dim: int, softplus: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_dropout("model.dropout", dropout)
        self.gru = nn.GRU(num_features, hidden_size, _LAYERS, batch_first=True, bidirectional=True, dropout=dropout)
        self.to_mean = nn.Linear(2 * _LAYERS * hidden_size, latent_dim)
        self.to_logvar = nn.Linear(2 * _LAYERS * hidden_size, latent_dim)
        self.softplus = softplus

    def forward(self, windows: Float[Tensor, "B T F"]) -> SequencePosterior:
        """Encode windows."""
        with full_precision(windows):
            _, states = self.gru(windows.float())
            hidden = states.transpose(0, 1).flatten(1)  # (4, B, H) -> (B, 4 H)
            logvar = self.to_logvar(hidden)
            return SequencePosterior(self.to_mean(hidden), F.softplus(logvar) if self.softplus else logvar)


class SequenceDecoder(nn.Module):
    """A bidirectional GRU that is fed with z at every step and started from a linear map of z; its output is linear.

    The first half of that map is the state in which the forward direction starts, the second that of the backward one.
    """

    def __init__(self, *, latent_dim: int, hidden_size: int, num_features: int) -> None:
        super().__init__()
        self.gru = nn.GRU(latent_dim, hidden_size, 1, batch_first=True, bidirectional=True)
        self.to_states = nn.Linear(latent_dim, 2 * hidden_size)
        self.to_output = nn.Linear(2 * hidden_size, num_features)

    def forward(self, latents: Float[Tensor, "B L"], steps: int) -> Float[Tensor, "B steps F"]:
        """Decode `steps` frames from each latent."""
        with full_precision(latents):
            latents = latents.float()
            states = self.to_states(latents).unflatten(1, (2, -1)).transpose(0, 1).contiguous()  # (2, B, H)
            hidden, _ = self.gru(latents[:, None].expand(-1, steps, -1).contiguous(), states)
            return self.to_output(hidden)


class SequenceVAE(nn.Module):
    """Encoder, decoder and future decoder over windows of `window` frames of `num_features` numbers each.

    The future decoder predicts the `future_steps` frames after the window; `future_decoder=False` drops it. The sizes
    of hidden states are those of one direction. Architecture: Luxem et al., Commun. Biol. 5, 1267 (2022), but for one
    thing: a window alone gives what it gives in a batch. With `last_frames` above 0, which the published one has not,
    the prediction is a `LinearForecast` of so many frames plus what the future decoder makes of the latent, outside of
    training a share of it (`fit_future_share`).
    """

    future_share: Tensor

    def __init__(
        self,
        *,
        num_features: int,
        window: int = 30,
        future_decoder: bool = True,
        future_steps: int = 15,
        latent_dim: int = 30,
        hidden_size: int = 256,
        hidden_size_reconstruction: int = 256,
        hidden_size_prediction: int = 256,
        last_frames: int = 0,
        softplus: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        counts = {
            "num_features": num_features,
            "future_steps": future_steps,
            "latent_dim": latent_dim,
            "hidden_size": hidden_size,
            "hidden_size_reconstruction": hidden_size_reconstruction,
            "hidden_size_prediction": hidden_size_prediction,
        }
        check_count("model.window", window, at_least=2)
        for key, value in counts.items():
            check_count(f"model.{key}", value)
        if future_decoder and future_steps > window:
            raise ConfigError(f"model.future_steps: got {future_steps}; expected at most the {window} of model.window")
        check_count("model.last_frames", last_frames, at_least=0)
        if last_frames > (window if future_decoder else 0):
            most = f"at most the {window} of model.window" if future_decoder else "0 without a future decoder"
            raise ConfigError(f"model.last_frames: got {last_frames}; expected {most}")
        self.num_features, self.window, self.latent_dim = num_features, window, latent_dim
        self.future_steps = future_steps if future_decoder else 0
        self.encoder = SequenceEncoder(
            num_features=num_features,
            hidden_size=hidden_size,
            latent_dim=latent_dim,
            softplus=softplus,
            dropout=dropout,
        )
        self.decoder = SequenceDecoder(
            latent_dim=latent_dim, hidden_size=hidden_size_reconstruction, num_features=num_features
        )
        self.future_decoder = None
        if future_decoder:
            self.future_decoder = SequenceDecoder(
                latent_dim=latent_dim, hidden_size=hidden_size_prediction, num_features=num_features
            )
        self.linear_forecast = None
        if last_frames:
            self.linear_forecast = LinearForecast(
                last_frames=last_frames, steps=future_steps, num_features=num_features
            )
            self.register_buffer("future_share", torch.ones(future_steps))

    def encode(self, windows: Float[Tensor, "B T F"]) -> SequencePosterior:
        """Return q(z | window)."""
        if windows.shape[2] != self.num_features:
            raise ConfigError(f"windows: got {windows.shape[2]} features a frame; expected {self.num_features}")
        return self.encoder(windows)

    def decode(self, latents: Float[Tensor, "B L"]) -> Float[Tensor, "B T F"]:
        """Return the windows that latents stand for."""
        return self.decoder(latents, self.window)

    def predict(
        self, latents: Float[Tensor, "B L"], windows: Float[Tensor, "B T F"] | None = None
    ) -> Float[Tensor, "B S F"]:
        """Return the `future_steps` frames after the windows, which a model with `last_frames` has to be given.

        Raises `ConfigError` for a model without a future decoder, and where the windows are needed and missing.
        """
        if self.future_decoder is None:
            raise ConfigError("this model has no future decoder: it was trained with model.future_decoder=false")
        change = self.future_decoder(latents, self.future_steps)
        if self.linear_forecast is None:
            return change
        if windows is None:
            raise ConfigError("predict: this model goes on from the last frames (model.last_frames): give the windows")
        share = torch.ones_like(self.future_share) if self.training else self.future_share
        return self.linear_forecast(windows) + share[:, None] * change

    @torch.no_grad()
    def fit_future_share(self, frames: FrameSet) -> None:
        """Take over which share of the future decoder's change errs the least, in [0, 1] for each frame ahead.

        It is found on frames that are not trained on, and used outside of training: where the latent tells nothing of
        what the linear forecast leaves, the decoder has only learnt the training frames by heart, and the share is 0.
        """
        assert self.linear_forecast is not None  # noqa: S101  asked for only where there is one
        assert self.future_decoder is not None  # noqa: S101
        length = self.window + self.future_steps
        starts = frames.starts(length)
        found = torch.zeros(2, self.future_steps, dtype=torch.float64, device=frames.frames.device)
        for part in starts[:: max(1, len(starts) // _SHARE_WINDOWS)].split(1024):
            windows = frames.gather(part, length)
            past, future = windows[:, : self.window], windows[:, self.window :]
            change = self.future_decoder(self.encode(past).mean, self.future_steps)
            left = future - self.linear_forecast(past)
            found += torch.stack(((change * left).sum(dim=(0, 2)), change.square().sum(dim=(0, 2))))
        self.future_share.copy_((found[0] / found[1].clamp_min(1e-12)).clamp(0.0, 1.0))

    @classmethod
    def from_vame(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        window: int,
        future_steps: int | None = None,
        softplus: bool = False,
    ) -> SequenceVAE:
        """Build a model from the weights of the published package, in evaluation mode.

        Sizes and whether there is a future decoder are read off the weights. What they do not tell: the frames of a
        window, the frames predicted (None: half a window), and whether log σ² passes a softplus.
        Raises `CheckpointError` naming what is missing or does not fit.
        """
        weights = {_renamed(name): value for name, value in state_dict.items()}
        try:
            sizes = {
                "num_features": weights["encoder.gru.weight_ih_l0"].shape[1],
                "hidden_size": weights["encoder.gru.weight_hh_l0"].shape[1],
                "latent_dim": weights["encoder.to_mean.weight"].shape[0],
                "hidden_size_reconstruction": weights["decoder.gru.weight_hh_l0"].shape[1],
            }
        except KeyError as error:
            raise CheckpointError(f"no weights of the published sequence model: {error} is missing") from error
        future = weights.get("future_decoder.gru.weight_hh_l0")
        if future is not None:
            sizes["hidden_size_prediction"] = future.shape[1]
        model = cls(
            window=window,
            future_decoder=future is not None,
            future_steps=max(1, window // 2) if future_steps is None else future_steps,
            softplus=softplus,
            **sizes,
        )
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:500]
            raise CheckpointError(f"the weights are not those of the published sequence model: {reason}") from error
        return model.eval()


_PUBLISHED_NAMES = {
    "encoder.encoder_rnn.": "encoder.gru.",
    "lmbda.hidden_to_mean.": "encoder.to_mean.",
    "lmbda.hidden_to_logvar.": "encoder.to_logvar.",
    "decoder.rnn_rec.": "decoder.gru.",
    "decoder.latent_to_hidden.": "decoder.to_states.",
    "decoder.hidden_to_output.": "decoder.to_output.",
    "decoder_future.rnn_pred.": "future_decoder.gru.",
    "decoder_future.latent_to_hidden.": "future_decoder.to_states.",
    "decoder_future.hidden_to_output.": "future_decoder.to_output.",
}
"""Beginnings of the published parameters' names, and ours."""


def _renamed(name: str) -> str:
    for published, own in _PUBLISHED_NAMES.items():
        if name.startswith(published):
            return own + name.removeprefix(published)
    return name

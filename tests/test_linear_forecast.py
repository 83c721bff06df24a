"""The linear part of forecasts: what it finds, what it needs, and how the future decoder is weighed against it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crystalvae.errors import ConfigError
from crystalvae.sequence_module.forecast_errors import forecast_errors
from crystalvae.sequence_module.linear_forecast import LinearForecast
from crystalvae.sequence_module.sequence_vae import SequenceVAE
from crystalvae.sequence_module.windows import FrameSet
from tests.sequences import TINY, built, datamodule, swinging, tiny_module

TURN = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
"""A rotation: two features that swing a quarter of a period apart."""


def turning(frames: int = 200, noise: float = 0.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.tensor([1.0, 0.0])]
    for _ in range(frames - 1):
        rows.append(rows[-1] @ TURN)
    return torch.stack(rows) + noise * torch.randn(frames, 2, generator=generator)


def model(**options) -> SequenceVAE:
    torch.manual_seed(0)
    return SequenceVAE(num_features=2, **{**TINY, "last_frames": 3, **options}).eval()


def test_what_goes_on_linearly_is_predicted_exactly():
    frames = FrameSet.of([turning(), turning()[7:]])
    part = LinearForecast(last_frames=2, steps=5, num_features=2)
    assert part(turning()[None, :10]).abs().max() == 0.0  # before it is fitted: the mean
    part.fit(frames, frames)
    torch.testing.assert_close(part(turning()[None, :10])[0], turning()[10:15], atol=2e-3, rtol=0.0)
    torch.testing.assert_close(part(turning()[None, 3:10]), part(turning()[None, 8:10]))  # of the last frames alone


def test_noise_that_tells_nothing_is_not_learnt():
    generator = torch.Generator().manual_seed(0)
    train, val = (FrameSet.of([torch.randn(120, 2, generator=generator)]) for _ in range(2))
    part = LinearForecast(last_frames=20, steps=2, num_features=2)
    part.fit(train, val)
    windows = val.gather(val.starts(22), 22)
    error = (part(windows[:, :20]) - windows[:, 20:]).square().mean()
    assert float(error) < 1.05 * float(windows[:, 20:].square().mean())


def test_no_window_of_the_fit_spans_two_segments():
    jump = FrameSet.of([turning(40), 50.0 + turning(40)])
    part = LinearForecast(last_frames=1, steps=1, num_features=2)
    gram, _, count = part._moments(jump)
    assert count == 2 * 39
    by_hand = torch.cat([turning(40)[:-1], 50.0 + turning(40)[:-1]]).double()
    torch.testing.assert_close(gram, by_hand.T @ by_hand / count)


def test_a_prediction_is_the_linear_one_and_a_share_of_the_decoders_change():
    made, past = model(), turning(8)[None]
    made.linear_forecast.fit(FrameSet.of([turning()]), FrameSet.of([turning()]))
    latents = made.encode(past).mean
    change = made.future_decoder(latents, 4)
    torch.testing.assert_close(made.predict(latents, past), made.linear_forecast(past) + change)
    made.future_share.copy_(torch.tensor([1.0, 0.5, 0.0, 0.25]))
    expected = made.linear_forecast(past) + made.future_share[:, None] * change
    torch.testing.assert_close(made.predict(latents, past), expected)
    made.train()
    torch.testing.assert_close(made.predict(latents, past), made.linear_forecast(past) + change)
    with pytest.raises(ConfigError, match="give the windows"):
        made.predict(latents)


def test_the_share_is_the_least_squares_one_within_0_and_1():
    made = model()
    frames = FrameSet.of([turning(noise=0.3)])
    made.linear_forecast.fit(frames, frames)
    made.fit_future_share(frames)
    windows = frames.gather(frames.starts(12), 12)
    past, future = windows[:, :8], windows[:, 8:]
    change = made.future_decoder(made.encode(past).mean, 4)
    left = future - made.linear_forecast(past)
    expected = ((change * left).sum(dim=(0, 2)) / change.square().sum(dim=(0, 2))).clamp(0.0, 1.0)
    torch.testing.assert_close(made.future_share, expected, atol=1e-4, rtol=1e-4)
    assert 0.0 <= float(made.future_share.min()) <= float(made.future_share.max()) <= 1.0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"last_frames": 9}, "got 9; expected at most the 8 of model.window"),
        ({"last_frames": 1, "future_decoder": False}, "expected 0 without a future decoder"),
        ({"last_frames": -1}, "expected a whole number of at least 0"),
    ],
)
def test_frames_that_cannot_be_are_refused(options, reason):
    with pytest.raises(ConfigError, match=f"model.last_frames: .*{reason}"):
        model(**options)


def test_without_it_the_model_is_the_published_one():
    plain = SequenceVAE(num_features=2, **TINY)
    assert plain.linear_forecast is None
    assert not any("share" in name or "linear" in name for name in plain.state_dict())


@pytest.mark.filterwarnings("ignore")
def test_training_fits_it_first_and_the_checkpoint_keeps_it(tmp_path):
    import lightning as L

    data = datamodule()
    module = tiny_module(model={**TINY, "last_frames": 2})
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    L.Trainer(max_epochs=2, enable_model_summary=False, **options).fit(module, datamodule=data)
    weight = module.model.linear_forecast.weight
    assert weight.abs().max() > 0.1
    module.save_checkpoint(tmp_path / "model.ckpt")
    again = type(module).load_from_checkpoint(tmp_path / "model.ckpt")
    torch.testing.assert_close(again.model.linear_forecast.weight, weight)
    torch.testing.assert_close(again.model.future_share, module.model.future_share)
    frames = {name: again.frames(data.parts(name)) for name in ("train", "test")}
    errors = forecast_errors(again, frames["train"], frames["test"], horizons=4)
    assert (errors["model"] < errors[["last_frame", "linear", "ar1"]].min(axis=1)).all()


def test_forecasts_are_rolled_on_from_the_frames_predicted():
    from crystalvae.sequence_module.generation import forecast

    module = built(model={**TINY, "last_frames": 2})
    frames = module.frames([swinging()])
    module.model.linear_forecast.fit(frames, frames)
    past = frames.frames[None, :8]
    made = forecast(module, past, 8)
    seen = torch.cat((past, made[:, :4]), dim=1)[:, -8:]
    torch.testing.assert_close(made[:, 4:], module.model.predict(module.model.encode(seen).mean, seen))

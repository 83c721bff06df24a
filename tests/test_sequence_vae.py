"""The sequence VAE and its loss: parity with the published architecture, by its weights and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crystalvae.errors import CheckpointError, ConfigError
from crystalvae.sequence_module.losses import (
    cluster_loss,
    future_reconstruction_loss,
    gaussian,
    kl_annealing,
    kullback_leibler_loss,
    reconstruction_loss,
)
from crystalvae.sequence_module.sequence_vae import SequencePosterior, SequenceVAE

SMALL: dict[str, Any] = {
    "num_features": 3,
    "window": 6,
    "future_steps": 4,
    "latent_dim": 5,
    "hidden_size": 7,
    "hidden_size_reconstruction": 4,
    "hidden_size_prediction": 3,
}


def small(seed: int = 0, **options: Any) -> SequenceVAE:
    torch.manual_seed(seed)
    return SequenceVAE(**{**SMALL, **options}).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- parity with the published weights -------------------------------------------------------------------------------


@pytest.fixture(params=["future", "plain"])
def published(request: pytest.FixtureRequest, parity_dir: Path) -> dict[str, Any]:
    return torch.load(parity_dir / f"vame_{request.param}.pt", weights_only=True)


def load(published: dict[str, Any]) -> SequenceVAE:
    config = published["config"]
    options = {key: config[key] for key in ("window", "future_steps", "softplus")}
    return SequenceVAE.from_vame(published["state_dict"], **options)


@torch.no_grad()
def test_published_weights_give_what_they_gave(published: dict[str, Any]):
    model, expected = load(published), published["expected"]
    posterior = model.encode(published["windows"])
    close = {"atol": 1e-5, "rtol": 0.0}
    torch.testing.assert_close(posterior.mean, expected["mean"], **close)
    torch.testing.assert_close(posterior.logvar, expected["logvar"], **close)
    torch.testing.assert_close(model.decode(posterior.mean), expected["reconstruction"], **close)
    assert (model.future_decoder is not None) == published["config"]["future_decoder"]
    if model.future_decoder is not None:
        torch.testing.assert_close(model.predict(posterior.mean), expected["future"], **close)


def test_losses_are_the_published_ones(published: dict[str, Any]):
    expected = published["expected"]
    for reduction, value in expected["reconstruction_loss"].items():
        found = reconstruction_loss(published["windows"], expected["reconstruction"], reduction)
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5)
    for reduction, value in expected.get("future_reconstruction_loss", {}).items():
        found = future_reconstruction_loss(published["future"], expected["future"], reduction)
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5)
    found = kullback_leibler_loss(expected["mean"], expected["logvar"])
    torch.testing.assert_close(found, expected["kullback_leibler_loss"], rtol=0.0, atol=1e-5)
    for name, value in expected["cluster_loss"].items():
        clusters, weight = (float(entry.split("=")[1]) for entry in name.split(","))
        torch.testing.assert_close(cluster_loss(expected["mean"], int(clusters), weight), value, rtol=0.0, atol=1e-5)
    for name, weights in expected["kl_annealing"].items():
        function, start, time = name.split(",")
        arguments = (int(start.split("=")[1]), int(time.split("=")[1]), function)
        assert [kl_annealing(epoch, *arguments) for epoch in range(15)] == pytest.approx(weights.tolist(), abs=1e-5)


# ---- the same, worked out by hand ------------------------------------------------------------------------------------


def numpy_gru(weights: dict[str, np.ndarray], suffix: str, inputs: np.ndarray, state: np.ndarray) -> np.ndarray:
    """States (T, H) of one direction of one layer over inputs (T, I), from Cho et al. 2014, gates r, z, n in order."""
    names = (f"weight_ih{suffix}", f"weight_hh{suffix}", f"bias_ih{suffix}", f"bias_hh{suffix}")
    w, u, b, c = (weights[name] for name in names)
    states = []
    for x in inputs:
        given, held = w @ x + b, u @ state + c
        size = len(state)
        r, z = (1 / (1 + np.exp(-(given[i : i + size] + held[i : i + size]))) for i in (0, size))
        n = np.tanh(given[2 * size :] + r * held[2 * size :])
        state = (1 - z) * n + z * state
        states.append(state)
    return np.stack(states)


def both_ways(weights: dict[str, np.ndarray], layer: int, inputs: np.ndarray, states: np.ndarray) -> np.ndarray:
    forwards = numpy_gru(weights, f"_l{layer}", inputs, states[0])
    backwards = numpy_gru(weights, f"_l{layer}_reverse", inputs[::-1], states[1])[::-1]
    return np.concatenate((forwards, backwards), axis=1)


def arrays(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in module.state_dict().items()}


def decoded_by_hand(weights: dict[str, np.ndarray], latent: np.ndarray, steps: int) -> np.ndarray:
    gru = {name.removeprefix("gru."): value for name, value in weights.items() if name.startswith("gru.")}
    states = (weights["to_states.weight"] @ latent + weights["to_states.bias"]).reshape(2, -1)
    hidden = both_ways(gru, 0, np.tile(latent, (steps, 1)), states)
    return hidden @ weights["to_output.weight"].T + weights["to_output.bias"]


@torch.no_grad()
def test_a_window_is_encoded_and_decoded_as_by_hand():
    model = small()
    window = noise(6, 3)
    encoder = arrays(model.encoder)
    gru = {name.removeprefix("gru."): value for name, value in encoder.items() if name.startswith("gru.")}
    first = both_ways(gru, 0, window.double().numpy(), np.zeros((2, 7)))
    second = both_ways(gru, 1, first, np.zeros((2, 7)))
    final = np.concatenate((first[-1, :7], first[0, 7:], second[-1, :7], second[0, 7:]))
    mean = encoder["to_mean.weight"] @ final + encoder["to_mean.bias"]
    logvar = encoder["to_logvar.weight"] @ final + encoder["to_logvar.bias"]
    posterior = model.encode(window[None])
    np.testing.assert_allclose(posterior.mean[0], mean, atol=1e-6)
    np.testing.assert_allclose(posterior.logvar[0], logvar, atol=1e-6)
    latents = torch.from_numpy(mean).float()[None]
    np.testing.assert_allclose(model.decode(latents)[0], decoded_by_hand(arrays(model.decoder), mean, 6), atol=1e-6)
    assert model.future_decoder is not None
    future = decoded_by_hand(arrays(model.future_decoder), mean, 4)
    np.testing.assert_allclose(model.predict(latents)[0], future, atol=1e-6)


@torch.no_grad()
def test_softplus_keeps_log_variances_above_zero_and_changes_nothing_else():
    plain, soft = small(), small(softplus=True)
    window = 3.0 * noise(20, 6, 3)
    before, after = plain.encode(window), soft.encode(window)
    assert bool((before.logvar < 0).any())
    torch.testing.assert_close(after.logvar, torch.log1p(before.logvar.exp()))
    torch.testing.assert_close(after.mean, before.mean)


@torch.no_grad()
def test_a_window_alone_gives_what_it_gives_in_a_batch():
    model, batch = small(), noise(9, 6, 3)
    posterior = model.encode(batch)
    whole = model.decode(posterior.mean), model.predict(posterior.mean)
    for row in range(len(batch)):
        alone = model.encode(batch[row : row + 1])
        torch.testing.assert_close(alone.mean[0], posterior.mean[row])
        torch.testing.assert_close(model.decode(alone.mean)[0], whole[0][row], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.predict(alone.mean)[0], whole[1][row], atol=1e-5, rtol=1e-5)


def test_every_parameter_learns():
    model = small()
    windows = noise(8, 10, 3)
    posterior = model.encode(windows[:, :6])
    latents = posterior.sample(torch.Generator().manual_seed(0))
    loss = (
        reconstruction_loss(windows[:, :6], model.decode(latents))
        + future_reconstruction_loss(windows[:, 6:], model.predict(latents))
        + kullback_leibler_loss(posterior.mean, posterior.logvar)
        + cluster_loss(latents, 3)
    )
    loss.backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


@torch.no_grad()
def test_draws_have_the_posterior_mean_and_variance():
    posterior = SequencePosterior(
        torch.tensor([[1.0, -2.0]]).repeat(20000, 1), torch.tensor([[0.0, 1.0]]).repeat(20000, 1)
    )
    drawn = posterior.sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(dim=0), torch.tensor([1.0, -2.0]), atol=0.05, rtol=0.0)
    torch.testing.assert_close(drawn.var(dim=0), torch.tensor([1.0, np.e]).float(), atol=0.1, rtol=0.0)


def test_published_names_are_ours():
    model = small()
    names = {
        "encoder.gru": "encoder.encoder_rnn",
        "encoder.to": "lmbda.hidden_to",
        "decoder.gru": "decoder.rnn_rec",
        "decoder.to_states": "decoder.latent_to_hidden",
        "decoder.to_output": "decoder.hidden_to_output",
    }
    future = {
        "future_decoder.gru": "decoder_future.rnn_pred",
        "future_decoder.to_states": "decoder_future.latent_to_hidden",
        "future_decoder.to_output": "decoder_future.hidden_to_output",
    }
    weights = {}
    for name, value in model.state_dict().items():
        own = next(own for own in (*future, *names) if name.startswith(own))
        weights[name.replace(own, {**names, **future}[own], 1)] = value
    again = SequenceVAE.from_vame(weights, window=6, future_steps=4)
    assert {name: value.tolist() for name, value in again.state_dict().items()} == {
        name: value.tolist() for name, value in model.state_dict().items()
    }
    del weights["decoder.hidden_to_output.bias"]
    with pytest.raises(CheckpointError, match=r"to_output\.bias"):
        SequenceVAE.from_vame(weights, window=6)
    with pytest.raises(CheckpointError, match="weight_ih_l0"):
        SequenceVAE.from_vame({"fc.weight": torch.zeros(1)}, window=6)


# ---- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_type_checks")
def test_errors_are_means_or_sums_of_squares():
    windows, decoded = torch.zeros(2, 3, 4), torch.full((2, 3, 4), 2.0)
    for loss in (reconstruction_loss, future_reconstruction_loss):
        assert float(loss(windows, decoded, "sum")) == 96.0
        assert float(loss(windows, decoded, "mean")) == 4.0
        assert float(loss(windows, decoded)) == 96.0  # as published
        with pytest.raises(ConfigError, match="mean or sum"):
            loss(windows, decoded, "max")  # pyright: ignore[reportArgumentType]


def test_kl_equals_that_of_torch_averaged_over_latent_dimensions():
    mean, logvar = noise(6, 5), noise(6, 5, seed=1)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (0.5 * logvar).exp()), normal(0.0, 1.0)).mean()
    torch.testing.assert_close(kullback_leibler_loss(mean, logvar), expected)


def test_cluster_loss_is_of_the_largest_singular_values_of_the_gram_matrix():
    latents = noise(12, 5)
    values = torch.linalg.svdvals(latents @ latents.T / 12)
    torch.testing.assert_close(cluster_loss(latents, 3, 0.1), 0.1 * values[:3].sqrt().sum())
    # No more of them than there are dimensions, and no more than windows.
    torch.testing.assert_close(cluster_loss(latents, 30), values[:5].sqrt().sum())
    torch.testing.assert_close(cluster_loss(latents[:2], 30), torch.linalg.svdvals(latents[:2]).sum() / 2**0.5)


def test_cluster_loss_has_a_gradient_where_windows_are_alike():
    latents = torch.ones(6, 4, requires_grad=True)
    cluster_loss(latents, 4).backward()
    assert latents.grad is not None
    assert bool(latents.grad.isfinite().all())


def test_fewer_clusters_are_a_smaller_loss():
    centres, generator = 3.0 * noise(4, 8), torch.Generator().manual_seed(1)
    few = centres[torch.randint(2, (64,), generator=generator)]
    many = centres[torch.randint(4, (64,), generator=generator)]
    few, many = (latents / latents.norm() for latents in (few, many))
    assert float(cluster_loss(few, 8)) < float(cluster_loss(many, 8))


@pytest.mark.usefixtures("without_type_checks")
def test_annealing_weights():
    assert [kl_annealing(epoch, 2, 4) for epoch in range(8)] == [0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert [kl_annealing(epoch, 2, 4, "sigmoid") for epoch in (2, 4)] == [0.0, 0.5]
    assert kl_annealing(5, 2, 4, "sigmoid") == pytest.approx(1 / (1 + np.exp(-0.9)))
    with pytest.raises(ConfigError, match="linear or sigmoid"):
        kl_annealing(5, 2, 4, "cosine")  # pyright: ignore[reportArgumentType]


def test_input_noise_is_a_share_of_each_features_deviation_in_its_window():
    rows = torch.linspace(-1.0, 1.0, 2000)
    still = torch.stack((rows, 10.0 * rows, torch.full_like(rows, 7.0)), dim=-1)[None]
    windows = torch.cat((still, 3.0 * still))
    added = gaussian(windows, 0.8, generator=torch.Generator().manual_seed(0)) - windows
    torch.testing.assert_close(added.std(dim=1), 0.8 * windows.std(dim=1), rtol=0.06, atol=1e-6)
    assert not added[..., 2].any()
    assert torch.equal(gaussian(windows, 0.0), windows)
    with pytest.raises(ConfigError, match="noise"):
        gaussian(windows, -1.0)


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"window": 1}, "model.window: got 1"),
        ({"future_steps": 7}, "model.future_steps: got 7; expected at most the 6"),
        ({"hidden_size": 0}, "model.hidden_size: got 0"),
        ({"latent_dim": 2.5}, "model.latent_dim: got 2.5"),
        ({"dropout": 1.0}, "model.dropout: got 1.0"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_options_that_cannot_be_are_named(options: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        SequenceVAE(**{**SMALL, **options})


def test_without_a_future_decoder_there_is_none():
    model = small(future_decoder=False)
    assert model.future_steps == 0
    assert not any("future" in name for name in model.state_dict())
    with pytest.raises(ConfigError, match="no future decoder"):
        model.predict(torch.zeros(1, 5))
    with pytest.raises(ConfigError, match="got 4 features a frame; expected 3"):
        model.encode(torch.zeros(1, 6, 4))

"""The posterior, held against torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from crystalvae.vae_module.distribution import LOG_VARIANCE_RANGE, DiagonalGaussianDistribution


def parameters(*, atoms: int = 6, latent_dim: int = 4, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(atoms, 2 * latent_dim, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 10_000), st.integers(1, 9), st.floats(0.01, 3.0))
def test_kl_equals_torch_distributions(seed: int, latent_dim: int, scale: float) -> None:
    values = parameters(latent_dim=latent_dim, seed=seed, scale=scale)
    mean, logvar = values.split(latent_dim, dim=-1)
    posterior = DiagonalGaussianDistribution(values)
    theirs = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(posterior.kl(), theirs, atol=1e-4, rtol=1e-4)
    assert bool((posterior.kl() >= -1e-5).all())


def test_kl_is_zero_for_the_prior_alone() -> None:
    assert DiagonalGaussianDistribution(torch.zeros(3, 8)).kl().tolist() == [0.0, 0.0, 0.0]
    assert bool((DiagonalGaussianDistribution(parameters()).kl() > 0.1).all())


def test_mode_is_the_mean_and_what_comes_first() -> None:
    values = parameters()
    posterior = DiagonalGaussianDistribution(values)
    assert torch.equal(posterior.mode(), values[:, :4])
    assert torch.equal(posterior.logvar, values[:, 4:])
    torch.testing.assert_close(posterior.std.square(), posterior.var)
    torch.testing.assert_close(posterior.var, values[:, 4:].exp())


def test_samples_have_the_moments_of_the_posterior() -> None:
    values, draws = parameters(atoms=1, scale=1.0), 40_000
    posterior = DiagonalGaussianDistribution(values.expand(draws, -1))
    sample = posterior.sample(torch.Generator().manual_seed(1))
    normalised = (sample - values[:, :4]) / (0.5 * values[:, 4:]).exp()
    assert float(normalised.mean(0).abs().max()) < 5 / math.sqrt(draws)
    covariance = normalised.T @ normalised / draws
    torch.testing.assert_close(covariance, torch.eye(4), atol=5 * math.sqrt(2 / draws), rtol=0.0)


def test_samples_follow_the_generator_alone() -> None:
    posterior = DiagonalGaussianDistribution(parameters())
    first, again, other = (posterior.sample(torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    noise = torch.empty(6, 4).normal_(generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, posterior.reparameterize(noise))
    assert torch.equal(posterior.reparameterize(torch.zeros(6, 4)), posterior.mode())


def test_samples_pass_gradients_to_mean_and_deviation() -> None:
    values = parameters().requires_grad_()
    noise = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    posterior = DiagonalGaussianDistribution(values)
    posterior.reparameterize(noise).sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad[:, :4], torch.ones(6, 4))
    torch.testing.assert_close(values.grad[:, 4:], 0.5 * (0.5 * values[:, 4:].detach()).exp() * noise)


def test_kl_gradient_pulls_towards_the_prior() -> None:
    values = parameters().requires_grad_()
    DiagonalGaussianDistribution(values).kl().sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad[:, :4], values[:, :4].detach())
    torch.testing.assert_close(values.grad[:, 4:], 0.5 * (values[:, 4:].detach().exp() - 1))


def test_absurd_log_variances_stay_finite() -> None:
    extreme = torch.tensor([[0.0, 0.0, 1e4, -1e4], [0.0, 0.0, 20.5, -30.5]])
    posterior = DiagonalGaussianDistribution(extreme)
    assert (float(posterior.logvar.min()), float(posterior.logvar.max())) == LOG_VARIANCE_RANGE
    for values in (posterior.kl(), posterior.std, posterior.var, 1 / posterior.var):
        assert bool(torch.isfinite(values).all())
    assert LOG_VARIANCE_RANGE == (-30.0, 20.0)  # the published format's


def test_half_precision_parameters_are_computed_in_float32() -> None:
    posterior = DiagonalGaussianDistribution(parameters().bfloat16())
    assert posterior.kl().dtype == posterior.sample().dtype == torch.float32


def test_an_odd_number_of_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        DiagonalGaussianDistribution(torch.zeros(2, 5))

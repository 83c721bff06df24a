"""What is recorded once and replayed computes what calling it again would; recording itself wants a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from crystalvae.commands.sample import _graphs
from crystalvae.errors import ConfigError
from crystalvae.prior_module.replay import Recorded, Replayed, replayed
from tests.samples import assert_same_crystals, tiny_module, tiny_prior


def record(work: Callable[[], Tensor]) -> Recorded:
    """What a CUDA graph does: the same operations on the same memory, without Python between them."""
    output = work()
    return lambda: output.copy_(work()), output


@pytest.mark.parametrize("sampler", [{}, {"guidance_scale": 2.0}, {"solver": "heun"}, {"stochasticity": 1.0}])
def test_samples_are_those_of_a_network_that_is_called(sampler: dict[str, Any]) -> None:
    prior = tiny_prior(conditions=["band_gap"])
    options = {"sampler": {"steps": 5, **sampler}, "conditions": {"band_gap": 1.0}, "batch_size": 3}
    prior.vae_module.statistics = {"num_atoms": {2: 4, 5: 3, 7: 1}}
    called = prior.sample(8, generator=torch.Generator().manual_seed(0), **options)
    recorded = []

    def counting(work: Callable[[], Tensor]) -> Recorded:
        recorded.append(work)
        return record(work)

    with replayed(prior.prior.denoiser, record=counting):
        again = prior.sample(8, generator=torch.Generator().manual_seed(0), **options)
    assert_same_crystals(again, called, atol=0.0)
    # One for each batch; with guidance the first step already asks twice without an estimate, the others with one.
    assert len(recorded) == (6 if "guidance_scale" in sampler else 3)


def test_the_second_call_of_a_kind_is_recorded_and_later_ones_are_replayed() -> None:
    called, recorded = [], []

    def function(x: Tensor, where: object, y: Tensor | None = None) -> Tensor:
        called.append(where)
        return 2 * x if y is None else x + y

    def counting(work: Callable[[], Tensor]) -> Recorded:
        recorded.append(len(called))
        return record(work)

    again, here, there = Replayed(function, record=counting), object(), object()
    x = torch.arange(3.0)
    first = again(x, here)
    kept = again(x + 1, here)
    assert (recorded, called) == ([1], [here] * 3)  # the recording's own call, and one of the replay
    assert again(x + 2, here).tolist() == [4.0, 6.0, 8.0]
    assert (first.tolist(), kept.tolist()) == ([0.0, 2.0, 4.0], [2.0, 4.0, 6.0])  # nothing is written into
    for other in ((x, there), (torch.arange(4.0), there), (x.double(), there)):
        assert torch.equal(again(*other), 2 * other[0])
    assert recorded == [1]
    for number in range(3):
        assert again(x, here, y=x * number).tolist() == [0.0, 1.0 + number, 2.0 + 2 * number]
    assert len(recorded) == 2


def test_only_a_learned_prior_on_a_gpu_is_replayed() -> None:
    with pytest.raises(ConfigError, match="holds no learned prior"):
        _graphs(tiny_module())
    prior = tiny_prior()
    with pytest.raises(ConfigError, match="the model is on cpu; expected device=cuda"), _graphs(prior.vae_module):
        pass
    assert "forward" not in vars(prior.prior.denoiser)

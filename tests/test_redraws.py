"""Crystals with atoms too close are drawn again, as often as the sampler says, and nothing else is."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.contacts import MIN_CONTACT, contacts
from crystalvae.errors import ConfigError
from crystalvae.prior_module.flow import SamplerOptions
from crystalvae.sampling import SampleRequest, sample
from crystalvae.vae_module import draw_crystals
from crystalvae.vae_module.latent_source import DrawOptions
from tests.samples import tiny_prior


def cubic(length: float) -> CrystalBatch:
    """One iron atom in a cube."""
    return CrystalBatch(
        atom_types=torch.tensor([26]),
        frac_coords=torch.zeros(1, 3),
        lattices=length * torch.eye(3)[None],
        num_atoms=torch.tensor([1]),
    )


@dataclass
class Draws:
    """Stands for one draw of a batch: crystals of given cube lengths, call by call."""

    lengths: list[list[float]]
    redraws: int
    asked: list[list[float]] = field(default_factory=list)

    def __call__(self, vae: object, source: object, asked: CrystalBatch, **_: object) -> tuple[CrystalBatch, int]:
        self.asked.append(asked.properties["name"].tolist())
        return CrystalBatch.cat([cubic(length) for length in self.lengths[len(self.asked) - 1]]), self.redraws


def drawn(draws: Draws, monkeypatch: pytest.MonkeyPatch) -> CrystalBatch:
    monkeypatch.setattr(draw_crystals, "_draw_once", draws)
    asked = CrystalBatch.empty([1, 1, 1]).replace(properties={"name": torch.tensor([10.0, 11.0, 12.0])})
    vae_module = tiny_prior().vae_module
    how = {"options": DrawOptions(), "generator": torch.Generator()}
    return draw_crystals.draw_batch(vae_module.vae, vae_module.source, asked, **how)


def test_only_what_is_too_close_is_drawn_again_and_keeps_its_place(monkeypatch: pytest.MonkeyPatch):
    draws = Draws([[1.0, 4.0, 1.5], [1.2, 5.0], [6.0]], redraws=5)
    crystals = drawn(draws, monkeypatch)
    assert draws.asked == [[10.0, 11.0, 12.0], [10.0, 12.0], [10.0]]
    torch.testing.assert_close(crystals.lengths[:, 0], torch.tensor([6.0, 4.0, 5.0]))


@pytest.mark.parametrize(("redraws", "left"), [(0, [1.0, 4.0, 1.5]), (1, [1.2, 4.0, 1.1])])
def test_what_is_too_close_even_then_stays(redraws: int, left: list[float], monkeypatch: pytest.MonkeyPatch):
    draws = Draws([[1.0, 4.0, 1.5], [1.2, 1.1], [6.0, 6.0]], redraws=redraws)
    torch.testing.assert_close(drawn(draws, monkeypatch).lengths[:, 0], torch.tensor(left))
    assert len(draws.asked) == 1 + redraws


def test_a_prior_draws_again_by_its_sampler():
    """The first draw is what no redraws give; others differ only where contacts were too short."""
    module = tiny_prior()

    def take(redraws: int) -> CrystalBatch:
        request = SampleRequest(number=24, num_atoms=4, sampler={"redraws": redraws})
        return sample(module.vae_module, request)

    once, again = take(0), take(2)
    close = torch.from_numpy(contacts(once) < MIN_CONTACT)
    assert bool(close.any())
    same = (once.lattices == again.lattices).all(dim=2).all(dim=1)
    assert torch.equal(same, ~close)


@pytest.mark.parametrize("value", [-1, 1.5, True, 101])
def test_numbers_of_redraws_that_cannot_be(value: object, without_type_checks: None):
    with pytest.raises(ConfigError, match=r"sampler\.redraws"):
        SamplerOptions(redraws=value)  # pyright: ignore[reportArgumentType]

"""The benchmarks compare like with like: the plain reference and our step have the same losses and gradients."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Batch

from benchmarks.reference import Reference, parse_cif, to_data_list
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.cif import niggli_reduce
from crystalvae.data.cif import parse_cif as fast_parse
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.vae_module import VAEModule
from tests.samples import random_crystals, rock_salt_and_friends, tiny_module


@pytest.fixture
def module() -> VAEModule:
    size = {"d_model": 16, "nhead": 2, "num_layers": 2, "dim_feedforward": 64}
    return tiny_module(encoder=size, decoder=size, augmentation={"translate": True})


def draws(module: VAEModule, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The random numbers that our training step draws for a batch, in its order."""
    generator = batch.generator()
    shifts = torch.rand(batch.total_crystals, 3, generator=generator)
    return shifts, torch.randn(batch.total_atoms, module.latent_dim, generator=generator)


@pytest.mark.parametrize(("autocast", "tolerance"), [(False, 1e-5), (True, 3e-2)], ids=["float32", "bf16"])
def test_a_training_step_has_the_losses_of_the_reference(module: VAEModule, autocast: bool, tolerance: float) -> None:
    crystals = random_crystals((4, 1, 7, 2, 20, 6, 3))
    batch = TrainingBatch.whole(crystals, seed=(3, 1, 4))
    reference = Reference.like(module)
    shifts, noise = draws(module, batch)
    expected = reference.losses(Batch.from_data_list(to_data_list(crystals)), shifts=shifts, noise=noise)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = module.losses(batch, training=True)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
    if not autocast:
        found["loss"].backward()
        expected["loss"].backward()
        theirs = dict(reference.named_parameters())
        for name, parameter in module.vae.named_parameters():
            torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-4, rtol=1e-3)


def test_reference_parser_reads_what_ours_reads() -> None:
    for structure in rock_salt_and_friends():
        text = structure.to(fmt="cif")
        data = parse_cif(text)
        (ours,) = niggli_reduce([fast_parse(text)])
        batch = CrystalBatch.from_arrays([(ours.numbers, ours.frac_coords, ours.lattice)])
        assert sorted(data.atom_types.tolist()) == sorted(ours.numbers.tolist())
        theirs = CrystalBatch(data.atom_types, data.frac_coords, data.lattices, data.num_atoms)
        torch.testing.assert_close(theirs.lengths, batch.lengths, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(theirs.angles, batch.angles, atol=1e-2, rtol=1e-4)

"""Batches in training: the order of an epoch, resuming within it, and the same losses on any number of processes."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.loader import CrystalLoader
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from tests.samples import assert_same_crystals, random_crystals, tiny_module

COUNTS = (4, 1, 7, 2, 3, 3, 5, 1, 2, 6, 4)


@pytest.fixture
def crystals() -> CrystalBatch:
    return random_crystals(COUNTS)


def loader(crystals: CrystalBatch, *, epoch: int = 0, batch_size: int = 4, **options: int) -> CrystalLoader:
    made = CrystalLoader(crystals, batch_size=batch_size, shuffle=True, **options)
    made.set_epoch(epoch)
    return made


def rows(batches: CrystalLoader) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches]


# ---- order -----------------------------------------------------------------------------------------------------------


def test_an_epoch_visits_every_crystal_once(crystals: CrystalBatch) -> None:
    visited = rows(loader(crystals))
    assert [len(batch) for batch in visited] == [4, 4, 3]
    assert sorted(chain(*visited)) == list(range(11))
    assert len(loader(crystals)) == 3


def test_batches_hold_the_crystals_of_their_rows(crystals: CrystalBatch) -> None:
    for batch in loader(crystals):
        assert_same_crystals(batch.crystals, crystals[batch.indices], atol=0.0)


def test_the_order_depends_on_seed_and_epoch_alone(crystals: CrystalBatch) -> None:
    first = rows(loader(crystals, seed=1, epoch=2))
    assert rows(loader(crystals, seed=1, epoch=2)) == first
    assert rows(loader(crystals, seed=1, epoch=3)) != first
    assert rows(loader(crystals, seed=2, epoch=2)) != first
    torch.manual_seed(123)
    torch.rand(7)
    assert rows(loader(crystals, seed=1, epoch=2)) == first


def test_validation_keeps_the_order_of_the_data(crystals: CrystalBatch) -> None:
    made = CrystalLoader(crystals, batch_size=4, shuffle=False)
    for epoch in (0, 5):
        made.set_epoch(epoch)
        assert list(chain(*rows(made))) == list(range(11))


@given(graphs=st.integers(1, 40), batch_size=st.integers(1, 7), world_size=st.integers(1, 4), shuffle=st.booleans())
@settings(max_examples=60)
def test_ranks_share_every_batch_without_overlap(graphs: int, batch_size: int, world_size: int, shuffle: bool) -> None:
    crystals = CrystalBatch.empty([1 + k % 3 for k in range(graphs)])
    if graphs < world_size:
        with pytest.raises(ConfigError, match="cannot be shared"):
            CrystalLoader(crystals, batch_size=batch_size, shuffle=shuffle, world_size=world_size)
        return
    ranks = [
        CrystalLoader(crystals, batch_size=batch_size, shuffle=shuffle, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    shares = [rows(made) for made in ranks]
    assert {len(made) for made in ranks} == {len(share) for share in shares}  # or a process would wait for ever
    assert all(1 <= len(batch) <= batch_size for share in shares for batch in share)
    visited = Counter(row for share in shares for batch in share for row in batch)
    assert set(visited.values()) <= {1}
    assert graphs - len(visited) < world_size
    whole = rows(CrystalLoader(crystals, batch_size=batch_size * world_size, shuffle=shuffle))
    for number in range(len(ranks[0])):
        assert list(chain(*(share[number] for share in shares))) == whole[number]


def test_a_batch_size_of_zero_is_refused(crystals: CrystalBatch) -> None:
    with pytest.raises(ConfigError, match=r"batch_size.*0"):
        CrystalLoader(crystals, batch_size=0, shuffle=True)


# ---- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [0, 1, 2, 3])
def test_a_resumed_epoch_goes_on_where_it_stopped(crystals: CrystalBatch, taken: int) -> None:
    first = loader(crystals, seed=4, epoch=7)
    batches = iter(first)
    for _ in range(taken):
        next(batches)
    state = first.state_dict()
    rest = list(batches) if taken < 3 else list(first)  # after the last batch, the next epoch starts from its beginning
    resumed = loader(crystals, seed=99)
    resumed.load_state_dict(state)
    assert resumed.state_dict()["next"] % 3 == state["next"] % 3  # saved again before the first batch, nothing is lost
    again = list(resumed)
    assert [batch.indices.tolist() for batch in again] == [batch.indices.tolist() for batch in rest]
    assert [batch.seed for batch in again] == [batch.seed for batch in rest]
    assert len(list(resumed)) == len(resumed) == 3  # the epoch after that is whole


def test_state_is_plain_data(crystals: CrystalBatch) -> None:
    made = loader(crystals)
    next(iter(made))
    assert all(isinstance(value, int) for value in made.state_dict().values())


# ---- one process or several ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_mean_over_processes_is_the_loss_of_the_whole_batch(crystals: CrystalBatch, world_size: int) -> None:
    """With augmentation, input noise and drawn latents; gradients too, as DDP averages them."""
    module = tiny_module(
        encoder={"lattice_features": "matrix"},
        augmentation={"translate": True, "rotate": True},
        noise={"mask_ratio": 0.3, "displacement": 0.1},
        loss_weights={"kl": 0.1},
    )

    def losses_and_gradients(batch: TrainingBatch) -> dict[str, torch.Tensor]:
        module.zero_grad()
        losses = module.losses(batch, training=True)
        losses["loss"].backward()
        gradients = {f"gradient of {key}": value.grad for key, value in module.named_parameters()}
        return {**{key: value.detach() for key, value in losses.items()}, **gradients}

    whole = loader(crystals, batch_size=6, epoch=1)
    shards = [
        loader(crystals, batch_size=6 // world_size, epoch=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for together, *parts in zip(whole, *shards, strict=True):
        expected = losses_and_gradients(together)
        shares = [losses_and_gradients(part) for part in parts]
        for name, value in expected.items():
            mean = torch.stack([share[name] for share in shares]).mean(0)
            torch.testing.assert_close(mean, value, atol=2e-5, rtol=2e-4, msg=name)


def test_each_rank_takes_its_own_rows_of_the_noise(crystals: CrystalBatch) -> None:
    shards = [next(iter(loader(crystals, batch_size=3, rank=rank, world_size=2))) for rank in range(2)]
    whole = next(iter(loader(crystals, batch_size=6)))
    assert {shard.seed for shard in shards} == {whole.seed}
    per_atom, per_crystal = torch.arange(whole.total_atoms), torch.arange(whole.total_crystals)
    assert torch.equal(torch.cat([shard.per_atom(per_atom) for shard in shards]), per_atom)
    assert torch.equal(torch.cat([shard.per_crystal(per_crystal) for shard in shards]), per_crystal)
    assert all(len(shard.per_atom(per_atom)) == shard.crystals.num_nodes for shard in shards)


def test_noise_differs_between_batches_epochs_and_runs(crystals: CrystalBatch) -> None:
    batches = [batch for seed in (0, 1) for epoch in (0, 1) for batch in loader(crystals, seed=seed, epoch=epoch)]
    draws = {float(torch.rand(1, generator=batch.generator())) for batch in batches}
    assert len(draws) == len(batches)


def test_moving_a_batch_keeps_its_place_in_the_whole(crystals: CrystalBatch) -> None:
    shard = next(iter(loader(crystals, batch_size=3, rank=1, world_size=2)))
    moved = shard.to("cpu")
    assert_same_crystals(moved.crystals, shard.crystals, atol=0.0)
    for name in ("seed", "world_size", "total_crystals", "total_atoms", "crystal_offset", "atom_offset"):
        assert getattr(moved, name) == getattr(shard, name)
    assert shard.crystal_offset == 3
    assert (shard.mean_crystals, shard.mean_atoms) == (3.0, shard.total_atoms / 2)

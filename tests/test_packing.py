"""Packing crystals into rows changes nothing but the time that attention takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from crystalvae.data.batch import CrystalBatch
from crystalvae.vae_module.layers import attention as packing
from crystalvae.vae_module.layers.attention import PaddingPlan, attend, pack

HEADS = 2
SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=60)


def one_by_one(qkv: torch.Tensor, crystals: CrystalBatch, heads: int = HEADS) -> torch.Tensor:
    """Attention of each crystal on its own."""
    mixed = []
    for part in qkv.split(crystals.num_atoms.tolist()):
        query, key, value = part.view(len(part), 3, heads, -1).permute(1, 2, 0, 3)
        mixed.append(F.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1))
    return torch.cat(mixed)


@given(sizes=SIZES, extra=st.integers(0, 5))
def test_blocks_lie_in_rows_and_do_not_overlap(sizes: list[int], extra: int) -> None:
    width = max(sizes) + extra
    first, rows = pack(np.array(sizes), width)
    slots = [slot for start, size in zip(first.tolist(), sizes, strict=True) for slot in range(start, start + size)]
    assert len(set(slots)) == sum(sizes)
    assert min(slots) >= 0
    assert max(slots) < rows * width
    assert all(start // width == (start + size - 1) // width for start, size in zip(first, sizes, strict=True))
    half_full = [sum(1 for slot in slots if slot // width == row) * 2 <= width for row in range(rows)]
    assert sum(half_full) <= 1  # two such rows would have gone into one


def test_rows_are_nearly_full_for_sizes_of_real_crystals() -> None:
    sizes = np.array(
        [4] * 45 + [5] * 9 + [6] * 23 + [8] * 19 + [10] * 29 + [12] * 31 + [14] * 12 + [16] * 16 + [20] * 23
    )
    _, rows = pack(sizes, 20)
    assert sizes.sum() / (20 * rows) > 0.97


def test_a_block_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="sizes from 1 to 4, got 2 to 5"):
        pack(np.array([2, 5]), 4)


@pytest.mark.parametrize("small", [64, 0], ids=["plain", "scaled_dot_product_attention"])
@given(sizes=SIZES)
def test_attention_is_that_of_each_crystal_alone_and_so_is_its_gradient(small: int, sizes: list[int]) -> None:
    crystals = CrystalBatch.empty(sizes)
    generator = torch.Generator().manual_seed(len(sizes))
    qkv, weights = (torch.randn(sum(sizes), width, generator=generator) for width in (3 * 8, 8))
    qkv.requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SMALL", small)
        found = attend(qkv, PaddingPlan.of(crystals), heads=HEADS)
        (gradient,) = torch.autograd.grad((found * weights).sum(), qkv)
    expected = one_by_one(qkv, crystals)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad((expected * weights).sum(), qkv)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", [(4, 1, 7, 2), (3, 3)])
def test_higher_derivatives_and_their_transforms_go_through(sizes: tuple[int, ...]) -> None:
    crystals = CrystalBatch.empty(sizes)
    plan, qkv = PaddingPlan.of(crystals), torch.randn(sum(sizes), 3 * 8, dtype=torch.float32)

    def ours(x: torch.Tensor) -> torch.Tensor:
        return attend(x, plan, heads=HEADS).square().sum()

    def theirs(x: torch.Tensor) -> torch.Tensor:
        mixed = [
            (query @ key.transpose(-1, -2) * 4**-0.5).softmax(-1) @ value
            for part in x.split(list(sizes))
            for query, key, value in [part.view(len(part), 3, HEADS, 4).permute(1, 2, 0, 3)]
        ]
        return torch.stack([entry.square().sum() for entry in mixed]).sum()

    direction = torch.randn_like(qkv)
    for transform in (torch.func.grad, torch.func.hessian):
        torch.testing.assert_close(transform(ours)(qkv), transform(theirs)(qkv), atol=1e-4, rtol=1e-4)
    found, expected = (torch.func.jvp(torch.func.grad(f), (qkv,), (direction,)) for f in (ours, theirs))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    batch = torch.stack([qkv, 2 * qkv])
    torch.testing.assert_close(torch.func.vmap(ours)(batch), torch.stack([ours(qkv), ours(2 * qkv)]))


def test_a_crystal_that_is_not_finite_leaves_rows_beside_it_alone() -> None:
    crystals = CrystalBatch.empty([3, 5, 5, 2])
    qkv = torch.randn(15, 3 * 8)
    qkv[3:8] = torch.nan  # fills a row of its own
    found = attend(qkv, PaddingPlan.of(crystals), heads=HEADS)
    kept = [0, 1, 2, *range(8, 15)]
    torch.testing.assert_close(found[kept], one_by_one(qkv, crystals)[kept])


def test_bfloat16_gives_the_same_to_its_precision() -> None:
    crystals = CrystalBatch.empty([4, 1, 7, 2])
    plan, qkv = PaddingPlan.of(crystals), torch.randn(14, 3 * 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attend(qkv.bfloat16(), plan, heads=HEADS)
    torch.testing.assert_close(found.float(), attend(qkv, plan, heads=HEADS), atol=3e-2, rtol=3e-2)


def test_batches_that_share_their_atom_counts_share_one_plan() -> None:
    crystals = CrystalBatch.empty([4, 1, 7])
    plan = PaddingPlan.of(crystals)
    assert PaddingPlan.of(crystals.replace(frac_coords=crystals.frac_coords + 0.5)) is plan
    assert PaddingPlan.of(CrystalBatch.empty([4, 1, 7])) is not plan
    found = PaddingPlan.of(crystals.replace(num_atoms=torch.tensor([7, 4, 1])))
    assert found.position.tolist() != plan.position.tolist()


def test_a_plan_made_without_gradients_serves_with_them() -> None:
    crystals, qkv = CrystalBatch.empty([4, 1, 7, 2]), torch.randn(14, 3 * 8)
    with torch.inference_mode():
        attend(qkv, PaddingPlan.of(crystals), heads=HEADS)
    qkv.requires_grad_()
    attend(qkv, PaddingPlan.of(crystals), heads=HEADS).sum().backward()
    assert qkv.grad is not None

"""Muon for hidden matrices and AdamW for the rest, as one optimiser."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from crystalvae.build import build
from crystalvae.vae_module.learning_rate import WarmupCosine
from crystalvae.vae_module.muon import MuonAdamW


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 2))


def gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_hidden_matrices_take_muons_step_and_the_rest_adamws():
    ours, theirs = network(), network()
    hidden = [theirs[1].weight, theirs[3].weight]
    rest = [p for p in theirs.parameters() if all(p is not matrix for matrix in hidden)]
    optimizer = MuonAdamW(ours.parameters(), lr=0.01, weight_decay=0.1, min_side=16)
    muon = torch.optim.Muon(hidden, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=0.01, weight_decay=0.1, betas=(0.9, 0.99))
    for seed in range(3):
        for module in (ours, theirs):
            gradients(module, seed)
        for part in (optimizer, muon, adamw):
            part.step()
    for mine, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, expected)


def test_the_step_of_a_matrix_is_orthogonal():
    """Every direction is learned at the same rate: the singular values of the step are nearly equal."""
    matrix = nn.Parameter(torch.zeros(16, 32))
    matrix.grad = torch.randn(16, 2) @ torch.randn(2, 32) + 0.05 * torch.randn(16, 32)
    MuonAdamW([matrix], lr=1.0, weight_decay=0.0, min_side=16).step()
    values = torch.linalg.svdvals(matrix.detach()) / (0.2 * 32**0.5)
    assert values.min() > 0.5
    assert values.max() < 1.4
    gradient = torch.linalg.svdvals(matrix.grad)
    assert gradient.max() / gradient.min() > 10


def test_a_schedule_reaches_both_parts_and_a_saved_state_continues():
    first = network()
    optimizer = MuonAdamW(first.parameters(), lr=0.02, min_side=16)
    schedule = WarmupCosine(optimizer=optimizer, total_steps=10, warmup_steps=2, min_factor=0.0)
    for seed in range(3):
        gradients(first, seed)
        optimizer.step()
        schedule.step()
    rates = {group["lr"] for group in optimizer.param_groups}
    assert len(optimizer.param_groups) == 2
    assert len(rates) == 1
    assert 0.0 < rates.pop() < 0.02
    second = copy.deepcopy(first)
    resumed = MuonAdamW(second.parameters(), lr=0.5, min_side=16)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for module, part in ((first, optimizer), (second, resumed)):
        gradients(module, 7)
        part.step()
    for mine, expected in zip(second.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0)


def test_a_closure_is_evaluated_once_with_gradients():
    module, calls = network(), []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        loss = module(torch.ones(1, 4)).square().sum()
        loss.backward()
        return loss

    optimizer = MuonAdamW(module.parameters(), lr=0.01, min_side=16)
    before = optimizer.step(closure).detach()
    optimizer.zero_grad()
    assert calls == [True]
    assert optimizer.step(closure).detach() < before
    optimizer.zero_grad()
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("side", [1, 1000])
def test_a_model_may_have_only_one_kind_of_parameter(side: int):
    matrices = [nn.Parameter(torch.randn(8, 8))]
    optimizer = build(
        "optimizer", {"_target_": "crystalvae.vae_module.muon.MuonAdamW", "min_side": side}, params=matrices
    )
    matrices[0].grad = torch.ones(8, 8)
    optimizer.step()
    assert len(optimizer.param_groups) == 1

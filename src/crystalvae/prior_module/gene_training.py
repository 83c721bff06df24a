"""Training of a gene model alone, on the genes of a data set."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from crystalvae.build import to_plain
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import CheckpointError, ConfigError
from crystalvae.prior_module.gene_model import GeneModel
from crystalvae.prior_module.gene_steps import Steps, step_through
from crystalvae.prior_module.genes import Genes
from crystalvae.vae_module.conditions.embedder import ConditionEmbedder
from crystalvae.vae_module.conditions.values import Values, condition_values, drop_conditions, known_classes

log = logging.getLogger(__name__)

LAST, BEST = "last.ckpt", "best.ckpt"


class ConditionedGenes(nn.Module):
    """A gene model and the embedder of the conditions that it is told."""

    def __init__(
        self,
        *,
        conditions: Sequence[str] = (),
        classes: Mapping[str, int | Sequence[str]] | None = None,
        **model: Any,
    ) -> None:
        super().__init__()
        self.config = {"conditions": list(conditions), "classes": to_plain(classes), **model}
        self.model = GeneModel(**model)
        known = known_classes(classes, key="prior.classes")
        self.conditions = ConditionEmbedder(names=conditions, classes=known, d_model=model["d_model"])

    def negative_log_likelihood(self, steps: Steps, values: Values) -> Tensor:
        """Return -log p of each gene in nats."""
        return self.model.negative_log_likelihood(steps, self.conditions(values, len(steps.num_atoms)))

    @classmethod
    def load(cls, path: Path) -> ConditionedGenes:
        """Return the model of a checkpoint of `fit`, ready to be used; `CheckpointError` for other files."""
        content = torch.load(path, weights_only=True, map_location="cpu")
        if not isinstance(content, dict) or "averaged" not in content or "config" not in content:
            raise CheckpointError(f"{path}: no checkpoint of a gene model")
        model = cls(**content["config"])
        model.load_state_dict(content["averaged"])
        return model.eval()


def fit(
    train: CrystalBatch,
    validation: CrystalBatch,
    folder: Path,
    *,
    model: Mapping[str, Any],
    epochs: int,
    batch_size: int = 256,
    learning_rate: float = 5e-4,
    weight_decay: float = 0.05,
    warmup_steps: int = 200,
    decay: float = 0.998,
    condition_dropout: Mapping[str, float] | None = None,
    formula_share: float = 0.5,
    seed: int = 0,
) -> ConditionedGenes:
    """Train a gene model and return the best one: lowest validation -log p, the mean of both tasks.

    The tasks are genes of a given formula (a share `formula_share` of what is seen) and of a number of atoms. Crystals
    are in the symmetric description. `folder` gets last.ckpt after each epoch, from which the same call goes on,
    best.ckpt and a line of numbers for each epoch in log.jsonl. `decay` is that of the average of the weights, which is
    what is validated and returned.
    """
    if not 0.0 <= formula_share <= 1.0:
        raise ConfigError(f"formula_share: got {formula_share}; expected a share in [0, 1]")
    torch.manual_seed(seed)
    module = ConditionedGenes(**model)
    averaged = copy.deepcopy(module)
    names = module.conditions.names
    values, held_out_values = condition_values(train, names), condition_values(validation, names)
    module.conditions.fit(values)
    steps, held_out = both_tasks(Genes.of(train)), both_tasks(Genes.of(validation))
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.98))
    total = epochs * math.ceil(len(train) / batch_size)
    folder.mkdir(parents=True, exist_ok=True)
    first, best, step = 0, math.inf, 0
    if (folder / LAST).is_file():
        content = torch.load(folder / LAST, weights_only=True)
        module.load_state_dict(content["weights"])
        averaged.load_state_dict(content["averaged"])
        optimizer.load_state_dict(content["optimizer"])
        first, best, step = content["epoch"], content["best"], content["step"]
    shares = {"all": 0.3, "each": 0.3, **(condition_dropout or {})}
    for epoch in range(first, epochs):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        started, losses = time.time(), []
        module.train()
        for rows in shuffled(steps.sites[: len(train)], batch_size, generator):
            given = torch.rand(len(rows), generator=generator) < formula_share
            told = {name: entries[rows] for name, entries in values.items()}
            uniform = torch.rand(len(rows), len(names) + 1, generator=generator)
            told = drop_conditions(told, uniform, drop_all=shares["all"], drop_each=shares["each"])
            loss = module.negative_log_likelihood(rows_of(steps, rows + given * len(train)), told).mean()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * schedule(step, total, warmup_steps)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            step += 1
            average(averaged, module, min(decay, (1 + step) / (10 + step)))
            losses.append(float(loss.detach()))
        numbers = {
            "epoch": epoch + 1,
            "train_nll": sum(losses) / len(losses),
            **validate(averaged, held_out, held_out_values),
            "seconds": time.time() - started,
        }
        mean = (numbers["val_nll"] + numbers["val_nll_of_formula"]) / 2
        log.info("%s", numbers)
        content = {
            "config": module.config,
            "weights": module.state_dict(),
            "averaged": averaged.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": epoch + 1,
            "step": step,
            "best": min(best, mean),
            "numbers": numbers,
        }
        _save(content, folder / LAST)
        if mean < best:
            best = mean
            _save({key: content[key] for key in ("config", "averaged", "epoch", "numbers")}, folder / BEST)
        with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(numbers) + "\n")
    return ConditionedGenes.load(folder / BEST)


def both_tasks(genes: Genes) -> Steps:
    """Write genes down twice: first all of them given their numbers of atoms, then all of them given their formulas."""
    entries = genes.to_list()
    return step_through([*entries, *entries], formula_given=[False] * len(entries) + [True] * len(entries))


def rows_of(steps: Steps, rows: Int[Tensor, "b"]) -> Steps:
    """Return some rows, without places and formula elements that none of them has."""
    parts = {item.name: getattr(steps, item.name)[rows] for item in fields(Steps)}
    places = max(1, int((parts["sites"] >= 0).sum(dim=1).max()))
    width = int((parts["formula_elements"] > 0).sum(dim=1).max())
    for name in ("elements", "sites", "left", "needs", "element_mask", "site_mask"):
        parts[name] = parts[name][:, :places]
    for name in ("formula_elements", "formula_counts"):
        parts[name] = parts[name][:, :width]
    return Steps(**parts)


def shuffled(sites: Int[Tensor, "B P"], batch_size: int, generator: torch.Generator) -> list[Int[Tensor, "b"]]:
    """Return the rows of an epoch's batches in random order, those of one batch with similar numbers of orbits."""
    lengths = (sites >= 0).sum(dim=1)
    order = torch.randperm(len(lengths), generator=generator)
    batches = []
    for part in order.split(16 * batch_size):
        batches += part[lengths[part].argsort(stable=True)].split(batch_size)
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


def schedule(step: int, total: int, warmup_steps: int) -> float:
    """Return the factor of the learning rate: a linear rise, then half a cosine down to a hundredth."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share = min(1.0, (step - warmup_steps) / max(1, total - warmup_steps))
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * share))


@torch.no_grad()
def average(averaged: nn.Module, module: nn.Module, decay: float) -> None:
    """Move averaged weights towards those of the module."""
    for old, new in zip(averaged.parameters(), module.parameters(), strict=True):
        old.lerp_(new, 1.0 - decay)
    for old, new in zip(averaged.buffers(), module.buffers(), strict=True):
        old.copy_(new)


@torch.no_grad()
def validate(module: ConditionedGenes, steps: Steps, values: Values, *, batch_size: int = 512) -> dict[str, float]:
    """Return the mean -log p, in nats, of both tasks, with conditions unknown; and of the first with them known."""
    module.eval()
    count = len(steps.num_atoms) // 2
    unknown = {name: torch.full_like(given, torch.nan) for name, given in values.items()}
    results = {}
    for name, offset, told in (
        ("val_nll", 0, unknown),
        ("val_nll_of_formula", count, unknown),
        ("val_nll_with_conditions", 0, values),
    ):
        total = 0.0
        for rows in torch.arange(count).split(batch_size):
            part = {key: given[rows] for key, given in told.items()}
            total += float(module.negative_log_likelihood(rows_of(steps, rows + offset), part).sum())
        results[name] = total / count
    return results


def _save(content: dict[str, Any], path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    torch.save(content, partial)
    partial.replace(path)

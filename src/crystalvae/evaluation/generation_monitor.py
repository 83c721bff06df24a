"""What a prior's samples are worth, measured while it trains."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import torch

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.evaluation.novelty.train_index import TrainIndex
from crystalvae.evaluation.novelty.uniqueness import valid_unique_novel
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.validity.contacts import MIN_CONTACT, contacts
from crystalvae.evaluation.validity.structure import describe
from crystalvae.prior_module.latent_prior import LatentPrior

log = logging.getLogger(__name__)


class GenerationMonitor(L.Callback):
    """Sample crystals while training, and log which share of them is valid, novel, and valid · unique · novel.

    Logged: `val/structure_valid` (CDVAE's limits), `val/contacts_valid` (no two atoms closer than 0.7 of the sum of
    their covalent radii), `val/valid` (structure, and composition by SMACT), `val/novel` (of the valid and unique ones,
    the share that the training set does not hold), `val/vun`, and `val/vun_contacts`, the share that are both V.U.N.
    and without short contacts; defined in docs/metrics.md. The same `seed` is used each time, so that changes are the
    model's. Measured is in the first validation, and then in those at least `every_n_epochs` later; between them the
    last values are logged again.
    """

    def __init__(self, *, num_samples: int, every_n_epochs: int, seed: int = 0, n_jobs: int = 1) -> None:
        super().__init__()
        if num_samples < 1 or every_n_epochs < 1:
            raise ConfigError(
                f"callbacks.generation: got num_samples {num_samples}, every_n_epochs {every_n_epochs}; expected at "
                "least 1"
            )
        self.num_samples, self.every_n_epochs, self.seed = num_samples, every_n_epochs, seed
        self.runner = Runner(n_jobs=n_jobs, progress=False)
        self._index: TrainIndex | None = None
        self._last: dict[str, float] = {}
        self._measured_at = 0

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sample, measure and log; rank 0 measures for all."""
        if trainer.sanity_checking:
            return
        if not isinstance(pl_module, LatentPrior):
            raise ConfigError(
                "callbacks.generation: only works when a LatentPrior is trained; remove it for other models"
            )
        if not self._last or trainer.current_epoch - self._measured_at >= self.every_n_epochs:
            self._measured_at = trainer.current_epoch
            measured = self._measure(trainer, pl_module) if trainer.is_global_zero else {}
            self._last = trainer.strategy.broadcast(measured)
        pl_module.log_dict({f"val/{name}": value for name, value in self._last.items()}, rank_zero_only=False)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on from."""
        return {"last": dict(self._last), "measured_at": self._measured_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where a saved run stood."""
        self._last, self._measured_at = dict(state_dict["last"]), int(state_dict["measured_at"])

    def _measure(self, trainer: L.Trainer, module: LatentPrior) -> dict[str, float]:
        datamodule = getattr(trainer, "datamodule", None)
        if datamodule is None:
            raise ConfigError("callbacks.generation: novelty needs a datamodule with the training set")
        train = datamodule.dataset("train").crystals
        if self._index is None:
            self._index = TrainIndex(train)
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randint(len(train), (self.num_samples,), generator=generator)
        template = CrystalBatch.empty(train.num_atoms[rows])
        if module.prior.elements_given and module.prior.composition is None:  # it predicts structures only
            template = template.replace(atom_types=train[rows].atom_types)
        crystals = module.sample(template, generator=generator)
        found = valid_unique_novel(crystals, self._index, runner=self.runner)
        shares = found.shares()
        unique = int((found.valid & found.unique).sum())
        structure = describe(crystals)["valid"].to_numpy(dtype=bool)
        apart = structure & (contacts(crystals) >= MIN_CONTACT)
        return {
            "structure_valid": float(structure.mean()),
            "contacts_valid": float(apart.mean()),
            "valid": shares["valid"],
            "novel": int(found.vun.sum()) / unique if unique else 0.0,
            "vun": shares["vun"],
            "vun_contacts": float((found.vun & apart).mean()),
        }

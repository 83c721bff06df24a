"""Train a sequence VAE on windows of trajectories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from crystalvae.build import build
from crystalvae.checkpoints import bundled
from crystalvae.checkpoints import format as checkpoints
from crystalvae.checkpoints.trusted import trusting
from crystalvae.commands.config_files import config_dir
from crystalvae.commands.run_folder import BEST_AND_LAST, CHECKPOINTS, RunFolder
from crystalvae.commands.train import run_training
from crystalvae.errors import ConfigError
from crystalvae.sequence_module.sequence_module import SequenceModule
from crystalvae.vae_module.vae_module import VAEModule

_MODEL_KEYS = ("features", "model", "optimizer")


def train_sequence(config: DictConfig) -> str:
    """Train as `config` describes; returns what to tell the user at the end."""
    if config.resume_from is not None and config.ckpt_path is not None:
        raise ConfigError("resume_from and ckpt_path exclude each other: the one continues a run, the other starts one")
    return run_training(config, lambda: sequence_module(config), kind=SequenceModule.kind, model_keys=_MODEL_KEYS)


def train_model(config: DictConfig | Mapping[str, Any] | Sequence[str]) -> SequenceModule:
    """Train a sequence VAE from Python, as `crystalvae train-sequence` does, and return the best model.

    `config` is a whole config, or a list of overrides such as ["experiment=emt_demo/sequence", "trainer.max_epochs=9"].
    Its `output_dir` becomes the run folder. Where no epoch was kept as the best, the last one's model is returned.
    """
    if isinstance(config, DictConfig):
        whole = config.copy()
    elif isinstance(config, Mapping):
        whole = OmegaConf.create(dict(config))
    else:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            whole = compose("train_sequence", overrides=list(config))
    OmegaConf.resolve(whole)  # a folder's name may hold the time
    with trusting(list(whole.trusted_targets)):
        train_sequence(whole)
    folder = RunFolder.from_config(whole).path / CHECKPOINTS
    kept = next(folder / name for name in BEST_AND_LAST if (folder / name).is_file())
    return SequenceModule.load_from_checkpoint(kept, trusted_targets=list(whole.trusted_targets))


def sequence_module(config: DictConfig) -> SequenceModule:
    """Build what is to be trained: with the VAE of its features, and the weights it starts from if there are any."""
    described = config.sequence_module
    vae = None
    if "vae_ckpt_path" in described.features:
        vae = VAEModule.load_from_checkpoint(bundled.find(str(described.features.vae_ckpt_path)))
        features = {key: value for key, value in described.features.items() if key != "vae_ckpt_path"}
        described = OmegaConf.create({**described, "features": {**features, "vae": {**vae.config, "prior": None}}})
    content = None
    if config.ckpt_path is not None:
        content = checkpoints.read(bundled.find(Path(config.ckpt_path)), plain_data_only=True)
        given = checkpoints.check_metadata(content, SequenceModule.kind)["config"]
        described = OmegaConf.create({**described, "annealing": None, "atom_types": given["atom_types"]})
    module = build("sequence_module", described)
    if not isinstance(module, SequenceModule):
        raise ConfigError(f"sequence_module._target_: got {type(module).__name__}; expected a SequenceModule")
    if vae is not None:
        module.start_from_vae(vae)
    if content is not None:
        prefix = "model."
        weights = {
            name.removeprefix(prefix): value for name, value in content["state_dict"].items() if name.startswith(prefix)
        }
        checkpoints.load_weights(module.model, weights)
    return module

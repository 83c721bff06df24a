"""What a notebook wants in one line: `crystalvae.sample`, `reconstruct`, `embed`, `evaluate`, and parts by name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from omegaconf import OmegaConf
from torch import Tensor, nn

from crystalvae.build import build, to_plain
from crystalvae.checkpoints import bundled
from crystalvae.commands.config_files import config_dir
from crystalvae.commands.device import choose_device
from crystalvae.commands.inputs import data_module, reconstruct_all
from crystalvae.commands.relaxing import Relaxer, potential_named
from crystalvae.commands.sampling import sample_all
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.cif import CrystalError, RawCrystal, niggli_reduce
from crystalvae.data.readers import read_crystals
from crystalvae.data.soundness import sound_crystals
from crystalvae.data.sources import cache_root
from crystalvae.errors import ConfigError
from crystalvae.evaluation.evaluate import EvaluationSettings, Known, evaluate_generation
from crystalvae.evaluation.evaluation_report import EvaluationReport
from crystalvae.evaluation.inputs import CrystalSet
from crystalvae.evaluation.parallel.cache import ResultCache
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.stability.relaxation import Relaxation
from crystalvae.sampling import SampleRequest
from crystalvae.vae_module.latent_space.inputs import to_crystals
from crystalvae.vae_module.vae_module import VAEModule

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

    Structures = CrystalBatch | Structure | Atoms | Sequence[Structure] | Sequence[Atoms] | Path | str

PRIOR, VAE = "mp20-symmetric-small", "mp20-vae-small"
"""The bundled models: with a learned prior, for sampling; without, for reconstruction and embeddings."""


def sample(
    number: int = 1,
    *,
    ckpt_path: Path | str = PRIOR,
    relax: str | None = None,
    device: str = "auto",
    n_jobs: int = -1,
    **request: Any,
) -> CrystalBatch:
    """Sample crystals: `crystalvae.sample(20, composition="LiFePO4", relax="chgnet")`.

    Args:
        number: How many.
        ckpt_path: A checkpoint, or the name of a bundled model.
        relax: A potential of `configs/potential`, such as "chgnet", under which crystals are relaxed; those that cannot
            be stay as they are. `properties` then hold `relaxed` and `converged` (0 or 1), `energy` and
            `energy_change` (eV/atom) and `displacement` (Å), NaN where relaxation failed.
        device: "auto", "cpu", "cuda", "mps".
        n_jobs: Processes that relax; -1 is one per core.
        request: What crystals are asked to be, as in `SampleRequest`: num_atoms, composition, formula_units,
            chemical_system, chemical_system_subsets, conditions, sampler, temperature, batch_size, seed.

    Returns a `CrystalBatch` on the CPU (`.to_structure()`, `.to_atoms()`, `.to_cif()`). Raises `ConfigError` for what
    cannot be asked, naming it.
    """
    known = set(SampleRequest.__dataclass_fields__) - {"number"}
    if unknown := sorted(set(request) - known):
        raise ConfigError(f"sample: unknown {', '.join(unknown)}; expected some of {', '.join(sorted(known))}")
    relaxer = None if relax is None else _relaxer(relax, n_jobs)
    module = _model(ckpt_path, device)
    crystals = sample_all(module, SampleRequest(number=number, **request))
    if relaxer is None:
        return crystals
    relaxed, outcomes = relaxer(crystals)
    columns = ("relaxed", "converged", "energy", "energy_change", "displacement")
    values = {name: torch.tensor(outcomes[name].astype(float).to_numpy(), dtype=torch.float32) for name in columns}
    return relaxed.replace(properties={**crystals.properties, **values})


def reconstruct(
    structures: Structures, *, ckpt_path: Path | str = VAE, niggli: bool = True, device: str = "auto"
) -> CrystalBatch:
    """Encode and decode crystals with the posterior mean: `crystalvae.reconstruct(structures).to_structure()`.

    Args:
        structures: pymatgen structures or ASE atoms, one or a list, a `CrystalBatch`, or a file or folder that
            `read_crystals` reads.
        ckpt_path: A checkpoint, or the name of a bundled model.
        niggli: Reduce cells first, as those that the bundled models learned from are; what comes back are those cells.
        device: "auto", "cpu", "cuda", "mps".

    Returns crystals on the CPU, in the order of what was given.
    """
    module = _model(ckpt_path, device)
    return reconstruct_all(module, _crystals(structures, niggli=niggli), batch_size=512)


def embed(
    structures: Structures, *, ckpt_path: Path | str = VAE, niggli: bool = True, device: str = "auto"
) -> Float[Tensor, "B D"]:
    """Return one vector per crystal, on the CPU: `crystalvae.embed(structures)`; arguments as for `reconstruct`."""
    return _model(ckpt_path, device).embed(_crystals(structures, niggli=niggli)).cpu()


def evaluate(
    generated: Structures,
    *,
    data: str = "mp_20",
    sections: Sequence[str] | None = None,
    potential: str | None = None,
    seed: int = 0,
    n_jobs: int = -1,
    **settings: Any,
) -> EvaluationReport:
    """Judge generated crystals as `crystalvae evaluate generated=…` does: `crystalvae.evaluate(crystals).metrics()`.

    Args:
        generated: Crystals as for `reconstruct`; cells are taken as they are.
        data: A data set of `configs/data`: its validation split is the reference, its training split tells what is new.
        sections: Which parts; None: those of the command.
        potential: A potential of `configs/potential`, for stability.
        seed: Of the choices that parts make.
        n_jobs: Processes; -1 is one per core.
        settings: Further fields of `EvaluationSettings`.

    `evaluation.report.write_report(report, folder)` writes the JSON file and the page for the browser.
    """
    if potential is not None:
        settings["potential"] = potential_named(potential)
    chosen = EvaluationSettings(sections=sections, seed=seed, **settings)
    module = data_module(data, seed=seed)
    needed = chosen.chosen("generation")
    reference, train = module.dataset("val"), module.dataset("train")
    name = module.source.name
    known = Known(
        reference=CrystalSet.of_dataset(f"{name} val", reference),
        train=CrystalSet.of_dataset(f"{name} train", train) if "uniqueness" in needed else None,
        hull=CrystalSet.of_dataset(f"{name} train", train) if "stability" in needed else None,
    )
    crystals = CrystalSet.of("generated", _crystals(generated, niggli=False))
    return evaluate_generation(generated=crystals, known=known, runner=_runner(n_jobs), settings=chosen)


@lru_cache(maxsize=4)
def _loaded(path: Path, modified: float, device: str) -> VAEModule:  # noqa: ARG001  a file that changed is read again
    return VAEModule.load_from_checkpoint(path, map_location=device)


def _model(ckpt_path: Path | str, device: str) -> VAEModule:
    path = bundled.find(ckpt_path).resolve()
    return _loaded(path, path.stat().st_mtime, str(choose_device(device)))


def _crystals(structures: Structures, *, niggli: bool) -> CrystalBatch:
    if isinstance(structures, (str, Path)):
        return read_crystals(structures, niggli=niggli).crystals
    crystals = to_crystals("structures", structures)
    if not niggli:
        return crystals
    raw = [RawCrystal(*arrays) for arrays in sound_crystals("structures", crystals).to_arrays()]
    reduced = niggli_reduce(raw)
    for position, crystal in enumerate(reduced):
        if isinstance(crystal, CrystalError):
            raise ConfigError(f"structures: crystal {position} has no Niggli cell ({crystal}); give niggli=False")
    arrays = [(c.numbers, c.frac_coords, c.lattice) for c in reduced if isinstance(c, RawCrystal)]
    return CrystalBatch.from_arrays(arrays, crystals.properties)


def _relaxer(name: str, n_jobs: int) -> Relaxer:
    potential = potential_named(name)
    if missing := potential.missing():
        raise ConfigError(f"relax={name}: {missing}")
    return Relaxer(potential=potential, relaxation=Relaxation(), runner=_runner(n_jobs))


def _runner(n_jobs: int) -> Runner:
    return Runner(n_jobs=n_jobs, cache=ResultCache(cache_root(None) / "evaluation"))


def build_encoder(name: str, **options: Any) -> nn.Module:
    """Build an encoder of `configs/vae_module/encoder`: `crystalvae.build_encoder("cgcnn", d_model=64)`.

    Options are the keys of its YAML file, whose values they replace. Raises `ConfigError` for an unknown name or
    option, listing those there are.
    """
    return _build_part("encoder", name, options)


def build_decoder(name: str, **options: Any) -> nn.Module:
    """Build a decoder of `configs/vae_module/decoder`, as `build_encoder`; `atom_type_predict` is an option, too."""
    return _build_part("decoder", name, {"atom_type_predict": True, **options})


def _build_part(part: str, name: str, options: Mapping[str, Any]) -> nn.Module:
    folder = config_dir() / "vae_module" / part
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise ConfigError(f"build_{part}: got {name!r}; expected one of {', '.join(names)}")
    config = cast("dict[str, Any]", to_plain(OmegaConf.load(folder / f"{name}.yaml")))
    for base in config.pop("defaults", []):
        if base != "_self_":
            config = {**cast("dict[str, Any]", to_plain(OmegaConf.load(folder / f"{base}.yaml"))), **config}
    known = sorted({*config, *(["atom_type_predict"] if part == "decoder" else []), "d_condition"} - {"_target_"})
    if unknown := [option for option in options if option not in known]:
        raise ConfigError(f"build_{part}({name!r}): unknown {', '.join(unknown)}; expected some of {', '.join(known)}")
    return build(part, {**config, **options})

"""Run dynamics, or a relaxation that keeps its frames, and write the trajectories."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from crystalvae import checks
from crystalvae.build import to_plain
from crystalvae.checkpoints.format import package_versions
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.cif import CrystalError, parse_cif
from crystalvae.data.dataset import CrystalDataset
from crystalvae.data.prototypes.by_name import find_prototype
from crystalvae.data.readers import read_crystals
from crystalvae.data.trajectories.dynamics import Dynamics, Regime
from crystalvae.data.trajectories.relaxation import Descent
from crystalvae.data.trajectories.simulation import Descents, Runs, Simulation
from crystalvae.data.trajectories.trajectory import Trajectory
from crystalvae.errors import ConfigError, DataError
from crystalvae.evaluation.stability.potentials import Potential
from crystalvae.output_dir import MANIFEST_NAME, WRITER, check_output_dir, staged_output

if TYPE_CHECKING:
    from ase import Atoms

METHODS = ("dynamics", "relaxation")


def trajectory(config: DictConfig) -> str:
    """Run what `config` asks for and write one extxyz file a trajectory; returns what to tell the user."""
    output_dir = checks.check_path("output_dir", config.output_dir)
    check_output_dir(output_dir, overwrite=checks.check_switch("overwrite", config.overwrite))
    runs = _runs(config)
    potential = Potential.from_config(to_plain(config.potential))
    if missing := potential.missing():
        raise ConfigError(f"potential: {missing}")
    potential.calculator()  # what is wrong with it is said now, and not by a worker
    atoms, name = starting_crystal(config)
    started = time.perf_counter()
    found = runs.run(
        atoms,
        potential.calculator,
        n_jobs=checks.check_n_jobs(config.n_jobs),
        description=f"{config.method} of {atoms.get_chemical_formula()} under {potential.name}",
    )
    seconds = time.perf_counter() - started
    info = {
        "crystal": name,
        "formula": atoms.get_chemical_formula(),
        "method": config.method,
        **{key: to_plain(config[key]) for key in (config.method, "supercell", "num_trajectories", "seed")},
        "potential": potential.name,
        "calculator": potential.config,
        "seconds": round(seconds, 3),
        "versions": package_versions() | potential.versions(),
    }
    write_trajectories(found, output_dir, overwrite=config.overwrite, info=info)
    frames = sum(map(len, found))
    what = "1 trajectory" if len(found) == 1 else f"{len(found)} trajectories"
    return (
        f"{what} of {atoms.get_chemical_formula()} ({name}), {frames} frames, in {output_dir.absolute()}: extxyz with "
        f"energies, forces and times; under {potential.name} in {seconds:.1f} s"
    )


def write_trajectories(
    trajectories: Sequence[Trajectory], output_dir: Path, *, overwrite: bool, info: dict[str, object]
) -> None:
    """Write `<id>.extxyz` for each trajectory and a manifest to a folder, all of them or none."""
    with staged_output(output_dir, overwrite=overwrite) as folder:
        names = [f"{entry.id}.extxyz" for entry in trajectories]
        for entry, name in zip(trajectories, names, strict=True):
            entry.write_extxyz(folder / name)
        manifest = {
            "written_by": WRITER,
            "complete": True,
            "trajectories": len(trajectories),
            "info": info,
            "files": [*names, MANIFEST_NAME],
        }
        (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=1, default=str) + "\n", encoding="utf-8")


def starting_crystal(config: DictConfig) -> tuple[Atoms, str]:
    """Return the crystal that `input` and `id`, or `prototype`, name, as `supercell` has it, and its name.

    The cell is that of the file; for a prototype the primitive one.
    """
    repeats = to_plain(config.supercell)
    repeats = [repeats] * 3 if isinstance(repeats, int) else repeats
    if not isinstance(repeats, list) or len(repeats) != 3:
        raise ConfigError(f"supercell: got {repeats!r}; expected three whole numbers, such as [2,2,2]")
    for count in repeats:
        checks.check_count("supercell", count)
    if (config.input is None) == (config.prototype is None):
        raise ConfigError(
            "which crystal? Give input=… (a CIF, another file of crystals, or a folder of CIFs as sample writes), or "
            "prototype=… (CsCl, B2, AB_cP2_221_b_a)"
        )
    if config.prototype is not None:
        name = str(config.prototype)
        crystals = CrystalBatch.from_structures([find_prototype(name)])
    else:
        found = _read(checks.check_path("input", config.input), None if config.id is None else str(config.id))
        if len(found) != 1:
            some = ", ".join(list(found.ids)[:5])
            raise ConfigError(f"id: {config.input} has {len(found)} crystals; say which, such as {some}")
        crystals, name = found.crystals, found.ids[0]
    (atoms,) = crystals.to_atoms()
    return atoms * tuple(repeats), name


def _read(path: Path, name: str | None) -> CrystalDataset:
    if path.suffix == ".cif":
        try:
            crystal = parse_cif(path.read_text(encoding="utf-8", errors="replace"))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        except CrystalError as error:
            raise DataError(f"{path}: {error}") from error
        arrays = (crystal.numbers, crystal.frac_coords, crystal.lattice)
        found = CrystalDataset(CrystalBatch.from_arrays([arrays]), [path.stem])
    else:
        if path.is_dir() and name is not None and (path / f"{name}.cif").is_file():
            return _read(path / f"{name}.cif", None)
        found = read_crystals(path)
    if name is None:
        return found
    rows = [row for row, known in enumerate(found.ids) if known == name]
    if not rows:
        raise ConfigError(f"id: {path} has no crystal {name}; there are {', '.join(list(found.ids)[:5])}")
    return found.subset(rows)


def _runs(config: DictConfig) -> Runs:
    if config.method not in METHODS:
        raise ConfigError(f"method: got {config.method!r}; expected one of {', '.join(METHODS)}")
    count = checks.check_count("num_trajectories", config.num_trajectories)
    seed = checks.check_count("seed", config.seed, at_least=0)
    if config.method == "relaxation":
        return Descents(descent=Descent(**to_plain(config.relaxation)), num_trajectories=count, seed=seed)
    options: dict[str, Any] = to_plain(config.dynamics)
    steps = checks.check_count("dynamics.steps", options.pop("steps"))
    conditions = {name: options.pop(name) for name in ("temperature", "pressure", "strain")}
    dwell = options.pop("dwell")
    dynamics = Dynamics(**options)
    if steps % dynamics.interval:
        raise ConfigError(f"dynamics.steps={steps}: expected a multiple of dynamics.interval={dynamics.interval}")
    return Simulation(
        dynamics=dynamics,
        regimes=regimes(**conditions),
        num_trajectories=count,
        num_frames=steps // dynamics.interval,
        dwell=_bounds(dwell),
        seed=seed,
    )


def regimes(*, temperature: Any, pressure: Any, strain: Any) -> list[Regime]:
    """Return the conditions that numbers, or lists of them, describe; single values hold for all.

    A list of lists for `strain` has six numbers for each; a list of numbers one for each.
    """
    given = {"temperature": temperature, "pressure": pressure, "strain": strain}
    lengths = {len(value) for value in given.values() if isinstance(value, list)}
    if len(lengths) > 1 or 0 in lengths:
        raise ConfigError(
            "dynamics: temperature, pressure and strain: expected single values, or lists of one length, got "
            + ", ".join(f"{name}={value}" for name, value in given.items())
        )
    count = max(lengths, default=1)
    columns = {name: value if isinstance(value, list) else [value] * count for name, value in given.items()}
    for name in ("temperature", "pressure"):
        for value in columns[name]:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(f"dynamics.{name}: got {value!r}; expected a number")
    for value in columns["strain"]:
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(entry, bool) or not isinstance(entry, (int, float)) for entry in numbers):
            raise ConfigError(f"dynamics.strain: got {value!r}; expected a number, or six of them")
    return [
        Regime(temperature=columns["temperature"][i], pressure=columns["pressure"][i], strain=columns["strain"][i])
        for i in range(count)
    ]


def _bounds(dwell: object) -> tuple[int, int] | None:
    if dwell is None:
        return None
    if not isinstance(dwell, list) or len(dwell) != 2:
        raise ConfigError(f"dynamics.dwell: got {dwell!r}; expected two numbers of frames, such as [100,200], or null")
    return checks.check_count("dynamics.dwell", dwell[0]), checks.check_count("dynamics.dwell", dwell[1])

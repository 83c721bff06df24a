"""`trajectory` and what it runs: regimes take turns, dynamics keeps its promises, files say what was run."""

from __future__ import annotations

import inspect
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from crystalvae.commands.trajectory import regimes, starting_crystal, trajectory
from crystalvae.data.prototypes.by_name import find_prototype
from crystalvae.data.trajectories import embedded as embedded_module
from crystalvae.data.trajectories import embedded_trajectories, read_trajectories
from crystalvae.data.trajectories.dynamics import Dynamics, Regime, Visit, run_dynamics, take_turns
from crystalvae.data.trajectories.embedded import DWELL, DYNAMICS, REGIMES
from crystalvae.data.trajectories.relaxation import Descent, run_relaxation
from crystalvae.data.trajectories.simulation import Simulation
from crystalvae.errors import ConfigError, DataError, OutputError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def compose(name: str, *overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose(name, list(overrides))


def copper(*, repeats: int = 2) -> Atoms:
    atoms = bulk("Cu", "fcc", a=3.6) * (repeats, repeats, repeats)
    atoms.calc = EMT()
    return atoms


def run(
    dynamics: Dynamics, *conditions: Regime, visits: list[Visit] | None = None, seed: int = 0, **options: Any
) -> Any:
    atoms = options.pop("atoms", None) or copper()
    return run_dynamics(
        atoms,
        dynamics=dynamics,
        regimes=conditions,
        visits=visits or [Visit(0, 20)],
        seed=seed,
        id="x",
        **options,
    )


# ---- turns ----------------------------------------------------------------------------------------------------------


def test_without_bounds_every_regime_comes_once_in_order_for_the_same_time():
    turns = take_turns(3, 10, dwell=None, generator=np.random.default_rng(0))
    assert turns == [Visit(0, 3), Visit(1, 4), Visit(2, 3)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("num_regimes", [1, 2, 3, 5])
def test_turns_fill_the_frames_within_their_bounds_and_none_follows_itself(num_regimes: int, seed: int):
    turns = take_turns(num_regimes, 400, dwell=(10, 20), generator=np.random.default_rng(seed))
    assert sum(visit.frames for visit in turns) == 400
    assert all(10 <= visit.frames <= 20 for visit in turns[:-1])
    assert 1 <= turns[-1].frames <= 20
    order = [visit.regime for visit in turns]
    if num_regimes > 1:
        assert all(first != second for first, second in itertools.pairwise(order))
    for start in range(0, len(order) - num_regimes + 1, num_regimes):
        assert sorted(order[start : start + num_regimes]) == list(range(num_regimes))


def test_turns_that_cannot_be_taken():
    generator = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="num_frames: got 2; expected a whole number of at least 3"):
        take_turns(3, 2, dwell=None, generator=generator)
    with pytest.raises(ConfigError, match=r"dwell=\[5, 2\]"):
        take_turns(3, 20, dwell=(5, 2), generator=generator)


# ---- dynamics -------------------------------------------------------------------------------------------------------


def test_labels_and_cells_change_at_the_frames_of_the_visits():
    dynamics = Dynamics(timestep=5.0, interval=2)
    stretched = [0.05, 0.0, 0.0, 0.0, 0.0, 0.02]
    visits = [Visit(1, 4), Visit(0, 3), Visit(1, 2)]
    found = run(dynamics, Regime(temperature=300.0), Regime(temperature=300.0, strain=stretched), visits=visits)
    assert found.properties["regime"].tolist() == [1] * 4 + [0] * 3 + [1] * 2
    assert found.times.tolist() == [10.0 * i for i in range(9)]
    start = torch.from_numpy(np.array(copper().cell))
    deformation = torch.tensor([[1.05, 0.02, 0.0], [0.02, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    for i, label in enumerate(found.properties["regime"].tolist()):
        torch.testing.assert_close(found.lattices[i], start @ deformation if label else start)


def test_energies_and_forces_are_those_of_the_frames():
    found = run(Dynamics(timestep=5.0, interval=3), Regime(temperature=600.0), visits=[Visit(0, 4)])
    for atoms in found.to_atoms():
        kept = (atoms.get_potential_energy(), atoms.get_forces())
        atoms.calc = EMT()
        assert atoms.get_potential_energy() == pytest.approx(kept[0], abs=1e-6)
        np.testing.assert_allclose(atoms.get_forces(), kept[1], atol=1e-6)


def test_nve_keeps_energy_and_langevin_does_not():
    def spread(ensemble: Any) -> float:
        """Of potential and kinetic energy together, in eV."""
        dynamics = Dynamics(ensemble=ensemble, timestep=2.0, interval=5, equilibration=100)
        found = run(dynamics, Regime(temperature=300.0), visits=[Visit(0, 30)])
        kinetic = 1.5 * found.num_atoms * 8.617333e-5 * found.properties["temperature"]
        return float((found.energies + kinetic).std())

    assert spread("nve") < 0.002
    assert spread("langevin") > 0.02


def test_a_regime_holds_its_temperature_and_its_pressure_moves_the_cell():
    dynamics = Dynamics(ensemble="npt", timestep=8.0, interval=2, equilibration=20, thermostat_time=50.0)
    hot, pressed = Regime(temperature=700.0), Regime(temperature=200.0, pressure=15.0)
    found = run(dynamics, hot, pressed, visits=[Visit(0, 150), Visit(1, 150)])
    label = found.properties["regime"] == 1
    settled = torch.arange(300) % 150 >= 30
    temperature = found.properties["temperature"]
    assert float(temperature[~label & settled].mean()) == pytest.approx(700.0, rel=0.2)
    assert float(temperature[label & settled].mean()) == pytest.approx(200.0, rel=0.2)
    assert found.properties["pressure"][label].unique().tolist() == [15.0]
    volumes = found.volumes / 8
    squeezed = float(1 - volumes[label & settled].mean() / volumes[~label & settled].mean())
    assert 0.06 < squeezed < 0.16  # 15 GPa over 134 GPa, stiffening, and thermal expansion of some 3 %
    assert float(volumes[~label].std()) > 0.1


def test_the_volume_moves_alone_unless_the_shape_may():
    for hydrostatic in (True, False):
        dynamics = Dynamics(ensemble="npt", timestep=5.0, interval=5, hydrostatic=hydrostatic)
        found = run(dynamics, Regime(temperature=300.0), visits=[Visit(0, 10)])
        shapes = found.lattices / found.volumes.pow(1 / 3)[:, None, None]
        moved = float((shapes - shapes[0]).abs().max())
        assert (moved < 1e-9) == hydrostatic


def test_the_centre_of_mass_stays_and_coordinates_are_not_wrapped():
    found = run(Dynamics(timestep=5.0, interval=10), Regime(temperature=2000.0), visits=[Visit(0, 20)])
    centre = found.frac_coords.mean(dim=1)
    torch.testing.assert_close(centre, centre[:1].expand_as(centre), atol=1e-9, rtol=0.0)
    assert float(found.frac_coords.diff(dim=0).abs().max()) < 0.3


def test_the_same_seed_gives_the_same_trajectory_on_any_number_of_processes():
    simulation = Simulation(
        dynamics=Dynamics(timestep=5.0, interval=2),
        regimes=[Regime(temperature=300.0), Regime(temperature=900.0)],
        num_trajectories=2,
        num_frames=6,
        dwell=(2, 3),
        seed=3,
    )
    atoms = bulk("Cu", "fcc", a=3.6) * (2, 1, 1)
    alone = simulation.run(atoms, EMT, progress=False)
    together = simulation.run(atoms, EMT, n_jobs=2, progress=False)
    assert [entry.id for entry in alone] == ["0000", "0001"]
    for first, second in zip(alone, together, strict=True):
        assert torch.equal(first.frac_coords, second.frac_coords)
        assert first.properties["regime"].tolist() == second.properties["regime"].tolist()
    assert not torch.equal(alone[0].frac_coords, alone[1].frac_coords)


@pytest.mark.parametrize(
    ("options", "conditions", "message"),
    [
        ({"ensemble": "nve"}, [{"temperature": 1.0}] * 2, "nve keeps its energy"),
        ({"ensemble": "langevin"}, [{"temperature": 1.0, "pressure": 1.0}], "pressure needs npt"),
        ({"ensemble": "npt"}, [{"temperature": 1.0, "strain": 0.1}], "strain needs langevin or nve"),
        ({"timestep": 0.0}, [], r"dynamics\.timestep=0\.0"),
        ({"interval": 0}, [], r"dynamics\.interval"),
        ({}, [{"temperature": -1.0}], "temperature=-1"),
        ({}, [{"temperature": 1.0, "strain": [0.1, 0.2]}], "expected one number or six"),
        ({}, [], "at least one set of conditions"),
    ],
)
def test_conditions_that_cannot_be_held_are_refused(options: dict[str, Any], conditions: list[Any], message: str):
    with pytest.raises(ConfigError, match=message):
        Dynamics(**options).check([Regime(**entry) for entry in conditions])


def test_a_crystal_that_comes_apart_is_told_of():
    atoms = Atoms("ArAr", scaled_positions=[[0, 0, 0], [0.12, 0.0, 0.0]], cell=[8.0] * 3, pbc=True)
    atoms.calc = LennardJones(sigma=3.4, epsilon=0.01, rc=7.0)
    with pytest.raises(DataError, match="trajectory x: the crystal comes apart"):
        run(Dynamics(timestep=5.0, interval=1), Regime(temperature=300.0), atoms=atoms)


# ---- relaxations ----------------------------------------------------------------------------------------------------


def test_a_relaxation_keeps_its_frames_down_to_the_minimum():
    atoms = bulk("Cu", "fcc", a=3.75) * (2, 1, 1)
    atoms.calc = EMT()
    before = atoms.positions.copy()
    found = run_relaxation(atoms, descent=Descent(fmax=0.005, interval=3, rattle=0.1), id="down", seed=1)
    assert found.energies is not None
    assert found.forces is not None
    assert float(found.energies[0] - found.energies[-1]) > 0.05
    assert float(found.properties["max_force"][-1]) < 0.005
    assert found.times.tolist()[:3] == [0.0, 3.0, 6.0]
    assert float(found.volumes[-1]) / 2 == pytest.approx(3.59**3 / 4, rel=0.01)  # EMT's copper
    np.testing.assert_array_equal(atoms.positions, before)
    held = run_relaxation(atoms, descent=Descent(relax_cell=False, rattle=0.1, steps=5), id="held", seed=1)
    assert len(held) == 6
    torch.testing.assert_close(held.lattices, held.lattices[:1].expand(6, 3, 3))


# ---- the embedded example -------------------------------------------------------------------------------------------


def test_the_embedded_example_is_labelled_and_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = embedded_trajectories(num_trajectories=1, num_frames=4, n_jobs=1, cache_dir=tmp_path, progress=False)
    assert [len(entry) for entry in found] == [4]
    assert set(found[0].properties) == {"temperature", "regime", "pressure"}
    assert found[0].properties["regime"].dtype == torch.int64
    monkeypatch.setattr(embedded_module, "_run", lambda *_, **__: pytest.fail("it ran again"))
    again = embedded_trajectories(num_trajectories=1, num_frames=4, n_jobs=1, cache_dir=tmp_path, progress=False)
    assert torch.equal(again[0].frac_coords, found[0].frac_coords)
    (path,) = (tmp_path / "trajectories").glob("*.safetensors")
    path.write_bytes(b"damaged")
    monkeypatch.setattr(embedded_module, "_run", lambda *_, **__: found)
    embedded_trajectories(num_trajectories=1, num_frames=4, n_jobs=1, cache_dir=tmp_path, progress=False)
    assert path.stat().st_size > 1000


def test_the_experiment_of_the_command_is_the_embedded_example():
    config = compose("trajectory", "experiment=emt_demo/trajectory")
    GlobalHydra.instance().clear()
    options = dict(config.dynamics)
    conditions = {name: list(options[name]) for name in ("temperature", "pressure")}
    assert regimes(**conditions, strain=options["strain"]) == list(REGIMES.values())
    assert tuple(options["dwell"]) == DWELL
    kept = {name: options[name] for name in Dynamics.__dataclass_fields__}
    assert Dynamics(**kept) == DYNAMICS
    defaults = inspect.signature(embedded_trajectories).parameters
    assert config.num_trajectories == defaults["num_trajectories"].default
    assert options["steps"] // options["interval"] == defaults["num_frames"].default
    assert config.seed == defaults["seed"].default
    assert config.potential.name == "EMT"


@pytest.mark.slow
def test_cold_and_pressed_crystals_of_the_embedded_example_differ_only_in_how_much_they_move(tmp_path: Path):
    found = embedded_trajectories(cache_dir=tmp_path)
    volumes = torch.stack([entry.volumes for entry in found])
    labels = torch.stack([entry.properties["regime"] for entry in found])
    windows, middle = volumes.unfold(1, 30, 1), labels[:, 15:-14]
    still = middle != 1  # cold, and pressed

    def right(values: torch.Tensor, truth: torch.Tensor) -> float:
        classes = truth.unique()
        means = torch.stack([values[truth == k].mean() for k in classes])
        nearest = classes[(values[..., None] - means).abs().argmin(dim=-1)]
        return float((nearest == truth).float().mean())

    assert float(volumes[labels == 0].mean()) == pytest.approx(float(volumes[labels == 2].mean()), rel=0.003)
    assert right(windows.mean(dim=-1)[still], middle[still]) < 0.6
    assert right(windows.std(dim=-1)[still], middle[still]) > 0.75


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Run the command in a folder of its own; returns its message."""
    monkeypatch.chdir(tmp_path)
    bulk("Cu", "fcc", a=3.6, cubic=True).write("copper.cif")
    quick = ["dynamics.steps=6", "dynamics.interval=2", "dynamics.equilibration=0", "n_jobs=1"]

    def command(*options: str) -> str:
        message = trajectory(compose("trajectory", *quick, *options))
        GlobalHydra.instance().clear()
        return message

    yield command
    GlobalHydra.instance().clear()


def test_from_a_cif_to_files_that_are_read_again(start: Callable[..., str], tmp_path: Path):
    message = start("input=copper.cif", "dynamics.temperature=[300,900]", "num_trajectories=2", "seed=4")
    assert message.startswith("2 trajectories of Cu4 (copper), 6 frames, in ")
    found = read_trajectories(tmp_path / "trajectories")
    assert [entry.id for entry in found] == ["0000", "0001"]
    assert found[0].properties["regime"].tolist() == [0, 0, 1]
    assert found[0].times.tolist() == [0.0, 4.0, 8.0]
    assert found[0].energies is not None
    assert found[0].forces is not None
    assert "temperature" in found[0].properties
    torch.testing.assert_close(found[0].lattices[0], 3.6 * torch.eye(3, dtype=torch.float64), atol=1e-5, rtol=0.0)
    info = json.loads((tmp_path / "trajectories" / "samples.json").read_text())["info"]
    assert (info["seed"], info["potential"], info["dynamics"]["temperature"]) == (4, "EMT", [300, 900])
    assert "ase" in info["versions"]


def test_a_folder_that_holds_things_is_refused_and_an_export_of_ours_replaced(
    start: Callable[..., str], tmp_path: Path
):
    start("input=copper.cif", "num_trajectories=2")
    with pytest.raises(OutputError, match="already holds"):
        start("input=copper.cif")
    start("input=copper.cif", "overwrite=true")
    assert sorted(path.name for path in (tmp_path / "trajectories").iterdir()) == ["0000.extxyz", "samples.json"]


def test_a_relaxation_of_a_supercell(start: Callable[..., str], tmp_path: Path):
    message = start(
        "input=copper.cif", "method=relaxation", "relaxation.rattle=0.05", "relaxation.steps=4", "supercell=[2,1,1]"
    )
    assert message.startswith("1 trajectory of Cu8 (copper), 5 frames")
    (found,) = read_trajectories(tmp_path / "trajectories")
    assert found.times.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert found.energies is not None
    assert bool((found.energies.diff() < 0).all())


def test_a_crystal_of_a_samples_folder_by_its_id(start: Callable[..., str], tmp_path: Path):
    folder = tmp_path / "samples"
    folder.mkdir()
    for name, symbol in (("0000", "Cu"), ("0001", "Au")):
        bulk(symbol, "fcc", a=4.0, cubic=True).write(folder / f"{name}.cif")
    with pytest.raises(ConfigError, match="samples has 2 crystals; say which, such as 0000, 0001"):
        start("input=samples")
    assert start("input=samples", "id='0001'").startswith("1 trajectory of Au4 (0001)")
    with pytest.raises(ConfigError, match="no crystal 7"):
        start("input=samples", "id=7", "output_dir=other")


def test_prototypes_are_found_by_any_of_their_names():
    for name in ("A_cF4_225_a", "A1", "copper", "Cu"):
        found = find_prototype(name)
        assert len(found) == 1
        assert math.isclose(found.volume, 11.8, rel_tol=0.01)
    with pytest.raises(ConfigError, match="none named 'unobtainium'"):
        find_prototype("unobtainium")
    with pytest.raises(ConfigError, match=r"5 are named 'Si'; say which: A_cF136_227_aeg"):
        find_prototype("Si")
    atoms, name = starting_crystal(compose("trajectory", "prototype=CsCl", "supercell=2"))
    assert (atoms.get_chemical_formula(), name) == ("Cl8Cs8", "CsCl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "which crystal"),
        (["input=copper.cif", "prototype=Cu"], "which crystal"),
        (["input=copper.cif", "method=guessing"], "method: got 'guessing'"),
        (["input=copper.cif", "supercell=[2,2]"], "supercell"),
        (["input=copper.cif", "supercell=0"], "supercell"),
        (["input=copper.cif", "dynamics.steps=7"], "expected a multiple of"),
        (["input=copper.cif", "dynamics.dwell=[5]"], r"dynamics\.dwell: got \[5\]"),
        (["input=copper.cif", "dynamics.temperature=[1,2]", "dynamics.strain=[0.0]"], "lists of one length"),
        (["input=copper.cif", "dynamics.temperature=warm"], r"dynamics\.temperature: got 'warm'"),
        (["input=copper.cif", "method=relaxation", "num_trajectories=2"], "all would be the same"),
        (["input=copper.cif", "method=relaxation", "relaxation.optimizer=Newton"], "relaxation.optimizer='Newton'"),
        (["input=copper.cif", "method=relaxation", "relaxation.fmax=small"], "relaxation.fmax='small'"),
        (["input=copper.cif", "method=relaxation", "relaxation.rattle=-1"], "relaxation.rattle: got -1"),
        (["input=copper.cif", "method=relaxation", "relaxation.relax_cell=maybe"], "relaxation.relax_cell='maybe'"),
        (["input=copper.cif", "dynamics.timestep=short"], r"dynamics\.timestep='short'"),
        (["input=copper.cif", "dynamics.interval=2.5", "dynamics.steps=5"], r"dynamics\.interval: got 2\.5"),
        (["input=copper.cif", "dynamics.hydrostatic=3"], r"dynamics\.hydrostatic=3"),
        (["input=copper.cif", "dynamics.strain=[[0.1,0.1]]"], "expected one number or six"),
        (["input=copper.cif", "potential.calculator._target_=nowhere.Potential"], "none of the parts that a config"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_what_cannot_be_run_is_said_before_anything_runs(start: Callable[..., str], options: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        start(*options)


def test_a_file_that_holds_no_crystal(start: Callable[..., str], tmp_path: Path):
    (tmp_path / "empty.cif").write_text("data_x\n")
    with pytest.raises(DataError, match=r"empty\.cif: no atom sites"):
        start("input=empty.cif")
    with pytest.raises(DataError, match=r"gone\.cif"):
        start("input=gone.cif")

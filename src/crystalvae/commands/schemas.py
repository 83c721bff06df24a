"""What each command's config may hold: keys and types, with the smallest values. The defaults are in the YAML files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Number = int | float


def at_least(least: float, *, most: float | None = None) -> Any:
    """Describe a key whose numbers have limits."""
    return field(metadata={"least": least, "most": most})


def path() -> Any:
    """Describe a key that names a file or folder, and so is never empty."""
    return field(metadata={"path": True})


def processes() -> Any:
    """Describe a number of processes: -1, one per core, or at least 1."""
    return field(metadata={"least": 1, "or": -1})


@dataclass(kw_only=True)
class Config:
    """Keys of every command."""

    trusted_targets: list[str]


@dataclass(kw_only=True)
class Training(Config):
    """Keys of every training command; the parts are judged by what they describe."""

    data: dict[str, Any]
    trainer: dict[str, Any]
    callbacks: dict[str, Any] | None
    logger: dict[str, Any] | None
    name: str
    seed: int = at_least(0, most=2**32 - 1)
    output_dir: str = path()
    overwrite: bool
    resume_from: str | None = path()


@dataclass(kw_only=True)
class TrainVAE(Training):
    """`train_vae.yaml`."""

    vae_module: dict[str, Any]
    ckpt_path: str | None = path()
    compile: bool


@dataclass(kw_only=True)
class TrainPrior(Training):
    """`train_prior.yaml`."""

    prior_module: dict[str, Any]
    vae_ckpt_path: str = path()
    ckpt_path: str | None = path()
    compile: bool


@dataclass(kw_only=True)
class TrainPredictor(Training):
    """`train_predictor.yaml`."""

    predictor: dict[str, Any]
    vae_ckpt_path: str = path()


@dataclass(kw_only=True)
class TrainSequence(Training):
    """`train_sequence.yaml`."""

    sequence_module: dict[str, Any]
    ckpt_path: str | None = path()


@dataclass(kw_only=True)
class Sampler:
    """How a prior samples; null for its own defaults."""

    solver: str | None
    steps: int | None
    stochasticity: Number | None
    time_shift: Number | None
    method: str | None
    eta: Number | None
    guidance_scale: Number | None
    composition_temperature: Number | None
    projection: bool | None
    analogues: str | None
    trust: Number | None
    redraws: int | None


@dataclass(kw_only=True)
class Relaxation:
    """How crystals are relaxed."""

    optimizer: str
    fmax: Number
    max_steps: int
    time_limit_s: Number | None


@dataclass(kw_only=True)
class Sampling(Config):
    """Keys of the commands that sample."""

    potential: dict[str, Any]
    num_samples: int = at_least(1)
    seed: int = at_least(0, most=2**32 - 1)
    temperature: Number = at_least(0)
    chemical_system: Any  # a text, or a list of elements
    chemical_system_subsets: bool
    space_group: int | None = at_least(1, most=230)
    crystal_system: str | None
    wyckoff: Any  # a text, or a list of letters
    conditions: dict[str, Any] | None
    sampler: Sampler | None
    n_jobs: int = processes()
    batch_size: int = at_least(1)
    device: str


@dataclass(kw_only=True)
class Sample(Sampling):
    """`sample.yaml`."""

    ckpt_path: str = path()
    method: str
    data: dict[str, Any] | None
    num_atoms: Any  # a number, a list with one for each sample, or null
    composition: str | None
    formula_units: int | None = at_least(1)
    relax: bool
    relaxation: Relaxation
    formats: Any  # one, or a list
    cif_symmetry: bool
    output_dir: str = path()
    overwrite: bool
    cuda_graphs: bool


@dataclass(kw_only=True)
class Validity:
    """When a crystal counts as valid."""

    oxidation_states: str
    min_contact: Number = at_least(0)
    range_tails: Number = at_least(0)


@dataclass(kw_only=True)
class Coverage:
    """Cut-offs of coverage."""

    structure: Number | None = at_least(0)
    composition: Number | None = at_least(0)


@dataclass(kw_only=True)
class Wasserstein:
    """Distances between distributions."""

    num_samples: int = at_least(1)


@dataclass(kw_only=True)
class Symmetry:
    """How space groups are found."""

    library: str
    tolerances: list[Number]
    write_cifs: bool


@dataclass(kw_only=True)
class Stability:
    """Energies above the hull."""

    second_potential: str | None
    hull: str | None = path()
    hull_splits: list[str]
    relax_hull: bool
    complete_elements: bool
    stable: Number
    metastable: Number
    lowest: Number
    max_crystals: int | None = at_least(1)
    sample: int = at_least(0)
    relaxation: Relaxation


@dataclass(kw_only=True)
class Evaluate(Sampling):
    """`evaluate.yaml`."""

    data: dict[str, Any] | None
    ckpt_path: str | None = path()
    generated: str | None = path()
    task: str | None
    reference: str | None
    split: str
    train_split: str | None
    num_crystals: int | None = at_least(1)
    num_candidates: int | None = at_least(1)
    verbose: bool
    match_by: str
    ks: list[int] | None = at_least(1)
    sections: list[str] | None
    validity: Validity
    coverage: Coverage
    wasserstein: Wasserstein
    symmetry: Symmetry
    stability: Stability
    backend: str
    address: str | None
    cache: bool
    timeout_s: Number | None
    output_dir: str | None = path()
    report: bool


@dataclass(kw_only=True)
class OfCrystals(Config):
    """Keys of the commands that work on crystals of a data set."""

    data: dict[str, Any] | None
    ckpt_path: str = path()
    split: str
    num_crystals: int | None = at_least(1)
    seed: int = at_least(0, most=2**32 - 1)
    output_dir: str = path()
    overwrite: bool
    batch_size: int = at_least(1)
    device: str


@dataclass(kw_only=True)
class Reconstruct:
    """`operation=reconstruct`."""

    deterministic: bool


@dataclass(kw_only=True)
class Interpolate:
    """`operation=interpolate`."""

    steps: int = at_least(2, most=10_000)
    mode: str


@dataclass(kw_only=True)
class Traverse:
    """`operation=traverse`."""

    dim: int
    range: list[Number]
    steps: int = at_least(1, most=10_000)
    atom: int | None


@dataclass(kw_only=True)
class Nearest:
    """`operation=nearest`."""

    k: int
    split: str


@dataclass(kw_only=True)
class Map:
    """`operation=map`."""

    method: str
    color: str | None


@dataclass(kw_only=True)
class Search:
    """`operation=search`."""

    target: Number | None
    steps: int
    learning_rate: Number
    penalty: Number
    project_every: int


@dataclass(kw_only=True)
class Latent(OfCrystals):
    """`latent.yaml`."""

    operation: str
    input: Any  # a file or folder, or a list of them
    ids: list[str] | None
    reconstruct: Reconstruct
    interpolate: Interpolate
    traverse: Traverse
    nearest: Nearest
    map: Map
    search: Search
    formats: Any  # one, or a list


@dataclass(kw_only=True)
class Cluster(OfCrystals):
    """`cluster.yaml`."""

    k: int = at_least(1)
    tolerance: Number = at_least(0)
    verbose: bool
    n_jobs: int = processes()


@dataclass(kw_only=True)
class Convert(Config):
    """`convert.yaml`."""

    ckpt_path: str = path()
    vae_ckpt_path: str | None = path()
    dataset: str | None
    output: str = path()
    overwrite: bool


@dataclass(kw_only=True)
class Publish(Config):
    """`publish.yaml`."""

    ckpt_path: str = path()
    name: str
    output_dir: str = path()
    overwrite: bool
    prior_storage: str


@dataclass(kw_only=True)
class Doctor(Config):
    """`doctor.yaml`."""

    device: str


@dataclass(kw_only=True)
class Dynamics:
    """How dynamics run."""

    ensemble: str
    temperature: Any  # a number, or a list with one for each regime
    pressure: Any
    strain: Any  # a number, six of them, or a list with one for each regime
    dwell: list[int] | None
    steps: int = at_least(1)
    timestep: Number = at_least(0)
    interval: int = at_least(1)
    equilibration: int = at_least(0)
    thermostat_time: Number = at_least(0)
    barostat_time: Number = at_least(0)
    hydrostatic: bool


@dataclass(kw_only=True)
class KeptRelaxation:
    """How a relaxation that keeps its frames runs."""

    optimizer: str
    fmax: Number = at_least(0)
    steps: int = at_least(1)
    interval: int = at_least(1)
    relax_cell: bool
    rattle: Number = at_least(0)


@dataclass(kw_only=True)
class RunTrajectory(Config):
    """`trajectory.yaml`."""

    potential: dict[str, Any]
    input: str | None = path()
    id: str | None
    prototype: str | None
    supercell: Any  # one number for all axes, or three
    method: str
    num_trajectories: int = at_least(1)
    seed: int = at_least(0, most=2**32 - 1)
    dynamics: Dynamics
    relaxation: KeptRelaxation
    n_jobs: int = processes()
    output_dir: str = path()
    overwrite: bool


@dataclass(kw_only=True)
class MotifFit:
    """How motifs are found."""

    number: Any  # one, or a list to choose from
    method: str
    covariance: str
    criterion: str
    restarts: int = at_least(1)
    iterations: int = at_least(1)
    communities: int | None = at_least(1)


@dataclass(kw_only=True)
class MotifGeneration:
    """What is generated beside the motifs."""

    samples: int = at_least(0)
    components: int = at_least(1)
    clips: int = at_least(1)
    forecast: int = at_least(1)


@dataclass(kw_only=True)
class MotifReport:
    """What the report shows."""

    map: str
    properties: list[str] | None
    gif: bool
    mp4: bool


@dataclass(kw_only=True)
class Motifs(Config):
    """`motifs.yaml`."""

    data: dict[str, Any]
    sequence_module: dict[str, Any]
    trainer: dict[str, Any]
    callbacks: dict[str, Any] | None
    logger: dict[str, Any] | None
    name: str
    seed: int = at_least(0, most=2**32 - 1)
    output_dir: str = path()
    overwrite: bool
    from_step: str | None
    ckpt_path: str | None = path()
    motifs: MotifFit
    label: str | None
    groups: dict[str, Any] | None
    generation: MotifGeneration
    report: MotifReport


SCHEMAS: dict[str, type[Config]] = {
    "train_vae": TrainVAE,
    "train_prior": TrainPrior,
    "train_predictor": TrainPredictor,
    "sample": Sample,
    "evaluate": Evaluate,
    "latent": Latent,
    "cluster": Cluster,
    "convert": Convert,
    "publish": Publish,
    "doctor": Doctor,
    "trajectory": RunTrajectory,
    "train_sequence": TrainSequence,
    "motifs": Motifs,
}
"""Schema of each command, by the name of its YAML file."""

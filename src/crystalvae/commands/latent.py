"""Latent-space operations on crystals from files or a data set, with their results as files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from crystalvae import checks
from crystalvae.build import to_plain
from crystalvae.checkpoints import bundled
from crystalvae.checkpoints import format as checkpoints
from crystalvae.commands.inputs import Inputs
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.dataset import CrystalDataset
from crystalvae.data.readers import read_crystals
from crystalvae.data.sources import SPLITS, cache_root
from crystalvae.data.writers import FORMATS
from crystalvae.errors import ConfigError
from crystalvae.evaluation.validity.contacts import sample_facts
from crystalvae.output_dir import check_output_dir
from crystalvae.predictor_module.predictor import LatentPredictor
from crystalvae.vae_module.latent_space.index import EmbeddingIndex
from crystalvae.vae_module.latent_space.inputs import property_values
from crystalvae.vae_module.latent_space.latents import reconstruct
from crystalvae.vae_module.latent_space.maps import draw_map, project
from crystalvae.vae_module.latent_space.write_series import write_series
from crystalvae.vae_module.vae_module import VAEModule

log = logging.getLogger(__name__)

MAP_NAME = "map.png"
"""The picture of `operation=map`, inside the output folder."""


@dataclass(frozen=True)
class Outcome:
    """The crystals of an operation, further columns of their table, what to tell the user, and what draws pictures."""

    crystals: CrystalBatch
    message: str
    columns: dict[str, Sequence[object]] = field(default_factory=dict)
    formats: tuple[str, ...] = ("cif", "extxyz")
    pictures: dict[str, Callable[[Path], object]] = field(default_factory=dict)


class Request:
    """What a config asks for, read when first needed."""

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self.inputs = Inputs(config, "reconstruction")
        self.batch_size = checks.check_count("batch_size", config.batch_size)
        self.seed = checks.check_count("seed", config.seed, at_least=0)
        self.output_dir = checks.check_path("output_dir", config.output_dir)

    def module(self) -> VAEModule:
        """Return the checkpoint's model, on the device that was asked for."""
        return self.inputs.module()

    def split(self, key: str, name: object) -> CrystalDataset:
        """Return a split of the data set."""
        if name not in SPLITS:
            raise ConfigError(f"{key}: got {name!r}; expected one of {', '.join(SPLITS)}")
        found = self.inputs.split(name)
        return CrystalDataset(found.crystals, found.ids)

    def crystals(self, operation: str, *, exactly: int | None = None) -> CrystalDataset:
        """Return the crystals to work on; `ConfigError` where an operation takes another number of them."""
        config = self.config
        if config.input is not None:
            plain = to_plain(config.input)
            given = [plain] if isinstance(plain, str) else plain
            if not isinstance(given, list) or not given:
                raise ConfigError(f"input: got {plain!r}; expected a file or folder, or a list of them")
            chosen = _joined(
                [read_crystals(checks.check_path("input", entry), niggli=True, unique_ids=True) for entry in given]
            )
        else:
            chosen = self.split("split", config.split)
        if config.ids is not None:
            chosen = _named(chosen, [str(name) for name in to_plain(config.ids)])
        if config.num_crystals is not None:
            count = checks.check_count("num_crystals", config.num_crystals)
            generator = torch.Generator().manual_seed(self.seed)
            rows = torch.randperm(len(chosen), generator=generator)[:count].sort().values
            chosen = chosen.subset(rows.tolist())
        if exactly is not None and len(chosen) != exactly:
            raise ConfigError(
                f"operation={operation}: got {len(chosen)} crystals; expected {exactly}: say which with input= or ids="
            )
        return chosen


def latent(config: DictConfig) -> str:
    """Do the operation that `config` asks for and write its results; returns what to tell the user."""
    if config.operation not in OPERATIONS:
        raise ConfigError(f"operation: got {config.operation!r}; expected one of {', '.join(OPERATIONS)}")
    request = Request(config)
    formats = None if config.formats is None else checks.check_choices("formats", config.formats, FORMATS)
    check_output_dir(request.output_dir, overwrite=config.overwrite)
    outcome = OPERATIONS[config.operation](request)
    facts = sample_facts(outcome.crystals)
    write_series(
        outcome.crystals,
        request.output_dir,
        formats=outcome.formats if formats is None else formats,
        columns={**outcome.columns, **{name: facts[name].tolist() for name in facts}},
        overwrite=config.overwrite,
        pictures=outcome.pictures,
        info={
            "operation": config.operation,
            **(to_plain(config.get(config.operation)) or {}),
            "ckpt_path": str(config.ckpt_path),
            "seed": request.seed,
            "versions": checkpoints.package_versions(),
        },
    )
    return f"{outcome.message}; {len(outcome.crystals)} crystals in {request.output_dir.absolute()}"


def _reconstruct(request: Request) -> Outcome:
    deterministic = checks.check_switch("reconstruct.deterministic", request.config.reconstruct.deterministic)
    data = request.crystals("reconstruct")
    generator = torch.Generator().manual_seed(request.seed)
    module = request.module()
    crystals = module.condition.known(module.taken("input", data.crystals))
    made = reconstruct(
        module.vae, crystals, deterministic=deterministic, generator=generator, batch_size=request.batch_size
    )
    return Outcome(made, "reconstructed", {"source": data.ids})


def _interpolate(request: Request) -> Outcome:
    data, options = request.crystals("interpolate", exactly=2), request.config.interpolate
    path = request.module().interpolate(data.crystals[0], data.crystals[1], options.steps, options.mode)
    return Outcome(path, f"from {data.ids[0]} to {data.ids[1]}")


def _traverse(request: Request) -> Outcome:
    data, options = request.crystals("traverse", exactly=1), request.config.traverse
    limits = to_plain(options.range)
    if not isinstance(limits, list) or len(limits) != 2:
        raise ConfigError(f"traverse.range: got {limits!r}; expected two numbers, from and to, such as [-3,3]")
    path = request.module().latent_traversal(
        data.crystals, options.dim, (limits[0], limits[1]), options.steps, atom=options.atom
    )
    return Outcome(path, f"{data.ids[0]} along latent dimension {options.dim}")


def _embed(request: Request) -> Outcome:
    data = request.crystals("embed")
    vectors = request.module().embed(data.crystals, batch_size=request.batch_size).to("cpu")
    columns: dict[str, Sequence[object]] = {"source": data.ids}
    columns |= {f"embedding_{i}": column.tolist() for i, column in enumerate(vectors.T)}
    message = f"embedded, {vectors.shape[1]} numbers per crystal in samples.csv"
    return Outcome(data.crystals, message, columns, formats=())


def _nearest(request: Request) -> Outcome:
    options, module = request.config.nearest, request.module()
    data, known = request.crystals("nearest"), request.split("nearest.split", request.config.nearest.split)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("embedding", total=len(known))
        index = EmbeddingIndex.build(
            module.vae,
            known,
            every_origin=module.any_origin,
            batch_size=request.batch_size,
            cache_dir=cache_root(None) / "embeddings",
            advance=lambda done: progress.advance(task, done),
        )
    found = [module.nearest(data.crystals[row], options.k, index=index) for row in range(len(data))]
    columns: dict[str, Sequence[object]] = {
        "query": [name for name, one in zip(data.ids, found, strict=True) for _ in one.ids],
        "source": [name for one in found for name in one.ids],
        "distance": [distance for one in found for distance in one.distances],
    }
    where = f"{request.inputs.dataset_name} {options.split}"
    message = f"the {options.k} nearest of {len(known)} crystals of {where} to each"
    return Outcome(CrystalBatch.cat(one.crystals for one in found), message, columns)


def _map(request: Request) -> Outcome:
    options, data = request.config.map, request.crystals("map")
    values = None
    if options.color is not None:
        values = property_values(data.crystals, str(options.color), key="map.color")
    vectors = request.module().embed(data.crystals, batch_size=request.batch_size)
    points = project(vectors, method=options.method, seed=request.seed)

    def draw(path: Path) -> Path:
        numbers = None if values is None else values.double().numpy()
        return draw_map(points, numbers, path, label=str(options.color or ""), method=options.method)

    columns: dict[str, Sequence[object]] = {"source": data.ids, "x": points[:, 0].tolist(), "y": points[:, 1].tolist()}
    message = f"map in {request.output_dir / MAP_NAME}"
    return Outcome(data.crystals, message, columns, formats=(), pictures={MAP_NAME: draw})


def _search(request: Request) -> Outcome:
    options = request.config.search
    if options.target is None:
        raise ConfigError("search.target: say which value is wanted, search.target=-2.0, in the property's unit")
    path = bundled.find(checks.check_path("ckpt_path", request.config.ckpt_path))
    predictor = LatentPredictor.load_from_checkpoint(path, map_location=request.inputs.module().device)
    data = request.crystals("search")
    crystals = predictor.search(
        data.crystals,
        options.target,
        steps=options.steps,
        learning_rate=options.learning_rate,
        penalty=options.penalty,
        project_every=options.project_every,
        batch_size=request.batch_size,
    )
    before, after = (crystals.properties[f"predicted_{when}"] for when in ("before", "after"))
    errors = [float((values - options.target).abs().mean()) for values in (before, after)]
    message = (
        f"{predictor.target} {options.target:g}: predicted {float(before.mean()):.3f} on average before, "
        f"{float(after.mean()):.3f} after; mean distance to the target {errors[0]:.3f} before, {errors[1]:.3f} after"
    )
    return Outcome(crystals, message, {"source": data.ids})


OPERATIONS: dict[str, Callable[[Request], Outcome]] = {
    "reconstruct": _reconstruct,
    "interpolate": _interpolate,
    "traverse": _traverse,
    "embed": _embed,
    "nearest": _nearest,
    "map": _map,
    "search": _search,
}
"""What each operation does."""


def _joined(datasets: list[CrystalDataset]) -> CrystalDataset:
    crystals = CrystalBatch.cat(dataset.crystals for dataset in datasets)
    return CrystalDataset(crystals, [name for dataset in datasets for name in dataset.ids])


def _named(dataset: CrystalDataset, names: list[str]) -> CrystalDataset:
    rows = {name: row for row, name in enumerate(dataset.ids)}
    missing = [name for name in names if name not in rows]
    if missing:
        some = ", ".join(list(dataset.ids)[:3])
        raise ConfigError(f"ids: no crystal {', '.join(missing[:5])}; there are {len(dataset)}, such as {some}")
    return dataset.subset([rows[name] for name in names])

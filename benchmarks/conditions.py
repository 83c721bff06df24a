"""Does a model do what it is asked? Samples, and reconstructions with a swapped condition, against not asking.

    python benchmarks/conditions.py --ckpt mp20-small --samples 200 --guidance 1 2
    python benchmarks/conditions.py --ckpt conditional/checkpoints/best.ckpt --data prototypes --canonical
    python benchmarks/conditions.py --predictor predictor/checkpoints/best.ckpt --only formation_energy_per_atom

Works for checkpoints with a learned prior and for conditional VAEs. Classes: the share of crystals in the asked
crystal system, judged by the symmetry of the whole crystal and by that of its cell alone (cells of trigonal crystals
are rhombohedral or hexagonal), both within `--tolerance`; with `--data` also by the training crystal whose cell has
the most similar shape, which asks for no exact symmetry. Numbers that can be computed from a crystal, or that a
property head predicts (`--predictor`, a checkpoint of `src/train_predictor.py`; its own error bounds what it can
tell): the correlation of asked and obtained, and the mean absolute error, for values spread evenly over mean ± 1.5
standard deviations of the training set. Elements: what held-out crystals of `--data` are made of is asked for. With
`--data` also reconstructions: held-out crystals are encoded as what they are and decoded as each crystal system. Every
comparison is with the same noise and nothing asked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import hydra  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import src  # noqa: E402, F401  # the package of this checkout
from crystalvae.build import build  # noqa: E402
from crystalvae.data.batch import CrystalBatch  # noqa: E402
from crystalvae.data.canonical import CRYSTAL_SYSTEMS, crystal_system  # noqa: E402
from crystalvae.data.composition import densities, element_fractions  # noqa: E402
from crystalvae.evaluation.parallel.runner import Runner  # noqa: E402
from crystalvae.evaluation.symmetry.section import find_space_groups  # noqa: E402
from crystalvae.evaluation.validity.composition import check_compositions, reduced_compositions  # noqa: E402
from crystalvae.evaluation.validity.structure import describe  # noqa: E402
from crystalvae.predictor_module.predictor import LatentPredictor  # noqa: E402
from crystalvae.sampling import SampleRequest, proposes_elements, request_template  # noqa: E402
from crystalvae.vae_module import VAEModule  # noqa: E402
from crystalvae.vae_module.conditions.embedder import ConditionEmbedder  # noqa: E402
from crystalvae.vae_module.conditions.values import COMPUTED, condition_values  # noqa: E402

Measure = Callable[[CrystalBatch], Tensor]
NUMBERS: dict[str, Measure] = {"density": densities}
"""Numbers that can be read off a crystal."""
NEVER_NEGATIVE = {"density", "band_gap", "e_above_hull"}


def systems(crystals: CrystalBatch, tolerance: float) -> np.ndarray:
    """Return the crystal system of each crystal, -1 where none is found."""
    groups = find_space_groups(crystals, runner=Runner(progress=False), tolerances=(tolerance,))
    return crystal_system(torch.as_tensor(groups[:, 0].astype(float))).numpy()


def cell_systems(crystals: CrystalBatch, tolerance: float) -> np.ndarray:
    """Return the crystal system of each crystal's lattice alone, as if it had one atom."""
    single = CrystalBatch.empty([1] * len(crystals)).replace(lattices=crystals.lattices.cpu())
    return systems(single.replace(atom_types=torch.ones(len(crystals), dtype=torch.long)), tolerance)


def cell_shapes(crystals: CrystalBatch) -> Tensor:
    """Return, for each crystal, the logarithms of its lengths over their geometric mean, and its angles in radians."""
    lengths = crystals.lengths.cpu().log()
    return torch.cat((lengths - lengths.mean(dim=1, keepdim=True), crystals.angles_radians.cpu()), dim=1)


class Cells:
    """The cells of the training set, with their crystal systems."""

    def __init__(self, crystals: CrystalBatch) -> None:
        own = condition_values(crystals, ["crystal_system"])["crystal_system"]
        self.shapes, self.systems = cell_shapes(crystals)[~own.isnan()], own[~own.isnan()]

    def nearest(self, crystals: CrystalBatch) -> np.ndarray:
        """Return the crystal system of the training crystal whose cell has the most similar shape."""
        return self.systems[torch.cdist(cell_shapes(crystals), self.shapes).argmin(dim=1)].long().numpy()


class Judged:
    """Crystals with what they turned out to be, by symmetry at each tolerance and by the nearest training cell."""

    def __init__(self, crystals: CrystalBatch, tolerances: list[float], cells: Cells | None) -> None:
        crystals = crystals.to("cpu")
        self.found = {value: (systems(crystals, value), cell_systems(crystals, value)) for value in tolerances}
        self.nearest = None if cells is None else cells.nearest(crystals)
        self.valid = float(describe(crystals)["valid"].mean())
        self.neutral = float(np.mean([check.valid for check in check_compositions(reduced_compositions(crystals))]))

    def shares(self, number: int, tolerance: float) -> tuple[float, float, float]:
        """Return the share of crystals, of cells, and of nearest training cells in a crystal system."""
        whole, cell = self.found[tolerance]
        cells = (4, 5) if CRYSTAL_SYSTEMS[number] == "trigonal" else (number,)
        nearest = np.nan if self.nearest is None else float((self.nearest == number).mean())
        return float((whole == number).mean()), float(np.isin(cell, cells).mean()), nearest


class Model:
    """A checkpoint with what can be asked of it."""

    def __init__(self, ckpt: str, seed: int, held_out: CrystalBatch | None) -> None:
        self.module, self.seed, self.held_out = VAEModule.load_from_checkpoint(ckpt), seed, held_out
        part = self.module.vae if self.module.prior is None else self.module.prior
        found = [entry for entry in part.modules() if isinstance(entry, ConditionEmbedder)]
        if not found or not found[0].names:
            sys.exit(f"{ckpt}: nothing can be asked of this model")
        self.embedder = found[0]

    @property
    def names(self) -> list[str]:
        """The conditions that it knows."""
        return self.embedder.names

    def template(self, count: int) -> CrystalBatch:
        """Return atom counts, the same each time; where elements have to be given, those of held-out crystals."""
        if not proposes_elements(self.module):
            if self.held_out is None:
                sys.exit("this model is given the elements: say whose, --data")
            chosen = self.held_out[torch.arange(count) % len(self.held_out)]
            return CrystalBatch.empty(chosen.num_atoms).replace(atom_types=chosen.atom_types)
        generator = torch.Generator().manual_seed(self.seed)
        return request_template(self.module, SampleRequest(number=count), generator=generator)

    def draw(self, template: CrystalBatch, **options: object) -> CrystalBatch:
        """Sample with the same noise each time."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return self.module.sample_crystals(template, generator=generator, **options)


def change(before: float, after: float) -> str:
    """Return two shares as text; a dash where nothing was measured."""
    return "–" if np.isnan(before) else f"{before:.1%} → {after:.1%}"


def tables(title: str, asked: dict[str, Judged], free: dict[str, Judged], tolerances: list[float]) -> None:
    """Print the shares of each crystal system, asked for → not asked for."""
    for tolerance in tolerances:
        print(f"\n{title}; symmetry within {tolerance:g} Å; not asked → asked\n")
        print(
            "| asked | crystal | cell | nearest training cell | valid structure | valid composition |\n|" + "---|" * 6
        )
        rows = []
        for number, name in enumerate(CRYSTAL_SYSTEMS):
            both = (free[name], asked[name])
            pair = [(*entry.shares(number, tolerance), entry.valid, entry.neutral) for entry in both]
            rows.append(pair)
            print(f"| {name} | " + " | ".join(change(a, b) for a, b in zip(*pair, strict=True)) + " |")
        mean = np.mean(rows, axis=0)
        print("| mean | " + " | ".join(change(a, b) for a, b in zip(*mean, strict=True)) + " |", flush=True)


def sampled_classes(
    model: Model, samples: int, judge: Callable[[CrystalBatch], Judged], options: dict[str, object], title: str
) -> None:
    """Sample each crystal system."""
    template = model.template(samples)
    free = judge(model.draw(template, **options))
    asked = {
        name: judge(model.draw(template, conditions={"crystal_system": name}, **options)) for name in CRYSTAL_SYSTEMS
    }
    tables(title, asked, dict.fromkeys(CRYSTAL_SYSTEMS, free), list(free.found))


def reconstructed_classes(model: Model, crystals: CrystalBatch, judge: Callable[[CrystalBatch], Judged]) -> None:
    """Decode crystals as each crystal system that they are not."""
    own = condition_values(crystals, ["crystal_system"])["crystal_system"]
    asked, free = {}, {}
    for number, name in enumerate(CRYSTAL_SYSTEMS):
        others = crystals[own != number]
        asked[name] = judge(model.module.reconstruct_crystals(others, conditions={"crystal_system": name}))
        free[name] = judge(model.module.reconstruct_crystals(others))
    title = f"{len(crystals)} held-out crystals, decoded as a crystal system that is not their own"
    tables(title, asked, free, list(free["cubic"].found))


def sampled_number(model: Model, name: str, measure: Measure, samples: int, options: dict[str, object]) -> None:
    """Sample values of a number that can be measured, and print how asked and obtained go together."""
    index = model.names.index(name)
    mean, std = float(model.embedder.mean[index]), float(model.embedder.std[index])
    values = torch.linspace(mean - 1.5 * std, mean + 1.5 * std, samples)
    values = values.clamp_min(0.0) if name in NEVER_NEGATIVE else values
    values = values[torch.randperm(samples, generator=torch.Generator().manual_seed(model.seed))]
    template = model.template(samples)
    print(f"\n| {name} | correlation with what was asked | mean absolute error | mean |\n|---|---|---|---|")
    for title, conditions in (("asked", {name: values.tolist()}), ("not asked", {})):
        obtained = measure(model.draw(template, conditions=conditions, **options)).cpu()
        correlation = float(torch.corrcoef(torch.stack((values, obtained)))[0, 1])
        error = float((obtained - values).abs().mean())
        print(f"| {title} | {correlation:.2f} | {error:.2f} | {float(obtained.mean()):.2f} |", flush=True)


def sampled_elements(model: Model, name: str, held_out: CrystalBatch, options: dict[str, object]) -> None:
    """Ask for what held-out crystals are made of, and print how much of a sample's atoms and elements that is."""
    fractions = element_fractions(held_out)
    asked = [_formula(row) if name == "composition" else _system(row) for row in fractions]
    print(f"\n| {name} | only these elements | exactly these | common share of the atoms |\n|---|---|---|---|")
    for title, conditions in (("asked", {name: asked}), ("not asked", {})):
        found = element_fractions(model.draw(CrystalBatch.empty(held_out.num_atoms), conditions=conditions, **options))
        only = ((found > 0) & (fractions == 0)).sum(dim=1) == 0
        exactly = ((found > 0) == (fractions > 0)).all(dim=1)
        common = torch.minimum(found, fractions).sum(dim=1)
        numbers = (float(value.float().mean()) for value in (only, exactly, common))
        print(f"| {title} | " + " | ".join(f"{value:.1%}" for value in numbers) + " |", flush=True)


def _system(fractions: Tensor) -> str:
    from pymatgen.core import Element

    return "-".join(Element.from_Z(int(number)).symbol for number in fractions.nonzero()[:, 0])


def _formula(fractions: Tensor) -> str:
    from pymatgen.core import Composition, Element

    shares = {Element.from_Z(int(number)): float(fractions[number]) for number in fractions.nonzero()[:, 0]}
    return Composition(shares).get_integer_formula_and_factor(max_denominator=64)[0]


def load_data(data: str, canonical: bool, count: int, seed: int) -> tuple[CrystalBatch, CrystalBatch]:
    """Return the training crystals, and a seeded choice of validation crystals."""
    with hydra.initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = hydra.compose("train_vae", [f"data={data}", f"data.canonical={canonical}", "output_dir=unused"])
    datamodule = build("data", config.data)
    held_out = datamodule.dataset("val").crystals
    chosen = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(seed))[:count]
    return datamodule.dataset("train").crystals, held_out[chosen]


def main() -> None:
    """Sample and reconstruct, asking and not asking, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="mp20-small")
    parser.add_argument("--samples", type=int, default=200, help="for each crystal system, and of numbers")
    parser.add_argument("--guidance", type=float, nargs="+", help="scales, where there is a learned prior")
    parser.add_argument("--tolerance", type=float, nargs="+", default=[0.1], help="of the symmetry search, Å")
    parser.add_argument("--data", help="whose held-out crystals are reconstructed, or give elements to ask for")
    parser.add_argument("--canonical", action="store_true", help="where the model was trained with data.canonical=true")
    parser.add_argument("--reconstruct", type=int, default=200, help="how many of them")
    parser.add_argument("--predictor", nargs="+", default=[], help="checkpoints of property heads: numbers to ask for")
    parser.add_argument("--only", nargs="+", help="conditions; default: all that the model knows and that can be told")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    held_out, cells = None, None
    if arguments.data is not None:
        train, held_out = load_data(arguments.data, arguments.canonical, arguments.reconstruct, arguments.seed)
        cells = Cells(train)
    judge = partial(Judged, tolerances=arguments.tolerance, cells=cells)
    model = Model(arguments.ckpt, arguments.seed, held_out)
    heads = [LatentPredictor.load_from_checkpoint(path) for path in arguments.predictor]
    numbers = NUMBERS | {head.target: head.predict for head in heads}
    names = [name for name in model.names if arguments.only is None or name in arguments.only]
    for scale in arguments.guidance or [None]:
        options: dict[str, object] = {} if scale is None else {"sampler": {"guidance_scale": scale}}
        title = f"{arguments.samples} samples of each" + ("" if scale is None else f", guidance scale {scale:g}")
        if "crystal_system" in names:
            sampled_classes(model, arguments.samples, judge, options, title)
        for name in names:
            if name in numbers:
                sampled_number(model, name, numbers[name], arguments.samples, options)
            elif name in COMPUTED and held_out is not None:
                sampled_elements(model, name, held_out, options)
    if held_out is not None and "crystal_system" in names and model.module.prior is None:
        reconstructed_classes(model, held_out, judge)


if __name__ == "__main__":
    main()

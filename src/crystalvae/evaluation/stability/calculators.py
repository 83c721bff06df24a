"""Calculators of published potentials by the names of their weights: never by a path, which could hold anything.

Weights lie inside the wheels of chgnet and sevenn; the other packages fetch theirs on first use, from GitHub or Azure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from crystalvae.errors import ConfigError

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

SEVENNET_MODELS = ("7net-0", "7net-l3i5")
MACE_MODELS = ("medium-mpa-0", "small", "medium", "large", "small-0b2", "medium-0b2", "large-0b2", "medium-0b3")
ORB_MODELS = ("orb-v3-conservative-inf-mpa", "orb-v3-conservative-20-mpa", "orb-v3-conservative-inf-omat")
MATTERSIM_MODELS = ("MatterSim-v1.0.0-1M", "MatterSim-v1.0.0-5M")


def sevennet(*, model: str = "7net-0", device: str = "cpu") -> Calculator:
    """Return SevenNet with weights that its wheel holds, on a torch device.

    7net-0 (Park et al. 2024, doi:10.1021/acs.jctc.4c00190) and the more accurate and slower 7net-l3i5 are trained on
    MPtrj. Their energies are those of VASP (PBE/PBE+U), without the corrections of the Materials Project.
    """
    _check(model, SEVENNET_MODELS)
    from sevenn.calculator import SevenNetCalculator  # pyright: ignore[reportMissingImports]  an extra

    return SevenNetCalculator(model=model, device=device)


def mace(*, model: str = "medium-mpa-0", device: str = "cpu") -> Calculator:
    """Return MACE-MP-0 or MACE-MPA-0 (Batatia et al. 2024, arXiv:2401.00096) in double precision."""
    _check(model, MACE_MODELS)
    from mace.calculators import mace_mp  # pyright: ignore[reportMissingImports]  not among the extras

    return mace_mp(model=model, device=device, default_dtype="float64")


def orb(*, model: str = "orb-v3-conservative-inf-mpa", device: str = "cpu") -> Calculator:
    """Return Orb v3 (Rhodes et al. 2025, arXiv:2504.06231), one of those whose forces are gradients of the energy."""
    _check(model, ORB_MODELS)
    from orb_models.forcefield import pretrained  # pyright: ignore[reportMissingImports]  not among the extras
    from orb_models.forcefield.calculator import ORBCalculator  # pyright: ignore[reportMissingImports]

    network = pretrained.ORB_PRETRAINED_MODELS[model](device=device, precision="float32-highest")
    return ORBCalculator(network, device=device)


def mattersim(*, model: str = "MatterSim-v1.0.0-1M", device: str = "cpu") -> Calculator:
    """Return MatterSim (Yang et al. 2024, arXiv:2405.04967)."""
    _check(model, MATTERSIM_MODELS)
    from mattersim.forcefield import MatterSimCalculator  # pyright: ignore[reportMissingImports]  not among the extras

    return MatterSimCalculator(load_path=f"{model}.pth", device=device)


def _check(model: str, known: Sequence[str]) -> None:
    if model not in known:
        raise ConfigError(f"potential.calculator.model={model!r}: expected one of {', '.join(known)}")

"""How metrics are named and written on the page."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

NAMES = {
    "vun": "Valid, unique and novel (V.U.N.)",
    "sun": "Stable, unique and novel (S.U.N.)",
    "msun": "Metastable, unique and novel (mS.U.N.)",
    "rmse": "RMSE",
    "length_mae": "Lattice lengths, mean error",
    "angle_mae": "Lattice angles, mean error",
    "coordinate_rms": "Coordinates, RMS error",
    "cov_recall": "COV-R",
    "cov_precision": "COV-P",
    "amsd_recall": "AMSD-R",
    "amsd_precision": "AMSD-P",
    "amcd_recall": "AMCD-R",
    "amcd_precision": "AMCD-P",
    "valid": "Valid: structure and composition",
    "structure_valid": "Valid structure",
    "composition_valid": "Valid composition",
    "physical_valid": "Physically valid",
    "valid_physical": "Valid, and physically",
    "unique_novel": "Unique and novel",
    "energy_above_hull": "Energy above the hull, mean",
    "relaxation_rmsd": "RMSD of relaxation",
    "seconds_per_1000": "Time for 1,000 crystals",
    "wasserstein_density": "Wasserstein distance, density",
    "wasserstein_num_elements": "Wasserstein distance, number of elements",
    "wasserstein_volume_per_atom": "Wasserstein distance, volume per atom",
    "wasserstein_energy": "Wasserstein distance, formation energy",
}
"""Names that do not follow from the metric's own."""

VARIANTS = {
    "_gated_prediction": "gated by the prediction's validity",
    "_gated": "gated by validity",
    "_strict": "strict tolerances",
    "_loose": "loose tolerances",
    "_relaxed": "judged after relaxation",
    "_capped": "capped",
    "_icsd24": "ICSD 2024 states",
    "_cdvae": "without own images",
    "_all": "all crystals",
}
"""What endings of metrics' names mean."""

HEADLINES: Mapping[str, tuple[str, ...]] = {
    "reconstruction": ("match_rate", "match_rate_gated", "rmse", "element_accuracy", "length_mae", "coordinate_rms"),
    "csp": ("match_rate@1", "match_rate", "match_rate_gated@1", "match_rate_gated", "rmse@1", "rmse", "length_mae"),
    "generation": ("structure_valid", "valid", "unique", "novel", "vun", "sun", "msun", "cov_recall", "cov_precision"),
}
"""What the top of the page shows, the first six that there are."""
MOST_HEADLINES = 6
UNITS = {"g/cm^3": "g/cm³", "Å^3": "Å³", "degrees": "°", "degree": "°"}
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
ARROWS = {"higher": "↑", "lower": "↓"}


def label(name: str) -> str:
    """Return a metric's name in words: `match_rate_gated@20` is "Match rate, gated, @20"."""
    base, at, k = name.partition("@")
    if base.startswith("substitution_"):
        return f"Substitution: {label(name.removeprefix('substitution_'))}"
    if base in NAMES:
        return NAMES[base] + (f", @{k}" if at else "")
    for ending, words in VARIANTS.items():
        stem = base.removesuffix(ending)
        if stem != base and stem:
            return f"{label(stem)}, {words}" + (f", @{k}" if at else "")
    words = re.sub(r"_+", " ", base).strip()
    words = re.sub(r" (\d+\.?\d*)$", r", \1 Å", words) if re.search(r"_\d+\.\d+$", base) else words
    for short, long in ((" js,", " divergence,"), ("p1", "P1")):
        words = words.replace(short, long)
    return words[:1].upper() + words[1:] + (f", @{k}" if at else "")


def write_number(value: object, unit: str = "", *, bare: bool = False) -> str:
    """Return a metric's value with its unit: shares as percentages, "–" where there is none; `bare` is without."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return str(value)
    if unit == "share":
        return f"{value * 100:.2f}" + ("" if bare else " %")
    return _plain(value) if bare else with_unit(_plain(value), UNITS.get(unit, unit))


def write_published(value: float | None, unit: str) -> str:
    """Return a published number as it was printed, to within trailing zeros; without its unit."""
    if value is None:
        return "–"
    return f"{value:.2f}" if unit == "%" else f"{value:,}"


def typeset(text: str) -> str:
    """Return a text with units of volume as they are printed."""
    return text.replace("Å^3", "Å³").replace("cm^3", "cm³")


def chemical_formula(formula: str) -> str:
    """Return a formula with subscripts: Nd(Al2Cu)4 is Nd(Al₂Cu)₄."""
    return re.sub(r"(?<=[A-Za-z)])\d+", lambda match: match[0].translate(SUBSCRIPTS), formula)


def space_group_symbol(symbol: str) -> str:
    """Return a Hermann–Mauguin symbol with subscripts: P6_3/mmc is P6₃/mmc."""
    return re.sub(r"_(\d)", lambda match: match[1].translate(SUBSCRIPTS), symbol)


def with_unit(text: str, unit: str) -> str:
    """Return a number with its unit behind it, degrees without a space."""
    return text + unit if unit == "°" else f"{text} {unit}" if unit else text


def _plain(value: float) -> str:
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1):
        return f"{int(value):,}"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.2e}"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 4)}f}"

"""The part of the evaluation that tells valid crystals from others: in structure, composition and physics."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.distances import shortest_distances
from crystalvae.evaluation.metric import CDVAE, DIFFCSP, HERE, Metric, Section
from crystalvae.evaluation.validity.composition import (
    INSTALL,
    MAX_COMBINATIONS,
    PUBLISHED_STATES,
    check_compositions,
    reduced_compositions,
    smact_installed,
    smact_settings,
)
from crystalvae.evaluation.validity.contacts import (
    MIN_CONTACT,
    contacts,
    physical_reasons,
    physical_settings,
    reference_ranges,
    within,
)
from crystalvae.evaluation.validity.structure import MIN_DISTANCE, MIN_VOLUME, describe

SMACT = "charge neutral with cations less electronegative than anions, by SMACT; single elements and alloys pass"


def _meanings(states: str, contact: float) -> dict[str, tuple[str, str]]:
    """Return definition and source of each metric, in the order in which they are shown."""
    return {
        "structure_valid": (
            f"distances of at least {MIN_DISTANCE} Å, own images included, and a volume of at least {MIN_VOLUME} Å^3",
            f"{CDVAE}; own images added here",
        ),
        "structure_valid_cdvae": ("as structure_valid, without an atom's own images, as the published code", CDVAE),
        "composition_valid": (f"{SMACT}; oxidation states: {states}", f"{CDVAE}, with SMACT's 2014 states"),
        "composition_valid_capped": (
            f"composition_valid, and at most {MAX_COMBINATIONS:,} combinations of oxidation states to try",
            f"{DIFFCSP}, its code",
        ),
        "composition_valid_icsd24": (f"{SMACT}; oxidation states: icsd24", "SMACT since 3.0; Chemeleon2, its code"),
        "valid": ("structure_valid and composition_valid", CDVAE),
        "contacts_valid": (
            f"structure_valid, and no two atoms closer than {contact:g} of the sum of their covalent radii",
            f"{HERE}; radii of Cordero et al. 2008, doi:10.1039/b801115j",
        ),
        "volume_in_range": ("structure_valid, and volume per atom within the reference's range", HERE),
        "density_in_range": ("structure_valid, and density within the reference's range", HERE),
        "physical_valid": ("contacts_valid, and (with a reference) volume_in_range and density_in_range", HERE),
        "valid_physical": ("valid and physical_valid", HERE),
    }


def validity_section(
    *,
    generated: CrystalBatch,
    reference: CrystalBatch | None = None,
    unreadable: int = 0,
    oxidation_states: str = PUBLISHED_STATES,
    min_contact: float = MIN_CONTACT,
    tails: float = 0.0,
) -> Section:
    """Return the shares of generated crystals that are valid in structure, in composition, physically, and in all.

    Volume per atom and density are compared with the range of `reference`, without its outermost `tails` on either
    side; without a reference only contacts decide about physical validity. `unreadable` crystals, which are not in
    `generated`, count as invalid in every share. Without SMACT what needs it is left out, and `settings` say so.

    Raises `ConfigError` for an unknown set of oxidation states, `tails` that are no share, or a reference without valid
    crystals.
    """
    facts = describe(generated)
    reference_facts = None if reference is None else describe(reference)
    ranges = None if reference_facts is None else reference_ranges(reference_facts, tails=tails)
    contact = contacts(generated)
    physical = physical_reasons(facts, contact, ranges, min_contact=min_contact)
    structure = facts.valid.to_numpy(dtype=bool)
    masks: dict[str, Bool[np.ndarray, "B"]] = {
        "structure_valid": structure,
        "structure_valid_cdvae": _without_own_images(generated, facts),
        "contacts_valid": structure & (contact >= min_contact),
        "physical_valid": np.array([not reason for reason in physical], dtype=bool),
    }
    if ranges is not None:
        masks["volume_in_range"] = structure & within(_volume_per_atom(facts), ranges.volume_per_atom)
        masks["density_in_range"] = structure & within(facts.density.to_numpy(dtype=float), ranges.density)
    settings: dict[str, object] = {
        "min_distance": MIN_DISTANCE,
        "min_volume": MIN_VOLUME,
        "range_tails": tails,
        "unreadable": unreadable,
    }
    settings |= physical_settings(ranges, min_contact=min_contact)
    columns: dict[str, list[object]] = {
        "formula": facts.formula.tolist(),
        "atoms": facts.atoms.tolist(),
        "volume": plain(facts.volume),
        "density": plain(facts.density),
        "shortest_distance": plain(facts.shortest_distance),
        "contact": plain(contact),
        "structure_valid": structure.tolist(),
        "structure_reason": facts.reason.tolist(),
        "physical_valid": masks["physical_valid"].tolist(),
        "physical_reason": list(physical),
    }
    if smact_installed():
        compositions = reduced_compositions(generated)
        checks = check_compositions(compositions, oxidation_states=oxidation_states)
        newer = check_compositions(compositions, oxidation_states="icsd24")
        masks["composition_valid"] = np.array([check.valid for check in checks], dtype=bool)
        few = np.array([check.combinations <= MAX_COMBINATIONS for check in checks], dtype=bool)
        masks["composition_valid_capped"] = masks["composition_valid"] & few
        masks["composition_valid_icsd24"] = np.array([check.valid for check in newer], dtype=bool)
        masks["valid"] = structure & masks["composition_valid"]
        masks["valid_physical"] = masks["valid"] & masks["physical_valid"]
        settings |= smact_settings(oxidation_states)
        columns |= {name: masks[name].tolist() for name in ("composition_valid", "valid")}
        columns["composition_reason"] = [check.reason for check in checks]
    else:
        settings["composition"] = f"left out: compositional validity {INSTALL}"
    return Section(
        name="validity",
        title="Validity",
        metrics={
            name: Metric.share(masks[name], len(generated) + unreadable, f"share of crystals: {definition}", source)
            for name, (definition, source) in _meanings(oxidation_states, min_contact).items()
            if name in masks
        },
        settings=settings,
        per_crystal=columns,
        distributions=_distributions(
            {"generated": (generated, facts)}
            if reference is None or reference_facts is None
            else {"generated": (generated, facts), "reference": (reference, reference_facts)}
        ),
    )


def plain(values: pd.Series | Float[np.ndarray, "B"]) -> list[object]:
    """Return numbers as JSON can hold them: rounded to seven digits, None for what is not finite."""
    return [float(f"{value:.7g}") if math.isfinite(value) else None for value in np.asarray(values, float).tolist()]


def _distributions(sets: Mapping[str, tuple[CrystalBatch, pd.DataFrame]]) -> dict[str, dict[str, list[object]]]:
    """Return density, volume per atom, numbers of elements and of atoms of each crystal, for each set."""
    result: dict[str, dict[str, list[object]]] = {}
    for name, (crystals, facts) in sets.items():
        elements = [len(composition) for composition in reduced_compositions(crystals)]
        for quantity, values in {
            "density": plain(facts.density),
            "volume_per_atom": plain(_volume_per_atom(facts)),
            "num_elements": elements,
            "num_atoms": facts.atoms.tolist(),
        }.items():
            result.setdefault(quantity, {})[name] = values
    return result


def _volume_per_atom(facts: pd.DataFrame) -> Float[np.ndarray, "B"]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return facts.volume.to_numpy(dtype=float) / facts.atoms.to_numpy(dtype=float)


def _without_own_images(crystals: CrystalBatch, facts: pd.DataFrame) -> Bool[np.ndarray, "B"]:
    """Return what is valid where an atom's own images do not count."""
    valid = facts.valid.to_numpy(dtype=bool).copy()
    near = np.flatnonzero([reason.startswith("shortest distance") for reason in facts.reason])
    if len(near):
        chosen = crystals.detach().to("cpu")[near]
        arrays = chosen.lattices.double().numpy(), chosen.frac_coords.double().numpy(), chosen.num_atoms.numpy()
        valid[near] = shortest_distances(*arrays, own_images=False) >= MIN_DISTANCE
    return valid

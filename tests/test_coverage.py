"""Coverage and Wasserstein distances: perfect copies, hand-made fingerprints, bad crystals, published constants."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError, DataError
from crystalvae.evaluation.distributions import coverage
from crystalvae.evaluation.distributions import section as distributions
from crystalvae.evaluation.distributions.coverage import (
    CUTOFFS,
    Cutoffs,
    fingerprints,
    nearest_distances,
    published_scaling,
)
from crystalvae.evaluation.distributions.section import coverage_section, wasserstein_section
from crystalvae.evaluation.distributions.wasserstein import wasserstein
from crystalvae.evaluation.parallel.runner import Runner
from tests.test_uniqueness import caesium_chloride, perovskite, primitive_rock_salt
from tests.test_validity import cubic
from tests.test_validity_section import rock_salt

HERE = Runner(n_jobs=1, progress=False)


@pytest.fixture
def _matminer() -> None:
    pytest.importorskip("matminer", reason="needs matminer")


@pytest.mark.usefixtures("_matminer")
def test_perfect_copies_are_covered_entirely():
    crystals = CrystalBatch.cat([primitive_rock_salt(), caesium_chloride()])
    section = coverage_section(generated=crystals, reference=crystals, runner=HERE)
    values = {name: metric.value for name, metric in section.metrics.items()}
    assert values == {
        "cov_recall": 1.0,
        "cov_precision": 1.0,
        "amsd_recall": 0.0,
        "amsd_precision": 0.0,
        "amcd_recall": 0.0,
        "amcd_precision": 0.0,
        "fingerprint_failed": 0,
    }


@pytest.mark.usefixtures("_matminer")
def test_fingerprints_are_those_of_the_textbook():
    found = fingerprints(CrystalBatch.cat([primitive_rock_salt(), caesium_chloride()]), HERE)
    from matminer.featurizers.site.fingerprint import CrystalNNFingerprint

    labels = CrystalNNFingerprint.from_preset("ops").feature_labels()
    assert found.structure[0, labels.index("wt CN_6")] == pytest.approx(1.0, abs=1e-3)
    assert found.structure[0, labels.index("octahedral CN_6")] == pytest.approx(1.0, abs=1e-3)
    assert found.structure[1, labels.index("body-centered cubic CN_8")] > 0.9
    means, deviations = published_scaling()
    magpie = found.composition[0] * deviations + means
    assert magpie[:5] == pytest.approx([11, 17, 6, 14, 3])  # smallest, largest, range, mean, deviation of Z
    assert found.composition[0] == pytest.approx(found.composition[1])
    assert found.failures == ["", ""]


@pytest.mark.usefixtures("_matminer")
def test_cells_of_one_crystal_have_one_fingerprint():
    found = fingerprints(CrystalBatch.cat([rock_salt(), primitive_rock_salt()]), HERE)
    assert found.structure[0] == pytest.approx(found.structure[1], abs=5e-3)


@pytest.mark.usefixtures("_matminer")
def test_bad_crystals_cover_nothing_and_are_counted():
    crystals = CrystalBatch.cat([caesium_chloride()] * 3 + [cubic(0.3, [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])])
    coords, numbers = crystals.frac_coords.clone(), crystals.atom_types.clone()
    coords[2] = math.nan
    numbers[4] = 0
    bad = crystals.replace(frac_coords=coords, atom_types=numbers)
    section = coverage_section(generated=bad, reference=caesium_chloride(), runner=HERE, unreadable=4)
    assert section.metrics["fingerprint_failed"].value == 3
    assert section.metrics["cov_recall"].value == 1.0
    assert section.metrics["cov_precision"].value == 1 / 8
    reasons = section.per_crystal["fingerprint_failure"]
    assert reasons[:3] == ["", "numbers that are not finite", "unknown element"]
    assert str(reasons[3]).startswith("volume of")
    assert section.per_crystal["structure_distance"][1:] == [None, None, None]
    json.dumps(dict(section.per_crystal), allow_nan=False)
    none = coverage_section(generated=bad[1:], reference=caesium_chloride(), runner=HERE)
    assert none.metrics["cov_recall"].value == 0.0
    assert none.metrics["amsd_recall"].value is None


def made_up(structure: list[float], composition: list[float]) -> coverage.Fingerprints:
    """Crystals whose fingerprints lie on a line."""
    return coverage.Fingerprints(
        structure=np.array([[value] + [0.0] * 60 for value in structure]),
        composition=np.array([[value] + [0.0] * 131 for value in composition]),
        failures=[""] * len(structure),
    )


@pytest.mark.usefixtures("_matminer")
def test_coverage_is_that_worked_out_by_hand(monkeypatch: pytest.MonkeyPatch):
    # Reference crystal 0 has the structure of generated 0 and the composition of generated 1: it is recalled, since the
    # two nearest need not be one crystal. Reference 2 is 0.5 from the nearest structure, 3 is 11 from a composition.
    ours = made_up([0.0, 5.0, 9.0], [100.0, 0.0, 50.0])
    theirs = made_up([0.1, 4.7, 5.5, 9.0], [10.0, 0.0, 0.0, 61.0])
    monkeypatch.setattr(
        distributions, "fingerprints", lambda crystals, *_, **__: ours if len(crystals) == 3 else theirs
    )
    four = CrystalBatch.cat([caesium_chloride()] * 4)
    section = coverage_section(generated=four[:3], reference=four, runner=HERE)
    values = {name: metric.value for name, metric in section.metrics.items()}
    assert values["cov_recall"] == 2 / 4  # 0 and 1
    # Generated 0: 0.1 and 39 away; 1: 0.3 and 0; 2: 0 and 11 away.
    assert values["cov_precision"] == 1 / 3
    assert values["amsd_recall"] == pytest.approx((0.1 + 0.3 + 0.5 + 0.0) / 4)
    assert values["amsd_precision"] == pytest.approx((0.1 + 0.3 + 0.0) / 3)
    assert values["amcd_recall"] == pytest.approx((10 + 0 + 0 + 11) / 4)
    assert values["amcd_precision"] == pytest.approx((39 + 0 + 11) / 3)
    wider = coverage_section(
        generated=four[:3], reference=four, runner=HERE, cutoffs=Cutoffs(structure=0.6, composition=12)
    )
    assert wider.metrics["cov_recall"].value == 1.0


def test_published_cutoffs():
    assert (CUTOFFS["mp_20"].structure, CUTOFFS["mp_20"].composition) == (0.4, 10.0)
    assert CUTOFFS["carbon_24"] == CUTOFFS["perov_5"] == Cutoffs(structure=0.2, composition=4.0)
    with pytest.raises(ConfigError, match="structure=0"):
        Cutoffs(structure=0.0, composition=1.0)


def test_the_published_scaling_fits_matminers_features():
    means, deviations = published_scaling()
    assert means.shape == deviations.shape == (132,)
    # Statistics come as minimum, maximum, range, …: the mean range is the mean maximum less the mean minimum.
    assert means[2::6] == pytest.approx(means[1::6] - means[0::6], rel=1e-6, abs=1e-6)
    assert (deviations > 0).all()


@pytest.mark.usefixtures("_matminer")
def test_the_published_scaling_is_in_matminers_order():
    from matminer.featurizers.composition.composite import ElementProperty

    labels = ElementProperty.from_preset("magpie", impute_nan=False).feature_labels()
    stored = json.loads(Path(coverage.__file__).with_name("magpie_scaling.json").read_text(encoding="utf-8"))
    assert labels == [f"MagpieData {which} {name}" for name in stored["mean"] for which in stored["statistics"]]
    assert list(stored["std"]) == list(stored["mean"])


def test_nearest_distances_equal_all_distances_and_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    first, second = rng.random((23, 5)), rng.random((11, 5))
    distances = np.linalg.norm(first[:, None] - second, axis=-1)
    monkeypatch.setattr(coverage, "ROWS_AT_ONCE", 4)
    forward, backward = nearest_distances(first, second)
    np.testing.assert_allclose(forward, distances.min(axis=1))
    np.testing.assert_allclose(backward, distances.min(axis=0))
    assert np.isinf(nearest_distances(first, second[:0])[0]).all()


def test_without_matminer_coverage_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distributions, "matminer_installed", lambda: False)
    section = coverage_section(generated=rock_salt(), reference=rock_salt(), runner=HERE)
    assert section.metrics == {}
    assert "pip install" in section.skipped


def test_wasserstein_distances_are_those_worked_out_by_hand():
    assert wasserstein(np.array([0.0, 1.0, math.nan]), np.array([1.0, 3.0])) == pytest.approx(1.5)
    assert wasserstein(np.array([math.nan]), np.array([1.0])) is None
    generated = CrystalBatch.cat([cubic(2.0, [29], [[0, 0, 0]]), perovskite(38), cubic(0.3, [29], [[0, 0, 0]])])
    reference = cubic(4.0, [29], [[0, 0, 0]])
    metrics = wasserstein_section(generated=generated, reference=reference, valid=np.array([True, True, False])).metrics
    assert metrics["wasserstein_num_elements"].value == pytest.approx((0 + 2) / 2)
    assert metrics["wasserstein_volume_per_atom"].value == pytest.approx((56 + 64 - 3.9**3 / 5) / 2, rel=1e-5)
    assert metrics["wasserstein_num_elements"].count == 2
    assert metrics["wasserstein_num_elements_all"].value == pytest.approx(2 / 3)
    assert metrics["wasserstein_num_elements_all"].count == 3


def test_the_choice_of_valid_crystals_is_seeded():
    generated = CrystalBatch.cat([cubic(2.0 + 0.1 * i, [29], [[0, 0, 0]]) for i in range(12)])
    keep = {"generated": generated, "reference": generated, "valid": np.ones(12, dtype=bool), "num_samples": 5}
    first, again, other = (wasserstein_section(**keep, seed=seed).metrics["wasserstein_density"] for seed in (0, 0, 1))
    assert first == again
    assert first.value != other.value
    assert first.count == 5
    assert wasserstein_section(**keep | {"num_samples": 12}).metrics["wasserstein_density"].value == 0.0


def test_impossible_choices_are_refused():
    with pytest.raises(ConfigError, match="num_samples=0"):
        wasserstein_section(generated=rock_salt(), reference=rock_salt(), num_samples=0)
    with pytest.raises(DataError, match="one value for each of 1 crystals"):
        wasserstein_section(generated=rock_salt(), reference=rock_salt(), valid=np.ones(3, dtype=bool))

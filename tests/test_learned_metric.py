"""Distances between elements that a library teaches, and structures by analogy that are ordered by them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crystalvae.data.analogy import AnalogyLibrary, ElementMetric, element_distances
from crystalvae.errors import ConfigError, DataError
from crystalvae.prior_module import learned_metric as module
from crystalvae.prior_module.learned_metric import learned_metric
from tests.test_analogy import caesium_chloride, rock_salt, run_sample, tables

__all__ = ["tables"]

LI, F, NA, CL, K, BR, RB, CS = 3, 9, 11, 17, 19, 35, 37, 55


def anions_decide(cache: Path | None = None) -> AnalogyLibrary:
    """Fluorides are like rock salt and chlorides and bromides like caesium chloride, whatever the cation."""
    crystals = {f"{cation}-{F}": rock_salt(cation, F, 4.6) for cation in (LI, NA)}
    for anion in (CL, BR):
        crystals |= {f"{cation}-{anion}": caesium_chloride(cation, anion, 3.9) for cation in (LI, NA, K, RB, CS)}
    return AnalogyLibrary(crystals=list(crystals.values()), ids=list(crystals), cache=cache)


def test_what_decides_about_the_gene_is_learned():
    library = anions_decide()
    near, _ = library.search([RB, F], count=2)
    assert near.space_group == 221  # rubidium chloride is nearer than sodium fluoride
    library.metric = learned_metric(library, epochs=60)
    first, second = library.search([RB, F], count=2)
    assert (first.space_group, second.space_group) == (225, 221)
    assert first.source == f"{NA}-{F}" or first.source == f"{LI}-{F}"
    assert first.similarity > 3 * second.similarity


def test_families_name_elements_and_genes_in_one_order():
    (elements, genes), *others = anions_decide().families()
    assert not others
    assert (elements[:, 1] == np.array([F] * 2 + [CL] * 5 + [BR] * 5)).all()  # the more electronegative one is last
    assert genes[0] == genes[1] != genes[2]
    assert len(set(genes[2:])) == 1


def test_distances_are_scaled_by_number_and_place_of_the_elements():
    scales = np.array([[1.0, 1.0], [3.0, 1.0], [2.0, 5.0]])
    metric = ElementMetric(element_distances(), scales)
    both = metric.rows(np.array([CL, NA]))  # sodium comes first by electronegativity
    np.testing.assert_allclose(both, element_distances()[[CL, NA]] * [[5.0], [2.0]])
    np.testing.assert_allclose(metric.rows(np.array([CL])), 3.0 * element_distances()[[CL]])


def test_what_was_learned_is_kept_with_the_genes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    first = learned_metric(anions_decide(tmp_path / "genes"), epochs=2)
    (kept,) = tmp_path.glob("*.safetensors")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(module.ElementSimilarity, "fit", refuse)
        again = learned_metric(anions_decide(tmp_path / "genes"), epochs=2)
    np.testing.assert_array_equal(first.apart, again.apart)
    kept.write_bytes(b"damaged")
    np.testing.assert_array_equal(learned_metric(anions_decide(tmp_path / "genes"), epochs=2).apart, first.apart)
    assert "learned anew" in caplog.text


def test_a_library_without_repeated_genes_teaches_nothing():
    library = AnalogyLibrary(crystals=[rock_salt(NA, CL, 5.64), caesium_chloride(CS, CL, 4.12)], ids=["a", "b"])
    with pytest.raises(DataError, match="nothing to learn"):
        learned_metric(library)


def test_sample_by_ranked_analogy(tables: Path):
    run_sample(tables, "method=ranked", "composition=KBr", "num_samples=5")
    found = pd.read_csv("out/samples.csv")
    assert found["formula"].tolist() == ["KBr"]
    assert found["space_group"].tolist() == [225]
    assert json.loads(Path("out/samples.json").read_text())["info"]["method"] == "ranked"
    assert list(Path("cache").rglob("genes-*.safetensors"))
    with pytest.raises(ConfigError, match="method=ranked: say for which composition"):
        run_sample(tables, "method=ranked", "output_dir=other")

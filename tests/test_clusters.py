"""Clusters of crystals in a latent space: the right groups, what is in them, and what cannot be asked."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from crystalvae.commands.checked_config import checked
from crystalvae.commands.cluster import cluster
from crystalvae.data.augmentation import rotate, translate
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import random_rotations
from crystalvae.errors import ConfigError
from crystalvae.evaluation.clusters import Clustering, cluster_crystals, find_prototypes
from crystalvae.evaluation.parallel.runner import Runner
from tests.samples import random_crystals, rock_salt_and_friends, tiny_module

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RUNNER = Runner(n_jobs=1, progress=False)
LABELS = ["AB_cF8_225", "A_cF8_227", "AB_hP4_186", "AB2_aP3_1"]
COPIES = 8


@pytest.fixture(scope="module")
def crystals() -> CrystalBatch:
    """Eight copies of each of four textbook crystals, somewhere in space."""
    structures = [structure for structure in rock_salt_and_friends() for _ in range(COPIES)]
    generator = torch.Generator().manual_seed(0)
    batch = CrystalBatch.from_structures(structures)
    turned = rotate(batch, random_rotations(len(batch), generator))
    return translate(turned, torch.rand(len(batch), 3, generator=generator))


def blobs(sizes: tuple[int, ...] = (COPIES,) * 4) -> torch.Tensor:
    """A cloud of points around (10, 0, …), (0, 10, …), … for each size, with one number that is always the same."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(len(sizes), 5).repeat_interleave(torch.tensor(sizes), dim=0)
    spread = torch.randn(len(centres), 5, generator=generator)
    spread[:, -1] = 0.0
    return 10 * centres + 0.1 * spread


def clustered(embeddings: torch.Tensor, crystals: CrystalBatch, k: int) -> Clustering:
    return cluster_crystals(embeddings, crystals, k=k, runner=RUNNER)


def test_prototypes_are_those_of_the_textbook_wherever_the_crystal_lies(crystals: CrystalBatch) -> None:
    assert find_prototypes(crystals, runner=RUNNER) == [label for label in LABELS for _ in range(COPIES)]


def test_clusters_that_are_the_prototypes(crystals: CrystalBatch) -> None:
    found = clustered(blobs(), crystals, 4)
    groups = [set(found.labels[i : i + COPIES].tolist()) for i in range(0, 32, COPIES)]
    assert all(len(group) == 1 for group in groups)
    assert len(set.union(*groups)) == 4
    assert found.prototype_information == pytest.approx(1.0)
    assert found.silhouette is not None
    assert found.silhouette > 0.9
    for entry in found.clusters:
        assert entry.size == COPIES
        rows = np.flatnonzero(found.labels == entry.number)
        assert entry.prototypes == {found.prototypes[rows[0]]: COPIES}
        assert entry.medoid == rows[found.distances[rows].argmin()]
    salt = found.clusters[int(found.labels[0])]
    assert salt.elements == {"Cl": 1.0, "Na": 1.0}
    assert salt.enrichment == {"Cl": 4.0, "Na": 4.0}


def test_what_a_mixed_cluster_holds(crystals: CrystalBatch) -> None:
    """Rock salt and three of eight wurtzites in one cluster, the others in another: the largest comes first."""
    rows = [*range(8), *range(16, 24)]
    embeddings = torch.tensor([[0.0]] * 11 + [[1.0]] * 5) + 1e-3 * torch.arange(16)[:, None]
    found = clustered(embeddings, crystals[rows], 2)
    first, second = found.clusters
    assert (first.size, second.size) == (11, 5)
    assert first.prototypes == {"AB_cF8_225": 8, "AB_hP4_186": 3}
    assert first.elements == pytest.approx({"Cl": 8 / 11, "Na": 8 / 11, "S": 3 / 11, "Zn": 3 / 11})
    assert first.enrichment["S"] == pytest.approx((3 / 11) / (8 / 16))
    assert list(first.elements) == ["Cl", "Na", "S", "Zn"]
    assert second.prototypes == {"AB_hP4_186": 5}
    assert found.prototype_information is not None
    assert 0.0 < found.prototype_information < 1.0


def test_distances_and_inertia_are_in_standard_deviations(crystals: CrystalBatch) -> None:
    embeddings = blobs() * torch.tensor([1.0, 1e3, 1e-3, 1.0, 5.0])
    found, plain = clustered(embeddings, crystals, 3), clustered(blobs(), crystals, 3)
    assert found.labels.tolist() == plain.labels.tolist()
    assert found.inertia == pytest.approx(float((found.distances**2).sum()), rel=1e-6)
    assert found.inertia == pytest.approx(plain.inertia, rel=1e-4)
    scaled = (blobs() - blobs().mean(0)) / blobs().std(0, correction=0)
    scaled[:, -1] = 0.0
    inertia = 0.0
    for label in range(3):
        rows = scaled[torch.from_numpy(plain.labels == label)]
        inertia += float((rows - rows.mean(0)).square().sum())
    assert plain.inertia == pytest.approx(inertia, rel=1e-4)


def test_clusters_that_say_nothing_of_prototypes(crystals: CrystalBatch) -> None:
    embeddings = torch.randn(32, 3, generator=torch.Generator().manual_seed(3))
    found = clustered(embeddings, crystals, 3)
    assert found.prototype_information is not None
    assert abs(found.prototype_information) < 0.2
    assert sum(entry.size for entry in found.clusters) == 32
    assert [c.size for c in found.clusters] == sorted((c.size for c in found.clusters), reverse=True)


def test_the_same_seed_gives_the_same_clusters(crystals: CrystalBatch) -> None:
    embeddings = torch.randn(32, 3, generator=torch.Generator().manual_seed(3))
    first, again = (clustered(embeddings, crystals, 5) for _ in range(2))
    assert first.labels.tolist() == again.labels.tolist()
    assert first.summary() == again.summary()


def test_one_cluster_and_as_many_as_crystals(crystals: CrystalBatch) -> None:
    one = clustered(blobs(), crystals, 1)
    assert one.clusters[0].size == 32
    assert one.silhouette is None
    assert one.prototype_information is None
    assert set(one.clusters[0].enrichment.values()) == {1.0}
    each = clustered(blobs(), crystals, 32)
    assert [entry.size for entry in each.clusters] == [1] * 32
    assert each.inertia == pytest.approx(0.0, abs=1e-9)


def test_crystals_without_a_prototype_are_counted_as_such() -> None:
    crystals = random_crystals((2, 2, 2))
    broken = crystals.replace(lattices=crystals.lattices * torch.tensor([1.0, 0.0, 1.0])[:, None, None])
    found = clustered(torch.tensor([[0.0], [0.1], [9.0]]), broken, 2)
    assert found.prototypes[1] == ""
    assert found.clusters[0].prototypes[""] == 1


@pytest.mark.parametrize("k", [0, -1, 33, 2.5, True])
@pytest.mark.usefixtures("without_type_checks")
def test_numbers_of_clusters_that_there_cannot_be(k: object, crystals: CrystalBatch) -> None:
    with pytest.raises(ConfigError, match=r"clusters.k: got .*expected 1 to 32"):
        clustered(blobs(), crystals, k)  # type: ignore[arg-type]


def test_embeddings_that_cannot_be_clustered(crystals: CrystalBatch) -> None:
    for embeddings, message in (
        (blobs()[:5], "5 embeddings of 32 crystals"),
        (blobs() * math.nan, "NaN or infinite"),
    ):
        with pytest.raises(ConfigError, match=message):
            clustered(embeddings, crystals, 2)
    same = torch.tensor(list(itertools.repeat([1.0, 2.0], 32)))
    with pytest.raises(ConfigError, match="expected 1 to 1, the number of different embeddings"):
        clustered(same, crystals, 2)
    with pytest.raises(ConfigError, match=r"clusters.tolerance: got 0"):
        find_prototypes(crystals, runner=RUNNER, tolerance=0.0)


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint, and a table of prototypes to take crystals from."""
    place = tmp_path_factory.mktemp("clusters")
    tiny_module().save_checkpoint(place / "model.ckpt")
    structures = rock_salt_and_friends()
    rows = [{"material_id": f"c{i}", "cif": structure.to(fmt="cif")} for i, structure in enumerate(structures * 3)]
    for split in ("train", "val", "test"):
        pd.DataFrame(rows).to_csv(place / f"{split}.csv", index=False)
    return place


def run(folder: Path, name: str, *overrides: str) -> str:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = hydra.compose(
            "cluster",
            [
                f"ckpt_path={folder / 'model.ckpt'}",
                "data=table",
                f"data.source.data_dir={folder}",
                f"data.source.cache_dir={folder / 'cache'}",
                f"output_dir={folder / name}",
                "device=cpu",
                "n_jobs=1",
                *overrides,
            ],
        )
    return cluster(checked("cluster", config))


def test_the_command_writes_each_crystal_and_each_cluster(folder: Path) -> None:
    message = run(folder, "out", "k=3")
    table = pd.read_csv(folder / "out" / "samples.csv", keep_default_na=False)
    assert sorted(table["source"]) == sorted(f"c{i}" for i in range(12))
    assert Counter(table["prototype"]) == dict.fromkeys(LABELS, 3)
    # Copies of a crystal have one embedding, and so one cluster.
    assert all(len(set(rows)) == 1 for _, rows in table.groupby("prototype")["cluster"])
    info = json.loads((folder / "out" / "samples.json").read_text())["info"]
    assert [entry["size"] for entry in info["clusters"]] == [6, 3, 3]
    assert info["prototype_information"] > 0.5
    assert "12 crystals in 3 clusters" in message
    assert "Na" in message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["k=0"], "k: got 0; expected a whole number, at least 1"),
        (["k=13"], r"clusters.k: got 13; expected 1 to \d+, the number of different embeddings"),
        (["split=all"], "split: got 'all'; expected one of 'train', 'val', 'test'"),
        (["tolerance=0", "k=2"], "clusters.tolerance: got 0"),
    ],
    ids=str,
)
def test_the_command_refuses_what_it_cannot_do(overrides: list[str], message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(folder, "refused", *overrides)
    assert not (folder / "refused").exists()

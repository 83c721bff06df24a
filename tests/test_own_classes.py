"""Conditions that are classes of one's own: labels in the data, in training, in checkpoints, and asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from samples import random_crystals, rock_salt_and_friends, tiny_config, tiny_module, tiny_prior
from test_commands import compose
from test_train_conditional import CONDITIONAL

from crystalvae.commands.sample import sample
from crystalvae.commands.train import train
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.dataset import MAX_WORDS
from crystalvae.data.readers import read_crystals
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module import VAEModule
from crystalvae.vae_module.conditions.values import asked_values, condition_values, known_classes

OWN: dict[str, Any] = {"label": 3, "phase": ["alpha", "beta"]}
CLASSES = known_classes(OWN, key="classes")


def labelled(labels: list[float]) -> CrystalBatch:
    return random_crystals((1, 2, 3, 4)[: len(labels)]).replace(properties={"label": torch.tensor(labels)})


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The four textbook crystals with the column `phase` (alpha, beta, none, alpha), as a table and as extxyz."""
    import ase.io
    from pymatgen.io.ase import AseAtomsAdaptor
    from pymatgen.io.cif import CifWriter

    folder = tmp_path_factory.mktemp("phases")
    structures, phase = rock_salt_and_friends(), ["alpha", "beta", None, "alpha"]
    rows = [{"material_id": str(i), "cif": str(CifWriter(entry))} for i, entry in enumerate(structures)]
    remarks = ["one", "two", "three", "four"]
    pd.DataFrame(rows).assign(phase=phase, pretty_formula=remarks).to_csv(folder / "table.csv")
    frames: list[Any] = [AseAtomsAdaptor.get_atoms(entry) for entry in structures]
    for atoms, name in zip(frames, phase, strict=True):
        atoms.info = {} if name is None else {"phase": name}
    ase.io.write(folder / "frames.extxyz", frames)
    return {name: folder / name for name in ("table.csv", "frames.extxyz")}


@pytest.mark.parametrize("name", ["table.csv", "frames.extxyz"])
def test_words_of_files_are_kept_label_by_label(phases: dict[str, Path], name: str):
    crystals = read_crystals(phases[name]).crystals
    assert set(crystals.properties) == {"phase=alpha", "phase=beta"}
    values = condition_values(crystals, ["phase"], classes=CLASSES)["phase"]
    assert values.nan_to_num(-1).tolist() == [0, 1, -1, 0]
    with pytest.raises(ConfigError, match=r"conditions\.phase: the data have beta; expected alpha, gamma"):
        condition_values(crystals, ["phase"], classes=known_classes({"phase": ["alpha", "gamma"]}, key="classes"))
    with pytest.raises(ConfigError, match=r"the data have no 'label'; expected some of .*phase"):
        condition_values(crystals, ["label"], classes=CLASSES)


def test_words_that_are_no_labels_are_left(tmp_path: Path, phases: dict[str, Path]):
    table = pd.read_csv(phases["table.csv"]).drop(columns=["phase", "pretty_formula"])
    many = pd.concat([table] * 20, ignore_index=True).drop(columns="material_id")
    many.assign(remark=[f"remark {min(i, MAX_WORDS)}" for i in range(80)]).to_csv(tmp_path / "many.csv")
    assert not read_crystals(tmp_path / "many.csv").crystals.properties
    many.assign(remark=[f"remark {i % MAX_WORDS}" for i in range(80)]).to_csv(tmp_path / "many.csv")
    assert len(read_crystals(tmp_path / "many.csv").crystals.properties) == MAX_WORDS


def test_numbers_are_labels_and_others_are_refused():
    values = condition_values(labelled([0.0, 2.0, torch.nan]), ["label"], classes=CLASSES)
    assert values["label"].nan_to_num(-1).tolist() == [0, 2, -1]
    for wrong in (3.0, -1.0, 0.5):
        with pytest.raises(ConfigError, match=rf"conditions\.label: the data have {wrong:g}; expected 0 to 2"):
            condition_values(labelled([1.0, wrong]), ["label"], classes=CLASSES)
    assert condition_values(random_crystals(), ["label"], strict=False, classes=CLASSES)["label"].isnan().all()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (2, [2, 2, 2, 2]),
        ("1", [1, 1, 1, 1]),
        ([0, None, 2, 1], [0, -1, 2, 1]),
        (torch.tensor([0, 1, 2, 0]), [0, 1, 2, 0]),
        (np.array([0.0, np.nan, 2.0, 1.0]), [0, -1, 2, 1]),
        (torch.tensor([0, 0, 1]), [2, 2, 2, 2]),
        ([0, 1, 0], [1, 1, 1, 1]),
        (torch.eye(3)[[2, 0, 1, 1]], [2, 0, 1, 1]),
        (torch.nn.functional.one_hot(torch.tensor([2, 0, 1, 1])), [2, 0, 1, 1]),
        (torch.tensor(1), [1, 1, 1, 1]),
    ],
)
def test_labels_are_asked_for_in_every_form(asked: Any, expected: list[int]):
    values = asked_values({"label": asked}, ["label"], 4, classes=CLASSES)
    assert values["label"].nan_to_num(-1).tolist() == expected


def test_named_labels_are_asked_for_by_name_or_position():
    for asked in (["beta", "alpha"], [1, "alpha"], torch.tensor([[0, 1], [1, 0]])):
        assert asked_values({"phase": asked}, ["phase"], 2, classes=CLASSES)["phase"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"label": 3}, r"conditions\.label: got 3; expected one of 0, 1, 2"),
        ({"label": -1}, r"conditions\.label: got -1"),
        ({"label": 0.5}, r"conditions\.label: got 0\.5"),
        ({"label": True}, r"conditions\.label: got True"),
        ({"phase": "gamma"}, r"conditions\.phase: got 'gamma'; expected one of alpha, beta, or a position from 0"),
        ({"phase": [1, 1, 0]}, r"conditions\.phase: got 3 values for 4 crystals"),
        ({"label": torch.tensor([[1, 1, 0]] * 4)}, r"conditions\.label: got \[1, 1, 0\]; expected one of 0, 1, 2"),
    ],
)
def test_what_is_no_label_is_refused_by_naming_those_there_are(asked: dict[str, Any], match: str):
    with pytest.raises(ConfigError, match=match):
        asked_values(asked, list(OWN), 4, classes=CLASSES)


@pytest.mark.parametrize(
    ("classes", "match"),
    [
        ({"label": 1}, r"condition\.classes\.label: got 1; expected a number of labels"),
        ({"label": 10**9}, r"condition\.classes\.label: got 1000000000; expected"),
        ({"label": True}, r"condition\.classes\.label: got True"),
        ({"label": ["a", "a"]}, r"condition\.classes\.label: got \['a', 'a'\]"),
        ({"label": "ab"}, r"condition\.classes\.label: got 'ab'"),
        ({"label": [1, 2]}, r"condition\.classes\.label: got \[1, 2\]"),
        ({"density": 3}, r"condition\.classes\.density: that name is taken"),
        ({"a.b": 3}, r"condition\.classes: got 'a\.b'"),
        ([3], r"condition\.classes: got \[3\]; expected such as"),
    ],
)
def test_classes_that_cannot_be_are_named(classes: Any, match: str, without_type_checks: None):
    with pytest.raises(ConfigError, match=match):
        VAEModule(**tiny_config(condition={"classes": classes}))


def test_each_label_has_its_embedding_and_is_kept_in_checkpoints(tmp_path: Path):
    module = tiny_module(condition={"names": ["density"], "classes": OWN})
    assert module.condition.names == ["density", "label", "phase"]
    conditions: Any = module.vae.decoder_conditions
    embedders = conditions.embedder.embedders
    assert [embedders[name].num_embeddings for name in ("label", "phase")] == [3, 2]
    module.save_checkpoint(tmp_path / "model.ckpt")
    loaded = VAEModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert loaded.condition == module.condition
    template = CrystalBatch.empty([3, 3, 3])

    def lattices(**asked: Any) -> torch.Tensor:
        return loaded.sample_crystals(template, conditions=asked, generator=torch.Generator().manual_seed(0)).lattices

    each = lattices(label=[0, 1, None])
    for row, asked in enumerate((0, 1, None)):
        torch.testing.assert_close(each[row], lattices(label=asked)[row])
    assert not torch.allclose(lattices(phase="alpha"), lattices(phase="beta"))
    torch.testing.assert_close(lattices(phase="beta"), lattices(phase=1))


def test_training_embeds_the_labels_of_the_data():
    module = tiny_module(condition={"classes": {"label": 3}, "dropout": {"all": 0.0}}).train()
    crystals = labelled([0.0, 2.0, 2.0, torch.nan])
    module.vae.fit_conditions(crystals)
    module.losses(TrainingBatch.whole(crystals), training=True)["loss"].backward()
    conditions: Any = module.vae.decoder_conditions
    part = conditions.embedder
    assert (part.embedders["label"].weight.grad.abs().sum(dim=1) > 0).tolist() == [True, False, True]
    assert float(part.unknown.grad.abs().sum()) > 0
    with pytest.raises(ConfigError, match=r"conditions\.label: the data have 5; expected 0 to 2"):
        module.losses(labelled([5.0]), training=True, step=0)


def test_a_prior_has_classes_of_its_own(tmp_path: Path):
    prior = tiny_prior(atom_type_predict=True, conditions=["label"], classes={"label": 3})
    crystals = labelled([0.0, 2.0, 2.0, torch.nan])
    prior.fit_statistics(crystals)
    assert torch.isfinite(prior.losses(TrainingBatch.whole(crystals), training=True)["loss"])
    prior.save_checkpoint(tmp_path / "prior.ckpt")
    vae = VAEModule.load_from_checkpoint(tmp_path / "prior.ckpt", weights_only=True)

    def lattices(label: Any) -> torch.Tensor:
        noise = torch.Generator().manual_seed(0)
        return vae.sample_crystals(CrystalBatch.empty([2, 2]), conditions={"label": label}, generator=noise).lattices

    torch.testing.assert_close(lattices([2, 0])[0], lattices(2)[0])
    assert not torch.allclose(lattices(2), lattices(0))
    with pytest.raises(ConfigError, match=r"conditions\.label: got 3; expected one of 0, 1, 2"):
        lattices(3)


@pytest.mark.filterwarnings("ignore")  # what Lightning says of tiny runs
def test_a_column_of_names_is_trained_on_and_asked_for_on_the_command_line(
    tmp_path: Path, phases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CRYSTALVAE_CACHE_DIR", str(tmp_path / "cache"))
    table = pd.read_csv(phases["table.csv"])
    for split in ("train", "val", "test"):
        table.to_csv(tmp_path / f"{split}.csv", index=False)
    options = [option for option in CONDITIONAL if "condition" not in option]
    more = ["condition=classes", "vae_module.condition.classes={phase: [alpha, beta]}", "trainer.max_epochs=1"]
    with torch.random.fork_rng():
        run = [f"data.source.data_dir={tmp_path}", f"output_dir={tmp_path / 'run'}"]
        train(compose("train_vae", [*options, *more, *run]))
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    ask = [f"ckpt_path={best}", "num_samples=2", "num_atoms=3", "+conditions.phase=beta"]
    sample(compose("sample", [*ask, f"output_dir={tmp_path / 'beta'}"]))
    assert len(pd.read_csv(tmp_path / "beta" / "samples.csv")) == 2
    with pytest.raises(ConfigError, match=r"conditions\.phase: got 'gamma'; expected one of alpha, beta"):
        sample(compose("sample", [*ask[:-1], "+conditions.phase=gamma", f"output_dir={tmp_path / 'gamma'}"]))

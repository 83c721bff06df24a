"""`latent`: every operation from the command line, on crystals from files and from a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from test_commands import table  # noqa: F401  a fixture
from test_docs import compose

from crystalvae.commands.latent import OPERATIONS, latent
from crystalvae.data.sources import TableSource
from crystalvae.errors import ConfigError, OutputError
from tests.samples import tiny_module


@pytest.fixture(scope="module")
def vae_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vae") / "vae.ckpt"
    module = tiny_module(augmentation={"translate": True, "rotate": False})
    module.statistics = {"dataset": "table", "num_atoms": {2: 1}, "num_crystals": 1}
    module.save_checkpoint(path)
    return path


@pytest.fixture
def run(
    table: Path,  # noqa: F811
    vae_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """Run an operation in a folder of its own, and return its message and its table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRYSTALVAE_CACHE_DIR", str(tmp_path / "cache"))

    def start(operation: str, *options: str) -> tuple[str, pd.DataFrame]:
        given = ["data=table", f"data.source.data_dir={table}", f"ckpt_path={vae_checkpoint}", "device=cpu"]
        message = latent(compose("latent", f"operation={operation}", *given, *options))
        GlobalHydra.instance().clear()
        return message, pd.read_csv(tmp_path / "latent" / "samples.csv", dtype={"id": str})

    return start


def test_interpolate_two_crystals_of_a_data_set(run: Any, tmp_path: Path):
    message, rows = run("interpolate", "split=train", "ids=[LiF,LiBr]", "interpolate.steps=3", "interpolate.mode=slerp")
    assert message.startswith("from LiF to LiBr; 3 crystals in ")
    assert rows["fraction"].tolist() == [0.0, 0.5, 1.0]
    assert {"formula", "atoms", "volume", "valid"} <= set(rows)
    assert len(list((tmp_path / "latent").glob("*.cif"))) == 3
    assert (tmp_path / "latent" / "samples.extxyz").is_file()
    info = json.loads((tmp_path / "latent" / "samples.json").read_text())["info"]
    assert (info["operation"], info["mode"], info["steps"]) == ("interpolate", "slerp", 3)
    with pytest.raises(OutputError, match="already holds"):
        run("interpolate", "split=train", "ids=[LiF,LiBr]")


def test_operations_on_files(run: Any, tmp_path: Path, table: Path):  # noqa: F811
    crystals = TableSource(name="t", data_dir=str(table), cache_dir=str(tmp_path / "c")).load("train").crystals
    for name, structure in zip("ab", crystals[[0, 2]].to_structure(), strict=True):
        structure.to(filename=str(tmp_path / f"{name}.cif"))
    _, rows = run("interpolate", "input=[a.cif,b.cif]", "interpolate.steps=4", "output_dir=latent")
    assert len(rows) == 4
    walk = ("traverse.dim=1", "traverse.range=[-1,1]", "traverse.steps=3")
    _, rows = run("traverse", "input=a.cif", *walk, "overwrite=true")
    assert rows["offset"].tolist() == [-1.0, 0.0, 1.0]
    _, rows = run("reconstruct", "input=[a.cif,b.cif]", "formats=[poscar]", "overwrite=true")
    assert sorted(path.name for path in (tmp_path / "latent").glob("*.vasp")) == ["0000.vasp", "0001.vasp"]
    assert not list((tmp_path / "latent").glob("*.cif"))


def test_draws_from_the_posterior_follow_the_seed(run: Any):
    options = ("split=val", "num_crystals=3", "overwrite=true", "reconstruct.deterministic=false")
    first, again, other = (run("reconstruct", *options, f"seed={seed}")[1] for seed in (0, 0, 1))
    assert first["volume"].tolist() == again["volume"].tolist() != other["volume"].tolist()


def test_nearest_in_the_training_set(run: Any, tmp_path: Path):
    message, rows = run("nearest", "split=train", "ids=[NaF,KF]", "nearest.k=2")
    assert message.startswith("the 2 nearest of 32 crystals of table train to each; 4 crystals in ")
    assert rows["query"].tolist() == ["NaF", "NaF", "KF", "KF"]
    assert rows["source"].tolist()[::2] == ["NaF", "KF"]
    assert rows["distance"][0] < 1e-3 < rows["distance"][1]
    assert len(list((tmp_path / "cache" / "embeddings").iterdir())) == 1


def test_embeddings_and_maps(run: Any, tmp_path: Path):
    _, rows = run("embed", "split=val")
    assert [name for name in rows if name.startswith("embedding")] == [f"embedding_{i}" for i in range(8)]
    assert not list((tmp_path / "latent").glob("*.cif"))
    message, rows = run("map", "split=train", "map.color=band_gap", "overwrite=true")
    assert f"map in {Path('latent') / 'map.png'}" in message
    assert {"x", "y", "band_gap"} <= set(rows)
    assert (tmp_path / "latent" / "map.png").read_bytes().startswith(b"\x89PNG")


def test_a_map_replaces_no_picture_beside_its_folder(run: Any, tmp_path: Path):
    (tmp_path / "latent.png").write_text("a photograph")
    run("map", "split=train")
    assert (tmp_path / "latent.png").read_text() == "a photograph"
    (tmp_path / "latent" / "holiday.png").write_text("another")
    run("map", "split=train", "overwrite=true")  # its own map it may replace
    assert (tmp_path / "latent" / "holiday.png").read_text() == "another"
    other = tmp_path / "latent" / "map.png"
    manifest = json.loads((tmp_path / "latent" / "samples.json").read_text())
    assert "map.png" in manifest["files"]
    manifest["files"].remove("map.png")
    (tmp_path / "latent" / "samples.json").write_text(json.dumps(manifest))
    other.write_text("a map of somebody else's")
    with pytest.raises(OutputError, match=r"map\.png"):
        run("map", "split=train", "overwrite=true")
    assert other.read_text() == "a map of somebody else's"


@pytest.mark.parametrize(
    ("operation", "options", "message"),
    [
        ("dream", [], f"operation: got 'dream'; expected one of {', '.join(OPERATIONS)}"),
        ("interpolate", [], r"operation=interpolate: got 8 crystals; expected 2: say which with input= or ids="),
        ("interpolate", ["ids=[no-such]"], "ids: no crystal no-such; there are 8, such as"),
        ("traverse", ["num_crystals=1", "traverse.dim=9"], "dim: got 9; this model's latents are numbered 0 to 3"),
        ("traverse", ["num_crystals=1", "traverse.range=3"], r"traverse.range: got 3; expected two numbers"),
        ("map", ["map.color=gap"], "map.color: these crystals have no property 'gap'; they have band_gap"),
        (
            "nearest",
            ["num_crystals=1", "nearest.split=all"],
            "nearest.split: got 'all'; expected one of train",
        ),
        ("search", [], "search.target: say which value is wanted"),
        ("search", ["search.target=1.0"], "holds a 'vae' model; expected 'predictor'"),
        ("embed", ["formats=[pdb]"], "formats: got .*; expected a list of some of cif"),
        ("reconstruct", ["reconstruct.deterministic=3"], "reconstruct.deterministic: got 3; expected true or false"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_what_cannot_be_done_is_said(run: Any, operation: str, options: list[str], message: str):
    with pytest.raises(Exception, match=message) as caught:
        run(operation, *options)
    assert isinstance(caught.value, (ConfigError, ValueError))

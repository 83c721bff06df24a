"""What a config may name as `_target_`: one list for checkpoints, YAML and command lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from crystalvae.build import build, check_config, entries, is_allowed, trusting
from crystalvae.commands.inputs import data_config
from crystalvae.errors import ConfigError
from tests.samples import tiny_module

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def targets(value: Any) -> set[str]:
    return {entry for key, entry in entries(value) if key == "_target_"}


def test_all_that_our_configs_name_is_allowed() -> None:
    named = set().union(*(targets(yaml.safe_load(path.read_text())) for path in CONFIGS.rglob("*.yaml")))
    assert len(named) > 30
    assert {target for target in named if not is_allowed(target)} == set()


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "pandas.read_pickle", "joblib.load", "torch.load", "builtins.eval", "hydra.utils.instantiate",
        "crystalvae.files.write_text", "crystalvae.checkpoints.format.os.system", "crystalvae.files.Path",
        "crystalvae.build.import_module", "crystalvae.data.readers.read_crystals", "lightning.fabric.utilities.move",
        "lightning.pytorch.callbacks.model_checkpoint.shutil.rmtree", "ase.io.read", "ase.calculators.vasp.Vasp",
        "src.files.write_text", "crystalvae.commands.main.main", "torch.nn.Linear", 7, None, "", "x", "${a}",
    ],
)  # fmt: skip
def test_nothing_else_is_whoever_asks(target: Any, tmp_path: Path) -> None:
    """Each with arguments that would leave a trace."""
    trace = tmp_path / "trace"
    config = {"_target_": target, "_args_": [str(trace), "x"]}
    for where in (config, {"_target_": "crystalvae.data.datamodule.CrystalDataModule", "source": [{"a": config}]}):
        for form in (where, OmegaConf.create(where)):
            with pytest.raises((ConfigError, Exception), match=r"_target_|interpolation|Interpolation"):
                build("data", form)
    assert not trace.exists()


def test_what_is_trusted_may_be_anything_inside_and_nothing_after() -> None:
    config = {"_target_": "fractions.Fraction", "_args_": [1, 3]}
    with trusting(["fractions."]):
        assert str(build("x", config)) == "1/3"
    with pytest.raises(ConfigError, match=r"trusted_targets=\[fractions\.\]"):
        build("x", config)


def test_configs_within_themselves_or_shared_without_end_are_no_configs() -> None:
    cyclic: dict[str, Any] = {"_target_": "crystalvae.vae_module.vae_module.VAEModule"}
    cyclic["encoder"] = cyclic
    shared: list[Any] = ["x"]
    for _ in range(30):
        shared = [shared, shared]
    for config in (cyclic, {"a": shared}, {"a": ["x"] * 10**6}):
        with pytest.raises(ConfigError, match="nested more than"):
            check_config("x", config)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "mp_20.yaml", "", "x/../mp_20", "~/x", "../data/mp_20"])
def test_a_data_set_is_known_by_its_name_and_never_a_path(name: str) -> None:
    with pytest.raises(ConfigError, match=r"expected one of carbon_24, files, mp_20"):
        data_config(name, seed=0)


def test_the_data_set_that_a_checkpoint_names_is_looked_for_among_ours_alone(tmp_path: Path) -> None:
    """A YAML of that name lies in place, and would leave a trace."""
    from crystalvae.commands.inputs import Inputs

    trace = {"_target_": "crystalvae.files.write_text", "path": str(tmp_path / "trace"), "text": "x"}
    (tmp_path / "evil.yaml").write_text(yaml.safe_dump(trace))
    module = tiny_module()
    module.statistics = {"num_atoms": {2: 1}, "dataset": str(tmp_path / "evil")}
    module.save_checkpoint(tmp_path / "hostile.ckpt")
    config = OmegaConf.create({
        "ckpt_path": str(tmp_path / "hostile.ckpt"), "device": "cpu", "seed": 0, "data": None, "split": "val",
        "num_crystals": None,
    })  # fmt: skip
    with pytest.raises(ConfigError, match=r"the checkpoint was trained on .*evil'; say which data to use"):
        Inputs(config, "reconstruction").reference()
    assert not (tmp_path / "trace").exists()

"""What a command's config may hold: each key of the YAML files is described, and what does not fit is refused."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any, get_type_hints

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ReadonlyConfigError

from crystalvae.commands.checked_config import checked, with_values
from crystalvae.commands.config_files import config_dir
from crystalvae.commands.main import COMMANDS
from crystalvae.commands.schemas import SCHEMAS
from crystalvae.errors import ConfigError

NEEDED = {
    "train_prior": ["vae_ckpt_path=x"],
    "latent": ["operation=embed"],
    "publish": ["ckpt_path=x", "name=x"],
    "convert": ["ckpt_path=x", "output=x"],
}
"""What has to be said on the command line."""
SWITCHES = [
    ("sample", "overwrite"),
    ("sample", "relax"),
    ("latent", "overwrite"),
    ("latent", "reconstruct.deterministic"),
    ("cluster", "overwrite"),
    ("publish", "overwrite"),
    ("train_vae", "overwrite"),
    ("train_vae", "compile"),
    ("train_prior", "compile"),
    ("sample", "cuda_graphs"),
    ("evaluate", "cache"),
    ("evaluate", "report"),
    ("evaluate", "symmetry.write_cifs"),
    ("evaluate", "stability.relax_hull"),
]


def compose(name: str, *overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose(name, [*NEEDED.get(name, []), *overrides])


def without_described_parts(schema: type, config: Any) -> Any:
    """The config's own keys: what groups hold is for the parts to judge."""
    hints = get_type_hints(schema)
    return {
        key: without_described_parts(hints[key], value) if is_dataclass(hints[key]) else value
        for key, value in config.items()
        if "dict" not in str(hints[key])
    }


def test_every_command_has_a_schema_and_a_config():
    assert {command.config for command in COMMANDS.values()} == set(SCHEMAS)
    assert {path.stem for path in config_dir().glob("*.yaml")} == set(SCHEMAS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_defaults_fit_and_keep_their_values(name: str):
    """A schema has no second defaults, and changes no value on the way: 60 stays whole, 1.0 stays 1.0."""
    config = compose(name)
    made = checked(name, config)
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    got = OmegaConf.to_container(made, resolve=False)
    assert isinstance(got, dict)
    assert {key: got[key] for key in plain} == plain
    assert all(got[key] is None for key in set(got) - set(plain))
    own = without_described_parts(SCHEMAS[name], plain)
    assert repr(without_described_parts(SCHEMAS[name], {key: got[key] for key in plain})) == repr(own)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_checked_config_is_read_only_and_the_one_given_is_not_touched(name: str):
    config = compose(name)
    made = checked(name, config)
    key = next(key for key in ("output_dir", "output", "trusted_targets", *config) if key in config)
    with pytest.raises(ReadonlyConfigError):
        made[key] = "elsewhere"
    config[key] = "elsewhere"
    assert made[key] != "elsewhere"


@pytest.mark.parametrize(("name", "key"), SWITCHES)
@pytest.mark.parametrize("value", ["no", "off", "n", "y", "abc", "'false'", "'true'", "0", "1", "null", "[]"])
def test_switches_are_true_or_false_and_nothing_else(name: str, key: str, value: str):
    with pytest.raises(ConfigError, match=rf"^{key}: got .*; expected true or false$"):
        checked(name, compose(name, f"{key}={value}"))


@pytest.mark.parametrize(("name", "key"), SWITCHES)
def test_switches_are_read(name: str, key: str):
    for text, value in (("true", True), ("false", False), ("True", True), ("FALSE", False)):
        assert OmegaConf.select(checked(name, compose(name, f"{key}={text}")), key) is value


@pytest.mark.parametrize("name", ["sample", "evaluate"])
def test_a_switch_may_be_left_to_the_model(name: str):
    assert checked(name, compose(name)).sampler.projection is None
    assert checked(name, compose(name, "sampler.projection=true")).sampler.projection is True
    with pytest.raises(ConfigError, match=r"sampler.projection: got .*; expected true or false, or null$"):
        checked(name, compose(name, "sampler.projection=no"))


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("sample", "num_samples=many", "num_samples: got 'many'; expected a whole number, at least 1"),
        ("sample", "num_samples=1.5", "num_samples: got 1.5; expected a whole number, at least 1"),
        ("sample", "num_samples=true", "num_samples: got true; expected a whole number, at least 1"),
        ("sample", "num_samples=0", "num_samples: got 0; expected a whole number, at least 1"),
        ("sample", "seed=-1", "seed: got -1; expected a whole number, at least 0 and at most 4294967295"),
        ("train_vae", "seed=4294967296", "seed: got 4294967296; expected a whole number, at least 0"),
        ("sample", "seed=null", "seed: got null; expected a whole number"),
        ("sample", "temperature=nan", "temperature: got nan; expected a number, at least 0"),
        ("sample", "temperature=inf", "temperature: got inf; expected a number, at least 0"),
        ("sample", "device=null", "device: got null; expected a text"),
        ("sample", "output_dir=", "output_dir: got ''; expected the name of a file or folder"),
        ("sample", "output_dir=[a,b]", r"output_dir: got \['a', 'b'\]; expected the name of a file or folder"),
        ("sample", "n_jobs=-2", "n_jobs: got -2; expected a whole number, at least 1, or -1"),
        ("sample", "n_jobs=0", "n_jobs: got 0; expected a whole number, at least 1, or -1"),
        ("sample", "trusted_targets=null", r"trusted_targets: got null; expected a list, such as \[a,b\]"),
        ("sample", "sampler.steps=x", "sampler.steps: got 'x'; expected a whole number, or null"),
        ("sample", "sampler=3", "sampler: got 3; expected its keys one by one, such as sampler.solver=…, or null"),
        ("sample", "conditions=3", "conditions: got 3; expected names with values, such as conditions.NAME=VALUE"),
        ("evaluate", "timeout_s=abc", "timeout_s: got 'abc'; expected a number, or null"),
        ("evaluate", "symmetry.tolerances=5", r"symmetry.tolerances: got 5; expected a list, such as \[1,2\]"),
        ("evaluate", "symmetry.tolerances=[a]", r"symmetry.tolerances: got \['a'\]; expected a list"),
        ("evaluate", "ks=[0]", r"ks: got \[0\]; expected a list, such as \[1,2\], each a whole number, at least 1"),
        ("latent", "ids=5", r"ids: got 5; expected a list, such as \[a,b\], each a text, or null"),
        ("sample", "+num_sample=3", "num_sample: the command has no such key; did you mean num_samples"),
        ("sample", "+relaxation.fmx=1", "relaxation.fmx: the command has no such key; did you mean relaxation.fmax"),
        ("train_vae", "ckpt_path=${oc.env:NO_SUCH_VARIABLE}", "ckpt_path: .*NO_SUCH_VARIABLE"),
    ],
)
def test_what_does_not_fit_is_refused_by_key_value_and_expectation(name: str, override: str, message: str):
    with pytest.raises(ConfigError, match=f"^{message}") as caught:
        checked(name, compose(name, override))
    assert "\n" not in str(caught.value)


def test_keys_without_a_value_are_asked_for():
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = hydra.compose("publish")
    with pytest.raises(ConfigError, match="missing on the command line: ckpt_path=…, name=…"):
        checked("publish", config)


def test_what_a_group_holds_and_conditions_of_ones_own_are_let_through():
    made = checked("sample", compose("sample", "+conditions.hardness=5", "chemical_system=[Li,O]", "sampler=null"))
    assert made.conditions.hardness == 5
    assert made.sampler is None
    assert checked("train_vae", compose("train_vae", "+trainer.fast_dev_run=true")).trainer.fast_dev_run
    assert checked("evaluate", compose("evaluate")).data is None


def test_other_values_make_another_config():
    config = checked("train_vae", compose("train_vae", "output_dir=here"))
    other = with_values(config, {"output_dir": "there", "trainer.precision": "32-true"})
    assert (config.output_dir, config.trainer.precision) == ("here", "auto")
    assert (other.output_dir, other.trainer.precision) == ("there", "32-true")
    assert other.callbacks.checkpoint.dirpath == "there/checkpoints"
    with pytest.raises(ReadonlyConfigError):
        other.trainer.precision = "64-true"

"""Interatomic potentials as ASE calculators, named by plain config. Torch is only imported where one is built."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalvae.build import check_config
from crystalvae.errors import ConfigError, CrystalVAEError
from crystalvae.files import file_hash, package_version

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

CHGNET_MODELS = ("0.3.0", "0.2.0", "r2scan")
_PACKAGES = {
    "crystalvae.evaluation.stability.potentials.chgnet": ("chgnet", '"crystalvae[stability]"'),
    "crystalvae.evaluation.stability.calculators.sevennet": ("sevenn", '"crystalvae[sevennet]"'),
    "crystalvae.evaluation.stability.calculators.mace": ("mace", "mace-torch"),
    "crystalvae.evaluation.stability.calculators.orb": ("orb_models", "orb-models"),
    "crystalvae.evaluation.stability.calculators.mattersim": ("mattersim", "mattersim"),
}
"""For calculators built by this package: the package that a potential comes from, and what pip is to install."""


@dataclass(frozen=True)
class Potential:
    """A potential: its name for people, and the config that builds its ASE calculator, as JSON text.

    Being text it can be sent to worker processes; each builds its calculator once.
    """

    name: str
    config: str

    @classmethod
    def from_config(cls, config: Any) -> Potential:
        """Take `name` and `calculator`, a config with a `_target_` and plain arguments.

        Raises `ConfigError` for anything else.
        """
        if not isinstance(config, Mapping):
            raise ConfigError("potential: got none; expected potential=chgnet or another of configs/potential")
        calculator = config.get("calculator")
        if set(config) != {"name", "calculator"} or not isinstance(calculator, Mapping):
            raise ConfigError(f"potential: got keys {sorted(map(str, config))}; expected name and calculator")
        if not isinstance(calculator.get("_target_"), str):
            raise ConfigError("potential.calculator: expected a _target_ that says which ASE calculator to build")
        try:
            text = json.dumps(dict(calculator), sort_keys=True)
        except TypeError as error:
            raise ConfigError(f"potential.calculator: {error}; expected plain values") from error
        check_config("potential.calculator", json.loads(text))
        return cls(name=str(config["name"]), config=text)

    @property
    def target(self) -> str:
        """What is called to build the calculator."""
        return str(json.loads(self.config)["_target_"])

    @property
    def package(self) -> str:
        """Top-level package that the potential comes from."""
        return _PACKAGES[self.target][0] if self.target in _PACKAGES else self.target.partition(".")[0]

    def missing(self) -> str:
        """Return what to install where the package is not there, else an empty text."""
        if find_spec(self.package) is not None:
            return ""
        install = _PACKAGES[self.target][1] if self.target in _PACKAGES else self.package
        return f"the potential {self.name} needs the package {self.package}: pip install {install}"

    def identity(self) -> str:
        """Return all that decides about the numbers: config, versions, and the content of files that it names."""
        arguments = json.loads(self.config)
        files = {key: file_hash(Path(value)) for key, value in arguments.items() if _is_file(value)}
        return json.dumps({"config": arguments, "files": files, "versions": self.versions()}, sort_keys=True)

    def versions(self) -> dict[str, str]:
        """Return the versions of ASE and of the package that the potential comes from, by package."""
        return {name: _version(name) for name in ("ase", self.package)}

    def calculator(self) -> Calculator:
        """Return the calculator, built on the first call in a process.

        Raises `ConfigError` where it cannot be built.
        """
        return _build(self.config)


CHGNET = Potential(
    name="CHGNet 0.3.0",
    config='{"_target_": "crystalvae.evaluation.stability.potentials.chgnet", "device": "cpu", "model": "0.3.0"}',
)
"""CHGNet (Deng et al. 2023, doi:10.1038/s42256-023-00716-3), weights from its wheel; trained on MPtrj (PBE/PBE+U)."""


def chgnet(*, model: str = "0.3.0", device: str = "cpu") -> Calculator:
    """Return CHGNet with the weights `model` that its wheel holds, on a torch device.

    Its energies are those of the Materials Project with the corrections of 2020 (`r2scan`: r2SCAN energies).
    """
    if model not in CHGNET_MODELS:
        raise ConfigError(f"potential.calculator.model={model!r}: expected one of {', '.join(CHGNET_MODELS)}")
    from chgnet.model.dynamics import CHGNetCalculator
    from chgnet.model.model import CHGNet

    # Isolated atoms, for which it is no good, become an error: such a crystal counts as failed.
    network = CHGNet.load(model_name=model, use_device=device, verbose=False)
    return CHGNetCalculator(model=network, use_device=device, on_isolated_atoms="error")


@lru_cache(maxsize=2)
def _build(config: str) -> Calculator:
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        # Libraries greet on standard output, which belongs to the results.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return instantiate(json.loads(config), _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, CrystalVAEError):
            raise cause from None
        raise ConfigError(f"potential.calculator: {cause or error}") from error


def _is_file(value: object) -> bool:
    return isinstance(value, str) and len(value) < 4096 and Path(value).is_file()


@lru_cache(maxsize=16)
def _version(package: str) -> str:
    if (found := package_version(package)) is not None:
        return found
    names = sorted(set(packages_distributions().get(package, [])))  # the distribution has another name; this is slow
    return "+".join(f"{name} {version(name)}" for name in names) or "unknown"

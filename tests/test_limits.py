"""Small checkpoints that ask for much: refused at once, before anything of them is copied or built."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crystalvae.errors import CheckpointError, ConfigError
from crystalvae.vae_module import VAEModule
from tests.samples import random_crystals, tiny_module, tiny_prior


def config(content: dict[str, Any]) -> dict[str, Any]:
    return content["crystalvae"]["config"]


def nested(levels: int, *, shared: bool) -> Any:
    value: Any = [1]
    for _ in range(levels):
        value = [value, value] if shared else [value]
    return value


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["inner"] = value
    return value


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    **{f"{n} layers": lambda c, n=n: config(c)["vae"]["encoder"].update(num_layers=n) for n in (10**5, 10**9, 2**62)},
    "layers of the prior": lambda c: config(c)["prior"].update(num_layers=10**7),
    "layers of its composition model": lambda c: config(c)["prior"]["composition"].update(num_layers=10**7),
    "a billion steps": lambda c: config(c)["prior"]["sampler"].update(steps=10**9),
    "a wide model": lambda c: config(c)["vae"]["decoder"].update(d_model=2**40),
    "a wide latent": lambda c: config(c)["vae"].update(latent_dim=10**9),
    "many elements": lambda c: config(c)["vae"]["encoder"].update(max_num_elements=10**9),
    "shared lists": lambda c: config(c)["vae"].update(noise=nested(60, shared=True)),
    "shared lists beside the config": lambda c: c.update(loops=nested(60, shared=True)),
    "deep lists": lambda c: config(c)["vae"].update(noise=nested(200, shared=False)),
    "a config in itself": lambda c: config(c)["vae"].update(encoder=cyclic()),
    "statistics in themselves": lambda c: c["crystalvae"].update(statistics=cyclic()),
    "a missing value": lambda c: config(c)["vae"]["encoder"].update(d_model="???"),
    "one number shown often": lambda c: c["state_dict"].update(
        {next(iter(c["state_dict"])): torch.zeros(1).expand(2**20, 2**20)}
    ),
    "a tensor shown often": lambda c: c.update(more=[torch.zeros(10**6)] * 10**4),
    "sparse weights": lambda c: c["state_dict"].update({next(iter(c["state_dict"])): torch.eye(3).to_sparse()}),
    "a billion atoms": lambda c: c["crystalvae"]["statistics"].update(num_atoms={10**9: 1}),
    "no atoms": lambda c: c["crystalvae"]["statistics"].update(num_atoms={0: 1}),
    "atoms of text": lambda c: c["crystalvae"]["statistics"].update(num_atoms={"x": 1}),
    "no crystals": lambda c: c["crystalvae"]["statistics"].update(num_atoms={2: 0}),
    "atoms that are a list": lambda c: c["crystalvae"]["statistics"].update(num_atoms=[2, 3]),
    "a data set that is a list": lambda c: c["crystalvae"]["statistics"].update(dataset=["mp_20"]),
    "a mapping that hides get": lambda c: config(c)["vae"]["encoder"].update(get=1, keys=2, items=3),
    "numbers as keys": lambda c: c.update(state_dict=dict(enumerate(c["state_dict"].values()))),
    "numbers as keys of the config": lambda c: c["crystalvae"].update(config={**config(c), 7: 8}),
}


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prior") / "prior.ckpt"
    module = tiny_prior()
    module.vae_module.statistics = {"num_atoms": {2: 3, 4: 1}, "dataset": "mp_20"}
    module.save_checkpoint(path)
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_at_once(prior: Path, tmp_path: Path, name: str) -> None:
    content = torch.load(prior, weights_only=True)
    config(content)["prior"].setdefault("sampler", {})
    HOSTILE[name](content)
    torch.save(content, tmp_path / "hostile.ckpt")
    memory, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(CheckpointError) as caught:
        VAEModule.load_from_checkpoint(tmp_path / "hostile.ckpt")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert time.process_time() - started < 15
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2**20  # KiB


def test_the_same_without_damage_loads(prior: Path) -> None:
    assert VAEModule.load_from_checkpoint(prior).statistics["num_atoms"] == {2: 3, 4: 1}


@pytest.mark.parametrize("element", [100, 118, 10**6])
def test_an_element_that_the_model_does_not_know_is_named(element: int) -> None:
    crystals = random_crystals((2, 3))
    crystals = crystals.replace(atom_types=torch.full_like(crystals.atom_types, element))
    with pytest.raises(ConfigError, match=rf"atom_types: got elements {element} to {element}; this model knows .* 99"):
        tiny_module().vae.hidden(crystals)

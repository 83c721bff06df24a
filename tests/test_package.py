"""The package's name: what `import crystalvae` gives, what a checkout's `src` stands for, and old names in configs."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

import crystalvae
from crystalvae.build import build
from crystalvae.former_names import current_name
from crystalvae.vae_module.vae_module import VAEModule
from tests.samples import tiny_config


def run(code: str, *, cwd: Path, path: tuple[Path, ...] = ()) -> str:
    """Run Python code in a process of its own, with folders on its path; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_public_names_are_the_classes_themselves():
    from src.vae_module import VAEModule as FromCheckout
    from src.vae_module.vae_module import VAEModule as FromItsFile

    assert crystalvae.VAEModule is VAEModule
    assert FromCheckout is VAEModule
    assert FromItsFile is VAEModule
    assert set(crystalvae.__all__) <= set(dir(crystalvae))
    for name in crystalvae.__all__:
        assert getattr(crystalvae, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'VAEmodule'"):
        _ = crystalvae.VAEmodule


def test_import_takes_no_time_and_nothing_heavy(tmp_path: Path):
    code = (
        "import crystalvae, sys; print(sorted({'torch', 'pymatgen', 'ase', 'hydra', 'lightning'} & set(sys.modules)))"
    )
    assert run(code, cwd=tmp_path, path=(REPOSITORY / "src",)) == "[]"


def test_src_is_the_package_in_a_checkout():
    import src.data.batch as aliased

    import crystalvae.data.batch as own

    assert aliased is own
    assert own.__spec__ is not None
    assert own.__spec__.name == "crystalvae.data.batch"  # the alias leaves no trace on the module
    assert sys.modules["src.data.batch"] is own
    with pytest.raises(ModuleNotFoundError, match=r"src\.vae_modul"):
        __import__("src.vae_modul")


def test_what_is_pickled_through_the_alias_is_found_without_it(tmp_path: Path):
    from src.vae_module.distribution import DiagonalGaussianDistribution

    content = pickle.dumps(DiagonalGaussianDistribution(torch.zeros(2, 4)))
    (tmp_path / "it.pkl").write_bytes(content)
    code = "import pickle; print(type(pickle.load(open('it.pkl', 'rb'))).__module__)"
    assert run(code, cwd=tmp_path, path=(REPOSITORY / "src",)) == "crystalvae.vae_module.distribution"


def test_old_names_in_a_config_build_todays_parts():
    config = tiny_config()
    for part in ("encoder", "decoder"):
        config[part]["_target_"] = config[part]["_target_"].replace("crystalvae.", "src.")
    module = build("vae_module", {"_target_": "src.vae_module.vae_module.VAEModule", "_recursive_": False, **config})
    assert type(module) is VAEModule
    assert current_name("src.vae_module.optimizers.MuonAdamW") == "crystalvae.vae_module.muon.MuonAdamW"
    assert current_name("src_of_mine.Encoder") == "src_of_mine.Encoder"


def test_a_users_own_src_is_left_alone(tmp_path: Path):
    """In a project with a folder `src` of its own, with the package installed and no checkout in sight."""
    (tmp_path / "src" / "vae_module").mkdir(parents=True)
    (tmp_path / "src" / "__init__.py").write_text("whose = 'the user'\n")
    (tmp_path / "src" / "vae_module" / "__init__.py").write_text("class VAEModule: pass\n")
    code = (
        "import src, src.vae_module, crystalvae; from crystalvae import VAEModule\n"
        "print(src.whose, VAEModule is src.vae_module.VAEModule)"
    )
    assert run(code, cwd=tmp_path, path=(tmp_path, REPOSITORY / "src")) == "the user False"


def test_a_script_of_a_checkout_runs_the_checkouts_package(tmp_path: Path):
    """Also where another version is installed; and the scripts are in nobody's way."""
    checkout, installed = tmp_path / "checkout", tmp_path / "site-packages"
    for folder in (checkout / "src", installed):
        folder.mkdir(parents=True)
    shutil.copy(REPOSITORY / "src" / "_script_path.py", checkout / "src")
    for home, folder in (("checkout", checkout / "src"), ("installed", installed)):
        (folder / "crystalvae").mkdir()
        (folder / "crystalvae" / "__init__.py").write_text(f"home = {home!r}\n")
        (folder / "crystalvae" / "part.py").write_text(f"home = {home!r}\n")
    (checkout / "src" / "evaluate.py").write_text("whose = 'a script'\n")
    (installed / "evaluate.py").write_text("whose = 'a library'\n")
    (checkout / "src" / "script.py").write_text(
        "import _script_path, crystalvae.part, evaluate\nprint(crystalvae.part.home, evaluate.whose)\n"
    )
    done = subprocess.run(
        [sys.executable, str(checkout / "src" / "script.py")],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "checkout a library"

"""For checkouts only: `src.X` is `crystalvae.X`, the very same module, as published research code imports it."""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import ModuleType

import src._script_path  # noqa: F401  # puts the package of this checkout on the path


class _Alias(MetaPathFinder, Loader):
    """Finds `crystalvae.X` where `src.X` is asked for."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:  # noqa: ARG002
        name = fullname.removeprefix("src.")
        if name == fullname or find_spec(f"crystalvae.{name}") is None:
            return None
        return spec_from_loader(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(f"crystalvae.{spec.name.removeprefix('src.')}")
        spec.loader_state = module.__spec__  # importing a module writes its spec into it
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None  # noqa: S101  set by the import system
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.insert(0, _Alias())  # before folders of this name that an earlier version may have left

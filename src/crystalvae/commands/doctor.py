"""What is installed, which devices there are, what the caches hold, and what is wrong with any of it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from omegaconf import DictConfig
from packaging.requirements import Requirement

from crystalvae.checkpoints import bundled
from crystalvae.commands.device import choose_device
from crystalvae.data.sources import SPLITS, cache_root
from crystalvae.errors import CheckpointError, ConfigError, OutputError
from crystalvae.files import package_version
from crystalvae.output_dir import check_writable

VARIABLES = (
    *(f"CRYSTALVAE_{name}" for name in ("CACHE_DIR", "CHROMIUM", "COMMAND", "MP20_URL")),
    *(f"CRYSTALVAE_{name}_DIR" for name in ("CARBON_24", "MP20", "MPTS_52", "PEROV_5")),
)
"""Environment variables that are read; others of such a name are misspelt."""
Finding = tuple[str, bool]
"""A line, and whether it says that something is wrong."""


def doctor(config: DictConfig) -> str:
    """Look at everything, and return it as text, what is wrong once more at the end."""
    parts: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": _versions,
        "extras": _extras,
        "devices": lambda: _devices(config.device),
        "bundled models": _models,
        "caches": _caches,
        "environment": _environment,
    }
    lines, wrong = [], []
    for title, look in parts.items():
        found = list(look())
        lines += [f"{title}:", *(f"{'! ' if bad else '  '}{text}" for text, bad in found)]
        wrong += [text for text, bad in found if bad]
    if not wrong:
        return "\n".join([*lines, "nothing is wrong"])
    return "\n".join([*lines, "", f"wrong ({len(wrong)}):", *(f"  {text}" for text in wrong)])


def requirements(extra: str = "") -> list[Requirement]:
    """Return what the package itself needs here, or one of its extras besides; nothing where it is not installed."""
    try:
        given = metadata("crystalvae").get_all("Requires-Dist") or []
    except PackageNotFoundError:
        return []
    found = [Requirement(text) for text in given]
    return [
        entry
        for entry in found
        if (entry.marker is None and not extra)
        or (entry.marker is not None and entry.marker.evaluate({"extra": extra}) and _is_extra(entry) == bool(extra))
    ]


def judged(requirement: Requirement) -> Finding:
    """Return name and version of what is installed, and whether it is not what is needed."""
    version = package_version(requirement.name)
    if version is None:
        return f"{requirement.name}: not installed; expected {requirement.specifier or 'any version'}", True
    fits = requirement.specifier.contains(version, prereleases=True)
    return f"{requirement.name} {version}" + ("" if fits else f"; expected {requirement.specifier}"), not fits


def _versions() -> Iterator[Finding]:
    import crystalvae

    yield f"crystalvae {crystalvae.__version__} at {Path(crystalvae.__file__).parent}", False
    yield f"python {sys.version.split()[0]} on {platform.platform()}, {sys.executable}", sys.version_info < (3, 11)
    if package_version("crystalvae") is None:
        yield "a checkout that is not installed: what it needs is not known here; pip install -e .", True
    yield from (judged(requirement) for requirement in requirements())


def _extras() -> Iterator[Finding]:
    try:
        names = metadata("crystalvae").get_all("Provides-Extra") or []
    except PackageNotFoundError:
        return
    for name in names:
        found = [(entry, package_version(entry.name)) for entry in requirements(name) if entry.name != "crystalvae"]
        missing = [entry.name for entry, version in found if version is None]
        wrong = [text for text, bad in (judged(entry) for entry, version in found if version is not None) if bad]
        if wrong:
            yield f"{name}: {'; '.join(wrong)}", True
        elif missing:
            yield f'{name}: lacks {", ".join(missing)}: pip install "crystalvae[{name}]"', False
        else:
            yield f"{name}: installed", False


def _devices(name: str) -> Iterator[Finding]:
    import torch

    yield f"processor: {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch", False
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB", False
    if torch.backends.mps.is_available():
        yield "mps: available", False
    try:
        device = choose_device(name)
        square = torch.eye(4, device=device) @ torch.full((4, 4), 2.0, device=device)
        right = bool((square.cpu() == 2.0).all())
        yield f"device={name} is {device}" + ("" if right else ", which multiplies wrongly"), not right
    except (ConfigError, RuntimeError) as error:
        yield " ".join(str(error).split()), True


def _models() -> Iterator[Finding]:
    if not bundled.models():
        yield f"none: no {bundled.MANIFEST} in {bundled.folder()}; install again", True
    for name in bundled.models():
        try:
            yield f"{name}: {bundled.find(name).stat().st_size / 2**20:.1f} MiB, as published", False
        except CheckpointError as error:
            yield str(error), True


def _caches() -> Iterator[Finding]:
    root = cache_root(None)
    try:
        check_writable(root)
    except OutputError as error:
        yield f"{root}: cannot be written to ({error}); set CRYSTALVAE_CACHE_DIR", True
        return
    if not root.is_dir():
        yield f"{root}: empty so far", False
        return
    for entry in sorted(root.iterdir()):
        files = [entry] if entry.is_file() else [path for path in entry.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        yield f"{entry}: {len(files)} files, {size / 2**20:.1f} MiB", False


def _environment() -> Iterator[Finding]:
    for name in sorted(key for key in os.environ if key.startswith("CRYSTALVAE_")):
        if name not in VARIABLES:
            yield f"{name}: nothing reads it; expected one of {', '.join(VARIABLES)}", True
            continue
        yield f"{name}={os.environ[name]}", False
    folder = os.environ.get("CRYSTALVAE_MP20_DIR")
    if folder is not None:
        lacking = [f"{split}.csv" for split in SPLITS if not any(Path(folder).glob(f"{split}.*"))]
        if lacking:
            yield f"CRYSTALVAE_MP20_DIR={folder}: lacks {', '.join(lacking)}", True


def _is_extra(requirement: Requirement) -> bool:
    return "extra ==" in str(requirement.marker)

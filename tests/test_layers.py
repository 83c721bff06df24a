"""Imports run one way: a module imports only from its own layer's folder and from layers below."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "crystalvae"
LAYERS = (
    ("errors", "former_names"),
    ("build", "checks", "files"),
    ("output_dir",),
    ("data",),
    ("checkpoints",),
    ("vae_module",),
    ("prior_module", "predictor_module", "sequence_module"),
    ("sampling",),
    ("evaluation",),
    ("reward_module",),
    ("commands",),
    ("",),  # the package itself, which hands out names of all others
)
"""Modules and folders of the package, lowest layer first; those of one layer know nothing of each other."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Modules of the package that a file imports anywhere, also inside functions and for annotations alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [entry.name for entry in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [
                f"{node.module}.{entry.name}" if node.module == "crystalvae" else str(node.module)
                for entry in node.names
            ]
        for name in names:
            if name.startswith("crystalvae."):
                yield node.lineno, name.removeprefix("crystalvae.")


def wrong_imports() -> list[str]:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = module_name(path).split(".")[0]
        for line, name in imports(path):
            other = name.split(".")[0]
            if other != own and LEVEL[other] >= LEVEL[own]:
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {name}")
    return wrong


def test_every_module_has_a_layer():
    assert {module_name(path).split(".")[0] for path in PACKAGE.rglob("*.py")} <= set(LEVEL)


def test_imports_run_one_way():
    assert wrong_imports() == []


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_files_of_one_folder_do_not_import_each_other_in_circles(path: Path):
    seen: set[str] = set()
    waiting = [name for _, name in imports(path)]
    while waiting:
        name = waiting.pop()
        assert name != module_name(path), f"{name} imports itself by way of others"
        if name in seen:
            continue
        seen.add(name)
        file = PACKAGE / f"{name.replace('.', '/')}.py"
        waiting += [other for _, other in imports(file)] if file.is_file() else []

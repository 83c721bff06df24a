"""Hand-made mutants: each changes what the package computes in one place, and must be noticed by the tests named.

    python tests/mutants.py            # all of them: a table of what killed each
    python tests/mutants.py kl wrap    # those with one of the words in their names

Exits with 1 where a mutant survives, breaks something else than a test, or where the code it changes is no longer there.
Works on temporary copies of the repository, one a worker; the unchanged code is tested first.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from rich.console import Console
from rich.progress import track
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[1]
PARTS = ("src", "tests", "configs", "pyproject.toml")
TIMEOUT = 180.0
"""Seconds after which a run counts as broken."""

LATTICE, AUGMENTATION, LOADER = "src/data/lattice.py", "src/data/augmentation.py", "src/data/loader.py"
BATCH, VAE, MODULE = "src/data/batch.py", "src/vae_module/vae.py", "src/vae_module/vae_module.py"
TRANSFORMER, DISTRIBUTION = "src/vae_module/transformer.py", "src/vae_module/distribution.py"
ENCODER, DECODER = "src/vae_module/encoders/transformer.py", "src/vae_module/decoders/transformer.py"
CHECKPOINT, PUBLISHED, BUILD = "src/vae_module/checkpoint.py", "src/vae_module/chemeleon2.py", "src/vae_module/build.py"


@dataclass(frozen=True)
class Mutant:
    """One change: in `file`, `original` (found exactly once) becomes `replacement`, and one of `tests` must fail."""

    name: str
    file: str
    original: str
    replacement: str
    tests: str


MUTANTS = (
    # ---- loss
    Mutant("KL dropped", MODULE, 'recon + self.loss_weights["kl"] * kl,', "recon,", "test_objective"),
    Mutant(
        "KL sign flipped",
        MODULE,
        'recon + self.loss_weights["kl"]',
        'recon - self.loss_weights["kl"]',
        "test_objective",
    ),
    Mutant(
        "KL formula sign flipped",
        DISTRIBUTION,
        "return 0.5 * (self.mean",
        "return -0.5 * (self.mean",
        "test_distribution",
    ),
    Mutant("KL without the mean", DISTRIBUTION, "self.mean.square() + self.var", "self.var", "test_distribution"),
    Mutant(
        "coordinates left out of the loss",
        VAE,
        "self._coord_error(decoded, target).sum()",
        "0.0 * self._coord_error(decoded, target).sum()",
        "test_objective",
    ),
    Mutant(
        "element loss ignores its weight",
        MODULE,
        "self.loss_weights[name] * value for name",
        '(1.0 if name == "atom_types" else self.loss_weights[name]) * value for name',
        "test_objective",
    ),
    Mutant(
        "elements off by one",
        VAE,
        "decoded.atom_logits, target.atom_types,",
        "decoded.atom_logits, target.atom_types - 1,",
        "test_objective",
    ),
    Mutant("decoded elements off by one", VAE, "argmax(dim=-1).clamp_min(1)", "argmax(dim=-1).add(1)", "test_model"),
    Mutant(
        "difference without rounding",
        LATTICE,
        "return difference - torch.round(difference)",
        "return difference",
        "test_lattice",
    ),
    Mutant(
        "loss not periodic",
        VAE,
        "return periodic_difference(decoded.frac_coords, target.frac_coords).square()",
        "return (decoded.frac_coords - target.frac_coords).square()",
        "test_objective",
    ),
    Mutant(
        "atom losses averaged over crystals",
        VAE,
        'losses["atom_types"] = cross_entropy / atoms',
        'losses["atom_types"] = cross_entropy / graphs',
        "test_objective",
    ),
    Mutant(
        "angles compared with lengths",
        VAE,
        "decoded.angles - target.angles_radians",
        "decoded.angles - target.lengths_scaled",
        "test_objective",
    ),
    Mutant(
        "noise held against itself",
        MODULE,
        "latents = posterior.reparameterize(batch.per_atom(noise))\n",
        "latents = posterior.reparameterize(batch.per_atom(noise))\n            target = self._corrupt(batch, target, generator)\n",
        "test_objective",
    ),
    # ---- latent
    Mutant(
        "log-variance clamp removed", DISTRIBUTION, "logvar.clamp(*LOG_VARIANCE_RANGE)", "logvar", "test_distribution"
    ),
    Mutant(
        "mean used instead of a sample",
        MODULE,
        "posterior.reparameterize(batch.per_atom(noise))",
        "posterior.mode()",
        "test_objective",
    ),
    Mutant(
        "variance used as deviation",
        DISTRIBUTION,
        "torch.exp(0.5 * self.logvar)",
        "torch.exp(self.logvar)",
        "test_distribution",
    ),
    Mutant(
        "sample used in validation",
        MODULE,
        "latents = posterior.mode()\n",
        "latents = posterior.sample()\n",
        "test_objective",
    ),
    Mutant(
        "mean and log-variance swapped", DISTRIBUTION, "self.mean, logvar =", "logvar, self.mean =", "test_distribution"
    ),
    # ---- crystals in a batch
    Mutant("attention mask ignored", TRANSFORMER, "attn_mask=plan.attend", "attn_mask=None", "test_model"),
    Mutant(
        "crystals pooled together",
        TRANSFORMER,
        "    return total / crystals.num_atoms[:, None].to(tokens.dtype)",
        "    return tokens.mean(dim=0).expand_as(total)",
        "test_model",
    ),
    Mutant(
        "sum over atoms instead of mean",
        TRANSFORMER,
        "    return total / crystals.num_atoms[:, None].to(tokens.dtype)",
        "    return total",
        "test_model",
    ),
    Mutant(
        "lattice of the first crystal for all",
        ENCODER,
        "self._lattice_features(crystals))[crystals.batch]",
        "self._lattice_features(crystals))[crystals.batch * 0]",
        "test_model",
    ),
    Mutant(
        "positions counted through the batch",
        BATCH,
        "torch.arange(self.num_nodes, device=self.device) - self.ptr[self.batch]",
        "torch.arange(self.num_nodes, device=self.device)",
        "test_batch",
    ),
    Mutant(
        "positions left out",
        ENCODER,
        "tokens = tokens + sinusoidal_positions(crystals.token_idx, self.d_model)",
        "pass",
        "test_model",
    ),
    Mutant(
        "unwrapped coordinates seen",
        ENCODER,
        "(2 * torch.pi * frac_coords[:, :, None] * k)",
        "(6.0 * frac_coords[:, :, None] * k)",
        "test_model",
    ),
    # ---- geometry
    Mutant(
        "α and γ swapped",
        LATTICE,
        "cos_alpha, cos_beta, cos_gamma = torch.cos(angles).unbind(-1)\n    sin",
        "cos_gamma, cos_beta, cos_alpha = torch.cos(angles).unbind(-1)\n    sin",
        "test_lattice",
    ),
    Mutant(
        "α and γ swapped on the way back",
        LATTICE,
        "pairs = ((b, c), (a, c), (a, b))",
        "pairs = ((a, b), (a, c), (b, c))",
        "test_lattice",
    ),
    Mutant(
        "degrees for radians",
        BATCH,
        "return torch.rad2deg(self._parameters[1])",
        "return self._parameters[1]",
        "test_batch",
    ),
    Mutant(
        "radians for degrees",
        BATCH,
        "        return self._parameters[1]\n",
        "        return torch.rad2deg(self._parameters[1])\n",
        "test_batch",
    ),
    Mutant(
        "lengths not scaled by n^(1/3)",
        VAE,
        "lattices=lattices * crystals.num_atoms[:, None, None].to(lattices.dtype).pow(1 / 3)",
        "lattices=lattices",
        "test_model",
    ),
    Mutant(
        "target lengths not scaled by n^(1/3)",
        BATCH,
        ".pow(1 / 3).unsqueeze(-1)",
        ".pow(0).unsqueeze(-1)",
        "test_batch",
    ),
    Mutant(
        "wrap returns 1.0",
        LATTICE,
        "return torch.where(wrapped >= 1.0, torch.zeros_like(wrapped), wrapped)",
        "return wrapped",
        "test_lattice",
    ),
    Mutant(
        "skewed cells searched too narrowly",
        LATTICE,
        "return [max(1, math.ceil(radius * float(value) + 0.5)) for value in reciprocal_lengths]",
        "return [1 for _ in reciprocal_lengths]",
        "test_lattice",
    ),
    Mutant(
        "own images forgotten",
        LATTICE,
        "return min(own, float(distances.min()))",
        "return float(distances.min())",
        "test_lattice",
    ),
    Mutant(
        "bounds left out",
        VAE,
        "if self.bound_lattice:\n            lengths_scaled, angles",
        "if False:\n            lengths_scaled, angles",
        "test_model",
    ),
    Mutant(
        "bounds move ordinary cells",
        LATTICE,
        "return torch.where(keep, angles,",
        "return torch.where(keep & False, angles,",
        "test_lattice",
    ),
    Mutant("rotations not uniform", LATTICE, "torch.randn(count, 4,", "torch.rand(count, 4,", "test_lattice"),
    Mutant(
        "Cartesian coordinates transposed",
        BATCH,
        '"ni,nij->nj", self.frac_coords',
        '"nj,nij->ni", self.frac_coords',
        "test_batch",
    ),
    # ---- augmentation and loading
    Mutant(
        "one shift for a whole batch",
        MODULE,
        "torch.rand(batch.total_crystals, 3, generator=generator, device=device)",
        "torch.rand(1, 3, generator=generator, device=device).expand(batch.total_crystals, 3)",
        "test_objective",
    ),
    Mutant(
        "one rotation for a whole batch",
        MODULE,
        "batch.per_crystal(random_rotations(batch.total_crystals, generator))",
        "random_rotations(1, generator).expand(batch.crystals.num_graphs, 3, 3)",
        "test_objective",
    ),
    Mutant(
        "a shift for each atom",
        AUGMENTATION,
        "shifts[crystals.batch]))",
        "shifts[crystals.batch] * (1 + crystals.token_idx[:, None])))",
        "test_objective",
    ),
    Mutant(
        "displacements taken as fractional",
        AUGMENTATION,
        "frac_coords=wrap(crystals.frac_coords + fractional)",
        "frac_coords=wrap(crystals.frac_coords + displacements)",
        "test_objective",
    ),
    Mutant(
        "elements not masked",
        AUGMENTATION,
        "atom_types=crystals.atom_types.masked_fill(masked, 0)",
        "atom_types=crystals.atom_types",
        "test_objective",
    ),
    Mutant(
        "noise of atoms not cut per rank",
        AUGMENTATION,
        "draws[self.atom_offset : self.atom_offset + self",
        "draws[: self",
        "test_loader",
    ),
    Mutant(
        "noise of crystals not cut per rank",
        AUGMENTATION,
        "draws[self.crystal_offset : self.crystal_offset + self",
        "draws[: self",
        "test_loader",
    ),
    Mutant(
        "loss averaged over this rank alone",
        AUGMENTATION,
        "return self.total_atoms / self.world_size",
        "return float(self.crystals.num_nodes)",
        "test_loader",
    ),
    Mutant("same noise every epoch", AUGMENTATION, "(run * 1_000_003 + epoch)", "(run * 1_000_003)", "test_loader"),
    Mutant(
        "loader order ignores the epoch",
        LOADER,
        "(self.seed * 1_000_003 + self.epoch)",
        "(self.seed * 1_000_003)",
        "test_loader",
    ),
    Mutant(
        "resumed epoch starts over",
        LOADER,
        "start, self._start = self._start, 0",
        "start, self._start = 0, 0",
        "test_loader",
    ),
    Mutant(
        "ranks see the same crystals",
        LOADER,
        "first, last = bounds[self.rank], bounds[self.rank + 1]",
        "first, last = bounds[0], bounds[1]",
        "test_loader",
    ),
    # ---- decoding
    Mutant(
        "decoder writes into its input",
        MODULE,
        '        latents = encoded["x"]\n',
        '        latents = encoded["x"]\n        encoded["atom_types"] = encoded["x"].argmax(-1)\n',
        "test_model",
    ),
    Mutant(
        "latents scaled in place",
        MODULE,
        '        latents = encoded["x"]\n',
        '        latents = encoded["x"].mul_(0.5)\n',
        "test_model",
    ),
    Mutant(
        "CSP elements not given",
        DECODER,
        "tokens = tokens + self.atom_type_embedder(crystals.atom_types)",
        "pass",
        "test_model",
    ),
    Mutant(
        "CSP elements not returned",
        VAE,
        "atom_types = crystals.atom_types\n",
        "atom_types = crystals.atom_types.roll(1)\n",
        "test_model",
    ),
    Mutant(
        "temperature ignored",
        "src/vae_module/sampling.py",
        "latents = temperature * noise",
        "latents = noise",
        "test_model",
    ),
    Mutant(
        "generator ignored",
        "src/vae_module/sampling.py",
        "generator=generator, device=source",
        "device=source",
        "test_model",
    ),
    # ---- checkpoints
    Mutant(
        "allowlist of pickled names opened",
        PUBLISHED,
        '        raise CheckpointError(\n            f"{self.path}: refused',
        '        return super().find_class(module, name)\n        raise CheckpointError(\n            f"{self.path}: refused',
        "test_checkpoint",
    ),
    Mutant(
        "placeholders replaced by the real thing",
        PUBLISHED,
        'return type(name, (Inert,), {"name": f"{module}.{name}"})',
        "return super().find_class(module, name)",
        "test_checkpoint",
    ),
    Mutant(
        "any _target_ trusted",
        BUILD,
        'if key == "_target_" and not',
        'if key == "_target_" and False and not',
        "test_checkpoint",
    ),
    Mutant("imported functions trusted", BUILD, "and _is_part(value, allowed)", "", "test_checkpoint"),
    Mutant("any format version read", CHECKPOINT, "if found != FORMAT_VERSION:", "if False:", "test_checkpoint"),
    Mutant(
        "missing weights left at random",
        CHECKPOINT,
        "module.load_state_dict(state_dict, assign=assign)",
        "module.load_state_dict(state_dict, assign=assign, strict=False)",
        "test_checkpoint",
    ),
    Mutant(
        "published GELU taken for tanh",
        PUBLISHED,
        'if layer.state.get("activation_relu_or_gelu") == 2:',
        "if False:",
        "test_checkpoint",
    ),
    Mutant(
        "heads of the published format miscounted",
        PUBLISHED,
        'int(first.state["_modules"]["self_attn"].state["num_heads"])',
        "2",
        "test_checkpoint",
    ),
    # ---- training
    Mutant(
        "EMA not used",
        "src/commands/train.py",
        '_build_all("callbacks", config.callbacks)',
        '_build_all("callbacks", {k: v for k, v in config.callbacks.items() if k != "ema"})',
        "test_commands.py::test_checkpoint_is_plain_data_with_ema_weights",
    ),
)


def targets(tests: str) -> list[str]:
    """Return what pytest takes for the tests of a mutant."""
    return [f"tests/{tests}" if "::" in tests else f"tests/{tests}.py"]


def run(folder: Path, arguments: list[str]) -> tuple[int, str]:
    """Run pytest in a copy of the repository; return its exit status (124: out of time) and what it said."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-o", "addopts=-rfE"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)}
    try:
        done = subprocess.run(
            [*command, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, f"no end within {TIMEOUT:.0f} s"
    return done.returncode, done.stdout + done.stderr


@contextmanager
def mutated(path: Path, mutant: Mutant) -> Iterator[None]:
    """Apply a mutant to a file for as long as the context lasts."""
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.original, mutant.replacement), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def judge(mutant: Mutant, folder: Path) -> tuple[str, str]:
    """Return the fate of a mutant and what decided it."""
    path = folder / mutant.file
    found = path.read_text(encoding="utf-8").count(mutant.original) if path.is_file() else 0
    if found != 1:
        return "NOT FOUND", f"the code it changes is there {found} times: bring tests/mutants.py up to date"
    with mutated(path, mutant):
        status, output = run(folder, targets(mutant.tests))
    if status == 0:
        return "SURVIVED", mutant.tests
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", output, flags=re.MULTILINE)
    if status == 1 and failed:
        return "killed", failed.group(1).replace(".py::", ": ")
    return "BROKEN", f"pytest ended with {status}: {output.strip().splitlines()[-1] if output.strip() else 'no output'}"


def copy_repository(folder: Path) -> Path:
    """Copy what the tests need."""
    for name in PARTS:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def main(words: list[str]) -> int:
    """Judge all mutants, or those with one of the words in their names; return the exit status."""
    console = Console()
    chosen = [mutant for mutant in MUTANTS if not words or any(word.lower() in mutant.name.lower() for word in words)]
    if not chosen:
        console.print(f"no mutant is named like {' or '.join(words)}")
        return 1
    start = time.monotonic()
    workers = min(len(chosen), os.cpu_count() or 1, 8)
    with tempfile.TemporaryDirectory(prefix="mutants_") as name:
        folders: SimpleQueue[Path] = SimpleQueue()
        for number in range(workers):
            (Path(name) / str(number)).mkdir()
            folders.put(copy_repository(Path(name) / str(number)))

        def one(mutant: Mutant) -> tuple[str, str]:
            folder = folders.get()
            try:
                return judge(mutant, folder)
            finally:
                folders.put(folder)

        console.print("the unchanged code …", end=" ")
        status, output = run(
            Path(name) / "0", sorted({target for mutant in chosen for target in targets(mutant.tests)})
        )
        console.print("passes" if status == 0 else f"fails its tests:\n{output}", highlight=False, markup=False)
        if status != 0:
            return 1
        with ThreadPoolExecutor(workers) as pool:
            results = track(pool.map(one, chosen), total=len(chosen), description="mutants", console=console)
            fates = list(results)
    table = Table("mutant", "fate", "by", title=f"{len(chosen)} mutants, {time.monotonic() - start:.0f} s")
    for mutant, (fate, reason) in zip(chosen, fates, strict=True):
        table.add_row(mutant.name, fate if fate == "killed" else f"[bold red]{fate}[/]", reason)
    console.print(table)
    killed = sum(fate == "killed" for fate, _ in fates)
    console.print(f"{killed} of {len(chosen)} killed")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""How large everything is: for an hour on a GPU, and for a rehearsal on a CPU within seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

CARD = {
    "reconstruction": ("task=reconstruction", "split=val", "num_crystals=1000"),
    "generation": (
        "task=generation", "num_samples=10000", "sections=[validity,uniqueness,wasserstein,symmetry,speed]",
    ),
    "csp": ("task=csp", "num_crystals=1000", "num_candidates=20", "ks=[1,5,20]", "sections=[]"),
}  # fmt: skip
"""What the bundled models' card measures."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Widths, batches and counts of the box's steps; the defaults are those for a GPU."""

    steps: tuple[str, ...] = ("128x4", "512x8")
    """Sizes of the training step, width x layers."""
    batch_size: int = 256
    best_batch: tuple[int, ...] = (1024, 4096)
    prior: tuple[str, ...] = ("192x6", "512x8")
    """Sizes of the flow whose sampling is timed, width x layers."""
    sampled: tuple[int, ...] = (500, 5000)
    """Crystals sampled at once."""
    batches: tuple[int, ...] = (64, 256, 1024, 4096, 16384)
    widths: tuple[str, ...] = ("128x4", "256x6", "512x8", "1024x12")
    counts: tuple[int, ...] = (100_000, 500_000, 2_000_000)
    """Crystals of data sets."""
    devices: tuple[int, ...] = ()
    """Processes that share a step; none: 1, 2, 4, … as many as there are devices."""
    sweep: dict[str, tuple[float, ...]] = field(
        default_factory=lambda: {"d_model": (256, 512, 768), "batch_size": (512, 1024, 2048), "lr": (1e-3, 2e-3, 4e-3)}
    )
    """What the sweep tries, one key after the other; the rest stays at the best so far, to begin with the middle."""
    trial_seconds: float = 20.0
    """Of training for each trial of a sweep."""
    training: tuple[str, ...] = ()
    """Overrides of both trainings."""
    vae: tuple[str, ...] = ()
    flow: tuple[str, ...] = ()
    evaluations: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(CARD))
    """The commands of the bundled models' card, by name."""


REHEARSAL = Sizes(
    steps=("16x1",),
    batch_size=8,
    prior=("16x1",),
    sampled=(8,),
    batches=(4, 8),
    widths=("16x1", "32x1"),
    counts=(2000,),
    devices=(1, 2),
    sweep={"d_model": (16, 32), "batch_size": (8, 16), "lr": (1e-3, 2e-3)},
    trial_seconds=0.3,
    training=(
        "callbacks.progress_bar=null", "logger=csv", "trainer.enable_model_summary=false",
        "trainer.check_val_every_n_epoch=1", "trainer.accelerator=cpu",
    ),
    vae=tuple(f"vae_module.{part}.{key}" for part in ("encoder", "decoder") for key in ("nhead=2", "num_layers=1")),
    flow=(
        *(f"prior_module.prior.{key}" for key in ("nhead=2", "num_layers=1", "conditions=[crystal_system]")),
        "prior_module.prior.sampler.steps=4",
        "prior_module.prior.composition={d_model: 16, nhead: 2, num_layers: 1, dropout: 0.0, max_atoms: 64}",
        "callbacks.generation.num_samples=16",
        "callbacks.generation.n_jobs=1",
    ),
    evaluations={
        "generation": ("task=generation", "num_samples=16", "sections=[validity]", "n_jobs=1", "reference=null"),
    },
)  # fmt: skip

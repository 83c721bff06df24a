"""Draw the KL schedules of docs/objectives.md: `python docs/images/kl_schedules.py` writes kl_schedules.png here."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import matplotlib as mpl  # noqa: E402

import src  # noqa: E402, F401  # the package of this checkout

mpl.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

from crystalvae.vae_module.objectives.kl_schedules import (  # noqa: E402
    CyclicalSchedule,
    LinearSchedule,
    NoSchedule,
    SigmoidSchedule,
)
from crystalvae.vae_module.objectives.kl_terms import capacity  # noqa: E402

STEPS = range(4001)
PANELS = {
    "none": {"": NoSchedule(), "kl_start: 1000": NoSchedule(kl_start=1000)},
    "linear, warmup: 2000": {
        "": LinearSchedule(warmup=2000),
        "kl_start: 1000": LinearSchedule(warmup=2000, kl_start=1000),
    },
    "sigmoid, warmup: 2000": {
        "": SigmoidSchedule(warmup=2000),
        "kl_start: 1000": SigmoidSchedule(warmup=2000, kl_start=1000),
    },
    "cyclical, cyclical_period: 1000": {
        "": CyclicalSchedule(cyclical_period=1000),
        "ramp_share: 1": CyclicalSchedule(cyclical_period=1000, ramp_share=1.0),
    },
}


def draw(path: Path) -> None:
    """Write the four schedules, and the growing capacity, as one row of panels."""
    figure, axes = plt.subplots(1, 5, figsize=(14, 2.6), layout="constrained")
    for axis, (title, lines) in zip(axes, PANELS.items(), strict=False):
        for (label, schedule), style in zip(lines.items(), ("-", "--"), strict=True):
            axis.plot(STEPS, [schedule(step) for step in STEPS], style, label=label or None)
        axis.set(title=title, xlabel="step", ylim=(-0.05, 1.05))
        axis.legend(loc="lower right", frameon=True, fontsize=8)
    axes[0].set_ylabel("KL weight / β")
    axes[-1].plot(STEPS, [capacity(step, capacity_max=25.0, capacity_num_iter=3000) for step in STEPS])
    axes[-1].set(title="C of objective=capacity", xlabel="step", ylabel="nats", ylim=(-1.3, 26.3))
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".png"))

"""Does training in bfloat16 cost quality? The same run in float32 and with bf16-mixed, compared on validation crystals.

    python benchmarks/precision.py                     # mp_20/vae_dng_small's model, 600 steps, two seeds
    python benchmarks/precision.py --steps 3000 --seeds 0 vae_module.encoder.d_model=256 vae_module.decoder.d_model=256

Both runs see the same batches and random numbers, with the schedule over their steps and averaged weights; validation
is in float32 either way. Further arguments are Hydra overrides.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
import hydra  # noqa: E402
import lightning as L  # noqa: E402
import torch  # noqa: E402
from lightning.pytorch.callbacks import EMAWeightAveraging  # noqa: E402

import src  # noqa: E402, F401  # the package of this checkout
from crystalvae.build import build  # noqa: E402
from crystalvae.data.datamodule import CrystalDataModule  # noqa: E402
from crystalvae.vae_module.vae_module import VAEModule  # noqa: E402

METRICS = ("recon_loss", "atom_types", "frac_coords", "element_accuracy", "coord_error", "length_error", "angle_error")


def main() -> None:
    """Train for each seed in each precision, and print what validation says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="mp_20/vae_dng_small")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--json", help="a file for the results")
    options, overrides = parser.parse_known_args()
    rows = []
    for seed in options.seeds:
        for precision in ("32-true", "bf16-mixed"):
            rows.append(train(options.experiment, precision, options.steps, seed, overrides))
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def train(experiment: str, precision: str, steps: int, seed: int, overrides: list[str]) -> dict[str, object]:
    """Train one model, and return its losses and errors on the validation split."""
    with hydra.initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = hydra.compose(
            "train_vae", [f"experiment={experiment}", f"seed={seed}", "output_dir=unused", *overrides]
        )
    L.seed_everything(seed, verbose=False)
    module: VAEModule = build("vae_module", config.vae_module)
    datamodule: CrystalDataModule = build("data", config.data)
    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator=config.trainer.accelerator,
        devices=1,
        precision=precision,  # pyright: ignore[reportArgumentType]  one of Lightning's names
        max_steps=steps,
        limit_val_batches=0,
        gradient_clip_val=config.trainer.gradient_clip_val,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        callbacks=[EMAWeightAveraging(decay=0.99)],
        **options,
    )
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.fit(module, datamodule=datamodule)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    checker = L.Trainer(accelerator=config.trainer.accelerator, devices=1, enable_progress_bar=False, **options)
    (found,) = checker.validate(module, datamodule=datamodule, verbose=False)
    metrics = {name: round(found[f"val/{name}"], 5) for name in METRICS if f"val/{name}" in found}
    return {
        "precision": precision,
        "seed": seed,
        "steps": steps,
        "cpu_s": round(cpu, 1),
        "wall_s": round(wall, 1),
    } | metrics


if __name__ == "__main__":
    torch.set_float32_matmul_precision("highest")
    main()

"""How good: a short sweep, a VAE and its prior trained for as long as there is time, and the card's evaluations.

The commands are those that a user would give, and are kept in `commands.sh`; a training whose time is up is stopped in
order and goes on in the next job.
"""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import hydra
import torch
from omegaconf import DictConfig

from benchmarks.box.sizes import Sizes
from benchmarks.box.speed import SHARES, endless
from benchmarks.box.store import Budget, Row, Store, python, run_command
from benchmarks.box.works import ROOT
from crystalvae.build import build
from crystalvae.commands.precision import choose_precision
from crystalvae.commands.train_prior import prior_module
from crystalvae.data.datamodule import CrystalDataModule
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.vae_module.learning_rate import warmup_cosine_factor

NAME = "mp20-base"
TRAININGS = {"vae": ("train_vae", "mp_20/vae_csp_base"), "prior": ("train_prior", "mp_20/prior_base")}
KEYS = {
    "vae": {
        "d_model": ("vae_module.encoder.d_model", "vae_module.decoder.d_model"),
        "lr": ("vae_module.optimizer.lr",),
        "batch_size": ("data.batch_size",),
    },
    "prior": {
        "d_model": ("prior_module.prior.d_model",),
        "lr": ("prior_module.optimizer.lr",),
        "batch_size": ("data.batch_size",),
    },
}
"""Config keys of what the sweep tries."""
JUDGED_BY = {"vae": "recon_loss", "prior": "flow_loss"}
SHOWN = {
    "vae": ("val/recon_loss", "val/element_accuracy", "val/coord_error", "val/length_error", "val/angle_error"),
    "prior": ("val/flow_loss", "val/composition_nll", "val/vun", "val/vun_contacts"),
}
"""What is told of a training, at its end."""
VALIDATIONS = {"vae": 20, "prior": 8}
"""How often a training is validated, and its best checkpoint chosen."""


def run(store: Store, budget: Budget, sizes: Sizes, *, device: str, data: list[str], minutes: float) -> None:
    """Go on with the sweep, the trainings and the evaluations; `minutes` is what all jobs have for it together."""
    whole = 60 * minutes
    for part in TRAININGS:
        if part == "prior" and "vae trained" not in store.found:
            return
        sweep(part, store, budget, sizes, device=device, data=data)
        if not train(part, store, budget, sizes, data=data, seconds=whole * SHARES[part]):
            return
    evaluate(store, budget, sizes, data=data)


# ---- sweep -----------------------------------------------------------------------------------------------------------


def sweep(part: str, store: Store, budget: Budget, sizes: Sizes, *, device: str, data: list[str]) -> None:
    """Try widths, then batch sizes, then learning rates, each trial with the same number of seconds."""
    best = {key: values[len(values) // 2] for key, values in sizes.sweep.items()}
    for key, values in sizes.sweep.items():
        for value in values:
            choice = {**best, key: value}
            work = partial(trial, part, choice, store, sizes, device=device, data=data)
            store.measure(trial_name(part, choice), work, budget, seconds=1.5 * sizes.trial_seconds)
        tried = {value: store.found.get(trial_name(part, {**best, key: value})) for value in values}
        losses = {value: rows[0]["loss"] for value, rows in tried.items() if rows and math.isfinite(rows[0]["loss"])}
        if losses:
            best[key] = min(losses, key=lambda value: losses[value])


def trial_name(part: str, choice: dict[str, float]) -> str:
    """Return the name of a trial."""
    return f"sweep of the {part}: " + ", ".join(f"{key} {value:g}" for key, value in choice.items())


def best_trial(part: str, store: Store) -> Row | None:
    """Return the row of the trial with the lowest validation loss, if there is any."""
    trials = [rows[0] for name, rows in store.found.items() if name.startswith(f"sweep of the {part}:")]
    return min((row for row in trials if math.isfinite(row["loss"])), key=lambda row: row["loss"], default=None)


def overrides(part: str, choice: dict[str, float], store: Store, sizes: Sizes, data: Sequence[str]) -> list[str]:
    """Return the overrides of a training with these choices."""
    given = [f"experiment={TRAININGS[part][1]}", *data]
    given += [f"{name}={value:g}" for key, value in choice.items() for name in KEYS[part][key]]
    if part == "prior":
        given.append(f"vae_ckpt_path={store.folder / 'vae/checkpoints/best.ckpt'}")
    return [*given, *sizes.training, *(sizes.vae if part == "vae" else sizes.flow)]


def trial(
    part: str, choice: dict[str, float], store: Store, sizes: Sizes, *, device: str, data: Sequence[str]
) -> list[Row]:
    """Train for some seconds, with the learning rate's schedule over them, and return the validation loss."""
    given = overrides(part, choice, store, sizes, data)
    with hydra.initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = hydra.compose(TRAININGS[part][0], [*given, "output_dir=unused"])
    torch.manual_seed(0)
    datamodule: CrystalDataModule = build("data", config.data)
    module: Any = (build("vae_module", config.vae_module) if part == "vae" else prior_module(config)).to(device).train()
    train_set, validation = (datamodule.dataset(split).crystals for split in ("train", "val"))
    if part == "vae":
        module.vae.fit_conditions(train_set)
    else:
        module.fit_statistics(train_set)
    half = choose_precision("auto", module, "auto" if device.startswith("cuda") else "cpu") == "bf16-mixed"
    autocast = partial(torch.autocast, torch.device(device).type, dtype=torch.bfloat16, enabled=half)
    kind = "vae_module" if part == "vae" else "prior_module"
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = build("optimizer", config[kind].optimizer, params=parameters)
    batches = endless(train_set, min(int(choice["batch_size"]), len(train_set)), device)
    start, steps, crystals = time.monotonic(), 0, 0
    while (elapsed := time.monotonic() - start) < sizes.trial_seconds or steps < 2:
        progress = min(999, int(1000 * elapsed / sizes.trial_seconds))
        factor = warmup_cosine_factor(progress, total_steps=1000, warmup_steps=50, min_factor=0.01)
        for group in optimizer.param_groups:
            group["lr"] = factor * choice["lr"]
        batch = next(batches)
        with autocast():
            loss = losses_of(part, module, batch, training=True)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.trainer.gradient_clip_val)
        optimizer.step()
        steps, crystals = steps + 1, crystals + batch.crystals.num_graphs
    seconds = time.monotonic() - start
    row = {"what": f"sweep of the {part}", **choice, "steps": steps, "per_second": round(crystals / seconds, 1)}
    return [{**row, "loss": round(validation_loss(part, module.eval(), validation, device), 6), "choice": choice}]


def losses_of(part: str, module: Any, batch: TrainingBatch, *, training: bool) -> dict[str, Any]:
    """Return the losses of a batch; a VAE's schedules are at their start."""
    return module.losses(batch, training=training, **({"step": 0, "epoch": 0} if part == "vae" else {}))


@torch.no_grad()
def validation_loss(part: str, module: Any, crystals: Any, device: str, *, most: int = 4096) -> float:
    """Return the mean of what the training is judged by, over the first validation crystals."""
    total = 0.0
    chosen = crystals[: min(most, len(crystals))].to(device)
    for start in range(0, len(chosen), 1024):
        batch = TrainingBatch.whole(chosen[start : start + 1024])
        total += float(losses_of(part, module, batch, training=False)[JUDGED_BY[part]]) * len(batch.crystals)
    return total / len(chosen)


# ---- training --------------------------------------------------------------------------------------------------------


def train(part: str, store: Store, budget: Budget, sizes: Sizes, *, data: Sequence[str], seconds: float) -> bool:
    """Train with what the sweep chose, for as many epochs as fit into `seconds`; say whether it is finished."""
    done = f"{part} trained"
    if done in store.found:
        return True
    best = best_trial(part, store)
    if best is None:
        store.missing[done] = "no trial of the sweep has ended"
        store.write()
        return False
    folder = store.folder / part
    if f"{part} chosen" not in store.found:
        with hydra.initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            config = hydra.compose(
                TRAININGS[part][0], [*overrides(part, best["choice"], store, sizes, data), "output_dir=unused"]
            )
        epochs = max(1, int(0.75 * seconds * best["per_second"] / crystals_of(config)))
        store.found[f"{part} chosen"] = [{"what": f"{part} chosen", **best["choice"], "epochs": epochs}]
        store.write()
    epochs = store.found[f"{part} chosen"][0]["epochs"]
    every = max(1, epochs // VALIDATIONS[part])
    given = [*overrides(part, best["choice"], store, sizes, data), f"trainer.max_epochs={epochs}"]
    given += [f"trainer.check_val_every_n_epoch={every}"]
    given += [f"callbacks.generation.every_n_epochs={every}"] if part == "prior" else []
    command = [TRAININGS[part][0], *given]
    command.append(f"resume_from={folder}" if (folder / "checkpoints/last.ckpt").is_file() else f"output_dir={folder}")
    if not (folder / "checkpoints/last.ckpt").is_file():
        command.append("overwrite=true")  # of a job that ended before its first epoch

    def work() -> list[Row]:
        if call(command, store, budget) is None:
            raise TimeoutError(f"stopped within its {epochs} epochs")
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        metrics = {name: round(run["metrics"][name], 5) for name in SHOWN[part] if name in run["metrics"]}
        return [{"what": done, "epochs": run["epochs"], "seconds_of_last_job": run["seconds"], **metrics}]

    return store.measure(done, work, budget, seconds=min(30.0, seconds)) is not None


def crystals_of(config: DictConfig) -> int:
    """Return how many crystals a config's training set has."""
    datamodule: CrystalDataModule = build("data", config.data)
    return len(datamodule.dataset("train"))


def call(command: Sequence[str], store: Store, budget: Budget) -> int | None:
    """Run a command of the package, keep it in `commands.sh` and its output in `commands.log`."""
    name, *given = command
    with (store.folder / "commands.sh").open("a", encoding="utf-8") as stream:
        stream.write(f"python src/{name}.py {shlex.join(given)}\n")
    return run_command(python(ROOT / f"src/{name}.py", *given), store.folder / "commands.log", budget, cwd=ROOT)


# ---- evaluation ------------------------------------------------------------------------------------------------------


def evaluate(store: Store, budget: Budget, sizes: Sizes, *, data: Sequence[str]) -> None:
    """Publish the model into the step's folder, and measure it with the commands of the card."""
    model = store.folder / f"{NAME}.ckpt"

    def publish() -> list[Row]:
        best = store.folder / "prior/checkpoints/best.ckpt"
        call(
            ["publish", f"ckpt_path={best}", f"name={NAME}", f"output_dir={store.folder}", "overwrite=true"],
            store,
            budget,
        )
        return [{"what": "published", "file": model.name, "mb": round(model.stat().st_size / 1e6, 1)}]

    if store.measure("published", publish, budget, seconds=5) is None:
        return
    for name, asked in sizes.evaluations.items():
        work = partial(evaluated, name, [f"ckpt_path={model}", *asked, "seed=0", *data], store, budget)
        store.measure(f"evaluation: {name}", work, budget, seconds=10)


def evaluated(name: str, asked: Sequence[str], store: Store, budget: Budget) -> list[Row]:
    """Run one evaluation and return its metrics as a row."""
    folder = store.folder / f"evaluation_{name}"
    if call(["evaluate", *asked, f"output_dir={folder}"], store, budget) is None:
        raise TimeoutError("the time was up")
    metrics = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["metrics"]
    return [{"what": f"evaluation: {name}", **{key: value for key, value in metrics.items() if value is not None}}]

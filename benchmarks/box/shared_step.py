"""A training step shared by the processes that torchrun starts, each on a device and with a batch of its own.

    torchrun --standalone --nproc-per-node=2 benchmarks/box/shared_step.py --device cpu --sizes 128x4 --data prototypes

The first process prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from benchmarks import training  # noqa: E402
from benchmarks.box.speed import endless, shape  # noqa: E402
from benchmarks.machine import take_turns  # noqa: E402
from crystalvae.data.training_batch import TrainingBatch  # noqa: E402
from crystalvae.vae_module import VAEModule  # noqa: E402


class Loss(torch.nn.Module):
    """The loss as what is called, which is what DDP wraps."""

    def __init__(self, module: VAEModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: TrainingBatch) -> torch.Tensor:
        """Return the loss of a training step."""
        return self.module.losses(batch, training=True)["loss"]


def measure(options: argparse.Namespace, device: torch.device) -> tuple[float, bool]:
    """Return the median seconds of a step, and whether all processes end with the same weights."""
    rank, count = dist.get_rank(), dist.get_world_size()
    model = Loss(training.make_module(*shape(options.sizes[0])).to(device))
    shared = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    crystals = training.load_crystals(options)
    batches = endless(crystals[torch.arange(rank, len(crystals), count)], options.batch_size, str(device))

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = shared(next(batches))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.CLIP)
        optimizer.step()

    seconds = take_turns({"": step}, rounds=options.rounds or 20, warmup=2, device=device)[""].median()
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    largest, smallest = weights.clone(), weights.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
    return seconds, bool((largest == smallest).all())


def main() -> None:
    """Join the others, take steps, and say how long they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    training.add_arguments(parser)
    options = parser.parse_args()
    on_gpu = options.device.startswith("cuda")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    seconds, same = measure(options, device)
    rank, count = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        row = {"what": f"step {options.sizes[0]}, batch {options.batch_size} each", "processes": count}
        row["per_second"] = round(count * options.batch_size / seconds, 1)
        row["same_weights"] = same
        print(json.dumps(row), flush=True)
    dist.barrier()
    # gloo's threads may wait for each other for ever where the interpreter takes them apart: nothing is left to do.
    os._exit(0)


if __name__ == "__main__":
    main()

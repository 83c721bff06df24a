"""How quick a training epoch of a sequence VAE is, against the plain way, and what a million windows take.

    python benchmarks/sequence.py                       # 30 + 15 frames of 30 features, hidden 64, batch 256
    python benchmarks/sequence.py --hidden 256 --rounds 5 --json sequence.json

Gathering: batches of windows from one flat tensor, against a `DataLoader` over windows that are cut out one at a time
and put together, on the same windows in the same order of size. Training: a step on a gathered batch, against the plain
way, that `DataLoader` and the model on one window after another, whose losses are added up. All take turns; the result
is the median, in windows a second, and the ratio of ours to the plain way.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

import src  # noqa: E402, F401  # the package of this checkout
from benchmarks.machine import once, take_turns  # noqa: E402
from crystalvae.evaluation.speed import describe_machine  # noqa: E402
from crystalvae.sequence_module.losses import (  # noqa: E402
    cluster_loss,
    future_reconstruction_loss,
    kullback_leibler_loss,
    reconstruction_loss,
)
from crystalvae.sequence_module.sequence_vae import SequenceVAE  # noqa: E402
from crystalvae.sequence_module.windows import FrameSet, WindowLoader  # noqa: E402


class Windows(Dataset[Tensor]):
    """The plain way: one window at a time, cut out of its trajectory."""

    def __init__(self, frames: FrameSet, length: int, count: int) -> None:
        self.parts = frames.frames.split(frames.lengths)
        self.places = [(i, s) for i, part in enumerate(self.parts) for s in range(len(part) - length + 1)][:count]
        self.length = length

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row: int) -> Tensor:
        trajectory, start = self.places[row]
        return self.parts[trajectory][start : start + self.length]


def main() -> None:
    """Time both ways, print a table, and keep it where asked."""
    options = arguments()
    torch.manual_seed(0)
    if options.threads:
        torch.set_num_threads(options.threads)
    frames = FrameSet.of([torch.randn(2000, options.features) for _ in range(8)])
    rows = {**gathering(frames, options), **training(frames, options), **million(options)}
    for name, value in rows.items():
        print(f"{name:<48}{value:>14,.1f}")
    if options.json:
        text = json.dumps({"machine": describe_machine("cpu"), "rows": rows}, indent=1)
        Path(options.json).write_text(text + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", type=int, default=30)
    parser.add_argument("--future", type=int, default=15)
    parser.add_argument("--features", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: as PyTorch chooses")
    parser.add_argument("--json", help="a file for the results")
    return parser.parse_args()


def batches(frames: FrameSet, options: argparse.Namespace, count: int) -> Iterator[Tensor]:
    """Give shuffled batches of windows by gather."""
    length = options.window + options.future
    for batch in WindowLoader(frames.starts(length)[:count], batch_size=options.batch_size, shuffle=True):
        yield frames.gather(batch.starts, length)


def gathering(frames: FrameSet, options: argparse.Namespace) -> dict[str, float]:
    """Time the batches of all windows."""
    length = options.window + options.future
    windows = Windows(frames, length, 10**9)
    loader = DataLoader(windows, batch_size=options.batch_size, shuffle=True)
    times = take_turns(
        {
            "gather": lambda: [float(batch[0, 0, 0]) for batch in batches(frames, options, 10**9)],
            "plain": lambda: [float(batch[0, 0, 0]) for batch in loader],
        },
        rounds=options.rounds,
    )
    rate = {name: len(windows) / value.median() for name, value in times.items()}
    return {
        "gathering: windows a second": rate["gather"],
        "gathering: windows a second, plain": rate["plain"],
        "gathering: ratio": rate["gather"] / rate["plain"],
    }


def training(frames: FrameSet, options: argparse.Namespace) -> dict[str, float]:
    """Time two batches of training either way."""
    count = 2 * options.batch_size
    model = SequenceVAE(
        num_features=options.features,
        window=options.window,
        future_steps=options.future,
        hidden_size=options.hidden,
        hidden_size_reconstruction=options.hidden,
        hidden_size_prediction=options.hidden,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4, amsgrad=True)
    loader = DataLoader(Windows(frames, options.window + options.future, count), options.batch_size, shuffle=True)

    def loss(windows: Tensor) -> tuple[Tensor, Tensor]:
        past, future = windows[:, : options.window], windows[:, options.window :]
        posterior = model.encode(past)
        latents = posterior.sample()
        errors = reconstruction_loss(past, model.decode(latents)) + future_reconstruction_loss(
            future, model.predict(latents)
        )
        return errors + kullback_leibler_loss(posterior.mean, posterior.logvar), latents

    def step(total: Tensor, latents: Tensor) -> None:
        optimizer.zero_grad()
        (total + cluster_loss(latents, 30, 0.1)).backward()
        optimizer.step()

    def together() -> None:
        for windows in batches(frames, options, count):
            step(*loss(windows))

    def one_at_a_time() -> None:
        for windows in loader:
            parts = [loss(window[None]) for window in windows]
            total = torch.stack([part for part, _ in parts]).sum()
            step(total, torch.cat([latents for _, latents in parts]))

    times = take_turns({"together": together, "plain": one_at_a_time}, rounds=options.rounds)
    rate = {name: count / value.median() for name, value in times.items()}
    return {
        "training: windows a second": rate["together"],
        "training: windows a second, plain": rate["plain"],
        "training: ratio": rate["together"] / rate["plain"],
    }


def million(options: argparse.Namespace) -> dict[str, float]:
    """Measure what a million windows take in memory, and the time to list and to gather them once."""
    length = options.window + options.future
    frames = FrameSet.of([torch.randn(100_000 + length - 1, options.features) for _ in range(10)])
    listed, _, starts = once(lambda: frames.starts(length))
    assert isinstance(starts, Tensor)
    taken, _, _ = once(lambda: [frames.gather(part, length) for part in starts.split(options.batch_size)][-1])
    megabytes = (frames.frames.nbytes + starts.nbytes + frames.ptr.nbytes) / 1e6
    return {
        "a million windows: MB held": megabytes,
        "a million windows: MB if each were copied": len(starts) * length * options.features * 4 / 1e6,
        "a million windows: seconds to list": listed,
        "a million windows: seconds to gather once": taken,
    }


if __name__ == "__main__":
    main()

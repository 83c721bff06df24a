"""A network again and again as one CUDA graph: a sampler's many small kernels take longer to start than to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from crystalvae.errors import ConfigError

Recorded = tuple[Callable[[], object], Tensor]
"""What computes an output again from inputs that were written into, and the output."""
Record = Callable[[Callable[[], Tensor]], Recorded]


def record_graph(work: Callable[[], Tensor]) -> Recorded:
    """Record what `work` does on the GPU, which it has done before."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = work()
    return graph.replay, output


class Replayed:
    """A function of tensors and other things that, asked the like again, is replayed instead of called.

    Alike are calls with tensors of the same shapes and the very same other arguments, as the steps of a sampler for one
    batch. The first such call is a plain one, which also makes what is kept for later (plans of attention); the second
    is recorded, with the tensors copied to places that later calls write into. Only the last kind of call is kept. No
    gradients, and nothing that waits for the GPU or draws random numbers may happen inside.
    """

    def __init__(self, function: Callable[..., Tensor], *, record: Record = record_graph) -> None:
        self._function, self._record = function, record
        self._likeness: tuple[Any, ...] = ()
        self._kept: dict[int | str, Any] = {}
        self._recorded: Recorded | None = None

    def __call__(self, *arguments: Any, **named: Any) -> Tensor:
        """Return the function's value: called, recorded or replayed."""
        given = {**dict(enumerate(arguments)), **named}
        likeness = tuple(
            (name, *((entry.shape, entry.dtype, entry.device) if isinstance(entry, Tensor) else (id(entry),)))
            for name, entry in given.items()
        )
        if likeness != self._likeness:
            self._likeness, self._recorded = likeness, None
            self._kept = given  # held, so that no other object takes an id
            return self._function(*arguments, **named)
        if self._recorded is None:
            kept = {name: entry.clone() if isinstance(entry, Tensor) else entry for name, entry in given.items()}
            unnamed = [kept[position] for position in range(len(arguments))]
            self._kept = kept
            self._recorded = self._record(lambda: self._function(*unnamed, **{name: kept[name] for name in named}))
        for name, entry in given.items():
            if isinstance(entry, Tensor):
                self._kept[name].copy_(entry)
        replay, output = self._recorded
        replay()
        return output.clone()


@contextmanager
def replayed(network: nn.Module, *, record: Record = record_graph) -> Iterator[None]:
    """Let a network on a GPU be replayed in this context; `ConfigError` where it is elsewhere."""
    device = next(network.parameters()).device
    if record is record_graph and device.type != "cuda":
        raise ConfigError(f"cuda_graphs: got true, but the model is on {device}; expected device=cuda")
    network.forward = Replayed(network.forward, record=record)
    try:
        yield
    finally:
        del network.forward  # the class's own again

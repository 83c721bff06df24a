"""Motifs and what they do as files: CSV, JSON and GraphML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from crystalvae.data.trajectories import Trajectory
from crystalvae.errors import DataError
from crystalvae.sequence_module.motifs.communities import MotifTree
from crystalvae.sequence_module.motifs.segmentation import SegmentedTrajectory
from crystalvae.sequence_module.motifs.statistics import MotifStatistics


def frame_table(
    segmented: Sequence[SegmentedTrajectory],
    trajectories: Mapping[str, Trajectory],
    communities: Int[np.ndarray, "K"] | None = None,
) -> pd.DataFrame:
    """Return a row per frame: trajectory, frame, time in fs, motif, confidence, community, and the frame's properties.

    Raises `DataError` for a trajectory that has other than its segmentation's frames.
    """
    parts = []
    for entry in segmented:
        trajectory, motifs = trajectories[entry.id], entry.frame_motifs
        if len(trajectory) != len(motifs):
            raise DataError(f"trajectory {entry.id}: has {len(trajectory)} frames; its motifs are of {len(motifs)}")
        columns: dict[str, Any] = {
            "trajectory": entry.id,
            "frame": np.arange(len(motifs)),
            "time": trajectory.times.numpy(),
            "motif": motifs,
            "confidence": entry.frame_confidence,
        }
        if communities is not None:
            columns["community"] = communities[motifs]
        if trajectory.energies is not None:
            columns["energy"] = trajectory.energies.numpy()
        columns |= {name: values.numpy() for name, values in trajectory.properties.items()}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def motif_table(
    statistics: MotifStatistics, communities: Int[np.ndarray, "K"] | None = None, *, step: float | None = None
) -> pd.DataFrame:
    """Return a row a motif: usage, stationary share and dwell times in frames, in fs too where `step` is given."""
    table = pd.DataFrame({"motif": range(statistics.num_motifs), "usage": statistics.usage})
    if communities is not None:
        table["community"] = communities
    table["stationary"] = statistics.stationary
    for name in ("runs", "complete", "mean", "median", "longest", "mean_complete"):
        values = [getattr(entry, name) for entry in statistics.dwell]
        column = name if name == "runs" else f"{name}_runs" if name == "complete" else f"{name}_dwell"
        table[column] = values
        if step is not None and column.endswith("_dwell"):
            table[f"{column}_fs"] = [None if value is None else value * step for value in values]
    return table


def transition_table(statistics: MotifStatistics) -> pd.DataFrame:
    """Return a row for every pair of motifs that follow each other: count, probability, and that of a switch."""
    rows, columns = np.nonzero(statistics.counts)
    return pd.DataFrame(
        {
            "from": rows,
            "to": columns,
            "count": statistics.counts[rows, columns],
            "probability": statistics.transitions[rows, columns],
            "switch_probability": statistics.switches[rows, columns],
        }
    )


def write_graph(statistics: MotifStatistics, path: Path | str, communities: Int[np.ndarray, "K"] | None = None) -> Path:
    """Write the transition graph as GraphML: motifs with usage, dwell time and community, switches with probability."""
    import networkx as nx

    graph: Any = nx.DiGraph()
    for motif, dwell in enumerate(statistics.dwell):
        attributes: dict[str, Any] = {"usage": float(statistics.usage[motif]), "mean_dwell": dwell.mean or 0.0}
        if communities is not None:
            attributes["community"] = int(communities[motif])
        graph.add_node(motif, **attributes)
    for row in transition_table(statistics).itertuples(index=False):
        start, stop, count, probability, switch = row
        weights = {"probability": float(probability), "switch_probability": float(switch)}
        graph.add_edge(int(start), int(stop), count=int(count), **weights)
    target = Path(path)
    nx.write_graphml(graph, target)
    return target


def write_motifs(
    folder: Path | str,
    segmented: Sequence[SegmentedTrajectory],
    trajectories: Mapping[str, Trajectory],
    statistics: MotifStatistics,
    each: Mapping[str, MotifStatistics],
    tree: MotifTree,
    communities: Int[np.ndarray, "K"],
    *,
    step: float | None = None,
) -> list[Path]:
    """Write all of it into a folder that exists: frames.csv, motifs.csv, transitions.csv, motifs.json, motifs.graphml.

    `statistics` are of all trajectories, `each` of one by one.
    """
    target = Path(folder)
    tables = {
        "frames.csv": frame_table(segmented, trajectories, communities),
        "motifs.csv": motif_table(statistics, communities, step=step),
        "transitions.csv": transition_table(statistics),
    }
    paths = []
    for name, table in tables.items():
        table.to_csv(target / name, index=False)
        paths.append(target / name)
    content = {
        "num_motifs": statistics.num_motifs,
        "step_fs": step,
        "communities": communities.tolist(),
        "overall": statistics.to_dict(),
        "trajectories": {name: entry.to_dict() for name, entry in each.items()},
        "tree": tree.to_dict(),
    }
    path = target / "motifs.json"
    path.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    return [*paths, path, write_graph(statistics, target / "motifs.graphml", communities)]

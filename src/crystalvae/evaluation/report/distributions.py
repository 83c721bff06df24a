"""Plots of generated crystals over the reference's: histograms, counts, space groups, energies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from crystalvae.data.symmetry import CRYSTAL_SYSTEMS
from crystalvae.evaluation.report.facts import Facts
from crystalvae.evaluation.report.numbers import space_group_symbol
from crystalvae.evaluation.report.style import GENERATED, INK, REFERENCE, Plot, finish, legend, new_figure

BINS = 48
MOST_FREQUENT = 20
SIZE = (5.2, 3.1)


def fact_plots(generated: Facts, reference: Facts, names: tuple[str, str]) -> list[Plot]:
    """Return histograms of density, volume per atom, atoms and elements; `names` are those of the two sets."""
    return [
        histogram(
            generated.density, reference.density, names, name="density", title="Density", label="density (g/cm³)"
        ),
        histogram(
            generated.volume_per_atom,
            reference.volume_per_atom,
            names,
            name="volume_per_atom",
            title="Volume per atom",
            label="volume per atom (Å³)",
        ),
        counts(
            generated.num_atoms, reference.num_atoms, names, name="num_atoms", title="Atoms in the cell", label="atoms"
        ),
        counts(
            generated.num_elements,
            reference.num_elements,
            names,
            name="num_elements",
            title="Different elements",
            label="different elements in a crystal",
        ),
    ]


def histogram(
    generated: Float[np.ndarray, "M"],
    reference: Float[np.ndarray, "N"],
    names: tuple[str, str],
    *,
    name: str,
    title: str,
    label: str,
) -> Plot:
    """Return a histogram of both sets as shares; what lies beyond the axis, and what is no number, is said below."""
    ours, theirs = generated[np.isfinite(generated)], reference[np.isfinite(reference)]
    low, high = _limits(ours, theirs)
    edges = np.linspace(low, high, BINS + 1)
    figure = new_figure(*SIZE)
    axes = figure.add_subplot()
    for values, colour, filled, text in ((theirs, REFERENCE, True, names[1]), (ours, GENERATED, False, names[0])):
        shares = np.histogram(values, edges)[0] / max(len(values), 1) * 100
        if filled:
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.45, label=text)
        else:
            axes.stairs(shares, edges, color=colour, linewidth=1.8, label=text)
    axes.set(xlabel=label, ylabel="crystals (%)", xlim=(low, high), ylim=(0, None))
    axes.set_title(title)
    legend(axes)
    notes = [f"medians {_median(ours)} and {_median(theirs)}"]
    outside = np.count_nonzero((ours < low) | (ours > high))
    if outside:
        notes.append(f"{outside} of {len(ours)} {names[0]} ones lie beyond the axis")
    if len(ours) < len(generated):
        notes.append(f"{len(generated) - len(ours)} {names[0]} ones have no value")
    return finish(figure, name=name, title=title, caption=_sentence("; ".join(notes)))


def counts(
    generated: Int[np.ndarray, "M"],
    reference: Int[np.ndarray, "N"],
    names: tuple[str, str],
    *,
    name: str,
    title: str,
    label: str,
) -> Plot:
    """Return bars of both sets' shares for each whole number."""
    from matplotlib.ticker import MaxNLocator

    everything = np.concatenate((generated, reference, [1]))
    most = int(reference.max(initial=1))  # a few huge ones must not squeeze the rest
    last = max(most, min(int(np.percentile(everything, 99.5)), 2 * most))
    values = np.arange(int(everything.min()), last + 1)
    figure = new_figure(*SIZE)
    axes = figure.add_subplot()
    for offset, data, colour, text in ((-0.2, generated, GENERATED, names[0]), (0.2, reference, REFERENCE, names[1])):
        shares = [np.count_nonzero(data == value) / max(len(data), 1) * 100 for value in values]
        axes.bar(values + offset, shares, width=0.4, color=colour, label=text)
    axes.set(xlabel=label, ylabel="crystals (%)", xlim=(values[0] - 0.6, values[-1] + 0.6))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(title)
    legend(axes)
    notes = [f"means {generated.mean():.2f} and {reference.mean():.2f}"] if len(generated) and len(reference) else []
    beyond = int(np.count_nonzero(generated > last))
    if beyond:
        notes.append(f"{beyond} {names[0]} ones have more than {last}")
    return finish(figure, name=name, title=title, caption=_sentence("; ".join(notes)))


def space_group_plot(
    distribution: Mapping[str, Mapping[str, int]], symbols: Mapping[str, str], names: tuple[str, str], *, tolerance: str
) -> Plot:
    """Return bars of the most frequent space groups of both sets, ordered by the reference's shares."""
    ours, theirs = distribution.get("generated", {}), distribution.get("reference", {})
    total, total_theirs = max(sum(ours.values()), 1), max(sum(theirs.values()), 1)
    share = {
        group: (ours.get(group, 0) / total * 100, theirs.get(group, 0) / total_theirs * 100)
        for group in {*ours, *theirs}
    }
    shown = sorted(share, key=lambda group: (-max(share[group]), int(group)))[:MOST_FREQUENT]
    shown.sort(key=lambda group: (-share[group][1], -share[group][0], int(group)))
    labels = [f"{space_group_symbol(symbols.get(group, ''))}\n{group}" for group in shown]
    rest = tuple(sum(share[group][side] for group in share if group not in shown) for side in (0, 1))
    if any(rest):
        labels.append("all\nothers")
    bars = [[share[group][side] for group in shown] + ([rest[side]] if any(rest) else []) for side in (0, 1)]
    caption = (
        f"Space groups found at {tolerance} Å: {len(ours)} different ones among the {names[0]} crystals, {len(theirs)} "
        f"among the {names[1]} ones. Shown are the {len(shown)} most frequent."
    )
    return _grouped(labels, bars, names, name="space_groups", title="Space groups", caption=caption, wide=True)


def crystal_system_plot(
    distribution: Mapping[str, Mapping[str, int]], names: tuple[str, str], *, tolerance: str
) -> Plot:
    """Return bars of the crystal systems of both sets."""
    sides = [distribution.get("generated", {}), distribution.get("reference", {})]
    bars = [[side.get(system, 0) / max(sum(side.values()), 1) * 100 for system in CRYSTAL_SYSTEMS] for side in sides]
    caption = f"Crystal systems found at {tolerance} Å."
    return _grouped(
        [system[:6] + "…" if len(system) > 10 else system for system in CRYSTAL_SYSTEMS],
        bars, names, name="crystal_systems", title="Crystal systems", caption=caption,
    )  # fmt: skip


def hull_plot(energies: Sequence[float], *, stable: float = 0.0, metastable: float = 0.1) -> Plot:
    """Return a histogram of energies above the hull, with the two published limits."""
    values = np.asarray(energies, dtype=float)
    low, high = min(-0.1, float(np.percentile(values, 0.5))), max(0.3, float(np.percentile(values, 97.5)))
    edges = np.linspace(low, high, BINS + 1)
    figure = new_figure(*SIZE)
    axes = figure.add_subplot()
    shares = np.histogram(values, edges)[0] / len(values) * 100
    axes.stairs(shares, edges, fill=True, color=GENERATED, alpha=0.75)
    for limit, text in ((stable, "stable"), (metastable, "metastable")):
        axes.axvline(limit, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.annotate(
            text, (limit, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -2), textcoords="offset points",
            va="top", fontsize=7.5, rotation=90,
        )  # fmt: skip
    axes.set(xlabel="energy above the hull (eV/atom)", ylabel="relaxed crystals (%)", xlim=(low, high))
    axes.set_title("Energy above the hull")
    beyond = int(np.count_nonzero(values > high))
    caption = f"{len(values)} relaxed crystals; median {np.median(values):.3f} eV/atom"
    return finish(
        figure,
        name="energy_above_hull",
        title="Energy above the hull",
        caption=_sentence(caption + (f"; {beyond} lie beyond the axis" if beyond else "")),
    )


def _grouped(
    labels: Sequence[str],
    bars: Sequence[Sequence[float]],
    names: tuple[str, str],
    *,
    name: str,
    title: str,
    caption: str,
    wide: bool = False,
) -> Plot:
    figure = new_figure(10.6 if wide else SIZE[0], 3.3 if wide else SIZE[1])
    axes = figure.add_subplot()
    places = np.arange(len(labels))
    for offset, values, colour, text in (
        (-0.2, bars[0], GENERATED, names[0]),
        (0.2, bars[1], REFERENCE, names[1]),
    ):
        axes.bar(places + offset, values, width=0.4, color=colour, label=text)
    axes.set_xticks(
        places, labels, fontsize=7.0 if wide else 7.5, rotation=0 if wide else 30, ha="center" if wide else "right"
    )
    axes.set(ylabel="crystals (%)", xlim=(-0.6, len(labels) - 0.4))
    axes.set_title(title)
    legend(axes)
    return finish(figure, name=name, title=title, caption=caption, wide=wide)


def _limits(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    ranges = [np.percentile(values, (0.25, 99.0)) for values in (ours, theirs) if len(values)]
    if not ranges:
        return 0.0, 1.0
    low, high = min(float(low) for low, _ in ranges), max(float(high) for _, high in ranges)
    if len(theirs):  # a few absurd crystals must not squeeze the rest into one bin
        spread = float(np.percentile(theirs, 99.0)) - float(np.percentile(theirs, 0.25))
        high = min(high, float(np.percentile(theirs, 99.0)) + spread)
    low = max(0.0, low - 0.03 * (high - low))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _median(values: np.ndarray) -> str:
    return f"{np.median(values):.3g}" if len(values) else "none"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." if text else ""

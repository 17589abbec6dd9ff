"""Plot costs by the size of the job: ``python -m benchmarks.plot cost-by-size.png [largest]``."""

from __future__ import annotations

import sys

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.sizes import KINDS, READS, ending_costs, reading_costs

SIZES = (100, 1_000, 10_000, 100_000)
ROUNDS = 500


def main(path: str, largest: str = "100000") -> None:
    """Measure every store at every size up to ``largest`` tasks and save the plot."""
    sizes = [size for size in SIZES if size <= int(largest)]
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.4), sharey=True, layout="constrained")
    for panel, (title, costs) in zip(panels, _panels(sizes).items()):
        for kind, by_size in costs.items():
            panel.plot(list(by_size), [cost * 1e6 for cost in by_size.values()], marker="o", label=kind)
        panel.set(xscale="log", yscale="log", ylim=(1, 10_000), title=title, xlabel="tasks in the job")
        panel.grid(visible=True, alpha=0.3)
    panels[0].set_ylabel("median, µs")
    panels[0].legend()
    figure.savefig(path, dpi=100)


def _panels(sizes: list[int]) -> dict[str, dict[str, dict[int, float]]]:
    reading = {kind: reading_costs(kind, sizes, ROUNDS) for kind in KINDS}
    reads = {what: {kind: reading[kind][what] for kind in KINDS} for what in READS}
    return {**reads, "end of a task, including completion": {kind: ending_costs(kind, sizes, ROUNDS) for kind in KINDS}}


if __name__ == "__main__":
    main(*sys.argv[1:])

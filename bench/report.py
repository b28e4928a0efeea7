"""Measure and write the tables and the pictures of the README.

    python bench/report.py             # takes about three minutes on an idle machine
    python bench/report.py --quick     # one round, fewer sizes
    python bench/report.py --redraw    # reuse the last measurement

The tables, the pictures and the measured data are written to bench/figures/, or to the folder given by --to. Results
are verified and timed as in compare.py. matplotlib is required. Peers that are not installed are left out."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from cases import CASES, Case, Problem
from compare import LEGEND, ORDER, TITLES, measure, number_text, row, rows_of, table
from peers import OWN, SIDES, THREADS, describe, environment, fastce_runs, limit_runs, missing, numpy_runs, runs

FIGURES = Path(__file__).parent / "figures"
SECONDS = 2.0  # for each case and mode
SWEPT_LOGITS, SWEPT_CLASSES = 2**22, [2**k for k in range(1, 19)]
SCALED = [case for case in CASES if case.name in {"65536 x 10", "4096 x 1000", "4096 x 1000 float64", "1024 x 32000"}]
GAPS, GAP_CLASSES = np.linspace(1, 85, 57, dtype=np.float32), 10
ERROR_SHOWN = 1e-9  # smaller errors, including 0, are drawn here
EPS = float(np.finfo(np.float32).eps)
QUICK_LOGITS = 2**23  # --quick leaves larger cases out

WIDTH, DPI = 8.0, 130  # in inches; a README is about 800 pixels wide
COLOURS = {
    "fastce": "#000000",
    "NumPy": "#0072b2",
    "PyTorch": "#d55e00",
    "JAX": "#009e73",
    "scikit-learn": "#e69f00",
    "Numba": "#cc79a7",
}
MARKERS = {"fastce": "o", "NumPy": "s", "PyTorch": "^", "JAX": "D", "scikit-learn": "v", "Numba": "P"}
GREY = "#888888"


# --- measuring --------------------------------------------------------------------------------------------------------


def progress(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


def classes_rows(seconds: float, rounds: int, every: int) -> Iterator[dict]:
    """Results by number of classes; the number of logits stays the same. The gradient is written to a given buffer, so
    that page faults of a new array are not measured."""
    for classes in SWEPT_CLASSES[::every]:
        progress(f"{classes} classes")
        problem = Problem(Case(str(classes), (SWEPT_LOGITS // classes, classes)))
        problem.buffer = problem.logits.copy()
        for gradient, wanted in ((True, {"fastce", "PyTorch", "JAX"}), (False, {"fastce"})):
            sides = [run for run in runs(problem, gradient) if run.side in wanted and run.threads in (OWN, THREADS[1])]
            sides += numpy_runs(problem, gradient) if gradient else []
            sides += limit_runs(problem, gradient)
            yield row(problem.case, gradient, measure(problem, sides, seconds, rounds))


def threads_rows(seconds: float, rounds: int, cases: Iterable[Case]) -> Iterator[dict]:
    """Results of fastce and of the copy with 1, 2, 4, ... and all threads."""
    counts = sorted({2**k for k in range(THREADS[1].bit_length()) if 2**k <= THREADS[1]} | {THREADS[1]})
    for case in cases:
        progress(f"{case.name} with {', '.join(map(str, counts))} threads")
        problem = Problem(case)
        sides = [*fastce_runs(problem, True, counts), *limit_runs(problem, True, counts)]
        yield row(case, True, measure(problem, sides, seconds, rounds))


def accuracy() -> dict:
    """Relative errors of the loss and of the gradient at the label. The logits are [gap, 0, 0, ...], the label is 0."""
    progress("accuracy")
    errors: dict[str, list[tuple[float, float]]] = {}
    problem = Problem(Case("one row", (1, GAP_CLASSES)))
    problem.logits[...] = 0
    problem.targets[...] = 0
    for gap in GAPS:
        problem.logits[0, 0] = gap
        tail = (GAP_CLASSES - 1) * np.exp(-np.float64(gap))
        true_loss, true_gradient = np.log1p(tail), -tail / (1 + tail)
        for name, packages, bind in SIDES:
            if name in COLOURS and name != "Numba" and missing(packages) is None:  # the Numba loop is ours
                run = next(iter(bind(problem, True)))
                run.enter()
                loss, gradient = run.read(run.call())
                pair = (abs(loss - true_loss) / true_loss, abs((gradient[0, 0] - true_gradient) / true_gradient))
                errors.setdefault(name, []).append(tuple(map(float, pair)))
    return {"gaps": GAPS.tolist(), "errors": {"fastce": errors.pop("fastce"), **errors}}


def measured(quick: bool) -> dict:
    seconds, rounds, every = (0.0, 1, 3) if quick else (SECONDS, 5, 1)
    chosen = [case for case in CASES if not quick or np.prod(case.shape) <= QUICK_LOGITS]
    return {
        "environment": environment(),
        "described": describe(),
        "threads": THREADS[1],
        "rows": [data for case in chosen for data in rows_of(case, (True, False), seconds, rounds)],
        "by_classes": list(classes_rows(seconds / 4, rounds, every)),
        "by_threads": list(threads_rows(seconds, rounds, [case for case in SCALED if case in chosen])),
        "accuracy": accuracy(),
    }


# --- reading ----------------------------------------------------------------------------------------------------------


def seconds_of(data: dict, side: str, threads: int) -> float | None:
    """The time with that number of threads, or the only time of NumPy and of implementations that choose the number."""
    found = {s["threads"]: s["seconds"] for s in data["sides"] if s["side"] == side}
    return found.get(threads, found.get(None)) or (found.get(1) if side == "NumPy" else None)


def curve(data: dict, side: str, gradient: bool) -> dict[int, float]:
    """ns per logit by number of classes."""
    chosen = [r for r in data["by_classes"] if r["gradient"] == gradient]
    best = {int(r["case"]): (seconds_of(r, side, data["threads"]), r["size"]) for r in chosen}
    return {classes: seconds * 1e9 / size for classes, (seconds, size) in best.items() if seconds}


def limit(data: dict, side: str) -> float:
    """ns per logit of the fastest copy or read, over all numbers of threads and classes: the memory is the same."""
    rows = data["by_classes"]
    return min(s["seconds"] * 1e9 / r["size"] for r in rows for s in r["sides"] if s["side"] == side)


def speedups(data: dict) -> dict[tuple[str, str], dict[int, tuple[float, float]]]:
    """ns per logit and speed-up over one thread, by case and side and then by number of threads."""
    found = {}
    for r in data["by_threads"]:
        for side in ("fastce", "copy"):
            best = {s["threads"]: s["seconds"] for s in r["sides"] if s["side"] == side}
            found[r["case"], side] = {n: (best[n] * 1e9 / r["size"], best[1] / best[n]) for n in sorted(best)}
    return found


def span(values: Iterable[float]) -> str:
    values = list(values)
    low, high = (f"{v:.0f}" if v >= 9.5 else f"{v:.1f}" for v in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


# --- tables -----------------------------------------------------------------------------------------------------------


def markdown(header: list[str], lines: Iterable[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *lines])


def classes_table(data: dict) -> str:
    columns = {side: curve(data, side, True) for side in ("fastce", "NumPy", "PyTorch", "JAX")}
    columns["fastce, forward"] = curve(data, "fastce", False)
    columns = {title: column for title, column in columns.items() if column}
    lines = [[str(c), *(number_text(column[c]) for column in columns.values())] for c in columns["fastce"]]
    return markdown(["classes", *columns], lines)


def threads_table(data: dict) -> str:
    found = speedups(data)
    lines = [
        [f"{case}{', copy' * (side == 'copy')}", *(f"{ns:.3f} ({times:.2f}x)" for ns, times in points.values())]
        for (case, side), points in found.items()
    ]
    counts = next(iter(found.values()))
    return markdown(["ns per logit", *(f"{n} thread{'s' * (n > 1)}" for n in counts)], lines)


def accuracy_table(data: dict) -> str:
    gaps, errors = data["accuracy"]["gaps"], data["accuracy"]["errors"]
    picked = [min(range(len(gaps)), key=lambda i: abs(gaps[i] - gap)) for gap in (1, 5, 10, 15, 20, 40, 85)]
    lines = [[f"{gaps[i]:g}", *(" / ".join(f"{e:.0e}" for e in pairs[i]) for pairs in errors.values())] for i in picked]
    return markdown(["gap", *errors], lines)


def tables(data: dict) -> str:
    parts = [data["described"].replace("\n", "\\\n")]
    for gradient, title in TITLES.items():
        parts += [f"## {title}", LEGEND, table(r for r in data["rows"] if r["gradient"] == gradient)]
    parts += [
        f"## By number of classes\n\nns per logit, {SWEPT_LOGITS:,} logits, {data['threads']} threads "
        f"(NumPy: 1). A copy takes {limit(data, 'copy'):.3f}, logits.max() {limit(data, 'read'):.3f}.",
        classes_table(data),
        "## By number of threads\n\nLoss + gradient; in brackets: speed-up over one thread",
        threads_table(data),
        f"## Accuracy\n\nRelative error of loss / gradient at the label: float32, {GAP_CLASSES} classes, logits "
        "[gap, 0, 0, ...], label 0",
        accuracy_table(data),
    ]
    return "\n\n".join(parts) + "\n"


# --- pictures ---------------------------------------------------------------------------------------------------------


def canvas(height: float, message: str, columns: int = 1):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    style = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "grid.color": "#e4e4e4",
        "legend.frameon": False,
        "legend.fontsize": 9,
    }
    pyplot.rcParams.update(style)
    figure, axes = pyplot.subplots(1, columns, figsize=(WIDTH, height), layout="constrained", sharey=True)
    figure.suptitle(message, fontsize=13, fontweight="bold", x=0.01, ha="left")
    return figure, axes


def plain_numbers(axis, ticks: Iterable[float]) -> None:
    """Show the ticks that are in view, without exponents."""
    low, high = axis.get_view_interval()
    ticks = [tick for tick in ticks if low <= tick <= high]
    axis.set_ticks(ticks, [f"{tick:,g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def draw_speedup(data: dict):
    """Slowdown of each implementation relative to fastce, with a line for each case."""
    threads = data["threads"]
    chosen = [r for r in data["rows"] if r["gradient"] and "in place" not in r["case"]][::-1]
    ratios: dict[str, dict[int, float]] = {}
    for side in ORDER:
        for i, r in enumerate(chosen):
            if theirs := seconds_of(r, side, threads):
                ratios.setdefault(side, {})[i] = theirs / seconds_of(r, "fastce", threads)
    message = f"Speed-up over NumPy: {span(ratios['NumPy'].values())}"
    if peers := [ratio for side, points in ratios.items() if side != "NumPy" for ratio in points.values()]:
        message += f"; over the others: {span(peers)}"
    figure, axes = canvas(1.6 + 0.27 * len(chosen), message)
    axes.set_title(f"loss + gradient, {threads} threads each (NumPy: 1)")
    axes.axvline(1, color="black", linewidth=2.4, label="fastce")
    for side, points in ratios.items():
        style = {"color": COLOURS[side], "marker": MARKERS[side], "markersize": 7, "markeredgecolor": "white"}
        axes.plot(list(points.values()), list(points), linestyle="none", label=side, **style)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.8), high)
    plain_numbers(axes.xaxis, (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100))
    axes.set_xlabel("slowdown relative to fastce")
    axes.set_ylim(-0.6, len(chosen) - 0.4)
    axes.set_yticks(range(len(chosen)), [r["case"] for r in chosen], fontsize=9)
    figure.legend(loc="outside lower center", ncols=6, handletextpad=0.3, columnspacing=1.5)
    return figure


def draw_classes(data: dict):
    """ns per logit against the number of classes, with the time of a copy and of a read."""
    ours, forward = curve(data, "fastce", True), curve(data, "fastce", False)
    copy, read = limit(data, "copy"), limit(data, "read")
    ratios = [ns / copy for classes, ns in ours.items() if classes >= 64]
    figure, axes = canvas(4.6, f"From 64 classes on, loss + gradient costs {span(ratios)} copies of the logits")
    axes.set_title(
        f"ns per logit, {SWEPT_LOGITS // 2**20} Mi float32 logits, {data['threads']} threads each (NumPy: 1)"
    )
    for side in ("NumPy", "PyTorch", "JAX"):
        if points := curve(data, side, True):
            style = {"color": COLOURS[side], "marker": MARKERS[side], "markersize": 4, "linewidth": 1.2}
            axes.plot(list(points), list(points.values()), label=side, **style)
    for points, least, name, said, colour in (
        (ours, copy, "fastce", "a copy of the logits", "black"),
        (forward, read, "fastce, forward only", "logits.max()", GREY),
    ):
        axes.plot(
            list(points), list(points.values()), color=colour, marker="o", markersize=5, linewidth=2.2, label=name
        )
        axes.axhline(least, color=colour, linestyle=":", linewidth=1.6)
        axes.text(min(ours), least, said, color=colour, fontsize=9, va="bottom")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(min(ours) / 1.2, max(ours) * 1.2)
    step = max(1, len(ours) // 9)
    plain_numbers(axes.xaxis, [*list(ours)[:-step:step], max(ours)])
    plain_numbers(axes.yaxis, (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50))
    axes.set_xlabel("classes")
    figure.legend(loc="outside lower center", ncols=5)
    return figure


def draw_threads(data: dict):
    """Speed-up over one thread, of fastce and of a copy."""
    found = {key: {n: times for n, (_, times) in points.items() if n > 1} for key, points in speedups(data).items()}
    most = data["threads"]
    ours = [points[most] for (_, side), points in found.items() if side == "fastce"]
    figure, axes = canvas(3.8, f"{most} threads are {span(ours)} times as fast as one")
    axes.set_title("loss + gradient, compared with a copy of the logits")
    cases = list(dict.fromkeys(case for case, _ in found))
    counts = list(next(iter(found.values())))
    bars = [(side, n) for side in ("fastce", "copy") for n in counts]
    width = 0.8 / len(bars)
    for k, (side, n) in enumerate(bars):
        at = [i + (k - (len(bars) - 1) / 2) * width for i in range(len(cases))]
        style = {"color": "black" if side == "fastce" else GREY, "alpha": (1 + counts.index(n)) / len(counts)}
        drawn = axes.bar(
            at, [found[case, side][n] for case in cases], width * 0.94, label=f"{side}, {n} threads", **style
        )
        axes.bar_label(drawn, fmt="%.2f", fontsize=9, padding=2)
    axes.axhline(1, color="white", linewidth=0.8)
    axes.axhline(most, color="black", linewidth=0.8, linestyle=":")
    axes.text(-0.45, most, "ideal", fontsize=9, va="bottom")
    axes.set_ylim(0, most * 1.15)
    axes.set_ylabel("speed-up over one thread")
    axes.set_xticks(range(len(cases)), cases)
    axes.grid(visible=False)
    figure.legend(loc="outside lower center", ncols=len(bars))
    return figure


def draw_accuracy(data: dict):
    """Relative errors of loss and gradient against the gap, with the bound that fastce guarantees."""
    gaps, errors = data["accuracy"]["gaps"], data["accuracy"]["errors"]
    worst = max(max(pair) for pair in errors["fastce"])
    size = 10.0 ** math.floor(math.log10(worst))
    message = f"Confident rows: fastce's error stays below {math.ceil(worst / size) * size:.0e}, others lose all digits"
    figure, both = canvas(4.2, message, columns=2)
    for what, (axes, title) in enumerate(zip(both, ("loss", "gradient at the label"), strict=True)):
        axes.set_title(f"relative error of the {title}")
        for k, (side, pairs) in enumerate(errors.items()):
            values = np.maximum([pair[what] for pair in pairs], ERROR_SHOWN)
            style = {"markersize": 4, "linewidth": 1.8, "zorder": 3}
            if side != "fastce":  # these curves coincide, so their markers alternate
                style = {"markersize": 6, "linewidth": 1.2, "markevery": (k, len(errors))}
            axes.plot(gaps, values, color=COLOURS[side], marker=MARKERS[side], label=side, **style)
        bound = (4 + np.array(gaps)) * EPS
        axes.plot(gaps, bound, color="black", linestyle=":", label="fastce's bound: (4 + gap) eps")
        axes.text(85, 2, "the result is 0", ha="right", va="bottom", fontsize=9)
        axes.set_yscale("log")
        axes.set_ylim(ERROR_SHOWN / 2, 50)
        axes.set_xlabel("gap: logit of the label minus the other logits")
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, columnspacing=1.5)
    return figure


PICTURES = {"speedup": draw_speedup, "classes": draw_classes, "threads": draw_threads, "accuracy": draw_accuracy}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, fewer sizes")
    parser.add_argument("--redraw", action="store_true", help="reuse the last measurement")
    parser.add_argument("--to", type=Path, default=FIGURES, metavar="FOLDER", help="default: %(default)s")
    arguments = parser.parse_args()
    if package := missing(("matplotlib",)):
        parser.error(f"{package} is not installed")
    start = time.perf_counter()
    file = arguments.to / "data.json"
    if arguments.redraw and not file.exists():
        parser.error(f"nothing was measured yet: there is no {file}")
    arguments.to.mkdir(exist_ok=True)
    if not arguments.redraw:
        if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > 0.5:
            print(f"the machine is busy (load {load:.1f}): times will be too long", file=sys.stderr)
        file.write_text(json.dumps(measured(arguments.quick)) + "\n")
    data = json.loads(file.read_text())
    text = tables(data)
    (arguments.to / "tables.md").write_text(text)
    print(text)
    for name, draw in PICTURES.items():
        draw(data).savefig(arguments.to / f"{name}.png", dpi=DPI)
    print(f"{time.perf_counter() - start:.0f} s; pictures and tables are in {arguments.to}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

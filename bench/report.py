"""Measure and write the tables and the pictures of the README.

    python bench/report.py             # takes about ten minutes on an idle machine
    python bench/report.py --redraw    # reuse the last measurement
    python bench/report.py --smoke --to FOLDER

The tables, the pictures and the measured data are written to bench/figures/, and the short tables to the README; with
--to, all are written to that folder. Results are verified and timed as in compare.py, chapter.py, paths.py and
instruction_sets.py. matplotlib and SciPy are required. Peers that are not installed are left out."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import chapter
import instruction_sets
import numpy as np
import paths
from cases import CASES, Case, Problem
from compare import (
    LEGEND,
    LIMITS,
    MARKED,
    ORDER,
    TABLES,
    measure,
    number_text,
    of_table,
    row,
    rows_of,
    table,
    times_text,
)
from peers import OWN, SIDES, THREADS, describe, environment, fastce_runs, left_out, limit_runs, missing, runs

FIGURES = Path(__file__).parent / "figures"
README = Path(__file__).parents[1] / "README.md"
# The cases of the README, whose medians are shown too.
SUMMARY = ["32 x 10", "65536 x 10", "4096 x 1000", "4096 x 1000 float64", "1024 x 32000", "512 x 128256"]
MANY_CLASSES = SUMMARY[2:]  # 1000 or more
SECONDS = 2.0  # for each case and mode
SWEPT_LOGITS, SWEPT_CLASSES = 2**22, [2**k for k in range(1, 19)]
SCALED = [case for case in CASES if case.name in {"65536 x 10", "4096 x 1000", "4096 x 1000 float64", "1024 x 32000"}]
GAPS, GAP_CLASSES = np.linspace(1, 85, 57, dtype=np.float32), 10
ERROR_SHOWN = 1e-9  # smaller errors, including 0, are drawn here
EPS = float(np.finfo(np.float32).eps)
SMOKE_SWEPT_LOGITS, SMOKE_SHAPE = 2**12, (8, 100)

WIDTH, DPI = 8.0, 130  # in inches; a README is about 800 pixels wide
COLOURS = {
    "fastce": "#000000",
    "NumPy": "#0072b2",
    "PyTorch": "#d55e00",
    "torch.compile": "#56b4e9",
    "JAX": "#009e73",
    "scikit-learn": "#e69f00",
    "Numba": "#cc79a7",
}
MARKERS = {
    "fastce": "o",
    "NumPy": "s",
    "PyTorch": "^",
    "torch.compile": "X",
    "JAX": "D",
    "scikit-learn": "v",
    "Numba": "P",
}
GREY = "#888888"
WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
CURVES = ["NumPy", "PyTorch", "torch.compile", "JAX"]  # beside fastce, by number of classes


# --- measuring --------------------------------------------------------------------------------------------------------


def progress(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


def classes_rows(seconds: float, rounds: int, every: int, logits: int) -> Iterator[dict]:
    """Results by number of classes; the number of logits stays the same. Every call returns a new gradient, in memory
    that the process has used before."""
    curves, limits = {"fastce", *CURVES}, set(LIMITS)
    for classes in [classes for classes in SWEPT_CLASSES if classes <= logits][::every]:
        progress(f"{classes} classes")
        problem = Problem(Case(str(classes), (logits // classes, classes)))
        for gradient, wanted in ((True, curves | limits), (False, {"fastce"} | limits)):
            sides = [
                run
                for run in runs(problem, gradient)
                if run.side in wanted
                and not run.reuses
                and (run.threads in (OWN, THREADS[1]) or run.side == "NumPy" or run.side in limits)
            ]
            yield row(problem.case, gradient, measure(problem, sides, seconds, rounds))


def threads_rows(seconds: float, rounds: int, cases: Iterable[Case]) -> Iterator[dict]:
    """Results of fastce and of the copy with 1, 2, 4, ... and all threads, which write to the same array each time."""
    counts = sorted({2**k for k in range(THREADS[1].bit_length()) if 2**k <= THREADS[1]} | {THREADS[1]})
    for case in cases:
        progress(f"{case.name} with {', '.join(map(str, counts))} threads")
        problem = Problem(case)
        sides = [run for bind in (fastce_runs, limit_runs) for run in bind(problem, True, counts) if run.reuses]
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
            # The Numba loop is ours, and torch.compile compiles what PyTorch computes.
            if name in COLOURS and name not in ("Numba", "torch.compile") and missing(packages) is None:
                run = next(iter(bind(problem, True)))
                run.enter()
                loss, gradient = run.read(run.call())
                pair = (abs(loss - true_loss) / true_loss, abs((gradient[0, 0] - true_gradient) / true_gradient))
                errors.setdefault(name, []).append(tuple(map(float, pair)))
    return {"gaps": GAPS.tolist(), "errors": {"fastce": errors.pop("fastce"), **errors}}


def measured(smoke: bool) -> dict:
    seconds, rounds, every, logits = (0.0, 1, 9, SMOKE_SWEPT_LOGITS) if smoke else (SECONDS, 5, 1, SWEPT_LOGITS)
    cases, scaled, shapes, new_shapes = CASES, SCALED, paths.SHAPES, paths.NEW_ARRAY_SHAPES
    if smoke:
        cases = [case.smoke() for case in CASES if case.name in SUMMARY[1:3] or case.in_place]
        scaled, shapes, new_shapes = cases[:1], [(*SMOKE_SHAPE, "float32")], [(*SMOKE_SHAPE, "float32")]
    data = {
        "environment": environment(),
        "described": "\n".join(filter(None, (describe(), left_out()))),
        "threads": THREADS[1],
        "swept": logits,
        "rows": [data for case in cases for data in rows_of(case, (True, False), seconds, rounds)],
        "by_classes": list(classes_rows(seconds / 4, rounds, every, logits)),
        "by_threads": list(threads_rows(seconds, rounds, scaled)),
        "by_isa": instruction_sets.rows(cases, seconds, 1 if smoke else instruction_sets.TURNS),
        "accuracy": accuracy(),
    }
    progress("other paths")
    data["paths"] = paths.table(paths.calls, shapes, 1, 15 * seconds, rounds)
    data["new_arrays"] = paths.table(paths.new_array_calls, new_shapes, 0, 3 * seconds, rounds)
    progress("other functions")
    data["others"] = chapter.table(*(SMOKE_SHAPE if smoke else (4096, 1000)), seconds)
    return data


# --- reading ----------------------------------------------------------------------------------------------------------


def seconds_of(data: dict, side: str, threads: int, key: str = "seconds") -> float | None:
    """The time with that number of threads, or the only time of NumPy and of implementations that choose the number."""
    found = {s["threads"]: s[key] for s in data["sides"] if s["side"] == side}
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


def many_classes_in_copies(data: dict, reuses: bool) -> list[float]:
    """Times of loss + gradient of the cases with many classes, in copies of the logits."""
    chosen = [r for r in of_table(data["rows"], True, reuses) if r["case"] in MANY_CLASSES]
    copies = [min(s["seconds"] for s in r["sides"] if s["side"] == "copy") for r in chosen]
    return [seconds_of(r, "fastce", data["threads"]) / copy for r, copy in zip(chosen, copies, strict=True)]


# --- tables -----------------------------------------------------------------------------------------------------------


def markdown(header: list[str], lines: Iterable[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *lines])


def summary_table(data: dict) -> str:
    """Best and median times of the cases of the README, with all threads."""
    rows = [r for r in of_table(data["rows"], True, False) if r["case"] in SUMMARY]
    found = {side["side"] for r in rows for side in r["sides"]}
    sides = ["fastce", *(side for side in [*ORDER, "copy"] if side in found)]
    lines = []
    for r in rows:
        scale, name = (1e6, f"{r['case']} (µs a call)") if r["size"] < 1000 else (1e9 / r["size"], r["case"])
        ours = seconds_of(r, "fastce", data["threads"])
        cells = [name]
        for side in sides:
            times = [seconds_of(r, side, data["threads"], key) for key in ("seconds", "median")]
            if side == "copy":
                times = min(([s["seconds"], s["median"]] for s in r["sides"] if s["side"] == side), default=[None])
            if times[0] is None:
                cells.append("–")
                continue
            ratio = f" ({times_text(times[0] / ours)})" if side != "fastce" else ""
            cells.append(" / ".join(number_text(scale * seconds) for seconds in times) + ratio)
        lines.append(cells)
    return markdown(["ns per logit", *sides], lines)


def summary(data: dict) -> str:
    """The table of the README with its legend."""
    threads = data["threads"]
    text = (
        "Loss + gradient of int64 labels; every call returns a new gradient. "
        f"Best / median time with {threads} threads (NumPy: 1); in brackets: slowdown relative to fastce."
    )
    new, given = (many_classes_in_copies(data, reuses) for reuses in (False, True))
    if new:
        text += (
            f" With 1000 classes or more, fastce takes as long as {span(new)} copies of the logits; if gradient and "
            f"copy are written to an array that was used before, as long as {span(given)} copies."
        )
    return f"{text}\n\n{summary_table(data)}\n\n{data['described']}"


def classes_table(data: dict) -> str:
    columns = {side: curve(data, side, True) for side in ("fastce", *CURVES)}
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
    threads = data["threads"]
    parts = [f"# Speed and accuracy\n\n## Summary\n\n{summary(data)}"]
    for title, (gradient, reuses) in TABLES.items():
        chosen = of_table(data["rows"], gradient, reuses)
        legend = f"Best times in ns per logit; {LEGEND}." + f" {MARKED}." * bool(reuses)
        parts += [f"## {title}", legend, table(chosen, reuses)]
        if gradient:
            some = [r for r in chosen if r["case"] in SUMMARY]
            parts += ["Medians of single calls:", table(some, reuses, "median")] if some else []
    parts += [
        f"## By number of classes\n\nns per logit, {data['swept']:,} logits, {threads} threads (NumPy: 1); every call "
        f"returns a new gradient. A copy takes {limit(data, 'copy'):.3f}, logits.max() {limit(data, 'read'):.3f}.",
        classes_table(data),
        "## By number of threads\n\nLoss + gradient, written to the same array; in brackets: speed-up over one thread.",
        threads_table(data),
        f"## By instruction set\n\nLoss + gradient, {THREADS[0]} / {threads} threads; every call returns a new "
        f"gradient. In brackets: speed relative to {next(iter(data['by_isa'][0]['seconds']))}. Each instruction set "
        "has a process of its own, and the processes take turns.",
        instruction_sets.table(data["by_isa"]),
        "## Other paths\n\nMultiples of the time of the plain call, `cross_entropy_with_grad(logits, labels, "
        "out=out)`: best times and, in brackets, medians of single calls. One thread; all write to an `out` that was "
        "used before. `predict` is compared with `logits.argmax(-1)`. A goal is what a path is meant to stay below.",
        data["paths"],
        "## Where the gradient is written\n\nMultiples of the time of the plain call, which writes to an array that "
        f"was used before; {threads} threads. A new array of more than 32 MiB is new memory at each call.",
        data["new_arrays"],
        "## Other functions",
        data["others"],
        f"## Accuracy\n\nRelative error of loss / gradient at the label: float32, {GAP_CLASSES} classes, logits "
        "[gap, 0, 0, ...], label 0",
        accuracy_table(data),
    ]
    return "\n\n".join(parts) + "\n"


def with_tables(readme: str, data: dict) -> str:
    """The README with its two tables replaced. Comments mark where they are."""
    for name, text in (("speed", summary(data)), ("others", data["others"])):
        start, end = f"<!-- report: {name} -->\n", "<!-- report: end -->"
        readme, found = re.subn(f"{start}.*?{end}", lambda _, new=f"{start}{text}\n{end}": new, readme, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"the README has {found} places for the table {name!r}")
    return readme


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
    chosen = of_table(data["rows"], True, False)[::-1]
    ratios: dict[str, dict[int, float]] = {}
    for side in ORDER:
        for i, r in enumerate(chosen):
            if theirs := seconds_of(r, side, threads):
                ratios.setdefault(side, {})[i] = theirs / seconds_of(r, "fastce", threads)
    message = f"NumPy takes {span(ratios['NumPy'].values())} times as long as fastce"
    if peers := [ratio for side, points in ratios.items() if side != "NumPy" for ratio in points.values()]:
        message += f", the others {span(peers)} times"
    figure, axes = canvas(1.6 + 0.27 * len(chosen), message)
    axes.set_title(f"loss + gradient, {threads} threads (NumPy: 1), every call returns a new gradient")
    axes.axvline(1, color="black", linewidth=2.4, label="fastce")
    for side, points in ratios.items():
        style = {"color": COLOURS[side], "marker": MARKERS[side], "markersize": 7, "markeredgecolor": "white"}
        axes.plot(list(points.values()), list(points), linestyle="none", label=side, **style)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.8), high)
    plain_numbers(axes.xaxis, (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100))
    axes.set_xlabel("time relative to fastce")
    axes.set_ylim(-0.6, len(chosen) - 0.4)
    axes.set_yticks(range(len(chosen)), [r["case"] for r in chosen], fontsize=9)
    figure.legend(loc="outside lower center", ncols=7, handletextpad=0.3, columnspacing=1.2)
    return figure


def draw_classes(data: dict):
    """ns per logit against the number of classes, with the time of a copy and of a read."""
    ours, forward = curve(data, "fastce", True), curve(data, "fastce", False)
    copy, read = limit(data, "copy"), limit(data, "read")
    ratios = [ns / copy for classes, ns in ours.items() if classes >= 64]
    message = (
        f"From 64 classes on, loss + gradient takes as long as {span(ratios)} copies" if ratios else "Loss + gradient"
    )
    figure, axes = canvas(4.6, message)
    axes.set_title(
        f"ns per logit, {data['swept']:,} float32 logits, {data['threads']} threads (NumPy: 1), "
        "every call returns a new gradient"
    )
    for side in CURVES:
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
        at = {"xytext": (0, -4), "textcoords": "offset points", "va": "top"}  # below the line, and over the grid
        axes.annotate(said, (min(ours), least), color=colour, fontsize=9, bbox=WHITE, **at)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(min(ours) / 1.2, max(ours) * 1.2)
    axes.set_ylim(bottom=min(copy, read) / 2)  # room for the text
    step = max(1, len(ours) // 9)
    plain_numbers(axes.xaxis, [*list(ours)[:-step:step], max(ours)])
    plain_numbers(axes.yaxis, (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50))
    axes.set_xlabel("classes")
    figure.legend(loc="outside lower center", ncols=6, columnspacing=1.2)
    return figure


def draw_threads(data: dict):
    """Speed-up over one thread, of fastce and of a copy."""
    found = {key: {n: times for n, (_, times) in points.items() if n > 1} for key, points in speedups(data).items()}
    most = data["threads"]
    ours = [points[most] for (_, side), points in found.items() if side == "fastce"]
    figure, axes = canvas(3.8, f"With {most} threads fastce is {span(ours)} times as fast as with one")
    axes.set_title("loss + gradient, written to the same array, and a copy of the logits to the same array")
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
        for bar in drawn:  # inside the bar, where no line is
            middle = bar.get_x() + bar.get_width() / 2
            axes.text(middle, 0.06, f"{bar.get_height():.2f}", color="white", fontsize=9, ha="center", va="bottom")
    axes.axhline(most, color="black", linewidth=0.8, linestyle=":", zorder=0)
    beside = {"xycoords": ("axes fraction", "data"), "xytext": (4, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate("ideal", (1, most), fontsize=9, **beside)
    axes.set_ylim(0, 1.1 * max(most, *(times for points in found.values() for times in points.values())))
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
    parser.add_argument("--smoke", action="store_true", help="few rows and one round, to check that everything runs")
    parser.add_argument("--redraw", action="store_true", help="reuse the last measurement")
    parser.add_argument("--to", type=Path, default=FIGURES, metavar="FOLDER", help="default: %(default)s")
    arguments = parser.parse_args()
    if package := missing(("matplotlib", "scipy")):
        parser.error(f"{package} is not installed")
    if arguments.smoke and arguments.to == FIGURES:
        parser.error("--smoke would replace the figures: give another folder with --to")
    start = time.perf_counter()
    file = arguments.to / "data.json"
    if arguments.redraw and not file.exists():
        parser.error(f"nothing was measured yet: there is no {file}")
    arguments.to.mkdir(exist_ok=True)
    if not arguments.redraw:
        if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > 0.5:
            print(f"the machine is busy (load {load:.1f}): times will be too long", file=sys.stderr)
        file.write_text(json.dumps(measured(arguments.smoke)) + "\n")
    data = json.loads(file.read_text())
    text = tables(data)
    (arguments.to / "tables.md").write_text(text)
    print(text)
    readme = README if arguments.to == FIGURES else arguments.to / README.name
    readme.write_text(with_tables(README.read_text("utf-8"), data), "utf-8")
    for name, draw in PICTURES.items():
        draw(data).savefig(arguments.to / f"{name}.png", dpi=DPI)
    print(f"{time.perf_counter() - start:.0f} s; pictures and tables are in {arguments.to}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

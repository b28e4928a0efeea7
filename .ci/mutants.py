"""Breaks fastce in one place at a time, and checks that the tests notice.

    python .ci/mutants.py                     every mutant, in about 20 minutes on one core
    python .ci/mutants.py --list              what there is
    python .ci/mutants.py quota affinity      these mutants
    python .ci/mutants.py --python .venv/bin/python --jobs 2

A mutant is one change of the source that makes it wrong: a sign, a bound, the end of a row, one instruction set,
threads, memory that is used twice. It is built in a copy of the checkout, without much optimisation, and the tests that
are named beside it must fail. Before, all of these tests must pass in a copy that was not changed. The exit status is 1
if a mutant survived. A mutant is skipped if all its tests are skipped here, for lack of a library, say.

The interpreter must have what building and testing fastce needs, and for some mutants the libraries of
fastce.integrations. An installed fastce is not used."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from matrix import CHECKOUT, copy_checkout, environment

TIME_LIMIT = 600  # seconds for each command; the longest takes about one minute


@dataclass(frozen=True)
class Mutant:
    """In `file`, the only `old` becomes `new`. `tests` are pytest's names of the tests that notice."""

    name: str
    about: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = [
    # --- Primitives in C ---
    Mutant(
        "avx2-maximum",
        "On AVX2, the maximum of float64 keeps NaN instead of leaving it out",
        "fastce/_simd/avx2.h",
        "#define MAX(x, m) MM(max)(x, m)",
        "#if CE_F32\n#define MAX(x, m) MM(max)(x, m)\n#else\n#define MAX(x, m) MM(max)(m, x)\n#endif",
        ("tests/numbers/test_special_values.py::test_every_instruction_set",),
    ),
    Mutant(
        "baseline-flush",
        "On SSE2, NaN is flushed to 0 as if it were small",
        "fastce/_simd/sse2.h",
        "MM(cmpnlt)(MM(andnot)(sign, v), below)",
        "MM(cmpge)(MM(andnot)(sign, v), below)",
        ("tests/numbers/test_subnormals.py::test_every_instruction_set",),
    ),
    Mutant(
        "maximum-at-the-end",
        "The last vector of a row is left out of its maximum",
        "fastce/_simd/rows.h",
        "            m1 = MAX(LOAD(x + n - LANES), m1);\n",
        "",
        ("tests/numbers/test_numerics.py::test_random_rows_and_every_kind_of_target",),
    ),
    Mutant(
        "label-in-streamed-head",
        "The gradient of a label before the first whole cache line of a streamed row is not replaced",
        "fastce/_simd/rows.h",
        "if (exact_class >= 0 && (in_head || exact_class >= i))",
        "if (exact_class >= i)",
        (
            "tests/numbers/test_large_arrays.py::test_a_large_array_has_the_results_of_its_parts"
            "[cross_entropy_with_grad-index-C-plain]",
        ),
    ),
    Mutant(
        "logits-overwritten",
        "The last vector of a row is loaded after the gradient was stored in place of the logits",
        "fastce/_simd/rows.h",
        "const VEC d = FN(cooled)(last - shift, inverse), v = FN(exp)(d);",
        "const VEC d = FN(cooled)(LOAD(x + n - LANES) - shift, inverse), v = FN(exp)(d);",
        ("tests/calls/test_shared_memory.py::test_in_place",),
    ),
    Mutant(
        "sign-of-z-loss",
        "The gradient of the z-loss has the wrong sign where the label is nearly certain",
        "fastce/_simd/states.h",
        "const double grad_if_p_near_1 = (rest[r] - lost) + gained;",
        "const double grad_if_p_near_1 = (rest[r] - lost) - gained;",
        ("tests/numbers/test_numerics.py::test_confident_rows_with_options",),
    ),
    Mutant(
        "label-is-number-of-classes",
        "A label may be the number of classes",
        "fastce/_simd/states.h",
        "wrong |= counts & ((label < 0) | (label >= classes));",
        "wrong |= counts & ((label < 0) | (label > classes));",
        ("tests/calls/test_errors_of_arrays.py::test_wrong_array_is_named_and_nothing_is_written",),
    ),
    Mutant(
        "slope-of-softcap",
        "The derivative of the softcap is 1 + tanh(y)^2",
        "fastce/_simd/elements.h",
        "derivative = FMA(zero - t, t, one);",
        "derivative = FMA(t, t, one);",
        ("tests/numbers/test_softcap.py::test_derivative_does_not_cancel",),
    ),
    Mutant(
        "softcap-at-the-end",
        "The softcap reads one number less at the end of a block",
        "fastce/_simd/elements.h",
        "const VEC s = FN(load_upto)(x + i, n - i), y",
        "const VEC s = FN(load_upto)(x + i, n - i - 1), y",
        ("tests/numbers/test_softcap.py::test_capped_logits_are_within_two_eps",),
    ),
    Mutant(
        "product-at-the-end",
        "The last element of a row is left out of a product with a Jacobian",
        "fastce/_simd/jacobians.h",
        "if (i < n) { /* The last vector",
        "if (i + 1 < n) { /* The last vector",
        ("tests/numbers/test_properties.py::test_jacobians",),
    ),
    # --- Threads ---
    Mutant(
        "affinity",
        "The automatic number of threads ignores which processors the process may use",
        "fastce/_threads.h",
        "if (cpus > 0 && cpus < threads)",
        "if (0)",
        ("tests/process/test_threads.py::test_automatic_choice_obeys_affinity_at_every_call",),
    ),
    Mutant(
        "quota",
        "The automatic number of threads ignores the control group's quota",
        "fastce/_threads.h",
        "if (ce_quota > 0 && ce_quota < threads)",
        "if (0)",
        ("tests/process/test_threads.py::test_automatic_choice_obeys_the_quota_of_the_control_group",),
    ),
    Mutant(
        "threads-in-a-forked-child",
        "A forked child uses one thread only if it was not told how many",
        "fastce/_plan.pxd",
        "    if ce_must_be_serial():\n",
        "    if ce_must_be_serial() and request.num_threads <= 0:\n",
        ("tests/process/test_forks.py::test_forked_child_of_a_process_that_used_threads_computes_the_same",),
    ),
    Mutant(
        "units-by-threads",
        "How losses are grouped depends on the number of threads",
        "fastce/_plan.pxd",
        "p.group, p.unit = GROUP, max(UNIT_LOGITS/classes, 1)",
        "p.group, p.unit = GROUP, max(UNIT_LOGITS/classes/p.threads, 1)",
        ("tests/process/test_numbers_of_threads.py::test_results_do_not_depend_on_the_number_of_threads",),
    ),
    Mutant(
        "shared-scratch",
        "All threads use the scratch of the first one",
        "fastce/_run.pxd",
        "cdef floating *scratch = <floating *>job.scratch + thread*job.plan.scratch",
        "cdef floating *scratch = <floating *>job.scratch",
        ("tests/process/test_numbers_of_threads.py::test_results_do_not_depend_on_the_number_of_threads",),
    ),
    # --- Cython ---
    Mutant(
        "stats-of-ignored-rows",
        "The statistics of ignored rows are 0",
        "fastce/_rows.pxd",
        "if job.request.row_max == NULL and job.request.tail == NULL:    # its",
        "if True:    # its",
        ("tests/calls/test_stats_and_labels.py::test_stats_of_ignored_rows_are_those_of_their_logits",),
    ),
    Mutant(
        "spare-lanes-of-a-tile",
        "What gradients of a tile are made of is not zeroed in the lanes that have no row",
        "fastce/_tiles.pxd",
        "    f.narrow(src, tile.count, dst)\n    for p in range(tile.count, tile.width):",
        "    f.narrow(src, tile.count, dst)\n    for p in range(0):",
        ("tests/process/test_side_effects.py::test_results_do_not_depend_on_what_memory_held_before",),
    ),
    Mutant(
        "aliased-labels",
        "Only the logits are checked for memory that they share with out",
        "fastce/_arguments.pxd",
        "    for k in range(OUT):\n        if <PyObject *>a.view[k].obj",
        "    for k in range(TARGETS):\n        if <PyObject *>a.view[k].obj",
        ("tests/calls/test_shared_memory.py::test_out_shares_memory_with_the_labels",),
    ),
    Mutant(
        "entropy-of-blocks",
        "The sum of a long row's first blocks is moved to a larger maximum by half the gap",
        "fastce/_entropy.pxd",
        "set_sum(&sums.tail, total*root*root)",
        "set_sum(&sums.tail, total*root)",
        ("tests/numbers/test_entropy.py::test_temperatures_and_options",),
    ),
    Mutant(
        "overlapping-scratch",
        "The slopes of the softcap of several rows are read where other rows begin",
        "fastce/_divergence.pxd",
        "scratch + BLOCK + p*whole_vectors(n), n, row)",
        "scratch + BLOCK + p*n, n, row)",
        ("tests/numbers/test_softcap.py::test_others_in_place",),
    ),
    Mutant(
        "forgotten-stats",
        "The statistics that were asked for with a gradient are not returned",
        "fastce/_kernels.pyx",
        "return (value, result, self.stats) if a.return_stats else (value, result)",
        "return (value, result)",
        ("tests/calls/test_stats_and_labels.py::test_stats_with_the_gradient_are_those_of_the_forward",),
    ),
    # --- Python ---
    Mutant(
        "layer-forgets-options",
        "The layer's backward forgets the options of the call",
        "fastce/_cross_entropy.py",
        "        self._saved = logits, targets, options\n",
        "        self._saved = logits, targets, self._options\n",
        ("tests/calls/test_layer.py::test_options_of_a_call_replace_those_of_the_layer_for_that_call",),
    ),
    Mutant(
        "layer-reuses-any-array",
        "The layer writes a gradient to its array whatever the logits' shape and dtype",
        "fastce/_cross_entropy.py",
        "out = kept if layout == kept_layout else None",
        "out = kept",
        ("tests/calls/test_layer.py::test_another_shape_dtype_or_order_gets_a_new_array",),
    ),
    Mutant(
        "quota-rounded-down",
        "The control group's quota of processors is rounded down",
        "fastce/_config.py",
        "math.ceil(int(quota) / int(period))",
        "int(quota) // int(period)",
        ("tests/process/test_threads.py::test_automatic_choice_obeys_the_quota_of_the_control_group",),
    ),
    Mutant(
        "input-overwritten",
        "With several axes, the caller's array serves as scratch",
        "fastce/_axes.py",
        "out=folded[-1] if of_its_own else None",
        "out=folded[-1]",
        ("tests/calls/test_scipy_habits.py::test_out",),
    ),
    Mutant(
        "sign-of-hessian-of-softcap",
        "The curvature of the softcap has the wrong sign in the diagonal of the Hessian",
        "fastce/_curvature.py",
        "hess = _sum(_times(_times(hess, s), s), _times(_times(grad, t), -2 / softcap))",
        "hess = _sum(_times(_times(hess, s), s), _times(_times(grad, t), 2 / softcap))",
        ("tests/numbers/test_softcap.py::test_gradients_are_slopes",),
    ),
    Mutant(
        "sign-of-product-of-softcap",
        "The curvature of the softcap has the wrong sign in products with the Hessian",
        "fastce/_curvature.py",
        "of_slope = _times(_times(_times(grad, t), -2 / softcap), v)",
        "of_slope = _times(_times(_times(grad, t), 2 / softcap), v)",
        ("tests/numbers/test_softcap.py::test_gradients_are_slopes",),
    ),
    Mutant(
        "chunks-end-early",
        "The last row of each chunk but the first is left out",
        "fastce/_linear.py",
        "part = slice(k * self.rows // count, (k + 1) * self.rows // count)",
        "part = slice(k * self.rows // count, (k + 1) * self.rows // count - (k > 0))",
        ("tests/numbers/test_linear.py::test_every_option",),
    ),
    Mutant(
        "chunks-not-added",
        "The gradient of the weight is that of the last chunk",
        "fastce/_linear.py",
        "        self.empty = False\n",
        "",
        ("tests/numbers/test_linear.py::test_every_option",),
    ),
    Mutant(
        "chunks-keep-subnormals",
        "The gradients of chunks keep subnormal numbers, which make matrix products slow",
        "fastce/_linear.py",
        '"subnormals": "flush", "out": logits',
        '"subnormals": "keep", "out": logits',
        ("tests/numbers/test_linear.py::test_subnormal_gradients_are_flushed",),
    ),
    Mutant(
        "temperature-of-merged-blocks",
        "The temperature is forgotten where blocks of classes are merged",
        "fastce/_merging.py",
        "others * np.exp(-gap / temperature)",
        "others * np.exp(-gap)",
        ("tests/numbers/test_merging.py::test_blocks_have_the_loss_and_gradient_of_the_whole_rows",),
    ),
    Mutant(
        "gaps-of-merged-blocks",
        "Sums of gaps are not moved to a larger maximum where blocks of classes are merged",
        "fastce/_merging.py",
        "moved = np.where((mass == 0) | (smaller == -np.inf), 0.0, mass * gap)",
        "moved = np.zeros_like(gap)",
        ("tests/numbers/test_merging.py::test_blocks_have_the_loss_and_gradient_of_the_whole_rows",),
    ),
    Mutant(
        "sign-of-upstream-of-blocks",
        "The upstream gradient of Dask's blocks changes its sign",
        "fastce/integrations/_dask_tasks.py",
        "        upstream = upstream / float(denominator) if denominator > 0 else 0.0",
        "        upstream = -upstream / float(denominator) if denominator > 0 else 0.0",
        ("tests/peers/test_dask.py::test_the_classes_are_on_any_axis_and_targets_in_any_chunks",),
    ),
]


def mutated(mutant: Mutant, text: str) -> str:
    """The text with the mutant's change."""
    if (count := text.count(mutant.old)) != 1:
        raise SystemExit(
            f"{mutant.name} is stale: {mutant.file} contains its old text {count} times, expected once:\n{mutant.old}"
        )
    return text.replace(mutant.old, mutant.new)


def needs_build(mutant: Mutant) -> bool:
    return not mutant.file.endswith(".py")


class Failed(Exception):
    """What could not be done, with the end of its output."""


def call(*command: object, cwd: Path, **variables: object) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIME_LIMIT,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"no end after {TIME_LIMIT} s: {' '.join(map(str, command))}") from None


@dataclass(frozen=True)
class Outcome:
    """Of tests: the number that pytest ended with, its output, and names of test cases by what became of them."""

    status: int
    output: str
    cases: dict[str, list[str]]


class Tree:
    """A copy of the checkout, with an interpreter that imports fastce from there. Tests that start another interpreter
    get the same one, whatever environment they pass on."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        self.python = folder / ".venv" / "bin" / "python"
        self.make_interpreter(python)

    def make_interpreter(self, python: str) -> None:
        script = "import json, site; print(json.dumps(site.getsitepackages()))"
        found = call(python, "-I", "-c", script, cwd=self.folder)
        made = call(python, "-m", "venv", "--clear", "--without-pip", self.folder / ".venv", cwd=self.folder)
        if found.returncode or made.returncode:
            raise Failed(f"{python}: no virtual environment\n{found.stdout}{made.stdout}")
        (packages,) = self.folder.glob(".venv/lib/python*/site-packages")
        lines = [f"import site; site.addsitedir({path!r})" for path in json.loads(found.stdout)]
        (packages / "fastce.pth").write_text("\n".join([str(self.folder), *lines]) + "\n")

    def build(self) -> None:
        """Only what is older than its sources. No test depends on the speed, so the compiler optimises less."""
        compiler = self.folder / ".venv" / "quick-cc"
        compiler.write_text('#!/bin/sh\nexec cc "$@" -O1 -g0\n')
        compiler.chmod(0o755)
        built = call(self.python, "setup.py", "-q", "build_ext", "--inplace", cwd=self.folder, CC=compiler)
        if built.returncode:
            raise Failed(f"the build failed\n{built.stdout[-3000:]}")

    def test(self, tests: Iterable[str], *options: str) -> Outcome:
        report = self.folder / "report.xml"
        command = ["-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *options, *tests]
        done = call(self.python, *command, cwd=self.folder)
        cases: dict[str, list[str]] = {"failure": [], "error": [], "skipped": [], "passed": []}
        for case in xml.etree.ElementTree.parse(report).iter("testcase") if report.is_file() else ():
            became = next((child.tag for child in case if child.tag in cases), "passed")
            cases[became].append(f"{case.get('classname')}.{case.get('name')}")
        return Outcome(done.returncode, done.stdout, cases)


def is_of(case: str, test: str) -> bool:
    """Whether a test case of the report belongs to a test that pytest was given."""
    file, *names = test.split("::")
    name = ".".join([file.removesuffix(".py").replace("/", "."), *names])
    return case == name or case.startswith((f"{name}[", f"{name}."))


def check_unchanged(tree: Tree, mutants: list[Mutant]) -> dict[str, str]:
    """Build the tree and run the tests of all mutants. Return the reasons why some mutants cannot be judged here."""
    tree.build()
    outcome = tree.test(sorted({test for mutant in mutants for test in mutant.tests}))
    if outcome.status != 0:
        raise Failed(f"tests fail without any mutant\n{outcome.output[-5000:]}")
    ran = {mutant.name: [any(is_of(c, t) for c in outcome.cases["passed"]) for t in mutant.tests] for mutant in mutants}
    return {name: "its tests are skipped here" for name, passed in ran.items() if not any(passed)}


def judge(mutant: Mutant, unchanged: Tree, python: str) -> tuple[str, str]:
    """Whether the mutant was killed or survived, and by which test, or why."""
    folder = unchanged.folder.parent / mutant.name
    shutil.copytree(unchanged.folder, folder, ignore=shutil.ignore_patterns(".venv", "report.xml"))
    try:
        tree = Tree(folder, python)
        path = folder / mutant.file
        path.write_text(mutated(mutant, path.read_text(encoding="utf-8")), encoding="utf-8")
        if needs_build(mutant):
            tree.build()
        outcome = tree.test(mutant.tests, "-x")
    except Failed as failed:
        return "survived", str(failed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if outcome.status == 1 and outcome.cases["failure"] and not outcome.cases["error"]:
        return "killed", outcome.cases["failure"][0]
    if outcome.status == 0:
        return "survived", "the tests pass"
    return "survived", f"pytest ended with {outcome.status}\n{outcome.output[-2000:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="MUTANT", help="default: all of them")
    parser.add_argument("--list", action="store_true", help="print the mutants and what notices them")
    parser.add_argument("--jobs", "-j", type=int, default=1, metavar="N", help="mutants at a time")
    parser.add_argument("--python", default=sys.executable, help="the interpreter (default: this one)")
    arguments = parser.parse_args()
    by_name = {mutant.name: mutant for mutant in MUTANTS}
    if unknown := sorted(set(arguments.names) - set(by_name)):
        parser.error(f"no mutant {', '.join(unknown)}; --list shows those that there are")
    chosen = [by_name[name] for name in arguments.names or by_name]
    if arguments.list:
        for mutant in chosen:
            print(f"{mutant.name}: {mutant.about} ({mutant.file})", *mutant.tests, sep="\n    ")
        return 0
    for mutant in chosen:
        mutated(mutant, (CHECKOUT / mutant.file).read_text(encoding="utf-8"))
    if (found := shutil.which(arguments.python)) is None:
        parser.error(f"there is no {arguments.python}")
    python = str(Path(found).absolute())

    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fastce-mutants-") as work:
        folder = copy_checkout(Path(work, "unchanged"))
        try:
            unchanged = Tree(folder, python)
            skipped = check_unchanged(unchanged, chosen)
        except Failed as failed:
            print(failed)
            return 1
        print(f"without a mutant the tests pass ({time.monotonic() - start:.0f} s)", flush=True)

        def row(mutant: Mutant) -> tuple[str, str]:
            begin = time.monotonic()
            what, by = ("skipped", skipped[mutant.name]) if mutant.name in skipped else judge(mutant, unchanged, python)
            print(f"{mutant.name:28} {what:8} {time.monotonic() - begin:5.0f} s  {by}", flush=True)
            return what, by

        with ThreadPoolExecutor(arguments.jobs) as pool:
            results = list(pool.map(row, chosen))
    counts = {kind: sum(what == kind for what, _ in results) for kind in ("killed", "survived", "skipped")}
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()), f"({time.monotonic() - start:.0f} s)")
    return 1 if counts["survived"] else 0


if __name__ == "__main__":
    sys.exit(main())

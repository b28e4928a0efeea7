"""Evaluate a language model from a file of logits that is larger than what is held in memory.

    python bench/evaluate_lm.py [--rows 8192] [--memory 32] [--temperature 1.0]
    python bench/evaluate_lm.py --logits logits.npy --labels labels.npy

The files are NumPy's: logits of shape (rows, classes), and one class index for each row. Without them, they are made in
a temporary folder: the logits of a bigram model of the source of Python's standard library, with 12,000 tokens. Half of
the text counts how often a token follows another, and the model predicts the other half.

The file of logits is mapped into memory, one chunk of rows after the other. `fastce.evaluate` reads each chunk once,
and the evaluations of the chunks are added. Only NumPy is required."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from train_lm import VOCABULARY, read_tokens

import fastce

BIGRAMS = 0.8  # how much of the probability is that of bigrams; the rest is the frequency of the token
BAR = 30


def chunks(rows: int, at_a_time: int) -> Iterator[slice]:
    """With a progress bar."""
    start = time.perf_counter()
    for first in range(0, rows, at_a_time):
        yield slice(first, min(first + at_a_time, rows))
        done = min(first + at_a_time, rows)
        full, seconds = BAR * done // rows, time.perf_counter() - start
        bar = "#" * full + "." * (BAR - full)
        print(f"\r[{bar}] {100 * done // rows:3}%  {done / seconds:,.0f} rows/s ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def bigram_logits(tokens: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The logits for the token after each of some tokens: logarithms of probabilities that sum to 1."""
    frequency = np.log((np.bincount(tokens, minlength=VOCABULARY) + 0.1) / (len(tokens) + 0.1 * VOCABULARY))
    pairs, counts = np.unique(tokens[:-1].astype(np.int64) * VOCABULARY + tokens[1:], return_counts=True)
    first, second = np.divmod(pairs, VOCABULARY)
    share = counts / np.bincount(first, counts, VOCABULARY)[first]
    starts = np.searchsorted(first, np.arange(VOCABULARY + 1))

    def logits(before: np.ndarray) -> np.ndarray:
        rows = np.tile((frequency + np.log(1 - BIGRAMS)).astype(np.float32), (len(before), 1))
        for row, token in zip(rows, before, strict=True):
            of_token = slice(starts[token], starts[token + 1])
            at = second[of_token]
            row[at] = np.logaddexp(row[at], np.log(BIGRAMS * share[of_token]))
        return rows

    return logits


def make_files(folder: Path, rows: int, at_a_time: int) -> tuple[Path, Path]:
    tokens = read_tokens()
    half = len(tokens) // 2
    rows = min(rows, half - 1)
    logits_of, tested = bigram_logits(tokens[:half]), tokens[half : half + rows + 1]
    logits, labels = folder / "logits.npy", folder / "labels.npy"
    np.save(labels, tested[1:])
    np.lib.format.open_memmap(logits, "w+", np.float32, (rows, VOCABULARY))
    print(f"Writing the logits of {rows:,} tokens to {logits}", file=sys.stderr)
    for part in chunks(rows, at_a_time):
        np.load(logits, mmap_mode="r+")[part] = logits_of(tested[:-1][part])
    return logits, labels


def evaluate_file(logits: Path, labels: Path, at_a_time: int, temperature: float) -> fastce.Evaluation:
    """Each chunk is mapped anew, so that the pages of the one before can be released."""
    targets, rows = np.load(labels), len(np.load(logits, mmap_mode="r"))
    parts = (
        fastce.evaluate(np.load(logits, mmap_mode="r")[part], targets[part], temperature=temperature)
        for part in chunks(rows, at_a_time)
    )
    return sum(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logits", type=Path, help="an .npy file of shape (rows, classes)")
    parser.add_argument("--labels", type=Path, help="an .npy file of shape (rows,)")
    parser.add_argument("--rows", type=int, default=8192, help="of the logits that are made (default %(default)s)")
    parser.add_argument("--memory", type=float, default=32, help="MiB of logits at a time (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="the logits are divided by it")
    arguments = parser.parse_args()
    if (arguments.logits is None) != (arguments.labels is None):
        parser.error("--logits and --labels belong together")
    with tempfile.TemporaryDirectory() as folder:
        files = arguments.logits, arguments.labels
        if arguments.logits is None:
            files = make_files(Path(folder), arguments.rows, max(int(arguments.memory * 2**20) // (VOCABULARY * 4), 1))
        logits = np.load(files[0], mmap_mode="r")
        at_a_time = max(int(arguments.memory * 2**20) // (logits.shape[1] * logits.itemsize), 1)
        print(f"Evaluating {logits.nbytes / 2**20:,.0f} MiB, {at_a_time} rows at a time", file=sys.stderr)
        start = time.perf_counter()
        result = evaluate_file(*files, at_a_time, arguments.temperature)
        seconds = time.perf_counter() - start
        size = logits.nbytes
        del logits  # Windows deletes no mapped file
    print(f"rows               {result.rows:,} of {size / 2**20 / result.rows * 2**10:,.1f} KiB")
    print(f"perplexity         {result.perplexity:.4g} (loss {result.loss:.4f})")
    print("accuracy           " + ", ".join(f"{100 * share:.1f}% in the top {k}" for k, share in result.top_k.items()))
    print(f"confidence         {100 * result.confidence:.1f}%, entropy {result.entropy:.3f}")
    print(f"calibration error  {100 * result.calibration_error:.2f}%")
    print(f"speed              {size / seconds / 1e9:.2f} GB/s")


if __name__ == "__main__":
    main()

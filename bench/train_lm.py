"""Train a small language model in plain NumPy, with the loss of fastce.

    python bench/train_lm.py [--steps 200] [--seed 0]

The text is the source of Python's standard library. The model predicts a token, one of 12,000, from the three tokens
before it. It has embeddings, a tanh layer and a softmax over the vocabulary, as in Bengio et al. (2003), "A neural
probabilistic language model". A second model starts from the same weights and is trained with the NumPy reference of
the loss, and a third one with `fastce.linear_cross_entropy_with_grad`, for which the logits never exist as a whole. The
times show the share of the loss in a training step, and the loss curves show that all models learn the same. The exit
status is 1 if the curves differ or if the model has not learnt more than the frequencies of the tokens.
Only NumPy is required."""

from __future__ import annotations

import argparse
import re
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path

import numpy as np

import fastce
from fastce import reference

VOCABULARY = 12_000  # the most frequent tokens, and one number for all others
CONTEXT = 3
EMBEDDING, HIDDEN = 32, 64
BATCH = 1024
LEARNING_RATE, DECAY_1, DECAY_2, TINY = 1e-2, 0.9, 0.99, 1e-8
LAST = 20  # the final loss is the mean over so many steps
CHUNK_BYTES = 12 * 2**20  # of the logits that the third model holds at a time
# The losses agree up to the rounding of float32. These small differences grow with the number of steps.
CURVES_AGREE = 1e-4


def read_tokens() -> np.ndarray:
    """The modules of the standard library as one array of token numbers. A token is a word or a punctuation mark."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    words = re.findall(r"\w+|[^\w\s]", "\n".join(file.read_text("utf-8", errors="replace") for file in files))
    numbers = {word: number for number, (word, _) in enumerate(Counter(words).most_common(VOCABULARY - 1))}
    return np.array([numbers.get(word, VOCABULARY - 1) for word in words])


def entropy(tokens: np.ndarray) -> float:
    """The loss of a model that knows the frequencies of the tokens but ignores the context."""
    share = np.bincount(tokens) / len(tokens)
    return float(-(share[share > 0] * np.log(share[share > 0])).sum())


class Adam:
    """Kingma and Ba (2015)."""

    def __init__(self, parameters: list[np.ndarray]):
        self.parameters = parameters
        self.means = [np.zeros_like(p) for p in parameters]
        self.squares = [np.zeros_like(p) for p in parameters]
        self.steps = 0

    def step(self, gradients: list[np.ndarray]) -> None:
        self.steps += 1
        rate = LEARNING_RATE * np.sqrt(1 - DECAY_2**self.steps) / (1 - DECAY_1**self.steps)
        for p, g, mean, square in zip(self.parameters, gradients, self.means, self.squares, strict=True):
            mean += (1 - DECAY_1) * (g - mean)
            square += (1 - DECAY_2) * (g * g - square)
            p -= np.float32(rate) * mean / (np.sqrt(square) + np.float32(TINY))


class Model:
    """The model, with its forward pass, backward pass and update.

    `loss_with_grad` returns the loss and its gradient with respect to the logits. The gradient overwrites the logits.
    """

    def __init__(self, loss_with_grad, seed: int):
        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[0]))

        rng = np.random.default_rng(seed)
        self.loss_with_grad = loss_with_grad
        self.embedding = rng.standard_normal((VOCABULARY, EMBEDDING), dtype=np.float32)
        self.inner = normal(CONTEXT * EMBEDDING, HIDDEN)
        self.outer = normal(HIDDEN, VOCABULARY)
        self.adam = Adam([self.embedding, self.inner, self.outer])
        self.logits: np.ndarray | None = None
        self.seconds, self.seconds_in_loss = [], []

    def through_logits(self, hidden: np.ndarray, following: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """The loss, and its gradients with respect to the hidden states and `outer`."""
        if self.logits is None:
            self.logits = np.empty((BATCH, VOCABULARY), np.float32)
        logits = np.matmul(hidden, self.outer, out=self.logits)
        start = time.perf_counter()
        loss, gradient = self.loss_with_grad(logits, following, out=logits)
        self.seconds_in_loss.append(time.perf_counter() - start)
        return loss, gradient @ self.outer.T, hidden.T @ gradient

    def train_batch(self, context: np.ndarray, following: np.ndarray) -> float:
        start = time.perf_counter()

        x = self.embedding[context].reshape(len(context), -1)
        hidden = np.tanh(x @ self.inner)
        hidden[:, 0] = 1  # a constant unit, whose row of `outer` is the bias
        loss, d_hidden, d_outer = self.through_logits(hidden, following)
        d_hidden = d_hidden * (1 - hidden * hidden)  # 0 for the constant unit
        d_inner = x.T @ d_hidden
        d_x = d_hidden @ self.inner.T
        d_embedding = np.zeros_like(self.embedding)
        np.add.at(d_embedding, context, d_x.reshape(*context.shape, EMBEDDING))
        self.adam.step([d_embedding, d_inner, d_outer])

        self.seconds.append(time.perf_counter() - start)
        return float(loss)


class ModelWithoutLogits(Model):
    """The same, with the loss of the last layer's input and weight. Their products are a part of the loss here."""

    def through_logits(self, hidden: np.ndarray, following: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        loss = self.loss_with_grad(hidden, self.outer.T, following, chunk_bytes=CHUNK_BYTES)
        grads = self.loss_with_grad.backward()
        return loss, grads.hidden, grads.weight.T


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    tokens = read_tokens()
    frequencies_alone = entropy(tokens)
    rng = np.random.default_rng(arguments.seed)
    print(f"{len(tokens):,} tokens of Python {sys.version.split()[0]}'s standard library, vocabulary {VOCABULARY:,}")
    config = fastce.show_config(mode="dicts")
    print(f"logits of a step: {BATCH} x {VOCABULARY}, {BATCH * VOCABULARY * 4 / 2**20:.0f} MiB of float32")
    print(f"fastce: kernels for {config['isa']}, {config['threads']} threads")

    mine = Model(fastce.cross_entropy_with_grad, arguments.seed)
    theirs = Model(reference.cross_entropy_with_grad, arguments.seed)
    without = ModelWithoutLogits(fastce.LinearCrossEntropyLoss(), arguments.seed)
    models = mine, theirs, without
    curves = []
    print("\n step   loss with fastce   loss with NumPy   a step with fastce   with NumPy   without logits")
    for step in range(1, arguments.steps + 1):
        at = rng.integers(CONTEXT, len(tokens), BATCH)
        context, following = tokens[at[:, None] - np.arange(CONTEXT, 0, -1)], tokens[at]
        # The models take turns, so that a slow moment of the machine affects all.
        curves.append([model.train_batch(context, following) for model in models])
        if step == 1 or step % 10 == 0:
            times = [f"{model.seconds[-1] * 1e3:.1f} ms" for model in models]
            losses = f"{step:5}{curves[-1][0]:19.5f}{curves[-1][1]:18.5f}"
            print(f"{losses}{times[0]:>21}{times[1]:>13}{times[2]:>17}", flush=True)

    final = float(np.mean(curves[-LAST:], axis=0)[0])
    apart = float(np.ptp(curves, axis=1).max())
    print(f"\nloss                {curves[0][0]:.3f} at the start, {final:.3f} at the end")
    print(f"                    {frequencies_alone:.3f} from the frequencies of the tokens")
    print(f"loss curves         differ by at most {apart:.1e}")
    medians = []
    for name, model in (("NumPy", theirs), ("fastce", mine)):
        whole, loss = np.median(model.seconds) * 1e3, np.median(model.seconds_in_loss) * 1e3
        medians.append((whole, loss))
        print(
            f"{'with ' + name:20}{whole:.1f} ms per step (median), {loss:.1f} ms of it in the loss: {loss / whole:.0%}"
        )
    whole, loss = np.divide(*medians)
    print(f"speed-up            {loss:.1f}x of the loss, {whole:.2f}x of the step")
    print(f"without logits      {np.median(without.seconds) * 1e3:.1f} ms per step (median)")
    print(f"memory for logits   {BATCH * VOCABULARY * 4 / 2**20:.0f} MiB, without logits {CHUNK_BYTES / 2**20:.0f} MiB")

    failures = []
    if not apart <= CURVES_AGREE:
        failures.append(f"the loss curves differ by more than {CURVES_AGREE}")
    if not final < frequencies_alone:
        failures.append("the model has learnt no more than frequencies")
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

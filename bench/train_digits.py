"""Train a small network on handwritten digits in plain NumPy, with the loss of fastce.

    python bench/train_digits.py [--epochs 60] [--seed 0] [--plot curves.png]

The network has 64 inputs, 128 hidden units and 10 outputs. A second network starts from the same weights and is trained
with the NumPy reference of the loss. The times show how much fastce saves, and the loss curves show that both networks
learn the same. The exit status is 1 if less than 95 % of the test digits are recognised or the curves differ."""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

import fastce
from fastce import reference

CLASSES = 10
HIDDEN = 128
BATCH = 64
LEARNING_RATE, MOMENTUM = 0.1, 0.9
TEST_SHARE = 0.25
NEEDED_ACCURACY = 0.95
# Both losses agree up to the rounding of float32. These small differences grow with the number of steps.
CURVES_AGREE = 1e-3


class Dense:
    """y = x @ weights + bias, trained by gradient descent with momentum."""

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator):
        scale = np.float32(np.sqrt(2 / inputs))  # keeps the variance of the activations through a relu
        self.weights = rng.standard_normal((inputs, outputs), dtype=np.float32) * scale
        self.bias = np.zeros(outputs, np.float32)
        self.velocities = [np.zeros_like(self.weights), np.zeros_like(self.bias)]

    def forward(self, x):
        self.x = x
        return x @ self.weights + self.bias

    def backward(self, dy):
        """Store the gradients of the parameters, and return the gradient with respect to x."""
        self.gradients = [self.x.T @ dy, dy.sum(axis=0)]
        return dy @ self.weights.T

    def step(self):
        for parameter, velocity, gradient in zip(
            (self.weights, self.bias), self.velocities, self.gradients, strict=True
        ):
            velocity *= MOMENTUM
            velocity -= LEARNING_RATE * gradient
            parameter += velocity


class Relu:
    def forward(self, x):
        self.positive = x > 0
        return x * self.positive

    def backward(self, dy):
        return dy * self.positive


class Network:
    """Layers and a loss. `loss_with_grad` returns the loss and its gradient with respect to the logits."""

    def __init__(self, loss_with_grad, seed: int):
        rng = np.random.default_rng(seed)
        self.layers = [Dense(64, HIDDEN, rng), Relu(), Dense(HIDDEN, CLASSES, rng)]
        self.loss_with_grad = loss_with_grad
        self.seconds = self.seconds_in_loss = 0.0

    def logits(self, x):
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def train_batch(self, x, labels) -> float:
        logits = self.logits(x)

        start = time.perf_counter()
        loss, gradient = self.loss_with_grad(logits, labels)
        self.seconds_in_loss += time.perf_counter() - start

        for layer in reversed(self.layers):
            gradient = layer.backward(gradient)
        for layer in self.layers:
            if isinstance(layer, Dense):
                layer.step()
        return float(loss)

    def train_epoch(self, x, labels, order) -> float:
        """Train on all digits once, in the given order. Returns the mean loss."""
        start_of_epoch = time.perf_counter()
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        total = sum(self.train_batch(x[batch], labels[batch]) * len(batch) for batch in batches)
        self.seconds += time.perf_counter() - start_of_epoch
        return total / len(order)

    def accuracy(self, x, labels) -> float:
        return float((self.logits(x).argmax(axis=1) == labels).mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="FILE", help="draw both loss curves (needs matplotlib)")
    arguments = parser.parse_args()

    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels / 16).astype(np.float32)
    rng = np.random.default_rng(arguments.seed)
    shuffled = rng.permutation(len(labels))
    test, train = np.split(shuffled, [int(TEST_SHARE * len(labels))])
    print(f"{len(train)} digits for training, {len(test)} for testing; batches of {BATCH}, {arguments.epochs} epochs")

    mine = Network(fastce.cross_entropy_with_grad, arguments.seed)
    theirs = Network(reference.cross_entropy_with_grad, arguments.seed)
    curves = []
    print("epoch   loss with fastce   loss with NumPy   test accuracy")
    for epoch in range(1, arguments.epochs + 1):
        order = rng.permutation(train)
        # The networks take turns, so that a slow moment of the machine affects both. BLAS multiplies such small
        # matrices fastest with one thread.
        with threadpool_limits(1, user_api="blas"):
            curves.append([network.train_epoch(pixels, labels, order) for network in (mine, theirs)])
        if epoch == 1 or epoch % 5 == 0:
            accuracy = mine.accuracy(pixels[test], labels[test])
            print(f"{epoch:5}{curves[-1][0]:19.6f}{curves[-1][1]:18.6f}{accuracy:16.2%}", flush=True)

    accuracy, accuracy_numpy = (net.accuracy(pixels[test], labels[test]) for net in (mine, theirs))
    apart = float(np.abs(np.diff(curves, axis=1)).max())
    steps = arguments.epochs * -(-len(train) // BATCH)
    print(f"\ntest accuracy            {accuracy:.2%} with fastce, {accuracy_numpy:.2%} with NumPy")
    print(f"loss curves              differ by at most {apart:.1e}")
    for name, network in (("fastce", mine), ("NumPy", theirs)):
        seconds = network.seconds_in_loss
        share = f"{seconds:.3f} s of {network.seconds:.2f} s of training, {seconds / steps * 1e6:.1f} µs a batch"
        print(f"time in the {name + ' loss':12} {share}")
    speedup, saved = theirs.seconds_in_loss / mine.seconds_in_loss, theirs.seconds_in_loss - mine.seconds_in_loss
    share = saved / theirs.seconds
    print(f"speed-up of the loss     {speedup:.1f}x, {saved:.3f} s saved ({share:.0%} of the training)")

    if arguments.plot:
        plot(curves, arguments.plot)
    failures = []
    if accuracy < NEEDED_ACCURACY:
        failures.append(f"the test accuracy is less than {NEEDED_ACCURACY:.0%}")
    if not apart <= CURVES_AGREE:
        failures.append(f"the loss curves differ by more than {CURVES_AGREE}")
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


def plot(curves, path: str) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.semilogy(curves, label=["fastce", "NumPy"])
    pyplot.xlabel("epoch")
    pyplot.ylabel("training loss")
    pyplot.legend()
    pyplot.savefig(path)


if __name__ == "__main__":
    sys.exit(main())

"""Softmax regression (multinomial logistic regression) as an objective for `scipy.optimize.minimize(..., jac=True)`.

Needs SciPy no more than its caller does: the objective is a function of one array that returns loss and gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import CrossEntropyLoss, cross_entropy_with_grad

__all__ = ["softmax_regression"]


def softmax_regression(
    features: Any, targets: Any, classes: int, *, intercept: bool = True, l2: float = 0.0, **options: Any
) -> Callable[[Any], tuple[float, Any]]:
    """The objective ``cross_entropy(features @ coef.T + bias, targets) + l2/2 * sum(coef**2)`` and its gradient.

    Parameters
    ----------
    features : array_like, DataFrame or sparse array of shape (rows, columns)
        Real numbers; anything that multiplies a dense float64 matrix by ``@``, itself and its transpose.
    targets : array_like
        Class indices of shape (rows,), or probabilities of shape (rows, classes).
    classes : int
        How many classes there are, >= 1.
    intercept : bool, default True
        Whether each class has a bias, which is not penalised.
    l2 : float, default 0.0
        Factor >= 0 of the penalty. scikit-learn's C corresponds to ``l2 = 1/(C*rows)`` for a mean.
    **options
        Those of `fastce.cross_entropy`, but for axis, return_stats and ``reduction="none"``.

    Returns
    -------
    objective : callable
        ``objective(theta) -> (loss, gradient)``, a float and float64s. Theta and gradient are flat:
        ``theta.reshape(classes, -1)`` has a row for each class, its coefficients and then its bias.

    Raises
    ------
    TypeError, ValueError
        No such option; `features` not of two dimensions; `l2` negative or not finite.
    TypeError, ValueError, IndexError
        When called: as `fastce.cross_entropy`; a theta of another size.

    Notes
    -----
    With residual r, the gradient with respect to the logits, the coefficients' is ``r.T @ features + l2*coef`` and the
    biases' the sum of r over rows: Bishop (2006), "Pattern recognition and machine learning", equation 4.109.

    Examples
    --------
    >>> import numpy as np
    >>> from fastce.integrations.scipy import softmax_regression
    >>> from scipy.optimize import minimize
    >>> x, labels = np.array([[-2.0], [-1.0], [1.0], [2.0]]), np.array([0, 0, 1, 1])
    >>> objective = softmax_regression(x, labels, 2, l2=0.1)
    >>> found = minimize(objective, np.zeros(4), jac=True)
    >>> coef, bias = np.hsplit(found.x.reshape(2, -1), [-1])
    >>> (x @ coef.T + bias.T).argmax(axis=1)
    array([0, 0, 1, 1])
    """
    if hasattr(features, "__array__") or not hasattr(features, "shape"):  # not a sparse array, which has a shape alone
        features = np.asarray(features)
    if len(features.shape) != 2:
        raise ValueError(f"features has shape {features.shape}, expected (rows, columns)")
    if not 0 <= l2 < math.inf:
        raise ValueError(f"l2 is {l2}, expected a finite number >= 0")
    CrossEntropyLoss(**options)  # complains of unknown names
    if "axis" in options:
        raise TypeError("axis is not an option here: the classes are on the last")
    if options.get("reduction") == "none":
        raise ValueError("reduction is 'none', expected 'mean' or 'sum': the objective is one number")
    columns = features.shape[1]

    def objective(theta: Any) -> tuple[float, Any]:
        theta = np.asarray(theta, dtype=np.float64)
        size = classes * (columns + bool(intercept))
        if theta.size != size:
            raise ValueError(
                f"theta has {theta.size} numbers, expected {size}: {classes} classes times {columns} columns"
                f"{' and the intercept' if intercept else ''}"
            )
        theta = theta.reshape(classes, columns + bool(intercept))
        coef = theta[:, :columns]
        logits = np.asarray(features @ coef.T)
        if intercept:
            logits += theta[:, columns]
        loss, residual = cross_entropy_with_grad(logits, targets, **options, out=logits)
        grad = np.empty_like(theta)
        grad[:, :columns] = (features.T @ residual).T
        if intercept:
            grad[:, columns] = residual.sum(axis=0)
        if l2:
            loss = loss + l2 / 2 * np.sum(coef * coef)
            grad[:, :columns] += l2 * coef
        return float(loss), grad.ravel()

    return objective

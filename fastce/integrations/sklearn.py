"""`SoftmaxRegression`: multinomial logistic regression as an estimator of scikit-learn, with the loss of fastce.

Needs scikit-learn 1.7 or later, and SciPy, which scikit-learn needs too.
"""

from __future__ import annotations

import math
import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import minimize
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from .. import cross_entropy_hvp, cross_entropy_with_grad, log_softmax, predict, softmax

__all__ = ["SoftmaxRegression"]

DTYPES = [np.float64, np.float32]
OPTIONS: dict[str, dict[str, Any]] = {
    # The callback decides when to stop; these tolerances only end a search that makes no progress any more.
    "lbfgs": {"method": "L-BFGS-B", "options": {"gtol": 0.0, "ftol": 64 * np.finfo(float).eps, "maxls": 50}},
    "newton-cg": {"method": "Newton-CG", "options": {"xtol": np.finfo(float).eps}},
}
# Whitening is left out if its product X.T @ X takes longer than about 25 evaluations of the objective. A fit has tens
# of evaluations, or hundreds if the features are correlated or of different scales. The product takes rows*length**2
# steps and an evaluation 4*rows*length*classes, where length is the mean number of stored elements of a row. A step of
# SciPy's product of two sparse arrays takes about ten times as long.
LENGTH_FOR_EACH_CLASS, SPARSE_LENGTH_FOR_EACH_CLASS = 100, 10
ROWS_AT_A_TIME = 16384  # of which float64 copies are made for that product


class SoftmaxRegression(ClassifierMixin, BaseEstimator):
    """Multinomial logistic regression with an L2 penalty, as `sklearn.linear_model.LogisticRegression`.

    The objective and its minimum are those of LogisticRegression with the same parameters. From three classes on it is
    the full softmax; two classes have one row of coefficients, those of the second class.

    Parameters
    ----------
    C : float, default 1.0
        Inverse strength > 0 of the penalty; ``np.inf`` for none.
    tol : float, default 1e-4
        The solver stops when no component of the gradient is larger.
    max_iter : int, default 100
        The solver also stops after so many iterations, with a ConvergenceWarning.
    fit_intercept : bool, default True
        Whether each class has an intercept, which is not penalised.
    class_weight : dict, "balanced" or None, default None
        A weight for each label, by which the weights of its samples are multiplied; or such that all classes count the
        same.
    solver : {"lbfgs", "newton-cg"}, default "lbfgs"
        The method of `scipy.optimize.minimize`. "newton-cg" takes fewer iterations, each of which takes longer.
    warm_start : bool, default False
        Whether `fit` starts from the coefficients of the last fit, if that had the same labels and features.
    num_threads : int or None, default None
        The threads of fastce, as in `fastce.cross_entropy`. Those of matrix products are set by the BLAS library.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    coef_ : ndarray of shape (n_classes, n_features), or (1, n_features) for two classes
        In the dtype of X.
    intercept_ : ndarray of shape (n_classes,), or (1,) for two classes
        Zeros without `fit_intercept`.
    n_iter_ : ndarray of shape (1,)
        The number of iterations.
    n_features_in_ : int
        The number of features.
    feature_names_in_ : ndarray of shape (n_features,)
        Their names, if X had any.

    Notes
    -----
    ``sum(w*loss)/sum(w) + sum(coef**2)/(2*C*sum(w))`` is minimised, w the weights of samples and classes.

    float32 and float64 are kept: products with X, the loss of each sample, its gradient and the results are in the
    dtype of X. The sum of the losses, the penalty and the solver are in float64. In float32, gradients have errors of
    about 1e-7 times the scale of X, so that a smaller `tol` may not be reached.

    The solver works in coordinates in which the second derivative for one class, where all coefficients are 0, is the
    identity (L-BFGS converges fast near such functions: Nocedal and Wright (2006), "Numerical optimization", section
    7.2). Features of different scales or that are correlated then do not slow it down, and it takes fewer iterations
    than LogisticRegression. This is left out where the coordinates would take too long to compute: for more than 100
    features for each class (if X is sparse, 10 that are not zero, in the mean), and for fewer elements of X than the
    square of the number of features. The stopping rule is always that of the gradient with respect to coefficients and
    intercepts.

    Examples
    --------
    >>> import numpy as np
    >>> from fastce.integrations.sklearn import SoftmaxRegression
    >>> X, y = np.array([[-2.0], [-1.0], [0.0], [0.5], [2.0], [3.0]]), ["low", "low", "mid", "mid", "top", "top"]
    >>> model = SoftmaxRegression(C=10).fit(X, y)
    >>> model.predict([[-3.0], [4.0]])
    array(['low', 'top'], dtype='<U3')
    >>> model.coef_.shape
    (3, 1)
    """

    coef_: Any
    intercept_: Any

    def __init__(
        self,
        *,
        C: float = 1.0,
        tol: float = 1e-4,
        max_iter: int = 100,
        fit_intercept: bool = True,
        class_weight: Any = None,
        solver: str = "lbfgs",
        warm_start: bool = False,
        num_threads: int | None = None,
    ):
        self.C = C
        self.tol = tol
        self.max_iter = max_iter
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.solver = solver
        self.warm_start = warm_start
        self.num_threads = num_threads

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SoftmaxRegression:
        """Minimise the objective.

        Parameters
        ----------
        X : array_like or sparse array of shape (n_samples, n_features)
            The features. Sparse arrays of other formats are converted to CSR; dtypes other than float32, to float64.
        y : array_like of shape (n_samples,)
            The labels: two of them or more.
        sample_weight : array_like of shape (n_samples,) or None, default None
            A weight >= 0 for each sample.

        Returns
        -------
        self : SoftmaxRegression
            The fitted estimator.

        Raises
        ------
        TypeError, ValueError
            A parameter, X, y or weights that are not as described.

        Warns
        -----
        ConvergenceWarning
            `tol` was not reached.

        Examples
        --------
        >>> import numpy as np
        >>> from fastce.integrations.sklearn import SoftmaxRegression
        >>> model = SoftmaxRegression().fit(np.eye(3), [0, 1, 2], sample_weight=[1, 2, 1])
        >>> model.classes_
        array([0, 1, 2])
        """
        self._check_parameters()
        before = vars(self).get("classes_")
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=DTYPES)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class, {self.classes_[0]!r}; expected two or more classes")
        weights = self._weights(X, y, labels, sample_weight)
        objective = _Objective(X, labels, weights, len(self.classes_), self)
        theta = np.zeros((objective.free, objective.columns))
        if self.warm_start and before is not None and np.array_equal(before, self.classes_):
            if self.coef_.shape[1] == X.shape[1]:
                theta[:, : X.shape[1]] = self.coef_
                theta[:, X.shape[1] :] = self.intercept_[:, None]
        theta, iterations = _minimised(objective, theta, self.solver, self.tol, self.max_iter)
        theta = theta.astype(X.dtype)
        self.coef_ = theta[:, : X.shape[1]].copy()
        self.intercept_ = theta[:, -1].copy() if self.fit_intercept else np.zeros(objective.free, X.dtype)
        self.n_iter_ = np.array([iterations], dtype=np.int32)
        return self

    def decision_function(self, X: Any) -> Any:
        """The logits of each class, or of the second of two.

        Parameters
        ----------
        X : array_like or sparse array of shape (n_samples, n_features)
            The features.

        Returns
        -------
        logits : ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
            For two classes, those of the second where those of the first are 0.

        Examples
        --------
        >>> import numpy as np
        >>> from fastce.integrations.sklearn import SoftmaxRegression
        >>> SoftmaxRegression().fit(np.eye(2), [0, 1]).decision_function([[0.5, 0.5]]).shape
        (1,)
        """
        logits = self._logits(X)
        return logits[:, 1] if len(self.classes_) == 2 else logits

    def predict(self, X: Any) -> Any:
        """The most probable label of each sample.

        Parameters
        ----------
        X : array_like or sparse array of shape (n_samples, n_features)
            The features.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Elements of `classes_`; of equally probable ones, the first.

        Examples
        --------
        >>> import numpy as np
        >>> from fastce.integrations.sklearn import SoftmaxRegression
        >>> SoftmaxRegression().fit(np.eye(2), [3, 5]).predict([[0.0, 2.0]])
        array([5])
        """
        logits = self._logits(X)
        return self.classes_[predict(logits)]

    def predict_proba(self, X: Any) -> Any:
        """The probability of each class.

        Parameters
        ----------
        X : array_like or sparse array of shape (n_samples, n_features)
            The features.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            In the order of `classes_`.

        Examples
        --------
        >>> import numpy as np
        >>> from fastce.integrations.sklearn import SoftmaxRegression
        >>> SoftmaxRegression().fit(np.eye(2), [0, 1]).predict_proba([[0.0, 0.0]])
        array([[0.5, 0.5]])
        """
        logits = self._logits(X)
        return softmax(logits, out=logits, num_threads=self.num_threads)

    def predict_log_proba(self, X: Any) -> Any:
        """The logarithm of the probability of each class.

        Parameters
        ----------
        X : array_like or sparse array of shape (n_samples, n_features)
            The features.

        Returns
        -------
        logarithms : ndarray of shape (n_samples, n_classes)
            They are finite also where the probability is too small for its dtype.

        Examples
        --------
        >>> import numpy as np
        >>> from fastce.integrations.sklearn import SoftmaxRegression
        >>> model = SoftmaxRegression().fit(np.eye(2), [0, 1])
        >>> bool(np.isfinite(model.predict_log_proba([[1e9, 0.0]])).all())
        True
        """
        logits = self._logits(X)
        return log_softmax(logits, out=logits, num_threads=self.num_threads)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _logits(self, X: Any) -> Any:
        """Those of both of two classes: the first's are 0."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=DTYPES, reset=False)
        logits = X @ self.coef_.T + self.intercept_
        return logits if len(self.classes_) > 2 else np.concatenate([np.zeros_like(logits), logits], axis=1)

    def _weights(self, X: Any, y: Any, labels: Any, sample_weight: Any) -> Any:
        """The weights of samples and classes, float64; None if all are 1."""
        if sample_weight is not None:
            weights = check_array(sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight")
            if weights.shape != (X.shape[0],):
                raise ValueError(f"sample_weight has shape {weights.shape}, expected {(X.shape[0],)}")
            if (weights < 0).any() or not weights.any():
                raise ValueError("sample_weight: expected weights >= 0 and at least one non-zero number")
        elif self.class_weight is not None:
            weights = np.ones(X.shape[0])
        else:
            return None
        of_classes = compute_class_weight(self.class_weight, classes=self.classes_, y=y, sample_weight=weights)
        return weights * of_classes[labels]

    def _check_parameters(self) -> None:
        kinds: list[tuple[str, Any, int]] = [("C", Real, 0), ("tol", Real, 0), ("max_iter", Integral, 1)]
        for name, kind, minimum in kinds:
            value = getattr(self, name)
            if not isinstance(value, kind) or value is True or value is False:
                raise TypeError(f"{name} is {value!r}, expected {'an int' if kind is Integral else 'a number'}")
            if not value >= minimum or (name == "C" and value == 0):
                raise ValueError(f"{name} is {value}, expected {'> 0' if name == 'C' else f'>= {minimum}'}")
        if self.solver not in OPTIONS:
            raise ValueError(f"solver is {self.solver!r}, expected one of {', '.join(map(repr, OPTIONS))}")


class _Objective:
    """The objective, its gradient and products with its second derivative, as functions of whitened coefficients.

    theta has a row for each free class: its coefficients, then its intercept. Of two classes the first is not free,
    because its logits are 0. The solver sees ``whitened``, where ``theta = whitened @ transform.T``.
    """

    def __init__(self, X: Any, labels: Any, weights: Any, classes: int, model: SoftmaxRegression):
        rows, self.features = X.shape
        self.X, self.labels, self.classes = X, labels, classes
        self.fixed = 1 if classes == 2 else 0
        self.free = classes - self.fixed
        self.fit_intercept = bool(model.fit_intercept)
        self.columns = self.features + self.fit_intercept
        total = rows if weights is None else weights.sum()
        self.l2 = 1 / (model.C * total)
        self.upstream = 1 / total
        self.options: dict[str, Any] = {
            "sample_weight": None if weights is None else weights.astype(X.dtype),
            "reduction": "none",  # in float32, the sum would be rounded too coarsely for the line search
            "ignore_index": None,
            "num_threads": model.num_threads,
        }
        self.ones = np.ones(rows, X.dtype)
        order: Any = "F" if self.fixed else "C"  # BLAS wants the free one of two classes to be contiguous
        self.logits = np.empty((rows, classes), X.dtype, order)
        keep_logits = model.solver == "newton-cg"
        self.residual = np.empty_like(self.logits) if keep_logits else self.logits
        self.vectors: Any = np.empty_like(self.logits) if keep_logits else None
        self.transform = self._transform(weights)
        self.whitened: Any = None  # where the objective was last evaluated, and its results
        self.loss, self.gradient, self.steepest = math.nan, np.empty(0), math.nan

    def _transform(self, weights: Any) -> Any:
        """T such that ``T.T @ M @ T`` is the identity, where M is the second derivative at 0 for one class, or None."""
        X, end, sparse = self.X, self.features, issparse(self.X)
        stored = X.nnz if sparse else X.size
        longest = (SPARSE_LENGTH_FOR_EACH_CLASS if sparse else LENGTH_FOR_EACH_CLASS) * self.free
        if stored > longest * X.shape[0] or self.columns**2 > stored:
            return None
        M = np.zeros((self.columns, self.columns))
        for start in range(0, X.shape[0], ROWS_AT_A_TIME):
            rows = slice(start, start + ROWS_AT_A_TIME)
            roots = np.sqrt(weights[rows]) if weights is not None else np.ones(min(ROWS_AT_A_TIME, X.shape[0] - start))
            part = X[rows].multiply(roots[:, None]).tocsr() if sparse else X[rows] * roots[:, None]
            product = part.T @ part
            M[:end, :end] += product.toarray() if sparse else product
            if self.fit_intercept:
                M[end, :end] += roots @ part
                M[end, end] += roots @ roots
        if not np.isfinite(M).all():
            return None
        M[:end, end:] = M[end:, :end].T
        M *= self.upstream / self.classes
        M[range(end), range(end)] += self.l2
        # Columns are scaled first, so that what is added against rounding is small for each.
        scale = 1 / np.sqrt(np.where(M.diagonal() > 0, M.diagonal(), 1))
        M *= scale
        M *= scale[:, None]
        M[range(self.columns), range(self.columns)] += max(1e-10, 10 * np.finfo(X.dtype).eps)
        root = np.linalg.cholesky(M)
        return scale[:, None] * solve_triangular(root, np.eye(self.columns), lower=True).T

    def theta(self, whitened: Any) -> Any:
        theta = whitened.reshape(self.free, self.columns)
        return theta if self.transform is None else theta @ self.transform.T

    def whiten(self, theta: Any) -> Any:
        return (theta if self.transform is None else np.linalg.solve(self.transform, theta.T).T).ravel()

    def __call__(self, whitened: Any) -> tuple[float, Any]:
        if not np.array_equal(whitened, self.whitened):
            self._evaluate(whitened)
        return self.loss, self.gradient

    def _evaluate(self, whitened: Any) -> None:
        theta = self.theta(whitened)
        self._multiply(theta, self.logits)
        losses, _ = cross_entropy_with_grad(
            self.logits,
            self.labels,
            **self.options,
            upstream=self.upstream,
            out=self.residual,
            subnormals="flush",  # they would make the product with X slow
        )
        gradient = self._collect(self.residual, theta)
        coef = theta[:, : self.features]
        self.loss = float(losses.sum(dtype=np.float64) * self.upstream + self.l2 / 2 * np.vdot(coef, coef))
        self.steepest = np.abs(gradient).max()
        self.gradient = self._of_whitened(gradient)
        self.whitened = whitened.copy()

    def hessp(self, whitened: Any, vector: Any) -> Any:
        self(whitened)  # the logits are those of the last evaluation
        theta = self.theta(vector)
        self._multiply(theta, self.vectors)
        cross_entropy_hvp(
            self.logits, self.labels, self.vectors, **self.options, upstream=self.upstream, out=self.vectors
        )
        return self._of_whitened(self._collect(self.vectors, theta))

    def _multiply(self, theta: Any, out: Any) -> None:
        """Write ``X @ coef.T + intercept`` to the free classes of `out`, and 0 to the fixed one."""
        theta = theta.astype(out.dtype, copy=False)
        coef, scores = theta[:, : self.features], out[:, self.fixed :]
        out[:, : self.fixed] = 0
        intercept = theta[:, -1] if self.fit_intercept else 0
        if issparse(self.X):
            np.add(self.X @ coef.T, intercept, out=scores)
        else:
            np.matmul(self.X, coef.T, out=scores)
            scores += intercept

    def _collect(self, residual: Any, theta: Any) -> Any:
        """The transpose of `_multiply`, and the penalty's part."""
        residual = residual[:, self.fixed :]
        result = np.empty((self.free, self.columns))
        result[:, : self.features] = (self.X.T @ residual).T if issparse(self.X) else residual.T @ self.X
        if self.fit_intercept:
            result[:, -1] = self.ones @ residual  # many times faster than a sum over the first axis
        result[:, : self.features] += self.l2 * theta[:, : self.features]
        return result

    def _of_whitened(self, gradient: Any) -> Any:
        return (gradient if self.transform is None else gradient @ self.transform).ravel()


def _minimised(objective: _Objective, theta: Any, solver: str, tol: float, max_iter: int) -> tuple[Any, int]:
    """The minimum and the number of iterations, which start from `theta`."""

    def stop_if_flat(whitened: Any) -> None:
        objective(whitened)
        if objective.steepest <= tol:
            raise StopIteration

    start = objective.whiten(theta)
    objective(start)
    if objective.steepest <= tol:
        return theta, 0
    method = OPTIONS[solver]
    found = minimize(
        objective,
        start,
        jac=True,
        hessp=objective.hessp if solver == "newton-cg" else None,
        callback=stop_if_flat,
        method=method["method"],
        options={**method["options"], "maxiter": max_iter},
    )
    objective(found.x)
    if not (objective.steepest <= tol or found.success):
        hint = "more iterations" if found.nit >= max_iter else "features of similar scale, float64 or a larger tol"
        warnings.warn(
            f"{solver} did not converge: after {found.nit} iterations the largest component of the gradient is "
            f"{objective.steepest:.3g}, but tol is {tol:g}. What may help: {hint}.",
            ConvergenceWarning,
            stacklevel=3,
        )
    return objective.theta(found.x), int(found.nit)

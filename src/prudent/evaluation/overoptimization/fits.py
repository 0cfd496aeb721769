"""Goodhart's law in numbers (Gao, Schulman, Hilton, arXiv 2210.10760): best-of-n curves, their KL, and the fits.

Distances are d = sqrt(KL(policy || reference)), KL in nats. Gold is measured from the reference, so that R(0) = 0:
best-of-n R(d) = d (alpha - beta d); RL R(d) = d (alpha - beta ln d).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from scipy import stats

from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError

ROWS_AT_ONCE = 1 << 22  # elements sorted at a time: bounds memory to a few hundred MB whatever the number of draws


def _whole_n(n: float) -> int:
    if n < 1 or n != int(n):
        raise PrudentError(f"n is {n}; best of n needs a whole number of at least 1")
    return int(n)


def best_of_n_weights(samples: int, n: Sequence[int]) -> torch.Tensor:
    """Probability that the i-th smallest of ``samples`` is the best of n drawn without replacement: (len(n), samples).

    C(i-1, n-1) / C(N, n), by the exact recursion downwards from n / N. Columns ascend in proxy.
    """
    weights = torch.zeros(len(n), samples, dtype=torch.float64)
    for row, size in enumerate(n):
        if _whole_n(size) > samples:
            raise PrudentError(f"best of {size} needs {size} samples, only {samples} samples a prompt are there")
        i = torch.arange(samples, 1, -1, dtype=torch.float64)  # w_{i-1} = w_i (i - n) / (i - 1)
        steps = torch.clamp(i - size, min=0) / (i - 1)
        weights[row] = (torch.cat([torch.ones(1, dtype=torch.float64), steps]).cumprod(0) * size / samples).flip(0)
    return weights


def sorted_by_proxy(proxy: torch.Tensor, *others: torch.Tensor) -> list[torch.Tensor]:
    """``others`` in ascending order of ``proxy`` along the last axis, averaged over samples of equal proxy."""
    ordered, order = proxy.sort(dim=-1)
    result = [other.expand(proxy.shape).gather(-1, order) for other in others]
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    if bool(starts.all()):
        return result
    group = starts.cumsum(-1) - 1
    sizes = torch.zeros_like(ordered).scatter_add_(-1, group, torch.ones_like(ordered))
    means = [torch.zeros_like(ordered).scatter_add_(-1, group, values) / sizes.clamp(min=1) for values in result]
    return [mean.gather(-1, group) for mean in means]


def best_of_n_curves(proxy: ArrayLike, values: Sequence[ArrayLike], n: Sequence[int]) -> list[torch.Tensor]:
    """Expected ``values`` of the best of n by proxy, for every n: each (len(n), ..., prompts), float64.

    proxy: (..., prompts, N). values: any number of arrays that broadcast against it (gold, the proxy itself). Unbiased
    from the N samples; ties in proxy are averaged over orders. One sort and one matrix product serve every n.
    """
    scores = as_tensor(proxy, torch.float64)
    if scores.ndim < 2 or scores.shape[-1] == 0:
        raise PrudentError(f"proxy has shape {tuple(scores.shape)}, expected (..., prompts, samples)")
    axes = (*(f"draw axis {i}" for i in range(scores.ndim - 2)), "prompt", "sample")
    require_finite(scores, "proxy score", axes)
    others = [as_tensor(value, torch.float64) for value in values]
    for other in others:
        require_finite(other, "gold reward", axes[-other.ndim :])
        try:
            fits = torch.broadcast_shapes(other.shape, scores.shape) == scores.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise PrudentError(f"values of shape {tuple(other.shape)} don't match proxy's {tuple(scores.shape)}")
    weights = best_of_n_weights(scores.shape[-1], n).T
    lead = scores.shape[:-1]
    flat = scores.reshape(-1, scores.shape[-1])
    wide = [other.expand(scores.shape) for other in others]
    out = [torch.empty(len(flat), len(n), dtype=torch.float64) for _ in others]
    step = max(1, ROWS_AT_ONCE // flat.shape[1])
    if len(flat) <= step:
        for target, ordered in zip(out, sorted_by_proxy(flat, *(w.reshape(flat.shape) for w in wide))):
            target.copy_(ordered @ weights)
    else:  # chunks along the first axis, so that broadcast values are never copied out whole
        per = math.prod(lead[1:])
        stride = max(1, step // per)
        for start in range(0, lead[0], stride):
            part = scores[start : start + stride].reshape(-1, flat.shape[1])
            rows = slice(start * per, start * per + len(part))
            for target, ordered in zip(
                out, sorted_by_proxy(part, *(w[start : start + stride].reshape(part.shape) for w in wide))
            ):
                target[rows] = ordered @ weights
    return [target.T.reshape(len(n), *lead) for target in out]


def best_of_n(proxy: ArrayLike, gold: ArrayLike, n: int) -> torch.Tensor:
    """Expected gold reward of the sample with the highest proxy among n, per prompt. (prompts, N) each -> (prompts,).

    Unbiased over all subsets of n of the N samples (never with replacement), ties averaged over orders:
    sum_i C(i-1, n-1) / C(N, n) gold_(i), samples ascending in proxy. proxy may have leading axes (draws of the reward
    model): (..., prompts, N) -> (..., prompts). Raises PrudentError for n > N and for non-finite values, with indices.
    """
    return best_of_n_curves(proxy, [gold], [n])[0][0]


def pass_at_k(correct: ArrayLike, k: int) -> torch.Tensor:
    """Probability that at least one of k of a problem's N samples is correct: (..., N) in {0, 1} -> (...).

    1 - C(N - c, k) / C(N, k) (Chen et al., arXiv 2107.03374). PrudentError for k > N.
    """
    right = as_tensor(correct, torch.float64)
    flat = right.reshape(-1, right.shape[-1])
    return best_of_n_curves(flat, [flat], [k])[0][0].reshape(right.shape[:-1])


def kl_best_of_n(n: float) -> float:
    """KL(best of n || reference) in nats, ln n - (n - 1) / n: exact for continuous scores, an upper bound with ties."""
    if not n >= 1:
        raise PrudentError(f"n is {n}, must be at least 1")
    return math.log(n) - (n - 1) / n


def n_of_kl(kl: float) -> float:
    """The n (real) whose analytic best-of-n KL is ``kl``."""
    if not kl >= 0:
        raise PrudentError(f"kl is {kl}, must be at least 0")
    low, high = 1.0, math.exp(kl + 1)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if kl_best_of_n(middle) < kl else (low, middle)
    return (low + high) / 2


def regressional_goodhart(
    selected: float, gold_mean: float, noise_mean: float, gold_variance: float, noise_variance: float
) -> float:
    """E[gold | gold + noise = selected] for independent normal gold and noise: regressional Goodhart (2210.10760)."""
    if gold_variance < 0 or noise_variance < 0 or gold_variance + noise_variance == 0:
        raise PrudentError("variances must be at least 0 and not both 0")
    share = gold_variance / (gold_variance + noise_variance)
    return gold_mean + (selected - gold_mean - noise_mean) * share


@dataclass(frozen=True)
class Overoptimization:
    """A fitted curve. alpha, beta: coefficients; ``*_error``: standard errors; peak: the distance d* at which gold is
    highest and peak_value R(d*), None where there is none; peak_low, peak_high: Fieller interval at ``level``, an end
    None where the data don't bound it; r_squared about the mean of gold. ``warnings`` say what to mistrust."""

    form: str
    alpha: float
    beta: float
    alpha_error: float | None
    beta_error: float | None
    r_squared: float | None
    peak: float | None
    peak_value: float | None
    peak_low: float | None
    peak_high: float | None
    points: int
    level: float = 0.95
    warnings: list[str] = field(default_factory=list)

    def predict(self, distance: ArrayLike) -> torch.Tensor:
        """Gold at ``distance`` by the fitted form."""
        return (features(as_tensor(distance, torch.float64), self.form) * torch.tensor([self.alpha, self.beta])).sum(-1)


def features(distance: torch.Tensor, form: str) -> torch.Tensor:
    """(d, -d^2) or (d, -d ln d), the limit 0 at d = 0: (points, 2)."""
    if form not in ("bon", "rl"):
        raise PrudentError(f"form is {form!r}, expected 'bon' or 'rl'")
    second = distance**2 if form == "bon" else torch.special.xlogy(distance, distance)
    return torch.stack([distance, -second], dim=-1)


def peak_of(ratio: float, form: str) -> float:
    """Distance of the peak from alpha / beta: half of it (best of n), exp(alpha / beta - 1) (RL)."""
    return ratio / 2 if form == "bon" else math.exp(min(ratio - 1, 700.0))


def fieller(alpha: float, beta: float, covariance: torch.Tensor, quantile: float) -> tuple[float | None, float | None]:
    """Interval of alpha / beta for beta > 0 (Fieller 1954); an end is None where beta is not clearly positive."""
    aa, ab, bb = float(covariance[0, 0]), float(covariance[0, 1]), float(covariance[1, 1])
    q = quantile**2
    a, b, c = beta**2 - q * bb, alpha * beta - q * ab, alpha**2 - q * aa
    root = b * b - a * c
    if root < -1e-12 * b * b:
        return None, None
    root = max(root, 0.0)  # an exact fit leaves nothing but rounding, of either sign
    if a <= 0:  # beta may be 0: the peak is bounded from below at most
        if a == 0 or b <= 0:
            return None, None
        return (b - math.sqrt(root)) / a if (b - math.sqrt(root)) / a > 0 else c / (b + math.sqrt(root)), None
    return (b - math.sqrt(root)) / a, (b + math.sqrt(root)) / a


def peak_and_warnings(
    alpha: float, beta: float, form: str, furthest: float
) -> tuple[float | None, float | None, list[str]]:
    """(distance of the peak, gold there, what to mistrust), None where the fit has no peak."""
    if beta <= 0:
        return None, None, ["beta is not above 0: gold does not turn down within the fitted form, so there is no peak"]
    peak = peak_of(alpha / beta, form)
    if peak < 0:
        return None, None, ["gold falls from the start: alpha is not above 0, so no peak lies beyond the reference"]
    beyond = f"the peak at d = {peak:.3g} lies beyond the data (d <= {furthest:.3g}): it is extrapolated"
    return peak, alpha**2 / (4 * beta) if form == "bon" else beta * peak, [beyond] if peak > furthest else []


def fit_overoptimization(
    distance: ArrayLike, gold: ArrayLike, form: str = "bon", *, weight: ArrayLike | None = None, level: float = 0.95
) -> Overoptimization:
    """Least-squares fit of gold (points,) on distance = sqrt(KL) (points,): form "bon" d(alpha - beta d), "rl"
    d(alpha - beta ln d), gold measured from the reference (R(0) = 0). ``weight``: weight a point (1 / variance).

    Standard errors are those of least squares with n - 2 degrees of freedom: they take points as independent, which
    points of one pool are not; bootstrap the curve for honest intervals. The peak's interval is Fieller's. Fewer than
    two distinct positive distances, or non-finite values: PrudentError. Source: arXiv 2210.10760, section 3.
    """
    d, y = as_tensor(distance, torch.float64), as_tensor(gold, torch.float64)
    if d.ndim != 1 or d.shape != y.shape:
        raise PrudentError(f"distance has shape {tuple(d.shape)} and gold {tuple(y.shape)}; expected two of one length")
    require_finite(d, "distance", ("point",))
    require_finite(y, "gold", ("point",))
    if bool((d < 0).any()):
        raise PrudentError("distance holds a value below 0; it is the square root of the KL")
    if len(torch.unique(d[d > 0])) < 2:
        raise PrudentError("a fit needs at least two distinct distances above 0")
    w = torch.ones_like(d) if weight is None else as_tensor(weight, torch.float64)
    x = features(d, form)
    gram = (x * w[:, None]).T @ x
    inverse = torch.linalg.inv(gram)
    alpha, beta = (inverse @ ((x * w[:, None]).T @ y)).tolist()
    residual = y - x @ torch.tensor([alpha, beta], dtype=torch.float64)
    informative = int(((d > 0) & (w > 0)).sum())
    total = float((w * (y - (w * y).sum() / w.sum()) ** 2).sum())
    squared = float((w * residual**2).sum())
    freedom = informative - 2  # the point at d = 0 fits by construction
    covariance = inverse * squared / freedom if freedom > 0 else None
    peak, value, warnings = peak_and_warnings(alpha, beta, form, float(d.max()))
    low = high = None
    if covariance is not None and peak is not None:
        ends = fieller(alpha, beta, covariance, float(stats.t.ppf(0.5 + level / 2, freedom)))
        low, high = (None if end is None else max(0.0, peak_of(end, form)) for end in ends)
        if high is None:
            warnings.append("the peak is not bounded from above: beta is not clearly above 0")
    alpha_error, beta_error = (None, None) if covariance is None else covariance.diagonal().clamp(min=0).sqrt().tolist()
    return Overoptimization(
        form=form,
        alpha=alpha,
        beta=beta,
        alpha_error=alpha_error,
        beta_error=beta_error,
        r_squared=1 - squared / total if total > 0 else None,
        peak=peak,
        peak_value=value,
        peak_low=low,
        peak_high=high,
        points=len(d),
        level=level,
        warnings=warnings,
    )

"""Exact policies over finitely many candidates: vanilla, variance-aware in three forms, and the balls of the theory.

Everything here is a pure function in float64 of rewards, reference probabilities and variances, all shaped
``(..., prompts, candidates)`` and broadcast over the leading axes (draws of the reward model, values of beta). Nothing
is centred, normalised or floored inside: `prudent.policies.estimate` does that in the open. A candidate whose reference
probability is 0 is masked (padding of a ragged pool): whatever its reward and variance hold, its probability stays 0.

With temperature t_i = beta * sigma2_i, the policies are (arXiv 2410.23726, 2507.15906; derivations in docs/theory.md)

* vanilla:       pi_i ~ pi0_i exp(r_i / beta)
* proportional:  pi_i ~ pi0_i exp(r_i / t_i)                  the authors' closed form; not invariant to r + constant
* exact:         pi_i = pi0_i exp((r_i - lam) / t_i - 1)      maximiser of J = sum pi (r - t ln(pi / pi0))
* bregman:       pi_i = pi0_i exp((r_i - lam) / t_i)          maximiser of sum pi r - t [pi ln(pi / pi0) - pi + pi0]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from prudent.arrays import ArrayLike, as_tensor
from prudent.errors import PrudentError
from prudent.policies.checks import MINUS_INFINITY, log_probabilities, masked, require_beta, require_usable
from prudent.policies.spd import as_covariance, solve_dense, solve_diagonal

FORMS = ("proportional", "bregman", "exact")
CHUNK = (1 << 15) - 1  # elements at once: they stay in the cache, and torch spends no time on waking threads for so few


def _tilt(reward: torch.Tensor, log_reference: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """log pi for pi ~ pi0 exp(r / beta). Shift-invariant, so the largest reward is subtracted first."""
    top = masked(reward, log_reference > MINUS_INFINITY, MINUS_INFINITY).amax(-1, keepdim=True)
    return torch.log_softmax(log_reference + (reward - top) / beta, -1)


def _ratio(
    reward: torch.Tensor, log_reference: torch.Tensor, beta: torch.Tensor, variance: torch.Tensor
) -> torch.Tensor:
    """log pi for pi ~ pi0 exp(r / (beta sigma2)), and its limit as variances that are 0 go to 0 together."""
    support = log_reference > MINUS_INFINITY
    exponent = masked(reward / (beta * variance), support, 0.0)
    if bool(torch.isfinite(exponent).all()):
        top = masked(exponent, support, MINUS_INFINITY).amax(-1, keepdim=True)
        return torch.log_softmax(log_reference + (exponent - top), -1)
    # Overflow or variance 0. Ratios are taken in units of the largest reward and the smallest positive variance. Among
    # candidates without variance the largest positive reward takes all; a negative one excludes, a zero one stays.
    zero = support & (variance == 0)
    unit = masked(reward, support, 0.0).abs().amax(-1, keepdim=True)
    unit = torch.where(unit > 0, unit, torch.ones_like(unit))
    least = masked(variance, support & (variance > 0), float("inf")).amin(-1, keepdim=True)
    least = torch.where(torch.isfinite(least), least, torch.ones_like(least))
    key = masked(masked(reward, zero, 0.0), support, MINUS_INFINITY)
    chosen = support & (key == key.amax(-1, keepdim=True))
    ratio = masked((reward / unit) / (variance / least), support & ~zero, 0.0)
    gap = ratio - masked(ratio, chosen, MINUS_INFINITY).amax(-1, keepdim=True)
    scale = (unit / least / beta).clamp(max=torch.finfo(torch.float64).max)
    exponent = masked(masked(gap * scale, gap != 0, 0.0), chosen, MINUS_INFINITY)
    return torch.log_softmax(log_reference + exponent, -1)


def _with_multiplier(
    reward: torch.Tensor, log_weight: torch.Tensor, temperature: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """log pi and lam of pi_i = exp(log_weight_i + (r_i - lam) / t_i) with sum 1, for t > 0 on the support.

    lam = r_s + t_s (log_weight_s + z), s the candidate that bounds lam from below: there every term is at most 1 and
    term s is 1. In z the logarithm of the sum is convex and falls, so Newton's method from z = 0 climbs to the root
    without overshooting; measuring from s keeps full precision for rewards of any size.
    """
    reward, log_weight, temperature = torch.broadcast_tensors(reward, log_weight, temperature)
    support = log_weight > MINUS_INFINITY
    temperature = masked(temperature, support, 1.0)
    weight = masked(log_weight, support, 0.0)
    bound = masked(reward + temperature * weight, support, MINUS_INFINITY)
    lowest, star = bound.max(-1, keepdim=True)
    reward_s, temperature_s, weight_s = (v.gather(-1, star) for v in (reward, temperature, weight))
    start = weight + ((reward - reward_s) - temperature_s * weight_s) / temperature
    start = masked(start, support, MINUS_INFINITY).clamp(max=0.0).scatter(-1, star, 0.0)
    slope = masked((temperature_s / temperature).clamp(max=1e300), support, 0.0)
    z = torch.zeros_like(lowest)
    for _ in range(200):
        exponent = start - z * slope
        log_sum = torch.logsumexp(exponent, -1, keepdim=True)
        if bool((log_sum.abs() <= 1e-14).all()):
            break
        fall = (torch.exp(exponent - log_sum) * slope).sum(-1, keepdim=True)
        moved = (z + log_sum / fall).clamp(min=0.0)
        if bool((moved == z).all()):
            break
        z = moved
    return exponent - log_sum, reward_s + temperature_s * (weight_s + z)


def _with_zero_variance(
    reward: torch.Tensor, log_weight: torch.Tensor, temperature: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_with_multiplier`, in the limit where temperatures that are 0 go to 0 together.

    Such a candidate keeps lam at or above its reward m: if the others' mass at lam = m is above 1 it gets nothing, else
    it takes what they leave; equal ones share by reference probability.
    """
    reward, log_weight, temperature = torch.broadcast_tensors(reward, log_weight, temperature)
    zero = (log_weight > MINUS_INFINITY) & (temperature == 0)
    if not bool(zero.any()):
        return _with_multiplier(reward, log_weight, temperature)
    others = masked(log_weight, ~zero, MINUS_INFINITY)
    alone = ~(others > MINUS_INFINITY).any(-1, keepdim=True)
    safe = torch.where(alone, torch.zeros_like(others), others)
    log_policy, multiplier = _with_multiplier(reward, safe, masked(temperature, temperature > 0, 1.0))
    multiplier = masked(multiplier, ~alone, MINUS_INFINITY)
    best = masked(reward, zero, MINUS_INFINITY).amax(-1, keepdim=True)
    positive = temperature > 0
    exponent = masked(others + (reward - best) / masked(temperature, positive, 1.0), positive, MINUS_INFINITY)
    left = torch.log1p(-torch.exp(exponent).sum(-1, keepdim=True).clamp(max=1.0))
    tied = masked(log_weight, zero & (reward == best), MINUS_INFINITY)
    shared = tied - torch.logsumexp(tied, -1, keepdim=True) + left
    limit = torch.where(zero, shared, exponent)
    takes = best > multiplier
    return torch.where(takes, limit, log_policy), torch.where(takes, best, multiplier)


def _in_chunks(function: Callable[..., torch.Tensor], parts: Sequence[torch.Tensor], out: torch.Tensor) -> None:
    """Write ``function(*parts)`` into ``out`` piece by piece along the leading axes, so that temporaries stay small."""
    axis = next((a for a in range(out.ndim - 1) if out.shape[a] > 1), None)
    if out.numel() <= CHUNK or axis is None:
        out.copy_(function(*parts))
        return
    size = out.shape[axis]
    step = max(1, size * CHUNK // out.numel())
    for at in range(0, size, step):
        width = min(step, size - at)
        pieces = [p if p.shape[axis] == 1 else p.narrow(axis, at, width) for p in parts]
        _in_chunks(function, pieces, out.narrow(axis, at, width))


def log_solve(
    reward: ArrayLike,
    reference: ArrayLike,
    beta: ArrayLike,
    *,
    variance: ArrayLike | None = None,
    form: str = "proportional",
) -> torch.Tensor:
    """Log probabilities of `solve`, exact where probabilities themselves would underflow; -inf where masked."""
    parts, shape = _broadcast(reward, reference, beta, variance, form)
    out = torch.empty(shape, dtype=torch.float64, device=parts[0].device)
    shift = 1.0 if form == "exact" else 0.0

    def multiplied(
        reward: torch.Tensor, log_reference: torch.Tensor, beta: torch.Tensor, variance: torch.Tensor
    ) -> torch.Tensor:
        return _with_zero_variance(reward, log_reference - shift, beta * variance)[0]

    function: Callable[..., torch.Tensor] = (
        _tilt if variance is None else _ratio if form == "proportional" else multiplied
    )
    _in_chunks(function, parts, out)
    return out


def multiplier(
    reward: ArrayLike, reference: ArrayLike, beta: ArrayLike, variance: ArrayLike, *, form: str = "bregman"
) -> torch.Tensor:
    """lam of the "bregman" or "exact" form, (..., prompts): the level from which its policy counts rewards.

    Either form's policy is the proportional one of r - lam, that is pi0 exp((r - lam) / (beta sigma2)) normalised: the
    three forms differ in this level alone (docs/theory.md, equation (7)). As beta grows the Bregman level becomes the
    reward's precision-weighted mean.
    """
    if form not in ("bregman", "exact"):
        raise PrudentError(f"form is {form!r}, must be 'bregman' or 'exact': the proportional form has no multiplier")
    parts, shape = _broadcast(reward, reference, beta, variance, form)
    shift = 1.0 if form == "exact" else 0.0
    found = _with_zero_variance(parts[0], parts[1] - shift, parts[2] * parts[3])[1]
    return found.expand(*shape[:-1], 1)[..., 0]


def _broadcast(
    reward: ArrayLike, reference: ArrayLike, beta: ArrayLike, variance: ArrayLike | None, form: str
) -> tuple[list[torch.Tensor], torch.Size]:
    """Checked reward, log reference, beta (and variance) with equally many axes, and the shape of the answer."""
    if form not in FORMS:
        raise PrudentError(f"form is {form!r}, must be one of {', '.join(FORMS)}")
    log_reference = log_probabilities(as_tensor(reference, torch.float64))
    support = log_reference > MINUS_INFINITY
    parts = [require_usable(as_tensor(reward, torch.float64), "reward", support), log_reference, require_beta(beta)]
    if variance is not None:
        parts.append(require_usable(as_tensor(variance, torch.float64), "variance", support, low=0.0))
    try:
        shape = torch.broadcast_shapes(*(part.shape for part in parts))
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise PrudentError(f"reward, reference, beta and variance don't broadcast: {shapes}") from error
    return [part.reshape((1,) * (len(shape) - part.ndim) + tuple(part.shape)) for part in parts], shape


def solve(
    reward: ArrayLike,
    reference: ArrayLike,
    beta: ArrayLike,
    *,
    variance: ArrayLike | None = None,
    form: str = "proportional",
) -> torch.Tensor:
    """Optimal policy over each prompt's candidates, (..., prompts, candidates) float64, rows summing to 1.

    reward: estimated reward. reference: probabilities of the reference policy, rows summing to 1 within 1e-6; 0 masks a
    candidate. beta: KL weight > 0, a number or a tensor that broadcasts with a last axis of 1; (betas, 1, 1, 1) solves
    several at once. variance: sigma2 >= 0 of the reward estimate; None is vanilla KL-regularised alignment.
    form: "proportional" | "bregman" | "exact" (see the module), only read when there is a variance.

    The proportional form depends on a constant added to a prompt's rewards: centre them first. Variance 0 is the limit
    in which the variances that are 0 go to 0 together. Raises PrudentError naming what can't be used.
    Source: arXiv 2410.23726 and 2507.15906; docs/theory.md, equations (1) to (4).
    """
    return log_solve(reward, reference, beta, variance=variance, form=form).exp_()


def kl(policy: ArrayLike, reference: ArrayLike) -> torch.Tensor:
    """KL(policy || reference) in nats over the last axis, (..., prompts); inf where the policy leaves the support."""
    policy, reference = as_tensor(policy, torch.float64), as_tensor(reference, torch.float64)
    return (torch.xlogy(policy, policy) - torch.xlogy(policy, reference)).sum(-1).clamp(min=0.0)


def value(policy: ArrayLike, gold: ArrayLike) -> torch.Tensor:
    """Expected gold reward of the policy, (..., prompts); what candidates without probability hold doesn't count."""
    policy, gold = as_tensor(policy, torch.float64), as_tensor(gold, torch.float64)
    return masked(policy * gold, policy != 0, 0.0).sum(-1)


def objective(
    policy: ArrayLike,
    reward: ArrayLike,
    reference: ArrayLike,
    beta: ArrayLike,
    *,
    variance: ArrayLike | None = None,
    bregman: bool = False,
) -> torch.Tensor:
    """J(pi) = sum_i pi_i (r_i - beta sigma2_i ln(pi_i / pi0_i)) of each prompt, (..., prompts).

    bregman=True takes sigma2 [pi ln(pi / pi0) - pi + pi0] instead, which is never negative and vanishes only at pi0.
    variance None means 1. docs/theory.md, equations (1) and (4).
    """
    policy, reference = as_tensor(policy, torch.float64), as_tensor(reference, torch.float64)
    penalty = torch.xlogy(policy, policy) - torch.xlogy(policy, reference)
    if bregman:
        penalty = penalty - policy + reference
    temperature = require_beta(beta) * (1.0 if variance is None else as_tensor(variance, torch.float64))
    gain = masked(policy * as_tensor(reward, torch.float64), policy != 0, 0.0)
    return (gain - masked(temperature * penalty, reference > 0, 0.0)).sum(-1)


def ball(
    reward: ArrayLike,
    reference: ArrayLike,
    radius: ArrayLike,
    *,
    covariance: ArrayLike | None = None,
    dense: bool | None = None,
    on_simplex: bool = False,
) -> torch.Tensor:
    """Maximiser of <pi, r> over ||pi - pi0|| <= radius, (..., prompts, candidates): the theory's closed forms.

    Without covariance the L2 ball, pi0 + radius r / ||r||_2; with it the Sigma ball, pi0 + radius Sigma^-1 r /
    ||r||_{Sigma^-1}. ``radius`` is the norm itself: in the paper's terms sqrt(eps). covariance: diagonal (..., n) or
    dense (..., n, n); where a square array could be either, ``dense`` must say. on_simplex=True keeps sum(pi) =
    sum(pi0) (docs/theory.md, equations (8) to (11)). As in the theory, pi >= 0 is not imposed. Where the reward doesn't
    tell candidates apart the reference comes back. Raises PrudentError for a covariance that isn't positive
    semi-definite, or a singular one along whose null space the reward grows without bound.
    """
    reward, reference = as_tensor(reward, torch.float64), as_tensor(reference, torch.float64)
    support = reference > 0
    reward = require_usable(reward, "reward", support)
    support = support.expand(reward.shape)
    ones = support.to(torch.float64)
    size = as_tensor(radius, torch.float64)
    size = size.unsqueeze(-1) if size.ndim and size.shape[-1] != 1 else size
    if not bool((torch.isfinite(size) & (size >= 0)).all()):
        raise PrudentError(f"radius is {size.min().item()}, must be finite and >= 0")
    solved = _inverse_of(covariance, reward, support, dense)
    # A reward that tells nothing apart leaves only rounding, which must not be blown up to the radius.
    least = 1e-26 * (reward * solved(reward)).sum(-1, keepdim=True) if on_simplex else 0.0
    if on_simplex:
        reward = reward - ones * (reward * ones).sum(-1, keepdim=True) / ones.sum(-1, keepdim=True)
    direction = solved(reward)
    if on_simplex and covariance is not None:
        flat = solved(ones)
        shift = (ones * direction).sum(-1, keepdim=True) / (ones * flat).sum(-1, keepdim=True)
        direction = direction - shift * flat
    squared = (reward * direction).sum(-1, keepdim=True)
    moves = squared > least
    step = size * direction / torch.where(moves, squared, torch.ones_like(squared)).sqrt()
    return reference + masked(step, moves & support, 0.0)


def _inverse_of(
    covariance: ArrayLike | None, reward: torch.Tensor, support: torch.Tensor, dense: bool | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """v -> Sigma^-1 v on the support, Sigma being the identity where there is none."""
    if covariance is None:
        return lambda vector: vector
    matrix, full = as_covariance(covariance, reward, dense)
    if not full:
        return lambda vector: solve_diagonal(masked(matrix, support, 1.0), vector)
    if not bool(support.all()):  # a masked candidate has no covariance with the others
        kept = support[..., :, None] & support[..., None, :]
        matrix = torch.where(kept, matrix, torch.eye(matrix.shape[-1], dtype=torch.float64))
    return lambda vector: solve_dense(matrix, vector)


def beta_for_kl(
    policy_at: Callable[[torch.Tensor], torch.Tensor],
    reference: ArrayLike,
    target: ArrayLike,
    *,
    shape: tuple[int, ...] = (),
    strict: bool = True,
    tolerance: float = 1e-6,
) -> torch.Tensor:
    """beta at which the policy's KL from the reference, averaged over prompts, is ``target`` nats; shape ``shape``.

    policy_at: beta (*shape, 1, 1) -> policies (*shape, prompts, candidates), such as
    ``lambda beta: solve(reward, reference, beta, variance=variance)``. shape=(draws,) finds one beta a draw; with
    shape=() and policies (draws, prompts, candidates), one beta for all. target: number or tensor of shape ``shape``.
    tolerance: relative, on the KL. strict=False gives nan, in place of PrudentError, where no beta reaches the target.
    """
    reference = as_tensor(reference, torch.float64)

    def divergence(beta: torch.Tensor) -> torch.Tensor:
        found = kl(policy_at(beta[..., None, None]), reference)
        return found.mean(dim=tuple(range(len(shape), found.ndim)))

    return beta_at(divergence, target, shape=shape, strict=strict, tolerance=tolerance)


def beta_at(
    measure: Callable[[torch.Tensor], torch.Tensor],
    target: ArrayLike,
    *,
    shape: tuple[int, ...] = (),
    strict: bool = True,
    tolerance: float = 1e-6,
) -> torch.Tensor:
    """beta of shape ``shape`` at which a divergence that falls with beta, ``measure(beta)``, is ``target`` > 0 nats.

    Bracketed search on the logarithms of both, all entries at once. strict, tolerance: as in `beta_for_kl`.
    """
    goal = as_tensor(target, torch.float64).expand(shape)
    if not bool((goal > 0).all()):
        raise PrudentError(f"target KL must be positive, found {goal.min().item()}")

    def excess(x: torch.Tensor) -> torch.Tensor:
        return torch.log(measure(torch.exp(x)).clamp(min=1e-300) / goal)

    low, high, at_low, at_high = _bracket(excess, shape)
    unreached = (at_low < 0) | (at_high > 0)
    if strict and bool(unreached.any()):
        raise PrudentError(
            f"a KL of {goal.max().item():.4g} nats can't be reached by {int(unreached.sum())} of {unreached.numel()} "
            "policies for any beta in [1e-12, 1e12]; choose a target within what the candidates allow"
        )
    for step in range(100):
        guess = low + (high - low) * at_low / (at_low - at_high)
        inside = (guess > low) & (guess < high) & (step % 3 != 2)  # every third step halves, so that no end gets stuck
        x = torch.where(inside, guess, (low + high) / 2)
        y = excess(x)
        above = y > 0
        low, at_low = torch.where(above, x, low), torch.where(above, y, at_low)
        high, at_high = torch.where(above, high, x), torch.where(above, at_high, y)
        if bool(((y.abs() <= tolerance) | (high - low <= 1e-13) | unreached).all()):
            break
    nearest = torch.where(-at_high < at_low, high, low)
    return masked(torch.exp(nearest), ~unreached, float("nan"))


def _bracket(
    excess: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """log beta below and above the target, found by growing steps from beta = 1, with the excess at both."""
    limit = 12 * torch.log(torch.tensor(10.0, dtype=torch.float64))
    low = high = torch.zeros(shape, dtype=torch.float64)
    at_low = at_high = excess(low)
    step = 1.0
    while step < 64:
        short, far = at_low < 0, at_high > 0
        if not bool((short | far).any()):
            break
        # A bracket only ever moves: what was below the target's beta becomes the other end.
        if bool(short.any()):
            high, at_high = torch.where(short, low, high), torch.where(short, at_low, at_high)
            low = torch.where(short, (low - step).clamp(min=-limit), low)
            at_low = torch.where(short, excess(low), at_low)
        if bool(far.any()):
            low, at_low = torch.where(far, high, low), torch.where(far, at_high, at_low)
            high = torch.where(far, (high + step).clamp(max=limit), high)
            at_high = torch.where(far, excess(high), at_high)
        step *= 1.7
    return low, high, at_low, at_high

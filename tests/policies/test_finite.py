"""Exact policies: the published numbers, brute force, invariances, limits, masks, balls, and beta at a given KL."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prudent.errors import PrudentError
from prudent.policies import ball, beta_for_kl, kl, log_solve, multiplier, objective, solve, value
from prudent.policies.finite import FORMS
from prudent.policies.spd import Unbounded, solve_dense

REWARD, VARIANCE = [[1.0, 0.8, 0.2, 0.0]], [[2.0, 0.5, 0.5, 1.0]]
UNIFORM = [[0.25] * 4]
PUBLISHED = {
    "exact": ([0.160136, 0.566626, 0.170665, 0.102574], 0.682371),
    "proportional": ([0.181306, 0.544674, 0.164053, 0.109968], 0.679147),
    "bregman": ([0.313803, 0.415997, 0.125296, 0.144904], 0.545391),
}
SETTINGS = settings(max_examples=60, deadline=None)


@st.composite
def problems(draw: st.DrawFn, zeros: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """A prompt's reward, reference (some candidates masked), variance, and beta."""
    n = draw(st.integers(2, 6))
    number = st.floats(-5, 5, allow_nan=False)
    reward = draw(st.lists(number, min_size=n, max_size=n))
    variance = draw(st.lists(st.floats(0.01, 10), min_size=n, max_size=n))
    weights = draw(st.lists(st.integers(0 if zeros else 1, 5), min_size=n, max_size=n).filter(lambda w: sum(w) > 0))
    reference = torch.tensor([weights], dtype=torch.float64) / sum(weights)
    tensor = lambda rows: torch.tensor([rows], dtype=torch.float64)  # noqa: E731
    return tensor(reward), reference, tensor(variance), draw(st.floats(0.05, 5))


@pytest.mark.parametrize("form", FORMS)
def test_published_numbers(form: str) -> None:
    """Equations (2) to (4) of docs/theory.md on the one-prompt example."""
    policy = solve(REWARD, UNIFORM, 1.0, variance=VARIANCE, form=form)
    expected, gain = PUBLISHED[form]
    assert torch.allclose(policy, torch.tensor([expected], dtype=torch.float64), atol=6e-7)
    assert objective(policy, REWARD, UNIFORM, 1.0, variance=VARIANCE).item() == pytest.approx(gain, abs=6e-7)


def test_published_multiplier_and_vanilla() -> None:
    policy = solve(REWARD, UNIFORM, 1.0, variance=VARIANCE, form="exact")
    lam = torch.tensor(REWARD, dtype=torch.float64) - torch.tensor(VARIANCE) * (torch.log(policy / 0.25) + 1)
    assert torch.allclose(lam, torch.full_like(lam, -0.109120), atol=6e-7)
    vanilla = torch.tensor([[0.379371, 0.310603, 0.170463, 0.139563]], dtype=torch.float64)
    assert torch.allclose(solve(REWARD, UNIFORM, 1.0), vanilla, atol=6e-7)
    for form in ("proportional", "bregman", "exact"):
        assert torch.allclose(solve(REWARD, UNIFORM, 1.0, variance=[[1.0] * 4], form=form), vanilla, atol=6e-7)


def test_no_random_policy_beats_the_exact_one() -> None:
    points = torch.from_numpy(np.random.default_rng(0).dirichlet([0.7] * 4, size=200_000))
    found = objective(points, REWARD, UNIFORM, 1.0, variance=VARIANCE)
    assert 0.67 < found.max().item() <= 0.682371


@given(problems())
@SETTINGS
def test_optimal_by_its_linear_gap_and_against_perturbations(problem: tuple) -> None:
    """Equations (3) and (4): each maximises its own concave objective."""
    reward, reference, variance, beta = problem
    inside = reference[0] > 0
    generator = np.random.default_rng(0)
    for form in ("exact", "bregman"):
        policy = solve(reward, reference, beta, variance=variance, form=form)

        def gain(points: torch.Tensor, breg: bool = form == "bregman") -> torch.Tensor:
            return objective(points, reward, reference, beta, variance=variance, bregman=breg)

        best = gain(policy).item()
        directions = torch.from_numpy(generator.dirichlet(np.ones(int(inside.sum())), size=200))
        others = torch.zeros(200, 1, reference.shape[-1], dtype=torch.float64)
        others[:, 0, inside] = directions
        for share in (1e-3, 0.05, 1.0):
            assert gain(policy + share * (others - policy)).max().item() <= best + 1e-9

        # Concave, so no policy is worth more than this one by more than the linear gap at it. A share that underflows
        # is taken as 1e-300: its slope there is the largest it can have.
        inner = policy[0, inside].clamp(min=1e-300).requires_grad_()
        point = torch.zeros_like(reference)
        point[0, inside] = inner
        (slope,) = torch.autograd.grad(gain(point).sum(), inner)
        assert float(slope.max() - (policy[0, inside] * slope).sum()) <= 1e-8 * (
            1 + abs(best) + float(slope.abs().max())
        )


@given(problems())
@SETTINGS
def test_conditions_of_optimality(problem: tuple) -> None:
    """r - t ln(pi / pi0) is one constant on the support (equations (3), (4)); rows sum to 1; masked stay 0."""
    reward, reference, variance, beta = problem
    inside = reference > 0
    for form, shift in (("exact", 1.0), ("bregman", 0.0)):
        log_policy = log_solve(reward, reference, beta, variance=variance, form=form)
        lam = (reward - beta * variance * (log_policy - torch.log(reference) + shift))[inside]
        assert lam.max() - lam.min() <= 1e-9 * (1 + lam.abs().max())
    for form in FORMS:
        policy = solve(reward, reference, beta, variance=variance, form=form)
        assert policy.sum().item() == pytest.approx(1, abs=1e-12)
        assert torch.equal(policy[~inside], torch.zeros_like(policy[~inside]))
    expected = torch.softmax(torch.log(reference) + reward / (beta * variance), -1)
    assert torch.allclose(solve(reward, reference, beta, variance=variance), expected, atol=1e-12)
    expected = torch.softmax(torch.log(reference) + reward / beta, -1)
    assert torch.allclose(solve(reward, reference, beta), expected, atol=1e-12)


@given(problems(), st.floats(-1e3, 1e3))
@SETTINGS
def test_shift_invariance(problem: tuple, shift: float) -> None:
    reward, reference, variance, beta = problem
    for form in ("exact", "bregman"):
        before = solve(reward, reference, beta, variance=variance, form=form)
        after = solve(reward + shift, reference, beta, variance=variance, form=form)
        assert torch.allclose(before, after, atol=1e-9)
    constant = torch.full_like(reward, shift)
    assert torch.allclose(solve(constant, reference, beta, variance=variance, form="bregman"), reference, atol=1e-9)


def test_shift_moves_the_proportional_form_and_constant_reward_moves_the_exact_one() -> None:
    shifted = [[value + 5 for value in REWARD[0]]]
    for form in ("exact", "bregman"):
        a, b = (solve(r, UNIFORM, 1.0, variance=VARIANCE, form=form) for r in (REWARD, shifted))
        assert (a - b).abs().max() < 1e-9
    a, b = (solve(r, UNIFORM, 1.0, variance=VARIANCE) for r in (REWARD, shifted))
    assert (a - b).abs().max() > 0.1
    flat = solve([[0.0] * 4], UNIFORM, 1.0, variance=VARIANCE, form="exact")
    assert (flat - 0.25).abs().max() > 0.05  # caveat 2: not the reference
    assert objective(flat, [[0.0] * 4], UNIFORM, 1.0, variance=VARIANCE).item() > 0


@pytest.mark.parametrize("form", FORMS)
def test_stable_at_extremes(form: str) -> None:
    reward, variance = torch.tensor(REWARD, dtype=torch.float64), torch.tensor(VARIANCE, dtype=torch.float64)
    best = int((reward / variance).argmax() if form == "proportional" else reward.argmax())
    for scale, beta, spread in ((1, 1e-300, 1), (1, 1e-12, 1), (1e300, 1, 1), (1e12, 1e-200, 1e-200), (1, 1, 1e-310)):
        policy = solve(reward * scale, UNIFORM, beta, variance=variance * spread, form=form)
        assert policy[0, best].item() == 1.0 and torch.isfinite(policy).all(), (scale, beta, spread)
    assert solve(reward * 1e300, UNIFORM, 1e-300)[0, 0].item() == 1.0
    calm = solve(reward, UNIFORM, 1e300, variance=variance, form=form)
    if form != "exact":
        assert torch.allclose(calm, torch.tensor(UNIFORM, dtype=torch.float64))
    if form != "proportional":  # precise even where the rewards dwarf the temperatures
        big = solve(reward + 2.0**40, UNIFORM, 1e-3, variance=variance, form=form)
        rounded = (reward + 2.0**40) - 2.0**40
        assert torch.allclose(big, solve(rounded, UNIFORM, 1e-3, variance=variance, form=form), atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sign", (1.0, -1.0))
@pytest.mark.parametrize("zeros", ([1, 2], [0], [3], [0, 1, 2, 3]))
def test_zero_variance_is_the_limit(form: str, sign: float, zeros: list[int]) -> None:
    reward = sign * torch.tensor(REWARD, dtype=torch.float64)
    variance = torch.tensor(VARIANCE, dtype=torch.float64)
    variance[0, zeros] = 0
    near = torch.where(variance == 0, 1e-13, variance)
    limit = solve(reward, UNIFORM, 1.0, variance=variance, form=form)
    assert torch.allclose(limit, solve(reward, UNIFORM, 1.0, variance=near, form=form), atol=1e-9)
    assert limit.sum().item() == pytest.approx(1, abs=1e-12)


def test_ties_share_by_the_reference() -> None:
    reference = [[0.1, 0.3, 0.6]]
    for form in FORMS:
        policy = solve([[1.0, 1.0, 0.0]], reference, 1.0, variance=[[0.0, 0.0, 1.0]], form=form)
        assert policy[0, 1].item() == pytest.approx(3 * policy[0, 0].item())
    policy = solve([[1e9, 1e9, 0.0]], reference, 1e-9)
    assert policy[0].tolist() == pytest.approx([0.25, 0.75, 0.0])


def test_batches_equal_loops_and_masked_values_never_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    reward = torch.randn(5, 4, 6, generator=generator, dtype=torch.float64)
    variance = torch.rand(4, 6, generator=generator, dtype=torch.float64) + 0.01
    reference = torch.rand(4, 6, generator=generator, dtype=torch.float64)
    reference[1, 4:] = 0
    reference /= reference.sum(-1, keepdim=True)
    betas = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    dirty, worse = reward.clone(), variance.clone()
    dirty[:, 1, 4:], worse[1, 4:] = float("nan"), -1.0
    for form in FORMS:
        whole = solve(reward, reference, betas.reshape(3, 1, 1, 1), variance=variance, form=form)
        assert whole.shape == (3, 5, 4, 6)
        for b in range(3):
            for d in range(5):
                one = solve(reward[d], reference, betas[b], variance=variance, form=form)
                assert torch.allclose(whole[b, d], one, atol=1e-13)
        assert torch.equal(whole, solve(dirty, reference, betas.reshape(3, 1, 1, 1), variance=worse, form=form))
        monkeypatch.setattr("prudent.policies.finite.CHUNK", 7)
        pieces = solve(reward, reference, betas.reshape(3, 1, 1, 1), variance=variance, form=form)
        monkeypatch.undo()
        assert torch.allclose(pieces, whole, atol=1e-13)
    assert solve(reward.numpy(), reference.numpy(), 1.0).dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        ({"beta": 0.0}, "beta"),
        ({"beta": [0.1, 1.0]}, "candidates"),
        ({"reference": [[0.5, 0.5, 0.5, 0.5]]}, "sum"),
        ({"variance": [[1.0, -1.0, 1.0, 1.0]]}, "variance is -1.0"),
        ({"reward": [[1.0, math.nan, 0.0, 0.0]]}, "[0, 1]"),
        ({"reward": [[1.0, 2.0]]}, "broadcast"),
        ({"form": "other"}, "form"),
    ),
)
def test_errors_name_value_and_place(arguments: dict, words: str) -> None:
    given_ = {"reward": REWARD, "reference": UNIFORM, "beta": 1.0, "variance": VARIANCE, **arguments}
    with pytest.raises(PrudentError, match=words.replace("[", r"\[")):
        solve(given_.pop("reward"), given_.pop("reference"), given_.pop("beta"), **given_)


def test_kl_value_and_objective() -> None:
    policy = [[0.5, 0.5, 0.0, 0.0], [0.25] * 4]
    assert kl(policy, [UNIFORM[0]] * 2).tolist() == pytest.approx([math.log(2), 0])
    assert kl([[0.5, 0.5]], [[1.0, 0.0]]).item() == math.inf
    assert value(policy, [[1.0, 3.0, math.nan, 0.0], [1.0, 3.0, 0.0, 0.0]]).tolist() == [2.0, 1.0]
    plain = objective(policy, [[1.0, 3.0, 0.0, 0.0]] * 2, [UNIFORM[0]] * 2, 2.0)
    assert plain.tolist() == pytest.approx([2 - 2 * math.log(2), 1])
    gap = objective(policy, torch.zeros(2, 4), [UNIFORM[0]] * 2, 1.0, variance=VARIANCE, bregman=True)
    assert gap[0] < 0 and gap[1].item() == 0


def test_policy_gradient_finds_the_exact_policy_and_with_a_detached_penalty_the_bregman_one() -> None:
    """Equations (5), (6): the gradient of J, and the score-function gradient of a KL penalty kept in the reward."""
    reward, variance = torch.tensor(REWARD[0], dtype=torch.float64), torch.tensor(VARIANCE[0], dtype=torch.float64)
    for form, extra in (("exact", 1.0), ("bregman", 0.0)):
        logits = torch.zeros(4, dtype=torch.float64)
        for _ in range(4000):
            policy = torch.softmax(logits, 0)
            signal = reward - variance * (torch.log(policy * 4) + extra)
            logits = logits + 0.5 * policy * (signal - (policy * signal).sum())
        expected = solve(REWARD, UNIFORM, 1.0, variance=VARIANCE, form=form)[0]
        assert 0.5 * (torch.softmax(logits, 0) - expected).abs().sum() < 1e-3


@st.composite
def covariances(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    n = draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    root = torch.randn(n, n, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + 10.0 ** draw(st.integers(-6, 0)) * torch.eye(n, dtype=torch.float64)
    return matrix, torch.randn(n, generator=generator, dtype=torch.float64)


@given(covariances(), st.floats(1e-3, 10), st.booleans())
@settings(max_examples=25, deadline=None)
def test_balls_beat_random_feasible_directions(problem: tuple, radius: float, on_simplex: bool) -> None:
    """Equations (8) to (11): feasible to 1e-10 and no worse than 10^4 feasible directions."""
    matrix, reward = problem
    n = len(reward)
    reference = torch.full((n,), 1 / n, dtype=torch.float64)
    directions = torch.randn(10_000, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if on_simplex:
        directions -= directions.mean(-1, keepdim=True)
    for covariance, metric in ((None, torch.eye(n, dtype=torch.float64)), (matrix, matrix)):
        step = ball(reward, reference, radius, covariance=covariance, on_simplex=on_simplex) - reference
        assert (step @ metric @ step).item() == pytest.approx(radius**2, rel=1e-10)
        if on_simplex:
            assert abs(step.sum().item()) < 1e-9 * (1 + step.abs().max().item())
        sizes = torch.einsum("ki,ij,kj->k", directions, metric, directions).sqrt()
        others = radius * (directions @ reward) / sizes
        assert others.max().item() <= (step @ reward).item() * (1 + 1e-10)


def test_ball_shapes_masks_and_flat_rewards() -> None:
    reward = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    reference = torch.tensor([[0.2, 0.3, 0.5]] * 2, dtype=torch.float64)
    variance = torch.tensor([[0.5, 1.0, 2.0]], dtype=torch.float64)
    diagonal = ball(reward, reference, 0.1, covariance=variance)
    dense = ball(reward, reference, 0.1, covariance=torch.diag(variance[0]))
    assert torch.allclose(diagonal, dense, atol=1e-14)
    assert torch.equal(ball(reward, reference, 0.1, on_simplex=True)[1], reference[1])
    assert torch.equal(ball(reward, reference, 0.1, covariance=variance, on_simplex=True)[1], reference[1])
    masked = torch.tensor([[0.4, 0.6, 0.0]], dtype=torch.float64)
    spoiled = torch.tensor([[1.0, 2.0, math.nan]], dtype=torch.float64)
    short = ball(spoiled[:, :2], masked[:, :2], 0.1, covariance=torch.tensor([[1.0, 0.3], [0.3, 2.0]]), dense=True)
    full = torch.tensor([[1.0, 0.3, 0.2], [0.3, 2.0, 0.1], [0.2, 0.1, 1.0]], dtype=torch.float64)
    assert torch.allclose(ball(spoiled, masked, 0.1, covariance=full)[:, :2], short, atol=1e-7)
    assert ball(spoiled, masked, 0.1, covariance=full)[0, 2].item() == 0
    with pytest.raises(PrudentError, match="dense=True"):
        ball(torch.ones(3, 3), torch.full((3, 3), 1 / 3), 0.1, covariance=torch.eye(3))


def test_singular_and_ill_conditioned_covariance() -> None:
    singular = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    assert solve_dense(singular, torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64)).tolist() == pytest.approx(
        [1, 1, 0.5]
    )
    with pytest.raises(Unbounded, match="null space"):
        ball([2.0, 1.0, 1.0], [1 / 3] * 3, 0.1, covariance=singular)
    with pytest.raises(PrudentError, match="semi-definite"):
        ball([2.0, 1.0], [0.5, 0.5], 0.1, covariance=[[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(PrudentError, match="symmetric"):
        ball([2.0, 1.0], [0.5, 0.5], 0.1, covariance=[[1.0, 0.5], [0.0, 1.0]])
    # Hilbert's matrix: integers after scaling, so its inverse is known exactly; condition number 1.7e13 at n = 10.
    n = 10
    scale = math.lcm(*range(1, 2 * n))
    hilbert = torch.tensor([[scale // (i + j + 1) for j in range(n)] for i in range(n)], dtype=torch.float64)

    def inverse(i: int, j: int) -> int:
        a = math.comb(n + i - 1, n - j) * math.comb(n + j - 1, n - i) * math.comb(i + j - 2, i - 1) ** 2
        return (-1) ** (i + j) * (i + j - 1) * a

    right = torch.tensor([float(i % 3) for i in range(n)], dtype=torch.float64)
    exact = [sum(inverse(i + 1, j + 1) * (j % 3) for j in range(n)) / scale for i in range(n)]
    assert solve_dense(hilbert, right).tolist() == pytest.approx(exact, rel=1e-12)


def test_beta_for_kl() -> None:
    generator = torch.Generator().manual_seed(5)
    reward = torch.randn(6, 8, 5, generator=generator, dtype=torch.float64)
    variance = torch.rand(6, 8, 5, generator=generator, dtype=torch.float64) + 0.05
    reference = torch.full((8, 5), 0.2, dtype=torch.float64)
    for form in FORMS:

        def at(beta: torch.Tensor, form: str = form) -> torch.Tensor:
            return solve(reward, reference, beta, variance=variance, form=form)

        each = beta_for_kl(at, reference, 0.6, shape=(6,))
        found = kl(at(each[:, None, None]), reference).mean(-1)
        assert torch.allclose(found, torch.full((6,), 0.6, dtype=torch.float64), rtol=1e-5)
        common = beta_for_kl(at, reference, 0.6)
        assert common.ndim == 0
        assert kl(at(common[None, None]), reference).mean().item() == pytest.approx(0.6, rel=1e-5)
        with pytest.raises(PrudentError, match="can't be reached by 6 of 6"):
            beta_for_kl(at, reference, math.log(5) + 0.1, shape=(6,))
        assert torch.isnan(beta_for_kl(at, reference, 2.0, shape=(6,), strict=False)).all()


@given(problems(zeros=False))
@SETTINGS
def test_the_forms_differ_in_their_level_alone(problem: tuple) -> None:
    """Equation (7): every form is the proportional one of r - lam; Bregman's lam tends to the weighted mean."""
    reward, reference, variance, beta = problem
    for form in ("bregman", "exact"):
        level = multiplier(reward, reference, beta, variance, form=form)
        assert level.shape == (1,)
        shifted = solve(reward - level[:, None], reference, beta, variance=variance)
        assert torch.allclose(shifted, solve(reward, reference, beta, variance=variance, form=form), atol=1e-9)
    precision = reference / variance
    weighted = (precision * reward).sum(-1) / precision.sum(-1)
    assert torch.allclose(multiplier(reward, reference, 1e7, variance), weighted, atol=1e-4)
    lam = multiplier(REWARD, UNIFORM, 1.0, VARIANCE, form="exact")
    assert lam.item() == pytest.approx(-0.109120, abs=6e-7)

"""Exact risks: published numbers, Cauchy-Schwarz and its equality, every shape of covariance, limits and errors."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prudent.errors import PrudentError
from prudent.theory import risk
from prudent.theory.covariances import LowRank, checked, group_index, inverse_quadratic, quadratic, times_inverse
from prudent.theory.risks import misspecified_risk, phi, risks
from prudent.theory.simulation import draw_rewards

TRUTH, VARIANCE = [1.0, 1.0, 1.0], [0.25, 1.0, 9.0]
GROUPS = (None, [0, 0, 1, 1, 1, 0])


def random_problem(seed: int, n: int, condition: float = 1e3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    values = condition ** -torch.rand(n, generator=generator, dtype=torch.float64)
    matrix = (basis * values) @ basis.T
    return torch.randn(n, generator=generator, dtype=torch.float64), (matrix + matrix.T) / 2


def test_published_risks() -> None:
    """Equations (13), (14)."""
    for covariance in (VARIANCE, torch.diag(torch.tensor(VARIANCE))):
        assert risk(TRUTH, covariance, aware=False) == pytest.approx(0.174368, abs=5e-7)
        assert risk(TRUTH, covariance, aware=True) == pytest.approx(0.011887, abs=5e-7)


def test_monte_carlo_of_the_definition() -> None:
    """Equation (12): the share of draws in which the policy ends at or below the reference."""
    drawn = draw_rewards(TRUTH, VARIANCE, 400_000, seed=1)
    truth, variance = torch.tensor(TRUTH, dtype=torch.float64), torch.tensor(VARIANCE, dtype=torch.float64)
    assert (drawn @ truth <= 0).double().mean().item() == pytest.approx(0.1743, abs=2e-3)
    assert ((drawn / variance) @ truth <= 0).double().mean().item() == pytest.approx(0.0118, abs=6e-4)
    reward, matrix = random_problem(3, 5, 100)
    drawn = draw_rewards(reward, matrix, 200_000, seed=2)
    free = risks(reward, matrix)
    assert ((drawn @ reward) <= 0).double().mean().item() == pytest.approx(free.vanilla, abs=3e-3)
    moved = reward - reward.mean()
    simplex = risks(reward, matrix, on_simplex=True)
    direction = times_inverse(matrix, reward, group_index(None, 5))
    assert ((drawn @ moved) <= 0).double().mean().item() == pytest.approx(simplex.vanilla, abs=3e-3)
    assert ((drawn @ direction) <= 0).double().mean().item() == pytest.approx(simplex.aware, abs=3e-3)


@given(st.integers(0, 2**31), st.integers(2, 9), st.sampled_from([1e1, 1e4, 1e8, 1e12]), st.booleans())
@settings(max_examples=100, deadline=None)
def test_aware_never_exceeds_vanilla(seed: int, n: int, condition: float, on_simplex: bool) -> None:
    """Equation (16), Cauchy-Schwarz, in both geometries and for diagonal covariances too."""
    reward, matrix = random_problem(seed, n, condition)
    for covariance in (matrix, matrix.diagonal()):
        for size in (0.3, 1e-3 * condition**-0.5):
            found = risks(reward * size, covariance, on_simplex=on_simplex)
            assert found.aware <= found.vanilla + 1e-12
            assert 0 <= found.aware <= 1 and 0 <= found.vanilla <= 1


@given(st.integers(0, 2**31), st.integers(2, 8), st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None)
def test_equality_cases(seed: int, n: int, size: float) -> None:
    """Equation (16): equality iff R is an eigenvector of Sigma: a multiple of the identity, and any eigenvector."""
    reward, matrix = random_problem(seed, n, 50)
    for on_simplex in (False, True):
        for covariance in (size * torch.eye(n, dtype=torch.float64), torch.full((n,), size, dtype=torch.float64)):
            found = risks(reward, covariance, on_simplex=on_simplex)
            assert found.aware == pytest.approx(found.vanilla, abs=1e-12)
    values, basis = torch.linalg.eigh(matrix)
    eigenvector = basis[:, 0] * values[0].sqrt()
    found = risks(eigenvector, matrix)
    assert found.aware == pytest.approx(found.vanilla, abs=1e-9) and found.aware == pytest.approx(phi(-1), abs=1e-9)
    other = basis[:, 0] + basis[:, -1]
    if values[-1] > 1.5 * values[0]:
        assert risks(other, matrix).aware < risks(other, matrix).vanilla


@given(st.integers(0, 2**31), st.sampled_from(GROUPS), st.booleans(), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_every_shape_of_covariance_agrees(seed: int, groups: list | None, on_simplex: bool, rank: int) -> None:
    """Low rank plus diagonal, dense and diagonal are one formula, equations (13) to (18)."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(6, rank, generator=generator, dtype=torch.float64)
    diagonal = torch.rand(6, generator=generator, dtype=torch.float64) + 0.05
    reward = torch.randn(6, generator=generator, dtype=torch.float64) * 0.4
    options = {"on_simplex": on_simplex, "groups": groups}
    pairs = ((LowRank(factor, diagonal), factor @ factor.T + torch.diag(diagonal)), (diagonal, torch.diag(diagonal)))
    for first, second in pairs:
        a, b = risks(reward, first, **options), risks(reward, second, **options)
        assert a.vanilla == pytest.approx(b.vanilla, abs=1e-10) and a.aware == pytest.approx(b.aware, abs=1e-10)
    constraint = group_index(groups, 6) if on_simplex else None
    direction = times_inverse(checked(pairs[0][0], reward), reward, constraint)
    dense = times_inverse(checked(pairs[0][1], reward), reward, constraint)
    assert torch.allclose(direction, dense, atol=1e-9)
    if on_simplex:  # M Sigma M = M, equation (18)
        again = times_inverse(pairs[0][1], pairs[0][1] @ dense, constraint)
        assert torch.allclose(again, dense, atol=1e-8)
        sums = torch.zeros(2, dtype=torch.float64).index_add(0, group_index(groups, 6), dense)
        assert sums.abs().max() < 1e-10


def test_prompts_are_groups() -> None:
    """Equations (17), (18) with one sum kept a prompt."""
    reward = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.3
    variance = torch.rand(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    labels = [prompt for prompt in "abc" for _ in range(4)]
    rows = risks(reward, variance, on_simplex=True)
    flat = risks(reward.flatten(), variance.flatten(), on_simplex=True, groups=labels)
    assert rows == flat
    assert rows != risks(reward.flatten(), variance.flatten(), on_simplex=True)
    assert risks(reward, variance) == risks(reward.flatten(), variance.flatten())


def exact_quadratic(matrix: list[list[int]], v: list[int], on_simplex: bool) -> float:
    """v' Sigma^-1 v (or v' M v) in rational arithmetic."""

    def solve(right: list[Fraction]) -> list[Fraction]:
        rows = [[Fraction(x) for x in row] + [r] for row, r in zip(matrix, right)]
        n = len(rows)
        for k in range(n):
            pivot = next(i for i in range(k, n) if rows[i][k] != 0)
            rows[k], rows[pivot] = rows[pivot], rows[k]
            rows[k] = [x / rows[k][k] for x in rows[k]]
            for i in range(n):
                if i != k:
                    rows[i] = [a - rows[i][k] * b for a, b in zip(rows[i], rows[k])]
        return [row[-1] for row in rows]

    x, ones = solve([Fraction(value) for value in v]), solve([Fraction(1)] * len(v))
    total = sum(a * b for a, b in zip(x, v))
    return float(total - sum(x) ** 2 / sum(ones) if on_simplex else total)


@pytest.mark.parametrize("on_simplex", (False, True))
def test_condition_number_of_a_trillion(on_simplex: bool) -> None:
    """Equations (14), (18) against rational arithmetic: integer matrices of condition number 10^12 and more."""
    generator = torch.Generator().manual_seed(4)
    for trial in range(5):
        root = torch.randint(-9, 10, (6, 6), generator=generator, dtype=torch.float64)
        root[:, -1] = root[:, :5].sum(-1)  # rank 5 ...
        matrix = (root @ root.T) * 2.0**31 + torch.eye(6, dtype=torch.float64)  # ... and a least eigenvalue of 1
        assert torch.linalg.cond(matrix) > 1e12
        v = torch.randint(1, 5, (6,), generator=generator, dtype=torch.float64)
        v[0] = trial
        expected = exact_quadratic(matrix.long().tolist(), v.long().tolist(), on_simplex)
        found = inverse_quadratic(matrix, v, group_index(None, 6) if on_simplex else None)
        assert found == pytest.approx(expected, rel=1e-9)
        assert risk(v, matrix, aware=True, on_simplex=on_simplex) == pytest.approx(phi(-math.sqrt(expected)), rel=1e-6)


def test_singular_covariance_is_a_limit() -> None:
    """Equations (14), (18) where Sigma has no inverse: the limit of Sigma + c I as c falls to 0."""
    matrix = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    ridge = 1e-9 * torch.eye(3, dtype=torch.float64)
    inside, outside = [1.0, 1.0, 0.5], [1.0, 0.0, 0.5]
    assert risk(inside, matrix, aware=True) == pytest.approx(risk(inside, matrix + ridge, aware=True), abs=1e-8)
    assert risk(outside, matrix, aware=True) == 0.0 == pytest.approx(risk(outside, matrix + ridge, aware=True))
    known = torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64)
    for reward in ([1.0, 0.3, 0.2], [0.0, 0.0, 1.0]):
        near = risk(reward, known.clamp(min=1e-12), aware=True, on_simplex=True)
        for covariance in (known, torch.diag(known)):
            assert risk(reward, covariance, aware=True, on_simplex=True) == pytest.approx(near, abs=1e-9)
    assert risk([0.0, 1.0, -1.0], [0.0, 0.0, 1.0], aware=True, on_simplex=True) == 0.0
    assert risk([1.0, 2.0], torch.zeros(2), aware=False) == 0.0 == risk([1.0, 2.0], torch.zeros(2), aware=True)


def test_rewards_that_tell_nothing_apart() -> None:
    """Equation (12): never better than the reference, so risk 1."""
    assert risk([0.0, 0.0], [1.0, 2.0], aware=True) == 1.0 == risk([0.0, 0.0], [1.0, 2.0], aware=False)
    for aware in (False, True):
        assert risk([0.1] * 3, VARIANCE, aware=aware, on_simplex=True) == 1.0
        assert risk([0.1] * 3, VARIANCE, aware=aware) < 0.5


def test_covariance_of_centred_scores() -> None:
    """Centring makes Sigma singular along 1; on the simplex that changes nothing (equation (18))."""
    scores = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reward = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.5
    raw = torch.cov(scores.T)
    centred = torch.cov((scores - scores.mean(1, keepdim=True)).T)
    a, b = (risks(reward, c, on_simplex=True) for c in (raw, centred))
    assert a.aware == pytest.approx(b.aware, abs=1e-9) and a.vanilla == pytest.approx(b.vanilla, abs=1e-9)
    c = risks(reward, LowRank((scores - scores.mean(0)).T / 49**0.5), on_simplex=True)
    assert c.aware == pytest.approx(a.aware, abs=1e-9)


@given(st.integers(0, 2**31), st.booleans())
@settings(max_examples=60, deadline=None)
def test_misspecified_covariance(seed: int, on_simplex: bool) -> None:
    """Equation (19): the truth assumed is the aware risk, the identity the vanilla risk, a multiple changes nothing."""
    reward, matrix = random_problem(seed, 5, 100)
    found = risks(reward, matrix, on_simplex=on_simplex)
    options = {"on_simplex": on_simplex}
    assert misspecified_risk(reward, matrix, 7 * matrix, **options) == pytest.approx(found.aware, abs=1e-10)
    assert misspecified_risk(reward, matrix, torch.ones(5), **options) == pytest.approx(found.vanilla, abs=1e-10)
    wrong = misspecified_risk(reward, matrix, torch.rand(5) + 0.1, **options)
    assert found.aware - 1e-12 <= wrong <= 1


def test_large_and_low_rank_without_a_dense_matrix() -> None:
    n = 30_000
    generator = torch.Generator().manual_seed(0)
    reward = torch.randn(n, generator=generator, dtype=torch.float64) * 5e-3
    variance = torch.rand(n, generator=generator, dtype=torch.float64) + 0.1
    factor = torch.randn(n, 8, generator=generator, dtype=torch.float64)
    start = time.perf_counter()
    diagonal, low_rank = risks(reward, variance, on_simplex=True), risks(reward, LowRank(factor, variance))
    assert time.perf_counter() - start < 60  # a dense matrix would hold 7 GB and take minutes to factor
    assert 0 < diagonal.aware < diagonal.vanilla < 0.5 and 0 < low_rank.aware < low_rank.vanilla < 0.5
    inner = quadratic(LowRank(factor, variance), reward)
    assert inner == pytest.approx(float((factor.T @ reward).square().sum() + (variance * reward**2).sum()))


@pytest.mark.parametrize(
    ("covariance", "words"),
    (
        ([1.0, -1.0, 1.0], "-1.0"),
        ([[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]], "semi-definite"),
        ([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], "symmetric"),
        ([1.0, math.nan, 1.0], "nan"),
        ([1.0, 1.0], "shape"),
        (LowRank(torch.ones(2, 1)), "factor"),
        (LowRank(torch.ones(3, 1), torch.zeros(3)), "positive"),
    ),
)
def test_errors(covariance: object, words: str) -> None:
    with pytest.raises(PrudentError, match=words):
        risk(TRUTH, covariance, aware=True)  # type: ignore[arg-type]

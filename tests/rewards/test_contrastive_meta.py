import math

import pytest
import torch

from prudent import PrudentError
from prudent.rewards.transformers.contrastive import contrastive_term, simcse, sinkhorn, swav, views
from prudent.rewards.transformers.meta import ascended, difference_objective


def test_simcse_of_equal_similarities_is_the_log_of_the_batch():
    """Section 8 (e)."""
    same = torch.ones(6, 4)
    assert float(simcse(same, same)) == pytest.approx(math.log(6), abs=1e-6)
    assert float(simcse(torch.eye(6), torch.eye(6))) < 1e-6
    one = torch.randn(1, 4)
    assert float(simcse(one, one)) == 0


def test_simcse_is_its_formula_and_members_don_t_mix():
    first, second = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    found = simcse(first, second, temperature=0.2)
    for member in range(3):
        a = first[member] / first[member].norm(dim=1, keepdim=True)
        b = second[member] / second[member].norm(dim=1, keepdim=True)
        weight = torch.exp(a @ b.T / 0.2)
        wanted = -(weight.diagonal() / weight.sum(1)).log().mean()
        assert float(found[member]) == pytest.approx(float(wanted))


def test_sinkhorn_codes_share_the_batch_among_prototypes():
    """Section 8 (g)."""
    codes = sinkhorn(torch.randn(2, 40, 8).double().tanh())
    assert torch.allclose(codes.sum(-2), torch.full((2, 8), 5.0, dtype=torch.float64), atol=1e-3)
    assert torch.allclose(codes.sum(-1), torch.ones(2, 40, dtype=torch.float64), atol=1e-9)
    assert bool((codes >= 0).all())


def test_swav_pulls_two_views_together():
    generator = torch.Generator().manual_seed(0)
    first, prototypes = torch.randn(30, 6, generator=generator), torch.randn(5, 6, generator=generator)
    near = first + 0.01 * torch.randn(30, 6, generator=generator)
    far = torch.randn(30, 6, generator=generator)
    assert float(swav(first, near, prototypes)) < float(swav(first, far, prototypes))
    prototypes.requires_grad_()
    swav(first, near, prototypes).backward()
    assert float(prototypes.grad.abs().sum()) > 0


def test_views_of_a_pair():
    chosen, rejected = torch.randn(2, 3, 4, 5)
    assert views(chosen, rejected, "feature").shape == (3, 8, 5)
    assert torch.equal(views(chosen, rejected, "difference"), chosen - rejected)
    for call in (
        lambda: views(chosen, rejected, "logit"),
        lambda: simcse(chosen, rejected[:, :2]),
        lambda: swav(chosen, rejected[:, :2], torch.randn(3, 2, 5)),
        lambda: contrastive_term("swav", chosen, rejected),
        lambda: contrastive_term("triplet", chosen, rejected),
    ):
        with pytest.raises(PrudentError):
            call()


def test_difference_objective_is_its_double_sum():
    scores = torch.randn(4, 5, dtype=torch.float64)
    total = 0.0
    for prompt in scores.tolist():
        for i in range(5):
            for j in range(i + 1, 5):
                total += 2 / 25 / (1 + math.exp(-abs(prompt[i] - prompt[j])))
    assert float(difference_objective(scores)) == pytest.approx(total / 4)
    assert float(difference_objective(torch.zeros(1, 4))) == pytest.approx(3 / 8)
    with pytest.raises(PrudentError, match="at least 2"):
        difference_objective(torch.zeros(3, 1))


def test_an_ascent_raises_the_objective_and_comes_back():
    """Section 8 (f): eta > 0 raises J inside the step; the parameters are restored bit for bit."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, generator=generator).requires_grad_()
    pool = torch.randn(7, 4, 6, generator=generator)
    before = weight.detach().clone()

    def objective() -> torch.Tensor:
        return difference_objective(pool @ weight)

    with ascended([weight], objective, 0.5) as value:
        assert float(objective().detach()) > float(value)
        assert not torch.equal(weight.detach(), before)
    assert torch.equal(weight.detach(), before)
    with ascended([weight], objective, 0.0) as value:
        assert value is None and torch.equal(weight.detach(), before)
    with pytest.raises(PrudentError, match="nan"), ascended([weight], lambda: objective() * math.nan, 0.1):
        pass

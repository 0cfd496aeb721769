"""UML: a reward model kept honest by two views of one prompt, the multi-view information bottleneck of 2403.19279.

Frozen features go through a small trainable trunk; the reward is a linear head on it, and the bottleneck's two networks
(mean and log-variance of z) stand on it too. Two responses sampled for one prompt are its two views.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from prudent.errors import PrudentError
from prudent.seeding import Seed, spawn, torch_generator

LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE = -6.0, 4.0


def gaussian_kl(
    mean: torch.Tensor, log_variance: torch.Tensor, other_mean: torch.Tensor, other_log_variance: torch.Tensor
) -> torch.Tensor:
    """KL(N(mean, exp(log_variance)) || N(other ...)) of diagonal Gaussians, summed over the last axis, in nats."""
    ratio = torch.exp(log_variance - other_log_variance)
    distance = (mean - other_mean).square() * torch.exp(-other_log_variance)
    return 0.5 * (ratio + distance - 1 + other_log_variance - log_variance).sum(-1)


def symmetric_kl(
    mean: torch.Tensor, log_variance: torch.Tensor, other_mean: torch.Tensor, other_log_variance: torch.Tensor
) -> torch.Tensor:
    """D_SKL: half the sum of the two KL divergences."""
    forth = gaussian_kl(mean, log_variance, other_mean, other_log_variance)
    return 0.5 * (forth + gaussian_kl(other_mean, other_log_variance, mean, log_variance))


def jensen_shannon_information(joint: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
    """I_JS = E_joint[-softplus(-T)] - E_product[softplus(T)] of critic values T.

    At most twice the Jensen-Shannon divergence of the joint and the product of the marginals, less 2 ln 2: the best
    value is -2 ln 2 at independence, and grows towards 0 with dependence.
    """
    softplus = nn.functional.softplus
    return -softplus(-joint).mean() - softplus(product).mean()


class ViewModel(nn.Module):
    """Reward head and bottleneck on one trunk. forward(features (N, d)) -> rewards (N,)."""

    def __init__(self, width: int, hidden: int, latent: int, generator: torch.Generator) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(width, hidden), nn.Tanh())
        self.reward = nn.Linear(hidden, 1, bias=False)
        self.mean = _three_layers(hidden, latent)
        self.log_variance = _three_layers(hidden, latent)
        self.critic = nn.Sequential(nn.Linear(2 * latent, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        for parameter in self.parameters():
            with torch.no_grad():
                bound = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.0
                parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Scores (n,) of features (n, d)."""
        return self.reward(self.trunk(features.float()))[..., 0]

    def bottleneck(self, one: torch.Tensor, other: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """L_M = -I_JS(z1; z2) + D_SKL of two views (B, d) of the same prompts, row by row."""
        if len(one) < 2:
            raise PrudentError("the bottleneck needs views of at least two prompts at a time: it contrasts them")
        hidden = self.trunk(torch.cat([one, other]))
        mean = self.mean(hidden)
        log_variance = self.log_variance(hidden).clamp(LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE)
        noise = torch.randn(mean.shape, generator=generator)
        first, second = (mean + noise * torch.exp(0.5 * log_variance)).chunk(2)
        size = len(first)
        left = first[:, None].expand(size, size, -1)
        critic = self.critic(torch.cat([left, second[None].expand(size, size, -1)], dim=-1))[..., 0]
        same = torch.eye(size, dtype=torch.bool)
        information = jensen_shannon_information(critic[same], critic[~same])
        means, variances = mean.chunk(2), log_variance.chunk(2)
        return symmetric_kl(means[0], variances[0], means[1], variances[1]).mean() - information


def _three_layers(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))


@dataclass(frozen=True)
class ViewOptions:
    """weight: of the bottleneck beside the preferences' loss. hidden, latent: widths. decay: AdamW's weight decay."""

    weight: float = 0.5
    hidden: int = 64
    latent: int = 16
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 1e-3
    decay: float = 1e-2


def fit_views(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    views: tuple[torch.Tensor, torch.Tensor] | None = None,
    options: ViewOptions = ViewOptions(),
    *,
    seed: Seed = 0,
) -> ViewModel:
    """A reward model from pairs (n, d) each, with the bottleneck on ``views`` ((m, d), (m, d)).

    The model maps features (..., d) to rewards (...). weight 0 or no views is ordinary Bradley-Terry training, to
    the bit: the order of pairs and the start depend on the seed alone.
    """
    start, pair_seed, view_seed, noise_seed = spawn(seed, 4)
    model = ViewModel(chosen.shape[-1], options.hidden, options.latent, torch_generator(start))
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.decay)
    pairs, other, noise = (torch_generator(s) for s in (pair_seed, view_seed, noise_seed))
    even = torch.ones(len(chosen))
    for _ in range(options.steps):
        rows = torch.multinomial(even, min(options.batch_size, len(chosen)), replacement=True, generator=pairs)
        loss = nn.functional.softplus(model(rejected[rows]) - model(chosen[rows])).mean()
        if views is not None and options.weight > 0:
            picked = torch.randperm(len(views[0]), generator=other)[: options.batch_size]
            loss = loss + options.weight * model.bottleneck(views[0][picked], views[1][picked], noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def view_model_of(state: dict[str, torch.Tensor]) -> ViewModel:
    """The model whose ``state_dict`` is given."""
    hidden, width = state["trunk.0.weight"].shape
    model = ViewModel(width, hidden, state["mean.4.weight"].shape[0], torch.Generator())
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)

"""Does the certificate's 95 % bound hold its level at every number of members?

    python benchmarks/certificate_level.py [--sets 400] [--members 5 10 20 40 0] [--every 10]

A data set gives an estimate R + eta with eta ~ N(0, Sigma), and members drawn about it with the same Sigma, as a
bootstrap's are. 0 members: Sigma itself is given, so that what is missed isn't the members' doing. Sigma, of low rank
with unequal variances, and the truth R are drawn anew for each of the sets. The bound's quantile, which takes most of
the time and hardly differs between the sets, is simulated for each ``every``-th.
"""

from __future__ import annotations

import argparse

import results
import torch

from prudent.evaluation.intervals import wilson
from prudent.theory.certificates import (
    RULES,
    belief_from_members,
    belief_from_posterior,
    bound_quantile,
    certify,
    policy_of,
)

PROMPTS, RESPONSES, RANK = 20, 8, 60


def held(members: int, beta: float, sets: int, every: int) -> dict[str, int]:
    """How many of ``sets`` data sets' bounds held, by method."""
    g = torch.Generator().manual_seed(members)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    reference = torch.full((PROMPTS, RESPONSES), 1 / RESPONSES, dtype=torch.float64)
    count = dict.fromkeys(RULES, 0)
    quantile: dict[str, float] = {}
    for number in range(sets):
        factor = 0.4 / RANK**0.5 * normal(PROMPTS, RESPONSES, RANK) * torch.exp(0.7 * normal(PROMPTS, RESPONSES, 1))
        truth = 0.3 * normal(PROMPTS, RESPONSES)
        drawn = torch.einsum("pnr,kr->kpn", factor, normal(members + 1, RANK))
        if members:
            belief = belief_from_members(truth + drawn[0] + drawn[1:], reference)
        else:
            belief = belief_from_posterior(truth + drawn[0], factor, reference)
        for method in RULES:
            step = policy_of(belief, belief.reward, beta, method) - reference
            if number % every == 0:
                quantile[method] = bound_quantile(belief, beta, method)
            bound = certify(belief, beta, method, quantile=quantile[method]).bound
            count[method] += float((step * truth).sum(-1).mean()) >= bound
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", type=int, default=400)
    parser.add_argument("--members", type=int, nargs="+", default=[5, 10, 20, 40, 0])
    parser.add_argument("--betas", type=float, nargs="+", default=[0.3, 1.0])
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(f"| members | beta | {' | '.join(RULES)} |\n{'|---' * (2 + len(RULES))}|")
    for many in options.members:
        for weight in options.betas:
            found = held(many, weight, options.sets, options.every)
            rows.append({"members": many, "beta": weight, **{name: n / options.sets for name, n in found.items()}})
            print(
                f"| {many or 'known'} | {weight:g} | {' | '.join(f'{n / options.sets:.3f}' for n in found.values())} |",
                flush=True,
            )
    shares = [row[name] for row in rows for name in RULES]
    missed = [share for share in shares if wilson(round(share * options.sets), options.sets, 0.999)[1] < 0.95]
    made = [
        results.figure("lowest share held of all settings", 100 * min(shares), unit="%"),
        results.figure("settings held in fewer than 95 %, beyond chance (99.9 %)", len(missed), unit="", at_most=0),
    ]
    results.write(options.out, "Does the certificate's bound hold its level?", made, rows=rows)

"""A small world that every test of the recommender can afford."""

from dataclasses import replace

import numpy as np
import torch

from prudent.recommend.models import BackboneOptions
from prudent.recommend.pipeline import Settings
from prudent.recommend.planted import plant, planted_data
from prudent.recommend.splits import Data
from prudent.recommend.training import Schedule
from prudent.recommend.uncertainty import UncertaintyOptions

SHORT = Schedule(learning_rate=5e-3, batch=32, epochs=4)
TINY = BackboneOptions(width=8, hidden=16, latent=8, factors=8, iterations=3)


def data(users: int = 60, items: int = 40, seed: int = 0) -> Data:
    return planted_data(plant(users, items, density=0.2, rank=3, seed=seed), seed)[0]


def settings(**changes) -> Settings:
    quick = Settings(options=TINY, uncertainty=UncertaintyOptions(width=16), schedule=SHORT, stage=SHORT)
    return replace(quick, **changes)


def dense(scorer, users: int) -> torch.Tensor:
    with torch.no_grad():
        return scorer(np.arange(users)).clone()

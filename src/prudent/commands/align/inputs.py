"""From settings to a problem: the embedded world with its gold, or a person's preferences and a judge."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from prudent.commands.align.options import AlignOptions
from prudent.commands.align.problem import Judged, Problem, crossed, drawn_heads, standardised_by
from prudent.commands.preflight.inputs import encode_distinct, held_out_prompts, prompt_origins, read_inputs
from prudent.commands.preflight.options import PreflightOptions
from prudent.commands.preflight.truth import accuracy
from prudent.data.failing import Origin, origins_of, picked, use_rows
from prudent.data.pools import read_prompts
from prudent.demo.world import World, draw_preferences, gold_reward, load_world
from prudent.errors import PrudentError
from prudent.features.limits import same_responses, words
from prudent.features.models import DEFAULT_MODEL, context_of
from prudent.rewards.containers import CandidateFeatures, PairFeatures, candidate_features, combine
from prudent.rewards.families import pair_scores
from prudent.rewards.model import RewardModel
from prudent.seeding import Seed, numpy_generator, spawn

SIDE_NOTES = {
    "balanced": "opposites in equal numbers: no rule blind to the prompt pays, and these reward models learn little",
    "restraint": "all ask for less (at most n words, no commas, ...), which a rule blind to the prompt can learn too",
    "demand": "all ask for more (at least n words, commas, ...), which a rule blind to the prompt can learn too",
}
Sampler = Callable[[Sequence[Any], Seed], list[list[str]]]


class DemoSides(NamedTuple):
    """The embedded world in two parts. world: the training part, whose preferences reward models learn from; features:
    of its packaged responses. train, test: with samples of the policy's own reference. judged: gold."""

    world: World
    features: torch.Tensor
    train: CandidateFeatures
    test: CandidateFeatures
    judged: Judged


def demo_sides(settings: AlignOptions, encoder: Any, sample: Sampler, split: Seed, sampling: Seed) -> DemoSides:
    """Prompts to train on and to judge on, drawn from the side of the embedded world that the settings name."""
    wanted = settings.train_prompts + settings.eval_prompts
    world = load_world(wanted if settings.demo_side == "balanced" else None, settings.demo_side)
    fitting(world.prompts, [Origin(row + 1) for row in range(len(world))], "embedded prompts", encoder, settings)
    if wanted > len(world):
        raise PrudentError(
            f"--train-prompts and --eval-prompts ask for {wanted} prompts, but the embedded world has {len(world)} "
            f"on the side {settings.demo_side}; ask for fewer"
        )
    order = numpy_generator(split).permutation(len(world))[:wanted]
    train, test = (
        world.take(sorted(part)) for part in (order[: settings.train_prompts], order[settings.train_prompts :])
    )
    own = _encode_side(encoder, train.prompts, train.responses)
    if settings.policy == DEFAULT_MODEL:  # the embedded responses are its own samples
        sides = [own, _encode_side(encoder, test.prompts, test.responses)]
    else:
        sides = [
            sampled_side(part.prompts, encoder, sample, seed) for part, seed in zip((train, test), spawn(sampling, 2))
        ]
    judged = Judged("gold", "gold, 0 to 1", _gold_of(train), _gold_of(test), {"exact": True})
    return DemoSides(train, own.features, sides[0], sides[1], judged)


def demo_problem(settings: AlignOptions, encoder: Any, sample: Sampler) -> Problem:
    """The embedded world: each run draws its own noisy preferences on the training prompts; gold is exact."""
    split, learn, sampling = spawn(settings.seed, 3)
    found = demo_sides(settings, encoder, sample, split, sampling)
    heads = []
    for seed in spawn(learn, settings.runs):
        draw_seed, fit_seed = spawn(seed, 2)
        pairs = demo_pairs(found, settings, draw_seed)
        heads += drawn_heads(pairs, 1, settings.members, settings.ridge_value, fit_seed)
    notes = [
        f"{len(found.train)} embedded prompts to train on, {len(found.test)} others to judge on; every run draws its "
        f"own {settings.demo_pairs} preferences on the training prompts (Bradley-Terry from gold, slope "
        f"{settings.demo_slope:g})",
        f"constraints of these prompts: {SIDE_NOTES[settings.demo_side]}",
        "no reward model sees gold; gold is computed by a program and exact for any text",
    ]
    return Problem(found.train, found.test, heads, [found.judged] * settings.runs, notes)


def _gold_of(world: World) -> Any:
    return lambda prompts, texts, features: gold_reward([world.ids[p] for p in prompts], list(texts))


def demo_pairs(found: DemoSides, settings: AlignOptions, seed: Seed) -> PairFeatures:
    """Noisy preferences on the training part, as features."""
    prompt, chosen, rejected = draw_preferences(
        found.world, range(len(found.world)), settings.demo_pairs, settings.demo_slope, seed
    )
    better, worse = found.features[prompt, chosen], found.features[prompt, rejected]
    return PairFeatures(better, worse, prompt.tolist())


def _encode_side(encoder: Any, prompts: Sequence[Any], responses: Sequence[Sequence[str]]) -> CandidateFeatures:
    owners = [prompt for prompt, texts in zip(prompts, responses, strict=True) for _ in texts]
    flat = encoder.encode(owners, [text for texts in responses for text in texts])
    return candidate_features(flat, list(prompts), responses)


def sampled_side(prompts: Sequence[Any], encoder: Any, sample: Sampler, seed: Seed) -> CandidateFeatures:
    """A side whose samples are drawn from the reference now."""
    return _encode_side(encoder, prompts, sample(prompts, seed))


def read_problem(settings: AlignOptions, encoder: Any, sample: Sampler) -> Problem:
    """A person's preferences: policies train on the pairs' prompts (or --prompts) and are judged on held-out ones.

    sample: (prompts, seed) -> samples of the reference policy.
    """
    shared = ("out", "preferences", "max_pairs", "on_error", "column", "without_prompt", "holdout", "seed")
    found = read_inputs(PreflightOptions(**{name: getattr(settings, name) for name in shared}))
    pick, sampling, draw = spawn(settings.seed, 3)
    encode_pairs = functools.partial(encode_distinct, encoder, notes=found.notes, on_error=settings.on_error)
    pairs = combine([encode_pairs(source.train, source.name)[1] for source in found.sources])
    held = held_out_prompts(found, settings.eval_prompts, settings.seed)
    test_prompts, notes = fitting(held, prompt_origins(found, held), "held-out prompts", encoder, settings)
    found.notes.extend(notes)
    train_prompts = _training_prompts(settings, found, encoder, pick)
    sides = [
        sampled_side(prompts, encoder, sample, seed)
        for prompts, seed in zip((train_prompts, test_prompts), spawn(sampling, 2))
    ]
    by_name = dict(zip(("train", "test"), sides))

    def encode(side: str, prompts: Sequence[int], texts: Sequence[str]) -> torch.Tensor:
        return encoder.encode([by_name[side].prompts[p] for p in prompts], list(texts))

    if settings.judge is None:
        heads, judges = crossed(pairs, settings.runs, settings.members, settings.ridge_value, encode, draw)
        scaled = {id(j): standardised_by(j, sides[1]) for j in judges}
        return Problem(sides[0], sides[1], heads, [scaled[id(j)] for j in judges], found.notes)
    heads = drawn_heads(pairs, settings.runs, settings.members, settings.ridge_value, draw)
    judged = standardised_by(_model_judge(settings, settings.judge, by_name, found), sides[1])
    return Problem(sides[0], sides[1], heads, [judged] * settings.runs, found.notes)


def _training_prompts(settings: AlignOptions, found: Any, encoder: Any, seed: Seed) -> list[Any]:
    if settings.prompts is None:
        seen = {str(prompt): prompt for source in found.sources for prompt in source.train["prompt"]}
        pool = [seen[key] for key in sorted(seen)]
        origins = prompt_origins(found, pool, "train")
    else:
        pool, origins = read_prompts(settings.prompts, settings.columns)
    pool, notes = fitting(pool, origins, settings.prompts or "training prompts", encoder, settings)
    found.notes.extend(notes)
    order = numpy_generator(seed).permutation(len(pool))[: settings.train_prompts]
    if len(order) < settings.prompts_per_step:
        raise PrudentError(
            f"{len(order)} prompts to train on, fewer than --prompts-per-step {settings.prompts_per_step}; give more"
        )
    return [pool[i] for i in order]


CLOSING = 8  # tokens left for the marks that close a completion


def fitting(
    prompts: Sequence[Any], origins: Sequence[Origin], source: str, encoder: Any, settings: AlignOptions
) -> tuple[list[Any], list[str]]:
    """Prompts that leave room for a completion and its closing marks within the encoder's limit and the model's
    context, and notes that name the others. PrudentError where none is left; prompts that can't be rendered are named
    in one DataError, or left out with ``on_error="skip"``."""
    limit = min(encoder.max_length, context_of(encoder.model) or encoder.max_length)
    rendered, rows, bad = use_rows(
        lambda rows: encoder.renderer.prompts([prompts[row] for row in rows]), origins, source, settings.on_error
    )
    kept = []
    for row, ids in zip(rows, rendered, strict=True):
        if len(ids) + settings.max_new_tokens + CLOSING <= limit:
            kept.append(prompts[row])
            continue
        said = f"its {len(ids)} tokens leave no room for --max-new-tokens {settings.max_new_tokens}"
        bad.append(origins[row].bad(f"{said} within {limit}, the smaller of --max-length and the model's context"))
    if not kept:
        raise PrudentError(
            f"{source}: no prompt is left of {len(prompts)}, the first: {bad[0]}; lower --max-new-tokens, raise "
            "--max-length, or give shorter prompts"
        )
    names = "; ".join(map(str, bad[:20])) + (f"; and {len(bad) - 20} more" if len(bad) > 20 else "")
    return kept, [f"{source}: {len(bad)} of {len(prompts)} prompts were left out: {names}"] if bad else []


def _model_judge(settings: AlignOptions, name: str, sides: dict[str, CandidateFeatures], found: Any) -> Judged:
    """A reward model as the truth; what it can't score of the test pairs, or cuts of the samples, is in the notes."""
    model = RewardModel.load(name)

    def value(side: str) -> Any:
        def of(prompts: Sequence[int], texts: Sequence[str], features: torch.Tensor | None) -> torch.Tensor:
            return model.score([sides[side].prompts[p] for p in prompts], list(texts)).double().mean(0)

        return of

    test = found.sources[0].test
    (chosen, rejected), _, bad = use_rows(
        lambda rows: pair_scores(model, picked(test, rows)), origins_of(test), "test pairs", settings.on_error
    )
    if bad:
        found.notes.append(f"judge: {len(bad)} test pairs can't be scored and were left out, the first: {bad[0]}")
    owners, texts = sides["test"].flat()
    seen = model.shown([sides["test"].prompts[p] for p in owners], texts)
    if said := words(same_responses(seen, owners, texts)):
        found.notes.append(f"judge, of the reference's samples: {said}")
    right = accuracy((chosen - rejected).mean(0))
    return Judged("judge", "units of the judge's score", value("train"), value("test"), right)

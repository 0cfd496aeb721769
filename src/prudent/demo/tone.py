"""Friendly tone: a gold reward that anyone recognises, defined for any text, by a word list of our own.

A text earns a point for each different friendly word and loses one for each different cold word; a word of negation
just before turns a point round. Points are divided by the number of words, so that neither a long text nor a short one
is favoured by its length alone (docs/embedded-data.md measures it), and squashed to (-1, 1). A text that is no text
earns nothing by it (``constraints.soundness``): a list of friendly words isn't friendly.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from prudent.demo.constraints import soundness, words
from prudent.demo.world import World, load_world

FRIENDLY_TEXT = """
thank thanks thankful grateful gratitude please welcome hello hi hey greetings cheers congratulations bravo
happy happily happiness glad gladly delighted delight delightful delights joy joyful enjoy enjoyed enjoyable pleased
pleasure cheerful cheer fun smile smiles smiling laugh laughter excited exciting love loved lovely loves loving
beloved dear darling sweet adore adorable heart warm warmly warmth cozy cosy hug hugs kindness kindly friendly
friend friends buddy pal caring gentle gently generous thoughtful tender affection good great wonderful amazing
awesome excellent fantastic marvellous marvelous brilliant superb splendid magnificent beautiful beautifully beauty
gorgeous charming charm pretty perfect perfectly best better nice nicely fine fresh delicious tasty bright shining
shine sunny sparkling golden magic magical dream dreams hope hopeful hopefully wish wishes bless blessed blessing
helpful help helps support supportive encourage encouraging trust honest loyal faithful patient patience brave
courage proud pride confident strong peace peaceful calm calming relax relaxing comfort comfortable comforting
safe ease easy easily smooth healthy success successful win wins winner victory celebrate celebrating celebration
gift gifts treasure treasured precious cherish cherished favorite favourite special unique inspiring inspired
inspiration admire respect honor honour praise appreciate appreciated worthy sincere sincerely together share
sharing family home laughing playful graceful grace elegant exquisite refreshing vibrant lively bliss paradise
heavenly yay wow hooray absolutely certainly sure indeed remarkable incredible stunning impressive satisfying
satisfied luck lucky fortunate ideal reliable clean useful
"""
FRIENDLY = frozenset(FRIENDLY_TEXT.split())
COLD_TEXT = """
hate hated hates hatred angry anger rage furious mad annoyed annoying irritated bitter cruel mean nasty rude harsh
hostile vicious brutal savage wicked evil sinister awful terrible horrible dreadful ghastly appalling bad badly
worse worst poor poorly ugly disgusting gross filthy dirty dirt rotten foul stink stinks smelly sick sickness ill
disease pain painful hurt hurts hurting suffer suffering agony ache wound wounded injury injured harm harmful damage
damaged destroy destroyed destruction ruin ruined broke broken break crash crushed kill killed killing killer dead
death die died dies dying murder blood bloody war fight fighting battle attack weapon enemy enemies violence violent
sad sadly sadness sorrow sorry grief cry crying tears lonely alone miserable misery depressed depressing despair
hopeless gloomy grim bleak afraid fear fears scared scary frightening terrified terror horror panic worry worried
anxious nervous dread danger dangerous threat threaten warning risk risky stupid idiot fool foolish dumb silly
ridiculous pathetic useless worthless pointless hopelessly boring dull lazy tired weak fail failed fails failing
failure lose loses losing loser lost loss wrong wrongly mistake mistakes error errors fault guilty blame shame
ashamed problem problems trouble troubles difficult difficulty impossible unable refuse refused reject rejected deny
complain complaint lie lies liar lying cheat fake fraud steal stolen thief crime criminal guilt curse cursed damn
hell shit crap fuck fucking suck sucks unhappy unfair unfortunate unfortunately unkind unpleasant disappointed
disappointing disappointment regret miss ignore ignored forbidden never nothing nobody cold empty dark darkness
confused confusing mess messy chaos jealous greedy selfish arrogant shut stop quit hard strange weird shock shocked
"""
COLD = frozenset(COLD_TEXT.split())
NEGATIONS_TEXT = "not no never without hardly barely nor isn't wasn't aren't don't doesn't didn't can't"
NEGATIONS = frozenset(NEGATIONS_TEXT.split())
REACH = 2  # words that a negation reaches over: "not a good idea" turns "good" round
SCALE = 10.0  # one point in ten words is worth tanh(1) = .76, one in 40 words tanh(1/4) = .24
PROMPTS = 160  # of the embedded world, a balanced half: those whose responses have shipped features


def points(text: str) -> int:
    """Different friendly words minus different cold words; one that follows a negation counts the other way."""
    found = [part.lower().replace("’", "'") for part in words(text)]
    seen: dict[str, int] = {}
    for index, word in enumerate(found):
        sign = (word in FRIENDLY) - (word in COLD)
        if sign and word not in seen:
            negated = any(before in NEGATIONS for before in found[max(0, index - REACH) : index])
            seen[word] = -sign if negated else sign
    return sum(seen.values())


def tone(text: str) -> float:
    """Friendliness in (-1, 1) of any text; 0 where no listed word occurs, and for an empty text."""
    count = len(words(text))
    return soundness(text) * math.tanh(SCALE * points(text) / count) if count else 0.0


def tone_world() -> World:
    """The first 160 prompts of the embedded world, with ``tone`` as the gold of every response."""
    world = load_world(PROMPTS)
    gold = torch.tensor([[tone(text) for text in texts] for texts in world.responses], dtype=torch.float64)
    return replace(world, gold=gold)

"""Sentences about what a scene shows, in varied wording; they never say who the person is."""

import numpy as np

from feedface.synthetic.world.identity import GENDERS, Identities
from feedface.synthetic.world.scene import BACKGROUNDS, CLOTHES, COLOUR_NAMES, EXPRESSIONS, GLASSES, HATS, Scenes

_OPENINGS = ("a photo of", "a portrait of", "a picture of", "")
_NEUTRAL = ("", "calm", "serious")
_MOODS = {"smile": ("smiling", "happy"), "laugh": ("laughing",), "sad": ("sad", "unhappy"),
          "surprised": ("surprised", "astonished")}  # fmt: skip
_PLACES = {
    "beach": ("on a beach", "at the beach"), "forest": ("in a forest", "among green trees"),
    "city at night": ("in a city at night", "in front of city lights at night"),
    "sunset": ("at sunset", "in front of a sunset"), "brick wall": ("in front of a brick wall",),
    "snowy mountains": ("in front of snowy mountains", "in the snowy mountains"),
}  # fmt: skip


def captions(identities: Identities, scenes: Scenes, seed: int = 0) -> list[str]:
    """One sentence per row. The wording is drawn from (seed, the scene's numbers): the same row, the same sentence."""
    phases = scenes.background_phase.tolist()
    return [
        _caption(identities, scenes, i, np.random.default_rng([seed, int(phases[i] * 1e6)])) for i in range(len(scenes))
    ]


def _caption(identities: Identities, scenes: Scenes, row: int, random: np.random.Generator) -> str:
    def pick(options):
        return options[random.integers(len(options))]

    person = GENDERS[identities.gender[row]]
    mood = pick(_MOODS.get(EXPRESSIONS[scenes.expression[row]], _NEUTRAL))
    subject = _article(f"{mood} {person}".strip())

    garment = _article(f"{COLOUR_NAMES[scenes.clothes_colour[row]]} {CLOTHES[scenes.clothes[row]]}")
    wearing = f"{pick(('in', 'wearing'))} {garment}"
    extras = []
    if HATS[scenes.hat[row]] != "none":
        extras.append(_article(f"{COLOUR_NAMES[scenes.hat_colour[row]]} {HATS[scenes.hat[row]]}"))
    if GLASSES[scenes.glasses[row]] != "none":
        extras.append(GLASSES[scenes.glasses[row]])
    if extras:
        wearing += f" {pick(('with', 'and'))} {' and '.join(extras)}"

    place = pick(places(BACKGROUNDS[scenes.background[row]]))
    opening = pick(_OPENINGS)
    order = random.integers(3)
    if order == 0:
        return f"{opening} {subject} {wearing} {place}".strip()
    if order == 1:
        return f"{opening} {subject} {wearing}, {place}".strip()
    return f"{opening} {subject} {place}, {wearing}".strip()


def places(background: str) -> tuple[str, ...]:
    """The ways to say where a picture with this background was taken."""
    return _PLACES.get(background) or (f"in front of {_article(background)}", f"against {_article(background)}")


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"

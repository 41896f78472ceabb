"""Words that captions call a person by, and a word of the person's own in their place."""

import re
from collections.abc import Sequence

PERSON_WORDS = ("man", "woman", "person", "boy", "girl", "guy", "lady", "gentleman", "soldier")


def named(text: str, word: str, person_words: Sequence[str] = PERSON_WORDS) -> str:
    """ "a photo of a smiling woman" -> "a photo of a smiling z", for the word "z"."""
    return re.sub(rf"\b(?:{'|'.join(map(re.escape, person_words))})\b", lambda _: word, text, flags=re.IGNORECASE)

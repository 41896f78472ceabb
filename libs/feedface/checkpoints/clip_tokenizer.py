"""CLIP's tokenizer out of its merges, which come with the code: single-file models have none of their own."""

import gzip
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(pad_token: str = END, length: int = 77) -> "CLIPTokenizer":
    """The tokenizer of OpenAI's and of OpenCLIP's text towers, 49408 tokens; the latter's `pad_token` is "!"."""
    from transformers import CLIPTokenizer

    merges = gzip.decompress((files(__package__) / "clip_merges.txt.gz").read_bytes()).decode().split("\n")
    letters = _letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {token: number for number, token in enumerate([*tokens, BEGIN, END])}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, pad_token=pad_token, model_max_length=length)


def _letters() -> list[str]:
    """A visible character for each byte, in the vocabulary's order: visible ones stand for themselves."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in visible] + [chr(256 + i) for i in range(256 - len(visible))]

"""Weights in a prompt: what is one, and what it does to the encoded prompt."""

import pytest
import torch

from feedface.common.places import CHECKOUT
from feedface.common.prompt_weights import Span, plain_prompt
from feedface.pipeline import FeedFacePipeline


@pytest.mark.parametrize(
    ("prompt", "plain", "spans"),
    [
        ("a woman in a (red:1.4) hat", "a woman in a red hat", [Span(13, 16, 1.4)]),
        ("(a man:0.5)(smiles: 2 )", "a mansmiles", [Span(0, 5, 0.5), Span(5, 11, 2)]),
        ("a (small) man (18:30) (x:99) (:1) (a:b)", "a (small) man (18:30) (x:99) (:1) (a:b)", []),
        ("a (hat:1)", "a hat", []),
    ],
)
def test_what_is_a_weight(prompt, plain, spans):
    assert plain_prompt(prompt) == (plain, spans)


def test_weights_multiply_the_tokens_of_their_words():
    encoder = FeedFacePipeline.from_pretrained(CHECKOUT / "models/mini", device="cpu", dtype="fp32").bundle.text_encoder
    encoder.prefix = None
    plain, same, more, less = encoder.encode(["a man with a red hat", "a man with a (red:1) hat",
                                              "a man with a (red:1.5) hat", "a man with a (red hat:0)"])  # fmt: skip
    assert torch.equal(plain, same)
    words = encoder.tokens_of("a man with a red hat")
    token = 1 + words.index(encoder.tokens_of("red")[0])
    ratio = more / plain
    others = [place for place in range(len(plain)) if place != token]
    torch.testing.assert_close(ratio[token], 1.5 * ratio[0])
    torch.testing.assert_close(ratio[others], ratio[0].expand(len(others), -1))
    for changed in (more, less):  # and no prompt becomes louder or quieter by them
        torch.testing.assert_close(changed.norm(), plain.norm())
    assert not less[token : token + 2].any() and less[0].any()
    [alone] = encoder.encode(["a man with a (red:1.5) hat"])
    torch.testing.assert_close(alone, more)

"""The face-controlnet: starts as nothing, trains only its own part, binds faces once."""

import pytest
import torch
from tests.test_uvit import SITES, inputs
from tests.toy import CLIP_CONFIG, face_tokens, toy_face_controlnet, toy_uvit

from feedface.checkpoints.official import OFFICIAL_SITES
from feedface.methods.feedface import FeedFace


@pytest.fixture
def uvit():
    torch.manual_seed(0)
    return toy_uvit()


@pytest.fixture
def net(uvit) -> FeedFace:
    return toy_face_controlnet(uvit)


def faces(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1


def bound(uvit, net: FeedFace, tokens: torch.Tensor, scale: float = 1):
    return net.bind(uvit, {"tokens": tokens}, scale)


def change(uvit, net: FeedFace, tokens: torch.Tensor, x, out, scale: float = 1) -> torch.Tensor:
    """What the first site's control adds to its block's output."""
    return bound(uvit, net, tokens, scale).block(uvit.sites["in_blocks.0"], x, out)


@pytest.mark.parametrize("control_input", ["output", "input"])
@pytest.mark.parametrize("site", SITES)
def test_a_fresh_one_changes_nothing_to_the_bit(uvit, site: str, control_input: str):
    net = FeedFace([site], uvit.embed_dim, 4, CLIP_CONFIG, uvit.embed_dim, control_input)
    base = uvit.predict(*inputs(uvit))
    controlled = uvit.predict(*inputs(uvit), control=bound(uvit, net, face_tokens(net, faces())))
    for part in ("img", "clip_img", "text"):
        assert torch.equal(getattr(controlled, part), getattr(base, part))
    torch.nn.init.ones_(net.blocks[0].zero_linear.weight)  # and the site is one that counts
    assert not torch.equal(
        uvit.predict(*inputs(uvit), control=bound(uvit, net, face_tokens(net, faces()))).img, base.img
    )


def test_only_its_own_part_is_trained(uvit, net: FeedFace):
    uvit.requires_grad_(False)
    uvit.predict(*inputs(uvit), control=bound(uvit, net, face_tokens(net, faces()))).img.square().sum().backward()
    without = {name for name, parameter in net.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in net.named_parameters() if name.startswith("face_encoder.")}
    trained = dict(net.trained_parameters(uvit))
    assert set(trained) == {n for n, p in net.named_parameters() if p.grad is not None}
    assert all(parameter.grad is None for parameter in uvit.parameters())


def test_tokens_are_the_projected_penultimate_states(net: FeedFace):
    states = net.face_encoder(faces(), output_hidden_states=True).hidden_states
    torch.testing.assert_close(face_tokens(net, faces()), net.projector(states[-2]))
    assert face_tokens(net, faces()).shape == (2, 5, 32)  # a class token and 2 x 2 patches


def test_scale(uvit, net: FeedFace):
    tokens = face_tokens(net, faces())
    assert bound(uvit, net, tokens, 0) is None
    x = torch.randn(2, 16, 32)
    full, half = (change(uvit, net, tokens, x, x, scale) for scale in (1, 0.5))
    torch.testing.assert_close(half, full / 2)
    assert "mid_block" not in bound(uvit, net, tokens).sites


def test_control_input(uvit):
    x = torch.randn(2, 2, 16, 32)
    for control_input, which in (("input", 0), ("output", 1)):
        net = toy_face_controlnet(uvit, control_input)
        tokens = face_tokens(net, faces())
        given, same, other = (change(uvit, net, tokens, *x[list(order)]) for order in ((0, 1), (which, which), (1, 0)))
        assert torch.equal(given, same) and not torch.equal(given, other)
    with pytest.raises(ValueError, match="both"):
        FeedFace(SITES, 32, 4, CLIP_CONFIG, 32, control_input="both")


def test_rows_of_a_batch_may_show_different_people(uvit, net: FeedFace):
    tokens = face_tokens(net, faces())
    given = inputs(uvit)
    together = uvit.predict(*given, control=bound(uvit, net, tokens)).img
    for i in range(2):
        alone = uvit.predict(*(x[i : i + 1] for x in given), control=bound(uvit, net, tokens[i : i + 1])).img
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)
    # and one person serves a whole batch
    shared = uvit.predict(*given, control=bound(uvit, net, tokens[:1])).img
    torch.testing.assert_close(shared, uvit.predict(*given, control=bound(uvit, net, tokens[:1].expand(2, -1, -1))).img)


def test_several_faces(uvit, net: FeedFace):
    three = faces(3)[None]  # one person, three references
    each = [face_tokens(net, three[:, i]) for i in range(3)]
    assert torch.equal(face_tokens(net, three), torch.cat(each, dim=1))
    torch.testing.assert_close(face_tokens(net, three, "mean"), torch.stack(each).mean(dim=0))
    assert torch.equal(face_tokens(net, three, "first"), each[0])
    with pytest.raises(ValueError, match="max"):
        face_tokens(net, three, "max")
    x = torch.randn(1, 16, 32)
    one, all_three = (change(uvit, net, face_tokens(net, some), x, x) for some in (three[:, :1], three))
    same = change(uvit, net, face_tokens(net, three[:, [0, 0, 0]]), x, x)
    torch.testing.assert_close(same, one)  # the same face three times says what it says once
    assert not torch.allclose(all_three, one)


def test_face_keys_and_values_are_computed_once(uvit, net: FeedFace):
    tokens = face_tokens(net, faces())
    calls = []
    for block in net.blocks:
        block.cross_attn.to_k.register_forward_hook(lambda *_: calls.append("k"))
        block.cross_attn.to_v.register_forward_hook(lambda *_: calls.append("v"))
    control = bound(uvit, net, tokens)
    for _ in range(3):
        uvit.predict(*inputs(uvit), control=control)
    assert calls == ["k", "v"] * len(net.sites)


def test_official_sites():
    assert len(OFFICIAL_SITES) == 14
    assert OFFICIAL_SITES[0] == "in_blocks.0"
    assert OFFICIAL_SITES[-1] == "out_blocks.12"

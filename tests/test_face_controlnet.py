"""The face-controlnet: starts as nothing, trains only its own part, binds faces once."""

import pytest
import torch
from tests.test_uvit import SITES, inputs
from tests.toy import CLIP_CONFIG, toy_face_controlnet, toy_uvit

from feedface.checkpoints.official import OFFICIAL_SITES
from feedface.methods.feedface import FaceControlNet


@pytest.fixture
def uvit():
    torch.manual_seed(0)
    return toy_uvit()


@pytest.fixture
def net(uvit) -> FaceControlNet:
    return toy_face_controlnet(uvit)


def faces(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.mark.parametrize("control_input", ["output", "input"])
@pytest.mark.parametrize("site", SITES)
def test_a_fresh_one_changes_nothing_to_the_bit(uvit, site: str, control_input: str):
    net = FaceControlNet(uvit.embed_dim, 4, [site], CLIP_CONFIG, control_input)
    base = uvit(*inputs(uvit))
    controlled = uvit(*inputs(uvit), control=net.bind(net.encode(faces())))
    for part in ("img", "clip_img", "text"):
        assert torch.equal(getattr(controlled, part), getattr(base, part))
    torch.nn.init.ones_(net.blocks[0].zero_linear.weight)  # and the site is one that counts
    assert not torch.equal(uvit(*inputs(uvit), control=net.bind(net.encode(faces()))).img, base.img)


def test_only_its_own_part_is_trained(uvit, net: FaceControlNet):
    uvit.requires_grad_(False)
    uvit(*inputs(uvit), control=net.bind(net.encode(faces()))).img.square().sum().backward()
    without = {name for name, parameter in net.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in net.named_parameters() if name.startswith("face_encoder.")}
    assert {id(p) for p in net.trainable_parameters()} == {id(p) for p in net.parameters() if p.grad is not None}
    assert set(net.trainable_state_dict()) == {n for n, p in net.named_parameters() if p.grad is not None}
    assert all(parameter.grad is None for parameter in uvit.parameters())


def test_tokens_are_the_projected_penultimate_states(net: FaceControlNet):
    states = net.face_encoder(faces(), output_hidden_states=True).hidden_states
    torch.testing.assert_close(net.encode(faces()), net.projector(states[-2]))
    assert net.encode(faces()).shape == (2, 5, 32)  # a class token and 2 x 2 patches


def test_scale(uvit, net: FaceControlNet):
    tokens = net.encode(faces())
    assert net.bind(tokens, scale=0) is None
    x = torch.randn(2, 16, 32)
    full, half = (net.bind(tokens, scale)("in_blocks.0", x, x) for scale in (1, 0.5))
    torch.testing.assert_close(half, full / 2)
    assert net.bind(tokens)("mid_block", x, x) is None


def test_control_input():
    x = torch.randn(2, 2, 16, 32)
    for control_input, which in (("input", 0), ("output", 1)):
        net = toy_face_controlnet(control_input=control_input)
        control = net.bind(net.encode(faces()))
        assert torch.equal(control("in_blocks.0", x[0], x[1]), control("in_blocks.0", x[which], x[which]))
        assert not torch.equal(control("in_blocks.0", x[0], x[1]), control("in_blocks.0", x[1], x[0]))
    with pytest.raises(ValueError, match="both"):
        FaceControlNet(32, 4, SITES, CLIP_CONFIG, control_input="both")


def test_rows_of_a_batch_may_show_different_people(uvit, net: FaceControlNet):
    tokens = net.encode(faces())
    given = inputs(uvit)
    together = uvit(*given, control=net.bind(tokens)).img
    for i in range(2):
        alone = uvit(*(x[i : i + 1] for x in given), control=net.bind(tokens[i : i + 1])).img
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)
    # and one person serves a whole batch
    shared = uvit(*given, control=net.bind(tokens[:1])).img
    torch.testing.assert_close(shared, uvit(*given, control=net.bind(tokens[:1].expand(2, -1, -1))).img)


def test_several_faces(net: FaceControlNet):
    tokens = net.encode(faces(3))[None]  # one person, three faces
    assert torch.equal(net.join(tokens), torch.cat([*tokens[0]])[None])
    assert torch.equal(net.join(tokens, "mean"), tokens.mean(dim=1))
    assert torch.equal(net.join(tokens, "first"), tokens[:, 0])
    assert torch.equal(net.join([tokens[:, i] for i in range(3)]), net.join(tokens))
    with pytest.raises(ValueError, match="max"):
        net.join(tokens, "max")
    x = torch.randn(1, 16, 32)
    one, three = (net.bind(net.join(part))("in_blocks.0", x, x) for part in (tokens[:, :1], tokens))
    same = net.bind(net.join(tokens[:, [0, 0, 0]]))("in_blocks.0", x, x)
    torch.testing.assert_close(same, one)  # the same face three times says what it says once
    assert not torch.allclose(three, one)


def test_face_keys_and_values_are_computed_once(uvit, net: FaceControlNet):
    tokens = net.encode(faces())
    calls = []
    for block in net.blocks:
        block.cross_attn.to_k.register_forward_hook(lambda *_: calls.append("k"))
        block.cross_attn.to_v.register_forward_hook(lambda *_: calls.append("v"))
    control = net.bind(tokens)
    for _ in range(3):
        uvit(*inputs(uvit), control=control)
    assert calls == ["k", "v"] * len(net.sites)


def test_official_sites():
    assert len(OFFICIAL_SITES) == 14
    assert OFFICIAL_SITES[0] == "in_blocks.0"
    assert OFFICIAL_SITES[-1] == "out_blocks.12"

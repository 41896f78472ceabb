"""The backbone: its sites, sizes, control seam, checkpointing and attention maps."""

import pytest
import torch
from tests.toy import face_tokens, toy_face_controlnet, toy_uvit

from feedface.backbones.control import Control
from feedface.backbones.uvit import UViT, timestep_embedding

SITES = ["in_blocks.0", "mid_block", "out_blocks.0"]


class Adding(Control):
    """Adds what a function of (tokens in, tokens out) says at some sites; notes what it was shown."""

    def __init__(self, function, sites=SITES, rows=None):
        self.function, self.sites, self.rows, self.seen = function, sites, rows, {}

    def block(self, site, x, out):
        self.seen[site.name] = (x, out)
        return self.function(x, out)


@pytest.fixture
def uvit() -> UViT:
    torch.manual_seed(0)
    return toy_uvit()


def inputs(uvit: UViT, batch: int = 2, size: tuple[int, int] = (8, 8)) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, uvit.in_chans, *size, generator=generator),
        torch.randn(batch, 1, uvit.clip_img_dim, generator=generator),
        torch.randn(batch, uvit.num_text_tokens, uvit.text_dim, generator=generator),
        torch.linspace(3.5, 900, batch),
        torch.zeros(batch),
        torch.ones(batch, dtype=torch.long),
    )


def test_block_names(uvit: UViT):
    assert uvit.block_names == SITES
    assert UViT(8, embed_dim=8, num_heads=1, depth=5).block_names == [
        *("in_blocks.0", "in_blocks.1", "mid_block", "out_blocks.0", "out_blocks.1")
    ]


def test_config_makes_the_same_network(uvit: UViT):
    again = UViT(**uvit.config)
    again.load_state_dict(uvit.state_dict())
    assert torch.equal(again.predict(*inputs(uvit)).img, uvit.predict(*inputs(uvit)).img)


@pytest.mark.parametrize("size", [(8, 8), (6, 12), (16, 4)])
def test_any_size_divisible_by_the_patch(uvit: UViT, size: tuple[int, int]):
    given = inputs(uvit, size=size)
    out = uvit.predict(*given)
    assert out.img.shape == given[0].shape
    assert out.clip_img.shape == given[1].shape
    assert out.text.shape == given[2].shape


def test_sizes_that_do_not_fit_are_refused(uvit: UViT):
    with pytest.raises(ValueError, match="7x8"):
        uvit.predict(*inputs(uvit, size=(7, 8)))
    with pytest.raises(ValueError, match="9x9"):
        UViT(img_size=9)


@pytest.mark.parametrize("size", [(8, 8), (6, 12)])
@torch.no_grad()
def test_conditions_embedded_beforehand_give_the_same_to_the_bit(uvit: UViT, size: tuple[int, int]):
    img, clip_img, text, t_img, t_text, data_type = given = inputs(uvit, size=size)
    conditions = uvit.embed(text, t_text + 1000, data_type, size)
    calls = []
    for module in (uvit.text_embed, uvit.token_embedding):
        module.register_forward_hook(lambda *_: calls.append("embedded anew"))
    out = uvit.predict(img, clip_img, conditions, t_img)
    second = uvit.predict(img[1:], clip_img[1:], conditions[1:], t_img[1:])
    assert not calls
    plain = uvit.predict(*given[:4], t_text + 1000, data_type)
    for part in ("img", "clip_img", "text"):
        assert torch.equal(getattr(out, part), getattr(plain, part))
    torch.testing.assert_close(second.img, plain.img[1:], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"4x4 with conditions for"):
        uvit.predict(img[..., :4, :4], clip_img, conditions, t_img)


@torch.no_grad()
def test_only_the_heads_asked_for_are_evaluated(uvit: UViT):
    given, plain = inputs(uvit), uvit.predict(*inputs(uvit))
    out = uvit.predict(*given, heads=("img", "clip_img"))
    assert out.text is None
    assert torch.equal(out.img, plain.img)
    assert torch.equal(out.clip_img, plain.clip_img)


@torch.no_grad()
def test_deep_blocks_reused(uvit: UViT):
    uvit = UViT(**{**uvit.config, "depth": 7})
    torch.manual_seed(0)
    given = inputs(uvit)
    plain = uvit.predict(*given)
    assert uvit.shallow_blocks == 1
    control = Adding(lambda x, out: None, sites=uvit.block_names)
    again = uvit.predict(*given, control=control, deep=plain.deep)
    assert list(control.seen) == ["in_blocks.0", "out_blocks.2"]
    # at the same step nothing has changed, at another one the shallow blocks bring what is new
    assert torch.equal(again.img, plain.img)
    assert again.deep is plain.deep
    later = (given[0] * 0.5, *given[1:])
    reused, fresh = uvit.predict(*later, deep=plain.deep), uvit.predict(*later)
    assert not torch.equal(reused.img, plain.img)
    assert not torch.equal(reused.img, fresh.img)


def test_rows_and_columns_are_not_mixed_up(uvit: UViT):
    # a change in one corner of a wide latent changes the output most in that corner
    given = inputs(uvit, batch=1, size=(4, 12))
    changed = (given[0].clone(), *given[1:])
    changed[0][..., :2, 10:] += 3
    difference = (uvit.predict(*changed).img - uvit.predict(*given).img).abs().sum(dim=(0, 1))
    patches = difference.unflatten(0, (2, 2)).unflatten(2, (6, 2)).sum(dim=(1, 3))
    assert patches.argmax() == 5  # first row of patches, last column


def test_control_gets_and_changes_image_tokens_only(uvit: UViT):
    watching, control = Adding(lambda x, out: None), Adding(lambda x, out: torch.ones_like(out), ["out_blocks.0"])
    given = inputs(uvit)
    with torch.no_grad():
        base, out = (uvit.predict(*given, control=control) for control in (watching, control))
    assert list(watching.seen) == SITES
    assert list(control.seen) == ["out_blocks.0"]
    assert all(part.shape == (2, 16, 32) for tokens in watching.seen.values() for part in tokens)
    assert torch.equal(base.img, uvit.predict(*given).img)
    assert not torch.equal(out.img, base.img)
    # after the last block, what was added to image tokens cannot reach the others
    assert torch.equal(out.text, base.text)
    assert torch.equal(out.clip_img, base.clip_img)


def test_control_of_some_rows(uvit: UViT):
    control = Adding(lambda x, out: torch.ones_like(out), rows=slice(0, 1))
    given = inputs(uvit)
    with torch.no_grad():
        base, out = uvit.predict(*given), uvit.predict(*given, control=control)
    assert all(len(part) == 1 for tokens in control.seen.values() for part in tokens)
    assert not torch.equal(out.img[0], base.img[0])
    assert torch.equal(out.img[1], base.img[1])


@torch.no_grad()
def test_the_seam_is_the_plain_call(uvit: UViT):
    img, clip_img, text, t, t_text, data_type = inputs(uvit)
    state = {"img": img, "clip_img": clip_img}
    plain = uvit.predict(img, clip_img, text, t, t_text, data_type)
    out = uvit(state, t, uvit.conditions({"text": text}))
    assert torch.equal(out["img"], plain.img)
    assert torch.equal(out["clip_img"], plain.clip_img)
    assert {name: value.shape[1:] for name, value in state.items()} == uvit.state_shapes()
    # the data type of training
    out = uvit(state, t, uvit.conditions({"text": text, "data_type": 0 * data_type}))
    assert torch.equal(out["img"], uvit.predict(img, clip_img, text, t, t_text, 0 * data_type).img)
    # noise in the place of the text is declared to be so
    noise = torch.randn_like(text)
    halves = uvit.guided_prompt({"text": text}, "true_uncond", None, noise)
    out = uvit({name: torch.cat([value] * 2) for name, value in state.items()}, t.repeat(2), uvit.conditions(halves))
    noisy = uvit.predict(img, clip_img, noise, t, t_text + 1000, data_type)
    torch.testing.assert_close(out["img"], torch.cat([plain.img, noisy.img]), atol=1e-5, rtol=1e-5)
    # the deep blocks' output is kept where it is asked for, and taken from there
    memory: dict = {}
    first = uvit(state, t, uvit.conditions({"text": text}), memory=memory)
    assert torch.equal(first["img"], plain.img)
    blocks = []
    uvit.mid_block.register_forward_hook(lambda *_: blocks.append("mid"))
    assert torch.equal(uvit(state, t, uvit.conditions({"text": text}), memory=memory)["img"], plain.img)
    assert not blocks


def test_gradient_checkpointing_gives_the_same_gradients(uvit: UViT, monkeypatch):
    monkeypatch.setattr(torch, "get_rng_state", None)  # nothing in a block is random: it is not asked for
    gradients = []
    for checkpointing in (False, True):
        uvit.gradient_checkpointing = checkpointing
        uvit.zero_grad()
        uvit.predict(*inputs(uvit), control=Adding(lambda x, out: x * out)).img.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in uvit.in_blocks.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_control_without_gradients_gives_the_same_to_the_bit(uvit: UViT):
    # where no gradient is recorded, its answer is added in place
    net = toy_face_controlnet(uvit)
    for rows in (None, slice(0, 1)):
        control = net.bind(uvit, {"tokens": face_tokens(net, torch.rand(1, 3, 32, 32))}, rows=rows)
        with torch.no_grad():
            plain = uvit.predict(*inputs(uvit), control=control)
        assert torch.equal(plain.img, uvit.predict(*inputs(uvit), control=control).img)


def test_attention_maps(uvit: UViT):
    given = inputs(uvit)
    out = uvit.predict(*given, attention_maps=["mid_block"])
    (weights,) = out.attention.values()
    tokens = uvit.image_start + 16
    assert weights.shape == (2, 4, tokens, tokens)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, tokens))
    assert torch.equal(out.img, uvit.predict(*given).img)
    # they are the weights that the block used: with these the fused attention's output comes out
    attention = uvit.mid_block.attn
    x = torch.randn(1, 5, 32)
    maps = []
    out = attention(x, maps)
    value = attention.qkv(x)[..., 64:].unflatten(-1, (4, 8)).transpose(1, 2)
    torch.testing.assert_close(out, attention.proj((maps[0] @ value).transpose(1, 2).flatten(2)))


def test_timestep_embedding():
    embedding = timestep_embedding(torch.tensor([0.0, 2.5]), 6)
    assert embedding[0].tolist() == [1, 1, 1, 0, 0, 0]
    angle = torch.tensor(2.5 * 10_000 ** (-1 / 3))
    torch.testing.assert_close(embedding[1, [1, 4]], torch.stack([angle.cos(), angle.sin()]))


def test_half_precision_stays_half(uvit: UViT):
    out = uvit.bfloat16().predict(*inputs(uvit), control=Adding(lambda x, out: out))
    assert out.img.dtype == out.clip_img.dtype == out.text.dtype == torch.bfloat16

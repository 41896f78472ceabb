"""Controls compose: several at once, each on its own rows, each in its own region."""

import pytest
import torch
from tests.toy import toy_unet, toy_uvit
from torch import Tensor

from feedface.backbones.base import Backbone
from feedface.backbones.control import Control, Controls, Regions

LEFT, RIGHT = torch.zeros(8, 8), torch.ones(8, 8)
LEFT[:, :4] = 1
RIGHT[:, :4] = 0


class Shift(Control):
    """Adds a wave over the channels (norms take a constant out), at sites of every kind."""

    def __init__(self, backbone: Backbone, sites, number: float, rows=None):
        self.backbone, self.sites, self.number, self.rows = backbone, sites, number, rows

    def block(self, site, x, out):
        return self.number * torch.arange(site.width).cos().expand_as(out)

    def attention(self, site, op, x, context):
        return op(x, context) + self.number * torch.arange(site.width).cos()

    def residuals(self, state, t):
        found = {}
        for site in (self.backbone.sites[name] for name in self.sites):
            if site.kind == "residual":
                wave = torch.arange(site.width).cos()[None, :, None, None]
                found[site.name] = self.number * wave.expand(len(t), -1, *site.grid(state["img"].shape[-2:]))
        return found

    def first(self, count):
        return Shift(self.backbone, self.sites, self.number)


@pytest.fixture(params=[toy_uvit, toy_unet], ids=["uvit", "unet"])
def backbone(request) -> Backbone:
    torch.manual_seed(0)
    return request.param().eval()


@torch.no_grad()
def predict(backbone: Backbone, control: Control | None, rows: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    state = {name: torch.randn(rows, *s, generator=generator) for name, s in backbone.state_shapes().items()}
    text = torch.randn(rows, backbone.text_tokens or 5, backbone.text_dim, generator=generator)
    times = torch.linspace(20, 900, rows)
    return backbone(state, times, backbone.conditions({"text": text}), control)["img"]


def test_what_several_add_is_summed(backbone: Backbone):
    for name, site in backbone.sites.items():
        if "attention" in site.kind:
            continue
        both = Controls([Shift(backbone, [name], 0.25), None, Shift(backbone, [name], 0.5)])
        torch.testing.assert_close(predict(backbone, both), predict(backbone, Shift(backbone, [name], 0.75)))


def test_one_may_replace_an_attention_beside_others_elsewhere(backbone: Backbone):
    attention = next(name for name, site in backbone.sites.items() if "attention" in site.kind)
    block = next(name for name, site in backbone.sites.items() if site.kind == "block")
    both = Controls([Shift(backbone, [attention], 0.5), Shift(backbone, [block], 0.5)])
    assert torch.equal(predict(backbone, both), predict(backbone, Shift(backbone, [attention, block], 0.5)))
    twice = Controls([Shift(backbone, [attention], 0.5)] * 2)
    with pytest.raises(ValueError, match=f"2 controls would replace the attention {attention}"):
        predict(backbone, twice)


def test_each_has_its_own_rows(backbone: Backbone):
    plain = predict(backbone, None)
    for name, site in backbone.sites.items():
        some = [Shift(backbone, [name], 0.5, slice(0, 1))]
        if "attention" not in site.kind:
            some.append(Shift(backbone, [name], 0.25, slice(0, 2)))
        together = predict(backbone, Controls(some))
        assert torch.equal(together[2], plain[2])
        everywhere = Shift(backbone, [name], 0.5 if "attention" in site.kind else 0.75)
        torch.testing.assert_close(together[0], predict(backbone, everywhere)[0], atol=1e-5, rtol=1e-4)
        if len(some) > 1:
            torch.testing.assert_close(together[1], predict(backbone, Shift(backbone, [name], 0.25))[1])
        # those of the same rows are given these only, and the rest comes out to the bit
        same = Controls(some[:1])
        assert same.rows == slice(0, 1)
        assert torch.equal(predict(backbone, same)[1:], plain[1:])


def test_no_control_at_all_is_no_work(backbone: Backbone):
    assert torch.equal(predict(backbone, Controls([None])), predict(backbone, None))


def test_regions_part_the_picture(backbone: Backbone):
    plain = predict(backbone, None)
    for name in backbone.sites:
        shift = Shift(backbone, [name], 0.5)
        if "attention" in backbone.sites[name].kind and backbone.sites[name].start:
            continue  # what is no image token is left alone there, so all regions together are less than everywhere
        everywhere = predict(backbone, shift)
        # the same in both parts is the same everywhere, and an empty region is nothing
        torch.testing.assert_close(predict(backbone, Regions([(shift, LEFT), (shift, RIGHT)])), everywhere)
        torch.testing.assert_close(predict(backbone, Regions([(shift, 0 * LEFT)])), plain)
        # where masks overlap, each has its part
        torch.testing.assert_close(predict(backbone, Regions([(shift, 1 - 0 * LEFT)] * 2)), everywhere)
        # a mask for each row
        rows = torch.stack([0 * LEFT, LEFT, 1 - 0 * LEFT])
        parted = predict(backbone, Regions([(shift, rows)]))
        torch.testing.assert_close(parted[0], plain[0])
        torch.testing.assert_close(parted[2], everywhere[2])
        assert not torch.allclose(parted[1], everywhere[1])


def test_a_region_is_where_its_mask_is(backbone: Backbone):
    for site in backbone.sites.values():
        control = Regions([(Shift(backbone, [site.name], 3.0), LEFT), (None, RIGHT)])
        grid = site.grid((8, 8))
        x = torch.randn(2, grid[0] * grid[1] + site.start, site.width)
        if site.kind == "residual":
            change = control.residuals({"img": torch.zeros(2, 4, 8, 8)}, torch.ones(2))[site.name].movedim(1, -1)
        elif site.kind == "block":
            change = control.block(site, x[:, site.start :], x[:, site.start :]).unflatten(1, grid)
        else:
            change = control.attention(site, lambda x, context: x, x, x) - x
            assert not change[:, : site.start].any()
            change = change[:, site.start :].unflatten(1, grid)
        assert change[:, :, : grid[1] // 2].abs().mean() > 1
        assert not change[:, :, grid[1] // 2 :].any()


def test_the_first_rows_of_a_composition(backbone: Backbone):
    name = next(name for name, site in backbone.sites.items() if site.kind == "block")
    shift, other = Shift(backbone, [name], 0.5, slice(0, 3)), Shift(backbone, [name], 0.25, slice(0, 3))
    masks = torch.stack([LEFT, RIGHT, LEFT])
    for control in (Controls([shift, other]), Regions([(shift, LEFT), (other, RIGHT)]), Regions([(shift, masks)])):
        first = control.first(2)
        assert first.rows is None
        generator = torch.Generator().manual_seed(1)
        rows = {name: torch.randn(3, *s, generator=generator) for name, s in backbone.state_shapes().items()}
        text = torch.randn(3, backbone.text_tokens or 5, backbone.text_dim, generator=generator)
        times = torch.full((3,), 500.0)
        with torch.no_grad():
            every = backbone(rows, times, backbone.conditions({"text": text}), control)["img"]
            conditions = backbone.conditions({"text": text[:2]})
            two = backbone({name: value[:2] for name, value in rows.items()}, times[:2], conditions, first)["img"]
        torch.testing.assert_close(two, every[:2], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="same rows"):
        Regions([(shift, LEFT), (Shift(backbone, [name], 0.5), RIGHT)])

"""FeedFace at full size, without memory: where its control blocks stand, what they weigh and what they compute."""

import pytest
import torch
from accelerate import init_empty_weights
from configs import feedface_unet, train_config
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from feedface.backbones.unet import UNet
from feedface.backbones.uvit import UViT
from feedface.checkpoints.ldm import SD1
from feedface.checkpoints.official import CLIP_VIT_B32, OFFICIAL_HEADS, OFFICIAL_SITES
from feedface.common.errors import UserError
from feedface.methods.feedface import FeedFace

E = 768
DOWN = [f"down_blocks.{level}.attentions.{i}" for level in range(3) for i in range(2)]
UP = [f"up_blocks.{level}.attentions.{i}" for level in range(1, 4) for i in range(3)]
ALL = [*DOWN, "mid_block.attentions.0", *UP]


@pytest.fixture(scope="module")
def unet() -> UNet:
    with init_empty_weights():
        return UNet(UNet2DConditionModel(sample_size=64, **SD1.unet))


def fresh(unet: UNet, **control) -> FeedFace:
    config = feedface_unet.get_config()
    config.control.update(control)
    with init_empty_weights():
        return FeedFace.fresh(config, unet, clip_config=CLIP_VIT_B32, with_encoder=False)


def trained(net: FeedFace, backbone) -> int:
    return sum(parameter.numel() for _, parameter in net.trained_parameters(backbone))


def work(unet: UNet, net: FeedFace | None = None) -> float:
    """Multiply-adds of one step of one row at 512 px, in thousand millions."""
    meta = torch.device("meta")
    state = {"img": torch.empty(1, 4, 64, 64, device=meta)}
    conditions = unet.conditions({"text": torch.empty(1, 77, 768, device=meta)})
    with torch.no_grad():
        control = net and net.bind(unet, {"tokens": torch.empty(1, 50, E, device=meta)})
        with FlopCounterMode(display=False) as counter:
            unet(state, torch.empty(1, device=meta), conditions, control)
    return counter.get_total_flops() / 2e9


def test_every_other_site_is_the_default(unet: UNet):
    net = fresh(unet)
    assert net.sites == ALL[::2]
    assert net.widths == [320, 640, 1280, 1280, 1280, 640, 640, 320]
    assert trained(net, unet) == pytest.approx(130.6e6, rel=1e-3)
    for width, block in zip(net.widths, net.blocks, strict=True):
        assert sum(p.numel() for p in block.parameters()) == 19 * width**2 + 2 * E * width + 17 * width
    assert next(iter(net.state_dict())) == "blocks.0.norm1.weight"  # no projector
    assert net.blocks[1].cross_attn.to_k.weight.shape == (640, E)


@pytest.mark.parametrize(
    ("sites", "millions"),
    [
        (ALL, 254.8),
        (UP, 133.0),
        ([site for site in ALL if site.split(".")[:2] not in (["down_blocks", "0"], ["up_blocks", "3"])], 242.6),
        ([*DOWN[::2], *UP[::2]], 124.2),
    ],
    ids=["all", "decoder", "not the finest", "alternating in each half"],
)
def test_other_choices_of_sites(unet: UNet, sites: list[str], millions: float):
    assert trained(fresh(unet, sites=tuple(sites)), unet) == pytest.approx(millions * 1e6, rel=1e-3)


def test_it_is_a_fifth_of_the_backbones_arithmetic(unet: UNet):
    base = work(unet)
    assert base == pytest.approx(401.6, rel=0.01)
    assert work(unet, fresh(unet)) - base == pytest.approx(84.2, rel=0.01)
    # without self-attention over 4096 tokens: 12.4 less at each of two sites
    assert work(unet, fresh(unet, self_attention=False)) - base == pytest.approx(84.2 - 2 * 12.4, rel=0.01)


def test_self_attention_may_be_left_out_at_the_finest_sites(unet: UNet):
    net = fresh(unet, self_attention=False)
    assert [block.self_attn is None for block in net.blocks] == [width == 320 for width in net.widths]
    assert net.config["self_attention"] == [
        site for site, width in zip(net.sites, net.widths, strict=True) if width > 320
    ]
    with init_empty_weights():
        again = FeedFace(**net.config, with_encoder=False)
    assert again.state_dict().keys() == net.state_dict().keys()


def test_the_papers_config_on_the_u_vit_is_the_released_network():
    with init_empty_weights():
        uvit = UViT()
        net = FeedFace.fresh(train_config.get_config(), uvit, clip_config=CLIP_VIT_B32, with_encoder=False)
    assert net.sites == OFFICIAL_SITES
    assert net.config["num_heads"] == OFFICIAL_HEADS
    assert trained(net, uvit) == pytest.approx(695.1e6, rel=1e-3)  # 14 blocks of 49.6 M and a projector of 1.2 M
    net.check(uvit, "here")


def test_sites_of_one_width_share_a_projector(unet: UNet):
    assert isinstance(fresh(unet).projector, torch.nn.Identity)
    alike = fresh(unet, sites=("down_blocks.2.attentions.0", "mid_block.attentions.0"))
    assert alike.projector.weight.shape == (1280, E)


def test_settings_that_do_not_fit_are_refused(unet: UNet):
    with pytest.raises(UserError, match=r"config.control.sites: the backbone unet has no in_blocks.0, mid_block"):
        fresh(unet, sites=("in_blocks.0", "mid_block.attentions.0", "mid_block"))
    with pytest.raises(UserError, match="width 320 is not divisible by num_heads 7"):
        fresh(unet, num_heads=7)
    net = fresh(unet)
    net.widths[0] = 640
    with pytest.raises(
        UserError, match=r"x: this feedface belongs to another backbone: the unet has width 320 at down"
    ):
        net.check(unet, "x")

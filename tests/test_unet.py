"""Stable Diffusion's U-Net behind the seam: controls reach it through diffusers' own ways, and change nothing else."""

import copy
import json
import threading

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from tests.toy import toy_unet

from feedface.backbones.control import Control
from feedface.backbones.unet import UNet
from feedface.diffusion.schedule import alphas_cumprod

BLOCKS = [
    *("down_blocks.0.attentions.0", "mid_block.attentions.0"),
    *("up_blocks.1.attentions.0", "up_blocks.1.attentions.1"),
]
SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    return toy_unet()


def given(unet: UNet, batch: int = 2, size: tuple[int, int] = (8, 8)) -> tuple:
    """State, timesteps and conditions."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(batch, 5, 8, generator=generator)
    state = {"img": torch.randn(batch, 4, *size, generator=generator)}
    return state, torch.linspace(3.5, 900, batch), unet.conditions({"text": text}, size)


class Acting(Control):
    """Does at each of its sites what its kind allows; notes what it was shown."""

    def __init__(self, unet: UNet, sites, rows=None, strength: float = 1.0):
        self.unet, self.sites, self.rows, self.strength, self.seen = unet, list(sites), rows, strength, {}

    def block(self, site, x, out):
        assert x.shape == out.shape
        self.seen[site.name] = x.shape
        return self.strength * x

    def attention(self, site, op, x, context):
        self.seen[site.name] = x.shape
        key, value = op.key_value(context)
        return op.attend(op.query(x) * (1 + self.strength), key, value)

    def residuals(self, state, t):
        names = [name for name in self.sites if self.unet.sites[name].kind == "residual"]
        found = {}
        for name in names:
            site = self.unet.sites[name]
            shape = (len(t), site.width, *site.grid(state["img"].shape[-2:]))
            found[name] = torch.full(shape, self.strength)
            self.seen[name] = found[name].shape
        return found


@pytest.mark.parametrize("size", [(8, 8), (6, 12), (7, 9)])
@torch.no_grad()
def test_without_a_control_it_is_diffusers_own_to_the_bit(unet: UNet, size: tuple[int, int]):
    state, t, conditions = given(unet, size=size)
    plain = UNet2DConditionModel.from_config(unet.unet.config)
    keys = set(plain.state_dict())
    assert {key.removeprefix("unet.") for key in unet.state_dict()} == keys
    plain.load_state_dict(unet.unet.state_dict())
    expected = plain(state["img"], t - 1, conditions.text).sample
    assert torch.equal(unet(state, t, conditions)["img"], expected)
    idle = Acting(unet, [])
    assert torch.equal(unet(state, t, conditions, idle)["img"], expected)
    assert not idle.seen


@pytest.mark.parametrize("size", [(8, 8), (6, 12), (7, 9)])
@torch.no_grad()
def test_every_site_acts_and_is_as_described(unet: UNet, size: tuple[int, int]):
    state, t, conditions = given(unet, size=size)
    base = unet(state, t, conditions)["img"]
    assert [name for name, site in unet.sites.items() if site.kind == "block"] == BLOCKS
    for name, site in unet.sites.items():
        control = Acting(unet, [name])
        assert not torch.allclose(unet(state, t, conditions, control)["img"], base)
        rows, columns = site.grid(size)
        shape = (2, site.width, rows, columns) if site.kind == "residual" else (2, rows * columns, site.width)
        assert control.seen == {name: shape}
    # in the order of evaluation
    everything = Acting(unet, unet.sites)
    unet(state, t, conditions, everything)
    tokens = [name for name in everything.seen if unet.sites[name].kind != "residual"]
    assert tokens == [name for name, site in unet.sites.items() if site.kind != "residual"]


@torch.no_grad()
def test_controls_of_some_rows_leave_the_others_as_they_were_to_the_bit(unet: UNet):
    state, t, conditions = given(unet, 3)
    base = unet(state, t, conditions)["img"]
    for name in unet.sites:
        some = unet(state, t, conditions, Acting(unet, [name], slice(0, 1)))["img"]
        assert torch.equal(some[1:], base[1:])
        every = unet(state, t, conditions, Acting(unet, [name]))["img"]
        torch.testing.assert_close(some[:1], every[:1], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_an_operator_is_the_attention_it_stands_for(unet: UNet):
    state, t, conditions = given(unet)

    class Same(Acting):
        def attention(self, site, op, x, context):
            key, value = op.key_value(context)
            whole = op.attend(op.query(x), key, value)
            assert torch.equal(whole, op(x, context))
            none = torch.zeros(1, 1, 1, context.shape[1], dtype=torch.bool)
            assert not torch.allclose(op.attend(op.query(x), key, value, ~none), op.attend(op.query(x), key, 2 * value))
            return whole

    names = [name for name, site in unet.sites.items() if "attention" in site.kind]
    assert torch.equal(unet(state, t, conditions, Same(unet, names))["img"], unet(state, t, conditions)["img"])


def test_gradients_are_the_same_with_checkpointing_and_a_plain_pass_between(unet: UNet, monkeypatch):
    state, t, conditions = given(unet)
    monkeypatch.setattr(torch, "get_rng_state", None)  # nothing in a block is random: it is not asked for
    gradients = []
    for checkpointing in (False, True):
        unet.gradient_checkpointing = checkpointing
        assert unet.gradient_checkpointing is checkpointing
        strength = torch.tensor(0.5, requires_grad=True)
        out = unet(state, t, conditions, Acting(unet, BLOCKS, strength=strength))["img"]
        unet(state, t, conditions)  # knows nothing of the control, and leaves the first pass as it was
        out.square().sum().backward()
        gradients.append(strength.grad)
    assert gradients[0] != 0
    torch.testing.assert_close(*gradients)


@torch.no_grad()
def test_threads_do_not_meet(unet: UNet):
    state, t, conditions = given(unet)
    strengths = [0.0, 0.5, 1.0, 2.0]
    controls = [Acting(unet, unet.sites, strength=strength) for strength in strengths]
    alone = [unet(state, t, conditions, control)["img"] for control in controls]
    together: dict[int, list] = {index: [] for index in range(len(strengths))}

    def run(index: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                together[index].append(unet(state, t, conditions, controls[index])["img"])

    threads = [threading.Thread(target=run, args=(index,)) for index in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(out, alone[index]) for index, outs in together.items() for out in outs)


@torch.no_grad()
def test_copies_and_configs_make_the_same_network(unet: UNet):
    state, t, conditions = given(unet)
    control = Acting(unet, unet.sites)
    expected = unet(state, t, conditions, control)["img"]
    again = UNet.from_config(json.loads(json.dumps(unet.config)))
    again.load_state_dict(unet.state_dict())
    for other in (again, copy.deepcopy(unet)):
        assert torch.equal(other(state, t, conditions, control)["img"], expected)
        assert other.sites == unet.sites


@torch.no_grad()
def test_v_prediction_is_turned_into_noise():
    torch.manual_seed(0)
    unet = toy_unet("v_prediction")
    state, _, conditions = given(unet)
    t = torch.tensor([1.0, 1000.0])
    v = unet.unet(state["img"], t - 1, conditions.text).sample
    alpha_bar = alphas_cumprod()[t.long() - 1].float()[:, None, None, None]
    expected = alpha_bar.sqrt() * v + (1 - alpha_bar).sqrt() * state["img"]
    torch.testing.assert_close(unet(state, t, conditions)["img"], expected, atol=1e-5, rtol=1e-5)
    # a perfect v gives the noise that was added
    clean, noise = torch.randn(2, 1, 4, 8, 8)
    a, s = alpha_bar[:1].sqrt(), (1 - alpha_bar[:1]).sqrt()
    torch.testing.assert_close(a * (a * noise - s * clean) + s * (a * clean + s * noise), noise, atol=1e-5, rtol=1e-5)


def test_half_precision_stays_half(unet: UNet):
    state, t, conditions = given(unet.bfloat16())
    assert unet(state, t, conditions)["img"].dtype == torch.bfloat16
    assert unet.dtype == torch.bfloat16


def test_what_does_not_fit_is_refused(unet: UNet):
    state, t, conditions = given(unet)
    with pytest.raises(ValueError, match=r"\[4, 4\] with conditions for \[8, 8\]"):
        unet({"img": state["img"][..., :4, :4]}, t, conditions)
    with pytest.raises(ValueError, match="9 -> 4 channels"):
        toy_unet(in_channels=9)
    with pytest.raises(ValueError, match="sample"):
        toy_unet("sample")


def test_full_size_is_stable_diffusions():
    with init_empty_weights():
        unet = UNet(UNet2DConditionModel(**SD15))
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert len(unet.state_dict()) == 686
    blocks = {name: site for name, site in unet.sites.items() if site.kind == "block"}
    down = [f"down_blocks.{level}.attentions.{i}" for level in range(3) for i in range(2)]
    up = [f"up_blocks.{level}.attentions.{i}" for level in range(1, 4) for i in range(3)]
    assert list(blocks) == [*down, "mid_block.attentions.0", *up]
    widths = [*[320] * 2, *[640] * 2, *[1280] * 6, *[640] * 3, *[320] * 3]
    assert [site.width for site in blocks.values()] == widths
    tokens = [height * width for height, width in (site.grid((64, 64)) for site in blocks.values())]
    assert tokens == [*[4096] * 2, *[1024] * 2, *[256] * 2, 64, *[256] * 3, *[1024] * 3, *[4096] * 3]
    assert {site.heads for site in blocks.values()} == {8}
    residuals = [site for site in unet.sites.values() if site.kind == "residual"]
    assert [site.width for site in residuals] == [*[320] * 4, *[640] * 3, *[1280] * 6]
    assert [site.grid((64, 64))[0] for site in residuals] == [64, 64, 64, 32, 32, 32, 16, 16, 16, 8, 8, 8, 8]

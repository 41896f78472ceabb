"""FlashFace beyond the contracts of `test_methods.py`: its attention's arithmetic, golden data, the authors' folder."""

from types import SimpleNamespace

import pytest
import torch
from configs import flashface, mini_flashface
from ml_collections import ConfigDict
from tests import golden, golden_flashface
from tests.golden_check import compare, read
from tests.test_methods import FLASHFACE, SMALL
from tests.toy import toy_unet, toy_uvit
from torch import Tensor

from feedface.common.errors import UserError
from feedface.data.draws import DrawSettings, draw
from feedface.diffusion.batch import Draws
from feedface.diffusion.guidance import GuidedModel
from feedface.methods.flashface import FlashFace, ReferenceObjective
from feedface.shared_attention import ReferenceControl, Writer
from feedface.training.check import check_config

SITE = "mid_block.attentions.0.attn1"


class Setting:
    """A toy U-Net with a reference net that is another one."""

    def __init__(self, **control):
        torch.manual_seed(0)
        self.backbone = toy_unet().eval()
        self.method = FlashFace.fresh(ConfigDict({"control": {**FLASHFACE, **control}}), self.backbone)
        self.method.adopt(toy_unet())
        self.method.eval()
        self.state, self.t = {"img": torch.randn(1, 4, 8, 8)}, torch.tensor([400.0])
        self.text, self.references = torch.randn(1, 5, 8), torch.randn(1, 3, 4, 4, 4)

    @torch.no_grad()
    def noise(self, references: Tensor | None = None, weights: Tensor | None = None, scale: float = 1.0) -> Tensor:
        latent = self.references if references is None else references
        features = {"latent": latent} | ({} if weights is None else {"weights": weights})
        shown = self.method.prompted(self.method.identity(features), {"text": self.text})
        control = self.method.bind(self.backbone, shown, scale)
        return self.backbone(self.state, self.t, self.backbone.conditions({"text": self.text}), control)["img"]


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


def near(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=2e-6)


def test_sites_are_found():
    full = toy_unet(
        down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        block_out_channels=[8] * 4,
        layers_per_block=2,
    )
    method = FlashFace.fresh(ConfigDict({"control": FLASHFACE}), full)
    ups = [f"up_blocks.{level}.attentions.{layer}.attn1" for level in (1, 2, 3) for layer in range(3)]
    assert method.sites == ["mid_block.attentions.0.attn1", *ups]
    assert len(FlashFace.fresh(ConfigDict({"control": {**FLASHFACE, "sites": ("all",)}}), full).sites) == 16
    trained = {name for name, _ in method.trained_parameters(full) if name.startswith("refnet.")}
    frozen = {f"refnet.{name}" for name, _ in method.refnet.named_parameters()} - trained
    assert {name.split(".")[2] for name in frozen} == {"up_blocks", "conv_norm_out", "conv_out"}
    assert {name.split(".")[3] for name in frozen if "up_blocks" in name} == {"3"}


def test_scale_counts_up_to_one(setting: Setting):
    one = setting.noise()
    assert torch.equal(setting.noise(scale=1.7), one)
    assert setting.method.bind(setting.backbone, {}, -1) is None
    plain = setting.noise(weights=torch.zeros(1, 3))
    assert not near(setting.noise(scale=0.5), one)
    assert near(setting.noise(scale=1e-9), plain)


def test_order_does_not_matter_and_number_does(setting: Setting):
    one = setting.noise()
    assert near(setting.noise(setting.references[:, [2, 0, 1]]), one)
    assert not near(setting.noise(setting.references[:, :2]), one)


def test_a_weight_is_a_number_of_times(setting: Setting):
    twice = setting.noise(setting.references[:, [0, 1, 1]])
    assert near(setting.noise(setting.references[:, :2], torch.tensor([[1.0, 2.0]])), twice)
    assert not near(setting.noise(setting.references[:, :2]), twice)


def test_a_slot_of_no_weight_is_not_there(setting: Setting):
    padded = torch.cat([setting.references[:, :1], torch.full((1, 2, 4, 4, 4), 7.0)], dim=1)
    assert near(setting.noise(padded, torch.tensor([[1.0, 0, 0]])), setting.noise(setting.references[:, :1]))


def test_a_blend_goes_from_one_person_to_the_other(setting: Setting):
    method = setting.method
    first, second = (method.identity({"latent": setting.references[:, some]}) for some in ([0], [1, 2]))

    def blended(weight: float) -> Tensor:
        both = method.blended(first, second, weight)
        return setting.noise(both["latent"], both["weights"])

    alone = [setting.noise(one["latent"]) for one in (first, second)]
    assert near(blended(0), alone[0])
    assert near(blended(1), alone[1])
    shares = [method.blended(first, second, weight)["weights"] for weight in (0.25, 0.5)]
    assert shares[0].tolist() == [[0.75 * 1.25, 0.25 * 1.25 / 2, 0.25 * 1.25 / 2]]
    assert shares[1][0, 0] == shares[1][0, 1:].sum()
    distances = [(blended(weight) - alone[0]).norm() for weight in (0.1, 0.5, 0.9)]
    assert distances[0] < distances[1] < distances[2]


@torch.no_grad()
def test_tokens_that_are_the_pictures_own_change_nothing(setting: Setting):
    writer, conditions = Writer([SITE]), setting.backbone.conditions({"text": setting.text})
    plain = setting.backbone(setting.state, setting.t, conditions, writer)["img"]
    own = setting.backbone.operator(SITE).key_value(writer.tokens[SITE])
    control = ReferenceControl({SITE: own}, torch.ones(1, 1), 1.0)
    assert near(setting.backbone(setting.state, setting.t, conditions, control)["img"], plain)


def test_references_are_read_once_a_generation(setting: Setting, monkeypatch):
    calls = []
    forward = type(setting.backbone).forward
    monkeypatch.setattr(
        type(setting.backbone),
        "forward",
        lambda self, *args, **kwargs: calls.append(self is setting.method.refnet) or forward(self, *args, **kwargs),
    )
    with torch.no_grad():
        shown = setting.method.identity({"latent": setting.references})
        model = GuidedModel(
            setting.backbone,
            {"text": setting.text},
            empty_prompt={"text": setting.text * 0},
            guidance=3.0,
            method=setting.method,
            identity=shown,
        )
        first = [model(setting.state, t)["img"] for t in (900.0, 500.0, 100.0)]
    assert calls == [True, False, False, False]
    assert all(value.isfinite().all() for value in first)


@torch.no_grad()
def test_a_rescaled_prediction_has_the_conditional_ones_deviation(setting: Setting):
    options = {"empty_prompt": {"text": setting.text * 0}, "method": setting.method}
    shown = setting.method.identity({"latent": setting.references})
    plain, full, conditional = (
        GuidedModel(setting.backbone, {"text": setting.text}, identity=shown, **options, **more)(setting.state, 500.0)
        for more in ({"guidance": 4.0}, {"guidance": 4.0, "rescale": 1.0}, {"guidance": 1.0})
    )
    assert full["img"].std() == pytest.approx(float(conditional["img"].std()), rel=1e-4)
    assert torch.allclose(full["img"], plain["img"] * (full["img"].std() / plain["img"].std()), atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "control", "message"),
    [
        (toy_unet, {**SMALL, "rank": 0}, "config.control: with writer 'backbone' it is its own"),
        (toy_unet, {**SMALL, "backbone": "all"}, "config.control: with writer 'backbone' it is its own"),
        (toy_uvit, FLASHFACE, "config.control.writer: 'copy' is for a U-Net; with a uvit use 'backbone'"),
        (toy_unet, {**FLASHFACE, "sites": ("x",)}, "config.control.sites: the backbone unet has no self-attention x"),
    ],
)
def test_settings_that_cannot_be(backbone, control: dict, message: str):
    with pytest.raises(UserError, match=message):
        FlashFace.fresh(ConfigDict({"control": control}), backbone())


def test_golden_arrays():
    config, arrays = read(golden.FOLDER / "flashface_A.npz")
    lines, good = compare(golden_flashface.computed(config, arrays), arrays)
    assert good, "\n".join(lines)


@pytest.mark.parametrize("variant", [*mini_flashface.VARIANTS])
def test_configs_hold_what_training_takes(variant: str):
    config = mini_flashface.get_config(variant)
    check_config(config)
    backbone = toy_uvit() if variant == "uvit" else toy_unet()
    method = FlashFace.fresh(config, backbone)
    kinds = {name.split(".")[0] for name, _ in method.trained_parameters(backbone)}
    wanted = {"copy": {"refnet", "adapters"}, "both": {"backbone", "refnet"}}
    assert kinds == wanted.get(variant, {"adapters"})
    assert method.changes_backbone(config.control) == ("backbone" in kinds)
    check_config(flashface.get_config())


def test_training_shows_samples_of_the_posterior():
    settings = DrawSettings(0, {"img": (4, 8, 8)}, face_dropout=0.0)
    draws = Draws.collate([draw(settings, sample, 2, [3] * 10) for sample in range(6)])
    posterior = torch.randn(6, 2, 2, 4, 16, 16).abs()
    method = FlashFace(["mid_block.attentions.0.attn1"], 128, reference_latent="sample")
    features = {name: value.unflatten(0, (6, 2)) for name, value in method.features(posterior.flatten(0, 1)).items()}
    config = ConfigDict({"loss": {"kind": "standard", "face_dropout_kind": "zero_feature", "min_snr": 0.0}})
    objective = ReferenceObjective(config, {}, torch.zeros(1, 1, 1))

    def shown(rows: slice) -> Tensor:
        batch = SimpleNamespace(features={name: value[rows] for name, value in features.items()})
        part = SimpleNamespace(seeds=draws.seeds[rows], shown=draws.shown[rows], drop_face=draws.drop_face[rows])
        found = objective.features(part, batch)
        assert found.keys() == {"latent", "weights"}
        return found["latent"]

    latent = shown(slice(None))
    assert torch.equal(latent[2:5], shown(slice(2, 5)))  # in whatever batch
    noise = (latent - posterior[:, :, 0]) / posterior[:, :, 1]
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    assert torch.corrcoef(noise.flatten(0, 1).flatten(1)).fill_diagonal_(0).abs().max() < 0.15  # all of them others
    assert torch.equal(method.identity(features)["latent"], posterior[:, :, 0])  # a picture is drawn from the mean

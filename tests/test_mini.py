"""The stages that build the mini model: each learns, resumes, leaves its component, and all fit together."""

import json
import shutil
import types

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.toy import face_tokens
from torch import nn

from feedface.backbones.uvit import UViT
from feedface.checkpoints.bundle import load_bundle, read_index
from feedface.common.errors import UserError
from feedface.diffusion.schedule import alphas_cumprod
from feedface.encoders import ImageEncoder, to_tensor
from feedface.synthetic.train import (
    base_model,
    bundle,
    bundle_unet,
    clip,
    common,
    control,
    control_unet,
    decoder,
    face_encoder,
    unet,
    uvit,
    vae,
    world,
)  # fmt: skip
from feedface.synthetic.train.__main__ import STAGES, UNET_STAGES, read_config
from feedface.synthetic.train.identity_start import identity_start
from feedface.training.ema import Ema
from feedface.training.fit import fit, fit_config

TOY = [
    *(
        f"--config.{stage}.image_size=64"
        for stage in ("world", "vae", "clip", "uvit", "control", "unet", "bundle", "bundle_unet")
    ),
    "--config.world.train.identities=8",
    "--config.world.train.per_identity=2",
    "--config.world.held_out.identities=3",
    "--config.world.held_out.per_identity=2",
    "--config.vae.channels=(16,16,16)",
    "--config.vae.stack=2",
    "--config.vae.latent_channels=4",
    "--config.clip.text_width=32",
    "--config.clip.text_layers=1",
    "--config.clip.vision_width=32",
    "--config.clip.vision_layers=1",
    "--config.clip.patch_size=16",
    "--config.face_encoder.width=32",
    "--config.face_encoder.face_size=48",
    "--config.face_encoder.layers=2",
    "--config.face_encoder.patch_size=16",
    "--config.uvit.width=64",
    "--config.uvit.depth=7",
    "--config.uvit.num_heads=2",
    "--config.unet.channels=(16,32)",
    "--config.unet.norm_groups=8",
    "--config.unet.head_width=16",
]


@pytest.fixture(scope="module")
def config():
    stages = ("vae", "clip", "face_encoder", "uvit", "unet", "decoder")
    keys = ("steps=2", "batch_size=4", "amp=false", "device=cpu")
    budgets = [f"--config.{stage}.{key}" for stage in stages for key in keys]
    return read_config("cpu", TOY + budgets)


@pytest.fixture(scope="module")
def built(config, tmp_path_factory):
    """A work folder after the stages up to the base model."""
    workdir = tmp_path_factory.mktemp("mini")
    for stage in (world, vae, clip, face_encoder, uvit):
        stage.run(config, workdir)
    return workdir


# -------------------------------------------------------------------------------------------------------------- fit


def line_fit(folder, **changes):
    """Fit y = 3x - 1 with a linear layer; returns it and the result."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)

    def step(generator):
        x = torch.randn(16, 1, generator=generator)
        return (model(x) - (3 * x - 1)).square().mean()

    settings = {"batch_size": 16, "steps": 200, "lr": 0.1, "warmup_steps": 5, "ema_decay": 0.9, **changes}
    return model, fit("line", model, step, fit_config(**settings), folder)


def test_fit_learns_and_counts(tmp_path):
    model, result = line_fit(tmp_path)
    assert model.weight.item() == pytest.approx(3, abs=0.05)
    assert model.bias.item() == pytest.approx(-1, abs=0.05)
    assert (result.steps, result.samples, result.parameters) == (200, 3200, 2)
    assert not model.training


def test_a_critics_steep_gradient_leaves_the_others_step_as_it_is(tmp_path):
    model = nn.ParameterDict({"student": torch.zeros(1), "critic": torch.zeros(1)})

    def step(generator):
        return (model["student"] + 1e12 * model["critic"]).sum()

    settings = fit_config(batch_size=1, steps=1, lr=0.1, critic_lr=0.5, warmup_steps=1, weight_decay=0.0)
    fit("two", model, step, settings, tmp_path, critic=[model["critic"]])
    assert model["student"].item() == pytest.approx(-0.1)
    assert model["critic"].item() == pytest.approx(-0.5)


def test_an_interrupted_fit_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    whole, _ = line_fit(tmp_path / "whole", steps=20)
    update, calls = Ema.update, []

    def interrupted(self, step):
        calls.append(1)
        if len(calls) == 11:
            raise KeyboardInterrupt
        update(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Ema, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            line_fit(tmp_path / "parts", steps=20, save_every_s=0.0)
    parts, result = line_fit(tmp_path / "parts", steps=20)
    assert result.steps == 20
    assert torch.equal(parts.weight, whole.weight) and torch.equal(parts.bias, whole.bias)


@pytest.mark.parametrize("schedule, late", [("cosine", 0.095), ("trapezoid", 0.4)])
def test_rates_follow_the_schedule_and_muon_takes_the_named_matrices(tmp_path, monkeypatch, schedule, late):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    rates = {torch.optim.AdamW: [], torch.optim.Muon: []}
    for kind, seen in rates.items():
        step = kind.step

        def noting(self, *args, seen=seen, step=step):
            seen.append((self.param_groups[0]["lr"], sum(len(group["params"]) for group in self.param_groups)))
            return step(self, *args)

        monkeypatch.setattr(kind, "step", noting)
    config = fit_config(batch_size=4, steps=10, lr=0.1, muon_lr=0.2, warmup_steps=1, schedule=schedule, ema_decay=0.9)
    fit("line", model, lambda generator: model(torch.ones(4, 4)).square().mean(), config, tmp_path, [model[0].weight])
    assert [count for _, count in rates[torch.optim.AdamW]] == [3] * 10
    assert [count for _, count in rates[torch.optim.Muon]] == [1] * 10
    assert rates[torch.optim.AdamW][0][0] == 0.1 and rates[torch.optim.Muon][0][0] == 0.2
    assert rates[torch.optim.AdamW][8][0] == pytest.approx(0.1 * late, rel=0.05)


def test_a_finished_fit_returns_its_weights_without_a_step(tmp_path):
    first, _ = line_fit(tmp_path, steps=20)
    again, result = line_fit(tmp_path, steps=20)
    assert result.steps == 20
    assert torch.equal(first.weight, again.weight)


def test_other_settings_do_not_resume(tmp_path):
    line_fit(tmp_path, steps=5)
    with pytest.raises(UserError, match=r"other settings \(lr\).*delete"):
        line_fit(tmp_path, steps=5, lr=0.2)


def test_a_minute_budget_ends_the_run(tmp_path):
    _, result = line_fit(tmp_path, steps=0, minutes=0.005)
    assert 0.2 < result.seconds < 5


def test_a_fit_without_a_budget_is_refused(tmp_path):
    with pytest.raises(UserError, match="budget"):
        line_fit(tmp_path, steps=0)


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(tmp_path):
    model = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="step 1"):
        fit("bad", model, lambda generator: model(torch.ones(1, 1)).sum() * torch.nan, fit_config(steps=3), tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


# ----------------------------------------------------------------------------------------------------------- config


def test_both_presets_name_every_stage():
    for preset in ("cpu", "gpu"):
        config = read_config(preset, [])
        assert set(config) == {*STAGES, *UNET_STAGES} - {"recogniser"}  # which has nothing to set


@pytest.mark.parametrize("override", ["--config.vae.colour=1", "--config.vae.lr=fast", "--nonsense=1"])
def test_a_wrong_setting_is_one_line(override):
    with pytest.raises(UserError):
        read_config("cpu", [override])


# ----------------------------------------------------------------------------------------------------------- stages


def test_stages_leave_a_bundle_that_loads(built, config):
    loaded = load_bundle(built / "bundle", components=("vae", "backbone", "text_encoder", "image_encoder"))
    assert loaded.image_size == 64
    assert loaded.vae.factor == 8
    assert loaded.backbone.num_text_tokens == loaded.text_encoder.num_tokens == config.clip.num_text_tokens
    assert loaded.backbone.text_dim == loaded.text_encoder.text_dim
    assert set(read_index(built / "bundle").components) == {
        "vae",
        "backbone",
        "text_encoder",
        "tokenizer",
        "image_encoder",
    }
    for stage in ("vae", "clip", "face_encoder", "uvit"):
        record = json.loads((built / stage / "metrics.json").read_text())
        assert record["training"]["steps"] == 2 and record["metrics"]


def test_latents_and_image_embeddings_have_unit_variance(built):
    loaded = load_bundle(built / "bundle", components=("vae", "image_encoder"))
    images = common.load_portraits(built).images
    latents = loaded.vae.encode(common.to_pixels(images), sample=False)
    assert latents.std().item() == pytest.approx(1, rel=0.02)
    assert loaded.image_encoder.encode(common.to_pixels(images)).std().item() == pytest.approx(1, rel=0.05)


def test_the_base_goes_on_from_other_weights_and_its_world_is_encoded_once(built, config, tmp_path, monkeypatch):
    for folder in ("world", "bundle"):
        shutil.copytree(built / folder, tmp_path / folder)
    (tmp_path / "uvit").mkdir()
    shutil.copy(built / "uvit/features.safetensors", tmp_path / "uvit")
    encoded = []
    encode = base_model.encode
    monkeypatch.setattr(
        base_model, "encode", lambda portraits, *rest: encoded.append(len(portraits)) or encode(portraits, *rest)
    )
    changed = config.copy_and_resolve_references()
    changed.uvit.update(start=str(built / "bundle"), lr=0.0, muon_lr=0.0, seed=7, steps=1)
    uvit.run(changed, tmp_path)
    assert encoded == [6]  # the held-out pictures alone
    before, after = (load_bundle(folder / "bundle", components=["backbone"]).backbone for folder in (built, tmp_path))
    for one, other in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(one, other)
    changed.uvit.update(face_weight=3.0, seed=8)  # weighs cells anew, on the same latents
    shutil.rmtree(tmp_path / "bundle/uvit")
    (tmp_path / "uvit/checkpoint.pt").unlink()
    uvit.run(changed, tmp_path)
    assert encoded == [6, 6]
    vae = tmp_path / "bundle/vae/diffusion_pytorch_model.safetensors"
    save_file({key: value * 1.01 for key, value in load_file(vae).items()}, vae)
    changed.uvit.update(seed=9)
    shutil.rmtree(tmp_path / "bundle/uvit")
    (tmp_path / "uvit/checkpoint.pt").unlink()
    uvit.run(changed, tmp_path)
    assert encoded == [6, 6, 16, 6]  # another VAE


def test_eyes_nose_and_mouth_count_most():
    masks = np.zeros((2, 16, 16), np.uint8)
    masks[:, 4:12, 4:12] = 1
    masks[:, 8:12, 4:8] = 5  # the right eye, on the left of the picture
    weights = base_model.cell_weights(masks, (4, 4), face=2.0, features=5.0)
    assert weights.shape == (2, 2, 1, 4, 4)
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
    plain, mirrored = weights[0, :, 0] / weights[0, 0, 0, 0, 0]
    expected = torch.ones(4, 4)
    expected[1:3, 1:3] = 2
    expected[2, 1] = 5
    torch.testing.assert_close(plain, expected)
    torch.testing.assert_close(mirrored, expected.flip(-1))


def test_the_unet_shares_what_is_encoded_and_feedface_trains_on_it(built, config, tmp_path, monkeypatch):
    for folder in ("world", "bundle", "uvit"):
        shutil.copytree(built / folder, tmp_path / folder)
    encoded = []
    encode = base_model.encode
    monkeypatch.setattr(
        base_model, "encode", lambda portraits, *rest: encoded.append(len(portraits)) or encode(portraits, *rest)
    )
    unet.run(config, tmp_path)
    assert encoded == [6]  # the held-out pictures alone
    record = json.loads((tmp_path / "unet/metrics.json").read_text())
    assert record["training"]["steps"] == 2 and set(record["metrics"]) == {"held_out_img_loss"}
    assert (tmp_path / "unet/samples.png").is_file()
    loaded = load_bundle(tmp_path / "bundle_unet", components=("backbone", "vae", "text_encoder"))
    assert loaded.backbone.kind == "unet" and loaded.backbone.latent_size == (8, 8)
    index = json.loads((tmp_path / "bundle_unet/model_index.json").read_text())
    assert index["parts"]["vae"] == "../bundle/vae" and index["backbone"] == {"kind": "unet", "folder": "unet"}

    changed = config.copy_and_resolve_references()
    changed.control_unet.update(steps=2, batch_size=2, precision="no")
    control_unet.run(changed, tmp_path)
    whole = load_bundle(tmp_path / "bundle_unet")
    assert whole.method.sites == ["down_blocks.1.attentions.0", "up_blocks.0.attentions.0"]
    assert json.loads((tmp_path / "control_unet/metrics.json").read_text())["training"]["steps"] == 2

    first, out = tmp_path / "models" / "first", tmp_path / "models" / "second"
    shutil.copytree(tmp_path / "bundle", first)
    changed.bundle.out, changed.bundle_unet.out = str(first), str(out)
    bundle_unet.run(changed, tmp_path)
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "feedface", "model_index.json", "unet"]
    assert json.loads((out / "model_index.json").read_text())["parts"]["vae"] == "../first/vae"
    assert load_bundle(out).method.sites == whole.method.sites
    assert "| control_unet |" in (out / "README.md").read_text()

    file = first / "vae/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    save_file({**state, "decoder.conv_in.bias": state["decoder.conv_in.bias"] + 1}, file)  # may learn on
    bundle_unet.run(changed, tmp_path)
    save_file({**state, "encoder.conv_in.bias": state["encoder.conv_in.bias"] + 1}, file)
    with pytest.raises(UserError, match=r"its vae is another.*--stage vae"):
        bundle_unet.run(changed, tmp_path)


@pytest.mark.parametrize(
    "stage, named",
    [(unet, "--stage` vae, clip"), (control, "--stage` vae, clip, face_encoder, uvit"), (decoder, "--stage` vae"),
     (control_unet, "--stage unet"), (bundle_unet, "stages unet, control_unet")],
)  # fmt: skip
def test_a_stage_before_those_it_builds_on_names_them(stage, named, config, built, tmp_path):
    shutil.copytree(built / "world", tmp_path / "world")
    with pytest.raises(UserError) as raised:
        stage.run(config, tmp_path)
    assert named in str(raised.value)


def test_clip_goes_on_from_other_weights_with_patches_of_another_size(built, config):
    before = load_bundle(built / "bundle", components=("text_encoder", "image_encoder"))
    larger = config.copy_and_resolve_references().clip
    larger.update(patch_size=32, image_size=128)
    text, vision = clip.build(larger, before.text_encoder.tokenizer)
    projection = nn.Linear(larger.text_width, larger.embedding_dim, bias=False)
    clip.go_on_from(str(built / "bundle"), text, vision, projection)
    for one, other in zip(text.parameters(), before.text_encoder.clip.parameters(), strict=True):
        assert torch.equal(one, other)
    # What a flat colour looks like does not depend on how many pixels a patch has.
    small, large = (ImageEncoder(net.eval()).encode(torch.full((1, 3, side, side), 0.2))
                    for net, side in ((before.image_encoder.clip, 64), (vision, 128)))  # fmt: skip
    assert torch.allclose(small, large, rtol=1e-3, atol=1e-3)
    text.config.vocab_size -= 1
    with pytest.raises(UserError, match="vocabulary"):
        clip.go_on_from(str(built / "bundle"), text, vision, projection)


def test_the_decoder_learns_on_and_the_latents_stay(built, config, tmp_path):
    for folder in ("world", "bundle"):
        shutil.copytree(built / folder, tmp_path / folder)
    before = load_bundle(built / "bundle", components=["vae"]).vae
    decoder.run(config, tmp_path)
    after = load_bundle(tmp_path / "bundle", components=["vae"]).vae
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = before.encode(picture, sample=False)
        assert torch.equal(after.encode(picture, sample=False), latents)
        assert not torch.equal(after.decode(latents), before.decode(latents))
    assert after.vae.config.scaling_factor == before.vae.config.scaling_factor


def test_every_caption_word_is_one_token_and_other_text_is_spelled_out(built):
    text_encoder = load_bundle(built / "bundle", components=["text_encoder"]).text_encoder
    tokenizer = text_encoder.tokenizer
    caption = common.load_portraits(built).captions[0]
    words = caption.replace("-", " - ").replace(",", " ,").split()
    assert tokenizer.tokenize(caption) == [word + "</w>" for word in words]
    assert tokenizer.unk_token_id not in tokenizer("Zürich 😀 xylophone", add_special_tokens=False).input_ids
    encoded = text_encoder.encode(["", "Zürich 😀 xylophone", "a man " * 50])
    assert encoded.shape == (3, text_encoder.num_tokens, text_encoder.text_dim)
    assert torch.isfinite(encoded).all()


def test_penultimate_states_are_those_that_were_trained(built):
    from transformers import CLIPVisionModel

    encoder = CLIPVisionModel.from_pretrained(built / "bundle" / "face_encoder")
    states = encoder(torch.rand(1, 3, 48, 48), output_hidden_states=True).hidden_states
    assert torch.equal(states[-1], states[-2])  # the last layer adds nothing
    assert not torch.allclose(states[-2], states[-3])


def test_jitter_cuts_within_the_crop():
    crops = torch.arange(54 * 54).reshape(1, 1, 54, 54).expand(32, 3, 54, 54) / 54**2 * 2 - 1
    cut = face_encoder.jitter(crops.float(), 48, torch.Generator().manual_seed(0))
    assert cut.shape == (32, 3, 48, 48)
    steps = cut[:, 0, 0, 1] > cut[:, 0, 0, 0]
    assert 4 < int(steps.sum()) < 28  # about half are mirrored


def test_reconstruction_loss_weighs_eyes_more_than_background():
    pixels, masks = torch.zeros(1, 3, 16, 16), torch.zeros(1, 16, 16, dtype=torch.uint8)
    masks[:, 2:6, 2:6] = 4  # an eye
    eye, background = pixels.clone(), pixels.clone()
    eye[..., 3:5, 3:5], background[..., 11:13, 11:13] = 0.5, 0.5
    assert vae.reconstruction_loss(pixels, pixels, masks) == 0
    assert vae.reconstruction_loss(pixels, eye, masks) > 5 * vae.reconstruction_loss(pixels, background, masks)


def test_min_snr_weights():
    t = torch.tensor([1, 500, 1000])
    alpha_bar = alphas_cumprod()[t - 1]
    snr = alpha_bar / (1 - alpha_bar)
    assert torch.allclose(base_model.min_snr_weights(t, 5.0).double(), snr.clamp(max=5) / snr, rtol=1e-5)
    assert torch.equal(base_model.min_snr_weights(t, 0), torch.ones(3))


def test_a_fresh_base_hands_the_noisy_picture_through():
    net = UViT(img_size=8, in_chans=4, patch_size=2, embed_dim=64, depth=5, num_heads=2, text_dim=16,
               num_text_tokens=6, clip_img_dim=8)  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(shape, generator=generator) for shape in ((16, 4, 8, 8), (16, 6, 16)))
    identity_start(net)
    with torch.no_grad():
        out = net.predict(
            x, torch.zeros(16, 1, 8), text, torch.full((16,), 900), torch.zeros(16), torch.ones(16).long()
        )
    assert (out.img - x).square().mean() < 0.1
    with pytest.raises(ValueError, match="too small"):
        identity_start(UViT(img_size=8, in_chans=12, patch_size=2, embed_dim=64, depth=5, num_heads=2))


def test_contrastive_loss_is_least_for_matching_pairs():
    embeddings = torch.eye(4)
    scale = torch.tensor(3.0)
    matched = clip.contrastive_loss(embeddings, embeddings, scale)
    assert matched < 1e-3 < clip.contrastive_loss(embeddings, embeddings.flip(0), scale)


# ----------------------------------------------------------------------------------------------------------- bundle


def fake_stages(workdir):
    """Metrics of all stages and a file for each component."""
    cost = {"steps": 7, "samples": 70, "seconds": 90.0, "loss": 0.5, "parameters": 1_500_000}
    for stage in bundle.TRAINED_STAGES:
        (workdir / stage).mkdir(parents=True)
        record = {"settings": {"seed": 3}, "training": cost, "metrics": {"score": 0.25}}
        (workdir / stage / "metrics.json").write_text(json.dumps(record))
    people = {"first_identity": 5, "identities": 10, "per_identity": 2}
    settings = {"seed": 0, "train": people, "held_out": people}
    (workdir / "world").mkdir()
    (workdir / "world" / "metrics.json").write_text(json.dumps({"settings": settings, "training": None, "metrics": {}}))
    for name in bundle.COMPONENTS:
        (workdir / "bundle" / name).mkdir(parents=True)
        (workdir / "bundle" / name / "weights").write_bytes(bytes(1000))


def test_bundle_is_complete_with_a_card_of_the_measured_numbers(tmp_path):
    fake_stages(tmp_path)
    config = read_config("cpu", [f"--config.bundle.out={tmp_path / 'out'}"])
    bundle.run(config, tmp_path)
    assert set(read_index(tmp_path / "out").components) == set(bundle.COMPONENTS.values())
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| uvit | 1.50 M | 7 | 70 | 1.5 | 3 | score 0.25 |" in text
    assert "10 people (numbers 5 to 14) x 2 scenes" in text


def test_a_bundle_that_is_too_large_leaves_the_old_one(tmp_path):
    fake_stages(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    config = read_config("cpu", [f"--config.bundle.out={out}", "--config.bundle.max_mib=0.001"])
    with pytest.raises(UserError, match="max_mib"):
        bundle.run(config, tmp_path)
    assert (out / "old").exists()


def test_a_missing_component_is_named(tmp_path):
    fake_stages(tmp_path)
    (tmp_path / "bundle" / "uvit" / "weights").unlink()
    (tmp_path / "bundle" / "uvit").rmdir()
    with pytest.raises(UserError, match="uvit missing"):
        bundle.run(read_config("cpu", []), tmp_path)


def test_a_stage_before_its_world_says_so(tmp_path):
    with pytest.raises(UserError, match="--stage world"):
        vae.run(read_config("cpu", []), tmp_path)


@pytest.mark.slow
def test_control_stage_trains_the_face_controlnet(built, config):
    from feedface.synthetic.train import control

    config = read_config("cpu", [*TOY, "--config.control.steps=2", "--config.control.batch_size=2"])
    control.run(config, built)
    net = load_bundle(built / "bundle", components=["method"]).method
    face = to_tensor(np.zeros((48, 48, 3), np.uint8))[None]
    assert torch.isfinite(face_tokens(net, face)).all()
    assert isinstance(net.config, dict | types.MappingProxyType)

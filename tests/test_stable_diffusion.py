"""Stable Diffusion 1.x and 2.x in both forms: folders and single files give the same model; what is none is named."""

import json

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from tests import golden
from tests.toy import toy_tokenizer
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from feedface.checkpoints import ldm
from feedface.checkpoints.clip_tokenizer import clip_tokenizer
from feedface.checkpoints.ldm import SD1, SD2, Version
from feedface.checkpoints.official import VAE_CONFIG, load_vae
from feedface.checkpoints.parts import is_stable_diffusion
from feedface.checkpoints.stable_diffusion import merge_lora, open_stable_diffusion
from feedface.checkpoints.storage import quiet_transformers
from feedface.common.errors import UserError
from feedface.encoders import TextEncoder

UNET, VAE, TEXT = ldm.UNET, ldm.VAE, ldm.TEXT
SMALL_VAE = {"block_out_channels": [8] * 4, "norm_num_groups": 4, "layers_per_block": 2}


class Toy:
    """A model of a version's structure with widths of 8 and 16: its parts as diffusers and transformers have them."""

    def __init__(self, folder, version: Version = SD1):
        torch.manual_seed(0)
        second = version is SD2
        self.tokenizer = toy_tokenizer(folder / "some_tokenizer")
        text = {
            **{"vocab_size": len(self.tokenizer), "hidden_size": 24 if second else 16, "intermediate_size": 32},
            **{"num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 77},
            **{"hidden_act": version.text["hidden_act"], "bos_token_id": self.tokenizer.bos_token_id},
            **{"eos_token_id": self.tokenizer.eos_token_id, "pad_token_id": self.tokenizer.pad_token_id},
        }
        unet = {
            **{"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "cross_attention_dim": text["hidden_size"]},
            **{"attention_head_dim": 2, "use_linear_projection": second},
        }
        self.version = Version(
            version.name, unet, text, SMALL_VAE, version.pad_token, version.open_clip, tokenizer=self.tokenizer
        )
        self.unet = UNet2DConditionModel(sample_size=64, **unet)
        self.clip = CLIPTextModel(CLIPTextConfig(**text))
        shapes = golden.stable_diffusion()["single_file"]
        narrow = {
            key.removeprefix(VAE): [{128: 8, 256: 8, 512: 8}.get(size, size) for size in shape]
            for key, shape in shapes.items()
            if key.startswith(VAE) and "nin_shortcut" not in key
        }
        self.ldm_vae = golden.weights(narrow)
        self.vae = load_vae(self.ldm_vae, **SMALL_VAE)

    def single_file(self) -> dict[str, Tensor]:
        """In the naming of LDM, with what such files have besides."""
        theirs = {ours: name for name, ours in golden.stable_diffusion()["to_diffusers"].items()}
        state = {theirs[name]: value for name, value in self.unet.state_dict().items()}
        state |= {VAE + name: value for name, value in self.ldm_vae.items()}
        clip = self.clip.state_dict()
        if self.version.open_clip:
            state |= {f"{TEXT}model.{name}": value for name, value in open_clip_names(clip, self.clip.config).items()}
        else:
            state |= {f"{TEXT}transformer.text_model.{name}": value for name, value in clip.items()}
            state[f"{TEXT}transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
        return {name: value.contiguous() for name, value in state.items()} | {"betas": torch.ones(1000)}

    def save_folder(self, folder, **scheduler) -> None:
        with quiet_transformers():
            for part, module in (("unet", self.unet), ("vae", self.vae), ("text_encoder", self.clip)):
                module.save_pretrained(folder / part)
        self.tokenizer.save_pretrained(folder / "tokenizer")
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))

    def open(self, path, **options):
        return open_stable_diffusion(path, versions=(self.version,), **options)


def open_clip_names(clip: dict[str, Tensor], config) -> dict[str, Tensor]:
    """OpenCLIP's text tower of one layer more, whose last is not used, and its projection."""
    names = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    found = {
        "positional_embedding": clip["embeddings.position_embedding.weight"],
        "token_embedding.weight": clip["embeddings.token_embedding.weight"],
        "ln_final.weight": clip["final_layer_norm.weight"],
        "ln_final.bias": clip["final_layer_norm.bias"],
        "text_projection": torch.randn(config.hidden_size, config.hidden_size),
        "logit_scale": torch.tensor(4.6),
    }
    for layer in range(config.num_hidden_layers + 1):
        source = f"encoder.layers.{min(layer, config.num_hidden_layers - 1)}."
        target = f"transformer.resblocks.{layer}."
        for end in ("weight", "bias"):
            for ours, theirs in names.items():
                found[f"{target}{theirs}.{end}"] = clip[f"{source}{ours}.{end}"].clone()
            parts = [clip[f"{source}self_attn.{name}_proj.{end}"] for name in "qkv"]
            found[f"{target}attn.in_proj_{end}"] = torch.cat(parts)
    return found


def same(module: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = module.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -------------------------------------------------------------------------------------------------------- both forms


@pytest.mark.parametrize("version", [SD1, SD2], ids=["1.x", "2.x"])
@torch.no_grad()
def test_a_single_file_and_a_folder_are_the_same_model(version: Version, tmp_path):
    toy = Toy(tmp_path, version)
    second = version is SD2
    prediction = "v_prediction" if second else "epsilon"
    toy.save_folder(tmp_path / "folder", prediction_type=prediction, beta_schedule="scaled_linear")
    save_file(toy.single_file(), tmp_path / "model.safetensors", {"modelspec.prediction_type": prediction[:1]})
    torch.save({"state_dict": toy.single_file(), "global_step": 110_000}, tmp_path / "model.ckpt")
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500.0])
    for name in ("folder", "model.safetensors", "model.ckpt"):
        assert is_stable_diffusion(tmp_path / name)
        model = toy.open(tmp_path / name)
        assert model.prediction == prediction
        assert model.image_size == (768 if second and name != "folder" else 512)
        unet, vae, text = model.unet(), model.vae(), model.text_encoder()
        assert same(unet.unet, toy.unet)
        assert same(vae.vae, toy.vae)
        assert same(text.clip, toy.clip)
        assert unet.latent_size == (model.image_size // 8,) * 2
        assert unet.prediction == prediction
        assert vae.factor == 8
        assert text.encode(["a b"]).shape == (1, 77, unet.text_dim)
        assert not any(p.requires_grad for part in (unet, vae, text) for p in part.parameters())
        out = unet({"img": inputs[0]}, inputs[1], unet.conditions({"text": text.encode(["a b"])}, (8, 8)))["img"]
        assert out.shape == inputs[0].shape
        assert same(model.unet(dtype=None).unet, toy.unet)
        assert model.unet(dtype=torch.float16).dtype == torch.float16
        assert model.text_encoder(dtype=torch.bfloat16).clip.dtype == torch.bfloat16


def test_the_first_files_name_a_class_of_lightnings_which_is_not_run(tmp_path, monkeypatch):
    import sys
    import types

    toy = Toy(tmp_path)
    names = ["pytorch_lightning", "callbacks", "model_checkpoint"]
    for count in range(1, 4):
        monkeypatch.setitem(sys.modules, ".".join(names[:count]), types.ModuleType(".".join(names[:count])))
    callback = type("ModelCheckpoint", (), {"__module__": ".".join(names)})
    sys.modules[".".join(names)].ModelCheckpoint = callback
    content = {"state_dict": toy.single_file(), "callbacks": {callback: {"best": 1}}, "global_step": 470_000}
    torch.save(content, tmp_path / "old.ckpt")
    monkeypatch.delitem(sys.modules, ".".join(names))
    assert same(toy.open(tmp_path / "old.ckpt").unet().unet, toy.unet)


def test_names_that_fine_tunes_have_are_read(tmp_path):
    toy = Toy(tmp_path)
    state = toy.single_file()
    text = f"{TEXT}transformer.text_model."
    flat = {key.replace(text, f"{TEXT}transformer."): value for key, value in state.items()}
    extra = {f"model_ema.{i}": torch.ones(1) for i in range(3)} | {"model_ema.decay": torch.ones(())}
    save_file({**flat, **extra}, tmp_path / "tune.safetensors")
    assert same(toy.open(tmp_path / "tune.safetensors").text_encoder().clip, toy.clip)


@torch.no_grad()
def test_clip_skip_leaves_out_the_last_layers(tmp_path):
    toy = Toy(tmp_path)
    encoder = TextEncoder(toy.clip, toy.tokenizer)
    ids = encoder.tokenize(["a b"])
    out = toy.clip(input_ids=ids, output_hidden_states=True)
    assert torch.equal(encoder.encode(["a b"]), out.last_hidden_state)
    for skipped in (1, 2):
        expected = toy.clip.final_layer_norm(out.hidden_states[-1 - skipped])
        skipping = TextEncoder(toy.clip, toy.tokenizer, clip_skip=skipped)
        assert torch.equal(skipping.encode(["a b"]), expected)
        assert not torch.allclose(expected, out.last_hidden_state)
    with pytest.raises(UserError, match="clip_skip 3: use 0 to 2"):
        TextEncoder(toy.clip, toy.tokenizer, clip_skip=3)


def test_clips_tokenizer():
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49_408
    assert tokenizer("A photo of a cat *").input_ids == [49406, 320, 1125, 539, 320, 2368, 265, 49407]
    padded = tokenizer("a", padding="max_length").input_ids
    assert padded == [49406, 320, *[49407] * 75]
    assert clip_tokenizer("!")("a", padding="max_length").input_ids == [49406, 320, 49407, *[0] * 74]


def test_full_size_has_the_public_files_names_and_shapes(tmp_path, monkeypatch):
    # SD-1.5's names and shapes, without its weights: on the meta device
    facts = golden.stable_diffusion()
    shapes = facts["single_file"]
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    with init_empty_weights():
        unet = UNet2DConditionModel(sample_size=64, **SD1.unet)
        clip = CLIPTextModel(CLIPTextConfig(**SD1.text))
        AutoencoderKL(**VAE_CONFIG)
    assert {key: [*value.shape] for key, value in unet.state_dict().items()} == facts["unet"]
    monkeypatch.setattr(ldm, "_read_ckpt", lambda path: (state, None))
    model = open_stable_diffusion(touch(tmp_path / "v1-5.ckpt"))
    assert (model.prediction, model.image_size) == ("epsilon", 512)
    for part, millions in ((model.unet("meta"), 859.520964), (model.vae("meta").vae, 83.653863)):
        assert sum(p.numel() for p in part.parameters()) == round(millions * 1e6)
    text = model.text_encoder("meta")
    assert text.clip.state_dict().keys() == clip.state_dict().keys()
    assert sum(p.numel() for p in text.parameters()) == 123_060_480
    assert text.num_tokens == 77


def touch(path):
    path.write_bytes(b"")
    return path


# -------------------------------------------------------------------------------------------------- what it predicts


def test_a_second_version_must_say_what_it_predicts(tmp_path):
    toy = Toy(tmp_path, SD2)
    path = tmp_path / "model.safetensors"
    save_file(toy.single_file(), path)
    with pytest.raises(UserError, match=r"model.safetensors: a Stable Diffusion 2.x that does not say .* \.yaml"):
        toy.open(path)
    assert toy.open(path, prediction="epsilon").image_size == 512
    path.with_suffix(".yaml").write_text("model:\n  params:\n    parameterization: v\n")
    assert toy.open(path).prediction == "v_prediction"
    path.with_suffix(".yaml").write_text("model:\n  params:\n    timesteps: 1000\n")
    assert toy.open(path).prediction == "epsilon"
    path.with_suffix(".yaml").write_text("- a list")
    with pytest.raises(UserError, match=r"model.yaml: not the description"):
        toy.open(path)
    with pytest.raises(UserError, match="prediction 'x'"):
        toy.open(path, prediction="x")
    torch.save({"state_dict": toy.single_file(), "global_step": 875_000}, tmp_path / "base.ckpt")
    assert toy.open(tmp_path / "base.ckpt").prediction == "epsilon"


def test_a_file_may_say_its_size(tmp_path):
    toy = Toy(tmp_path)
    save_file(toy.single_file(), tmp_path / "model.safetensors", {"modelspec.resolution": "768x768"})
    assert toy.open(tmp_path / "model.safetensors").image_size == 768


# ---------------------------------------------------------------------------------------------------------- bad input


def first(width: int = 16, channels: int = 4) -> dict[str, Tensor]:
    return {ldm.FIRST_CONV: torch.ones(8, channels, 3, 3), ldm.FIRST_TEXT_KEY: torch.ones(8, width)}


WRONG = {
    "Stable Diffusion XL": {**first(2048), "conditioner.embedders.0.x": torch.ones(1)},
    "a LoRA, which changes a model": {"lora_unet_down_blocks_0.lora_down.weight": torch.ones(1, 1)},
    "a VAE alone": {"decoder.conv_in.weight": torch.ones(1)},
    "an in-painting model of 9 input channels": first(channels=9),
    r"an image-editing model \(InstructPix2Pix\) of 8": first(channels=8),
    "a ControlNet": {"control_model.input_blocks.0.0.weight": torch.ones(1)},
    "a U-Net alone, in diffusers' naming": {
        f"{part}.weight": torch.ones(1) for part in ("down_blocks.0.a", "up_blocks.0.a", "time_embedding.linear_1")
    },
    "a textual-inversion embedding": {"emb_params": torch.ones(1, 16)},
    "a text encoder alone": {"text_model.encoder.layers.0.mlp.fc1.weight": torch.ones(1)},
    r"a diffusion transformer \(Stable Diffusion 3": {"model.diffusion_model.joint_blocks.0.x": torch.ones(1)},
    r"a model without its VAE": first(),
    "a diffusion model for texts of width 99": first(99),
    "not a model that is known here": {"something": torch.ones(1)},
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_stable_diffusion_is_named(what: str, tmp_path):
    version = Version("1.x", {"cross_attention_dim": 16}, {}, {}, "", False)
    for path in (tmp_path / "wrong.safetensors", tmp_path / "wrong.ckpt"):
        if path.suffix == ".ckpt":
            torch.save(WRONG[what], path)
        else:
            save_file(WRONG[what], path)
        with pytest.raises(UserError, match=f"^.*wrong.*: this is {what}.*; needed is a whole Stable Diffusion"):
            open_stable_diffusion(path, versions=(version,))


def test_single_files_are_checked_key_by_key(tmp_path):
    toy = Toy(tmp_path)
    state, path = toy.single_file(), tmp_path / "model.safetensors"
    for part, key in (
        ("unet", f"{UNET}out.2.weight"),
        ("vae", f"{VAE}decoder.conv_in.weight"),
        ("text_encoder", f"{TEXT}transformer.text_model.final_layer_norm.bias"),
    ):
        for change in ("missing", "misshapen", "unknown"):
            changed = dict(state)
            if change == "missing":
                del changed[key]
            elif change == "misshapen":
                changed[key] = torch.ones(3, 3)
            else:
                changed[key + ".new"] = torch.ones(1)
            save_file(changed, path)
            with pytest.raises(UserError, match=r"model\.safetensors"):
                getattr(toy.open(path), part)()


def test_broken_files_and_pickles_that_run_code_are_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return print, ("must not run",)

    torch.save({"state_dict": {}, "payload": Payload()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"evil.ckpt: not loaded, since it is damaged or holds more than tensors"):
        open_stable_diffusion(tmp_path / "evil.ckpt")
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing at all")
    for name in ("broken.ckpt", "broken.safetensors", "none.ckpt", "model.txt", "empty"):
        (tmp_path / "model.txt").write_text("text")
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=rf"^{tmp_path / name}: "):
            open_stable_diffusion(tmp_path / name)


def test_folders_of_another_kind_are_named(tmp_path):
    toy = Toy(tmp_path)
    for name, change, message in (
        ("xl", {"addition_embed_type": "text_time"}, "Stable Diffusion XL"),
        ("inpainting", {"in_channels": 9}, "a model of 9 input channels"),
    ):
        toy.save_folder(tmp_path / name)
        file = tmp_path / name / "unet" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(UserError, match=f"{name}: this is {message}; needed is"):
            open_stable_diffusion(tmp_path / name)
    for name, scheduler, message in (
        ("flow", {"prediction_type": "flow"}, "\"prediction_type\" is 'flow'"),
        ("linear", {"beta_schedule": "linear"}, "\"beta_schedule\" is 'linear'; only 'scaled_linear'"),
        ("zero", {"rescale_betas_zero_snr": True}, '"rescale_betas_zero_snr" is True'),
    ):
        toy.save_folder(tmp_path / name, **scheduler)
        with pytest.raises(UserError, match=f"{name}/scheduler/scheduler_config.json: {message}"):
            open_stable_diffusion(tmp_path / name)


def test_a_download_of_half_precision_alone_is_read(tmp_path):
    toy = Toy(tmp_path)
    toy.save_folder(tmp_path / "folder")
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (tmp_path / "folder" / part).glob("*.safetensors")
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    model = toy.open(tmp_path / "folder")
    assert same(model.unet().unet, toy.unet)
    assert same(model.vae().vae, toy.vae)
    assert same(model.text_encoder().clip, toy.clip)


# --------------------------------------------------------------------------------------------------------------- LoRA


def kohya(toy: Toy, rank: int = 2) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A LoRA in kohya's naming, with alpha half of its rank, and what it adds to which weight."""
    state, added = {}, {}
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    text = "encoder.layers.0.self_attn"
    for prefix, module, net in (
        ("lora_unet_", name, toy.unet),
        ("lora_te_text_model_", f"{text}.q_proj", toy.clip),
        ("lora_te_text_model_", f"{text}.out_proj", toy.clip),
    ):
        out, width = net.get_submodule(module).weight.shape
        down, up = torch.randn(rank, width), torch.randn(out, rank)
        key = prefix + module.replace(".", "_")
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(rank / 2)}
        added[module] = up @ down / 2
    return state, added


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_lora_is_added_to_the_weights(scale: float, tmp_path):
    toy = Toy(tmp_path)
    toy.save_folder(tmp_path / "folder")
    state, added = kohya(toy)
    save_file(state, tmp_path / "lora.safetensors")
    model = toy.open(tmp_path / "folder")
    unet, text = model.unet(), model.text_encoder()
    keys = list(unet.state_dict()), list(text.state_dict())
    merge_lora(tmp_path / "lora.safetensors", unet, text, scale)
    assert (list(unet.state_dict()), list(text.state_dict())) == keys
    assert not any(p.requires_grad for part in (unet, text) for p in part.parameters())
    for net, plain in ((unet.unet, toy.unet), (text.clip, toy.clip)):
        own, before = net.state_dict(), plain.state_dict()
        for name, value in own.items():
            change = added.get(name.removesuffix(".weight"))
            if change is None:
                assert torch.equal(value, before[name])
            else:
                torch.testing.assert_close(value, before[name] + scale * change)


def test_what_is_no_lora_of_this_model_is_refused(tmp_path):
    toy = Toy(tmp_path)
    toy.save_folder(tmp_path / "folder")
    unet = toy.open(tmp_path / "folder").unet()
    save_file(toy.ldm_vae, tmp_path / "vae.safetensors")
    with pytest.raises(UserError, match=r"vae.safetensors: this is a VAE alone; needed is a LoRA"):
        merge_lora(tmp_path / "vae.safetensors", unet)
    with pytest.raises(UserError, match=r"lora.pt: a LoRA must be a \.safetensors"):
        merge_lora(tmp_path / "lora.pt", unet)
    state, _ = kohya(toy)
    wide = {key: torch.ones(2, 640) if "down.weight" in key else value for key, value in state.items()}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(UserError, match=r"wide.safetensors: a LoRA that does not belong to this model"):
        merge_lora(tmp_path / "wide.safetensors", unet)

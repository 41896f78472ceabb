"""What a training run is made of, from its config: checked values, accelerate, the models, the data."""

from dataclasses import dataclass
from pathlib import Path

import ml_collections
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch.utils.data import Dataset

from feedface.checkpoints.bundle import check_fit, load_bundle, quiet_transformers, read_index
from feedface.data.cache import CachedDataset, FeatureCache
from feedface.data.dataset import PictureDataset, PictureStore, check_broken
from feedface.data.draws import DrawSettings
from feedface.data.features import FrozenEncoders
from feedface.data.records import read_records
from feedface.device import DTYPES
from feedface.errors import UserError
from feedface.methods.feedface import FaceControlNet
from feedface.training.objective import LOSSES, ControlledUViT
from feedface.training.tracking import check_trackers

# Arguments of `CLIPVisionConfig` that shape the network; the rest of a stored config is bookkeeping.
CLIP_KEYS = (
    "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads", "num_channels",
    "image_size", "patch_size", "hidden_act", "layer_norm_eps",
)  # fmt: skip
PRECISIONS = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}
FACE_DROPOUTS = ("zero_feature", "zero_image")


def check_config(config: ml_collections.ConfigDict) -> None:
    """`UserError` naming the first key whose value cannot work."""
    choices = {
        "loss.kind": LOSSES,
        "loss.face_dropout_kind": FACE_DROPOUTS,
        "train.schedule": ("constant", "cosine"),
        "train.precision": ("auto", *PRECISIONS),
        "data_type": (0, 1),
    }
    at_least = {
        "seed": 0, "data.max_faces": 1, "data.workers": 0, "data.max_broken": 0, "train.steps": 1,
        "train.batch_size": 1, "train.accumulation": 1, "train.warmup_steps": 0, "train.lr": 0, "train.grad_clip": 0,
        "train.weight_decay": 0, "loss.min_snr": 0, "log.every": 1, "checkpoint.every": 1, "checkpoint.keep": 1,
        "checkpoint.keep_every": 0,
    }  # fmt: skip
    shares = (
        "data.flip", "data.hair_in_mask", "data.other_picture", "loss.standard_share", "loss.face_dropout",
        "loss.text_dropout", "train.ema",
    )  # fmt: skip

    def value(key: str):
        node = config
        for part in key.split("."):
            node = node[part]
        return node

    for key, allowed in choices.items():
        if value(key) not in allowed:
            raise UserError(f"config.{key}: {value(key)!r} is not known; use {', '.join(map(str, allowed))}")
    for key, least in at_least.items():
        if not value(key) >= least:
            raise UserError(f"config.{key}: must be at least {least}, not {value(key)}")
    for key in shares:
        if not 0 <= value(key) <= 1:
            raise UserError(f"config.{key}: must lie between 0 and 1, not {value(key)}")
    check_trackers(config.log.trackers)


def make_accelerator(config: ml_collections.ConfigDict, workdir: Path) -> Accelerator:
    """accelerate as it was launched; `config.train.precision` "auto" takes what the launcher was told."""
    precision = None if config.train.precision == "auto" else config.train.precision
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            log_with=list(config.log.trackers) or None,
            project_config=ProjectConfiguration(str(workdir), logging_dir=str(workdir / "logs")),
        )
    except ValueError as error:
        raise UserError(f"config.train.precision={config.train.precision}: {error}") from None
    if accelerator.mixed_precision not in PRECISIONS:
        raise UserError(f"mixed precision {accelerator.mixed_precision} is unknown; use {', '.join(PRECISIONS)}")
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("mixed precision fp16 needs a GPU; use --config.train.precision=no or bf16 on a CPU")
    return accelerator


@dataclass
class Models:
    """`trained` and `encoders` share the face encoder. `latent_shape` is (C, h, w) of the bundle's image size."""

    trained: ControlledUViT
    encoders: FrozenEncoders
    base: Path
    image_size: int
    latent_shape: tuple[int, int, int]


def build_models(config: ml_collections.ConfigDict, device: torch.device, precision: str) -> Models:
    """The bundle's frozen parts in low precision and the face-controlnet, whose trained part is float32.

    With `config.face_encoder` (a folder of transformers' CLIPVisionModel) the face-controlnet is a fresh one, made as
    `config.control` says; without, training goes on from the bundle's own.
    """
    dtype = DTYPES[PRECISIONS[precision]]
    bundle = load_bundle(config.model, device, dtype, ("uvit", "text_encoder", "image_encoder"))
    # Latents with bfloat16's three digits would be visibly coarse.
    vae_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
    bundle.vae = load_bundle(config.model, device, vae_dtype, ["vae"]).vae
    if config.face_encoder:
        net = _fresh_control(config, bundle.uvit.embed_dim).to(device)
        source = f"config.control with {config.model}"
    else:
        if "face_controlnet" not in read_index(config.model).components:
            raise UserError(
                f"{config.model}: has no face_controlnet to go on from; name a folder with a CLIP vision model as "
                f"config.face_encoder to train a fresh one"
            )
        net = load_bundle(config.model, device, torch.float32, ["face_controlnet"]).face_controlnet
        source = bundle.components["face_controlnet"]
    check_fit(bundle.uvit, net, source)
    net.face_encoder.to(dtype)
    for parameter in net.trainable_parameters():
        parameter.requires_grad_(True)
    net.eval()
    bundle.uvit.gradient_checkpointing = config.train.gradient_checkpointing
    side, left_over = divmod(bundle.image_size, bundle.vae.factor)
    if left_over or side % bundle.uvit.patch_size:
        raise UserError(f"{config.model}: image_size {bundle.image_size} does not fit its VAE and U-ViT patches")
    return Models(
        trained=ControlledUViT(bundle.uvit, net, config.data_type),
        encoders=FrozenEncoders(bundle.vae, bundle.image_encoder, bundle.text_encoder, net),
        base=Path(config.model),
        image_size=bundle.image_size,
        latent_shape=(bundle.uvit.in_chans, side, side),
    )


def _fresh_control(config: ml_collections.ConfigDict, embed_dim: int) -> FaceControlNet:
    from transformers import CLIPVisionModel

    folder = Path(config.face_encoder)
    if not folder.is_dir():
        raise UserError(f"config.face_encoder: {folder}: no such folder; it must hold a CLIP vision model")
    try:
        with quiet_transformers():
            encoder, info = CLIPVisionModel.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # transformers raises nearly every kind for a broken folder
        raise UserError(f"config.face_encoder: {folder}: no CLIP vision model in safetensors: {error}") from None
    # A whole CLIP has extra (text) weights; a missing one would be random.
    if info["missing_keys"] or info.get("mismatched_keys"):
        raise UserError(
            f"config.face_encoder: {folder}: weights are missing, such as {next(iter(info['missing_keys']))}"
        )
    clip_config = {key: getattr(encoder.config, key) for key in CLIP_KEYS}
    control = config.control
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            net = FaceControlNet(
                embed_dim, control.num_heads, list(control.sites), clip_config, control.control_input, control.mlp_ratio
            )
        except ValueError as error:
            raise UserError(f"config.control: {error}") from None
    net.face_encoder.load_state_dict(encoder.state_dict())
    return net


def build_dataset(config: ml_collections.ConfigDict, models: Models, accelerator: Accelerator) -> Dataset:
    """Pictures, or cached features of them (`config.cache.enabled`); `UserError` with too many broken files."""
    store = build_store(config, models)
    settings = draw_settings(config, models)
    if not config.cache.enabled:
        return PictureDataset(store, settings)
    # With a folder one process computes and the others read what it wrote.
    with accelerator.main_process_first():
        cache = FeatureCache.open(store, models.encoders, mirrored=config.data.flip > 0, folder=config.cache.dir)
    check_broken(cache.broken, config.data.max_broken)
    if cache.broken and accelerator.is_main_process:
        print(f"{len(cache.broken)} files cannot be used and are passed over: {', '.join(list(cache.broken)[:5])} …")
    return CachedDataset(cache, [len(record.ref) for record in store.records], settings)


def build_store(config: ml_collections.ConfigDict, models: Models) -> PictureStore:
    """The records' files at the sizes the models want."""
    return PictureStore(
        read_records(list(config.data.records)),
        image_size=models.image_size,
        latent_size=models.latent_shape[1],
        face_size=models.encoders.face_size,
        in_memory=config.data.in_memory,
    )


def draw_settings(config: ml_collections.ConfigDict, models: Models) -> DrawSettings:
    """The probabilities of the config."""
    return DrawSettings(
        seed=config.seed,
        latent_shape=models.latent_shape,
        clip_img_dim=models.trained.uvit.clip_img_dim,
        flip=config.data.flip,
        hair_in_mask=config.data.hair_in_mask,
        other_picture=config.data.other_picture,
        standard_loss=config.loss.standard_share,
        face_dropout=config.loss.face_dropout,
        text_dropout=config.loss.text_dropout,
    )

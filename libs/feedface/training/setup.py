"""What a training run is made of, from its config: accelerate, the models, the data."""

import os
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import ml_collections
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration
from torch import Tensor, nn
from torch.utils.data import Dataset

from feedface.checkpoints.bundle import load_bundle, read_index
from feedface.checkpoints.face_encoder import PREFIX, clip_config, find_face_encoder
from feedface.checkpoints.storage import empty, fill, read_config, read_json, read_safetensors
from feedface.common.device import DTYPES, fast_bfloat16
from feedface.common.errors import UserError
from feedface.data.cache import CachedDataset, FeatureCache
from feedface.data.dataset import PictureDataset, PictureStore, check_broken
from feedface.data.draws import DrawSettings
from feedface.data.features import EncoderSources, FrozenEncoders
from feedface.data.records import read_records
from feedface.encoders import latent_factor
from feedface.methods.feedface import FaceControlNet
from feedface.training.check import PRECISIONS
from feedface.training.objective import ControlledUViT

# Filling a cache takes some processes longer than others; they wait for each other so long.
PATIENCE = timedelta(hours=12)


def make_accelerator(config: ml_collections.ConfigDict, workdir: Path) -> Accelerator:
    """accelerate as it was launched; `config.train.precision` "auto" takes what the launcher was told."""
    precision = None if config.train.precision == "auto" else config.train.precision
    if _with_deepspeed():  # in its own low precision it would round the trained weights
        precision = "no"
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            log_with=list(config.log.trackers) or None,
            project_config=ProjectConfiguration(str(workdir), logging_dir=str(workdir / "logs")),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    except ValueError as error:
        raise UserError(f"config.train.precision={config.train.precision}: {error}") from None
    precision = precision_of(config, accelerator)
    if precision not in PRECISIONS:
        raise UserError(f"mixed precision {precision} is unknown; use {', '.join(PRECISIONS)}")
    if precision == "fp16" and (accelerator.device.type == "cpu" or _with_deepspeed()):
        why = "does not go with DeepSpeed here" if _with_deepspeed() else "needs a GPU"
        raise UserError(f"mixed precision fp16 {why}; use --config.train.precision=bf16 or no")
    if precision == "bf16" and not fast_bfloat16(accelerator.device):
        accelerator.print("bf16 is many times slower than float32 on this CPU; --config.train.precision=no is faster")
    return accelerator


def precision_of(config: ml_collections.ConfigDict, accelerator: Accelerator) -> str:
    """What is computed in: "no" (float32), "fp16" or "bf16"."""
    if not _with_deepspeed():
        return accelerator.mixed_precision
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return launched if config.train.precision == "auto" else config.train.precision


def _with_deepspeed() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


@dataclass
class Models:
    """What is trained, and where the encoders are. `latent_shape` is (C, h, w) of the bundle's image size.

    `trained.method` has no face encoder: it works on that encoder's features.
    """

    trained: ControlledUViT
    sources: EncoderSources
    base: Path
    image_size: int
    latent_shape: tuple[int, int, int]


def build_models(config: ml_collections.ConfigDict, device: torch.device, precision: str) -> Models:
    """The bundle's frozen backbone in low precision and the face-controlnet, whose trained part is float32.

    With `config.face_encoder` (a folder of transformers' CLIPVisionModel, or a model folder whose face encoder is
    meant) the face-controlnet is a fresh one, made as `config.control` says; without, training goes on from the
    bundle's own. No encoder is loaded here.
    """
    bundle = load_bundle(config.model, device, DTYPES[PRECISIONS[precision]], ["backbone"])
    uvit = bundle.backbone
    if config.face_encoder:
        try:
            encoder = find_face_encoder(config.face_encoder)
            net = _fresh_control(config, uvit.embed_dim, encoder)
        except UserError as error:
            raise UserError(f"config.face_encoder: {error}") from None
        source = f"config.control with {config.model}"
    else:
        if "method" not in read_index(config.model).components:
            raise UserError(
                f"{config.model}: has no face_controlnet to go on from; name a folder with a CLIP vision model as "
                f"config.face_encoder to train a fresh one"
            )
        source = encoder = bundle.components["method"]
        net = _own_control(source)
    net.check(uvit, source)
    net.to(device).eval().requires_grad_(True)
    uvit.gradient_checkpointing = config.train.gradient_checkpointing
    vae = bundle.components.get("vae")
    if vae is None:
        raise UserError(f"{config.model}: has no VAE, which training needs")
    factor = latent_factor(read_json(vae / "config.json"))
    side, left_over = divmod(bundle.image_size, factor)
    if left_over or side % uvit.patch_size:
        raise UserError(f"{config.model}: image_size {bundle.image_size} does not fit its VAE and U-ViT patches")
    return Models(
        trained=ControlledUViT(uvit, net, config.data_type),
        sources=EncoderSources(Path(config.model), encoder, PRECISIONS[precision]),
        base=Path(config.model),
        image_size=bundle.image_size,
        latent_shape=(uvit.in_chans, side, side),
    )


def _own_control(folder: Path) -> FaceControlNet:
    """The bundle's face-controlnet in float32, without its face encoder."""
    net = empty(FaceControlNet, {**read_config(FaceControlNet, folder), "with_encoder": False}, folder / "config.json")
    file = folder / "model.safetensors"
    state = read_safetensors(file, "cpu", torch.float32)
    return fill(net, {name: value for name, value in state.items() if not name.startswith(PREFIX)}, file)


def _fresh_control(config: ml_collections.ConfigDict, embed_dim: int, encoder: Path) -> FaceControlNet:
    control = config.control
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            return FaceControlNet(
                embed_dim,
                control.num_heads,
                list(control.sites),
                clip_config(encoder),
                control.control_input,
                control.mlp_ratio,
                with_encoder=False,
            )
        except ValueError as error:
            raise UserError(f"config.control: {error}") from None


def make_optimizer(config: ml_collections.ConfigDict, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, fused; with "adamw8bit" bitsandbytes' one, whose state takes a quarter of the memory."""
    train = config.train
    options = {"lr": train.lr, "betas": tuple(train.betas), "weight_decay": train.weight_decay}
    if train.optimizer == "adamw8bit":
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, **options)
    return torch.optim.AdamW(parameters, fused=True, **options)


# ----------------------------------------------------------------------------------------------------------------- data


@dataclass
class Data:
    """Samples, and what stands in for what is dropped. `encoders` is None where the cache makes them needless.

    `broken` are files that are known already not to be usable, with the reason.
    `zero_image_face` [n,Df] is what the face encoder makes of a zero image, `empty_text` [1,T,Dt] the empty prompt.
    """

    dataset: Dataset
    encoders: FrozenEncoders | None
    zero_image_face: Tensor
    empty_text: Tensor
    broken: dict[str, str] = field(default_factory=dict)


def cache_folder(config: ml_collections.ConfigDict, workdir: Path) -> Path | None:
    """Where features are kept; None where each step encodes its own pictures."""
    if config.cache.dir:
        return Path(config.cache.dir)
    return workdir / "features" if config.cache.enabled else None


def mirrored_kinds(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Kinds of cached features that training also wants of the mirrored picture."""
    chances = {"faces": config.data.flip_reference, "pictures": config.data.flip}
    return tuple(kind for kind, chance in chances.items() if chance > 0)


def build_data(config: ml_collections.ConfigDict, models: Models, accelerator: Accelerator, workdir: Path) -> Data:
    """Pictures, or cached features of them, filling the cache first; `UserError` with too many broken files."""
    folder = cache_folder(config, workdir)
    store = build_store(config, models, in_memory=folder is None and config.data.in_memory)
    settings = draw_settings(config, models)
    if folder is None:
        encoders = models.sources.load(accelerator.device)
        zero = torch.zeros(1, 3, encoders.face_size, encoders.face_size)
        return Data(PictureDataset(store, settings), encoders, encoders.faces(zero)[0], encoders.text([""]))
    cache = FeatureCache.open(
        folder,
        store,
        models.sources,
        mirrored=mirrored_kinds(config),
        device=accelerator.device,
        process=(accelerator.process_index, accelerator.num_processes),
        wait=accelerator.wait_for_everyone,
    )
    check_broken(cache.broken, config.data.max_broken)
    if cache.broken:
        files = ", ".join(list(cache.broken)[:5])
        accelerator.print(f"{len(cache.broken)} files cannot be used and are passed over: {files} …")
    dataset = CachedDataset(cache, [len(record.ref) for record in store.records], settings)
    device = accelerator.device
    return Data(dataset, None, cache.zero_image_face.to(device), cache.empty_text.to(device), cache.broken)


def build_store(config: ml_collections.ConfigDict, models: Models, in_memory: bool = False) -> PictureStore:
    """The records' files at the sizes the models want; `in_memory` keeps what was made of them."""
    return PictureStore(
        read_records(list(config.data.records)),
        image_size=models.image_size,
        latent_size=models.latent_shape[1],
        face_size=models.trained.method.face_size,
        in_memory=in_memory,
    )


def draw_settings(config: ml_collections.ConfigDict, models: Models) -> DrawSettings:
    """The probabilities of the config."""
    return DrawSettings(
        seed=config.seed,
        latent_shape=models.latent_shape,
        clip_img_dim=models.trained.backbone.clip_img_dim,
        flip=config.data.flip,
        flip_reference=config.data.flip_reference,
        hair_in_mask=config.data.hair_in_mask,
        other_picture=config.data.other_picture,
        standard_loss=config.loss.standard_share,
        face_dropout=config.loss.face_dropout,
        text_dropout=config.loss.text_dropout,
    )

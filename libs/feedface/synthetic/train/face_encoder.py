"""Stage `face_encoder`: a CLIP vision network whose penultimate states tell who a face is.

The face-controlnet reads all penultimate states (spec, section 3), so that is what is trained, and no layer above: the
last one is the identity function. Two tasks: pictures of one person must embed alike (supervised contrastive loss,
Khosla et al. 2020, with one other picture per person), and the person's numbers in the renderer are predicted.
"""

from pathlib import Path

import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedface.checkpoints.storage import quiet_transformers
from feedface.common.device import pick_device
from feedface.common.files import atomic_folder
from feedface.faces.recogniser_net import IdentityHead
from feedface.synthetic.train.common import in_batches, load_portraits, to_pixels
from feedface.training.fit import fit, write_metrics

MARGIN = 3  # pixels around a face crop, for shifts
TEMPERATURE = 0.07


def clip_config(config: ml_collections.ConfigDict) -> dict:
    """Arguments of `transformers.CLIPVisionConfig` for `FaceControlNet(clip_config=...)`."""
    return {
        "image_size": config.face_size,
        "patch_size": config.patch_size,
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.width // 32,
    }


class Head(IdentityHead):
    """Training only: penultimate states [B,n,D] -> embedding [B,E] of length 1 and renderer numbers [B,V]."""

    def __init__(self, width: int, embedding_dim: int, numbers: int):
        super().__init__(width, embedding_dim)
        self.numbers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, numbers))

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.pooled(states)
        return self.of_pooled(pooled), self.numbers(pooled)


def penultimate(encoder: nn.Module, pixels: Tensor) -> Tensor:
    """Crops [B,3,S,S] in [-1,1] -> states [B,n,D] before the last layer."""
    return encoder(pixels, output_hidden_states=True).hidden_states[-2]


def face_crops(portraits, size: int) -> np.ndarray:
    """Square crops with `MARGIN` more pixels on every side: uint8 [N, size + 2 MARGIN, size + 2 MARGIN, 3]."""
    from feedface.faces.crop import EXPAND, crop_square, square_box

    side = size + 2 * MARGIN
    boxes = (square_box(box, EXPAND * side / size) for box in portraits.boxes)
    return np.stack([crop_square(image, box, side) for image, box in zip(portraits.images, boxes, strict=True)])


def jitter(crops: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Cut out `size` pixels at a random place, mirror half of them and change the light a little; [B,3,·,·]."""
    shifts = torch.randint(2 * MARGIN + 1, (2, len(crops)), generator=generator)
    flip = torch.rand(len(crops), generator=generator) < 0.5
    light = 1 + 0.1 * (2 * torch.rand(len(crops), 1, 1, 1, generator=generator) - 1)
    steps = torch.arange(size)
    columns = torch.where(flip[:, None], steps.flip(0), steps) + shifts[1][:, None]
    rows = steps + shifts[0][:, None]
    batch = torch.arange(len(crops))[:, None, None]
    moved = crops.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return ((moved + 1) * light.to(crops.device) - 1).clamp(-1, 1)


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Train on `config.face_encoder` and leave `<workdir>/bundle/face_encoder/` (transformers' `CLIPVisionModel`)."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config, folder = config.face_encoder, workdir / "face_encoder"
    device = pick_device(config.device)
    portraits, held_out = load_portraits(workdir), load_portraits(workdir, "held_out")
    each = int((portraits.identity == portraits.identity[0]).sum())  # a person's pictures stand in a row
    people = len(portraits) // each
    crops = face_crops(portraits, config.face_size)
    numbers = portraits.identity_vectors
    numbers = torch.from_numpy((numbers - numbers.mean(0)) / (numbers.std(0) + 1e-6)).float()

    torch.manual_seed(config.seed)
    # Trained without the last layer; its place is filled at the end.
    encoder = CLIPVisionModel(CLIPVisionConfig(**clip_config(config) | {"num_hidden_layers": config.layers - 1}))
    head = Head(config.width, config.embedding_dim, numbers.shape[1])
    model = nn.ModuleDict({"encoder": encoder, "head": head}).to(device)

    def step(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pairs = config.batch_size // 2
        who = torch.randperm(people, generator=generator)[:pairs]
        first = torch.randint(each, (len(who),), generator=generator)
        second = (first + torch.randint(1, each, (len(who),), generator=generator)) % each
        rows = torch.cat([who * each + first, who * each + second])
        pixels = jitter(to_pixels(crops[rows.numpy()], device), config.face_size, generator)
        embedding, predicted = head(encoder(pixels, output_hidden_states=True).hidden_states[-1])
        a, b = embedding.chunk(2)
        logits = a @ b.T / TEMPERATURE
        own = torch.arange(len(logits), device=device)
        same_person = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        by_number = F.smooth_l1_loss(predicted.float(), numbers[rows].to(device))
        return same_person + config.number_weight * by_number, {
            "person": same_person.detach(),
            "numbers": by_number.detach(),
        }

    result = fit("face_encoder", model, step, config, folder)
    encoder = with_last_layer(encoder, clip_config(config)).to(device).eval()

    size = config.face_size
    pixels = to_pixels(face_crops(held_out, size), device)[..., MARGIN : MARGIN + size, MARGIN : MARGIN + size]
    with torch.no_grad():
        states = in_batches(pixels, lambda x: penultimate(encoder, x).mean(1))
        embedding = in_batches(pixels, lambda x: head(penultimate(encoder, x))[0])
    states = F.normalize(states - states.mean(0), dim=-1)
    metrics = {
        "nearest_identity_one_gallery_picture": nearest_identity(embedding, held_out.identity),
        "nearest_identity_by_mean_state": nearest_identity(states, held_out.identity),
        "held_out_people": len(np.unique(held_out.identity)),
    }
    write_metrics(folder, config, result, **metrics)
    with quiet_transformers(), atomic_folder(workdir / "bundle" / "face_encoder") as temporary:
        encoder.save_pretrained(temporary)


def with_last_layer(encoder: nn.Module, clip_config: dict) -> nn.Module:
    """The trained layers under one more that passes its input on unchanged (all its weights are zero)."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    full = CLIPVisionModel(CLIPVisionConfig(**clip_config))
    last = full.encoder.layers[-1]
    nn.utils.vector_to_parameters(torch.zeros(sum(p.numel() for p in last.parameters())), last.parameters())
    full.load_state_dict(full.state_dict() | encoder.state_dict())
    return full


def nearest_identity(embedding: Tensor, identity: np.ndarray) -> float:
    """Share of pictures whose nearest first-picture-of-somebody is of the same person; `embedding` [N,E], length 1."""
    people, first = np.unique(identity, return_index=True)
    rest = np.setdiff1d(np.arange(len(identity)), first)
    nearest = (embedding[rest] @ embedding[first].T).argmax(1).numpy()
    return round(float((people[nearest] == identity[rest]).mean()), 4)

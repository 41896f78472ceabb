"""The mini pack's face recogniser as a network, for what needs its gradient; the pack has it as ONNX.

Shape letters: B faces, H W a picture's sides in pixels, D numbers of an embedding.
"""

import os
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedface.checkpoints.bundle import save_half
from feedface.checkpoints.storage import load_network
from feedface.common.sizes import Layers, SidePx, Width

FOLDER = "recogniser"  # of a model that has one
CROP_PX = 112  # side of ArcFace's aligned crops
# Where an aligned crop lies in the square crop of the same face, in halves of its side: chosen on held-out people.
ZOOM, SHIFT_DOWN = 1.05, 0.1


class IdentityHead(nn.Module):
    """Penultimate states [B,n,width] -> embedding [B,D] of length 1."""

    def __init__(self, width: int, embedding_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.embed = nn.Linear(width, embedding_dim)

    def forward(self, states: Tensor) -> Tensor:
        return self.of_pooled(self.pooled(states))

    def pooled(self, states: Tensor) -> Tensor:
        return self.norm(states).mean(dim=1)

    def of_pooled(self, pooled: Tensor) -> Tensor:
        return F.normalize(self.embed(pooled).float(), dim=-1)


class RecogniserNet(nn.Module):
    """`forward(crops [B,3,112,112] RGB in [-1,1], aligned as ArcFace's) -> [B,D]` of length 1.

    The crops are shown to a CLIP vision network for square face crops, whose last states the head reads.

    Args:
        face_size, patch_size: of that network, in pixels.
        width, layers: its.
        embedding_dim: D.
    """

    def __init__(self, face_size: SidePx, patch_size: SidePx, width: Width, layers: Layers, embedding_dim: Width):
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel

        self.config = {
            "face_size": face_size, "patch_size": patch_size, "width": width, "layers": layers,
            "embedding_dim": embedding_dim,
        }  # fmt: skip
        described = CLIPVisionConfig(
            image_size=face_size, patch_size=patch_size, hidden_size=width, intermediate_size=4 * width,
            num_hidden_layers=layers, num_attention_heads=width // 32,
        )  # fmt: skip
        self.encoder = CLIPVisionModel(described)
        self.head = IdentityHead(width, embedding_dim)
        self.rows = nn.Buffer(_resampling(face_size, SHIFT_DOWN))
        self.columns = nn.Buffer(_resampling(face_size, 0.0))

    def forward(self, crops: Tensor) -> Tensor:
        pixels = self.rows @ crops @ self.columns.T
        return self.head(self.encoder(pixels, output_hidden_states=True).hidden_states[-1])

    def embed(self, pixels: Tensor, landmarks: np.ndarray) -> Tensor:
        """Faces in pictures [B,3,H,W] RGB in [-1,1] with five points [B,5,2] each -> [B,D]; the pixels get gradients.

        What insightface does with a face of the pack's detector, to a few thousandths of the cosine.
        """
        height, width = pixels.shape[-2:]
        places = np.stack([_to_picture(points, height, width) for points in landmarks])
        places = torch.from_numpy(places).to(pixels)
        grid = F.affine_grid(places, (len(pixels), 3, CROP_PX, CROP_PX), align_corners=False)
        # Beyond the picture insightface has 0 of 255.
        return self(F.grid_sample(pixels + 1, grid, align_corners=False) - 1)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write `config.json` and `model.safetensors` (half precision)."""
        save_half(folder, self)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, device: str | torch.device = "cpu") -> "RecogniserNet":
        """Read what `save_pretrained` wrote; single precision, in evaluation mode. `UserError` if it cannot be."""
        # The encoder's own counting of positions is not among what is stored.
        return load_network(cls, Path(folder), device, torch.float32).to(device).eval()


def _to_picture(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """[2,3]: from places in the aligned crop of a face with these points [5,2] to those in the picture.

    Both from -1 to 1 from border to border, as `affine_grid` takes them; pixels' centres are whole numbers in between.
    """
    from insightface.utils.face_align import estimate_norm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # insightface calls functions that scikit-image has deprecated
        to_crop = np.vstack([estimate_norm(points, CROP_PX), [0, 0, 1]])
    return (np.linalg.inv(_from_unit(width, height)) @ np.linalg.inv(to_crop) @ _from_unit(CROP_PX, CROP_PX))[:2]


def _from_unit(width: int, height: int) -> np.ndarray:
    return np.array([[width / 2, 0, (width - 1) / 2], [0, height / 2, (height - 1) / 2], [0, 0, 1]])


def _resampling(size: int, shift: float) -> Tensor:
    """Linear interpolation [size, CROP_PX] of a line of pixels, zoomed and shifted; borders go on."""
    places = (ZOOM * (2 * (torch.arange(size) + 0.5) / size - 1) + shift + 1) * CROP_PX / 2 - 0.5
    places = places.clamp(0, CROP_PX - 1)
    below = places.floor().long().clamp(max=CROP_PX - 2)
    share = (places - below)[:, None]
    return (1 - share) * F.one_hot(below, CROP_PX) + share * F.one_hot(below + 1, CROP_PX)

"""Stage `recogniser`: the face encoder with its training head, as a face recogniser that insightface loads.

Nothing is trained here: the embedding that the encoder was trained with (stage `face_encoder`) tells people apart far
better than a network of its own did in the same time. Aligned crops of 112 px, which insightface hands over, are shown
to it as the square crops that it knows. It is no judge of what is drawn from that encoder's tokens: that is the
inspector's part.
"""

from pathlib import Path

import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedface.common.errors import UserError
from feedface.faces.detect import InsightFaceDetector
from feedface.synthetic.train.common import load_portraits
from feedface.synthetic.train.detector import PACK
from feedface.synthetic.train.export import export_onnx
from feedface.synthetic.train.face_encoder import Head, clip_config
from feedface.training.fit import FitResult, write_metrics

CROP_PX = 112
# Where an aligned crop lies in the square crop of the same face, in halves of its side: chosen on held-out people.
ZOOM, SHIFT_DOWN = 1.05, 0.1


class Recogniser(nn.Module):
    """`forward(crops [B, 3, 112, 112] RGB in [-1, 1]) -> [B, embedding_dim]` of length 1.

    encoder: CLIP vision network for faces of `size` pixels, whose last states `head` reads.
    """

    def __init__(self, encoder: nn.Module, head: Head, size: int):
        super().__init__()
        self.encoder, self.head = encoder, head
        self.rows = nn.Buffer(_resampling(size, SHIFT_DOWN))
        self.columns = nn.Buffer(_resampling(size, 0.0))

    def forward(self, crops: Tensor) -> Tensor:
        pixels = self.rows @ crops @ self.columns.T
        return self.head(self.encoder(pixels, output_hidden_states=True).hidden_states[-1])[0]


def _resampling(size: int, shift: float) -> Tensor:
    """Linear interpolation [size, CROP_PX] of a line of pixels, zoomed and shifted; borders go on."""
    places = (ZOOM * (2 * (torch.arange(size) + 0.5) / size - 1) + shift + 1) * CROP_PX / 2 - 0.5
    places = places.clamp(0, CROP_PX - 1)
    below = places.floor().long().clamp(max=CROP_PX - 2)
    share = (places - below)[:, None]
    return (1 - share) * F.one_hot(below, CROP_PX) + share * F.one_hot(below + 1, CROP_PX)


def load(config: ml_collections.ConfigDict, checkpoint: Path) -> Recogniser:
    """Encoder and head as stage `face_encoder`, on its `config`, left them in its `checkpoint`."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    averages = torch.load(checkpoint, weights_only=True)["ema"]
    state = {key.removeprefix("module."): value for key, value in averages.items()}
    state.pop("n_averaged", None)
    layers = {"num_hidden_layers": config.layers - 1}
    model = nn.ModuleDict(
        {
            "encoder": CLIPVisionModel(CLIPVisionConfig(**clip_config(config) | layers)),
            "head": Head(config.width, config.embedding_dim, len(state["head.numbers.2.bias"])),
        }
    )
    model.load_state_dict(state)
    return Recogniser(model["encoder"], model["head"], config.face_size).eval()


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Write `<workdir>/bundle/faces/models/mini/recogniser.onnx` and measure it together with the detector there."""
    settings, checkpoint = config.face_encoder, workdir / "face_encoder" / "checkpoint.pt"
    for file in (checkpoint, workdir / PACK / "detector.onnx"):
        if not file.is_file():
            raise UserError(f"{file}: is missing; first come the stages face_encoder and detector")
    network = load(settings, checkpoint)
    save(network, workdir / PACK / "recogniser.onnx")
    found = measure(InsightFaceDetector(PACK.name, workdir / PACK.parents[1]), load_portraits(workdir, "held_out"))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    write_metrics(workdir / "recogniser", settings, FitResult(0, 0, 0.0, None, parameters), **found)


def save(network: Recogniser, path: Path) -> None:
    """Write the recogniser as ONNX for one 112 x 112 crop."""
    export_onnx(network, torch.zeros(1, 3, CROP_PX, CROP_PX), path, ["embedding"])


def measure(pack: InsightFaceDetector, portraits, pictures_each: int = 2, people: int = 100) -> dict[str, float]:
    """How well the pack, detector and recogniser together, knows people it has never seen.

    nearest: how often the person's other picture is the closest among one picture each of `people`; same and
    different: mean cosine of two pictures of one person, and of two persons; missed: pictures without a found face.
    """
    gallery, probes, missed = [], [], 0
    for person in np.unique(portraits.identity)[:people]:
        rows = np.flatnonzero(portraits.identity == person)[:pictures_each]
        found = [pack.detect(portraits.images[row]) for row in rows]
        missed += sum(not faces for faces in found)
        if len(found) == pictures_each and all(found):
            gallery.append(found[0][0].embedding)
            probes.append(found[1][0].embedding)
    if not gallery:
        return {"missed": missed}
    cosines = np.stack(probes) @ np.stack(gallery).T
    others = cosines[~np.eye(len(cosines), dtype=bool)]
    return {
        "nearest": round(float((cosines.argmax(1) == np.arange(len(cosines))).mean()), 4),
        "same": round(float(np.diag(cosines).mean()), 4),
        "different": round(float(others.mean()), 4) if others.size else float("nan"),
        "missed": missed,
    }

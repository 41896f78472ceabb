"""Stage `encoder_recogniser`: the face encoder of stage `face_encoder`, with its training head, as a face recogniser.

Its embedding tells people apart far better than that of stage `recogniser`, in ONNX form as insightface loads it.
Nothing is trained: aligned crops are shown to it as the square crops that it knows.
"""

import shutil
from pathlib import Path

import ml_collections
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedface.common.errors import UserError
from feedface.common.files import make_folder
from feedface.faces.detect import InsightFaceDetector
from feedface.synthetic.train.common import load_portraits
from feedface.synthetic.train.detector import PACK
from feedface.synthetic.train.export import export_onnx
from feedface.synthetic.train.face_encoder import Head, clip_config
from feedface.synthetic.train.recogniser import CROP_PX, measure
from feedface.training.fit import write_metrics

# Where an aligned crop lies in the square crop of the same face, in halves of its side: chosen on held-out people.
ZOOM, SHIFT_DOWN = 1.05, 0.1


class EncoderRecogniser(nn.Module):
    """`forward(crops [B, 3, 112, 112] RGB in [-1, 1]) -> [B, embedding_dim]` of length 1."""

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


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Write `<workdir>/encoder_recogniser/faces/models/mini/`, with the detector of stage `detector`; measure it."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    settings, folder = config.face_encoder, workdir / "encoder_recogniser"
    checkpoint, detector = workdir / "face_encoder" / "checkpoint.pt", workdir / PACK / "detector.onnx"
    for file in (checkpoint, detector):
        if not file.is_file():
            raise UserError(f"{file}: is missing; first come the stages face_encoder and detector")
    averages = torch.load(checkpoint, weights_only=True)["ema"]
    state = {key.removeprefix("module."): value for key, value in averages.items()}
    state.pop("n_averaged", None)
    layers = {"num_hidden_layers": settings.layers - 1}
    model = nn.ModuleDict(
        {
            "encoder": CLIPVisionModel(CLIPVisionConfig(**clip_config(settings) | layers)),
            "head": Head(settings.width, settings.embedding_dim, len(state["head.numbers.2.bias"])),
        }
    )
    model.load_state_dict(state)
    network = EncoderRecogniser(model["encoder"], model["head"], settings.face_size).eval()
    pack = folder / "faces" / "models" / PACK.name
    make_folder(pack)
    shutil.copyfile(detector, pack / detector.name)
    export_onnx(network, torch.zeros(1, 3, CROP_PX, CROP_PX), pack / "recogniser.onnx", ["embedding"])
    found = measure(InsightFaceDetector(PACK.name, folder / "faces"), load_portraits(workdir, "held_out"))
    write_metrics(folder, settings, None, **found)

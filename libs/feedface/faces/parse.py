"""Face parsing behind one small interface: which pixels are skin, brows, eyes, nose, mouth and hair of which face.

parser = make_parser("auto", model_root="models/mini")
masks = parser.parse(image, detector.detect(image))      # one uint8 [H, W] map of LaPa classes 0...10 for each face

Classes as LaPa (Liu et al. 2020) and facer number them: 0 background, 1 skin, 2 and 3 right and left brow, 4 and 5
right and left eye, 6 nose, 7 upper lip, 8 inner mouth, 9 lower lip, 10 hair; "right" is the person's right.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from feedface.common.device import pick_device
from feedface.common.errors import UserError
from feedface.common.registry import imported
from feedface.faces.crop import crop_square, square_box
from feedface.faces.types import LAPA_VALUES, Face, FaceParser, Picture

CLASS_NAMES = (
    "background", "skin", "right_brow", "left_brow", "right_eye", "left_eye", "nose", "upper_lip", "inner_mouth",
    "lower_lip", "hair",
)  # fmt: skip
FOLDER = "parser"  # of a model, where it has its own
PARSERS = {"mini": "feedface.faces.parse:MiniParser", "facer": "feedface.faces.farl:FacerParser"}


class MiniParser:
    """The small U-Net of a model's own folder `parser`; it knows the portraits that it was trained on.

    Args:
        folder: holds config.json and model.safetensors, see `parser_net.ParserNet`.
        device: as PyTorch names it.
        batch_size: crops in one forward pass.

    Raises:
        UserError: the folder is missing, or its files do not fit.
    """

    name = "mini"
    FINEST_PX = 512  # sides of the logits; larger faces get enlarged classes, the network knows no finer detail

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu", batch_size: int = 32):
        # Only this class needs it.
        from feedface.faces.parser_net import ParserNet

        self.device, self.batch_size = pick_device(str(device)), batch_size
        self.network = ParserNet.from_pretrained(_existing(Path(folder)), self.device)

    def parse(self, image: np.ndarray, faces: Sequence[Face]) -> list[np.ndarray]:
        """See `FaceParser`."""
        return self.parse_many([(image, faces)])[0]

    @torch.no_grad()
    def parse_many(self, pictures: Sequence[Picture]) -> list[list[np.ndarray]]:
        """See `FaceParser`; all faces of all pictures share the forward passes."""
        squares = [[pixel_square(face.box, self.network.expand) for face in faces] for _, faces in pictures]
        work = [(row, square) for row, places in enumerate(squares) for square in places]
        maps: list[list[np.ndarray]] = [[] for _ in pictures]
        for start in range(0, len(work), self.batch_size):
            part = work[start : start + self.batch_size]
            crops = np.stack([crop_square(pictures[row][0], square, self.network.crop_px) for row, square in part])
            pixels = torch.from_numpy(crops).to(self.device).permute(0, 3, 1, 2).float() / 255
            for (row, square), logits in zip(part, self.network(pixels), strict=True):
                height, width = pictures[row][0].shape[:2]
                maps[row].append(paste(self._classes(logits, square[2] - square[0]), square, height, width))
        return maps

    def _classes(self, logits: torch.Tensor, side: int) -> np.ndarray:
        """[C, S, S] -> uint8 [side, side]."""
        size = (min(side, self.FINEST_PX),) * 2
        logits = F.interpolate(logits[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
        classes = Image.fromarray(logits.argmax(0).to("cpu", torch.uint8).numpy())
        return np.asarray(classes.resize((side, side), Image.Resampling.NEAREST))


def make_parser(
    name: str = "auto",
    model_root: str | Path | None = None,
    device: str | torch.device = "cpu",
    weights: str | Path | None = None,
) -> FaceParser:
    """Build a parser by name.

    Args:
        name: "auto", "facer" or "mini". "auto" takes the one that comes with the model, else facer.
        model_root: the model's folder, for "mini": `<model_root>/parser`.
        device: "auto", or as PyTorch names it.
        weights: facer's weights, where they are not in torch.hub's cache, see `farl.FacerParser`.

    Raises:
        UserError: the package or the weights are missing or unreadable; the message says what is needed.
    """
    own = Path(model_root) / FOLDER if model_root is not None else None
    if name == "auto":
        name = "mini" if weights is None and own is not None and own.is_dir() else "facer"
    if name not in PARSERS:
        raise UserError(f"--parser {name!r}: not the name of a face parser; use auto, facer or mini")
    if name == "mini" and own is None:
        raise UserError("the face parser 'mini' comes with a model: name its folder, for example models/mini")
    return imported(PARSERS[name])(own if name == "mini" else weights, device)


def mask_values(classes: np.ndarray) -> np.ndarray:
    """LaPa classes, uint8 [H, W] of 0...10 -> the grey values that stand for them in mask files, uint8 [H, W]."""
    return np.array(LAPA_VALUES, np.uint8)[classes]


def mask_box(classes: np.ndarray) -> tuple[int, int, int, int] | None:
    """The smallest box x0, y0, x1, y1 in pixels (x1 and y1 one past the last) that holds a face and its hair.

    None if the map [H, W] is all background.
    """
    rows, columns = np.flatnonzero(classes.any(1)), np.flatnonzero(classes.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def pixel_square(box: Sequence[float], expand: float) -> tuple[int, int, int, int]:
    """`square_box` on whole pixels, x0, y0, x1, y1: what `crop_square` cuts out, and where `paste` puts it back."""
    x0, y0, x1, y1 = square_box(box, expand)
    side = max(1, round(x1 - x0))
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    return left, top, left + side, top + side


def paste(classes: np.ndarray, square: tuple[int, int, int, int], height: int, width: int) -> np.ndarray:
    """Put uint8 [S, S] at its square of whole pixels into an empty [height, width]; what lies outside is cut off."""
    x0, y0, x1, y1 = square
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    whole = np.zeros((height, width), np.uint8)
    if left < right and top < bottom:
        whole[top:bottom, left:right] = classes[top - y0 : bottom - y0, left - x0 : right - x0]
    return whole


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no face parser there; it comes with models/mini, or from `python -m feedface.synthetic.train "
            "--stage parser`; for photos use the parser 'facer'"
        )
    return folder

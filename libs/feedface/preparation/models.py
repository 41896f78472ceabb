"""Which detector and parser a run uses, told apart from any others, and loading them on its device."""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

from feedface.common.device import pick_device, pick_devices
from feedface.common.errors import UserError
from feedface.faces.detect import check_detector, detector_files, make_detector, resolve_detector
from feedface.faces.types import FaceDetector, FaceParser


@dataclass(frozen=True)
class Choice:
    """Names that "auto" has been resolved to.

    Attributes:
        detector: "opencv", "yunet", "yunet+NAME" with a recogniser, or the name of an insightface pack.
        parser: "mini" or "facer".
        model: folder of the model that may bring a pack and a parser, or None.
        threshold: score a detected face needs.
    """

    detector: str
    parser: str
    model: Path | None
    threshold: float

    @property
    def faces_root(self) -> Path | None:
        """The insightface root that comes with the model."""
        return self.model and self.model / "faces"

    @property
    def pack_root(self) -> Path:
        """The insightface root the pack is in; where it would be looked for first, if it is in none."""
        return resolve_detector(self.detector, self.faces_root)[1]

    def files(self) -> dict[str, list[Path]]:
        """The files that detector and parser are read from, as far as they are there."""
        if self.parser == "facer":
            import torch

            from feedface.faces.farl import PARSER_URL

            parser = [Path(torch.hub.get_dir(), "checkpoints", PARSER_URL.rsplit("/", 1)[1])]
        else:
            parser = [self.model / "parser" / name for name in ("config.json", "model.safetensors") if self.model]
        return {
            "detector": detector_files(self.detector, self.pack_root),
            "parser": [path for path in parser if path.is_file()],
        }


def choose(detector: str, parser: str, model: Path | None, threshold: float) -> Choice:
    """Resolve "auto": what comes with the model, else facer, and of buffalo_l, YuNet and OpenCV the first there is."""
    detector = resolve_detector(detector, model and model / "faces")[0]
    if parser == "auto":
        parser = "mini" if model is not None and (model / "parser").is_dir() else "facer"
    return Choice(detector, parser, model, threshold)


def check_models(choice: Choice, device: str) -> None:
    """`UserError` for a folder, a pack or a device that is not there; loading finds out the rest."""
    pick_device(device)
    if choice.model is not None and not choice.model.is_dir():
        raise UserError(
            f"--model {choice.model}: no such folder; name one with a pack in faces/ and a parser in parser/"
        )
    check_detector(choice.detector, choice.pack_root)


def digests(choice: Choice) -> dict[str, str]:
    """Hashes of the weights; a part whose files are missing has none."""
    found = {}
    for part, files in choice.files().items():
        digest = hashlib.sha256()
        for path in files:
            digest.update(path.name.encode())
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        if files:
            found[part] = digest.hexdigest()[:16]
    return found


def load_models(choice: Choice, device: str, local_index: int, threads: int) -> tuple[FaceDetector, FaceParser]:
    """Detector and parser, ready to use. `UserError`: files are missing, or the device is not there or not used."""
    from feedface.faces.parse import make_parser

    detector_device, parser_device = pick_devices(device, local_index)
    parser = make_parser(choice.parser, choice.model, parser_device)

    def detector(on: str) -> FaceDetector:
        return make_detector(choice.detector, choice.faces_root, on, choice.threshold, threads)

    try:
        return detector(detector_device), parser
    except UserError as error:
        if device != "auto" or detector_device == "cpu":
            raise
        print(f"note: faces are detected on the CPU: {error}", file=sys.stderr)
        return detector("cpu"), parser

"""Weights for photos that FeedFace does not bring: which files, from where, and a check that they are these.

Looked for in `models/faces/` and in huggingface_hub's cache; `docs/faces.md` has their licences.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from feedface.common.errors import UserError
from feedface.common.places import default_model


@dataclass(frozen=True)
class Weights:
    """One file of a repository on the hub."""

    file: str
    repo: str
    sha256: str

    @property
    def url(self) -> str:
        return f"https://huggingface.co/{self.repo}/resolve/main/{self.file}"


YUNET = Weights(
    "face_detection_yunet_2023mar.onnx",
    "opencv/face_detection_yunet",
    "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
)
SFACE = Weights(
    "face_recognition_sface_2021dec.onnx",
    "opencv/face_recognition_sface",
    "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79",
)


def faces_folder() -> Path:
    """`models/faces/`, where a user puts weights for faces."""
    return default_model().parent / "faces"


def find_weights(weights: Weights) -> Path | None:
    """Where the file is on this machine; None if it is not. Nothing is fetched."""
    path = faces_folder() / weights.file
    if path.is_file():
        return path
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(weights.repo, weights.file)
    return Path(cached) if isinstance(cached, str) else None


def fetch_weights(weights: Weights) -> Path:
    """The file, downloaded to the hub's cache where this machine has none; `UserError` if it cannot be had."""
    path = find_weights(weights)
    if path is None:
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(weights.repo, weights.file))
        except Exception as error:  # offline, no such host, a broken proxy, …: each has a class of its own
            raise UserError(
                f"{weights.file}: not in {faces_folder()} and cannot be downloaded ({type(error).__name__}); "
                f"put {weights.url} there"
            ) from None
    return checked_weights(path, weights)


def checked_weights(path: Path, weights: Weights) -> Path:
    """The same path; `UserError` if the file is another one."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != weights.sha256:
        raise UserError(
            f"{path}: not the file it should be (SHA-256 {found[:12]}…, not {weights.sha256[:12]}…); delete it and "
            f"fetch {weights.url} anew"
        )
    return path

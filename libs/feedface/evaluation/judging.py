"""All judges of a run behind one object, and why those are missing that are not there.

`PackEye` sees faces with an insightface pack, `InspectorEye` with the inspector of the mini world.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from feedface.checkpoints.bundle import Bundle
from feedface.common.errors import UserError
from feedface.evaluation.inspector import Inspector
from feedface.evaluation.judges import ClipJudge, FaceJudge
from feedface.faces.detect import BUNDLE_PACK, INSIGHTFACE_ROOT, Face, find_pack
from feedface.faces.parse import FaceParser, make_parser


@dataclass(frozen=True)
class Looks:
    """What a face judge sees in N pictures.

    Attributes:
        embeddings: [N, E] float32 of length 1, zeros where no face is found.
        found: bool [N].
        faces: the largest of each; None where there is none, or where the judge looks at whole pictures.
    """

    embeddings: np.ndarray
    found: np.ndarray
    faces: list[Face | None]


class FaceEye(Protocol):
    name: str

    def look(self, pictures: Sequence[np.ndarray]) -> Looks:
        """uint8 RGB pictures [H, W, 3] of any sizes."""


class PackEye:
    """Detector and recogniser of an insightface pack."""

    def __init__(self, judge: FaceJudge):
        self.name, self._judge = judge.name, judge
        self.check_apart = judge.check_apart

    def look(self, pictures: Sequence[np.ndarray]) -> Looks:
        faces = self._judge.faces(pictures)
        embeddings, found, _ = self._judge.arrays(faces)
        return Looks(embeddings, found, faces)


class InspectorEye:
    """The inspector says who it is, looking at the whole picture; a pack, where there is one, says where the face is.

    A picture in which the pack finds no face has none. Without a pack every picture counts as one with a face.
    """

    name = "inspector"

    def __init__(self, inspector: Inspector, pack: FaceJudge | None):
        self.inspector, self.pack = inspector, pack

    def look(self, pictures: Sequence[np.ndarray]) -> Looks:
        embeddings = self.inspector.inspect(np.stack(pictures)).embedding
        if self.pack is None:
            return Looks(embeddings, np.ones(len(pictures), bool), [None] * len(pictures))
        faces = self.pack.faces(pictures)
        found = np.array([face is not None for face in faces])
        return Looks(np.where(found[:, None], embeddings, 0), found, faces)


@dataclass
class Judges:
    """Everything that looks at pictures. None: not there, and `absent` says why, metric -> one line."""

    face: FaceEye
    clip: ClipJudge | None = None
    reward: object | None = None  # `image_reward`: score(prompts, pictures) -> [N]
    parser: FaceParser | None = None
    inspector: Inspector | None = None
    absent: dict[str, str] = field(default_factory=dict)
    masks: dict[str, np.ndarray | None] = field(default_factory=dict)  # of base pictures, found once for all systems

    def describe(self) -> dict[str, str | None]:
        """Their names, for scores.json."""
        names = {"face": self.face, "clip": self.clip, "image_reward": self.reward, "parser": self.parser}
        described = {key: None if judge is None else judge.name for key, judge in names.items()}
        return described | {"attributes": None if self.inspector is None else "inspector"}

    def fingerprint(self) -> str:
        """Changes with their names and with what they say of a probe, so also when one is trained anew."""
        probe = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        said = [np.frombuffer(repr((self.describe(), sorted(self.absent))).encode(), np.uint8)]
        if self.clip is not None:
            said += [self.clip.images([probe]), np.nan_to_num(self.clip.texts(["a man"]))]
        if self.parser is not None:
            eyes_to_mouth = np.array([[26, 28], [38, 28], [32, 34], [27, 40], [37, 40]], np.float32)
            said += self.parser.parse(probe, [Face(np.array([20, 18, 44, 46], np.float32), 1.0, eyes_to_mouth)])
        if self.inspector is not None:
            said += [self.inspector.inspect(probe[None]).embedding]
        digest = hashlib.sha256()
        for values in said:
            digest.update(np.round(np.asarray(values, np.float64), 3).tobytes())
        return digest.hexdigest()[:16]


def load_face_judge(name: str, bundle: Bundle, device: str = "cpu") -> FaceJudge:
    """The pack `name` of the model's own faces/, else of ~/.insightface."""
    roots = [root for root in (bundle.faces_root, INSIGHTFACE_ROOT) if root is not None]
    root = next((root for root in roots if find_pack(name, root) is not None), roots[0])
    return FaceJudge(name, root, device)


def photo_judges(name: str, clip: str | None, bundle: Bundle, device: torch.device) -> Judges:
    """The paper's: a pack's recogniser, CLIP and ImageReward. `UserError` where the pack or a named CLIP is missing."""
    pack = load_face_judge(name, bundle)
    judges = Judges(PackEye(pack))
    _add_clip(judges, clip, bundle, device)
    _add_reward(judges, device)
    _add_parser(judges, bundle, device)
    return judges


def mini_judges(inspector: str | None, clip: str | None, bundle: Bundle, device: torch.device) -> Judges:
    """The mini world's: the inspector, and the model's own pack to find faces."""
    seer = load_inspector(inspector, bundle, device)
    root = bundle.faces_root
    pack = None if root is None or find_pack(BUNDLE_PACK, root) is None else FaceJudge(BUNDLE_PACK, root)
    judges = Judges(InspectorEye(seer, pack), inspector=seer)
    _add_clip(judges, clip, bundle, device)
    judges.absent["image_reward"] = "it knows photos; in the mini world the inspector's attributes stand for it"
    if pack is None:
        why = f"{bundle.path} has no face models of its own, so no face is looked for"
        judges.absent |= {key: why for key in ("clip_face", "background_pixels", "background_clip")}
    else:
        _add_parser(judges, bundle, device)
    return judges


def load_inspector(folder: str | Path | None, bundle: Bundle, device: torch.device) -> Inspector:
    """The inspector in `folder`, or the model's own."""
    folder = folder or bundle.components.get("inspector")
    if folder is None:
        raise UserError(f"{bundle.path}: has no inspector; name the folder of one with --inspector")
    return Inspector.from_pretrained(folder, device)


def _add_clip(judges: Judges, clip: str | None, bundle: Bundle, device: torch.device) -> None:
    judge = ClipJudge.load(clip, device, bundle)
    if judge.reason is not None:
        judges.absent |= {key: judge.reason for key in ("clip_face", "clip_text", "background_clip")}
        return
    judges.clip = judge
    if judge.text_reason is not None:
        judges.absent["clip_text"] = judge.text_reason


def _add_reward(judges: Judges, device: torch.device) -> None:
    from feedface.evaluation import image_reward

    reward = image_reward.load(device)
    if reward.reason is not None:
        judges.absent["image_reward"] = reward.reason
    else:
        judges.reward = reward


def _add_parser(judges: Judges, bundle: Bundle, device: torch.device) -> None:
    try:
        judges.parser = make_parser("auto", bundle.path, device)
    except UserError as error:
        judges.absent |= {key: str(error) for key in ("background_pixels", "background_clip")}

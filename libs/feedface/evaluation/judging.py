"""All judges of a run behind one object, and why those are missing that are not there."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from feedface.checkpoints.bundle import Bundle
from feedface.common.errors import UserError
from feedface.evaluation import image_reward
from feedface.evaluation.inspector import Inspector
from feedface.evaluation.judges import ClipJudge, FaceJudge, InspectorJudge, PackJudge
from feedface.faces.detect import BUNDLE_PACK, INSIGHTFACE_ROOT, Face, find_pack
from feedface.faces.parse import FaceParser, make_parser

BACKGROUND = ("background_pixels", "background_clip")


@dataclass
class Judges:
    """Everything that looks at pictures. None: not there, and `absent` says why, metric -> one line."""

    face: FaceJudge
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


def photo_judges(name: str, clip: str | None, bundle: Bundle, device: torch.device) -> Judges:
    """The paper's: a recogniser, CLIP and ImageReward. `UserError` where the pack or a named CLIP is missing.

    name: of a pack among the model's own face models, else in ~/.insightface.
    """
    roots = [root for root in (bundle.faces_root, INSIGHTFACE_ROOT) if root is not None]
    root = next((root for root in roots if find_pack(name, root) is not None), roots[0])
    judges = Judges(PackJudge(name, root))
    _add_clip(judges, clip, bundle, device)
    reward = image_reward.load(device)
    if reward.reason is None:
        judges.reward = reward
    else:
        judges.absent["image_reward"] = reward.reason
    _add_parser(judges, bundle, device)
    return judges


def mini_judges(inspector: str | None, clip: str | None, bundle: Bundle, device: torch.device) -> Judges:
    """The mini world's: the inspector, and the model's own pack to find faces."""
    seer = load_inspector(inspector, bundle, device)
    root = bundle.faces_root
    pack = None if root is None or find_pack(BUNDLE_PACK, root) is None else PackJudge(BUNDLE_PACK, root)
    judges = Judges(InspectorJudge(seer, pack), inspector=seer)
    _add_clip(judges, clip, bundle, device)
    judges.absent["image_reward"] = "it knows photos; in the mini world the inspector's attributes stand for it"
    if pack is None:
        why = f"{bundle.path} has no face models of its own, so no face is looked for"
        judges.absent |= dict.fromkeys(("clip_face", *BACKGROUND), why)
    else:
        _add_parser(judges, bundle, device)
    return judges


def load_inspector(folder: str | Path | None, bundle: Bundle, device: torch.device) -> Inspector:
    """The inspector in `folder`, or the model's own."""
    folder = folder or bundle.extra("inspector")
    if folder is None:
        raise UserError(f"{bundle.path}: has no inspector; name the folder of one with --inspector")
    return Inspector.from_pretrained(folder, device)


def _add_clip(judges: Judges, clip: str | None, bundle: Bundle, device: torch.device) -> None:
    judge = ClipJudge.load(clip, device, bundle)
    if judge.reason is not None:
        judges.absent |= dict.fromkeys(("clip_face", "clip_text", "background_clip"), judge.reason)
        return
    judges.clip = judge
    if judge.text_reason is not None:
        judges.absent["clip_text"] = judge.text_reason


def _add_parser(judges: Judges, bundle: Bundle, device: torch.device) -> None:
    try:
        judges.parser = make_parser("auto", bundle.path, device)
    except UserError as error:
        judges.absent |= dict.fromkeys(BACKGROUND, str(error))

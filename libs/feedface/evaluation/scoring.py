"""Score the pictures of one case: a dict a picture, and the bounds that the paper's normalisation needs.

Letters: I people, N pictures of a case, R references, G other pictures, E embedding width.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from feedface.evaluation.background import background_changes, masks_of_faces
from feedface.evaluation.judges import FaceFeatures
from feedface.evaluation.judging import Judges
from feedface.evaluation.metrics import copy_paste, diversity, mean_cosine, mean_embedding
from feedface.evaluation.normalised import Bounds, face_bounds, text_bounds
from feedface.evaluation.pictures import ImageRequest, SavedImage
from feedface.evaluation.protocols import Case

DIGITS = 6

Columns = dict[str, Sequence[Any]]  # figure -> its value for each of N pictures; None: not measured


class Gallery:
    """All people of a run, as far as nearest identity and strangers need them."""

    def __init__(self, pictures: Mapping[str, np.ndarray]):
        """pictures: case -> [G, E]."""
        self.names = list(pictures)
        if pictures:
            self.directions = np.concatenate([mean_embedding(own[None]) for own in pictures.values()])  # [I, E]
            self.means = np.stack([own.mean(axis=0) for own in pictures.values()])  # [I, E]
            shared = b"".join(np.round(own, 4).astype(np.float32).tobytes() for own in pictures.values())
            self.digest = hashlib.sha256(repr(self.names).encode() + shared).hexdigest()[:16]


def score(
    case: Case,
    requests: Sequence[ImageRequest],
    saved: Sequence[SavedImage],
    base: Sequence[SavedImage] | None,
    judges: Judges,
    gallery: Gallery,
) -> dict[str, Any]:
    """Rows of a system's pictures of one case, and the diversity of its faces.

    base: the same prompts and seeds drawn without a face; None: there are none. Rows hold all keys of a scored picture
    but system, case, prompt, sample and file.
    """
    pictures, prompts = [one.image for one in saved], np.array([request.prompt for request in requests])
    features = judges.face.look(pictures)
    columns: Columns = {
        "face_found": features.found,
        **_faces(case, features, gallery, len(requests[0].crops)),
        **_clip(case, prompts, pictures, features, judges),
        **_texts(case, prompts, pictures, judges),
        **_background(pictures, features, base, judges),
        "seconds": [one.seconds for one in saved],
        "peak_memory_mib": [one.peak_memory_mib for one in saved],
    }
    of_prompts = [
        diversity(features.embeddings[prompts == p], features.found[prompts == p]) for p in np.unique(prompts)
    ]
    measured = [value for value in of_prompts if value is not None]
    return {
        "rows": [{key: _plain(values[row]) for key, values in columns.items()} for row in range(len(pictures))],
        "diversity": _plain(np.mean(measured)) if measured else None,
    }


def bounds(
    case: Case, requests: Sequence[ImageRequest], base: Sequence[SavedImage], judges: Judges
) -> dict[str, Bounds]:
    """The paper's bounds of one case ("face", "text") from its base pictures and references.

    The text score is ImageReward's, in the mini world the share of the prompt's attributes that shows.
    """
    pictures = [one.image for one in base]
    of_base = _text_scores(_texts(case, [request.prompt for request in requests], pictures, judges))
    of_references: list[float] = []
    for prompt in range(len(case.prompts)):
        of_references += _text_scores(_texts(case, [prompt] * len(case.references), case.references, judges))
    return {
        "face": face_bounds(case.own, judges.face.look(pictures).embeddings),
        "text": text_bounds(np.array(of_base), np.array(of_references)),
    }


def _faces(case: Case, features: FaceFeatures, gallery: Gallery, shown: int) -> Columns:
    embeddings, found = features.embeddings, features.found
    columns: Columns = dict.fromkeys(
        ("face_reference", "face_other", "face_strangers", "nearest", "copy_paste"), [None] * len(found)
    )
    columns["face_reference"] = np.where(found, mean_cosine(embeddings, case.own), 0)
    if len(case.others):
        columns["face_other"] = np.where(found, mean_cosine(embeddings, case.others), 0)
        copied_from = case.own[: max(shown, 1)]
        if copied_from.any():
            columns["copy_paste"] = copy_paste(embeddings, copied_from, case.others)
    if len(gallery.names) > 1:
        person = gallery.names.index(case.name)
        columns["nearest"] = ((embeddings @ gallery.directions.T).argmax(axis=1) == person) & found
        strangers = np.delete(gallery.means, person, axis=0).mean(axis=0)
        columns["face_strangers"] = np.where(found, embeddings @ strangers, 0)
    return columns


def _clip(
    case: Case, prompts: Sequence[int], pictures: Sequence[np.ndarray], features: FaceFeatures, judges: Judges
) -> Columns:
    columns: Columns = dict.fromkeys(("clip_face", "clip_text"), [None] * len(pictures))
    if judges.clip is None:
        return columns
    images, texts = judges.clip.images(pictures), judges.clip.texts(case.said)
    columns["clip_text"] = [image @ texts[prompt] for image, prompt in zip(images, prompts, strict=True)]
    boxes = np.array([face is not None for face in features.faces])
    if not (features.found & ~boxes).any():  # else the judge finds no boxes
        references, faces = judges.clip.images(case.crops), judges.clip.images(features.crops(pictures))
        columns["clip_face"] = np.zeros(len(pictures))
        columns["clip_face"][boxes] = [(references @ face).mean() for face in faces]
    return columns


def _texts(case: Case, prompts: Sequence[int], pictures: Sequence[np.ndarray], judges: Judges) -> Columns:
    """Of each picture with its prompt, given by number."""
    columns: Columns = dict.fromkeys(("image_reward", "attributes"), [None] * len(prompts))
    if judges.reward is not None:
        columns["image_reward"] = judges.reward.score([case.said[prompt] for prompt in prompts], pictures)
    if judges.inspector is not None and case.asked is not None:
        seen = judges.inspector.inspect(np.stack(pictures)).attributes
        columns["attributes"] = [
            {name: bool(seen[name][row] == wanted) for name, wanted in case.asked[prompt].items()}
            for row, prompt in enumerate(prompts)
        ]
    return columns


def _text_scores(columns: Columns) -> list[float]:
    """The score that the paper normalises, of the pictures that have one."""
    pairs = zip(columns["attributes"], columns["image_reward"], strict=True)
    scores = [np.mean(list(shown.values())) if shown else reward for shown, reward in pairs]
    return [float(value) for value in scores if value is not None]


def _background(
    pictures: list[np.ndarray], features: FaceFeatures, base: Sequence[SavedImage] | None, judges: Judges
) -> Columns:
    changes: list[dict | None] = [None] * len(pictures)
    if base is not None and judges.parser is not None:
        without = [one.image for one in base]
        masks = masks_of_faces(pictures, features.faces, judges.parser)
        changes = background_changes(pictures, without, masks, _base_masks(without, judges), judges.clip)
    return {key: [(change or {}).get(key) for change in changes] for key in ("background_pixels", "background_clip")}


def _base_masks(pictures: list[np.ndarray], judges: Judges) -> list[np.ndarray | None]:
    """Found once for all systems that share the base pictures."""
    keys = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures]
    new = [place for place, key in enumerate(keys) if key not in judges.masks]
    if new:
        chosen = [pictures[place] for place in new]
        found = masks_of_faces(chosen, judges.face.look(chosen).faces, judges.parser)
        judges.masks.update({keys[place]: mask for place, mask in zip(new, found, strict=True)})
    return [judges.masks[key] for key in keys]


def _plain(value: Any) -> Any:
    """numpy's values as Python's, numbers rounded; NaN as None."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, dict | str) or value is None:
        return value
    return round(float(value), DIGITS) if np.isfinite(value) else None

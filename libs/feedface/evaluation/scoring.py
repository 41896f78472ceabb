"""Score the pictures of one case: a dict a picture, and the bounds that the paper's normalisation needs.

Letters: I people, N pictures of a case, R references, G other pictures, E embedding width.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from feedface.evaluation.background import background_changes, masks_of_faces
from feedface.evaluation.judges import face_crops
from feedface.evaluation.judging import Judges, Looks
from feedface.evaluation.metrics import copy_paste, diversity, mean_cosine, mean_embedding
from feedface.evaluation.normalised import Bounds, face_bounds, text_bounds
from feedface.evaluation.pictures import Kept, Request
from feedface.evaluation.protocols import Case

DIGITS = 6


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
    requests: Sequence[Request],
    kept: Sequence[Kept],
    base: Sequence[Kept] | None,
    judges: Judges,
    gallery: Gallery,
    shown: int,
) -> dict[str, Any]:
    """Rows of a system's pictures of one case, and the diversity of its faces.

    base: the same prompts and seeds drawn without a face; None: there are none. shown: how many references the system
    was shown. Rows hold all keys of a scored picture but system, case, prompt, sample and file.
    """
    pictures = [picture.image for picture in kept]
    looks = judges.face.look(pictures)
    rows = [
        {"face_found": bool(found), **figures}
        for found, figures in zip(looks.found, _faces(case, looks, gallery, shown), strict=True)
    ]
    _add_clip(rows, case, requests, pictures, looks, judges)
    asked = [request.prompt for request in requests]
    for row, value in zip(rows, _texts(case, asked, pictures, judges), strict=True):
        row.update(value)
    _add_background(rows, pictures, looks, base, judges)
    for row, picture in zip(rows, kept, strict=True):
        row.update(seconds=picture.seconds, peak_memory_mib=picture.peak_memory_mib)
    prompts = np.array(asked)
    spread = [diversity(looks.embeddings[prompts == p], looks.found[prompts == p]) for p in np.unique(prompts)]
    spread = [value for value in spread if value is not None]
    return {
        "rows": [{key: _plain(value) for key, value in row.items()} for row in rows],
        "diversity": _plain(np.mean(spread)) if spread else None,
    }


def bounds(case: Case, requests: Sequence[Request], base: Sequence[Kept], judges: Judges) -> dict[str, Bounds]:
    """The paper's bounds of one case ("face", "text") from its base pictures and references.

    The text score is ImageReward's, in the mini world the share of the prompt's attributes that shows.
    """
    pictures = [picture.image for picture in base]
    looks = judges.face.look(pictures)
    of_base = _text_scores(_texts(case, [request.prompt for request in requests], pictures, judges))
    of_references: list[float] = []
    for prompt in range(len(case.prompts)):
        of_references += _text_scores(_texts(case, [prompt] * len(case.references), case.references, judges))
    return {
        "face": face_bounds(case.own, looks.embeddings),
        "text": text_bounds(np.array(of_base), np.array(of_references)),
    }


def _faces(case: Case, looks: Looks, gallery: Gallery, shown: int) -> list[dict[str, Any]]:
    embeddings, found = looks.embeddings, looks.found
    to_own = mean_cosine(embeddings, case.own)
    others = len(case.others) > 0
    to_other = mean_cosine(embeddings, case.others) if others else [None] * len(found)
    person = gallery.names.index(case.name)
    people = len(gallery.names)
    if people > 1:
        nearest = (embeddings @ gallery.directions.T).argmax(axis=1) == person
        strangers = np.delete(gallery.means, person, axis=0).mean(axis=0)
        to_strangers = embeddings @ strangers
    copied = copy_paste(embeddings, case.own[: max(shown, 1)], case.others) if others else None
    return [
        {
            "face_reference": to_own[row] if found[row] else 0.0,
            "face_other": None if not others else to_other[row] if found[row] else 0.0,
            "face_strangers": None if people < 2 else to_strangers[row] if found[row] else 0.0,
            "nearest": None if people < 2 else bool(nearest[row] and found[row]),
            "copy_paste": copied[row] if others and found[row] else None,
        }
        for row in range(len(found))
    ]


def _add_clip(
    rows: list[dict], case: Case, requests: Sequence[Request], pictures: list[np.ndarray], looks: Looks, judges: Judges
) -> None:
    for row in rows:
        row.update(clip_face=None, clip_text=None)
    if judges.clip is None:
        return
    images, texts = judges.clip.images(pictures), judges.clip.texts(case.prompts)
    for row, image, request in zip(rows, images, requests, strict=True):
        row["clip_text"] = image @ texts[request.prompt]
    if any(found and face is None for found, face in zip(looks.found, looks.faces, strict=True)):
        return  # a judge that finds no boxes
    references = judges.clip.images(case.crops)
    places = np.flatnonzero(looks.found)
    boxes = np.array([face.box if face is not None else np.zeros(4) for face in looks.faces])
    faces = judges.clip.images(face_crops(pictures, boxes, looks.found))
    for row in rows:
        row["clip_face"] = 0.0
    for place, face in zip(places, faces, strict=True):
        rows[place]["clip_face"] = (references @ face).mean()


def _texts(case: Case, prompts: Sequence[int], pictures: Sequence[np.ndarray], judges: Judges) -> list[dict[str, Any]]:
    """{"image_reward", "attributes"} of each picture with its prompt, given by number."""
    rows: list[dict[str, Any]] = [{"image_reward": None, "attributes": None} for _ in prompts]
    if judges.reward is not None:
        asked_for = [case.prompts[prompt] for prompt in prompts]
        for row, value in zip(rows, judges.reward.score(asked_for, pictures), strict=True):
            row["image_reward"] = value
    if judges.inspector is not None and case.asked is not None:
        seen = judges.inspector.inspect(np.stack(pictures)).attributes
        for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            asked = case.asked[prompt]
            row["attributes"] = {name: bool(seen[name][number] == wanted) for name, wanted in asked.items()}
    return rows


def _text_scores(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The score that the paper normalises, of the pictures that have one."""
    shares = [np.mean(list(row["attributes"].values())) if row["attributes"] else row["image_reward"] for row in rows]
    return [float(share) for share in shares if share is not None]


def _add_background(
    rows: list[dict], pictures: list[np.ndarray], looks: Looks, base: Sequence[Kept] | None, judges: Judges
) -> None:
    for row in rows:
        row.update(background_pixels=None, background_clip=None)
    if base is None or judges.parser is None:
        return
    without = [picture.image for picture in base]
    masks = masks_of_faces(pictures, looks.faces, judges.parser)
    changes = background_changes(pictures, without, masks, _base_masks(without, judges), judges.clip)
    for row, change in zip(rows, changes, strict=True):
        row.update(change or {})


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
    """numpy's numbers as Python's, rounded; NaN as None."""
    if isinstance(value, bool | dict | str) or value is None:
        return value
    return round(float(value), DIGITS) if np.isfinite(value) else None

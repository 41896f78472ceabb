"""Pictures of two people side by side, to measure with: who is in which half, and what each of them shows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from feedface.synthetic.world.background import paint_background
from feedface.synthetic.world.canvas import Canvas
from feedface.synthetic.world.captions import places
from feedface.synthetic.world.identity import GENDERS, sample_identities
from feedface.synthetic.world.renderer import face_box, face_landmarks, finish, paint_person
from feedface.synthetic.world.scene import BACKGROUNDS, sample_scenes

HEAD_SCALE = 0.44  # of half the picture: two heads beside each other, with room for hats
HEAD_X = 0.46


@dataclass
class Pairs:
    """N pictures of two people, the first on the picture's left. Pixels and classes as in `Portraits`."""

    image: Tensor  # [N, 3, H, W] float32 RGB in [0, 1]
    mask: Tensor  # [N, 2, H, W] uint8 LaPa classes of each person; 0 where the other one covers them
    box: Tensor  # [N, 2, 4] px
    landmarks: Tensor  # [N, 2, 5, 2] px
    captions: list[str]


@torch.no_grad()
def render_pairs(left, right, scenes, seed: int = 0, size: int = 128) -> Pairs:
    """Persons `left[i]` and `right[i]` ([N] indices) in scene `scenes[i]` of each, before the left one's background."""
    people = [sample_identities(indices, seed) for indices in (left, right)]
    views = [sample_scenes(indices, scenes, seed) for indices in (left, right)]
    for view, side in zip(views, (-1, 1), strict=True):
        view.values["scale"] = view.scale * (HEAD_SCALE / 0.65)
        view.values["x"] = view.x + side * HEAD_X
        view.values["y"] = view.y + 0.12
        for name in ("warmth", "exposure", "light_x", "light_y", "light_strength"):  # one light for both
            view.values[name] = getattr(views[0], name)
    canvas = Canvas(len(people[0]), size)
    paint_background(canvas, views[0])
    masks, boxes, landmarks = [], [], []
    for who, view in zip(people, views, strict=True):
        before = canvas.rgb
        canvas.labels = torch.zeros_like(canvas.labels)
        head, _ = paint_person(canvas, who, view)
        covered = (canvas.rgb - before).abs().amax(1) > 1e-3
        masks = [mask * ~covered for mask in masks] + [canvas.labels]
        boxes.append(face_box(head, size))
        landmarks.append(face_landmarks(head, size))
    genders = [[GENDERS[index] for index in who.gender.tolist()] for who in people]
    where = [places(BACKGROUNDS[index])[0] for index in views[0].background.tolist()]
    return Pairs(
        image=finish(canvas, views[0], 1),
        mask=torch.stack(masks, 1),
        box=torch.stack(boxes, 1),
        landmarks=torch.stack(landmarks, 1),
        captions=[f"a {a} and a {b} {place}" for a, b, place in zip(*genders, where, strict=True)],
    )

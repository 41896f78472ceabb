"""The procedural world: deterministic, true to its own ground truth, and never naming a person."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from feedface.common.errors import UserError
from feedface.data.records import read_records
from feedface.synthetic.world import (
    ATTRIBUTES,
    attributes,
    make_portraits,
    read_world,
    render,
    sample_identities,
    sample_scenes,
    write_world,
)
from feedface.synthetic.world.canvas import HAIR, LEFT_EYE, NOSE, RIGHT_EYE
from feedface.synthetic.world.captions import captions
from feedface.synthetic.world.groups import render_pairs

PEOPLE = torch.arange(24)
SCENES = torch.arange(24) % 5


@pytest.fixture(scope="module")
def rendered():
    who, scene = sample_identities(PEOPLE), sample_scenes(PEOPLE, SCENES)
    return who, scene, render(who, scene, size=64)


def test_a_portrait_does_not_depend_on_its_batch(rendered):
    _, _, portraits = rendered
    alone = render(sample_identities([7]), sample_scenes([7], [7 % 5]), size=64)
    assert torch.equal(alone.image[0], portraits.image[7])
    assert torch.equal(alone.mask[0], portraits.mask[7])
    assert torch.equal(alone.box[0], portraits.box[7])


def test_a_pair_shows_each_person_on_their_side():
    left, right, scenes = [3, 8, 20], [4, 9, 21], [0, 1, 2]
    pairs = render_pairs(left, right, scenes, size=96)
    assert pairs.image.shape == (3, 3, 96, 96) and pairs.mask.shape == (3, 2, 96, 96)
    centre = pairs.box.unflatten(-1, (2, 2)).mean(-2)[..., 0]  # [N, 2] px
    assert (centre[:, 0] < 48).all() and (centre[:, 1] > 48).all()
    assert not ((pairs.mask[:, 0] > 0) & (pairs.mask[:, 1] > 0)).any()
    for person in range(2):  # the label map of each person lies on that person's side
        columns = (pairs.mask[:, person] == NOSE).nonzero()[:, 2].float()
        assert ((columns < 48) if person == 0 else (columns >= 48)).all() and len(columns)
    # The right person is drawn as alone: another one on the left changes nothing of the face.
    other = render_pairs([5, 5, 5], right, scenes, size=96)
    assert torch.equal(other.mask[:, 1], pairs.mask[:, 1])
    assert pairs.captions[0].startswith("a ") and " and a " in pairs.captions[0]


def test_the_wide_framing_shows_smaller_heads():
    near, far = (make_portraits(PEOPLE, SCENES, framing=framing) for framing in ("tight", "wide"))
    height = [portraits.boxes[:, 3] - portraits.boxes[:, 1] for portraits in (near, far)]
    assert height[0].mean() > 1.1 * height[1].mean()
    assert np.abs(far.pose[:, 0]).max() > 24 > 22 >= np.abs(near.pose[:, 0]).max()
    assert (near.masks > 0).mean() > 1.25 * (far.masks > 0).mean()


def test_another_seed_is_another_world():
    first, second = sample_identities(PEOPLE, seed=0), sample_identities(PEOPLE, seed=1)
    assert not torch.equal(first.vector(), second.vector())


def test_a_person_keeps_their_vector_across_scenes_and_pictures_differ():
    same = make_portraits([3, 3], [0, 1])
    assert np.array_equal(same.identity_vectors[0], same.identity_vectors[1])
    assert np.abs(same.images[0].astype(int) - same.images[1].astype(int)).mean() > 5


def test_shapes_and_ranges(rendered):
    who, scene, portraits = rendered
    assert portraits.image.shape == (24, 3, 64, 64) and portraits.image.dtype == torch.float32
    assert portraits.image.min() >= 0 and portraits.image.max() <= 1
    assert portraits.mask.dtype == torch.uint8 and portraits.mask.max() <= HAIR
    assert portraits.depth.shape == (24, 64, 64) and portraits.depth.min() >= 0 and portraits.depth.max() <= 1
    assert torch.equal(portraits.pose, scene.pose())
    assert who.vector().abs().max() <= 1.5  # gender shifts move a field slightly past its range


def test_every_size_shows_the_same_portrait():
    who, scene = sample_identities([5]), sample_scenes([5], [2])
    small, large = render(who, scene, size=32), render(who, scene, size=128)
    shrunk = torch.nn.functional.avg_pool2d(large.image, 4)
    assert (small.image - shrunk).abs().mean() < 0.02
    assert torch.allclose(small.box * 4, large.box, atol=1e-3)


def test_landmarks_lie_on_the_labels_they_name(rendered):
    _, scene, portraits = rendered
    frontal = (scene.yaw.abs() < 20) & (scene.hat == 0) & (scene.glasses == 0)
    rows = frontal.nonzero()[:, 0].tolist()
    assert len(rows) >= 4
    for row in rows:
        for point, label in ((0, RIGHT_EYE), (1, LEFT_EYE), (2, NOSE)):
            x, y = portraits.landmarks[row, point]
            found = (portraits.mask[row] == label).nonzero().float() + 0.5
            assert len(found), f"person {row} has no pixels of class {label}"
            assert (found - torch.tensor([y, x])).norm(dim=1).min() < 2.5
    assert (portraits.landmarks[:, 0, 0] < portraits.landmarks[:, 1, 0]).all()


def test_the_box_holds_the_face(rendered):
    _, _, portraits = rendered
    for row in range(24):
        ys, xs = ((portraits.mask[row] >= 1) & (portraits.mask[row] < HAIR)).nonzero().unbind(1)
        x0, y0, x1, y1 = portraits.box[row]
        inside = (xs >= x0 - 1) & (xs <= x1) & (ys >= y0 - 1) & (ys <= y1)
        assert inside.float().mean() > 0.8
        assert 0.3 * 64 < y1 - y0 < 0.7 * 64


def test_captions_name_the_scene_and_not_the_person():
    people = torch.arange(300)
    who, scene = sample_identities(people), sample_scenes(people, people)
    sentences = captions(who, scene)
    assert sentences == captions(who, scene)
    labels = attributes(who, scene)
    for i, sentence in enumerate(sentences):
        words = sentence.replace(",", "").split()
        assert ATTRIBUTES["gender"][labels["gender"][i]] in words
        assert ATTRIBUTES["clothes"][labels["clothes"][i]] in sentence
        assert ATTRIBUTES["clothes_colour"][labels["clothes_colour"][i]] in words
        hat = ATTRIBUTES["hat"][labels["hat"][i]]
        assert (hat in sentence) if hat != "none" else not any(h in sentence for h in ATTRIBUTES["hat"][1:])
        assert ("sunglasses" in words) == (labels["glasses"][i] == 2)
    hidden = {"hair", "beard", "bald", "skin", "eyes", "blond", "freckles", "nose", "moustache", "curly", "afro"}
    assert not hidden & set(" ".join(sentences).split())
    assert len({sentence.split()[0] for sentence in sentences}) > 1


def test_a_world_on_disk_reads_back_and_its_records_are_valid(tmp_path):
    write_world(tmp_path / "world", identities=3, per_identity=4, first_identity=50)
    world = read_world(tmp_path / "world")
    expected = make_portraits([50] * 4 + [51] * 4 + [52] * 4, [0, 1, 2, 3] * 3)
    assert np.array_equal(world.images, expected.images)
    assert np.array_equal(world.masks, expected.masks)
    assert np.allclose(world.landmarks, expected.landmarks)
    assert world.captions == expected.captions
    records = read_records(tmp_path / "world" / "records.jsonl")
    assert len(records) == 12 and len(records[0].ref) == 3
    assert records[5].identity == "000051"
    assert {reference.path.name for reference in records[5].ref} == {"000051_00.png", "000051_02.png", "000051_03.png"}
    grey = np.unique(np.asarray(Image.open(records[0].mask_path)))
    assert set(grey.tolist()) <= {0, 23, 46, 69, 92, 115, 139, 162, 185, 208, 231}


def test_a_relative_folder_makes_relative_records(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_world("some/world", identities=1, per_identity=2)
    lines = (tmp_path / "some/world/records.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["path"] == "images/000000_00.png"
    assert len(read_world("some/world")) == 2


def test_another_world_does_not_overwrite_one(tmp_path):
    write_world(tmp_path, identities=1, per_identity=1)
    with pytest.raises(UserError, match="holds another world"):
        write_world(tmp_path, identities=2, per_identity=1)
    assert json.loads((tmp_path / "world.json").read_text())["identities"] == 1

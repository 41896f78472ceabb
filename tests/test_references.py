"""Which face of which picture is the person's, and what the user is told of it."""

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from feedface.common.errors import UserError
from feedface.faces import references
from feedface.faces.choose import check_choice, choose, most_alike, unlike
from feedface.faces.detect import Face, InsightFaceDetector
from feedface.faces.identity import same_person
from feedface.faces.references import find_faces
from feedface.synthetic.world.dataset import make_portraits

MINI = "models/mini/faces"
ASSETS = [f"assets/demo_person_{number}.png" for number in (1, 2, 3, 4)]
STRANGER = "assets/demo_face.png"


@dataclass
class Found:
    box: tuple[float, ...]
    embedding: np.ndarray | None


def face(person: str | None, left: float = 0, side: float = 10, turn: float = 0.0) -> Found:
    """Somebody's face, their embedding turned by so many radians towards a third direction."""
    directions = {"anna": [1, 0, 0], "ben": [0, 1, 0]}
    embedding = None
    if person is not None:
        embedding = np.cos(turn) * np.array(directions[person], float) + np.sin(turn) * np.array([0, 0, 1.0])
    return Found((left, 0, left + side, side), embedding)


@pytest.fixture(scope="module")
def mini():
    return InsightFaceDetector("mini", MINI, threads=1)


# ------------------------------------------------------------------------------------------------------- the choice


def test_the_face_that_is_in_most_pictures_is_taken():
    found = [[face("ben", 0, 30), face("anna", 40)], [face("anna")], [face("anna", turn=0.5)]]
    assert most_alike(found, 0.5) == [1, 0, 0]
    assert most_alike(found[::-1], 0.5) == [0, 0, 1]


def test_of_two_who_are_in_all_pictures_the_larger_is_taken():
    for large, expected in (("anna", 0), ("ben", 1)):
        sides = {"anna": 10, "ben": 10} | {large: 20}
        both = [face("anna", 0, sides["anna"]), face("ben", 40, sides["ben"])]
        assert most_alike([both, both], 0.5) == [expected] * 2


def test_where_nothing_is_known_the_largest_is_taken():
    assert most_alike([[face(None, side=20), face(None)], [face(None)]], 0.5) == [0, 0]
    assert most_alike([[face("ben", side=20), face("anna")]], 0.5) == [0]
    assert most_alike([[face("ben", side=20), face(None)], [face("ben")]], 0.5) == [0, 0]


def test_faces_by_place():
    faces = [face("anna", 50, 30), face("ben", 100, 20), face("anna", 0, 10)]  # the largest first
    names = ["a.png"]
    wanted = {"largest": 0, "left": 2, "right": 1, 1: 2, 2: 0, 3: 1}
    assert {choice: choose(names, [faces], choice, 0.5)[0] for choice in wanted} == wanted
    assert choose(["a.png", "b.png"], [faces, faces[:1]], 3, 0.5) == [1, 0]  # the only face, where there is one
    with pytest.raises(UserError, match=r"--face 4: a\.png shows 3 faces only"):
        choose(names, [faces], 4, 0.5)


def test_names_of_choices():
    assert [check_choice(choice) for choice in ("left", "3", 3, np.int64(2))] == ["left", 3, 3, 2]
    for wrong in ("0", 0, -1, "-1", "1.5", 1.5, "middle", "", True, None, "9" * 5000, [1]):
        with pytest.raises(UserError, match=r"--face .*most-like, largest, left, right, or a number"):
            check_choice(wrong)


def test_who_is_unlike_the_others():
    anna, ben = face("anna").embedding, face("ben").embedding
    assert unlike([anna, anna, anna], 0.5) == unlike([anna, None], 0.5) == unlike([], 0.5) == unlike([anna], 0.5) == {}
    assert unlike([anna, ben, face("anna", turn=0.6).embedding, None], 0.5) == {1: 0.0}
    assert unlike([anna, ben], 0.5) == {0: 0.0, 1: 0.0}  # nobody can say which of the two is right


# --------------------------------------------------------------------------------------------- with a real recogniser


@pytest.fixture
def group_photo():
    """The person of `ASSETS`, and somebody nearer."""
    group = Image.new("RGB", (384, 256), (90, 90, 90))
    group.paste(Image.open(STRANGER).convert("RGB").resize((192, 192)), (0, 0))
    group.paste(Image.open(ASSETS[0]).convert("RGB"), (220, 60))
    return group


def test_the_person_is_found_in_a_group_photo(mini, group_photo):
    found, notices = find_faces([*ASSETS[1:], group_photo], mini)
    assert found[-1].box[0] > 220
    assert min(float(found[-1].embedding @ other.embedding) for other in found[:-1]) > 0.5
    assert notices == ["picture 4: 2 faces found, the one most like the other pictures' is taken"]
    for choice, right in (("largest", False), ("left", False), ("right", True), (1, False), (2, True)):
        found, notices = find_faces([*ASSETS[1:], group_photo], mini, choice)
        assert (found[-1].box[0] > 220) == right, choice
        strange = [notice for notice in notices if "unlike those of the other pictures" in notice]
        assert len(strange) == (not right) and all(notice.startswith("picture 4:") for notice in strange)
    assert find_faces(group_photo, mini)[0][0].box[0] < 220  # alone: the largest


def test_a_wrong_file_is_named(mini):
    found, notices = find_faces([*ASSETS[:2], STRANGER], mini)
    assert [reference.name for reference in found] == [*ASSETS[:2], STRANGER]
    assert len(notices) == 1 and notices[0].startswith(f"{STRANGER}: its face is unlike those of the other pictures")
    assert find_faces(ASSETS, mini)[1] == []


def test_the_threshold_tells_strangers_from_the_person(mini):
    people, each = 8, 4
    portraits = make_portraits(np.repeat(np.arange(people), each) + 640_000, np.tile(np.arange(each), people))
    faces = [mini.detect(image) for image in portraits.images]
    embeddings = np.array([found[0].embedding for found in faces]).reshape(people, each, -1)
    assert sum(len(unlike(list(own), same_person("mini"))) for own in embeddings) <= 2  # of 32
    named = [
        3 in unlike([*embeddings[one][:3], embeddings[other][0]], same_person("mini"))
        for one in range(people)
        for other in range(people)
        if one != other
    ]
    assert np.mean(named) > 0.8
    assert same_person("buffalo_l") == same_person("antelopev2") < same_person("mini")


# -------------------------------------------------------------------------------------------- without a recogniser


class Fixed:
    """Finds two faces in every picture, and does not know whose they are."""

    name = "fake"

    def detect(self, image):
        return [Face(np.array(box, np.float32), 0.9) for box in ((30, 5, 60, 35), (2, 2, 20, 20))]


def test_without_a_recogniser_the_largest_is_taken():
    image = np.zeros((64, 64, 3), np.uint8)
    found, notices = find_faces([image, image], Fixed())
    assert [reference.box[0] for reference in found] == [30, 30]
    assert notices == [f"picture {i}: 2 faces found, the largest is taken" for i in (1, 2)]
    assert find_faces(image, Fixed(), "left")[0][0].box[0] == 2
    with pytest.raises(UserError, match="--face most-like: the detector 'fake' has no face recogniser"):
        find_faces(image, Fixed(), "most-like")
    with pytest.raises(UserError, match=r"--face left: .* --no_detect"):
        find_faces(image, None, "left")


def test_what_to_do_without_a_face(mini):
    class Blind(Fixed):
        def detect(self, image):
            return []

    image = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(UserError, match=r"detector 'mini'.*drawn portraits only: for photos use --detector opencv"):
        find_faces(image, mini)
    with pytest.raises(UserError, match="try another --detector"):
        find_faces(image, Blind())


def test_large_crops_are_made_smaller(monkeypatch):
    monkeypatch.setattr(references, "MAX_CROP_PX", 40)
    rows, columns = np.mgrid[0:100, 0:200].astype(np.uint8)
    image = np.stack([columns, rows, rows], -1)
    [whole], _ = find_faces(image, None)
    assert whole.crop.shape == (40, 40, 3) and whole.crop.base is None  # nothing of the picture is kept
    np.testing.assert_allclose(whole.crop[20, [0, 39], 0], [51, 149], atol=2)  # the centred square
    [face], _ = find_faces(image[:, :100], Fixed())
    assert face.crop.shape == (33, 33, 3)  # normal ones stay as they are
    [strip], _ = find_faces(image[:16], None)
    assert strip.crop.shape == (16, 16, 3)

"""Who is shown: by folder, by list, and by clustering embeddings."""

import json

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from feedface.common.errors import UserError
from feedface.faces.detect import InsightFaceDetector
from feedface.preparation import groups
from feedface.preparation.groups import cluster, default_threshold, group
from feedface.synthetic.world import make_portraits

PICTURES = [("anna/1.jpg", None), ("anna/2.jpg", None), ("bob/x/1.jpg", None), ("top.jpg", None)]


def people(count: int, each: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [count * each, 32] around one direction a person, shuffled, and who is who."""
    generator = np.random.default_rng(seed)
    who = generator.permutation(np.repeat(np.arange(count), each))
    centres = generator.normal(size=(count, 32))
    return centres[who] + noise * generator.normal(size=(len(who), 32)), who


def same_groups(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a[:, None] == a, b[:, None] == b)


def test_none_and_folders():
    assert group(PICTURES, "none") == {}
    assert group(PICTURES, "folder") == {"anna/1.jpg": "anna", "anna/2.jpg": "anna", "bob/x/1.jpg": "bob/x"}
    with pytest.raises(UserError, match="none, folder, list, cluster"):
        group(PICTURES, "name")


@pytest.mark.parametrize(
    "name, text",
    [
        ("who.json", json.dumps({"anna/1.jpg": "Anna", "2.jpg": "Anna", "bob/x/1.jpg": 7})),
        ("who.jsonl", '{"path":"anna/1.jpg","identity":"Anna"}\n{"path":"2.jpg","identity":"Anna"}\n'
                      '{"path":"bob/x/1.jpg","identity":7}'),
        ("who.csv", "file_name,person\nanna/1.jpg,Anna\n2.jpg,Anna\nbob/x/1.jpg,7\n"),
    ],
)  # fmt: skip
def test_lists(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = group(PICTURES, "list", list_file=tmp_path / name)
    assert found == {"anna/1.jpg": "Anna", "anna/2.jpg": "Anna", "bob/x/1.jpg": "7"}


def test_whether_a_name_is_clear_depends_on_all_pictures(tmp_path):
    (tmp_path / "who.json").write_text('{"2.jpg": "Anna"}')
    assert group(PICTURES, "list", list_file=tmp_path / "who.json") == {"anna/2.jpg": "Anna"}
    everything = [rel for rel, _ in PICTURES] + ["carl/2.jpg"]  # which was left out, for having two faces
    assert group(PICTURES, "list", list_file=tmp_path / "who.json", all_pictures=everything) == {}


def test_lists_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="--identity_list"):
        group(PICTURES, "list")
    (tmp_path / "who.jsonl").write_text('{"path": "top.jpg", "identity": true}')
    with pytest.raises(UserError, match=r"who.jsonl:1: identity: .* not True"):
        group(PICTURES, "list", list_file=tmp_path / "who.jsonl")


def test_clusters_are_the_people():
    embeddings, who = people(30, 6, noise=0.3)
    assert same_groups(cluster(embeddings, 0.6), who)


@pytest.mark.parametrize("threshold", [-0.5, 0.2, 0.5, 0.7, 0.85, 0.999])
def test_clusters_are_those_of_the_whole_table(threshold, monkeypatch):
    monkeypatch.setattr(groups, "ROWS", 17)  # in many blocks
    embeddings, _ = people(25, 5, noise=0.7, seed=1)
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    whole = fcluster(linkage(units, "average", metric="cosine"), 1 - threshold, "distance")
    assert same_groups(cluster(embeddings, threshold), whole)


def test_numbers_are_by_first_appearance_and_length_does_not_count():
    embeddings, _ = people(10, 4, noise=0.3, seed=2)
    labels = cluster(embeddings, 0.6)
    first = [int(label) for index, label in enumerate(labels) if label not in labels[:index]]
    assert first == list(range(10))
    lengths = np.random.default_rng(0).uniform(0.1, 9, (len(embeddings), 1))
    assert np.array_equal(cluster(embeddings * lengths, 0.6), labels)


def test_names_of_clusters_and_pictures_without_a_face():
    embeddings, who = people(3, 2, noise=0.1, seed=3)
    pictures = [(f"{index}.jpg", vector.tolist()) for index, vector in enumerate(embeddings)]
    found = group([("none.jpg", None), *pictures], "cluster", 0.6)
    assert list(found) == [rel for rel, _ in pictures] and found["0.jpg"] == "person_0000"
    assert set(found.values()) == {"person_0000", "person_0001", "person_0002"}
    assert same_groups(np.array([int(name[-4:]) for name in found.values()]), who)


def test_cluster_without_embeddings():
    with pytest.raises(UserError, match="no recogniser"):
        group(PICTURES, "cluster", 0.5)
    assert group([], "cluster", 0.5) == {}
    assert group([("a.jpg", [1.0, 0.0])], "cluster", 0.5) == {"a.jpg": "person_0000"}
    assert group([("a.jpg", [0.0, 0.0]), ("b.jpg", [0.0, 0.0])], "cluster", 0.5)["b.jpg"] == "person_0001"


def test_too_many_faces_in_one_chain(monkeypatch):
    monkeypatch.setattr(groups, "MAX_CHAIN", 50)
    embeddings, _ = people(20, 4, noise=0.3)
    cluster(embeddings, 0.6)
    with pytest.raises(UserError, match="--identity_threshold -1: chains 80 faces"):
        cluster(embeddings, -1)


def test_portraits_of_unseen_people_by_the_mini_pack():
    who = np.repeat(np.arange(6), 4)
    portraits = make_portraits(who + 600_000, np.tile(np.arange(4), 6))
    detector = InsightFaceDetector("mini", "models/mini/faces")
    found = [detector.detect(image) for image in portraits.images]
    pictures = [(f"{index:02d}.png", faces[0].embedding if faces else None) for index, faces in enumerate(found)]
    names = group(pictures, "cluster", detector="mini")
    labels, truth = np.array(list(names.values())), who[[int(rel[:2]) for rel in names]]
    pairs = np.triu_indices(len(labels), 1)
    same, alike = (truth[:, None] == truth)[pairs], (labels[:, None] == labels)[pairs]
    assert (same & alike).sum() > 0.8 * alike.sum() and (same & alike).sum() > 0.3 * same.sum()
    assert default_threshold("mini") > default_threshold("buffalo_l")

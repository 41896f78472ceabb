"""FeedFacePipeline on the toy model: faces once, pictures many times, a sample depends on its own seed only."""

import numpy as np
import pytest
import torch
from PIL import Image
from toy import make_toy_bundle

from feedface.errors import UserError
from feedface.faces.detect import Face
from feedface.pipeline import FeedFacePipeline
from feedface.references import NoFaceError
from feedface.settings import Settings


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def pipe(toy):
    return FeedFacePipeline.from_pretrained(toy, device="cpu")


def noise_face(seed=0, width=40, height=48):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def arrays(images):
    return np.stack([np.asarray(image).astype(int) for image in images])


class OneBoxDetector:
    """Finds the boxes it is given, in every picture."""

    name = "fake"

    def __init__(self, *boxes):
        self.faces = [Face(np.array(box, np.float32), 0.9) for box in boxes]

    def detect(self, image):
        return self.faces


def draw(pipe, prompt="a man", **options):
    return arrays(pipe.generate(prompt, progress=False, **options))


def test_pictures(pipe):
    pipe.set_faces([noise_face()])
    images = pipe.generate("a man", 2, seed=5, progress=False)
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" and image.size == (64, 64) for image in images)
    assert not (arrays(images)[0] == arrays(images)[1]).all()


def test_same_seed_same_picture_whatever_the_batch(pipe):
    pipe.set_faces([noise_face()])
    together = draw(pipe, n_samples=5, seed=3, batch_size=5)
    split = draw(pipe, n_samples=5, seed=3, batch_size=2)
    alone = draw(pipe, seeds=[7])
    np.testing.assert_allclose(together, split, atol=1)  # a rounding of the last bit is all that may differ
    np.testing.assert_allclose(together[4:], alone, atol=1)


def test_face_prompt_and_settings_matter(pipe):
    pipe.set_faces([noise_face(0)])
    base = draw(pipe)
    for options in ({"prompt": "a woman"}, {"face_scale": 0.0}, {"guidance": 4.0}, {"steps": 2}, {"uncond": "paper"}):
        assert not (draw(pipe, **options) == base).all(), options
    pipe.set_faces([noise_face(1)])
    assert not (draw(pipe) == base).all()


def test_no_face_equals_scale_zero(pipe):
    pipe.set_faces([noise_face()])
    without = draw(pipe, face_scale=0.0)
    pipe.set_faces([])
    np.testing.assert_array_equal(draw(pipe), without)


def test_several_faces(pipe):
    faces = [noise_face(0), noise_face(1)]
    pipe.set_faces(faces)
    both = draw(pipe)
    pipe.set_faces(faces, pool="first")
    first = draw(pipe)
    pipe.set_faces(faces[:1])
    np.testing.assert_array_equal(draw(pipe), first)
    assert not (both == first).all()


def test_sizes_other_than_the_models(pipe):
    [image] = pipe.generate("a man", size=(96, 64), progress=False)
    assert image.size == (96, 64)


def test_faces_are_cropped_and_the_largest_is_taken(pipe):
    image = noise_face(0, 100, 100)
    detector = OneBoxDetector((20, 30, 60, 70), (80, 80, 90, 90))
    [reference], notices = pipe.set_faces([image], detector)
    np.testing.assert_array_equal(reference.crop, image[28:72, 18:62])  # 40 px x 1.1, about the same centre
    assert reference.faces_found == 2 and "2 faces" in notices[0]


def test_a_face_at_the_border_is_padded(pipe):
    [reference], _ = pipe.set_faces([noise_face(0, 50, 50)], OneBoxDetector((-10, -10, 20, 20)))
    assert reference.crop.shape == (33, 33, 3)


def test_no_face_found(pipe):
    with pytest.raises(NoFaceError, match=r"picture 1: no face found \(detector 'fake', .*--no_detect"):
        pipe.set_faces([noise_face()], OneBoxDetector())
    with pytest.raises(NoFaceError, match="any of the 2 pictures"):
        pipe.set_faces([noise_face(), noise_face()], OneBoxDetector())


def test_pictures_without_a_face_are_left_out(pipe):
    class Picky(OneBoxDetector):
        def detect(self, image):
            return [] if image.shape[0] == 30 else self.faces

    references, notices = pipe.set_faces([noise_face(0, 30, 30), noise_face()], Picky((5, 5, 30, 30)))
    assert [reference.name for reference in references] == ["picture 2"]
    assert notices[0].startswith("left out: picture 1: no face found")


@pytest.mark.parametrize("picture", [np.zeros((1, 1, 3), np.uint8), np.zeros((40, 40)), Image.new("L", (1, 1))])
def test_pictures_in_memory_are_checked(pipe, picture):
    with pytest.raises(UserError):
        pipe.set_faces([picture])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"steps": 0}, "--steps"),
        ({"steps": 1000}, "--steps"),
        ({"guidance": float("nan")}, "--guidance"),
        ({"guidance": -1.0}, "--guidance"),
        ({"face_scale": 6.0}, "--face_scale"),
        ({"size": (60, 64)}, "multiple of 16"),
        ({"size": (4096, 4096)}, "from 16 to 256"),
        ({"n_samples": 0}, "n_samples"),
        ({"seed": -1}, "seed"),
        ({"uncond": "other"}, "uncond"),
    ],
)
def test_out_of_range(pipe, options, word):
    with pytest.raises(UserError, match=word):
        pipe.generate("a man", **options)


@pytest.mark.parametrize("prompt", ["", " \n", "x" * 10_000, "\ud83d"])
def test_prompts_refused(pipe, prompt):
    with pytest.raises(UserError, match="prompt"):
        pipe.generate(prompt)


def test_a_prompt_that_is_cut_is_said(pipe):
    assert pipe.prompt_notice("a man") is None
    assert "reads the first 16" in pipe.prompt_notice("a man with a very long description")


def test_settings_come_from_the_model(pipe):
    settings = pipe.settings(Settings(guidance=3.0))
    assert settings == Settings(3, 3.0, 1.0, (64, 64), "true_uncond")  # the toy's defaults, but for the guidance


def test_digest_follows_the_weights(toy, pipe, tmp_path):
    assert FeedFacePipeline.from_pretrained(toy, device="cpu").digest == pipe.digest
    assert FeedFacePipeline.from_pretrained(make_toy_bundle(tmp_path / "copy"), device="cpu").digest == pipe.digest
    assert FeedFacePipeline.from_pretrained(make_toy_bundle(tmp_path / "b", 1), device="cpu").digest != pipe.digest


def test_half_precision(toy):
    pipe = FeedFacePipeline.from_pretrained(toy, device="cpu", dtype="bf16")
    pipe.set_faces([noise_face()])
    assert pipe.generate("a man", progress=False)[0].size == (64, 64)


def test_out_of_memory_is_one_line(pipe, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("feedface.pipeline.sample", fail)
    with pytest.raises(UserError, match="out of memory"):
        pipe.generate("a man", progress=False)

"""FeedFacePipeline on the toy model: faces once, pictures many times, a sample depends on its own seed only."""

import copy
import json
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from toy import FOLDERS, make_toy_bundle

from feedface.checkpoints.few_step import FewStep, save_few_step
from feedface.common.errors import UserError
from feedface.encoders import TextEncoder
from feedface.faces.detect import Face
from feedface.faces.references import NoFaceError, find_faces
from feedface.inference import batching as drawing
from feedface.pipeline import FeedFacePipeline, Request
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
    for options in (
        {"prompt": "a woman"},
        {"face_scale": 0.0},
        {"guidance": 4.0},
        {"steps": 2},
        {"uncond": "paper"},
        {"scheduler": "ddim"},
        {"guidance_interval": (500, 1000)},
        {"face_interval": (0, 900)},
        {"steps": 5, "reuse": 2},
        {"preset": "quality"},
    ):
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
    # The toy's defaults, but for the guidance, and the default preset.
    assert (settings.steps, settings.guidance, settings.face_scale, settings.size) == (3, 3.0, 1.0, (64, 64))
    assert settings.preset == "balanced" and pipe.settings(settings) == settings


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("text_encoder", "prefix.weight"),
        ("backbone", "mid_block.mlp.fc1.weight"),
        ("method", "blocks.0.mlp.fc1.weight"),
        ("vae", "vae.decoder.conv_out.bias"),
    ],
)
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_draw_no_picture(pipe, part, key, number):
    pipe.set_faces([noise_face()])
    getattr(pipe.bundle, part).state_dict()[key][0] = number
    with pytest.raises(UserError, match=rf"/{FOLDERS.get(part, part)}: its weights hold NaN or infinity"):
        draw(pipe)


def test_faces_that_are_no_numbers_are_refused(pipe):
    identity = pipe.identity(find_faces([noise_face()], None)[0])
    with pytest.raises(UserError, match="the identity holds NaN"):
        list(pipe.draw([("a man", 0, {name: value * float("nan") for name, value in identity.items()})]))
    pipe.bundle.method.projector.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="/face_controlnet: its weights hold NaN"):
        pipe.set_faces([noise_face()])
    assert pipe.references == []


def test_numbers_too_large_for_half_precision_are_said(pipe):
    pipe.bundle.vae.vae.decoder.conv_out.weight *= 1e30
    pipe.bundle.vae.vae.decoder.conv_out.bias += 3e38
    pipe.bundle.vae.vae.decoder.conv_norm_out.weight *= 1e30
    with pytest.raises(UserError, match=r"the model's vae gives NaN or infinity, from weights that are finite.*bf16"):
        draw(pipe)


def test_digest_follows_the_weights(toy, pipe, tmp_path):
    assert FeedFacePipeline.from_pretrained(toy, device="cpu").digest == pipe.digest
    assert FeedFacePipeline.from_pretrained(make_toy_bundle(tmp_path / "copy"), device="cpu").digest == pipe.digest
    assert FeedFacePipeline.from_pretrained(make_toy_bundle(tmp_path / "b", 1), device="cpu").digest != pipe.digest


@pytest.mark.parametrize("dtype", ["bf16", torch.bfloat16])
@pytest.mark.parametrize("int8", [False, True])
def test_half_precision(toy, dtype, int8):
    pipe = FeedFacePipeline.from_pretrained(toy, device="cpu", dtype=dtype, int8=int8)
    pipe.set_faces([noise_face()])
    assert pipe.generate("a man", progress=False)[0].size == (64, 64)


def test_out_of_memory_is_one_line(pipe, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(drawing, "sample", fail)
    with pytest.raises(UserError, match="out of memory"):
        pipe.generate("a man", progress=False)


def test_a_batch_that_does_not_fit_is_split(pipe, monkeypatch):
    pipe.set_faces([noise_face()])
    whole = draw(pipe, n_samples=5)
    rows = []

    def tight(uvit, *, seeds, **options):
        rows.append(len(seeds))
        if len(seeds) > 2:
            raise torch.OutOfMemoryError
        return sample(uvit, seeds=seeds, **options)

    sample = drawing.sample
    monkeypatch.setattr(drawing, "sample", tight)
    np.testing.assert_allclose(draw(pipe, n_samples=5, batch_size=5), whole, atol=1)
    assert rows == [5, 2, 3, 1, 2]


# ------------------------------------------------------------------------------------------- many prompts and people


def people(pipe, *counts):
    """One person with each number of references; 0: nobody."""
    pictures = [[noise_face(10 * count + i) for i in range(count)] for count in counts]
    return [pipe.identity(find_faces(some, None)[0]) if some else None for some in pictures]


def test_many_prompts_and_people_share_batches(pipe, monkeypatch):
    rows, encoded = [], []
    sample, encode = drawing.sample, TextEncoder.encode
    monkeypatch.setattr(drawing, "sample", lambda *args, **how: rows.append(len(how["seeds"])) or sample(*args, **how))
    monkeypatch.setattr(TextEncoder, "encode", lambda self, texts: encoded.extend(texts) or encode(self, texts))
    one, two, nobody = people(pipe, 1, 2, 0)
    prompts = ["a man", "a woman"]
    wanted = [(prompts[seed % 2], seed, face) for seed in range(3) for face in (one, two, nobody, one)]
    steps = []
    images = arrays(pipe.draw(wanted, Settings(uncond="paper"), batch_size=4, on_step=steps.append))
    # As soon as four have the same number of references; the rest at the end.
    assert rows == [4, 3, 3, 2] and sum(steps) == 3 * 12
    assert sorted(encoded) == ["", "a man", "a woman"]
    for request, image in zip(wanted, images, strict=True):
        (alone,) = arrays(pipe.draw([Request(*request)], Settings(uncond="paper")))
        np.testing.assert_allclose(image, alone, atol=1)
    assert len({image.tobytes() for image in images}) == 9  # one was asked for twice with each seed


@pytest.mark.parametrize("kind", [str, Image.fromarray, np.asarray, lambda path: Image.open(path)])
def test_one_picture_needs_no_list(pipe, tmp_path, kind):
    Image.fromarray(noise_face()).save(tmp_path / "face.png")
    [expected], _ = pipe.set_faces([noise_face()])
    one = kind(tmp_path / "face.png") if kind is str or kind.__name__ == "<lambda>" else kind(noise_face())
    [reference], _ = pipe.set_faces(one)
    assert reference.digest == expected.digest
    references, _ = pipe.set_faces(np.stack([noise_face(0), noise_face(1)]))
    assert [each.name for each in references] == ["picture 1", "picture 2"]


@pytest.mark.parametrize("wrong", [None, 3, np.zeros((4, 4)), {1: 2}, [None]])
def test_what_is_no_picture_is_refused_in_words(pipe, wrong):
    with pytest.raises(UserError, match="picture"):
        pipe.set_faces(wrong)


def test_numbers_of_numpy_and_a_generator_are_taken(pipe):
    expected = draw(pipe, n_samples=2, seed=5, steps=2, guidance=3.0, size=(64, 64))
    numbers = {"seed": np.int64(5), "steps": np.int32(2), "guidance": np.float32(3), "size": np.uint16(64)}
    np.testing.assert_array_equal(draw(pipe, n_samples=np.int64(2), **numbers), expected)
    np.testing.assert_array_equal(draw(pipe, n_samples=2, **numbers | {"size": [np.int64(64), 64]}), expected)
    options = {"steps": 2, "guidance": 3, "batch_size": np.int64(2)}
    np.testing.assert_array_equal(draw(pipe, seeds=np.array([5, 6]), **options), expected)
    settings = Settings(**{key: value for key, value in numbers.items() if key != "seed"})
    assert json.dumps(settings.as_json()) == json.dumps(Settings(steps=2, guidance=3.0, size=64).as_json())

    generator = torch.Generator().manual_seed(3)
    first, second = (draw(pipe, seed=generator) for _ in range(2))
    assert not (first == second).all()
    np.testing.assert_array_equal(draw(pipe, seed=torch.Generator().manual_seed(3)), first)


def test_several_prompts(pipe):
    together = draw(pipe, ["a man", "a woman"], n_samples=2, seed=3, batch_size=1)
    alone = [draw(pipe, prompt, n_samples=2, seed=3, batch_size=1) for prompt in ("a man", "a woman")]
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size 0: out of range"),
        ({"batch_size": -1}, "batch_size -1: out of range"),
        ({"batch_size": 1.5}, "batch_size 1.5: not a whole number"),
        ({"n_samples": 2.0}, "n_samples 2.0: not a whole number"),
        ({"seed": 1.5}, "seed 1.5: not a whole number"),
        ({"seed": True}, "seed True: not a whole number"),
        ({"seeds": [1, None]}, "seed None: not a whole number"),
        ({"size": 64.5}, "--size 64.5: not a whole number"),
        ({"size": "64"}, "--size '64': give a number"),
        ({"size": (64, 64, 3)}, "two: width and height"),
        ({"prompt": ["a man", 3]}, "prompt"),
    ],
)
def test_arguments_refused_in_words(pipe, options, words):
    with pytest.raises(UserError, match=words):
        pipe.generate(**{"prompt": "a man", "progress": False} | options)


def test_a_cut_prompt_is_warned_of_once(pipe):
    long = "a man with a very long description"
    with pytest.warns(UserWarning, match="reads the first 16") as said:
        pipe.generate([long, "a man"], n_samples=3, batch_size=1, progress=False)
    [words] = [str(each.message) for each in said if each.category is UserWarning]
    assert words.startswith("'a man with a very long description': the prompt has 30 tokens")


def test_another_device(pipe, few):
    few.set_faces([noise_face()])
    fast = draw(few, preset="fast")
    assert few.to("cpu") is few and few.device == torch.device("cpu")
    np.testing.assert_array_equal(draw(few, preset="fast"), fast)
    for wrong in ("xpu", "hip", "vulkan", "meta", "cpu:7", "nonsense", 1.5):
        with pytest.raises(UserError, match=f"--device {wrong}: not a device"):
            pipe.to(wrong)
    for options in ({"low_memory": True}, {"int8": True}):
        other = FeedFacePipeline.from_pretrained(few.bundle.path, device=torch.device("cpu"), **options)
        with pytest.raises(UserError, match="load it anew"):
            other.to("cpu")


def test_pickling_is_refused_in_words(pipe):
    for copy_of in (pickle.dumps, copy.deepcopy):
        with pytest.raises(UserError, match=r"not for pickling.*from_pretrained"):
            copy_of(pipe)


def test_requests_are_checked(pipe):
    with pytest.raises(UserError, match="prompt"):
        list(pipe.draw([(" ", 0)]))
    with pytest.raises(UserError, match="seed"):
        list(pipe.draw([("a man", -1)]))


# ------------------------------------------------------------------------------------------ other ways to load and draw


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The toy with a few-step adapter of random weights."""
    folder = make_toy_bundle(tmp_path_factory.mktemp("few"))
    random = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    weights = {
        "backbone.mid_block.mlp.fc1": (random(2, 32), random(64, 2) / 4),
        "method.blocks.0.zero_linear": (random(2, 32), random(32, 2) / 4),
    }
    save_few_step(folder / "few_step", FewStep((1000, 600), 2.0, 1.0, "true_uncond", weights))
    index = json.loads((folder / "model_index.json").read_text())
    index["adapters"]["few_step"] = "few_step"
    (folder / "model_index.json").write_text(json.dumps(index))
    return FeedFacePipeline.from_pretrained(folder, device="cpu")


def test_the_few_step_adapter_draws_beside_the_models_own_weights(few):
    few.set_faces([noise_face()])
    before = draw(few, preset="quality")
    fast = draw(few, preset="fast")
    unmerged = draw(few, steps=2, scheduler="ddim", guidance=1.0)
    assert not (fast == before).all() and not (fast == unmerged).all()
    np.testing.assert_array_equal(draw(few, preset="quality"), before)
    np.testing.assert_array_equal(draw(few, preset="fast"), fast)


@pytest.mark.parametrize("low_memory", [False, True])
def test_threads_get_what_each_gets_alone(few, low_memory):
    """Presets, faces, sizes and prompts of any length at once, to the bit."""
    pipe = FeedFacePipeline.from_pretrained(few.bundle.path, device="cpu", low_memory=low_memory)
    one, two, nobody = people(pipe, 1, 2, 0)
    jobs = [
        (("a man", 5, one), Settings(preset="fast")),
        (("a woman", 6, two), Settings(preset="quality", steps=4)),
        (("a man with a very long description", 7, nobody), Settings(preset="fast", size=(96, 64))),
        (("a woman", 5, one), Settings(preset="balanced", uncond="paper")),
        (("a man", 6, two), Settings(preset="fast")),
        (("a cat", 7, one), Settings(preset="quality", steps=4, size=(64, 96))),
    ]

    def work(job):
        request, settings = job
        assert pipe.prompt_notice("a man") is None
        return arrays(pipe.draw([request], settings)), pipe.identity(find_faces([noise_face(10)], None)[0])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the long prompt
        alone = [work(job) for job in jobs]
        order = [*range(6)] if low_memory else [0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0, 5, 1, 0]
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(work, [jobs[i] for i in order]))
    for (image, tokens), (expected, _) in zip(together, [alone[i] for i in order], strict=True):
        np.testing.assert_array_equal(image, expected)
        assert torch.equal(tokens["tokens"], alone[0][1]["tokens"])


def test_the_adapters_weights_are_in_the_fingerprint(few):
    with_adapter, without = (few.picture_settings(few.settings(Settings(preset=name))) for name in ("fast", "quality"))
    assert with_adapter["few_step"] == few.adapter.digest and len(few.adapter.digest) == 16
    assert "few_step" not in without


def test_low_memory_draws_the_same(toy, pipe):
    low = FeedFacePipeline.from_pretrained(toy, device="cpu", low_memory=True)
    for each in (pipe, low):
        each.set_faces([noise_face()])
    np.testing.assert_allclose(draw(low, n_samples=2), draw(pipe, n_samples=2), atol=1)
    assert low.digest == pipe.digest and low.batch_size(low.settings()) == 1
    assert low.picture_settings(low.settings()) == pipe.picture_settings(pipe.settings())


def test_int8_is_close_and_said(few, pipe):
    path = few.bundle.path
    rough = FeedFacePipeline.from_pretrained(path, device="cpu", int8=True)
    for each in (few, rough):
        each.set_faces([noise_face()])
    difference = np.abs(draw(rough, preset="quality") - draw(few, preset="quality"))
    assert 0 < difference.mean() < 10
    settings = rough.settings(Settings(preset="fast"))
    assert not settings.few_step and rough.picture_settings(settings)["int8"] is True


def test_a_model_that_cannot_place_a_face_says_so(pipe):
    assert "face_box" not in pipe.settings().drawn()
    with pytest.raises(UserError, match=r"^--face_box: the model's method \(feedface\) cannot place a face"):
        pipe.settings(Settings(face_box=(0, 0, 0.5, 0.5)))

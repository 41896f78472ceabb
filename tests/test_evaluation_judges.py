"""The judges: a face recogniser (the committed mini pack), transformers' own CLIP classes at toy size."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from toy import CLIP_CONFIG, make_toy_bundle, toy_clips, toy_tokenizer

from feedface.checkpoints.bundle import read_index
from feedface.checkpoints.storage import quiet_transformers
from feedface.common.errors import UserError
from feedface.encoders import CLIP_MEAN, CLIP_STD
from feedface.evaluation.judges import TEXT_PROJECTION, ClipJudge, NotMeasured, PackJudge
from feedface.synthetic.world import make_portraits

MINI = Path(__file__).parents[1] / "models/mini"
GREY = np.full((48, 80, 3), 127, np.uint8)


@pytest.fixture(scope="module")
def faces() -> PackJudge:
    return PackJudge("mini", MINI / "faces", threads=1)


@pytest.fixture(scope="module")
def people():
    """Four people, two pictures each, that nothing was trained on."""
    return make_portraits(np.repeat(np.arange(30_000, 30_004), 2), np.tile([0, 1], 4))


def pictures(count: int, size: int = 32) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


# ------------------------------------------------------------------------------------------------------------- faces


def test_a_face_is_embedded_and_an_empty_picture_is_not(faces, people):
    shown = [people.images[0], GREY, people.images[0], people.images[2]]
    seen = faces.look(shown)
    embeddings = seen.embeddings
    assert seen.found.tolist() == [True, False, True, True]
    assert (embeddings.dtype, embeddings.shape) == (np.float32, (4, 128))
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx([1, 0, 1, 1], abs=1e-5)
    assert seen.faces[1] is None and seen.faces[0].landmarks.shape == (5, 2)
    assert embeddings[0] @ embeddings[2] == pytest.approx(1, abs=1e-6)
    assert faces.look([]).embeddings.shape == (0, 128)


def test_the_box_is_where_the_face_is_and_its_crop_is_square(faces, people):
    seen = faces.look([*people.images, GREY])
    assert seen.found[:-1].all()
    boxes = np.array([face.box for face in seen.faces[:-1]])
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    truth = (people.boxes[:, :2] + people.boxes[:, 2:]) / 2
    assert np.abs(middle - truth).max() < 5
    crops = seen.crops([*people.images, GREY])
    assert len(crops) == len(people.images)
    assert all(crop.shape[0] == crop.shape[1] for crop in crops)


def test_a_swapped_identity_is_less_alike_than_another_picture_of_the_person(faces, people):
    embeddings = faces.look(people.images).embeddings
    first, second = embeddings[::2], embeddings[1::2]
    cosines = first @ second.T
    assert np.diag(cosines).mean() > cosines[~np.eye(4, dtype=bool)].mean() + 0.3


def test_the_judge_is_not_the_models_face_encoder(faces, tmp_path):
    bundle = read_index(MINI)
    faces.check_apart(bundle)
    encoder = tmp_path / "face_encoder"
    encoder.mkdir()
    bundle.components["method"] = encoder
    recogniser = (MINI / "faces/models/mini/recogniser.onnx").read_bytes()
    (encoder / "r50.onnx").write_bytes(recogniser[:-1] + bytes([recogniser[-1] ^ 1]))  # of the same length
    faces.check_apart(bundle)
    (encoder / "r50.onnx").write_bytes(recogniser)
    with pytest.raises(UserError, match="face encoder"):
        faces.check_apart(bundle)
    bundle.components["method"] = encoder / "r50.onnx"
    with pytest.raises(UserError, match="face encoder"):
        faces.check_apart(bundle)
    del bundle.components["method"]
    faces.check_apart(bundle)


def test_a_pack_without_a_recogniser_is_no_judge(tmp_path):
    pack = tmp_path / "models/half"
    pack.mkdir(parents=True)
    shutil.copy(MINI / "faces/models/mini/detector.onnx", pack)
    with pytest.raises(UserError, match="no recogniser"):
        PackJudge("half", tmp_path)
    with pytest.raises(UserError, match="no face model pack"):
        PackJudge("buffalo_l", tmp_path)


# -------------------------------------------------------------------------------------------------------------- CLIP


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    """A whole CLIP as transformers writes it: random weights, 32 px, 16 tokens of single letters."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = toy_tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text, _ = toy_clips(tokenizer)
        config = CLIPConfig(text_config=text.config.to_dict(), vision_config=CLIP_CONFIG, projection_dim=16)
        model = CLIPModel(config)
    with quiet_transformers():
        model.save_pretrained(folder)
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


def test_a_whole_clip_embeds_as_the_model_itself_does(clip_folder):
    from transformers import CLIPModel

    judge = ClipJudge.load(clip_folder)
    assert (judge.name, judge.reason, judge.text_reason) == (str(clip_folder), None, None)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    shown, prompts = pictures(3), ["a man", "a woman in red"]
    # By hand: pictures of the model's own size only need CLIP's mean and deviation.
    pixels = torch.from_numpy(np.stack(shown)).float() / 255
    pixels = ((pixels - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)).permute(0, 3, 1, 2)
    letters = judge._towers._tokenizer
    ids = [letters(prompt).input_ids for prompt in prompts]
    with torch.no_grad():
        images = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1).numpy()
        texts = [model.get_text_features(input_ids=torch.tensor([row])).pooler_output[0] for row in ids]
    np.testing.assert_allclose(judge.images(shown), images, atol=1e-5)
    np.testing.assert_allclose(judge.texts(prompts), F.normalize(torch.stack(texts), dim=-1).numpy(), atol=1e-5)


def test_clip_embeddings_have_length_one_whatever_the_pictures_and_however_long_the_prompt(clip_folder):
    judge = ClipJudge.load(clip_folder)
    judge._batch_size = 2
    mixed = [*pictures(3, 40), np.zeros((20, 64, 3), np.uint8), pictures(1)[0]]
    images = judge.images(mixed)
    assert images.shape == (5, 16) and images.dtype == np.float32
    assert np.linalg.norm(images, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    np.testing.assert_allclose(images[3:4], judge.images(mixed[3:4]), atol=1e-5)
    texts = judge.texts(["x " * 100, "", "x"])
    assert np.linalg.norm(texts, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert judge.images([]).shape == judge.texts([]).shape == (0, 16)


def test_what_is_not_a_whole_clip_is_refused(clip_folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="not a CLIP model"):
        ClipJudge.load(tmp_path)
    shutil.copytree(clip_folder, tmp_path / "other_words")
    toy = toy_tokenizer(tmp_path / "toy")
    toy.add_tokens(["cat"])
    toy.save_pretrained(tmp_path / "other_words")
    with pytest.raises(UserError, match="tokenizer of"):
        ClipJudge.load(tmp_path / "other_words")
    _, vision = toy_clips(toy_tokenizer(tmp_path / "half"))
    shutil.copytree(clip_folder, tmp_path / "half", dirs_exist_ok=True)
    state = {f"vision_model.{key}": value for key, value in vision.state_dict().items() if "projection" not in key}
    save_file(state, tmp_path / "half/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="missing or misshapen"):
        ClipJudge.load(tmp_path / "half")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="model hub"):
        ClipJudge.load("nobody/has-this-clip")


def test_a_bundles_own_encoders_are_a_clip_for_pictures_and_for_text_where_the_projection_is_there(tmp_path):
    bundle = read_index(make_toy_bundle(tmp_path / "toy"))
    judge = ClipJudge.load(None, bundle=bundle)
    images = judge.images(pictures(3, 40))
    assert images.shape == (3, 16) and np.linalg.norm(images, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    one_by_one = np.concatenate([judge.images([picture]) for picture in pictures(3, 40)])
    np.testing.assert_allclose(images, one_by_one, atol=1e-5)
    np.testing.assert_allclose(judge.images([*pictures(3, 40), GREY])[:3], images, atol=1e-5)  # of several sizes
    assert "no projection" in judge.text_reason and np.isnan(judge.texts(["a man", "x"])).all()

    file = tmp_path / "toy/text_encoder" / TEXT_PROJECTION
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight}, file)
    judge = ClipJudge.load(None, bundle=bundle)
    assert judge.text_reason is None
    states = judge._towers._text.clip(input_ids=judge._towers._text.tokenize(["a man"])).pooler_output
    np.testing.assert_allclose(judge.texts(["a man"]), F.normalize(states @ weight.T, dim=-1).numpy(), atol=1e-5)
    save_file({"weight": weight[:3].contiguous()}, file)
    with pytest.raises(UserError, match=r"needs a matrix .* found \[3, 16\]"):
        ClipJudge.load(None, bundle=bundle)


def test_without_a_clip_it_is_said_how_to_get_one(tmp_path):
    bundle = read_index(make_toy_bundle(tmp_path))
    del bundle.components["image_encoder"]
    for absent in (ClipJudge.load(None), ClipJudge.load(None, bundle=bundle)):
        assert isinstance(absent, NotMeasured) and "--clip" in absent.reason

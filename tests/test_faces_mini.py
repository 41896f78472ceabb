"""The mini face pack: canvases, anchors, losses, crops, and that insightface decodes the files as they were meant."""

from types import SimpleNamespace

import ml_collections
import numpy as np
import pytest
import torch
from torch import nn

from feedface.common.images import read_image
from feedface.common.places import CHECKOUT
from feedface.faces.detect import InsightFaceDetector
from feedface.faces.recogniser_net import CROP_PX, RecogniserNet
from feedface.synthetic.train import detector as detector_stage
from feedface.synthetic.train import recogniser as recogniser_stage
from feedface.synthetic.train.__main__ import read_config
from feedface.synthetic.train.canvases import MAX_FACES, CanvasMaker
from feedface.synthetic.train.common import read_metrics
from feedface.synthetic.train.detector import Detector, anchors, assign, detection_loss, to_input
from feedface.synthetic.train.face_encoder import Head
from feedface.synthetic.train.parser import spoil
from feedface.synthetic.world import make_portraits
from feedface.training.fit import fit_config

CANVAS_PX = 128


@pytest.fixture(scope="module")
def portraits():
    return make_portraits([0, 0, 1, 1, 2, 2, 3, 3], [0, 1] * 4)


@pytest.fixture(scope="module")
def canvases(portraits):
    return CanvasMaker(portraits, CANVAS_PX).draw(64, torch.Generator().manual_seed(0))


def test_canvases_hold_no_face_one_or_several_all_inside(canvases):
    assert canvases.images.shape == (64, 3, CANVAS_PX, CANVAS_PX)
    assert canvases.images.min() >= 0 and canvases.images.max() <= 1
    assert set(canvases.present.sum(1).tolist()) == {0, 1, 2, 3, 4}
    boxes = canvases.boxes[canvases.present]
    assert boxes.min() >= -1e-3 and boxes.max() <= CANVAS_PX + 1e-3
    # Landmarks lie in their boxes, eyes above the mouth.
    points = canvases.landmarks[canvases.present]
    inside = (points >= boxes[:, None, :2]) & (points <= boxes[:, None, 2:])
    assert inside.float().mean() > 0.95
    assert (points[:, :2, 1].mean(1) < points[:, 3:, 1].mean(1)).all()


def test_canvases_show_the_portrait_where_the_box_says(portraits):
    """A plain red portrait with a green face box: inside the boxes the canvas is green."""
    images = np.zeros_like(portraits.images)
    images[..., 0] = 200
    for image, box in zip(images, portraits.boxes.round().astype(int), strict=True):
        image[box[1] : box[3], box[0] : box[2]] = (0, 200, 0)
    painted = type(portraits)(**{**vars(portraits), "images": images})
    drawn = CanvasMaker(painted, CANVAS_PX).draw(32, torch.Generator().manual_seed(1))
    for row, slot in drawn.present.nonzero().tolist():
        x0, y0, x1, y1 = drawn.boxes[row, slot].tolist()
        margin = 0.15 * (x1 - x0)
        middle = drawn.images[row, :, round(y0 + margin) : round(y1 - margin), round(x0 + margin) : round(x1 - margin)]
        assert middle[1].mean() > 0.5 and middle[0].mean() < 0.2


def test_the_same_generator_state_gives_the_same_canvases(portraits):
    first, second = (CanvasMaker(portraits, CANVAS_PX).draw(8, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.images, second.images) and torch.equal(first.boxes, second.boxes)


def test_every_face_has_an_anchor_and_every_assigned_anchor_is_near_its_face(portraits):
    drawn = CanvasMaker(portraits, CANVAS_PX).draw(100, torch.Generator().manual_seed(2))
    places, sizes, strides = anchors(CANVAS_PX)
    target = assign(drawn, places, sizes, strides)
    found = torch.stack([(target == face).any(1) for face in range(MAX_FACES)], 1)
    assert torch.equal(found, drawn.present)
    row, anchor = (target >= 0).nonzero(as_tuple=True)
    box = drawn.boxes[row, target[row, anchor]]
    assert (places[anchor] >= box[:, :2] - 1).all() and (places[anchor] <= box[:, 2:] + 1).all()


def test_the_loss_vanishes_for_the_truth_and_only_for_it(canvases):
    places, sizes, strides = anchors(CANVAS_PX)
    target = assign(canvases, places, sizes, strides)
    face = target.clamp(min=0)
    boxes = canvases.boxes.gather(1, face[..., None].expand(-1, -1, 4))
    points = canvases.landmarks.flatten(2).gather(1, face[..., None].expand(-1, -1, 10))
    distances = torch.cat([places - boxes[..., :2], boxes[..., 2:] - places], -1)
    points = points - places.repeat(1, 5)
    scores = torch.where(target >= 0, 20.0, -20.0)
    perfect, _ = detection_loss((scores, distances, points), canvases, target, places)
    assert perfect < 1e-3
    for wrong in ((-scores, distances, points), (scores, distances + 2, points), (scores, distances, points + 2)):
        assert detection_loss(wrong, canvases, target, places)[0] > 0.05


def test_insightface_decodes_the_detector_file_as_the_network_meant_it(tmp_path, portraits):
    torch.manual_seed(0)
    network = Detector(width=8).eval()
    for head in network.head:  # strong random answers, so that every anchor's place in the file matters
        torch.nn.init.normal_(head.weight, std=0.5)
        head.bias.data[::15] = 0
    picture = np.asarray(CanvasMaker(portraits, CANVAS_PX).draw(2, torch.Generator().manual_seed(3)).images[1])
    picture = (picture.transpose(1, 2, 0) * 255).round().astype(np.uint8)
    detector_stage.save(network, tmp_path / "models/mini/detector.onnx", CANVAS_PX)
    found = InsightFaceDetector("mini", tmp_path)._analysis.det_model
    found.nms_thresh = 2.0  # keep every anchor
    detected, landmarks = found.detect(np.ascontiguousarray(picture[..., ::-1]))

    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        scores, distances, points = network(to_input(image))
    places, _, _ = anchors(CANVAS_PX)
    order = scores[0].sigmoid().argsort(descending=True)
    order = order[scores[0].sigmoid()[order] >= 0.5]
    assert len(order) > 20 and len(detected) == len(order)
    expected = torch.cat([places - distances[0, :, :2], places + distances[0, :, 2:]], 1)[order]
    # Half-precision weights: a few hundredths of a pixel, and neighbours in the order may swap.
    np.testing.assert_allclose(np.sort(detected[:, 4]), np.sort(scores[0].sigmoid()[order]), atol=5e-3)
    np.testing.assert_allclose(np.sort(detected[:, 0]), np.sort(expected[:, 0]), atol=0.5)
    best = points[0].unflatten(1, (5, 2))[order[0]] + places[order[0]]
    closest = np.abs(landmarks - best.numpy()).max((1, 2)).min()
    assert closest < 0.5


def recogniser(config: ml_collections.ConfigDict) -> RecogniserNet:
    """An untrained one, in the size of the parts that stage `face_encoder` trains."""
    sizes = config.face_size, config.patch_size, config.width, config.layers - 1, config.embedding_dim
    return RecogniserNet(*sizes).eval()


def test_the_recogniser_shows_its_encoder_an_upright_square_crop():
    """A picture that brightens to the right and downwards does so for the encoder, in its size."""
    seen = []

    class Encoder(nn.Module):
        def forward(self, pixels, output_hidden_states):
            seen.append(pixels)
            return SimpleNamespace(hidden_states=[torch.zeros(len(pixels), 4, 32)])

    ramp = torch.linspace(-1, 1, CROP_PX)
    picture = torch.stack([ramp.expand(CROP_PX, -1), ramp[:, None].expand(-1, CROP_PX), torch.zeros(CROP_PX, CROP_PX)])
    network = RecogniserNet(48, 8, 32, 1, 16)
    network.encoder = Encoder()
    embedding = network(picture[None])
    assert embedding.shape == (1, 16) and abs(float(embedding.detach().norm()) - 1) < 1e-5
    right, down, nothing = seen[0][0]
    assert right.shape == (48, 48) and not nothing.any()
    assert (right.diff(dim=1) >= -1e-6).all() and torch.allclose(right, right[:1].expand(48, -1), atol=1e-5)
    assert (down.diff(dim=0) >= -1e-6).all() and down.mean() > right.mean()  # shifted down, not sideways


def test_spoiling_keeps_the_picture(portraits):
    images = torch.from_numpy(portraits.images).permute(0, 3, 1, 2).float() / 255
    spoilt = spoil(images.clone(), torch.Generator().manual_seed(0))
    assert 0.005 < (spoilt - images).abs().mean() < 0.1
    assert spoilt.min() >= 0 and spoilt.max() <= 1


def test_the_files_are_small(tmp_path):
    detector_stage.save(Detector(32), tmp_path / "detector.onnx", CANVAS_PX)
    recogniser_stage.save(recogniser(read_config("cpu", []).face_encoder), tmp_path / "recogniser.onnx")
    assert all(path.stat().st_size < 2e6 for path in tmp_path.iterdir())


def test_stages_train_and_leave_a_pack_that_insightface_runs(tmp_path, portraits, monkeypatch):
    for stage in (detector_stage, recogniser_stage):
        monkeypatch.setattr(stage, "load_portraits", lambda workdir, split="train": portraits)
    monkeypatch.setattr(detector_stage, "CHECKED_CANVASES", 8)
    config = ml_collections.ConfigDict(
        {
            "detector": fit_config(batch_size=4, steps=3, image_px=64, width=8),
            "face_encoder": {
                "seed": 0,
                "face_size": 48,
                "patch_size": 8,
                "width": 32,
                "layers": 2,
                "embedding_dim": 16,
            },
        }
    )
    network = recogniser(config.face_encoder)
    head = Head(config.face_encoder.width, config.face_encoder.embedding_dim, 7)
    model = nn.ModuleDict({"encoder": network.encoder, "head": head})
    (tmp_path / "face_encoder").mkdir()
    torch.save({"ema": model.state_dict()}, tmp_path / "face_encoder" / "checkpoint.pt")
    detector_stage.run(config, tmp_path)
    recogniser_stage.run(config, tmp_path)
    assert read_metrics(tmp_path / "detector")["training"]["steps"] == 3
    assert "missed" in read_metrics(tmp_path / "recogniser")["metrics"]
    pack = InsightFaceDetector("mini", tmp_path / "bundle/faces", threshold=0.0)
    assert pack.has_recogniser
    faces = pack.detect(portraits.images[0])
    assert faces[0].embedding.shape == (16,) and faces[0].landmarks.shape == (5, 2)
    assert_embeds_as_the_pack(RecogniserNet.from_pretrained(tmp_path / "bundle/recogniser"), pack, portraits.images[0])


def assert_embeds_as_the_pack(network: RecogniserNet, pack: InsightFaceDetector, picture: np.ndarray) -> None:
    face = pack.detect(picture)[0]
    pixels = (torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 127.5 - 1).requires_grad_()
    embedding = network.embed(pixels, face.landmarks[None])
    assert float(embedding.detach()[0] @ torch.from_numpy(face.embedding)) > 0.998
    (gradient,) = torch.autograd.grad(embedding.sum(), pixels)
    assert gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("name", ["demo_face.png", "demo_person_1.png"])
def test_the_committed_recogniser_is_that_of_its_pack(name):
    model = CHECKOUT / "models" / "mini"
    pack = InsightFaceDetector("mini", model / "faces")
    network = RecogniserNet.from_pretrained(model / "recogniser")
    picture = read_image(CHECKOUT / "assets" / name)
    assert_embeds_as_the_pack(network, pack, picture)
    assert_embeds_as_the_pack(network, pack, picture[10:-20, 5:])  # not square


def test_the_detector_learns(portraits):
    torch.manual_seed(0)
    network, maker = Detector(width=8), CanvasMaker(portraits, 64)
    places, sizes, strides = anchors(64)
    drawn = maker.draw(16, torch.Generator().manual_seed(4))
    target = assign(drawn, places, sizes, strides)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        loss, _ = detection_loss(network(to_input(drawn.images)), drawn, target, places)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]

"""Whose face a drawn picture shows, by the miniature's own recogniser."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from feedface.checkpoints.bundle import load_bundle
from feedface.common.errors import UserError
from feedface.common.images import read_image
from feedface.common.places import CHECKOUT
from feedface.distillation.likeness import Likeness
from feedface.encoders import to_tensor
from feedface.faces.recogniser_net import RecogniserNet

NAMES = ("demo_face.png", "demo_person_1.png", "demo_person_2.png")  # the last two are of one person


@pytest.fixture(scope="module")
def bundle():
    return load_bundle(CHECKOUT / "models" / "mini", components=("vae",))


@pytest.fixture(scope="module")
def likeness(bundle):
    return Likeness(bundle, torch.device("cpu"))


@pytest.fixture(scope="module")
def pictures():
    return [read_image(CHECKOUT / "assets" / name) for name in NAMES]


@pytest.fixture(scope="module")
def latents(bundle, likeness, pictures):
    pixels = torch.cat([to_tensor(picture)[None] for picture in pictures])
    return bundle.vae.encode(pixels, sample=False).float()


def test_pictures_of_one_person_are_alike_and_grey_ones_count_nothing(likeness, pictures):
    grey = np.full((128, 128, 3), 127, np.uint8)
    one, two, three, none = likeness.of_pictures([*pictures, grey])
    assert two @ three > 0.5 > one @ two
    assert one.norm() == pytest.approx(1, abs=1e-4) and not none.any()


def test_the_loss_is_small_for_the_own_face_and_leads_to_the_wanted_one(likeness, pictures, latents):
    faces = likeness.of_pictures(pictures)
    assert likeness.loss(latents, faces).item() < 0.15  # what the VAE loses
    x = latents[:1].clone().requires_grad_()
    strange = likeness.loss(x, faces[1:2])
    (gradient,) = torch.autograd.grad(strange, x)
    assert strange.item() > 0.4
    nearer = (latents[:1] - 2.0 * gradient / gradient.norm()).detach()
    assert likeness.loss(nearer, faces[1:2]).item() < strange.item() - 0.05


def test_a_pack_without_a_recogniser_is_refused(bundle, tmp_path):
    pack = tmp_path / "faces" / "models" / "mini"
    pack.mkdir(parents=True)
    shutil.copy(bundle.faces_root / "models/mini/detector.onnx", pack)
    other = replace(bundle, components=bundle.components | {"faces": tmp_path / "faces"})
    with pytest.raises(UserError, match=r"its pack has no recogniser; use .*likeness=0"):
        Likeness(other, torch.device("cpu"))


def test_all_of_the_network_is_where_it_was_asked_to_be(bundle):
    network = RecogniserNet.from_pretrained(bundle.extra("recogniser"), "meta")
    assert {tensor.device.type for tensor in (*network.parameters(), *network.buffers())} == {"meta"}


def test_rows_without_a_face_count_nothing(likeness, pictures, latents):
    faces = likeness.of_pictures(pictures)
    alone = likeness.loss(latents[:1], faces[1:2]).item()
    faceless = latents.clone()
    faceless[1:] = 0
    assert likeness.loss(faceless, faces[[1, 0, 0]]).item() == pytest.approx(alone / 3, abs=1e-3)
    assert likeness.loss(latents[:1], torch.zeros(1, 128)).item() == 0

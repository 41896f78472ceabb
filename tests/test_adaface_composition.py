"""AdaFace's second stage: what is read along in the U-Net, texts of person and class, training and going on."""

import pytest
import torch
from configs import adaface_composition, mini_adaface_composition
from ml_collections import ConfigDict
from tests.test_adaface import FACE, distilling, teacher  # noqa: F401
from tests.toy import toy_text_encoder, toy_unet, toy_uvit

from feedface.common.errors import UserError
from feedface.diffusion.compositional_losses import merged, mixed, prompt_loss, unlike
from feedface.methods.adaface import AdaFace
from feedface.methods.composition import Watch, four_texts, kept_layers, mixed_texts, text_layers
from feedface.training.check import check_config
from feedface.training.trainer import learning_rate

PLACES = slice(1, 5)


@torch.no_grad()
def test_watched_a_backbone_predicts_the_same_and_what_is_kept_fits_it():
    backbone = toy_unet()
    layers = text_layers(backbone)
    weights = kept_layers(layers)
    assert sum(weights.values()) == pytest.approx(1)
    assert weights.keys() < set(layers) or len(layers) == len(weights)
    text = torch.randn(4, 8, backbone.text_dim)
    conditions, state = backbone.conditions({"text": text}), {"img": torch.randn(4, *backbone.state_shapes()["img"])}
    t = torch.full((4,), 500)
    watch = Watch(weights, PLACES)
    torch.testing.assert_close(backbone(state, t, conditions, watch)["img"], backbone(state, t, conditions)["img"])
    for layer, name in zip(watch.layers(backbone, backbone.latent_size), weights, strict=True):
        site = backbone.sites[name]
        grid = site.grid(backbone.latent_size)
        assert layer.scores.shape == (4, site.heads, grid[0] * grid[1])
        assert layer.queries.shape == layer.features.shape == (4, site.width, *grid)
    # The scores are those of the attention: of one head, what diffusers computes from its own weights.
    name = next(iter(weights))
    attention = backbone.operator(f"{name}.attn2").attention
    query = watch.queries[name] * (query_width := watch.queries[name].shape[-1] // attention.heads) ** 0.25
    key = attention.to_k(text[:, PLACES])
    head = slice(0, query_width)
    expected = (query[..., head] @ key[..., head].mT / query_width**0.5).sum(-1)
    torch.testing.assert_close(watch.scores[name][:, 0], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_texts_of_their_own_for_each_layer():
    backbone = toy_unet()
    layers, text = text_layers(backbone), torch.randn(4, 8, backbone.text_dim)
    texts = mixed_texts(layers, text, PLACES, 1.0)
    for name in layers:
        keys, values = texts[f"{name}.attn2"]
        assert torch.equal(keys[:2], text[:2]) and torch.equal(values[:2], text[:2])
        assert torch.equal(keys[2:, PLACES.stop :], text[2:, PLACES.stop :])  # of the class, but for the places
    keys, values = texts[f"{layers[-1]}.attn2"]
    person, other = text[0, PLACES], text[2, PLACES]
    torch.testing.assert_close(keys[2, PLACES], 0.8 * other + 0.2 * person)
    torch.testing.assert_close(values[2, PLACES], 0.7 * other + 0.3 * person)
    torch.testing.assert_close(mixed(text[:2], text[2:], PLACES, 1, 0.7, 0.0), text[:2])
    plain, state = {"text": text}, {"img": torch.randn(4, *backbone.state_shapes()["img"])}
    conditions, t = backbone.conditions(plain), torch.full((4,), 500)
    same = {name: (text, text) for name in texts}
    watched = [backbone(state, t, conditions, Watch({}, PLACES, given))["img"] for given in (same, texts)]
    torch.testing.assert_close(watched[0], backbone(state, t, conditions)["img"])
    torch.testing.assert_close(watched[1][:2], watched[0][:2])
    assert (watched[1][2:] - watched[0][2:]).abs().max() > 1e-4


def test_merged_and_compared():
    text = torch.arange(6.0)[:, None]
    assert merged(text, 2, 2).flatten().tolist() == [0, 1, 5, 4, 4, 5]
    assert merged(text, 2, 1).flatten().tolist() == text.flatten().tolist()
    a = torch.randn(3, 7)
    torch.testing.assert_close(unlike(a, a.abs().sqrt() * a.sign()), torch.zeros(3), atol=1e-5, rtol=0)
    texts = torch.randn(4, 8, 16)
    texts[2:] = texts[:2]
    real = torch.zeros(2, 8)
    real[:, 1:4] = real[1, 4:6] = 1
    with_end = texts.clone()
    with_end[:, 7] += 5  # which no mask counts
    torch.testing.assert_close(prompt_loss(with_end, real), prompt_loss(texts, real))
    assert prompt_loss(texts, real) < 0.2 < prompt_loss(torch.randn(4, 8, 16), real)  # squared, they differ a little


def composing(run, path, **changes):
    changes = {"compositions": (("b",), ("", "a")), "class_word": "b", **changes}
    return distilling(run, path, kind="composition", **changes)


def test_all_of_the_second_stage_goes_on_exactly(teacher):  # noqa: F811
    run, path = teacher
    composing(run, path, composed=0.6, distilled=0.5)
    options = {"train.optimizer": "prodigy", "train.lr": 1.0, "train.batch_size": 2, "loss.kind": "mask"}
    whole = run.train("composed", **options, **{"train.steps": 12})
    run.train("composed-parts", **options, **{"train.steps": 6})
    again = run.train("composed-parts", **options, **{"train.steps": 12})
    learned = whole["optimizer"]["learned"]
    assert learned["k"] == 12 and learned["d"] > 0
    assert again["optimizer"]["learned"] == learned
    assert all(torch.equal(whole["weights"][name], value) for name, value in again["weights"].items())


def test_the_text_learns_what_a_composition_changes():
    torch.manual_seed(0)
    text_encoder = toy_text_encoder()
    control = {**FACE, "objective": {"kind": "reconstruction"}}
    method = AdaFace.fresh(ConfigDict({"control": control}), toy_unet(), text=text_encoder)
    trained = [parameter for _, parameter in method.trained_parameters(toy_unet())]
    optimizer, losses = torch.optim.Adam(trained, lr=1e-2), []
    features = method.features(torch.randn(1, 1, 3))
    for _ in range(30):
        words = method.identity(features)["words"].expand(2, -1, -1)
        texts = four_texts(method, text_encoder, words, ("a z", "a z b"), "b")
        assert texts.places == slice(2, 6)
        assert texts.real.sum(dim=1).tolist() == [5, 6]
        assert texts.spread.shape == texts.merged.shape
        loss = prompt_loss(texts.merged, texts.real)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    floor = 5 / 5.25  # what stands before a composition is not changed by it, and counts as unlike
    assert losses[-1] - floor < 0.5 * (losses[0] - floor)


def test_a_u_vit_is_told():
    with pytest.raises(UserError, match=r"^config\.control\.objective\.kind: composition is for a U-Net; a uvit"):
        text_layers(toy_uvit())


@pytest.mark.parametrize("config", [adaface_composition, mini_adaface_composition])
def test_configs(config):
    made = config.get_config()
    check_config(made)
    train = made.train
    assert learning_rate(train.steps - 1, made) == pytest.approx(train.lr / 11, rel=0.01)
    assert learning_rate(train.warmup_steps, made) == train.lr

"""The training objective: what is compared with what, what learns, the learning rate, the moving average."""

from dataclasses import replace

import pytest
import torch
from configs import mini_face
from ml_collections import ConfigDict
from tests.toy import toy_face_controlnet, toy_uvit
from torch.utils._python_dispatch import TorchDispatchMode

from feedface.data.draws import DrawSettings, draw
from feedface.diffusion.batch import Draw, Draws, Encoded
from feedface.diffusion.losses import regularization_mask_loss, standard_loss
from feedface.diffusion.objective import MaskObjective, widened
from feedface.diffusion.schedule import add_noise, alphas_cumprod
from feedface.training.controlled import ControlledBackbone
from feedface.training.ema import Ema
from feedface.training.trainer import learning_rate


def make_batch(count=6, standard=(), drop_face=()):
    settings = DrawSettings(0, {"img": (4, 8, 8), "clip_img": (1, 16)}, standard_loss=0, face_dropout=0)
    draws = Draws.collate([draw(settings, s, 1, [0] * count) for s in range(count)])
    draws.standard[list(standard)] = True
    draws.drop_face[list(drop_face)] = True
    g = torch.Generator().manual_seed(0)
    batch = Encoded(
        mean=torch.randn(count, 4, 8, 8, generator=g),
        std=torch.rand(count, 4, 8, 8, generator=g),
        others={"clip_img": torch.randn(count, 1, 16, generator=g)},
        text=torch.randn(count, 16, 8, generator=g),
        features={"faces": torch.randn(count, 2, 5, 32, generator=g)},
        mask=torch.rand(count, 1, 8, 8, generator=g),
    )
    return draws, batch


def make_objective(kind, faces=0.0, text=0.0, min_snr=0.0, **more):
    """What a dropped face is replaced by, and a dropped text: these numbers."""
    loss = ConfigDict({"kind": kind, "min_snr": min_snr, "face_dropout_kind": "zero_image", **more})
    return MaskObjective(
        ConfigDict({"loss": loss}), {"faces": torch.full((5, 32), faces)}, torch.full((1, 16, 8), text)
    )


def make_model(seed=0):
    torch.manual_seed(seed)
    uvit = toy_uvit().requires_grad_(False)
    return ControlledBackbone(uvit, toy_face_controlnet(uvit), {"data_type": 1})


class CountedModel:
    """Notes how many samples each kind of forward pass sees."""

    def __init__(self, model):
        self.model, self.adapted, self.frozen = model, [], []

    def __call__(self, state, t, prompt, features=None):
        (self.frozen if features is None else self.adapted).append(len(t))
        assert features is not None or not torch.is_grad_enabled()
        return self.model(state, t, prompt, features)


@pytest.mark.parametrize("standard", [(), (1, 4), range(6)])
def test_loss_is_the_papers_per_sample(standard):
    model = make_model()
    draws, batch = make_batch(standard=standard)
    counted = CountedModel(model)
    parts = make_objective("regularization")(counted, draws, batch)

    latents = add_noise(batch.mean + batch.std * draws.vae_noise, draws.noise["img"], draws.t)
    clip_img = add_noise(batch.others["clip_img"], draws.noise["clip_img"], draws.t)
    given = (latents, clip_img, batch.text, draws.t, torch.zeros(6), torch.ones(6, dtype=torch.long))
    control = model.method.bind(model.backbone, model.method.identity(batch.features))
    with torch.no_grad():
        pred = model.backbone.predict(*given, control=control).img
        frozen = model.backbone.predict(*given).img
    noise = draws.noise["img"]
    wanted = regularization_mask_loss(noise, pred, frozen, batch.mask)
    wanted[list(standard)] = standard_loss(noise, pred)[list(standard)]
    assert torch.allclose(parts.loss, wanted.mean(), atol=1e-6)
    assert torch.allclose(parts.sums[0], wanted.sum(), atol=1e-5)
    # The frozen model is asked only about the samples that are compared with it.
    assert counted.adapted == [6] and sum(counted.frozen) == 6 - len(standard)
    assert parts.counts.tolist() == [6, 6 - len(standard), 6 - len(standard)]


def test_dropped_faces_and_texts_and_what_learns():
    model = make_model()
    objective = make_objective("mask", faces=0.5, text=0.25)
    draws, batch = make_batch(drop_face=(2,))
    draws.drop_text[3] = True
    by_hand, clean = make_batch()
    clean.features["faces"][2], clean.text[3] = 0.5, 0.25
    loss = objective(model, draws, batch).loss
    assert loss == objective(model, by_hand, clean).loss
    assert loss != objective(model, *make_batch()).loss
    loss.backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None}
    trainable = {f"method.{name}" for name in model.trained()}
    assert learning == trainable


def test_a_batch_can_be_learned():
    model, batch = make_model(), make_batch()
    objective = make_objective("regularization")
    optimizer = torch.optim.AdamW(model.trained().values(), lr=5e-3)
    losses = []
    for _ in range(60):
        loss = objective(model, *batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_fresh_control_has_no_background_loss():
    model = make_model()
    for block in model.method.blocks:
        torch.nn.init.zeros_(block.zero_linear.weight)
    parts = make_objective("regularization")(model, *make_batch())
    assert parts.sums[1] > 1 and abs(parts.sums[2]) < 1e-9


def test_min_snr_weights():
    draws, batch = make_batch(1)
    model = make_model()
    losses = []
    for t in (1, 300, 1000):
        draws.t[:] = t
        pair = [make_objective("standard", min_snr=gamma)(model, draws, batch).loss for gamma in (0.0, 5.0)]
        alpha_bar = alphas_cumprod()[t - 1]
        snr = alpha_bar / (1 - alpha_bar)
        assert torch.allclose(pair[1] / pair[0], (min(snr, torch.tensor(5.0)) / snr).float(), rtol=1e-4)
        losses.append(pair)
    assert losses[0][1] < losses[0][0] and losses[2][1] == losses[2][0]


def test_a_wider_mask_lets_the_face_change_more():
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, 0, 2, 5] = 0.25
    wide = widened(mask, 0.125)  # one cell
    assert torch.equal(wide[0, 0, 1:4, 4:7], torch.full((3, 3), 0.25)) and wide.sum() == 9 * 0.25
    assert widened(mask, 0) is mask and torch.equal(widened(mask, 1)[0], torch.full((1, 8, 8), 0.25))

    model, (draws, batch) = make_model(), make_batch()
    batch.mask = (batch.mask > 0.9).float()
    tight, wide = (make_objective("regularization", mask_margin=margin)(model, draws, batch) for margin in (0, 1))
    everywhere = make_objective("mask")(model, draws, replace(batch, mask=torch.ones_like(batch.mask)))
    torch.testing.assert_close(wide.loss, everywhere.loss)  # nothing is left of the frozen prediction
    assert not torch.allclose(tight.loss, wide.loss)


def test_learning_rate():
    config = mini_face.get_config()
    config.train.lr, config.train.warmup_steps, config.train.steps = 1.0, 10, 110
    assert [learning_rate(s, config) for s in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert learning_rate(60, config) == pytest.approx(0.5) and learning_rate(110, config) == pytest.approx(0)
    config.train.schedule = "constant"
    assert learning_rate(109, config) == 1.0


def test_ema():
    parameter = torch.nn.Parameter(torch.zeros(3))
    ema = Ema([parameter], decay=0.5)
    for step in (1, 2):
        parameter.data.fill_(float(step))
        ema.update(step)
    first = 1 - 2 / 11
    assert torch.allclose(ema.averages[0], torch.full((3,), first + (1 - 3 / 12) * (2 - first)))
    with ema.applied():
        assert (parameter == ema.averages[0]).all()
    assert (parameter == 2).all()


def test_draw_fields_reach_the_batch():
    one = Draw(
        row=3, flip=True, hair=False, standard=True, drop_face=False, drop_text=True, t=7, faces=(0,),
        vae_noise=torch.zeros(1).numpy(), noise={"img": torch.ones(1).numpy(), "more": torch.full((1,), 2.0).numpy()},
    )  # fmt: skip
    batch = Draws.collate([one, one])
    assert batch.rows.tolist() == [3, 3] and batch.t.tolist() == [7, 7]
    flags = [getattr(batch, name)[0].item() for name in ("flip", "hair", "standard", "drop_face", "drop_text")]
    assert flags == [True, False, True, False, True]
    assert {name: noise.tolist() for name, noise in batch.noise.items()} == {"img": [[1], [1]], "more": [[2], [2]]}


class Waits(TorchDispatchMode):
    """Counts what a GPU's host waits for: numbers read from the device, and copies that block."""

    def __init__(self, device):
        super().__init__()
        self.device, self.count = device, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            there = [args[0].device.type, torch.device(kwargs.get("device") or args[0].device).type]
            self.count += self.device in there and there[0] != there[1] and not kwargs.get("non_blocking", False)
        return func(*args, **kwargs)


@pytest.mark.parametrize("kind", ["regularization", "mask", "standard"])
def test_a_step_never_waits_for_the_device(kind):
    # "meta" stands in for a GPU: it has no numbers to be read, and copies to it are seen.
    draws, batch = make_batch(standard=[1], drop_face=[2])
    draws.drop_text[3] = True
    device = torch.device("meta")
    loss = ConfigDict({"kind": kind, "min_snr": 5.0, "face_dropout_kind": "zero_image"})
    objective = MaskObjective(
        ConfigDict({"loss": loss}), {"faces": torch.zeros(5, 32, device=device)}, torch.zeros(1, 16, 8, device=device)
    )
    model = make_model().to(device)
    objective(model, draws, batch)  # tables that are kept
    with Waits("meta") as waits:
        objective(model, draws, batch).loss.backward()
    assert waits.count == 0

"""Predictions of the frozen backbone that are kept: a few draws a picture, the same loss, never another one's."""

from collections import Counter, defaultdict
from dataclasses import replace

import pytest
import torch
from tests.test_objective import CountedModel, make_model, make_objective

from feedface.common.errors import UserError
from feedface.data.draws import DrawSettings, draw
from feedface.diffusion.batch import Draws, Encoded
from feedface.training import frozen_predictions
from feedface.training.frozen_predictions import FrozenPredictions

RECORDS, COUNT = 6, 4
SETTINGS = DrawSettings(
    3, {"img": (4, 8, 8), "clip_img": (1, 16)}, standard_loss=0.2, text_dropout=0.3, draws_per_picture=COUNT
)
REFS = [2] * RECORDS
EPOCHS = range(COUNT * RECORDS)  # samples in which each draw comes up once


def drawn(samples, settings=SETTINGS):
    return [draw(settings, sample, 1, REFS) for sample in samples]


def asked(one):
    """What the frozen backbone is asked, of a draw."""
    return one.t, one.flip, one.drop_text, one.vae_noise.tobytes(), one.noise["img"].tobytes()


def test_a_picture_has_so_many_draws_one_from_each_span_of_timesteps():
    samples = range(3 * len(EPOCHS))
    by_record = defaultdict(Counter)
    for one in drawn(samples):
        assert (one.t - 1) * COUNT // 1000 == one.fixed
        by_record[one.row][asked(one)] += 1
    assert len(by_record) == RECORDS
    assert all(list(times.values()) == [3] * COUNT for times in by_record.values())
    assert len({ask for times in by_record.values() for ask in times}) == RECORDS * COUNT  # no two pictures share one
    # What the frozen backbone is not asked is drawn anew; and an epoch has timesteps of all spans.
    first, later = drawn(EPOCHS), drawn(samples[-len(EPOCHS) :])
    free = [{(o.row, o.fixed): (o.faces, o.hair, o.drop_face, o.standard) for o in some} for some in (first, later)]
    assert free[0].keys() == free[1].keys() and free[0] != free[1]
    assert {one.fixed for one in first[:RECORDS]} == set(range(COUNT))


def test_many_pictures_have_all_timesteps_alike():
    settings = replace(SETTINGS, state_shapes={"img": (1, 1, 1)})
    times = torch.tensor([draw(settings, sample, 1, [0] * 500).t for sample in range(500 * COUNT)])
    assert times.min() < 10 and times.max() > 990
    shares = torch.histc(times.float(), 20, 0.5, 1000.5) / len(times)
    assert (shares - 0.05).abs().max() < 0.02


def make_batch(samples):
    """Features by record, two views, as the cache has them."""
    draws = Draws.collate(drawn(samples))
    g = torch.Generator().manual_seed(0)
    at = draws.rows, draws.flip.long()
    batch = Encoded(
        mean=torch.randn(RECORDS, 2, 4, 8, 8, generator=g)[at],
        std=torch.rand(RECORDS, 2, 4, 8, 8, generator=g)[at],
        others={"clip_img": torch.randn(RECORDS, 2, 1, 16, generator=g)[at]},
        text=torch.randn(RECORDS, 16, 8, generator=g)[draws.rows],
        features={"faces": torch.randn(RECORDS, 1, 5, 32, generator=g)[draws.rows]},
        mask=torch.rand(RECORDS, 1, 8, 8, generator=g)[draws.rows],
    )
    return draws, batch


class Asked:
    """Counts the rows that a model is asked as the frozen one."""

    def __init__(self, model, monkeypatch):
        self.rows, original = 0, model.forward

        def forward(state, t, prompt, features=None, watch=None):
            self.rows += len(t) if features is None else 0
            return original(state, t, prompt, features, watch)

        monkeypatch.setattr(model, "forward", forward)

    def taken(self):
        taken, self.rows = self.rows, 0
        return taken


EMPTY = torch.full((1, 16, 8), 0.25)


def open_store(folder, model, settings=SETTINGS):
    return FrozenPredictions(folder, settings, RECORDS, model, EMPTY)


def needed(draws):
    return int((~draws.standard).sum())


def test_the_loss_is_as_computed_each_time_and_nothing_is_asked_twice(tmp_path, monkeypatch):
    model, objective = make_model(), make_objective("regularization", text=0.25)
    asked, kept = Asked(model, monkeypatch), []
    assert any(one.drop_text for one in drawn(EPOCHS)) and any(one.flip for one in drawn(EPOCHS))
    for epoch in range(2):
        store = open_store(tmp_path, model)  # as a run that goes on
        for start in (0, 8, 16):
            draws, batch = make_batch(range(start, start + 8))
            plain = objective(model, draws, batch)
            assert asked.taken() == needed(draws)
            batch.frozen = store(draws, batch)
            assert asked.taken() == (0 if epoch else needed(draws))
            counted = CountedModel(model)
            found = objective(counted, draws, batch)
            assert not counted.frozen and not asked.taken()
            torch.testing.assert_close(found.loss, plain.loss, rtol=1e-5, atol=0)
            torch.testing.assert_close(found.sums, plain.sums, rtol=1e-4, atol=0)
            kept.append(batch.frozen)
    # To the bit, also those that were made just now: a run that goes on reads what it made before.
    assert all(torch.equal(a, b) for a, b in zip(kept[:3], kept[3:], strict=True))


@pytest.mark.parametrize("harm", ["byte", "cut", "text", "picture", "dropped text"])
def test_what_does_not_fit_is_made_anew_alone(tmp_path, monkeypatch, harm):
    model = make_model()
    draws, batch = make_batch(range(8))
    row = next(i for i in range(8) if not draws.standard[i] and not draws.drop_text[i])
    store = open_store(tmp_path, model)
    before = store(draws, batch)
    asked = Asked(model, monkeypatch)
    (file,) = tmp_path.iterdir()
    if harm == "byte":
        content = bytearray(file.read_bytes())
        content[store._place(draws, row) + 100] ^= 1
        file.write_bytes(content)
    elif harm == "cut":
        row = max((i for i in range(8) if not draws.standard[i]), key=lambda i: store._place(draws, i))
        file.write_bytes(file.read_bytes()[:-1])
    elif harm == "dropped text":
        draws.drop_text[row] = True
    else:
        (batch.text if harm == "text" else batch.mean)[row] += 1
    after = open_store(tmp_path, model)(draws, batch)
    assert asked.taken() == 1
    others = [i for i in range(8) if i != row]
    assert torch.equal(before[others], after[others])
    if harm in ("byte", "cut"):  # the same prediction, but for rounding: now it is made alone, not in a batch
        torch.testing.assert_close(before[row], after[row], atol=2e-3, rtol=0)
    else:
        assert not torch.equal(before[row], after[row])
    again = open_store(tmp_path, model)(draws, batch)
    assert torch.equal(again, after) and not asked.taken()


@pytest.mark.parametrize("change", ["weights", "data_type", "seed", "count"])
def test_predictions_of_another_run_are_not_read(tmp_path, monkeypatch, change):
    model, settings = make_model(), SETTINGS
    draws, batch = make_batch(range(8))
    before = open_store(tmp_path, model)(draws, batch)
    if change == "weights":
        next(model.backbone.parameters()).add_(0.1)
    elif change == "data_type":
        model.constants["data_type"] = 0
    else:
        settings = replace(SETTINGS, **{"seed": {"seed": 4}, "count": {"draws_per_picture": 5}}[change])
        draws.fixed = draws.fixed % settings.draws_per_picture
    asked = Asked(model, monkeypatch)
    after = open_store(tmp_path, model, settings)(draws, batch)
    assert asked.taken() == needed(draws)
    assert torch.equal(before, after) == (
        change in ("seed", "count")
    )  # these change draws, and here there are the same
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_is_noticed_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"1000 B free, but keeping the frozen backbone's predictions takes .* KiB"):
        open_store(tmp_path, make_model())
    assert frozen_predictions.prediction_bytes((4, 8, 8)) == 16 + 2 * 256

"""The grid of pictures while training: what is on it, and that training does not notice."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from configs import mini_face
from PIL import Image
from tests.toy import make_toy_bundle
from tests.toy_records import make_records

from feedface.common.errors import UserError
from feedface.common.images import read_image
from feedface.data.features import EncoderSources
from feedface.data.records import read_records
from feedface.faces.crop import crop_square
from feedface.pipeline import FeedFacePipeline
from feedface.settings import EVERYWHERE
from feedface.training import samples as module
from feedface.training.samples import CELL_PX, GAP_PX, SampleGrid
from feedface.training.setup import build_models

CPU = torch.device("cpu")
PROMPTS = ("a man", "a woman in a red hat " * 20, "nobody")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture
def records(tmp_path):
    """Three people of two pictures each, the two of a person one after the other."""
    found = read_records(make_records(tmp_path / "records", people=3, per_person=2))
    return [replace(record, identity=record.path.name.split("_")[0]) for record in found]


def make_config(bundle, **changes):
    config = mini_face.get_config()
    config.model, config.face_encoder = str(bundle), ""
    config.train.batch_size = 2  # fewer than pictures of a row
    config.log.people, config.log.prompts = 2, PROMPTS
    config.update_from_flattened_dict(changes)
    return config


def make_grid(bundle, records, workdir, precision="no", **changes):
    config = make_config(bundle, **changes)
    return SampleGrid(config, build_models(config, CPU, precision), records, workdir, CPU)


def cell(path, row, column):
    """A picture of the grid, uint8 [CELL_PX,CELL_PX,3]; column 0 is the reference."""
    sheet = np.asarray(Image.open(path))
    top = sheet.shape[0] - 2 * (CELL_PX + GAP_PX) + row * (CELL_PX + GAP_PX)
    left = GAP_PX + column * (CELL_PX + GAP_PX)
    return sheet[top : top + CELL_PX, left : left + CELL_PX]


def close(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max() <= 2


def resized(picture):
    return np.asarray(Image.fromarray(picture).resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS))


def test_cells_are_what_the_pipeline_draws(bundle, records, tmp_path):
    path = make_grid(bundle, records, tmp_path).draw(96)
    assert path == tmp_path / "samples" / "0000000096.png"
    pipe = FeedFacePipeline.from_pretrained(bundle, device="cpu")
    for row, record in enumerate((records[0], records[2])):  # the second is the first person's other picture
        crop = crop_square(read_image(record.path), record.square_bbox)
        reference = np.asarray(Image.fromarray(crop).resize((64, 64), Image.Resampling.LANCZOS))
        assert close(cell(path, row, 0), resized(reference))
        pipe.set_faces([crop])
        for column, prompt in enumerate(PROMPTS):
            (drawn,) = pipe.generate(prompt, seed=column, progress=False)
            assert close(cell(path, row, 1 + column), resized(np.asarray(drawn)))
    assert not close(cell(path, 0, 1), cell(path, 1, 1))


def test_a_later_start_needs_no_encoder(bundle, records, tmp_path, monkeypatch):
    grid = make_grid(bundle, records, tmp_path)
    first = grid.draw(1).read_bytes()
    loads = []
    original = EncoderSources.load
    monkeypatch.setattr(EncoderSources, "load", lambda *args: loads.append(1) or original(*args))
    assert make_grid(bundle, records, tmp_path).draw(2).read_bytes() == first and not loads
    changed = make_grid(bundle, records, tmp_path, **{"log.prompts": ("a man",)})
    assert loads and len(changed.text) == 1
    assert make_grid(bundle, records, tmp_path, **{"log.people": 3}).features["faces"].shape[0] == 3

    kept = tmp_path / "samples" / "inputs.safetensors"
    kept.write_bytes(kept.read_bytes()[:-5])  # cut short
    assert make_grid(bundle, records, tmp_path).draw(3).read_bytes() == first
    assert not list((tmp_path / "samples").glob(".tmp-*"))


def test_weights_are_those_of_now(bundle, records, tmp_path):
    grid = make_grid(bundle, records, tmp_path)
    before = grid.draw(1)
    with torch.no_grad():
        for block in grid.models.trained.method.blocks:
            block.zero_linear.weight.zero_()
    after = grid.draw(2)
    assert not close(cell(before, 0, 1), cell(after, 0, 1))
    assert close(cell(after, 0, 1), cell(after, 1, 1))  # without the face's influence people are the same


def test_who_has_no_whole_picture_is_passed_over(bundle, records, tmp_path):
    records[0].path.write_bytes(b"no picture")  # this person has another one
    for record in records[2:4]:
        record.path.unlink()
    records[4] = replace(records[4], width=65)  # the box belongs to another picture
    grid = make_grid(bundle, records, tmp_path)
    wanted = [crop_square(read_image(records[i].path), records[i].square_bbox) for i in (1, 5)]
    wanted = [np.asarray(Image.fromarray(crop).resize((64, 64), Image.Resampling.LANCZOS)) for crop in wanted]
    assert np.array_equal(grid.references, np.stack(wanted))
    with pytest.raises(UserError, match="nobody to draw"):
        make_grid(bundle, records[2:4], tmp_path / "other")


def test_unidentified_records_are_people_of_their_own(bundle, records, tmp_path):
    grid = make_grid(bundle, [replace(record, identity=None) for record in records], tmp_path)
    crops = [crop_square(read_image(record.path), record.square_bbox) for record in records[:2]]
    shown = [np.asarray(Image.fromarray(crop).resize((64, 64), Image.Resampling.LANCZOS)) for crop in crops]
    assert np.array_equal(grid.references, np.stack(shown))


def test_low_precision(bundle, records, tmp_path):
    grid = make_grid(bundle, records, tmp_path, "bf16")
    assert grid.models.trained.backbone.pos_embed.dtype == torch.bfloat16
    low = grid.draw(1)
    assert {p.dtype for p in grid.models.trained.method.parameters()} == {torch.float32}
    full = make_grid(bundle, records, tmp_path / "full").draw(1)
    difference = np.abs(cell(low, 0, 1).astype(float) - cell(full, 0, 1))
    assert difference.mean() < 8


def test_every_unconditional_mode(bundle, records, tmp_path):
    grid = make_grid(bundle, records, tmp_path)
    pictures = []
    for mode in ("true_uncond", "empty_token", "paper"):
        # Strong guidance: the toy model hardly minds otherwise.
        grid.settings = replace(grid.settings, guidance=50.0, guidance_interval=EVERYWHERE, uncond=mode)
        pictures.append(cell(grid.draw(1), 0, 1))
    assert not close(pictures[0], pictures[1]) and not close(pictures[1], pictures[2])


def random_states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_training_is_the_same_to_the_bit(bundle, records, tmp_path):
    def train(with_grids):
        torch.manual_seed(5)
        models = build_models(make_config(bundle), CPU, "no")
        model = models.trained
        model.train()
        model.backbone.gradient_checkpointing = True
        grid = None
        if with_grids:
            before = random_states()
            grid = SampleGrid(make_config(bundle), models, records, tmp_path / "run", CPU)
            assert random_states() == before
        state = {"img": torch.randn(2, 4, 8, 8), "clip_img": torch.randn(2, 1, 16)}
        prompt, t = {"text": torch.randn(2, 16, 8)}, torch.tensor([100, 900])
        features = {"faces": torch.randn(2, 1, 5, 32)}
        optimizer = torch.optim.AdamW(model.method.parameters(), lr=1e-2)
        for step in range(3):
            model(state, t, prompt, features)["img"].pow(2).mean().backward()
            if grid:  # also between gradients and their use
                before = random_states()
                grid.draw(step)
                assert random_states() == before
            optimizer.step()
            optimizer.zero_grad()
        assert all(part.training for part in model.modules()) and model.backbone.gradient_checkpointing
        return model.method.state_dict()

    plain, watched = train(False), train(True)
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


def test_flags_come_back_after_a_failure(bundle, records, tmp_path, monkeypatch):
    grid = make_grid(bundle, records, tmp_path)
    model = grid.models.trained
    model.method.train()
    flags = {name: part.training for name, part in model.named_modules()}

    def fail(*_, **__):
        raise RuntimeError("no")

    monkeypatch.setattr(module, "sample", fail)
    with pytest.raises(RuntimeError):
        grid.draw(1)
    assert {name: part.training for name, part in model.named_modules()} == flags
    assert not (tmp_path / "samples" / "0000000001.png").exists()


def test_the_vae_is_loaded_for_drawing_only(bundle, records, tmp_path, monkeypatch):
    loaded = []
    original = module.load_bundle

    def noted(path, device, dtype, components):
        loaded.append(list(components))
        return original(path, device, dtype, components)

    monkeypatch.setattr(module, "load_bundle", noted)
    grid = make_grid(bundle, records, tmp_path)
    assert not loaded
    grid.draw(1)
    assert loaded == [["vae"]]
    assert not any(isinstance(value, torch.nn.Module) for value in vars(grid).values())


def test_digest_is_of_the_encoders_too(bundle, records, tmp_path):
    make_grid(bundle, records, tmp_path)
    path = tmp_path / "samples" / "inputs.safetensors"
    before = path.stat().st_ino
    make_grid(bundle, records, tmp_path)
    assert path.stat().st_ino == before
    other = make_toy_bundle(tmp_path / "other", seed=1)
    make_grid(other, records, tmp_path)
    assert path.stat().st_ino != before

"""What limits the miniature: the linear probe, noising and denoising, and the whole measurement on a tiny model."""

import json

import numpy as np
import pytest
import torch
from research.reproduction import limits
from research.reproduction.denoise import denoise, times_from
from research.reproduction.parts import HAIR_COLOUR, others, with_part_of_another
from research.reproduction.probe import choose_probe, pictures_to_fit, ridge
from tests.toy import make_toy_bundle, toy_face_controlnet

from feedface.common.errors import UserError
from feedface.diffusion.state import take
from feedface.evaluation.cases import FIRST_IDENTITY, GALLERY, WORLD_SEED, make_cases
from feedface.evaluation.inspector import Inspector
from feedface.synthetic.world import ATTRIBUTES, make_portraits
from feedface.synthetic.world.identity import sample_identities

PEOPLE = 2


@pytest.fixture(scope="module")
def inspector():
    torch.manual_seed(0)
    return Inspector({name: len(classes) for name, classes in ATTRIBUTES.items()}, width=8).eval()


# ----------------------------------------------------------------------------------------------------------- the parts


def test_people_with_a_part_of_somebody_else():
    cases = make_cases(4, 1, 2, 64)
    own = cases.pictures.reshape(-1, 64, 64, 3)
    np.testing.assert_array_equal(with_part_of_another(cases, (), limits.PICTURES), own)
    change = np.abs(with_part_of_another(cases, HAIR_COLOUR, limits.PICTURES).astype(int) - own).mean(axis=-1)
    assert (change.max(axis=(1, 2)) > 0).any() and (change == 0).mean() > 0.5  # hair and brows alone
    who = sample_identities(np.arange(40), WORLD_SEED)
    other = others(who, 0)
    assert sorted(other.tolist()) == list(range(40)) and (other != torch.arange(40)).all()
    assert torch.equal(who.gender[other], who.gender)


# ----------------------------------------------------------------------------------------------------------- the probe


def test_ridge_shrinks_a_slope_as_the_formula_says():
    x, y = torch.tensor([[-1.0], [0.0], [1.0]]), torch.tensor([[-3.0], [0.0], [3.0]])
    # sum xy / (sum x² + N penalty) = 6 / (2 + 3 penalty)
    slopes = [float(weight) for weight in ridge(x, y, [0.0, 1.0, 10.0])]
    assert slopes == pytest.approx([3.0, 6 / 5, 6 / 32])


def test_ridge_is_the_same_from_either_side():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(6, columns, generator=generator) for columns in (5, 2))
    padded = torch.cat([x, torch.zeros(6, 4)], dim=1)  # more columns than rows: the other system is solved
    tall, wide = ridge(x, y, [0.1])[0], ridge(padded, y, [0.1])[0]
    assert torch.allclose(wide[:5], tall, atol=1e-5)
    assert (wide[5:] == 0).all()


def test_the_probe_finds_people_where_the_features_hold_them():
    rng = np.random.default_rng(0)

    def people(count: int, pictures: int) -> tuple[torch.Tensor, np.ndarray]:
        """Features [count, pictures, 2, 8], of which the mean over tokens knows nothing, and embeddings [count, 4]."""
        who = rng.normal(size=(count, 4))
        who /= np.linalg.norm(who, axis=1, keepdims=True)
        noise = rng.normal(size=(count, pictures, 4))
        token = np.concatenate([np.repeat(who[:, None], pictures, axis=1) @ turn, noise], axis=-1)
        return torch.from_numpy(np.stack([token, -token], axis=2)).float(), who.astype(np.float32)

    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    states, who = people(200, 2)
    held_out, others = people(20, 3)
    gallery = np.repeat(others[:, None], 2, axis=1)
    targets = torch.from_numpy(np.repeat(who, 2, axis=0))
    probes, tried = choose_probe(states.flatten(0, 1), targets, held_out, gallery, penalties=(1e-3, 1.0))
    best = {row["pooling"]: row["held_out_nearest_identity"] for row in reversed(tried)}
    assert best["tokens"] == 1.0
    assert best["mean"] <= 0.1  # chance is 0.05

    unseen, new = people(20, 1)
    predicted = probes["tokens"].predict(unseen)
    assert predicted.shape == (20, 1, 4)
    assert np.allclose(np.linalg.norm(predicted, axis=-1), 1, atol=1e-5)
    assert (predicted[:, 0] * new).sum(axis=-1).min() > 0.99


def test_the_penalty_is_the_one_that_serves_people_not_fitted():
    generator = torch.Generator().manual_seed(1)
    # Five numbers hold the person, fifty are noise, the targets are rough, and people are hardly more than numbers.
    who = torch.nn.functional.normalize(torch.randn(90, 5, generator=generator), dim=1)
    states = torch.cat([3 * who, torch.randn(90, 50, generator=generator)], dim=1)[:, None]
    rough = who[:60] + 0.5 * torch.randn(60, 5, generator=generator)
    gallery = who[60:, None].numpy()
    probes, tried = choose_probe(states[:60], rough, states[60:, None], gallery, penalties=(1e-6, 0.3, 1e6))
    shares = {row["penalty"]: row["held_out_nearest_identity"] for row in tried if row["pooling"] == "tokens"}
    assert probes["tokens"].penalty == 0.3
    assert shares[0.3] > shares[1e-6]


def test_the_target_is_another_picture_of_the_person(inspector):
    net = toy_face_controlnet()
    states, targets = pictures_to_fit(net, inspector, 2, 2, 100, 64, torch.device("cpu"))
    assert len(states) == 4
    world = make_portraits([0, 0, 1, 1], [100, 101, 100, 101], WORLD_SEED, 64)
    seen = inspector.inspect(world.images).embedding
    assert np.allclose(targets, seen[[1, 0, 3, 2]], atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ the base


class Oracle:
    """A U-ViT that knows the clean picture, so that its noise is the true one."""

    uncond_modes = ("true_uncond",)

    def __init__(self, img: torch.Tensor, clip_img: torch.Tensor):
        from feedface.diffusion.schedule import alphas_cumprod

        self.clean, self.alpha_bar, self.times = (img, clip_img), alphas_cumprod(), []

    def conditions(self, prompt, latent_size):
        assert set(prompt) == {"text"}  # clean, and of the data type of inference

    def __call__(self, state, t, conditions, control, **rest):
        assert control is None
        self.times.append(int(t[0]))
        a = self.alpha_bar[int(t[0]) - 1]
        pairs = zip(state.items(), self.clean, strict=True)
        return {name: ((x - a.sqrt() * clean) / (1 - a).sqrt()).float() for (name, x), clean in pairs}


@pytest.mark.parametrize("level", [1, 200, 1000])
def test_a_perfect_base_gives_the_picture_back(level):
    img, clip_img = torch.randn(2, 4, 8, 8), torch.randn(2, 1, 16)
    uvit = Oracle(img, clip_img)
    clean = {"img": img, "clip_img": clip_img}
    back = denoise(uvit, clean, {"text": torch.zeros(2, 3, 8)}, level, steps=10, seeds=[0, 1])
    assert torch.allclose(back["img"], img, atol=1e-3)
    assert uvit.times[0] == level and uvit.times[-1] == 1


def test_noise_depends_on_the_seed_alone_and_grows_with_the_level():
    img, clip_img = torch.zeros(2, 4, 8, 8), torch.zeros(2, 1, 16)
    seen = {}

    class Lazy:
        """Says that there is no noise: what went in comes out, scaled."""

        uncond_modes = ("true_uncond",)

        def conditions(self, *rest):
            return None

        def __call__(self, state, *rest, **options):
            seen.setdefault(len(state["img"]), state["img"].clone())
            return {name: torch.zeros_like(value) for name, value in state.items()}

    clean, prompt = {"img": img, "clip_img": clip_img}, {"text": torch.zeros(2, 3, 8)}
    spread = []
    for level in (100, 500, 900):
        seen.clear()
        denoise(Lazy(), clean, prompt, level, 2, [5, 6])
        denoise(Lazy(), *(take(rows, slice(1, 2)) for rows in (clean, prompt)), level, 2, [6])
        assert torch.equal(seen[2][1:], seen[1])
        spread.append(float(seen[2].std()))
    assert spread == sorted(spread)


def test_steps_are_as_dense_from_any_level():
    full = times_from(1000, 20)
    assert (len(full), full[0], full[-1]) == (20, 1000, 1)
    half = times_from(400, 20)
    assert half[0] == 400 and half[-1] == 1
    assert abs(len(half) - sum(time <= 400 for time in full)) <= 1
    assert times_from(1, 20) == times_from(1, 1) == [1]


# ------------------------------------------------------------------------------------------------------------ together


def test_people_are_those_of_the_evaluation_where_the_numbers_are():
    expected = make_cases(2, references=2, samples=1, size=64)
    found = limits.portrait_cases(FIRST_IDENTITY, 2, range(GALLERY), range(100, 102), [200], 64)
    for name in ("references", "boxes", "gallery", "pictures"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    assert found.prompts == expected.prompts


def test_the_whole_measurement_also_when_it_is_stopped(inspector, tmp_path, monkeypatch, capsys):
    model = make_toy_bundle(tmp_path / "model")
    inspector.save_pretrained(tmp_path / "judge")
    monkeypatch.setattr(limits, "LEVELS", (500,))
    out = tmp_path / "limits.json"
    arguments = f"limits --model {model} --inspector {tmp_path / 'judge'} --out {out} --people {PEOPLE} --references 2"
    arguments += " --training_people 2 --held_out_people 2 --steps 2 --device cpu --detector opencv"
    monkeypatch.setattr("sys.argv", arguments.split())
    limits.main()
    result = json.loads(out.read_text())

    parts_of_the_model = ["real pictures", "through the VAE", "noised to 500, denoised"]
    drawn = ["1 reference", "2 references"]
    rows = result["rows"]
    assert list(rows[limits.JUDGED]) == list(limits.PARTS)
    assert list(rows[limits.UNSEEN]) == [
        *parts_of_the_model, "0 references", *drawn, "1 reference, detector's crop",
    ]  # fmt: skip
    assert list(rows[limits.TRAINED_PEOPLE]) == ["real pictures", "through the VAE", *drawn]
    assert list(rows[limits.TRAINED_PICTURES]) == parts_of_the_model
    # The inspector and two probes, these with two kinds of crops, each with one and with two pictures.
    assert len(rows[limits.REFERENCES]) == 2 * (1 + 2 * 2)
    figures = [figure for group in rows.values() for row in group.values() for figure in row.values()]
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in figures)
    assert all("attribute_all" in row for row in rows[limits.UNSEEN].values())
    assert result["finished"] and result["settings"]["steps"] == 2
    assert set(result["probe"]["penalty"]) == {"tokens", "mean"}

    printed = capsys.readouterr().out
    value = rows[limits.UNSEEN]["through the VAE"]["similarity_to_another_picture"]["value"]
    line = next(line for line in printed.splitlines() if line.startswith("| through the VAE"))
    assert f"{value:z.2f} [" in line

    # Stopped before two rows were there: the same figures come out, and what was there is taken.
    part = out.with_name("limits.json.part")
    assert not part.exists()
    stopped = json.loads(out.read_text()) | {"finished": False}
    del stopped["rows"][limits.UNSEEN]["1 reference"]
    del stopped["rows"][limits.TRAINED_PICTURES]["noised to 500, denoised"]
    stopped["rows"][limits.UNSEEN]["2 references"]["nearest_identity"]["value"] = -1.0
    part.write_text(json.dumps(stopped))
    out.unlink()
    limits.main()
    assert not part.exists()
    again = json.loads(out.read_text())
    assert again["rows"][limits.UNSEEN]["2 references"]["nearest_identity"]["value"] == -1.0
    again["rows"][limits.UNSEEN]["2 references"] = rows[limits.UNSEEN]["2 references"]
    assert again["rows"] == rows
    assert again["seconds"]["in all"] > result["seconds"]["in all"]

    # With another judge it is another measurement.
    same = {name: again[name] for name in ("model", "inspector", "settings", "cases")}
    assert limits.read_known(out, same) is not None
    assert limits.read_known(out, same | {"inspector": "elsewhere"}) is None


@pytest.mark.parametrize(
    "arguments",
    ["--people 1", "--people 20 --training_people 10", "--samples 6", "--training_pictures 1", "--references 0"],
)
def test_numbers_out_of_range_are_user_errors(arguments):
    with pytest.raises(UserError, match="out of range"):
        limits.parse(["--out", "x.json", *arguments.split()])


def test_a_folder_is_no_file_to_write(tmp_path):
    with pytest.raises(UserError, match="JSON file"):
        limits.parse(["--out", str(tmp_path)])

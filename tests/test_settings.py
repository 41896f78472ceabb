"""Where sampling settings come from: options, presets, config files, models; few-step adapters; fingerprints."""

import subprocess
import sys
from dataclasses import asdict, fields

import pytest

from feedface.checkpoints.few_step import FewStep
from feedface.common.errors import UserError
from feedface.settings import COST_KNOBS, EVERYWHERE, PLAIN, PRESET_NAMES, PRESETS, Settings

DEFAULTS = {"guidance": 4.0, "face_scale": 1.0, "uncond": "true_uncond"}  # a model's
ADAPTER = FewStep(timesteps=(999, 700, 400, 100), guidance=4.0, face_scale=0.9, uncond="true_uncond")


def complete(settings, adapter=None, **defaults):
    return settings.for_model(DEFAULTS | defaults, 64, 16, adapter)


def test_presets_fix_all_of_the_cost_and_nothing_else():
    assert tuple(PRESETS) == PRESET_NAMES
    for preset in PRESETS.values():
        assert {key for key, value in asdict(preset).items() if value is not None} == set(COST_KNOBS)


@pytest.mark.parametrize(
    ("options", "config", "defaults", "steps"),
    [
        ({"steps": 7, "preset": "fast"}, {"steps": 8}, {"steps": 9}, 7),
        ({"steps": 7}, {"preset": "fast"}, {"steps": 9}, 7),
        ({"preset": "quality"}, {"steps": 8, "preset": "fast"}, {"steps": 9}, PRESETS["quality"].steps),
        ({}, {"steps": 8, "preset": "quality"}, {"steps": 9}, 8),
        ({}, {"preset": "quality"}, {"steps": 9, "preset": "fast"}, PRESETS["quality"].steps),
        ({}, {}, {"steps": 9, "preset": "quality"}, 9),
        ({}, {"preset": "quality"}, {"preset": "fast"}, PRESETS["quality"].steps),
        ({}, {}, {"preset": "quality"}, PRESETS["quality"].steps),
        ({}, {}, {}, PRESETS["balanced"].steps),
    ],
)
def test_what_comes_first(options, config, defaults, steps):
    full = complete(Settings(**options).over(Settings(**config)), **defaults)
    assert full.steps == steps
    given = [entry["preset"] for entry in (options, config, defaults) if "preset" in entry]
    assert full.preset == (given[0] if given else "balanced")
    assert full.guidance_interval == PRESETS[full.preset].guidance_interval


def test_a_preset_leaves_guidance_face_and_size_to_the_model():
    full = complete(Settings(preset="fast").over(Settings(guidance=3.0, size=(32, 32))), uncond="paper")
    assert (full.guidance, full.face_scale, full.size, full.uncond) == (3.0, 1.0, (32, 32), "paper")


@pytest.mark.parametrize("adapter", [None, ADAPTER])
@pytest.mark.parametrize("preset", [None, *PRESET_NAMES])
def test_complete_settings_stay_as_they_are(preset, adapter):
    full = complete(Settings(preset=preset), adapter)
    assert None not in [getattr(full, entry.name) for entry in fields(Settings)]
    assert complete(full, adapter) == full


def test_fast_uses_the_few_step_adapter():
    full = complete(Settings(preset="fast"), ADAPTER)
    assert full.few_step and full.steps == 4
    assert full.guidance_interval == full.face_interval == EVERYWHERE
    assert full.face_scale == 0.9 and complete(Settings(preset="fast", face_scale=0.5), ADAPTER).face_scale == 0.5
    assert not complete(Settings(preset="balanced"), ADAPTER).few_step
    without = complete(Settings(preset="fast"))
    assert not without.few_step and without.steps == PRESETS["fast"].steps


@pytest.mark.parametrize("asked", [{"steps": 6}, {"guidance": 2.0}, {"scheduler": "unipc"}, {"uncond": "paper"}])
def test_what_the_adapter_cannot_do_comes_before_it(asked):
    full = complete(Settings(preset="fast", **asked), ADAPTER)
    assert not full.few_step and all(getattr(full, key) == value for key, value in asked.items())
    with pytest.raises(UserError, match=f"--{next(iter(asked))} .*few-step adapter"):
        complete(Settings(few_step=True, **asked), ADAPTER)


@pytest.mark.parametrize(
    ("asked", "adapter", "preset", "steps"),
    [
        ({}, ADAPTER, "fast", 4),
        ({"face_scale": 0.5, "guidance": 4.0}, ADAPTER, "fast", 4),
        ({}, None, "balanced", 8),
        ({"guidance": 2.0}, ADAPTER, "balanced", 8),
        ({"negative_prompt": "a hat"}, ADAPTER, "balanced", 8),
        ({"steps": 6}, ADAPTER, "balanced", 6),
        ({"few_step": False}, ADAPTER, "balanced", 8),
        ({"preset": "fast", "guidance": 2.0}, ADAPTER, "fast", 5),
    ],
)
def test_a_models_own_few_steps_give_way_to_balanced(asked, adapter, preset, steps):
    wanted = Settings(**asked)
    full = complete(wanted, adapter, preset="fast")
    assert (full.preset, full.steps, full.few_step) == (preset, steps, preset == "fast" and "preset" not in asked)
    if "preset" not in asked:
        assert wanted.adapter_notice(full, adapter) is None


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"guidance": 2.0}, "--guidance 4, not --guidance 2"),
        ({"scheduler": "unipc"}, "--scheduler ddim, not --scheduler unipc"),
        ({"guidance_interval": (0, 500)}, "--guidance_interval 0 1000, not --guidance_interval 0 500"),
    ],
)
def test_an_adapter_that_is_left_out_is_said(asked, words):
    wanted = Settings(preset="fast", **asked)
    full = complete(wanted, ADAPTER)
    assert words in wanted.adapter_notice(full, ADAPTER) and "in 5 steps" in wanted.adapter_notice(full, ADAPTER)


@pytest.mark.parametrize(
    "asked", [{"preset": "fast"}, {"preset": "fast", "guidance": 4.0, "face_scale": 0.5}, {"guidance": 2.0}, {}]
)
def test_nothing_is_said_where_the_preset_is_drawn_as_asked(asked):
    assert Settings(**asked).adapter_notice(complete(Settings(**asked), ADAPTER), ADAPTER) is None


def test_a_preset_without_its_adapter_is_said():
    fast = Settings(preset="fast")
    assert "none for this model" in fast.adapter_notice(complete(fast), None)
    own = Settings(preset="fast", few_step=False)  # asked for
    assert own.adapter_notice(complete(own, ADAPTER), ADAPTER) is None
    assert fast.adapter_notice(complete(fast, ADAPTER, few_step=False), ADAPTER) is None  # the model's own choice


def test_an_adapter_that_is_not_there():
    with pytest.raises(UserError, match="no few-step adapter"):
        complete(Settings(few_step=True))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"preset": "best"}, "quality, balanced, fast"),
        ({"scheduler": "euler"}, "--scheduler 'euler': use one of dpmsolver"),
        ({"reuse": 0}, "--reuse 0"),
        ({"reuse": 1.5}, "not a whole number"),
        ({"guidance_interval": (800, 100)}, "--guidance_interval 800 100"),
        ({"guidance_interval": (0, 1001)}, "out of range"),
        ({"face_interval": (100,)}, "two timesteps"),
        ({"face_interval": ("a", "b")}, "out of range"),
        ({"face_interval": 5}, "two timesteps"),
        ({"few_step": 1}, "true or false"),
        ({"pag_scale": 10.5}, "--pag_scale 10.5: out of range"),
        ({"pag_interval": (900, 500)}, "--pag_interval 900 500"),
    ],
)
def test_wrong_ones_are_named(setting, message):
    with pytest.raises(UserError, match=message):
        Settings(**setting)


def test_an_interval_looks_the_same_wherever_it_comes_from():
    assert Settings(face_interval=[0, 800]) == Settings(face_interval=(0.0, 800.0))


def test_pictures_from_before_there_were_presets_keep_their_fingerprints():
    full = complete(Settings(steps=20).over(PLAIN))
    before = {"steps": 20, "guidance": 4.0, "face_scale": 1.0, "size": (64, 64), "uncond": "true_uncond"}
    assert full.drawn() == before
    named = Settings(steps=20, scheduler="dpmsolver++", preset="quality")
    assert complete(named).drawn() == before  # the preset's name changes no picture


@pytest.mark.parametrize(
    "change",
    [{"scheduler": "unipc"}, {"guidance_interval": (0, 800)}, {"face_interval": (0, 800)}, {"reuse": 2}],
)
def test_what_changes_pictures_changes_fingerprints(change):
    plain = complete(PLAIN)
    assert complete(Settings(**change).over(PLAIN)).drawn() == plain.drawn() | change


def test_few_steps_change_fingerprints():
    full = complete(Settings(preset="fast"), ADAPTER)
    assert full.drawn()["few_step"] is True


def test_what_the_backbone_cannot_do_is_refused():
    def on(settings, **can):
        return settings.for_model(DEFAULTS | {"uncond": "empty_token"}, 64, 16, None, ("empty_token",), **can)

    assert on(Settings(reuse=1), reusable=False).reuse == 1
    with pytest.raises(UserError, match="--reuse 2: this model's backbone has no deep blocks"):
        on(Settings(reuse=2), reusable=False)
    with pytest.raises(UserError, match="--uncond paper: this model's backbone has empty_token"):
        on(Settings(uncond="paper"))


def test_negative_prompts():
    full = complete(Settings(negative_prompt="a hat"))
    assert full.uncond == "empty_token" and complete(full) == full
    assert complete(Settings(negative_prompt="a hat", uncond="paper")).uncond == "paper"
    assert full.drawn()["negative_prompt"] == "a hat" and "negative_prompt" not in complete(Settings()).drawn()
    with pytest.raises(UserError, match="with --uncond true_uncond; leave that out, or take --uncond empty_token"):
        complete(Settings(negative_prompt="a hat", uncond="true_uncond"))
    # The few-step adapter has an empty one built in.
    asked = Settings(preset="fast", negative_prompt="a hat")
    full = complete(asked, ADAPTER)
    assert not full.few_step and "drawn without the few-step adapter" in asked.adapter_notice(full, ADAPTER)
    with pytest.raises(UserError, match="--negative_prompt: a prompt is text, not int"):
        Settings(negative_prompt=5)


def test_a_model_whose_own_size_does_not_fit_it():
    with pytest.raises(UserError, match=r"^the model's image_size is 63, which is no multiple of 8"):
        Settings().for_model({"guidance": 3.0, "face_scale": 0.8, "uncond": "paper"}, 63, 8)


def test_presets_are_plain_data_without_torch():
    code = "import sys, feedface.settings; assert feedface.settings.PRESETS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("box", [(0, 0, 1), (0, 0, 2, 1), (0, 0.5, 1, 0.5), (float("nan"), 0, 1, 1), "abcd"])
def test_what_is_no_face_box(box):
    with pytest.raises(UserError, match=r"^--face_box "):
        Settings(face_box=box)

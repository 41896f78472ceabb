"""The reproduction's page and verdicts, from made-up results whose truth is known; its plan; one real measurement."""

import json
import re
import subprocess

import numpy as np
import pytest
from configs import reproduction
from ml_collections import ConfigDict
from research.reproduction import __main__ as command
from research.reproduction import plan, runs
from research.reproduction.measure import Measurer, measure_all, result_file
from research.reproduction.page import write_page
from research.results import NO, OPEN, YES, Check, ResultStore, as_recorded

from feedface.common.errors import UserError
from feedface.evaluation.metrics import Figure

PEOPLE = 30


def result(identity, attributes=6, background=0.02, parameters=2_000_000, seed=0):
    """Identity and background differ between people, by a lot and the same way in every result."""
    person = np.random.default_rng(seed).normal(0, 0.1, PEOPLE)
    people = {
        "nearest": [1.0, 0.0] * (PEOPLE // 2),
        "other": list(identity + person),
        "reference": list(identity + person),
        "background_pixels": list(background + 0.01 * person),
        "background_clip": [0.1] * PEOPLE,
        "attributes_shown": [attributes] * PEOPLE,
        "attributes_asked": [10] * PEOPLE,
    }
    return {"people": people, "parameters": parameters, "measurement": {}, "seconds": 3.0, "model": "abc"}


@pytest.fixture
def config():
    return reproduction.get_config()


@pytest.fixture
def folder(tmp_path, config):
    """Results in which every trained model is alike but for what the tests change."""
    folder = tmp_path / "results"
    folder.mkdir()
    for one in (*plan.committed(), *plan.trained(config)):
        (folder / f"{one.name}.json").write_text(json.dumps(result(0.2)))
    return folder


def change(folder, name, **values):
    (folder / f"{name}.json").write_text(json.dumps(result(**values)))


def test_verdicts_follow_from_the_intervals():
    assert Check.of("", Figure(0.2, 0.1, 0.3)).holds == YES
    assert Check.of("", Figure(-0.2, -0.3, -0.1)).holds == NO
    assert Check.of("", Figure(0.2, -0.1, 0.3)).holds == OPEN


def test_differences_are_paired(folder):
    """0.01 between settings shows although people differ by 0.1."""
    change(folder, plan.DEFAULT, identity=0.21)
    results = ResultStore([folder])
    figure = results.difference(plan.DEFAULT, plan.pooled(4, "concat"), "other")
    assert figure.value == pytest.approx(0.01) and figure.high - figure.low < 1e-6
    alone = results.figure(plan.DEFAULT, "other")
    assert alone.high - alone.low > 0.05


def test_people_without_a_background_are_left_out_of_it(folder):
    values = result(0.2)
    values["people"]["background_pixels"] = [None, 0.5] + [0.1] * (PEOPLE - 2)
    (folder / f"{plan.DEFAULT}.json").write_text(json.dumps(values))
    results = ResultStore([folder])
    assert results.figure(plan.DEFAULT, "background_pixels").value == pytest.approx((0.5 + 0.1 * 28) / 29)
    other = result(0.2)["people"]["background_pixels"]
    expected = np.mean([0.5 - other[1], *(0.1 - value for value in other[2:])])
    assert results.difference(plan.DEFAULT, plan.BASE, "background_pixels").value == pytest.approx(expected)


def lines_of(page, start):
    return [line for line in page.splitlines() if line.startswith(f"| {start}")]


def test_the_page_says_which_claims_hold(folder, config, tmp_path):
    last = config.train.measured_at[-1]
    for seed in config.train.seeds:
        change(folder, plan.at(f"mask-seed{seed}", last), identity=0.2, background=0.05)
        change(folder, plan.at(f"standard-seed{seed}", last), identity=0.25, background=0.01)
    change(folder, plan.pooled(4, "concat"), identity=0.3)
    page = write_page(ResultStore([folder]), config, tmp_path / "out", ["A note."]).read_text()
    assert "A note." in page
    assert lines_of(page, "the mask loss changes the background more")[0].endswith("**yes** |")
    assert lines_of(page, "the standard loss does too")[0].endswith("**no** |")
    assert lines_of(page, "four pictures give more identity than one")[0].endswith("**yes** |")
    assert lines_of(page, "five give more than four")[0].endswith("**no** |")
    assert "| sites: all | 2.00 M |" in page
    assert re.search(r"\| mask, 8192 samples \| 0\.\d+ .*\| 12\.\d\d \[", page)  # 0.05 of 1 is 12.75 of 255
    assert "Not measured: " in page and "dreambooth.json: missing" in page
    for name in ("losses_identity", "losses_background", "references", "trade", "sites", "samples_seen", "people"):
        assert (tmp_path / "out" / "reproduction" / f"{name}.png").stat().st_size > 5_000


def test_a_missing_result_is_named(folder, config, tmp_path, capsys):
    (folder / f"{plan.pooled(3, 'mean')}.json").unlink()
    page = write_page(ResultStore([folder]), config, tmp_path / "out", []).read_text()
    assert "references-3-mean.json: missing" in page
    assert "## 3." in page and "references-3-mean.json" in capsys.readouterr().out


def test_fresh_results_come_before_kept_ones(folder, tmp_path):
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    change(fresh, plan.DEFAULT, identity=0.9)
    results = ResultStore([fresh, folder])
    assert results.figure(plan.DEFAULT, "other").value > 0.8 > results.figure(plan.BASE, "other").value


def test_each_measured_checkpoint_belongs_to_a_run_that_keeps_it(config, tmp_path):
    names = {run.name for run in plan.all_runs(config)}
    every = config.train.measured_at[0] // config.train.batch_size
    for one in plan.trained(config):
        assert one.run in names
        step = int(plan.folder_of(one, config, tmp_path).name)
        assert step % every == 0 and step <= config.train.samples // config.train.batch_size
    names = [one.name for one in (*plan.committed(), *plan.trained(config))]
    assert len(set(names)) == len(names)


def test_a_recorded_command_names_no_place_of_a_machine():
    given = ["--model", "models/mini", "--out", "/home/me/x.json", "--people=24"]
    assert as_recorded("research.x", given) == "python -m research.x --model models/mini --people=24"
    assert as_recorded("research.x", ["--out=/home/me/x.json", "--outer", "1"]) == "python -m research.x --outer 1"


def test_the_sweeps_share_the_default_settings():
    from feedface.checkpoints.bundle import read_index

    defaults = read_index("models/mini").defaults
    assert {name: defaults[name] for name in plan.DEFAULTS} == plan.DEFAULTS
    assert plan.swept("face_scale", 1.25) == plan.swept("guidance", 4.0) == plan.pooled(1, "mean") == plan.DEFAULT


def test_world_and_the_records_of_fewer_people(tmp_path, config, monkeypatch):
    monkeypatch.setattr(runs, "FEWER_PEOPLE", (2,))
    config.world.update(identities=3, per_identity=2)
    runs.make_world(config, tmp_path, 32)
    records = [json.loads(line) for line in runs.records_file(tmp_path, 2).read_text().splitlines()]
    assert len(records) == 4 and len({record["identity"] for record in records}) == 2


def test_each_run_differs_from_the_first_in_one_setting(tmp_path, config, monkeypatch):
    commands = {}

    def note(command, **how):
        flags = dict(flag.removeprefix("--config.").split("=", 1) for flag in command[3:])
        commands[flags.pop("--workdir")] = flags
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(runs.subprocess, "run", note)
    first, *others = plan.all_runs(config)
    for run in (first, *others):
        runs.train(run, config, tmp_path)
    like, *changed = commands.values()
    expected = {"control.sites", "control.control_input", "data.records", "loss.kind", "loss.min_snr", "seed"}
    found = [{name for name in like if flags[name] != like[name]} - {"cache.dir"} for flags in changed]
    assert set().union(*found) == expected
    # A second seed's runs differ in the loss too, but for the one of the first loss.
    assert all(len(names - {"seed"}) == 1 for names in found if names != {"seed"})
    assert like["loss.min_snr"] == "0.02" and commands[str(tmp_path / "runs" / plan.ALIKE)]["loss.min_snr"] == "0.0"


def test_two_people_are_measured_for_real_and_once(tmp_path, config):
    config.measure.update(people=3, samples_per_person=1, references=2, steps=2)
    wanted = [(one, None) for one in plan.committed() if one.name in (plan.DEFAULT, plan.BASE)]
    measure_all(wanted, config, tmp_path)
    one = json.loads(result_file(tmp_path, plan.DEFAULT).read_text())
    people = one["people"]
    assert {len(values) for values in people.values()} == {3}
    assert one["settings"]["steps"] == 2 and one["parameters"] == 3_239_808
    assert all(-1 <= value <= 1 for value in people["other"]) and "background_pixels" in people
    assert "background_pixels" not in json.loads(result_file(tmp_path, plan.BASE).read_text())["people"]
    before = result_file(tmp_path, plan.DEFAULT).stat().st_mtime_ns
    measure_all(wanted, config, tmp_path)
    assert result_file(tmp_path, plan.DEFAULT).stat().st_mtime_ns == before


def test_the_judge_knows_real_pictures_of_the_people(tmp_path, config):
    """The other pictures themselves are nearest to their people, and show what the prompts say."""
    config.measure.update(people=10, samples_per_person=1, references=1)
    measurer = Measurer(config)
    found = measurer.judge(measurer.cases.pictures, shown=1)
    assert found["nearest"].mean() > 0.8 and found["other"].mean() > 0.3 > abs(found["strangers"].mean())
    swapped = measurer.judge(measurer.cases.pictures[::-1], shown=1)
    assert swapped["nearest"].mean() < 0.2 and abs(swapped["other"].mean()) < 0.2


@pytest.mark.parametrize("share", ["2/2", "a/2", "1", "0/0"])
def test_a_bad_share_is_one_line(share, monkeypatch):
    monkeypatch.setattr("sys.argv", ["reproduction", "--stage", "train", "--share", share])
    with pytest.raises(UserError, match="not a share"):
        command.main()


def test_quick_measures_fewer_people_and_does_not_train(monkeypatch):
    called = []
    monkeypatch.setattr(command, "run_stage", lambda stage, config, *rest: called.append((stage, config)))
    monkeypatch.setattr("sys.argv", ["reproduction", "--quick"])
    command.main()
    assert [stage for stage, _ in called] == ["measure", "page"]
    assert called[0][1].measure.people < reproduction.get_config().measure.people
    monkeypatch.setattr("sys.argv", ["reproduction", "--quick", "--stage", "train"])
    with pytest.raises(UserError, match="--quick has no stage train"):
        command.main()


def test_an_unknown_setting_is_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["reproduction", "--stage", "page", "--config.nonsense=1"])
    with pytest.raises(UserError, match=r"configs/reproduction\.py"):
        command.main()


def test_the_config_is_read_by_preset():
    assert isinstance(reproduction.get_config("quick"), ConfigDict)

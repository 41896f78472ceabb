"""evaluate.py from end to end: the paper's protocol on rendered portraits, judged by the mini pack; bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy import make_toy_bundle

from feedface.common.errors import UserError
from feedface.evaluation.cli import main, parse
from feedface.evaluation.systems import gather_systems, name_systems, read_systems
from feedface.settings import Settings
from feedface.synthetic.world import make_portraits

ROOT = Path(__file__).parents[1]
MINI = ROOT / "models" / "mini"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The toy model with the mini world's face models and parser."""
    folder = make_toy_bundle(tmp_path_factory.mktemp("toy") / "toy")
    index = json.loads((folder / "model_index.json").read_text())
    for part in ("faces", "parser"):
        shutil.copytree(MINI / part, folder / part)
        index["extras"][part] = part
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two people with three portraits each in data/, a wall without a face, and their job files in cases/."""
    folder = tmp_path_factory.mktemp("world")
    pictures = make_portraits(np.repeat([30_100, 30_101], 3), np.tile(range(3), 2), 0, 64).images
    (folder / "data").mkdir()
    (folder / "cases").mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"data/{number}.png")
    Image.fromarray(np.full((64, 64, 3), 120, np.uint8)).save(folder / "data/wall.png")
    write_case(folder, "ann", ["0.png", "wall.png", "1.png", "2.png"])
    write_case(folder, "bob", ["3.png", "4.png"], ["a man", "a man on a beach"], seed=5, size=64, clas_word="man")
    return folder


def write_case(world, name, pictures, prompts=("a woman",), **more):
    job = {"id": name, "caption_list": list(prompts), "source_group": [{"path": path} for path in pictures], **more}
    (world / f"cases/{name}.json").write_text(json.dumps(job))


@pytest.fixture
def evaluate(world, toy, tmp_path):
    def evaluate(*options, out=tmp_path / "out", model=toy):
        arguments = ["--protocol", "ppr10k", "--data", world / "data", "--cases", world / "cases", "--judge", "mini"]
        arguments += ["--model", model] if model else []
        arguments += ["--out", out, "--references", 2, "--base_images", 1, "--device", "cpu"]
        code = main([*map(str, arguments), *map(str, options)])
        rows = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
        return code, json.loads((out / "scores.json").read_text()), rows

    return evaluate


def test_the_papers_protocol(evaluate, tmp_path, capsys):
    code, scores, rows = evaluate()
    assert code == 0
    assert [(row["case"], row["prompt"]) for row in rows] == [("ann", 0), ("bob", 0), ("bob", 1)]
    assert len({row["seed"] for row in rows}) == 3
    ann, bob = (scores["cases"]["people"][name] for name in ("ann", "bob"))
    assert len(ann["references"]) == len(bob["references"]) == 2 and (ann["others"], bob["others"]) == (1, 0)
    assert "wall.png: no face found, left out" in ann["notices"][0] and "wall.png" in capsys.readouterr().err
    unused, alike = bob["notices"]
    assert "clas_word: not used; is class_word meant?" in unused and "seed, size: not used; an evaluation" in alike
    system = scores["systems"]["toy"]
    assert system["settings"]["steps"] == 3 and system["model"]["digest"] and system["seconds"] > 0
    assert scores["judge"]["face"] == "mini" and scores["command"].startswith("python evaluate.py --protocol ppr10k")
    assert system["not_measured"]["image_reward"] and system["normalised"]["overall"] is None
    out = tmp_path / "out"
    for name in ("report.html", "table.md", "table.tex", "sheet.png", "face_against_text.png", ann["references"][0]):
        assert (out / name).stat().st_size > 0

    picture = out / rows[0]["file"]
    before, drawn = (out / "scores.jsonl").read_text(), np.asarray(Image.open(picture)).astype(int)
    picture.unlink()
    code, _, rows_again = evaluate()
    assert [without_time(row) for row in rows_again] == [without_time(row) for row in rows]
    # Drawn alone now, in a batch before: the same but for rounding.
    assert abs(np.asarray(Image.open(picture)).astype(int) - drawn).max() <= 1 and code == 0
    assert (out / "scores.jsonl").read_text().splitlines()[1:] == before.splitlines()[1:]


def without_time(row):
    return {key: value for key, value in row.items() if key not in ("seconds", "peak_memory_mib")}


def test_systems_are_drawn_with_the_same_seeds_and_share_their_base(evaluate, toy, tmp_path):
    systems = tmp_path / "systems.json"
    entries = [{"name": "two", "model": str(toy)}, {"name": "none", "model": str(toy), "references": 0},
               {"name": "weak", "model": str(toy), "settings": {"face_scale": 0.1, "steps": 2}}]  # fmt: skip
    systems.write_text(json.dumps(entries))
    _, scores, rows = evaluate("--systems", systems, model=None)
    assert list(scores["systems"]) == ["two", "none", "weak"]
    assert set(scores["comparisons"]) == {"none - two", "weak - two"}
    seeds = [[row["seed"] for row in rows if row["system"] == name] for name in ("two", "none", "weak")]
    assert seeds[0] == seeds[1] == seeds[2]
    bases = sorted((tmp_path / "out/base").iterdir())
    assert len(bases) == 2  # other steps, another base
    pictures = tmp_path / "out/pictures"
    twin = next(base / "ann/000_000.png" for base in bases if (base / "ann/scores.json").is_file())
    assert Image.open(pictures / "none/ann/000_000.png").tobytes() == Image.open(twin).tobytes()
    assert Image.open(pictures / "two/ann/000_000.png").tobytes() != Image.open(twin).tobytes()


def test_bad_cases_are_named_and_the_others_go_on(evaluate, world, capsys):
    write_case(world, "dora", ["wall.png"])
    write_case(world, "emil", [])
    write_case(world, "fay", ["0.png"], [])
    write_case(world, "gus", ["gone.png"])
    try:
        code, scores, _ = evaluate()
    finally:
        for name in ("dora", "emil", "fay", "gus"):
            (world / f"cases/{name}.json").unlink()
    assert code == 2 and list(scores["cases"]["people"]) == ["ann", "bob"]
    errors = capsys.readouterr().err
    assert "case dora: no face found in any of its 1 pictures (judge 'mini'): wall.png" in errors
    assert "emil.json:1: source_group: empty" in errors and "fay.json:1: caption_list: empty" in errors
    assert "gus.json:1: source_group[0].path: no such picture: gone.png" in errors and str(world / "data") in errors


BAD = {
    "--protocol ppr10k": "--cases is missing",
    "--protocol other --out x": "--protocol",
    "--protocol mini --cases x": "--cases does not go with --protocol mini",
    "--protocol ppr10k --cases x --identities 3": "--identities does not go with --protocol ppr10k",
    "--protocol mini --identities 1": "--identities 1: out of range",
    "--protocol mini --samples_per_identity 0": "--samples_per_identity 0: out of range",
    "--protocol mini --samples 0": "--samples 0: out of range",
    "--protocol mini --references -1": "--references -1: out of range",
    "--protocol mini --batch_size 0": "--batch_size 0: out of range",
    "--protocol mini --seed -1": "--seed -1: out of range",
    "--protocol mini --steps 0": "--steps 0: out of range",
    "--protocol mini --base_images -1": "--base_images -1: out of range",
    "--protocol mini --systems x --model y": "--systems names its own models",
    "--protocol mini --model a/x --unknown": "unrecognized arguments: --unknown",
}


@pytest.mark.parametrize("arguments", BAD)
def test_a_wrong_command_line(arguments):
    with pytest.raises(UserError, match=BAD[arguments].replace("[", r"\[")):
        parse(arguments.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "not a list of systems"),
        ("[]", "not a list of systems"),
        ('[\n{"model": "m"}]', "systems.json:2: name: missing"),
        ('[{"name": "a", "model": "m", "stepps": 3}]', "unknown key 'stepps'"),
        ('[{"name": "a", "model": "m", "settings": {"stepps": 3}}]', "settings: unknown key 'stepps'"),
        ('[{"name": "a", "model": "m", "settings": {"steps": 0}}]', "out of range"),
        ('[{"name": "a", "model": "m", "pool": "sum"}]', "pool: must be 'concat', 'mean' or 'first', not 'sum'"),
        ('[{"name": "a", "model": "m", "references": true}]', "whole number"),
        ('[{"name": "a", "model": "m"}, {"name": "a", "model": "n"}]', "used twice"),
        (
            '[{"name": "a", "model": "m", "method": "feedface+adaface"}]',
            "systems.json:1: --method feedface.adaface: give one",
        ),
        ("[", "systems.json:1"),
    ],
)
def test_wrong_systems(tmp_path, text, message):
    file = tmp_path / "systems.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_systems(file, [4], Settings())


def test_names_say_what_differs():
    def names(models, counts):
        return [system.name for system in name_systems([Path(model) for model in models], counts, Settings(), None)]

    assert names(["models/mini"], [4]) == ["mini"]
    assert names(["models/mini"], [0, 1]) == ["0 references", "1 reference"]
    assert names(["a/x", "a/y"], [1]) == ["x", "y"]
    assert names(["a/x", "b/x"], [1]) == ["a/x", "b/x"]
    assert names(["a", "b"], [1, 4]) == ["a, 1 reference", "a, 4 references", "b, 1 reference", "b, 4 references"]
    with pytest.raises(UserError, match="twice"):
        names(["a", "a"], [1])


def test_systems_are_folders_and_files_in_their_order(tmp_path):
    file = tmp_path / "systems.json"
    file.write_text('[{"name": "weak", "model": "m", "settings": {"face_scale": 0.1}}]')

    def names(*paths, counts=(4,)):
        return [system.name for system in gather_systems(paths, counts, Settings())]

    a, b = tmp_path / "a", tmp_path / "b"
    assert names(a, file, b) == ["a", "weak", "b"]
    assert names(a, counts=(0, 1)) == ["0 references", "1 reference"]
    assert names(a, file, counts=(0, 1))[:3] == ["a, 0 references", "a, 1 reference", "weak, 0 references"]
    single = tmp_path / "sd15.safetensors"
    single.touch()
    assert names(a, single) == ["a", "sd15.safetensors"]
    with pytest.raises(UserError, match="--systems: the same folder twice"):
        names(a, a)
    with pytest.raises(UserError, match="'weak' is used twice"):
        names(tmp_path / "weak", file)


def test_systems_file_settings_come_before_the_command_lines(tmp_path):
    file = tmp_path / "systems.json"
    file.write_text('[{"name": "a", "model": "m", "settings": {"steps": 3, "size": [64, 32]}}]')
    (tmp_path / "m").mkdir()
    first, second = read_systems(file, [1, 4], Settings(steps=9, guidance=2.0))
    assert (first.name, second.name, first.references, second.references) == ("a, 1 reference", "a, 4 references", 1, 4)
    assert first.settings == Settings(steps=3, guidance=2.0, size=(64, 32)) and first.model == tmp_path / "m"


def test_missing_places_are_one_line(world, toy, tmp_path):
    common = [*map(str, ["--protocol", "ppr10k", "--out", tmp_path / "out", "--device", "cpu"])]
    cases = ["--cases", str(world / "cases")]
    with pytest.raises(UserError, match="nowhere: no such folder"):
        main([*common, *cases, "--data", "nowhere", "--model", str(toy), "--judge", "mini"])
    data = ["--data", str(world / "data")]
    with pytest.raises(UserError, match="nowhere: no such model folder"):
        main([*common, *cases, *data, "--model", "nowhere", "--judge", "mini"])
    with pytest.raises(UserError, match="no face model pack 'no_such_pack'"):
        main([*common, *cases, *data, "--model", str(toy), "--judge", "no_such_pack"])
    with pytest.raises(UserError, match=r"no \.json files"):
        main([*common, "--cases", str(world / "data"), *data, "--model", str(toy), "--judge", "mini"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        main([*common, *cases, *data, "--model", str(toy), "--judge", "mini", "--out", str(tmp_path / "file/x")])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(evaluate, world, toy, tmp_path):
    _, _, alone = evaluate("--batch_size", 1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "evaluate.py"), "--protocol", "ppr10k", "--data", str(world / "data")]
    command += ["--cases", str(world / "cases"), "--judge", "mini", "--model", str(toy), "--references", "2"]
    command += ["--base_images", "1", "--device", "cpu", "--batch_size", "1", "--out", str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "two/scores.jsonl").read_text().splitlines()]
    assert [without_time(row) for row in rows] == [without_time(row) for row in alone]

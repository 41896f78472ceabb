"""The benchmark's runner on a world of plain colours: a person is a colour, a face is a colour that is not grey."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feedface.common.errors import UserError
from feedface.common.processes import ProcessGroup
from feedface.evaluation.benchmark import BenchmarkPlan, run
from feedface.evaluation.generators import Base
from feedface.evaluation.judges import FaceFeatures
from feedface.evaluation.judging import Judges
from feedface.evaluation.pictures import SavedImage, picture_name, read_saved, save
from feedface.evaluation.protocols import Case
from feedface.faces.detect import Face
from feedface.inference.outputs import PictureInfo

RED, GREEN, GREY = (200, 0, 0), (0, 200, 0), (120, 120, 120)
BOTH = (200, 200, 0)  # cosine 0.707 with RED and with GREEN


def plain(colour):
    return np.full((16, 16, 3), colour, np.uint8)


class ColourJudge:
    name = "colours"

    def look(self, pictures):
        embeddings = np.array([picture.reshape(-1, 3).mean(axis=0) for picture in pictures], np.float32)
        found = np.ptp(embeddings, axis=1) > 0
        embeddings = np.where(found[:, None], embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), 0)
        box = np.array([2, 2, 14, 14], np.float32)
        return FaceFeatures(embeddings, found, [Face(box, 1.0) if there else None for there in found])


class RewardedBrightness:
    """A text score that can be worked out by hand: how red a picture is, in 0..1."""

    name = "redness"

    def score(self, prompts, pictures):
        return np.array([picture[..., 0].mean() / 200 for picture in pictures])


@dataclass
class People:
    """Cases: name -> (colours of the references, colours of other pictures)."""

    people: dict
    problems: list = field(default_factory=list)
    prompts: tuple = ("one", "two")

    @property
    def names(self):
        return list(self.people)

    def load(self, index, judge):
        name = self.names[index]
        own, others = ([plain(colour) for colour in colours] for colours in self.people[name])
        looks = judge.look(own)
        if not looks.found.any():
            raise UserError("no face found in any of its pictures")
        return Case(
            name, self.prompts, tuple(10 * number for number in range(len(self.prompts))), own, own,
            looks.embeddings, judge.look(others).embeddings if others else np.zeros((0, 3)), digest=str(own),
        )  # fmt: skip


class Painter:
    """Draws what `colour(case name, prompt, sample)` says; `base_colour` where no face is shown."""

    one_sample = False

    def __init__(self, cases, colour, base_colour=GREY, name="painter", drawn=None):
        self.name, self.cases, self.colour, self.base_colour = name, cases, colour, base_colour
        self.drawn = [] if drawn is None else drawn
        self.base = Base("base", self._base_info)

    def describe(self):
        return {"model": {"path": "painter", "name": self.name, "digest": self.name}, "settings": {"steps": 1}}

    def crops(self, case):
        return tuple(case.crops)

    def info(self, case, prompt, sample):
        return PictureInfo(case.prompts[prompt], case.seeds[prompt] + sample, self.name, "", {}, (case.name,))

    def _base_info(self, case, prompt, sample):
        return PictureInfo(case.prompts[prompt], case.seeds[prompt] + sample, "base", "", {}, ())

    def draw(self, requests):
        for request in requests:
            self.drawn.append(request.path)
            case = self.cases[request.case]
            colour = self.colour(case.name, request.prompt, request.sample) if request.crops else self.base_colour
            yield request, SavedImage(plain(colour), 0.5, 7.0)


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    monkeypatch.setattr("feedface.evaluation.report.write_report", lambda out: None)  # takes longer than all else here

    def evaluate(people, *painters, judges=None, **plan):
        generators = [lambda cases, one=one: Painter(cases, **one) for one in painters]
        plan = BenchmarkPlan(
            tmp_path / "out", **{"samples": 1, "base_images": 2, "about": {"protocol": "test"}, **plan}
        )
        code = run(people, generators, judges or Judges(ColourJudge()), plan, ProcessGroup())
        rows = [json.loads(line) for line in (tmp_path / "out/scores.jsonl").read_text().splitlines()]
        return code, json.loads((tmp_path / "out/scores.json").read_text()), rows

    evaluate.out = tmp_path / "out"
    return evaluate


TWO = {"a": ([RED, RED], [BOTH]), "b": ([GREEN], [GREEN])}


def own_colour(case, prompt, sample):
    return {"a": RED, "b": GREEN}[case]


def test_the_same_face_and_a_swapped_one(evaluate):
    swapped = {"colour": lambda case, *_: {"a": GREEN, "b": RED}[case], "name": "swapped"}
    code, scores, rows = evaluate(People(TWO), {"colour": own_colour}, swapped)
    assert code == 0 and len(rows) == 8
    same, other = (scores["systems"][name]["figures"] for name in ("painter", "swapped"))
    assert same["face_reference"]["value"] == pytest.approx(1) and other["face_reference"]["value"] == 0
    assert (same["nearest"]["value"], other["nearest"]["value"]) == (1, 0)
    assert same["face_other"]["value"] == pytest.approx((0.7071 + 1) / 2, abs=1e-3)
    assert same["face_strangers"]["value"] == pytest.approx((0 + 0.7071) / 2, abs=1e-3)
    a, b = (next(row for row in rows if row["case"] == name) for name in "ab")
    assert a["copy_paste"] == pytest.approx(1) and b["copy_paste"] == pytest.approx(0)
    difference = scores["comparisons"]["swapped - painter"]["face_reference"]
    assert difference["value"] == pytest.approx(-1) == difference["high"]
    assert same["seconds"]["value"] == 0.5 and scores["systems"]["painter"]["seconds"] == 2.0
    assert scores["systems"]["painter"]["peak_memory_mib"] == 7.0
    for row in rows:
        assert (evaluate.out / row["file"]).is_file()
    assert {row["seed"] for row in rows} == {0, 10}


def test_pictures_without_a_face_count(evaluate):
    _, scores, rows = evaluate(
        People(TWO), {"colour": lambda case, prompt, _: GREY if prompt else own_colour(case, 0, 0)}
    )
    system = scores["systems"]["painter"]
    assert system["detection_rate"]["value"] == 0.5
    assert system["figures"]["face_reference"]["value"] == pytest.approx(0.5)
    assert system["figures"]["nearest"]["value"] == 0.5
    lost = [row for row in rows if not row["face_found"]]
    assert len(lost) == 2
    for row in lost:
        assert (row["face_reference"], row["face_other"], row["nearest"], row["copy_paste"]) == (0, 0, False, None)


def test_normalised_as_worked_out_by_hand(evaluate):
    people = People({"a": ([RED, BOTH], []), "b": ([GREEN], [])})
    judges = Judges(ColourJudge(), reward=RewardedBrightness())
    painter = {"colour": lambda *_: (200, 100, 0), "base_colour": (150, 0, 150)}
    _, scores, rows = evaluate(people, painter, judges=judges, base_images=3)
    row = scores["systems"]["painter"]["normalised"]
    # Person a, face: references are 0.7071 alike; base pictures (1, 0, 1) / 1.414 have cosine 0.7071 with RED, 0.5 with
    # BOTH; the picture (2, 1, 0) / 2.236 has 0.8944 and 0.9487. Person b has one reference, so no maximum.
    low, high, face = (0.7071 + 0.5) / 2, 0.7071, (0.8944 + 0.9487) / 2
    assert row["face"]["value"] == pytest.approx((face - low) / (high - low), abs=2e-3)
    assert "1 of 2 cases cannot be normalised (b:" in row["left_out"]["face"]
    # Text: redness of the base 0.75, of a's references 1 (a maximum below its minimum), of b's 0, of the picture 1.
    assert row["text"]["value"] == pytest.approx((1 - 0) / (0.75 - 0), abs=1e-3)
    assert row["text_measure"] == "image_reward" and row["overall"] is None
    assert row["seconds"]["value"] == pytest.approx(2.0)
    assert scores["systems"]["painter"]["not_measured"]["face_other"] == "no case has pictures that are no references"
    assert len(list((evaluate.out / "base").rglob("*.png"))) == 2 * 2 * 3
    assert all(row["face_other"] is None and row["copy_paste"] is None for row in rows)


def test_what_is_there_is_kept_and_what_was_deleted_is_made_again(evaluate, monkeypatch):
    drawn = []
    painter = {"colour": own_colour, "drawn": drawn}
    _, scores, rows = evaluate(People(TWO), painter)
    assert len(drawn) == 4 + 2 * 4  # two base pictures a prompt
    files = {
        path: path.stat().st_mtime_ns for path in evaluate.out.rglob("[0-9]*.png") if "references" not in str(path)
    }
    drawn.clear()
    assert evaluate(People(TWO), painter)[1:] == (scores, rows) and not drawn

    lost = evaluate.out / rows[1]["file"]
    lost.unlink()
    (evaluate.out / rows[0]["file"]).write_bytes(b"\x89PNG cut off")
    assert evaluate(People(TWO), painter)[1:] == (scores, rows)
    assert sorted(drawn) == sorted([lost, evaluate.out / rows[0]["file"]])
    untouched = [path for path in files if path not in drawn]
    assert len(untouched) == 10 and all(path.stat().st_mtime_ns == files[path] for path in untouched)

    drawn.clear()
    monkeypatch.setattr("feedface.evaluation.benchmark.VERSION", 2)
    (evaluate.out / "scores.json").unlink()
    assert evaluate(People(TWO), painter)[1:] == (scores, rows) and not drawn


@pytest.mark.parametrize("content", ["", "[]", "[" * 10**5, '{"key": 5}', "rows: 5", "rows: [{}]", "diversity: []"])
def test_scores_of_a_case_that_are_not_whole_are_measured_again(evaluate, content):
    painter = {"colour": own_colour, "drawn": []}
    first = evaluate(People(TWO), painter)[1:]
    for file in (evaluate.out / "pictures").rglob("scores.json"):
        key, _, value = content.partition(": ")
        if value and not content.startswith("{"):  # the right key, and something else in the rest
            content_of = json.loads(file.read_text()) | {key: json.loads(value)}
            file.write_text(json.dumps(content_of))
        else:
            file.write_text(content)
    painter["drawn"].clear()
    assert evaluate(People(TWO), painter)[1:] == first and not painter["drawn"]


def test_other_pictures_are_drawn_in_the_place_of_those_made_otherwise(evaluate, tmp_path):
    path, info = tmp_path / picture_name(0, 3), PictureInfo("one", 3, "m", "", {}, ())
    save(path, SavedImage(plain(RED), 0.25, None), info)
    kept = read_saved(path, info)
    assert (kept.seconds, kept.peak_memory_mib, kept.image[0, 0].tolist()) == (0.25, None, list(RED))
    assert read_saved(path, PictureInfo("one", 4, "m", "", {}, ())) is None
    assert Image.open(path).text["prompt"] == "one"


def test_a_failing_case_does_not_stop_the_others(evaluate, capsys):
    people = People(TWO | {"nobody": ([GREY], [])}, problems=["cases.json:3: caption_list: missing"])
    code, scores, _ = evaluate(people, {"colour": own_colour})
    assert code == 2 and list(scores["cases"]["people"]) == ["a", "b"]
    assert "no face found" in scores["cases"]["failed"]["nobody"]
    errors = capsys.readouterr().err
    assert "case nobody" in errors and "cases.json:3" in errors


def test_no_case_left_is_an_error(evaluate):
    with pytest.raises(UserError, match="no case is left"):
        evaluate(People({"nobody": ([GREY], [])}), {"colour": own_colour})
    with pytest.raises(UserError, match="no case is left"):
        evaluate(People({}), {"colour": own_colour})


def test_no_base_images_no_normalisation_and_no_background(evaluate):
    _, scores, _ = evaluate(People(TWO), {"colour": own_colour}, base_images=0)
    system = scores["systems"]["painter"]
    assert "normalised" not in system and not (evaluate.out / "base").exists()
    assert "without a face" in system["not_measured"]["background_pixels"]


def test_background_is_compared_on_the_same_seeds(evaluate):
    class LeftHalf:
        name = "left half"

        def parse(self, image, faces):
            classes = np.zeros(image.shape[:2], np.uint8)
            classes[:, :7] = 1  # 8 columns with the margin of a pixel
            return [classes] * len(faces)

        def parse_many(self, pictures):
            return [self.parse(*picture) for picture in pictures]

    painter = {"colour": lambda *_: (200, 0, 0), "base_colour": (149, 0, 51)}
    _, scores, _ = evaluate(
        People(TWO), painter, judges=Judges(ColourJudge(), parser=LeftHalf()), samples=2, base_images=1
    )
    change = scores["systems"]["painter"]["figures"]["background_pixels"]["value"]
    assert change == pytest.approx((51 + 0 + 51) / 3 / 255, abs=1e-5)
    assert scores["systems"]["painter"]["figures"]["diversity"]["value"] == pytest.approx(0, abs=1e-6)
    assert len(list(Path(evaluate.out / "base").rglob("*.png"))) == 2 * 2 * 2  # as many as samples


def test_two_runs_at_once_are_refused(evaluate):
    from feedface.common.files import folder_lock

    with folder_lock(evaluate.out, "x"), pytest.raises(UserError, match="another evaluation is writing there"):
        evaluate(People(TWO), {"colour": own_colour})

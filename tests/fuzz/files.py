"""Files of data and results: records with their pictures, tables of make_data.py, its own JSON, evaluations."""

import json
import os
import random
import shutil
from pathlib import Path

from PIL import Image
from tests.fuzz.mutations import bad_json, damage, no_file, other_json
from tests.toy_records import make_records


def copy_tree(source: Path, target: Path) -> None:
    """By hard links: what is to be changed is written anew, see `rewrite`."""
    shutil.copytree(source, target, copy_function=os.link, symlinks=True, dirs_exist_ok=True)


def rewrite(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


class Records:
    """Lines of records.jsonl, and the pictures and masks that they name, as training reads them."""

    share = 9

    def __init__(self, folder: Path, large: bool):
        self.folder = folder / "records"
        make_records(self.folder, people=2, per_person=2)
        lines = (self.folder / "records.jsonl").read_text().splitlines()
        self.rows = [json.loads(line) | {"identity": "a"} for line in lines]

    def case(self, rng: random.Random, place: Path) -> None:
        from feedface.data.dataset import PictureDataset, PictureStore
        from feedface.data.draws import DrawSettings
        from feedface.data.records import read_records
        from feedface.methods.base import ReferenceSpec
        from feedface.preparation.check import check_folder

        copy_tree(self.folder, place)
        file = place / "records.jsonl"
        kind = rng.random()
        if kind < 0.65:
            lines = [json.dumps(row).encode() for row in self.rows]
            lines[rng.randrange(len(lines))] = bad_json(rng, rng.choice(self.rows)).replace(b"\n", b" ")
            rewrite(file, b"\n".join(lines))
        elif kind < 0.75:
            rewrite(file, damage(rng, file.read_bytes()))
        elif kind < 0.8:
            no_file(rng, file)
        else:
            picture = rng.choice(sorted((place / rng.choice(("images", "masks"))).iterdir()))
            if rng.random() < 0.3:
                no_file(rng, picture)
            else:
                rewrite(picture, damage(rng, picture.read_bytes()))
        if rng.random() < 0.2:
            check_folder(place)
            return
        records = read_records(file)
        store = PictureStore(records, 64, 8, ReferenceSpec("crop", 32), in_memory=False)
        settings = DrawSettings(rng.randrange(100), {"img": (4, 8, 8)}, flip=0.5, other_picture=0.5)
        PictureDataset(store, settings).__getitems__([(number, 1) for number in range(4)])


class Tables:
    """Files with captions or people, of each kind that make_data.py takes."""

    share = 4
    PICTURES = ("anna/1.jpg", "anna/2.jpg", "bob/1.jpg", "top.png")

    def __init__(self, folder: Path, large: bool):
        rows = [{"path": rel, "caption": f"a photo, {rel}", "person": rel[0]} for rel in self.PICTURES]
        csv = "path,caption,person\n" + "".join(f'{row["path"]},"{row["caption"]}",{row["person"]}\n' for row in rows)
        self.rows = rows
        self.files = {"a.csv": csv, "a.tsv": csv.replace(",", "\t"), "a.jsonl": "\n".join(map(json.dumps, rows))}

    def case(self, rng: random.Random, place: Path) -> None:
        from feedface.preparation.tables import CAPTIONS, PEOPLE, Table

        name = rng.choice((*self.files, "a.json", "b.json", "a.txt"))
        file = place / name
        if name.endswith(".json"):
            pairs = {row["path"]: row["caption"] for row in self.rows}
            file.write_bytes(bad_json(rng, self.rows if name == "a.json" else pairs))
        elif name == "a.jsonl":
            lines = [json.dumps(row) for row in self.rows]
            lines[rng.randrange(len(lines))] = other_json(rng, rng.choice(self.rows)).replace("\n", " ")
            file.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        else:
            file.write_bytes(damage(rng, self.files.get(name, "").encode()))
        if rng.random() < 0.1:
            no_file(rng, file)
        table = Table(file, rng.choice((CAPTIONS, PEOPLE)), self.PICTURES)
        for rel in self.PICTURES:
            found = table.find(rel)
            if found is not None:
                found.encode("utf-8")  # it is to be written


class Prepared:
    """The JSON files that make_data.py leaves and goes on from."""

    share = 3

    def __init__(self, folder: Path, large: bool):
        box = [20.0, 16.0, 50.0, 60.0]
        measured = {"face_px": 30.0, "blur": 20.0, "yaw": 1.0, "pitch": None, "roll": 0.5, "scores": 0.9}
        self.row = {
            "path": "a.png", "stamp": [1, 2], "outcome": "single", "reason": "", "img_size": [96, 80], "faces": 1,
            "face": 0, "rect": box, "bbox": box, "square_bbox": box, "mask_bbox": box, "point": [[1.0, 2.0]] * 5,
            "embedding": [0.1, 0.2], "caption": "a photo", "caption_by": "none", **measured,
        }  # fmt: skip
        self.settings = {
            "data_folder": "photos", "detector": "mini", "weights": {"parser": "ab"},
            "last_run": {"thresholds": {"min_blur": 3.0}},
        }  # fmt: skip

    def case(self, rng: random.Random, place: Path) -> None:
        from feedface.data.records import write_records
        from feedface.preparation.filters import Thresholds
        from feedface.preparation.formats import make_records as records_of
        from feedface.preparation.outcome import read_row
        from feedface.preparation.plan import _merged, file_names
        from feedface.preparation.process import MEASURES, verdict
        from feedface.preparation.report import write_report

        row_file, settings_file = place / "a.png.json", place / "settings.json"
        outcome = rng.choice(("single", "single", "multi", "filtered", "error"))
        row_file.write_bytes(bad_json(rng, self.row | {"outcome": outcome}))
        settings_file.write_bytes(
            bad_json(rng, self.settings) if rng.random() < 0.5 else json.dumps(self.settings).encode()
        )
        if rng.random() < 0.1:
            no_file(rng, rng.choice((row_file, settings_file)))
        (place / "records.jsonl").write_bytes(bad_json(rng, {"identity": "a"}))
        row = read_row(row_file)
        if row is not None:
            file_names(row)
            if row["outcome"] in ("single", "filtered") and {*MEASURES, "scores"} <= row.keys():
                verdict(row, Thresholds(min_blur=3, max_yaw=9, max_pitch=50, min_score=0.1))
            if "caption" in row:
                write_records(place / "new.jsonl", records_of([row], {}, place, place))
        if rng.random() < 0.2:
            write_report(place, [row] if row else [], place)
        _merged(settings_file, {key: self.settings[key] for key in ("data_folder", "detector", "weights")})


class Evaluations:
    """A list of systems, and the scores that a report is made of."""

    share = 4

    def __init__(self, folder: Path, large: bool):
        figure = {"value": 0.3, "low": 0.2, "high": 0.4}
        settings = {"steps": 3, "guidance": 2.0, "size": [64, 64]}
        self.systems = [{"name": "a", "model": "m", "settings": settings, "pool": "mean", "references": 2}]
        entry = {
            "model": {"path": "m", "name": "m", "digest": "ab"}, "settings": settings, "seconds": 3,
            "figures": {"face_other": figure, "clip_text": 0.2, "attribute_all": figure},
            "normalised": {"face": figure, "text": None, "left_out": {"face": "why"}, "text_measure": "attributes"},
            "not_measured": {"nearest": "why"}, "detection_rate": 0.5, "peak_memory_mib": 3.5,
        }  # fmt: skip
        people = {"ann": {"references": ["r.png"], "prompts": ["a", "b"], "notices": ["one"]}}
        self.scores = {
            "protocol": "ppr10k", "command": "evaluate", "judge": {"face": "x"}, "systems": {"a": entry, "b": entry},
            "cases": {"count": 1, "failed": {"bob": "why"}, "people": people},
            "comparisons": {"a - b": {"face_other": figure}},
        }  # fmt: skip
        self.row = {
            "system": "a",
            "case": "ann",
            "prompt": 0,
            "sample": 0,
            "seed": 1,
            "file": "p.png",
            "face_other": 0.3,
        }

    def case(self, rng: random.Random, place: Path) -> None:
        from feedface.evaluation.page import html_page
        from feedface.evaluation.report import axis
        from feedface.evaluation.results import load_results
        from feedface.evaluation.systems import read_systems
        from feedface.evaluation.tables import latex_table, markdown_page
        from feedface.settings import Settings

        if rng.random() < 0.4:
            file = place / "systems.json"
            file.write_bytes(bad_json(rng, self.systems))
            if rng.random() < 0.05:
                no_file(rng, file)
            read_systems(file, [1, 4], Settings())
            return
        which = rng.random()
        scores = bad_json(rng, self.scores) if which < 0.7 else json.dumps(self.scores).encode()
        row = bad_json(rng, self.row) if which > 0.5 else json.dumps(self.row).encode()
        (place / "scores.json").write_bytes(scores)
        (place / "scores.jsonl").write_bytes(row.replace(b"\n", b" ") + b"\n" + json.dumps(self.row).encode())
        if rng.random() < 0.05:
            no_file(rng, place / rng.choice(("scores.json", "scores.jsonl", "p.png")))
        results = load_results(place)
        markdown_page(results), latex_table(results)
        axes = axis(results, ("clip_text",)), axis(results, ("face_other",))
        html_page(results, Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8)), axes)

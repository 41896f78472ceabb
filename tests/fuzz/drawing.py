"""inference.py's `main` in this process, with models/mini loaded once; and the inputs that reach it."""

import io
import json
import random
import shutil
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image
from tests.fuzz.mutations import bad_json, damage, no_file

ROOT = Path(__file__).parents[2]
MINI = ROOT / "models" / "mini"
FACE = ROOT / "assets" / "demo_face.png"
SMALL = ["--size", "64", "--steps", "1"]
PROMPT = "a photo of a smiling woman on a beach"


@cache
def _loaded(*key) -> object:
    from feedface.pipeline import FeedFacePipeline

    model, options = key[0], dict(key[1:])
    return FeedFacePipeline.from_pretrained(model, **options)


@cache
def _detector(*arguments) -> object:
    from feedface.faces.detect import make_detector

    return make_detector(*arguments)


def main(argv: list[str]) -> int:
    """inference.py; what it loads of models/mini is kept for the next input, of all other models not."""
    from feedface.commands import inference
    from feedface.faces import detect
    from feedface.pipeline import FeedFacePipeline

    load, make = FeedFacePipeline.from_pretrained, detect.make_detector

    def from_pretrained(model, **options):
        if Path(model) != MINI or any(options[key] for key in ("ckpt_path", "control", "loras")):
            return load(model, **options)
        with mock.patch.object(FeedFacePipeline, "from_pretrained", load):
            return _loaded(model, *((key, value) for key, value in options.items() if key not in ("control", "loras")))

    def make_detector(name, root=None, *rest):
        if root is None or MINI not in Path(root).parents:
            return make(name, root, *rest)
        with mock.patch.object(detect, "make_detector", make):
            return _detector(name, root, *rest)

    with (
        mock.patch.object(FeedFacePipeline, "from_pretrained", from_pretrained),
        mock.patch.object(detect, "make_detector", make_detector),
    ):
        return inference.main(argv)


class Pictures:
    """A picture of some format, damaged or odd: read, or given to inference.py."""

    share = 12

    def __init__(self, folder: Path, large: bool):
        self.large = large
        with Image.open(FACE) as image:
            face = image.convert("RGB").resize((96, 96))
        self.seeds = dict(self._seeds(face))

    def _seeds(self, face: Image.Image):
        for suffix in ("png", "jpg", "webp", "gif", "bmp", "tif", "ppm", "jp2", "avif", "ico"):
            yield suffix, _saved(face, suffix)
        for mode in ("1", "L", "LA", "P", "RGBA", "I;16", "I", "CMYK", "F"):
            suffix = {"CMYK": "jpg", "F": "tif"}.get(mode, "png")
            grey = Image.fromarray(np.asarray(face.convert("L")).astype(np.uint16) * 257)
            image = grey if mode == "I;16" else face.convert(mode)
            yield f"{mode.replace(';', '')}.{suffix}", _saved(image, suffix)
        yield "progressive.jpg", _saved(face, "jpg", progressive=True, quality=30)
        yield "animated.gif", _saved(face, "gif", save_all=True, append_images=[face.rotate(90)])
        yield "tiles.tif", _saved(face, "tif", compression="tiff_lzw")
        exif = Image.Exif()
        exif[0x0112] = 6
        yield "exif.jpg", _saved(face, "jpg", exif=exif)

    def case(self, rng: random.Random, place: Path) -> int | None:
        name = rng.choice(list(self.seeds))
        path, data = place / f"picture.{name}", self.seeds[name]
        kind = rng.random()
        if kind < 0.01 and self.large:
            path = place / "large.png"
            mode = rng.choice(("1", "L", "RGB", "RGBA", "I;16"))
            width, height = rng.choice(((10_000, 10_000), (10_001, 10_000), (100_000, 1000), (1_000_000, 90)))
            Image.new(mode, (width, height)).save(path, compress_level=1)
        elif kind < 0.85:
            path.write_bytes(damage(rng, data))
        elif kind < 0.93:
            path.write_bytes(_other_size(rng, data))
        else:
            path.write_bytes(data)
            no_file(rng, path)
        if rng.random() < 0.5 and path.name != "large.png":
            more = rng.choice(([], ["--no_detect"], ["--detector", "opencv"]))
            return main(["--prompt", PROMPT, "--image", str(path), "--output", "out", *SMALL, *more])
        from feedface.common.images import read_image
        from feedface.data.masks import read_mask

        image = rng.choice((read_image, read_image, read_mask))(path)
        assert image.dtype == np.uint8 and image.shape[0] * image.shape[1] <= 100_000_000
        return 0


def _saved(image: Image.Image, suffix: str, **options) -> bytes:
    buffer = io.BytesIO()
    formats = {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}
    image.save(buffer, formats.get(suffix, suffix.upper()), **options)
    return buffer.getvalue()


def _other_size(rng: random.Random, data: bytes) -> bytes:
    """Other numbers where headers have the sides (96) of the picture."""
    for size in (2, 4):
        for order in ("big", "little"):
            side = (96).to_bytes(size, order)
            if side in data[:4096] and rng.random() < 0.5:
                at = data.index(side)
                other = rng.choice((0, 1, 15, 97, 4096, 65_500)).to_bytes(size, order)
                data = data[:at] + other + data[at + size :]
    return data


class Jobs:
    """A job file that is broken as text or in what it says."""

    share = 8

    def __init__(self, folder: Path, large: bool):
        self.job = {
            "id": "a woman",
            "class_word": "woman",
            "caption_list": [PROMPT, "a woman in a red hoodie"],
            "source_group": [{"path": "face.png"}, {"path": str(FACE)}],
        }
        self.more = {"seed": 1, "n_samples": 2, "guidance": 3.5, "face_scale": 0.8, "size": [64, 64]}

    def case(self, rng: random.Random, place: Path) -> int | None:
        shutil.copy(FACE, place / "face.png")
        job = self.job | {key: value for key, value in self.more.items() if rng.random() < 0.3}
        files = [place / "jobs.json"]
        files[0].write_bytes(bad_json(rng, rng.choice((job, [job, job | {"id": 2}]))))
        if rng.random() < 0.05:
            no_file(rng, files[0])
        if rng.random() < 0.1:
            files += [place, place / "nothing"]
            (place / "good.json").write_text(json.dumps(job | {"id": "good"}))
        more = ["--no_detect"] if rng.random() < 0.5 else []
        return main(["-j", *map(str, files), "--output", "out", *SMALL, *more])


NUMBERS = (
    "-1",
    "0",
    "1",
    "2",
    "1.5",
    "abc",
    "",
    " ",
    "9" * 5000,
    "1e9",
    "nan",
    "inf",
    "-inf",
    "0x1",
    "２",
    "1_0",
    "1000",
    "-0.0",
)
PATHS = (
    "", " ", ".", "nowhere", "/dev/null", "/dev/zero", "/proc/self/mem", "/", "x" * 300, "a/" * 1500, "face.png",
    "face.png/x", "\udcff", "new\nline", "pipe", "empty", "new/folder", "~nobody", "odd.py", "raises.py", "none.py",
    "good.py", "loop",
)  # fmt: skip
TEXTS = ("", " ", "x", "x " * 5000, "\udcff", "é🙂", "a\nb", "\0", "--", "-", "%s {} \\", "\u202e")
SIZES = (*NUMBERS, "64", "64x64", "64X96", "x", "64x", "64x64x64", "6 4", "128", "4096", "64×64")
# Left out: what takes its time by right.
SKIPPED = ("help", "version", "compile")


class Flags:
    """Command lines with odd options and values."""

    share = 9

    def __init__(self, folder: Path, large: bool):
        from feedface.commands import inference

        self.actions = [action for action in inference.make_parser()._actions if action.dest not in SKIPPED]

    def case(self, rng: random.Random, place: Path) -> int | None:
        shutil.copy(FACE, place / "face.png")
        (place / "empty").touch()
        no_file(random.Random(0), place / "pipe")
        (place / "loop").symlink_to("loop")
        (place / "odd.py").write_text("def get_config(:\n")
        (place / "raises.py").write_text("def get_config():\n    return 1 / 0\n")
        (place / "none.py").write_text("get_config = 5\n")
        (place / "good.py").write_text(
            "import ml_collections\n\n\ndef get_config():\n"
            f"    return ml_collections.ConfigDict({{'sample': {{'steps': {rng.choice(NUMBERS[:5]) or 1}}}}})\n"
        )
        options = {
            "--prompt": [PROMPT],
            "--image": ["face.png"],
            "--output": ["out"],
            "--size": ["64"],
            "--steps": ["1"],
        }
        for action in rng.sample(self.actions, rng.choice((1, 1, 2, 3))):
            options[action.option_strings[-1]] = self._values(rng, action)
        for name in rng.sample(list(options), rng.random() < 0.1):
            del options[name]
        argv = [one for name, values in options.items() for one in (name, *values)]
        if rng.random() < 0.05:
            argv.insert(rng.randrange(len(argv)), rng.choice(("--", "-x", "--unknown", "stray", "-j")))
        return main(argv)

    def _values(self, rng: random.Random, action) -> list[str]:
        if action.nargs == 0:
            return []
        known = {"n_iter": NUMBERS[:3], "steps": NUMBERS[:-2], "size": SIZES, "n_samples": (*NUMBERS[:-2], "3")}
        if action.dest in ("prompt",):
            choices = TEXTS
        elif action.dest in ("image", "json", "output", "model", "ckpt_path", "config"):
            choices = PATHS
        elif action.choices or action.dest in ("detector", "device", "dtype", "scheduler", "face"):
            named = ("auto", "mini", "opencv", "buffalo_l", "cpu", "cuda", "cuda:9", "mps", "xpu", "hip", "vulkan",
                     "meta", "fp32", "fp16", "bf16", "fp8", "dpmsolver++", "ddim", "unipc:karras", "left")  # fmt: skip
            choices = (*named, *TEXTS, *(action.choices or ()))
        else:
            choices = known.get(action.dest, NUMBERS)
        count = (
            action.nargs if isinstance(action.nargs, int) else rng.choice((1, 1, 1, 2)) if action.nargs == "+" else 1
        )
        return [rng.choice(choices) for _ in range(count + (rng.random() < 0.03))]

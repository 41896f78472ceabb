"""Stage `bundle`: put what the stages made together as one model, with its card."""

import shutil
from pathlib import Path
from typing import Any

import ml_collections

from feedface.checkpoints.bundle import write_index
from feedface.common.errors import UserError
from feedface.common.files import atomic_folder
from feedface.common.progress import say
from feedface.synthetic.train.card import card, size_mib
from feedface.synthetic.train.common import read_metrics

NAME = "mini"
ABOUT = "A whole FeedFace model: the default of `inference.py` and of the tests."
# Folder -> part of a bundle.
COMPONENTS = {
    **{name: name for name in ("vae", "text_encoder", "tokenizer", "image_encoder")},
    **{name: name for name in ("faces", "recogniser", "parser", "inspector")},
    "uvit": "backbone",
    "face_controlnet": "method",
}
TRAINED_STAGES = (
    "vae", "clip", "face_encoder", "uvit", "control", "decoder", "detector", "recogniser", "parser", "inspector",
)  # fmt: skip
# Folder of <workdir>/bundle -> stage that makes it, where that is called otherwise.
MAKERS = {
    **dict.fromkeys(("text_encoder", "tokenizer", "image_encoder"), "clip"),
    "faces": "detector",
    "face_controlnet": "control",
}


def need(folder: Path, *names: str) -> None:
    """`UserError` unless these parts are in `folder`, naming the stages that make them."""
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        stages = ", ".join(dict.fromkeys(MAKERS.get(name, name) for name in missing))
        raise UserError(
            f"{folder}: {', '.join(missing)} missing; first comes `python -m feedface.synthetic.train --stage` {stages}"
        )


def write_bundle_index(folder: Path, image_size: int, defaults: dict[str, Any] | None = None) -> None:
    """(Re)write `model_index.json` for the components that `folder` has so far."""
    present = {part: name for name, part in COMPONENTS.items() if (folder / name).is_dir()}
    write_index(folder, name=NAME, image_size=image_size, components=present, defaults=defaults)


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Copy the finished components from `<workdir>/bundle` to `config.bundle.out`, with index and card.

    Raises `UserError` when a component is missing or the whole is larger than `config.bundle.max_mib`.
    """
    config, source = config.bundle, workdir / "bundle"
    need(source, *COMPONENTS)
    records = {stage: read_metrics(workdir / stage) for stage in TRAINED_STAGES}
    world = read_metrics(workdir / "world")
    out = Path(config.out)
    with atomic_folder(out) as temporary:
        for name in COMPONENTS:
            shutil.copytree(source / name, temporary / name)
        write_bundle_index(temporary, config.image_size, config.defaults.to_dict())
        (temporary / "README.md").write_text(card(ABOUT, "all", records, world, config, size_mib(temporary)))
        total = size_mib(temporary)
        if total > config.max_mib:
            raise UserError(f"{out}: would take {total:.1f} MiB, more than bundle.max_mib={config.max_mib}")
    say(f"bundle: {out}, {total:.1f} MiB")

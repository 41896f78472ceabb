"""Stage `bundle`: put what the stages made together as one model, with its card."""

import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ml_collections

from feedface.checkpoints.bundle import write_index
from feedface.common.errors import UserError
from feedface.common.files import atomic_folder
from feedface.common.progress import say
from feedface.synthetic.train.common import read_metrics

NAME = "mini"
COMPONENTS = (
    "vae", "text_encoder", "tokenizer", "image_encoder", "uvit", "face_controlnet", "faces", "parser",
    "inspector",
)  # fmt: skip
TRAINED_STAGES = (
    "vae", "clip", "face_encoder", "uvit", "control", "decoder", "detector", "recogniser", "parser", "inspector",
)  # fmt: skip
BYTES_PER_MIB = 1 << 20


def write_bundle_index(folder: Path, image_size: int, defaults: dict[str, Any] | None = None) -> None:
    """(Re)write `model_index.json` for the components that `folder` has so far."""
    present = {
        {"uvit": "backbone", "face_controlnet": "method"}.get(name, name): name
        for name in COMPONENTS
        if (folder / name).is_dir()
    }
    write_index(folder, name=NAME, image_size=image_size, components=present, defaults=defaults)


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Copy the finished components from `<workdir>/bundle` to `config.bundle.out`, with index and card.

    Raises `UserError` when a component is missing or the whole is larger than `config.bundle.max_mib`.
    """
    config, source = config.bundle, workdir / "bundle"
    missing = [name for name in COMPONENTS if not (source / name).is_dir()]
    if missing:
        raise UserError(f"{source}: {', '.join(missing)} missing; run the stages that make them first")
    records = {stage: read_metrics(workdir / stage) for stage in TRAINED_STAGES}
    world = read_metrics(workdir / "world")
    out = Path(config.out)
    with atomic_folder(out) as temporary:
        for name in COMPONENTS:
            shutil.copytree(source / name, temporary / name)
        write_bundle_index(temporary, config.image_size, config.defaults.to_dict())
        (temporary / "README.md").write_text(card(records, world, config, size_mib(temporary)))
        total = size_mib(temporary)
        if total > config.max_mib:
            raise UserError(f"{out}: would take {total:.1f} MiB, more than bundle.max_mib={config.max_mib}")
    say(f"bundle: {out}, {total:.1f} MiB")


def size_mib(folder: Path) -> float:
    """Size of all files in `folder`, in MiB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / BYTES_PER_MIB


def card(records: dict[str, dict], world: dict, config: ml_collections.ConfigDict, total_mib: float) -> str:
    """The model card, in Markdown; every number comes from the stages' own metrics.json."""
    people, held_out = world["settings"]["train"], world["settings"]["held_out"]
    minutes = sum((record["training"] or {}).get("seconds", 0) for record in records.values()) / 60
    lines = [
        "# FeedFace mini",
        "",
        f"A whole FeedFace model for the synthetic portraits of `feedface.synthetic.world`, {config.image_size} px, "
        f"{total_mib:.1f} MiB in half precision: the default model of `inference.py` and of the tests. It knows "
        "nothing of real photos.",
        "",
        f"Command: `python -m feedface.synthetic.train --stage all --preset {config.preset}`"
        f" ({minutes:.0f} min of training on {config.hardware or platform.machine()},"
        f" {platform.system()}, torch {version('torch')}).",
        "",
        f"Data: {people['identities']} people (numbers {_span(people)}) x {people['per_identity']} scenes, made by "
        f"`feedface.synthetic.world`, seed {world['settings']['seed']}. The metrics below are measured on "
        f"{held_out['identities']} other people (numbers {_span(held_out)}); the inspector has people of its own, and "
        "the people of the evaluation belong to none of these.",
        "",
        "| stage | parameters | steps | samples | minutes | seed | measured on people not trained on |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage, record in records.items():
        cost = record["training"]
        measured = ", ".join(f"{name} {_short(value)}" for name, value in record["metrics"].items())
        lines.append(
            f"| {stage} | {cost['parameters'] / 1e6:.2f} M | {cost['steps']} | {cost['samples']} "
            f"| {cost['seconds'] / 60:.1f} | {record['settings']['seed']} | {measured or '-'} |"
        )
    lines += [
        "",
        "How well the whole follows face and prompt: `python evaluate.py --protocol mini --model models/mini`; "
        "the README has the results.",
        "",
        "Weights: Apache-2.0, as the code. No photo of anybody was used.",
        "",
    ]
    return "\n".join(lines)


def _span(part: dict) -> str:
    return f"{part['first_identity']} to {part['first_identity'] + part['identities'] - 1}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

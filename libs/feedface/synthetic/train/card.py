"""The card of a published miniature: its README.md, out of what the stages measured."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ml_collections

BYTES_PER_MIB = 1 << 20


def size_mib(folder: Path) -> float:
    """Size of all files in `folder`, in MiB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / BYTES_PER_MIB


def card(
    about: str, stages: str, records: dict[str, dict], world: dict, config: ml_collections.ConfigDict, total_mib: float
) -> str:
    """The model card, in Markdown; every number comes from the stages' own metrics.json.

    `about`: what it is, in a sentence or two; `stages`: what --stage was; `records`: stage -> `read_metrics`; `config`:
    its image_size, out, preset and hardware.
    """
    people, held_out = world["settings"]["train"], world["settings"]["held_out"]
    minutes = sum((record["training"] or {}).get("seconds", 0) for record in records.values()) / 60
    lines = [
        f"# FeedFace {Path(config.out).name}",
        "",
        f"{about} For the synthetic portraits of `feedface.synthetic.world`, {config.image_size} px, {total_mib:.1f} "
        "MiB in half precision. It knows nothing of real photos.",
        "",
        f"Command: `python -m feedface.synthetic.train --stage {stages} --preset {config.preset}`"
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
        f"How well the whole follows face and prompt: `python evaluate.py --protocol mini --model {config.out}`; "
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

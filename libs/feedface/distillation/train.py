"""Train the student on trajectories, measure it on some that it was not trained on, and make it a model's part.

<workdir>/student/            checkpoint.pt (to resume), log.txt, metrics.json, samples.png (teacher over student)
<workdir>/pictures/           real pictures, encoded, for the critic
<workdir>/refined/            of the training with a critic that follows (`refine`), which then has the last two
<workdir>/model/few_step/     the adapter, and an index that takes all other parts from the model distilled
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ml_collections
import numpy as np
import torch
from torch import Tensor

from feedface.checkpoints.bundle import Bundle, load_bundle, read_index, write_derived_index
from feedface.checkpoints.few_step import COMPONENT, GUIDANCE_KEYS, FewStep, adapted, read_few_step, save_few_step
from feedface.checkpoints.parts import SEAM
from feedface.common.contact_sheet import save_sheet
from feedface.common.device import DTYPES, pick_device
from feedface.common.errors import UserError
from feedface.diffusion.state import State, unpack
from feedface.distillation.critic import Critic
from feedface.distillation.likeness import Likeness
from feedface.distillation.pictures import real_pictures
from feedface.distillation.refine import check_refine, refine
from feedface.distillation.student import Student, low_rank
from feedface.distillation.trajectories import Piece, Trajectories, draw_trajectories
from feedface.encoders import to_uint8
from feedface.inference.model_files import DRAWING_NETWORKS, model_digest
from feedface.training.fit import fit, write_metrics

RMS_NAMES = {"img": "latent"}
SHEET = 16  # pictures in samples.png
PRECISIONS = ("fp32", "bf16")  # half precision would need its losses scaled


def trajectories(config: ml_collections.ConfigDict, workdir: Path, share: tuple[int, int] = (0, 1)) -> None:
    """Draw what is left of the teacher's trajectories; of `share` (k, n), every n-th shard from the k-th on."""
    device, bundle = _loaded(config)
    draw_trajectories(config, bundle, workdir / "trajectories", device, share)


def train(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Train what is left, and leave the model `<workdir>/model`."""
    device, bundle = _loaded(config)
    lessons = Trajectories(workdir / "trajectories")
    if lessons.settings["model"] != model_digest(bundle):
        raise UserError(f"{workdir / 'trajectories'}: drawn with another model than {config.model}; draw them anew")
    held_out = config.held_out
    if len(lessons.files) <= held_out:
        raise UserError(
            f"{workdir / 'trajectories'}: {len(lessons.files)} shards do not suffice, held_out={held_out} are only "
            "measured on; draw more"
        )
    how = {key: value for key, value in lessons.settings.items() if key in GUIDANCE_KEYS}
    adapter = FewStep(tuple(lessons.settings["timesteps"]), **how)
    networks = bundle.networks()
    bundle.backbone.gradient_checkpointing = config.gradient_checkpointing
    student = Student(*networks, adapter, config.clip_weight)
    rows = config.train.batch_size

    def step(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        piece = lessons.piece(*lessons.drawn(rows, held_out, generator), device)
        own = torch.rand(len(piece.states), generator=generator) < config.own_states
        return student.loss(piece, own.to(device))

    before = measure(student, lessons, held_out, rows, device)
    refined, critic, likeness = None, None, None
    torch.manual_seed(config.train.seed)
    if config.refine.steps or config.refine.minutes:
        critic = Critic(*networks, config.refine.sites, config.refine.penalty)
        likeness = Likeness(bundle, device) if config.refine.likeness else None
        pictures = real_pictures(config, bundle, lessons, likeness, workdir / "pictures")
    with low_rank(*networks, {"backbone": config.rank.uvit, "method": config.rank.face_controlnet}) as matrices:
        result = fit("student", matrices, step, config.train, workdir / "student")
        if critic is not None:
            # Another student is another run: its checkpoint is refused.
            settings = ml_collections.ConfigDict(config.refine.to_dict() | {"student_steps": result.steps})
            folder = workdir / "refined"
            refined = refine(settings, student, matrices, critic, lessons, pictures, likeness, held_out, folder)

    model = workdir / "model"
    made_by = {"trajectories": sum(lessons.sizes), **{key: lessons.settings[key] for key in ("model", "evaluations")}}
    made_by |= {"ranks": config.rank.to_dict(), "steps": result.steps, "batch_size": rows}
    if refined is not None:
        made_by |= {"refined_steps": refined.steps, "refined_batch_size": config.refine.batch_size}
    save_few_step(model / COMPONENT, replace(adapter, weights=matrices.weights()), made_by)
    write_derived_index(model, config.model, {COMPONENT: COMPONENT}, f"{read_index(config.model).name}, few steps")
    # As it is stored, not as it was trained: in half precision.
    stored = read_few_step(model / COMPONENT)
    student.backbone, student.method = (adapted(stored, name, net) for name, net in zip(SEAM, networks, strict=True))
    after = measure(student, lessons, held_out, rows, device)
    own = workdir / ("student" if refined is None else "refined")
    settings = config.train if refined is None else config.refine
    write_metrics(own, settings, refined or result, **_compared(before, after))
    write_sheet(own / "samples.png", student, bundle, lessons.piece(0, slice(0, SHEET), device))


def _loaded(config: ml_collections.ConfigDict) -> tuple[torch.device, Bundle]:
    """Check the settings that both stages read, then load the model."""
    numbers = {
        "trajectories.count": config.trajectories.count,
        "trajectories.batch_size": config.trajectories.batch_size,
        "trajectories.substeps": config.trajectories.substeps,
        "train.batch_size": config.train.batch_size,
        "held_out": config.held_out,
        "rank.uvit": config.rank.uvit,
        "timesteps": len(config.timesteps),
        "trajectories.faces": len(config.trajectories.faces),
    }
    for name, value in numbers.items():
        if value < 1:
            raise UserError(f"config.{name}: {value} is too few; use 1 or more")
    if min(config.trajectories.faces) < 0 or config.rank.face_controlnet < 0:
        raise UserError("config.trajectories.faces and config.rank.face_controlnet cannot be below 0")
    if config.precision not in PRECISIONS:
        raise UserError(f"config.precision {config.precision}: use {' or '.join(PRECISIONS)}")
    device = pick_device(config.train.device)
    bundle = load_bundle(config.model, device, DTYPES[config.precision], DRAWING_NETWORKS)
    if config.refine.steps or config.refine.minutes:
        check_refine(config.refine, bundle.backbone)
    return device, bundle


def measure(student: Student, lessons: Trajectories, shards: int, rows: int, device: torch.device) -> dict[str, float]:
    """RMS distance of latents, and of what else is in a `State`, to the teacher's, over the first shards' rows."""
    squares, count = torch.zeros(len(student.shapes), dtype=torch.float64), 0
    for shard in range(shards):
        for first in range(0, lessons.sizes[shard], rows):
            piece = lessons.piece(shard, slice(first, first + rows), device)
            parts = unpack((student.draw(piece) - piece.states[:, -1]).square(), student.shapes)
            squares += torch.stack([part.flatten(1).mean(1).sum() for part in parts.values()]).double().cpu()
            count += len(piece.states)
    names = [f"{RMS_NAMES.get(name, name)}_rms" for name in student.shapes]
    return {} if not count else {n: math.sqrt(s / count) for n, s in zip(names, squares.tolist(), strict=True)}


def _compared(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """`before`: as many first-order steps of the model without its adapter, and without guidance."""
    named = {f"{name}_untrained": value for name, value in before.items()} | after
    return {name: round(value, 4) for name, value in named.items()}


def write_sheet(path: Path, student: Student, bundle: Bundle, piece: Piece) -> None:
    """Teacher's pictures over the student's of the same noise, prompts and faces."""
    columns = 8
    teacher, own = (_decoded(bundle, unpack(x, student.shapes)) for x in (piece.states[:, -1], student.draw(piece)))
    full = range(0, len(teacher) - len(teacher) % columns, columns) or range(1)
    rows: Sequence = [pictures[i : i + columns] for i in full for pictures in (teacher, own)]
    save_sheet(path, rows)


@torch.no_grad()
def _decoded(bundle: Bundle, state: State) -> np.ndarray:
    return to_uint8(torch.cat([bundle.vae.decode(latent[None]) for latent in state["img"]]))

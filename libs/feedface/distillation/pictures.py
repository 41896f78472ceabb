"""The real pictures beside the trajectories: of the same people, for the same captions.

<workdir>/pictures/00000.safetensors    states [B,J] of the pictures that shard 00000's captions are of, half precision;
                                        with a likeness, also faces [B,D], see `Likeness.of_pictures`
"""

import json
from dataclasses import dataclass
from pathlib import Path

import ml_collections
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from feedface.checkpoints.bundle import Bundle, load_parts
from feedface.common.errors import UserError
from feedface.common.files import atomic_file, make_folder
from feedface.common.images import read_image
from feedface.common.progress import say
from feedface.common.reading import foreign
from feedface.data.features import STATE_ENCODERS
from feedface.data.records import read_records
from feedface.diffusion.state import pack
from feedface.distillation.draws import Draws
from feedface.distillation.likeness import Likeness
from feedface.distillation.trajectories import Trajectories, captions_digest
from feedface.encoders import resize_and_crop, to_tensor

CHUNK = 16  # pictures encoded at once


@dataclass(frozen=True)
class Real:
    """A shard's own pictures: clean `states` [B,J] and, where there is a likeness, whose `faces` [B,D] they show."""

    states: Tensor
    faces: Tensor | None


def real_pictures(
    config: ml_collections.ConfigDict, bundle: Bundle, lessons: Trajectories, likeness: Likeness | None, folder: Path
) -> list[Real]:
    """Each shard's own pictures; encoded once and kept in `folder`.

    `UserError` where the records are no longer those that the trajectories were drawn for.
    """
    settings, device = lessons.settings, bundle.vae.vae.device
    made_for = {"trajectories": json.dumps(settings, sort_keys=True), "faces": likeness.digest if likeness else ""}
    missing = [number for number, file in enumerate(lessons.files) if not _is_made_for(made_for, folder / file.name)]
    if missing:
        records = read_records(list(config.data.records))
        if captions_digest(records) != settings["records"]:
            raise UserError("config.data.records: others than the trajectories were drawn for; draw those anew")
        draws = Draws(records, settings["faces"], config.data.max_broken)
        names = {name: STATE_ENCODERS[name] for name in bundle.backbone.state_shapes() if name in STATE_ENCODERS}
        load_parts(bundle, names.values(), device, bundle.backbone.dtype)
        others = {name: getattr(bundle, part) for name, part in names.items()}
        make_folder(folder)
        say(f"pictures: encoding those of {len(missing)} shards")
        for number in missing:
            file = lessons.files[number]
            drawn = draws.shard(int(file.stem), lessons.sizes[number], settings["seed"])
            images = [read_image(record.path) for record, _ in drawn]
            pictures = [resize_and_crop(to_tensor(image)[None], bundle.image_size) for image in images]
            chunks = [_encoded(bundle, others, torch.cat(pictures[i : i + CHUNK])) for i in range(0, len(drawn), CHUNK)]
            tensors = {"states": torch.cat(chunks).half().cpu()}
            tensors |= {"faces": likeness.of_pictures(images)} if likeness else {}
            with atomic_file(folder / file.name) as temporary:
                save_file(tensors, temporary, made_for)
    kept = [load_file(folder / file.name) for file in lessons.files]
    return [Real(shard["states"].float(), shard.get("faces")) for shard in kept]


def _is_made_for(made_for: dict[str, str], file: Path) -> bool:
    if not file.is_file():
        return False
    with foreign(f"{file}: holds no encoded pictures; delete it"), safe_open(file, framework="pt") as opened:
        return opened.metadata() == made_for


@torch.no_grad()
def _encoded(bundle: Bundle, others: dict, pixels: Tensor) -> Tensor:
    """Pictures [B,3,S,S] in [-1,1] -> packed states [B,J]."""
    state = {"img": bundle.vae.encode(pixels, sample=False)}
    state |= {name: encoder.encode(pixels) for name, encoder in others.items()}
    return pack({name: state[name].float() for name in bundle.backbone.state_shapes()})

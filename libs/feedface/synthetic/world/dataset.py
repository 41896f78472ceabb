"""Worlds on disk: pictures, masks, the same JSONL records that photos get, and the renderer's whole truth."""

import json
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from feedface.common.errors import UserError
from feedface.common.files import atomic_file, make_folder
from feedface.common.progress import progress
from feedface.data.records import Record, RecordReference, read_records, write_records
from feedface.faces.crop import square_box
from feedface.synthetic.world.captions import captions
from feedface.synthetic.world.identity import sample_identities
from feedface.synthetic.world.renderer import render
from feedface.synthetic.world.scene import ATTRIBUTES, attributes, framing_for, sample_scenes


@dataclass
class PortraitSet:
    """A whole world in memory; rows are in the order of records.jsonl."""

    images: np.ndarray  # [N, H, W, 3] uint8 RGB
    masks: np.ndarray  # [N, H, W] uint8 LaPa classes 0..10
    boxes: np.ndarray  # [N, 4] float32 x0, y0, x1, y1 px
    landmarks: np.ndarray  # [N, 5, 2] float32 px
    pose: np.ndarray  # [N, 3] float32 degrees
    identity: np.ndarray  # [N] int64
    identity_vectors: np.ndarray  # [N, V] float32
    scene_vectors: np.ndarray  # [N, S] float32
    attributes: dict[str, np.ndarray]  # [N] int64 class indices into ATTRIBUTES
    captions: list[str]
    depth: np.ndarray | None = None  # [N, H, W] float32, as `Portraits.depth`; not of a world that was read

    def __len__(self) -> int:
        return len(self.images)


def make_portraits(people, scenes, seed: int = 0, size: int = 64, framing: str | None = None) -> PortraitSet:
    """Render scene `scenes[i]` of person `people[i]` for every row, in memory; framing: None is `framing_for(size)`."""
    people, scenes = torch.as_tensor(people), torch.as_tensor(scenes)
    who, scene = sample_identities(people, seed), sample_scenes(people, scenes, seed, framing or framing_for(size))
    portraits = render(who, scene, size)
    return PortraitSet(
        images=(portraits.image.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy(),
        masks=portraits.mask.numpy(),
        boxes=portraits.box.numpy(),
        landmarks=portraits.landmarks.numpy(),
        pose=portraits.pose.numpy(),
        identity=people.numpy(),
        identity_vectors=who.vector().numpy(),
        scene_vectors=scene.vector().numpy(),
        attributes={name: value.numpy() for name, value in attributes(who, scene).items()},
        captions=captions(who, scene, seed),
        depth=portraits.depth.numpy(),
    )


def _limit_threads() -> None:
    torch.set_num_threads(1)


def write_world(
    out: str | os.PathLike,
    identities: int,
    per_identity: int,
    seed: int = 0,
    size: int = 64,
    first_identity: int = 0,
    framing: str | None = None,
    dense: bool = False,
) -> Path:
    """Write identities x per_identity portraits; a world that is there already, with the same settings, is kept.

    `dense`: the records have pose, landmarks, depth and attributes, too, and there is a folder depth/.

    Folder: images/PERSON_SCENE.png (RGB), masks/PERSON_SCENE.png (8-bit grey, LaPa class x 255 // 11),
    records.jsonl (as photos get them), truth.npz (boxes, landmarks, pose, vectors, attributes), world.json (settings).
    """
    out = Path(os.path.abspath(out))  # so that the records' paths come out relative to the records
    settings = {"identities": identities, "per_identity": per_identity, "seed": seed, "size": size,
                "first_identity": first_identity, "framing": framing or framing_for(size), "dense": dense}  # fmt: skip
    marker = out / "world.json"
    if marker.exists():
        found = {"framing": "wide", "dense": False, **json.loads(marker.read_text())}  # the only one there was
        if found == settings:
            return out
        raise UserError(f"{marker}: holds another world ({found}); choose another folder")
    for folder in ("images", "masks", *(["depth"] if dense else [])):
        make_folder(out / folder)

    people = np.arange(first_identity, first_identity + identities)
    chunks = np.array_split(people, max(1, -(-identities * per_identity // 256)))
    work = partial(_write_chunk, out=out, per_identity=per_identity, seed=seed, size=size, framing=framing, dense=dense)
    # Portraits are independent of each other: one process a core, each with one thread.
    workers = min(os.cpu_count() or 1, len(chunks))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_limit_threads) as pool:
        results = list(progress(pool.map(work, chunks), total=len(chunks), desc="portraits", unit="chunk"))
    write_records(out / "records.jsonl", [record for records, _ in results for record in records])
    truth = {name: np.concatenate([part[name] for _, part in results]) for name in results[0][1]}
    with atomic_file(out / "truth.npz") as temporary:
        np.savez_compressed(temporary, **truth)  # the temporary name ends in .npz too, so numpy leaves it alone
    with atomic_file(marker) as temporary:
        temporary.write_text(json.dumps(settings))
    return out


def _write_chunk(
    people: np.ndarray, out: Path, per_identity: int, seed: int, size: int, framing: str, dense: bool = False
):
    rows = np.repeat(people, per_identity)
    scenes = np.tile(np.arange(per_identity), len(people))
    portraits = make_portraits(rows, scenes, seed, size, framing)
    names = [f"{person:06d}_{scene:02d}.png" for person, scene in zip(rows, scenes, strict=True)]
    squares = [tuple(round(float(v), 2) for v in square_box(box)) for box in portraits.boxes]
    records = []
    for i, name in enumerate(names):
        Image.fromarray(portraits.images[i]).save(out / "images" / name)
        # LaPa classes as the release stores them: class x 255 // 11, as 8-bit grey.
        grey = (portraits.masks[i].astype(np.uint16) * 255 // 11).astype(np.uint8)
        Image.fromarray(grey).save(out / "masks" / name)
        first = i - scenes[i]
        same_person = [j for j in range(first, first + per_identity) if j != i]
        records.append(
            Record(
                path=out / "images" / name,
                caption=portraits.captions[i],
                width=size,
                height=size,
                bbox=tuple(round(float(v), 2) for v in portraits.boxes[i]),
                square_bbox=squares[i],
                mask_path=out / "masks" / name,
                ref=tuple(RecordReference(out / "images" / names[j], squares[j]) for j in same_person),
                identity=f"{rows[i]:06d}",
                **(_dense(portraits, i, out / "depth" / name) if dense else {}),
            )
        )
    truth = {
        "boxes": portraits.boxes,
        "landmarks": portraits.landmarks,
        "pose": portraits.pose,
        "identity": portraits.identity,
        "identity_vectors": portraits.identity_vectors,
        "scene_vectors": portraits.scene_vectors,
        "captions": np.array(portraits.captions),
        **{f"attribute_{name}": value for name, value in portraits.attributes.items()},
    }
    return records, truth


def _dense(portraits: PortraitSet, row: int, depth: Path) -> dict[str, object]:
    """What a record of a dense world has besides; writes its depth. Poses are counted as `feedface.head_pose` does."""
    Image.fromarray((portraits.depth[row] * 255).round().astype(np.uint8)).save(depth)
    yaw, pitch, roll = (round(float(angle), 3) for angle in portraits.pose[row])
    return {
        "pose": (-yaw, -pitch, roll),
        "landmarks": tuple((round(float(x), 2), round(float(y), 2)) for x, y in portraits.landmarks[row]),
        "depth_path": depth,
        "attributes": {f"{k} {ATTRIBUTES[k][value[row]]}": 1.0 for k, value in portraits.attributes.items()},
    }


def read_world(out: str | os.PathLike) -> PortraitSet:
    """Read back what `write_world` wrote: pictures and masks decoded, rows in the order of records.jsonl."""
    out = Path(out)
    if not (out / "world.json").exists():
        raise UserError(f"{out}: holds no finished world; make one with python -m feedface.synthetic.world --out {out}")
    records = read_records(out / "records.jsonl")
    with np.load(out / "truth.npz") as file:
        truth = {name: file[name] for name in file.files}
    with ThreadPoolExecutor(2) as pool:
        images = np.stack(list(pool.map(_read_image, [record.path for record in records])))
        greys = np.stack(list(pool.map(_read_image, [record.mask_path for record in records])))
    return PortraitSet(
        images=images,
        masks=((greys.astype(np.uint16) * 11 + 254) // 255).astype(np.uint8),
        captions=truth.pop("captions").tolist(),
        attributes={name: truth.pop(f"attribute_{name}") for name in ATTRIBUTES},
        **truth,
    )


def _read_image(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)

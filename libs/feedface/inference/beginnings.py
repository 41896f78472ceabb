"""What a run begins with, out of the command line: pictures, masks, poses; and a folder of base pictures by people."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from feedface.common.errors import UserError
from feedface.common.files import make_folder
from feedface.common.images import SUFFIXES, read_image
from feedface.common.progress import progress, say
from feedface.common.saving import naming, save_png
from feedface.faces.parse import FOLDER as PARSER
from feedface.faces.parse import MiniParser, make_parser
from feedface.faces.pose import face_pose, parse_pose
from feedface.faces.references import find_faces
from feedface.inference.batching import batches
from feedface.inference.outputs import PictureInfo, read_fingerprint
from feedface.inference.stages import Batch, Request
from feedface.inference.start import Start, base_face, start_with, start_with_face
from feedface.pipeline import FeedFacePipeline
from feedface.settings import Settings

if TYPE_CHECKING:
    from feedface.faces.types import FaceDetector, FaceParser

Pose = tuple[float, float, float]


@dataclass
class Beginnings:
    """Makes a `Start` and a pose of files.

    `mask`: a file, or a folder with the names of the base pictures. `pose`: "yaw,pitch,roll", or a photo.
    """

    pipe: FeedFacePipeline
    detector: "FaceDetector"
    settings: Settings
    face: str | int | None = None
    strength: float = 1.0
    mask: str | None = None
    pose: str | None = None
    _parser: "FaceParser | None" = field(default=None, init=False)

    def of(
        self, base: str | Path | None, init: str | Path | None = None
    ) -> tuple[Start | None, Pose | None, list[str]]:
        """The start, the pose, and what to tell the user."""
        size = self.pipe.settings(self.settings).size
        if base is None:
            start = None
            if init is not None:
                start = start_with(read_image(Path(init)), size, self.strength, self._mask(Path(init)), self.mask)
            return start, self._pose(), []
        path = Path(base)
        picture, mask = read_image(path), self._mask(path)
        face, notice = base_face(picture, self.detector, path, self.face)
        parser = None if mask is not None else self.parser
        source = self.mask or "the face's region"
        start = start_with_face(picture, face, size, parser, mask, self.strength, source=source)
        pose = self._pose()
        if pose is None and self._turns_heads and face.landmarks is not None:
            pose = face_pose(face, self.detector.name)
        return start, pose, [notice] if notice else []

    @property
    def parser(self) -> "FaceParser":
        """The model's own, or facer."""
        if self._parser is None:
            own = self.pipe.bundle.extra(PARSER)
            self._parser = make_parser("facer") if own is None else MiniParser(own)
        return self._parser

    @property
    def _turns_heads(self) -> bool:
        method = self.pipe.bundle.described("method")
        return method is not None and getattr(method, "pose", None) is not None

    def _mask(self, picture: Path) -> np.ndarray | None:
        if self.mask is None:
            return None
        file = Path(self.mask)
        return read_image(file / picture.name if file.is_dir() else file).max(axis=-1)

    def _pose(self) -> Pose | None:
        if self.pose is None:
            return None
        if not Path(self.pose).is_file():
            return parse_pose(self.pose)
        photo = read_image(Path(self.pose))
        face, _ = base_face(photo, self.detector, self.pose, self.face)
        return face_pose(face, self.detector.name)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, by name; `UserError` for one without."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise UserError(f"{folder}: no pictures in it")
    return found


def people_in(folder: Path) -> list[tuple[str, Path]]:
    """(name, photo) of all photos of all people: NAME/images/*.png, or NAME/*.png."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    people = sorted(path for path in folder.iterdir() if path.is_dir())
    if not people:
        raise UserError(f"{folder}: no folders of people in it, such as {folder}/anna/1.png")
    found = []
    for person in people:
        inside = person / "images"
        found += [(person.name, photo) for photo in pictures_in(inside if inside.is_dir() else person)]
    return found


def run_folders(
    begin: Beginnings,
    bases: Path,
    people: Path,
    prompt: str,
    seed: int,
    output: Path,
    batch_size: int | None = None,
) -> int:
    """Each base picture with each photo's face, as BASE_PERSON_PHOTO.png in `output`; what is there already stays.

    Returns the exit code: 2 where some could not be made, each said.
    """
    pipe, settings = begin.pipe, begin.pipe.settings(begin.settings)
    with naming(output):
        make_folder(output)
    identities, digests, failed = {}, {}, 0
    for name, photo in people_in(people):
        try:
            references, _ = find_faces([photo], begin.detector, begin.face)
            identities[name, photo], digests[name, photo] = pipe.identity(references), references[0].digest
        except UserError as error:
            failed += 1
            say(f"note: {error}")
    wanted: list[tuple[Path, PictureInfo, Request]] = []
    for base in pictures_in(bases):
        try:
            start, pose, notices = begin.of(base)
        except UserError as error:
            failed += 1
            say(f"note: {error}")
            continue
        for notice in notices:
            say(f"note: {notice}")
        own = pipe.picture_settings(settings) | start.settings | ({} if pose is None else {"pose": list(pose)})
        for (name, photo), identity in identities.items():
            info = PictureInfo(prompt, seed, pipe.bundle.name, pipe.digest, own, (digests[name, photo],))
            shown = identity if pose is None else pipe.posed(identity, pose)
            path = output / f"{base.stem}_{name}_{photo.stem}.png"
            if path.exists():
                if read_fingerprint(path) != info.fingerprint:
                    raise UserError(f"{path}: is there already, made in another way; name another --output")
                continue
            wanted.append((path, info, Request(prompt, seed, shown, start)))
    size = batch_size or pipe.batch_size(settings)
    with progress(total=settings.steps * len(wanted), desc="drawing", disable=not wanted) as bar:
        groups = batches(wanted, size, lambda item: tuple(sorted(item[2].identity)))
        for batch, images in pipe.draw_batches(
            (Batch([request for *_, request in group], settings, group) for group in groups), bar.update
        ):
            if isinstance(images, UserError):
                raise images
            for (path, info, _), image in zip(batch.items, images, strict=True):
                save_png(image, path, info.metadata(), new=True)
    say(f"{len(wanted)} picture(s) made in {output}; {failed} file(s) could not be used")
    return 2 if failed else 0

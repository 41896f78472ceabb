"""What records know of a picture besides its caption: the head's pose, face classes, depth, landmarks, attributes.

All on the picture that training sees, the centre square, mirrored where the draw says so.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from feedface.common.errors import UserError
from feedface.common.images import read_image
from feedface.data.masks import read_mask
from feedface.data.records import Record
from feedface.data.transforms import centre_square
from feedface.diffusion.batch import Draws
from feedface.faces.types import LAPA_VALUES
from feedface.head_pose import mirrored

KINDS = ("pose", "parsing", "depth", "landmarks", "attributes")
LEFT_RIGHT = np.array([0, 1, 3, 2, 5, 4, 6, 7, 8, 9, 10])  # classes of the mirrored picture
# Of five points, which stands where in the mirrored picture. Of other numbers of points nobody says.
MIRRORED_POINTS = {5: [1, 0, 2, 4, 3]}


class Labels:
    """Labels of records, read when they are asked for.

    Args:
        kinds: which, of `KINDS`; every record must have them.
        grid: side of maps.
        attributes: names, in the order of the vector; a name that a record has not counts as 0.
        mirrored: whether pictures may be mirrored.

    `UserError` for a record without one of them, and for landmarks that cannot be mirrored.
    """

    def __init__(
        self, records: Sequence[Record], kinds: Sequence[str], grid: int, attributes: Sequence[str], mirrored: bool
    ):
        self.records, self.kinds, self.grid, self.attributes = records, list(kinds), grid, list(attributes)
        has = {"pose": "pose", "parsing": "mask_path", "depth": "depth_path"}
        for record in records:
            for kind in kinds:
                key = has.get(kind, kind)
                if not getattr(record, key):
                    raise UserError(f"{record.origin}: has no {key}, which this training needs (make_data.py --dense)")
            if "landmarks" in kinds and len(record.landmarks) != len(records[0].landmarks):
                raise UserError(
                    f"{record.origin}: landmarks: {len(record.landmarks)} points, but {records[0].origin} has "
                    f"{len(records[0].landmarks)}"
                )
        if mirrored and "landmarks" in kinds and len(records[0].landmarks) not in MIRRORED_POINTS:
            raise UserError(
                f"config.data.flip: {len(records[0].landmarks)} landmarks cannot be mirrored, five can; use 0"
            )

    def captions(self, draws: Draws) -> list[str]:
        return [self.records[row].caption for row in draws.rows.tolist()]

    def __call__(self, draws: Draws) -> dict[str, Tensor]:
        """By kind: "pose" [B,3]; "parsing" uint8 [B,g,g]; "depth" [B,1,g,g] in 0…1; "landmarks" [B,K,2] in 0…1 of the
        square; "attributes" [B,A]."""
        rows = list(zip(draws.rows.tolist(), draws.flip.tolist(), strict=True))
        found = {
            kind: torch.stack(
                [torch.as_tensor(getattr(self, f"_{kind}")(self.records[row], flip)) for row, flip in rows]
            )
            for kind in self.kinds
        }
        if "pose" in found:
            found["pose"] = torch.where(draws.flip[:, None], mirrored(found["pose"]), found["pose"])
        return found

    def _pose(self, record: Record, flip: bool) -> Tensor:
        return torch.tensor(record.pose)

    def _parsing(self, record: Record, flip: bool) -> np.ndarray:
        values = read_mask(record.mask_path)
        classes = np.searchsorted(LAPA_VALUES, self._square(values, record, Image.Resampling.NEAREST)).astype(np.uint8)
        return LEFT_RIGHT[classes[:, ::-1]].astype(np.uint8) if flip else classes

    def _depth(self, record: Record, flip: bool) -> np.ndarray:
        grey = read_image(record.depth_path)[..., 0]
        depth = self._square(grey, record, Image.Resampling.BOX).astype(np.float32)[None] / 255
        return depth[..., ::-1].copy() if flip else depth

    def _landmarks(self, record: Record, flip: bool) -> np.ndarray:
        x0, y0, x1, _ = centre_square(record.width, record.height)
        points = (np.array(record.landmarks, np.float32) - (x0, y0)) / (x1 - x0)
        points = points.astype(np.float32)
        if not flip:
            return points
        points[:, 0] = 1 - points[:, 0]
        return points[MIRRORED_POINTS[len(points)]]

    def _attributes(self, record: Record, flip: bool) -> Tensor:
        return torch.tensor([float(record.attributes.get(name, 0)) for name in self.attributes])

    def _square(self, values: np.ndarray, record: Record, method: Image.Resampling) -> np.ndarray:
        height, width = values.shape
        if abs(width * record.height - height * record.width) > max(record.width, record.height):
            raise UserError(f"{record.origin}: a map of {width} x {height} for {record.width} x {record.height} pixels")
        box = centre_square(width, height)
        return np.asarray(Image.fromarray(values).resize((self.grid, self.grid), method, box=box))

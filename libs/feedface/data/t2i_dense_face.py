"""T2I-Dense-Face, the authors' data set: its masks of face parts, RGB pictures in ten colours.

Source: Guo et al. 2024, "Dense-Face"; the colours are matplotlib's "Paired".
"""

import numpy as np

# By number: background, face, nose, eye on the picture's right and left, brow right and left, mouth's inside, upper and
# lower lip.
PALETTE = np.array(
    [
        (166, 206, 227), (31, 120, 180), (178, 223, 138), (51, 160, 44), (251, 154, 153), (227, 26, 28),
        (253, 191, 111), (255, 127, 0), (202, 178, 214), (106, 61, 154),
    ],
    np.uint8,
)  # fmt: skip
# The classes of `faces.parse` for them; the picture's left is the person's right.
LAPA_CLASSES = np.array([0, 1, 6, 5, 4, 3, 2, 8, 7, 9], np.uint8)
# In which order the authors' program stacks them.
CHANNELS = (0, 7, 6, 1, 4, 2, 8, 5, 9, 3)
BLOCK = 4


def palette_parts(mask: np.ndarray) -> np.ndarray:
    """RGB [H,W,3] -> bool [10,H/4,W/4]: the parts that have at least half of a block of pixels, of one colour exactly.

    So a block of two halves is both, and one of many small parts none.
    """
    parts = (mask == PALETTE[list(CHANNELS), None, None]).all(axis=-1)  # [10,H,W]
    count, height, width = parts.shape
    blocks = parts.reshape(count, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return blocks.mean(axis=(2, 4)) >= 0.5


def palette_classes(mask: np.ndarray) -> np.ndarray:
    """RGB [H,W,3] -> the nearest colours' classes, uint8 [H,W], as `faces.parse` numbers them."""
    distance = np.square(mask[:, :, None].astype(np.int32) - PALETTE.astype(np.int32)).sum(axis=-1)
    return LAPA_CLASSES[distance.argmin(axis=-1)]

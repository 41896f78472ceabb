"""Detectors and recognisers on photos: what they find, mistake and cost. Prints the tables of docs/faces.md.

    python -m research.benchmarks.photos ../shared/photos                       # detectors that are on this machine
    python -m research.benchmarks.photos ../shared/photos --recogniser sface    # or a file: same and different people

Photos lie in the folder or in folders of it, and show one person each, named by what stands before the first "_".
A face is found if the box holds the point between the eyes: where YuNet sees the eyes in the photo as it is.
"""

import argparse
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np

from feedface.common.images import read_image
from feedface.faces.crop import crop_square, square_box
from feedface.faces.detect import make_detector
from feedface.faces.types import FaceDetector

TURNS = (15, 30, 45, 60, 90, 180)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--detectors", nargs="+", default=["opencv", "yunet"])
    parser.add_argument("--recogniser", help="sface, or an ONNX file")
    options = parser.parse_args()
    folders = (options.photos, *sorted(path for path in options.photos.iterdir() if path.is_dir()))
    truth = make_detector("yunet")
    for folder in folders:
        files = sorted(folder.glob("*.jpg"))
        if not files:
            continue
        photos = [read_image(file) for file in files]
        if options.recogniser:
            print(f"{folder.name}: {recognised(files, photos, options.recogniser)}")
            continue
        faces = [truth.detect(photo)[0] for photo in photos]
        eyes = [face.landmarks[:2].mean(0) for face in faces]
        print(f"{folder.name}, {len(photos)} photos: found / photos with false boxes / seconds a photo")
        print(f"| photos | {' | '.join(options.detectors)} |")
        detectors = [make_detector(name) for name in options.detectors]
        row("as they are", detectors, [(photo, eye) for photo, eye in zip(photos, eyes, strict=True)])
        for part, name in ((1.1, "cut to the face, x 1.1"), (1.5, "cut to the face, x 1.5")):
            row(name, detectors, [cut(photo, face, part) for photo, face in zip(photos, faces, strict=True)])
        for turn in TURNS:
            row(f"turned by {turn}°", detectors, [turned(p, eye, turn) for p, eye in zip(photos, eyes, strict=True)])
        row("without the face", detectors, [(hidden(p, face), None) for p, face in zip(photos, faces, strict=True)])


def row(name: str, detectors: Sequence[FaceDetector], cases: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> None:
    """A line of the table: each detector on (picture, point in the face or None)."""
    cells = []
    for detector in detectors:
        begin = time.perf_counter()
        answers = [[face.box for face in detector.detect(picture)] for picture, _ in cases]
        seconds = (time.perf_counter() - begin) / len(cases)
        hits = [
            [point is not None and holds(box, point) for box in boxes]
            for boxes, (_, point) in zip(answers, cases, strict=True)
        ]
        found, false = sum(map(any, hits)), sum(not all(each) for each in hits)
        cells.append(f"{found} / {false} / {seconds:.2f}")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def holds(box: np.ndarray, point: np.ndarray) -> bool:
    return box[0] < point[0] < box[2] and box[1] < point[1] < box[3]


def cut(photo: np.ndarray, face, part: float) -> tuple[np.ndarray, np.ndarray]:
    x0, y0, x1, y1 = square_box(face.box, part)
    return crop_square(photo, (x0, y0, x1, y1)), face.landmarks[:2].mean(0) - (x0, y0)


def turned(photo: np.ndarray, point: np.ndarray, turn: float) -> tuple[np.ndarray, np.ndarray]:
    height, width = photo.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), turn, 1)
    size = np.ceil(np.abs(matrix[:, :2]) @ (width, height)).astype(int)
    matrix[:, 2] += size / 2 - (width / 2, height / 2)
    return cv2.warpAffine(photo, matrix, size.tolist(), borderMode=cv2.BORDER_REPLICATE), matrix @ (*point, 1)


def hidden(photo: np.ndarray, face) -> np.ndarray:
    """The photo with the head blurred away: what is found in it is false."""
    x0, y0, x1, y1 = (max(0, round(side)) for side in square_box(face.box, 2.0))
    blurred = photo.copy()
    small = cv2.resize(photo[y0:y1, x0:x1], (2, 2), interpolation=cv2.INTER_AREA)
    blurred[y0:y1, x0:x1] = cv2.resize(small, (photo[y0:y1, x0:x1].shape[1], photo[y0:y1, x0:x1].shape[0]))
    return blurred


def recognised(files: Sequence[Path], photos: Sequence[np.ndarray], name: str) -> str:
    """Cosines of pairs of photos of the same and of different people."""
    detector = make_detector(f"yunet+{name}")
    begin = time.perf_counter()
    embeddings = [detector.detect(photo)[0].embedding for photo in photos]
    seconds = (time.perf_counter() - begin) / len(photos)
    people = [file.name.partition("_")[0] for file in files]
    pairs: dict[bool, list[float]] = {True: [], False: []}
    for i, j in combinations(range(len(files)), 2):
        pairs[people[i] == people[j]].append(float(embeddings[i] @ embeddings[j]))
    same, other = np.array(pairs[True]), np.array(pairs[False])
    auc = (same[:, None] > other).mean() + (same[:, None] == other).mean() / 2
    said = " ".join(
        f"{limit}: {(same >= limit).mean():.1%} / {(other >= limit).mean():.1%}," for limit in (0.2, 0.3, 0.4)
    )
    return (
        f"{detector.name}: same person {same.mean():.2f} ± {same.std():.2f} ({len(same)} pairs), different "
        f"{other.mean():.2f} ± {other.std():.2f} ({len(other)}), AUC {auc:.4f}; taken for one person from {said} "
        f"{seconds:.2f} s a photo"
    )


if __name__ == "__main__":
    main()

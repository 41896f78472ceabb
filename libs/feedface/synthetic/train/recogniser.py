"""Stage `recogniser`: the face encoder with its training head, as a face recogniser that insightface loads.

Nothing is trained here: the embedding that the encoder was trained with (stage `face_encoder`) tells people apart far
better than a network of its own did in the same time. Aligned crops of 112 px, which insightface hands over, are shown
to it as the square crops that it knows. It is no judge of what is drawn from that encoder's tokens: that is the
inspector's part.
"""

from pathlib import Path

import ml_collections
import numpy as np
import torch

from feedface.common.errors import UserError
from feedface.faces.detect import InsightFaceDetector
from feedface.faces.recogniser_net import CROP_PX, FOLDER, RecogniserNet
from feedface.synthetic.train.common import load_portraits
from feedface.synthetic.train.detector import PACK
from feedface.synthetic.train.export import export_onnx
from feedface.training.fit import FitResult, write_metrics


def load(config: ml_collections.ConfigDict, checkpoint: Path) -> RecogniserNet:
    """Encoder and head as stage `face_encoder`, on its `config`, left them in its `checkpoint`."""
    averages = torch.load(checkpoint, weights_only=True)["ema"]
    state = {key.removeprefix("module."): value for key, value in averages.items()}
    kept = {key: value for key, value in state.items() if not key.startswith(("n_averaged", "head.numbers."))}
    network = RecogniserNet(config.face_size, config.patch_size, config.width, config.layers - 1, config.embedding_dim)
    network.load_state_dict(kept | dict(network.named_buffers(recurse=False)))
    return network.eval()


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Write the network `<workdir>/bundle/recogniser/` and the pack's `recogniser.onnx`; measure the pack."""
    settings, checkpoint = config.face_encoder, workdir / "face_encoder" / "checkpoint.pt"
    for file in (checkpoint, workdir / PACK / "detector.onnx"):
        if not file.is_file():
            raise UserError(f"{file}: is missing; first come the stages face_encoder and detector")
    network = load(settings, checkpoint)
    network.save_pretrained(workdir / "bundle" / FOLDER)
    save(network, workdir / PACK / "recogniser.onnx")
    found = measure(InsightFaceDetector(PACK.name, workdir / PACK.parents[1]), load_portraits(workdir, "held_out"))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    write_metrics(workdir / "recogniser", settings, FitResult(0, 0, 0.0, None, parameters), **found)


def save(network: RecogniserNet, path: Path) -> None:
    """Write the recogniser as ONNX for one 112 x 112 crop."""
    export_onnx(network, torch.zeros(1, 3, CROP_PX, CROP_PX), path, ["embedding"])


def measure(pack: InsightFaceDetector, portraits, pictures_each: int = 2, people: int = 100) -> dict[str, float]:
    """How well the pack, detector and recogniser together, knows people it has never seen.

    nearest: how often the person's other picture is the closest among one picture each of `people`; same and
    different: mean cosine of two pictures of one person, and of two persons; missed: pictures without a found face.
    """
    gallery, probes, missed = [], [], 0
    for person in np.unique(portraits.identity)[:people]:
        rows = np.flatnonzero(portraits.identity == person)[:pictures_each]
        found = [pack.detect(portraits.images[row]) for row in rows]
        missed += sum(not faces for faces in found)
        if len(found) == pictures_each and all(found):
            gallery.append(found[0][0].embedding)
            probes.append(found[1][0].embedding)
    if not gallery:
        return {"missed": missed}
    cosines = np.stack(probes) @ np.stack(gallery).T
    others = cosines[~np.eye(len(cosines), dtype=bool)]
    return {
        "nearest": round(float((cosines.argmax(1) == np.arange(len(cosines))).mean()), 4),
        "same": round(float(np.diag(cosines).mean()), 4),
        "different": round(float(others.mean()), 4) if others.size else float("nan"),
        "missed": missed,
    }

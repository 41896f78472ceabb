"""Pictures while training: every so often the same people and prompts, drawn with the weights as they are then.

    workdir/samples/0000048000.png        after 48 000 samples; a row for each person: the reference, then the prompts
    workdir/samples/inputs.safetensors    features of these prompts and faces, so that no encoder is needed again

Shapes: P people, K prompts, T text tokens, n tokens of a face, S picture side.
"""

import gc
import hashlib
import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ml_collections
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from feedface.checkpoints.bundle import load_bundle, read_index
from feedface.common.errors import UserError
from feedface.common.files import atomic_file
from feedface.common.images import read_image
from feedface.common.reading import check_file, foreign
from feedface.common.saving import save_png
from feedface.data.records import Record
from feedface.diffusion.sampling import sample
from feedface.encoders import preprocess_reference
from feedface.faces.crop import crop_square
from feedface.inference.batching import sample_options
from feedface.settings import Settings
from feedface.training.controlled import ControlledBackbone
from feedface.training.setup import Models

LOOKED_AT = 1000  # of the records, for whether the people may have changed
INPUTS = ("text", "empty_text", "references")  # beside the method's features
CELL_PX, GAP_PX, FONT_PX, LINES = 256, 8, 14, 4
INK, PAPER = (20, 20, 20), (255, 255, 255)


class SampleGrid:
    """Draws the grid of a run. Making one encodes prompts and faces, unless `workdir` has them from an earlier start.

    The people are the first `config.log.people` of the records whose picture can be read; all records with the same
    `identity` are one person. Only the main process needs one.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        models: Models,
        records: Sequence[Record],
        workdir: Path,
        device: torch.device,
    ):
        self.models, self.device, self.folder = models, device, workdir / "samples"
        self.prompts = list(config.log.prompts)
        self.batch_size = config.train.batch_size
        base = read_index(models.base)
        # Without a few-step adapter: it goes with the weights before this training.
        self.settings = Settings().for_model(base.defaults, base.image_size, base.size_multiple)
        inputs = self._inputs(records, config.log.people)
        # text [K,T,Dt], empty_text [1,T,Dt], features [P,…] by name, references uint8 [P,S,S,3]
        self.text, self.empty_text, references = (inputs[name] for name in INPUTS)
        self.features = {name: value for name, value in inputs.items() if name not in INPUTS}
        self.references = references.numpy()

    def draw(self, samples: int) -> Path:
        """Draw with the weights that `models.trained` has now and write the grid of a run that saw `samples` samples.

        Leaves everything as it was: weights, flags of the modules, the state of all random generators.
        """
        with self._generators_kept(), torch.no_grad():
            with _inference(self.models.trained):
                latents = self._latents()
            pictures = self._decode(latents)
        path = self.folder / f"{samples:010d}.png"
        rows = [pictures[begin : begin + len(self.prompts)] for begin in range(0, len(pictures), len(self.prompts))]
        save_png(_layout(self.references, self.prompts, rows), path)
        return path

    def _generators_kept(self):
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    def _latents(self) -> Tensor:
        """[P*K,C,h,w], person after person. A column has one seed, so that its pictures differ by the face only."""
        backbone, method = self.models.trained.backbone, self.models.trained.method
        settings, dtype = self.settings, self.models.trained.dtype
        cells = [(person, prompt) for person in range(len(self.references)) for prompt in range(len(self.prompts))]
        latents = []
        text_encoder = None
        if method.changes_prompt:  # in memory only meanwhile
            text_encoder = load_bundle(self.models.base, self.device, dtype, ["text_encoder"]).text_encoder
        # As in training: what is trained is float32, and its products are in the backbone's precision.
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            for begin in range(0, len(cells), self.batch_size):
                people, prompts = map(list, zip(*cells[begin : begin + self.batch_size], strict=True))
                features = {name: value[people][:, None].to(self.device) for name, value in self.features.items()}
                identity = method.identity(features)
                prompt = {"text": self.text[prompts].to(self.device)}
                if text_encoder is not None:
                    prompt = method.prompt(text_encoder, [self.prompts[index] for index in prompts], identity)
                drawn = sample(
                    backbone,
                    prompt,
                    seeds=prompts,
                    empty_prompt={"text": self.empty_text.to(self.device)},
                    method=method,
                    identity=identity,
                    latent_size=self.models.state_shapes["img"][1:],
                    **sample_options(settings, None),
                )
                latents.append(drawn["img"])
        return torch.cat(latents)

    def _decode(self, latents: Tensor) -> list[np.ndarray]:
        """Each uint8 [S,S,3]. The VAE is in memory only meanwhile, and sees one latent at a time."""
        vae = load_bundle(self.models.base, self.device, torch.float32, ["vae"]).vae
        pixels = [((vae.decode(latent[None])[0] + 1) * 127.5).round().byte() for latent in latents]
        return [picture.permute(1, 2, 0).cpu().numpy() for picture in pixels]

    # -------------------------------------------------------------------------------------------------------- inputs

    def _inputs(self, records: Sequence[Record], people: int) -> dict[str, Tensor]:
        path = self.folder / "inputs.safetensors"
        what = [[str(r.path), r.square_bbox, r.identity] for r in records[:LOOKED_AT]]
        settings = [self.prompts, people, self.models.image_size, self.models.sources.precision]
        digest = hashlib.sha256(json.dumps([settings, self.models.sources.hashes(), what]).encode()).hexdigest()
        kept = _read(path, digest)
        if kept is not None:
            return kept
        crops = _first_crops(records, people)
        with self._generators_kept():
            inputs = self._encode(crops)
        size = self.models.image_size
        small = [np.array(Image.fromarray(crop).resize((size, size), Image.Resampling.LANCZOS)) for crop in crops]
        inputs["references"] = torch.from_numpy(np.stack(small))
        with atomic_file(path) as temporary:
            save_file(inputs, temporary, metadata={"digest": digest})
        return inputs

    def _encode(self, crops: list[np.ndarray]) -> dict[str, Tensor]:
        encoders = self.models.sources.load(self.device)
        spec = self.models.trained.method.reference
        features = [encoders.references(preprocess_reference(spec, crop)[None]) for crop in crops]
        inputs = {"text": encoders.text(self.prompts), "empty_text": encoders.text([""])}
        inputs |= {name: torch.cat([one[name] for one in features]) for name in features[0]}
        del encoders
        gc.collect()  # modules refer to themselves
        return {name: value.cpu().contiguous() for name, value in inputs.items()}


def _read(path: Path, digest: str) -> dict[str, Tensor] | None:
    """What the file holds if it is whole and of `digest`."""
    try:
        check_file(path)
        with foreign(path), safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("digest") == digest:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except UserError:
        pass
    return None


def _first_crops(records: Iterable[Record], people: int) -> list[np.ndarray]:
    """Square face crops, uint8 RGB, of the first `people` people; who has no whole picture is passed over."""
    crops: dict[str, np.ndarray] = {}
    for record in records:
        person = str(record.path) if record.identity is None else record.identity
        if person in crops:
            continue
        faceless = record.mask_path is None  # its references are face crops
        if faceless and not record.ref:
            continue
        try:
            picture = read_image(record.ref[0].path if faceless else record.path)
        except UserError:
            continue
        if faceless:
            crops[person] = picture
        elif picture.shape[:2] == (record.height, record.width):
            crops[person] = crop_square(picture, record.square_bbox)
        if len(crops) == people:
            break
    if not crops:
        raise UserError("no picture of the records can be read, so there is nobody to draw; check config.data.records")
    return list(crops.values())


@contextmanager
def _inference(model: ControlledBackbone) -> Iterator[None]:
    """Inside the `with`, `model` infers; after it, every module is as it was."""
    training = {module: module.training for module in model.modules()}
    checkpointing = model.backbone.gradient_checkpointing
    model.eval()
    model.backbone.gradient_checkpointing = False
    try:
        # Where blocks are compiled, compiling them again for these shapes takes longer than drawing does.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.backbone.gradient_checkpointing = checkpointing
        for module, flag in training.items():
            module.training = flag


def _layout(references: np.ndarray, prompts: list[str], rows: list[list[np.ndarray]]) -> Image.Image:
    font = ImageFont.load_default(FONT_PX)
    line = FONT_PX + 4
    per_line = int(CELL_PX / font.getlength("n"))
    headers = [textwrap.wrap(text, per_line, max_lines=LINES, placeholder=" …") for text in ("reference", *prompts)]
    top = max(map(len, headers)) * line + 2 * GAP_PX
    width = len(headers) * (CELL_PX + GAP_PX) + GAP_PX
    sheet = Image.new("RGB", (width, top + len(rows) * (CELL_PX + GAP_PX)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, header in enumerate(headers):
        left = GAP_PX + column * (CELL_PX + GAP_PX)
        for index, text in enumerate(header):
            draw.text((left, GAP_PX + index * line), text, INK, font)
        for row, (reference, pictures) in enumerate(zip(references, rows, strict=True)):
            cell = Image.fromarray(pictures[column - 1] if column else reference)
            cell = cell.resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS)
            sheet.paste(cell, (left, top + row * (CELL_PX + GAP_PX)))
    return sheet

"""The judges of pictures: who is it (a face recogniser, the mini world's inspector), does it fit the prompt (a CLIP)?

faces = PackJudge("buffalo_l").look(pictures)
clip = ClipJudge.load("openai/clip-vit-base-patch32", device)
cosines = (clip.images(pictures) * clip.texts(prompts)).sum(1)

Pictures are uint8 RGB [H, W, 3], of any size each. Letters: N pictures, M prompts, E width of a face embedding, D of a
CLIP embedding.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from feedface.checkpoints.bundle import Bundle, load_bundle
from feedface.checkpoints.libraries import from_pretrained
from feedface.checkpoints.storage import quiet_transformers, read_safetensors
from feedface.common.errors import UserError
from feedface.common.reading import foreign
from feedface.encoders import TEXT_PROJECTION, ImageEncoder, check_vocabulary, load_tokenizer
from feedface.evaluation.inspector import Inspector
from feedface.faces.crop import crop_square, square_box
from feedface.faces.detect import INSIGHTFACE_ROOT, Face, InsightFaceDetector

BATCH_SIZE = 64
USUAL_CLIP = "https://huggingface.co/openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class NotMeasured:
    """Stands where a judge cannot be had: `reason` says in one line why, and how to measure."""

    reason: str


@dataclass(frozen=True)
class FaceFeatures:
    """What a face judge sees in N pictures.

    Attributes:
        embeddings: [N, E] float32 of length 1, zeros where no face is found.
        found: bool [N].
        faces: the largest of each; None where there is none, or where the judge looks at whole pictures.
    """

    embeddings: np.ndarray
    found: np.ndarray
    faces: list[Face | None]

    def crops(self, pictures: Iterable[np.ndarray]) -> list[np.ndarray]:
        """The squares around the faces, as `faces.crop` cuts them, of the pictures that have one, in order."""
        pairs = zip(pictures, self.faces, strict=True)
        return [crop_square(picture, square_box(face.box)) for picture, face in pairs if face is not None]


class FaceJudge(Protocol):
    name: str

    def look(self, pictures: Sequence[np.ndarray]) -> FaceFeatures: ...


class PackJudge:
    """An insightface pack (`buffalo_l`, mini, ...): its detector finds the face, its recogniser says whose it is.

    Insightface's own packs are for non-commercial research only.

    Args:
        name, root: the folder `{root}/models/{name}` of ONNX files.
        device, threads: see `faces.detect.InsightFaceDetector`.

    Raises:
        UserError: the pack is missing or broken, or has no recogniser.
    """

    def __init__(self, name: str, root: str | Path = INSIGHTFACE_ROOT, device: str = "cpu", threads: int | None = None):
        self.name = name
        self._detector = InsightFaceDetector(name, root, device, threads=threads)
        if not self._detector.has_recogniser:
            raise UserError(f"the face models {name!r} have no recogniser; judge with buffalo_l, or with mini")
        self._recogniser = self._detector._analysis.models["recognition"]

    def faces(self, pictures: Iterable[np.ndarray]) -> list[Face | None]:
        """The largest face of each picture with its embedding, or None."""
        return [next(iter(self._detector.detect(picture)), None) for picture in pictures]

    def look(self, pictures: Iterable[np.ndarray]) -> FaceFeatures:
        faces = self.faces(pictures)
        width = self._recogniser.output_shape[-1]
        width = width if isinstance(width, int) else 512  # a file may leave it open; ArcFace's is 512
        embeddings = np.zeros((len(faces), width), np.float32)
        for row, face in enumerate(faces):
            if face is not None:
                embeddings[row] = face.embedding
        return FaceFeatures(embeddings, np.array([face is not None for face in faces], bool), faces)

    def check_apart(self, bundle: Bundle) -> None:
        """`UserError` if the recogniser is, byte for byte, a file that the model encodes faces with.

        A model that has learned to please its judge proves nothing.
        """
        source = bundle.components.get("method")
        if source is None:
            return
        own = Path(self._recogniser.model_file)
        files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
        for path in files:
            if path.stat().st_size == own.stat().st_size and _sha256(path) == _sha256(own):
                raise UserError(
                    f"the judge {self.name!r} is the model's own face encoder ({path} is its {own.name}), so its "
                    "verdict would prove nothing; judge with another pack"
                )


class InspectorJudge:
    """The inspector says who it is, looking at the whole picture; a pack, where there is one, says where the face is.

    A picture in which the pack finds no face has none. Without a pack every picture counts as one with a face.
    """

    name = "inspector"

    def __init__(self, inspector: Inspector, pack: PackJudge | None):
        self.inspector, self.pack = inspector, pack

    def look(self, pictures: Sequence[np.ndarray]) -> FaceFeatures:
        embeddings = self.inspector.inspect(np.stack(pictures)).embedding
        if self.pack is None:
            return FaceFeatures(embeddings, np.ones(len(pictures), bool), [None] * len(pictures))
        faces = self.pack.faces(pictures)
        found = np.array([face is not None for face in faces])
        return FaceFeatures(np.where(found[:, None], embeddings, 0), found, faces)


class ClipJudge:
    """Pictures and prompts in one space (Radford et al. 2021); made by `load`.

    Attributes:
        name: where it came from.
        reason: None; see `NotMeasured`.
        text_reason: why `texts` cannot be had, or None if it can.
    """

    reason: str | None = None

    def __init__(self, name: str, towers: "_WholeClip | _BundleClip", batch_size: int = BATCH_SIZE):
        self.name, self.text_reason = name, towers.text_reason
        self._towers, self._batch_size = towers, batch_size

    @classmethod
    def load(
        cls, source: str | Path | None, device: str | torch.device = "cpu", bundle: Bundle | None = None
    ) -> "ClipJudge | NotMeasured":
        """A CLIP in single precision.

        Args:
            source: a folder that transformers' `CLIPModel.save_pretrained` and processor wrote, or a name on the
                model hub. None: the two encoders of `bundle`, as the miniature has them.
            device: as PyTorch names it.
            bundle: only its path and components are used, whatever parts of it are loaded.

        Returns:
            The judge, or `NotMeasured` if `source` is None and there is no such bundle.

        Raises:
            UserError: what `source` names is missing, broken, or not a whole CLIP.
        """
        if source is not None:
            return cls(str(source), _WholeClip(source, device))
        if bundle is None or not {"image_encoder", "text_encoder", "tokenizer"} <= set(bundle.components):
            return NotMeasured(f"no CLIP was named; download {USUAL_CLIP} and give its folder with --clip")
        return cls(f"{bundle.name}'s own encoders", _BundleClip(bundle, device))

    def images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Embed N pictures: float32 [N, D], length 1."""
        return self._embed(self._towers.images, pictures)

    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        """Embed M prompts: float32 [M, D], length 1, all NaN where there is a `text_reason`.

        What exceeds CLIP's text length is cut.
        """
        if self.text_reason is not None:
            return np.full((len(prompts), self._towers.width), np.nan, np.float32)
        return self._embed(self._towers.texts, prompts)

    @torch.inference_mode()
    def _embed(self, tower, items: Sequence) -> np.ndarray:
        parts = [items[start : start + self._batch_size] for start in range(0, len(items), self._batch_size)]
        rows = [F.normalize(tower(part).float(), dim=-1).cpu().numpy() for part in parts]
        return np.concatenate(rows) if rows else np.zeros((0, self._towers.width), np.float32)


class _WholeClip:
    """transformers' `CLIPModel` with the picture processor and tokenizer that came with it."""

    text_reason = None

    def __init__(self, source: str | Path, device: str | torch.device):
        from transformers import CLIPImageProcessorPil, CLIPModel

        folder = _local(source)
        try:
            # A single tower, for example, is refused: the rest would be random.
            model = from_pretrained(CLIPModel, folder, whole=False, dtype=torch.float32)
            # The other one needs torchvision, and resizes a little differently.
            with foreign(folder), quiet_transformers():
                self._processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
            self._tokenizer = load_tokenizer(folder)
        except UserError as error:
            raise UserError(f"{source}: not a CLIP model: {error}") from error
        text = model.config.text_config
        check_vocabulary(self._tokenizer, text.vocab_size)
        self._length, self.width = text.max_position_embeddings, model.config.projection_dim
        self._model = model.to(device).eval().requires_grad_(False)

    def images(self, pictures: Sequence[np.ndarray]) -> Tensor:
        pixels = self._processor([Image.fromarray(picture) for picture in pictures], return_tensors="pt").pixel_values
        return self._model.get_image_features(pixel_values=pixels.to(self._model.device)).pooler_output

    def texts(self, prompts: Sequence[str]) -> Tensor:
        tokens = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self._length, return_tensors="pt"
        )
        return self._model.get_text_features(**tokens.to(self._model.device)).pooler_output


class _BundleClip:
    """A bundle's image encoder, and its text encoder where a projection into the same space lies beside it.

    Not independent: the model was trained on these embeddings. Good for what changes in the background, and for
    comparing settings of one model.
    """

    def __init__(self, bundle: Bundle, device: str | torch.device):
        # Anew from its files: what drew the pictures may be in half precision, and has no image encoder.
        parts = load_bundle(bundle.path, device, torch.float32, components=["image_encoder", "text_encoder"])
        self._image: ImageEncoder = parts.image_encoder
        self._text, self._projection, self.text_reason = parts.text_encoder, None, None
        self.width = self._image.clip.config.projection_dim
        file = bundle.components["text_encoder"] / TEXT_PROJECTION
        if file.is_file():
            self._projection = _read_projection(file, self._text.clip.config.hidden_size, self.width, device)
        else:
            self.text_reason = (
                f"{bundle.name}'s text encoder has no projection into the space of its image encoder ({file}); "
                "name a whole CLIP with --clip"
            )

    def images(self, pictures: Sequence[np.ndarray]) -> Tensor:
        if len({picture.shape for picture in pictures}) == 1:  # one tensor is several times faster
            stack = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
            return self._image.encode(stack)[:, 0]
        return self._image.encode(pictures)[:, 0]

    def texts(self, prompts: Sequence[str]) -> Tensor:
        ids = self._text.tokenize(prompts).to(self._text.clip.device)
        return self._projection(self._text.clip(input_ids=ids).pooler_output)


def _read_projection(file: Path, inputs: int, outputs: int, device: str | torch.device) -> nn.Linear:
    weight = read_safetensors(file, device, torch.float32).get("weight")
    if weight is None or weight.shape != (outputs, inputs):
        found = "none" if weight is None else [*weight.shape]
        raise UserError(f'{file}: needs a matrix "weight" of {[outputs, inputs]}, found {found}')
    projection = nn.Linear(inputs, outputs, bias=False, device=device)
    projection.weight.data = weight
    return projection.requires_grad_(False)


def _local(source: str | Path) -> Path:
    """The folder itself, or that of a download from the model hub."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    # A name would do for transformers, but where files are missing it makes a tokenizer of two tokens.
    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    except Exception as error:  # offline, unknown, malformed: an exception of its own for each
        raise UserError(
            f"{source}: no such folder, and not to be had from the model hub ({type(error).__name__}); download "
            f"{USUAL_CLIP} and give its folder with --clip"
        ) from error


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Models on the Hugging Face hub: one folder that holds all of a model, with a card, up and down.

A model of the hub may not point outside its folder, and holds safetensors and JSON: nothing in it is run.
"""

import re
import shutil
import tempfile
from pathlib import Path

from feedface.checkpoints.bundle import Bundle, read_index, write_index
from feedface.checkpoints.index import INDEX
from feedface.common.errors import UserError
from feedface.common.files import atomic_folder

# What a model is made of: no pickles, no code.
PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.onnx", "README.md")
NAME = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}")


def is_hub_name(model: object) -> bool:
    """Whether it names a model of the hub, "user/name", and no file or folder that is there, or would be in one."""
    return isinstance(model, str) and NAME.fullmatch(model) is not None and not Path(model).parent.exists()


def fetch_model(name: str, revision: str | None = None) -> Path:
    """The folder of a model of the hub, downloaded to its cache where it is not there.

    `UserError` where it cannot be had, or points outside its folder.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(PATTERNS)))
    except Exception as error:  # offline, no such repository, no access: each has a class of its own
        raise UserError(
            f"{name}: no such folder, and cannot be had from the hub ({type(error).__name__}); check the name and the "
            "connection, or log in with `hf auth login`"
        ) from None
    if (folder / INDEX).is_file():
        outside = [part for part, path in read_index(folder).components.items() if not _inside(path, folder)]
        if outside:
            raise UserError(f"{name}: {INDEX} names a part outside the model ({', '.join(outside)}): not loaded")
    return folder


def _inside(path: Path, folder: Path) -> bool:
    # By the words of the path: the cache itself is made of links.
    parts = path.relative_to(folder).parts if path.is_relative_to(folder) else ("..",)
    return ".." not in parts


def save_model(bundle: Bundle, folder: Path) -> None:
    """Write all of a model of this project into one new folder, with a card. `UserError` for other models."""
    if not (bundle.path / INDEX).is_file():
        raise UserError(f"{bundle.path}: not a model folder of this project; convert it first (models/README.md)")
    index = read_index(bundle.path)
    with atomic_folder(folder) as temporary:
        components = {}
        for part, source in index.components.items():
            place = source.name if source.name not in components.values() else part
            shutil.copytree(source, temporary / place, symlinks=False)
            components[part] = place
        write_index(
            temporary, name=index.name, image_size=index.image_size, components=components, defaults=index.defaults
        )
        (temporary / "README.md").write_text(model_card(bundle), encoding="utf-8")


def push_model(bundle: Bundle, name: str, private: bool = True, message: str = "Upload a FeedFace model") -> str:
    """Upload a model to the hub, as `save_model` writes it; returns the address of the commit."""
    if NAME.fullmatch(name) is None:
        raise UserError(f"{name}: a model of the hub is called user/name")
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "model")
        save_model(bundle, folder)
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message=message))


def model_card(bundle: Bundle) -> str:
    """A README.md for the hub, out of what the model says of itself."""
    kinds = ", ".join(f"{part}: {kind}" for part, kind in bundle.kinds.items())
    defaults = ", ".join(f"{key} {value}" for key, value in bundle.defaults.items())
    return f"""---
library_name: feedface
pipeline_tag: text-to-image
tags: [feedface, personalization, face]
---
# {bundle.name}

Draws a person of one to five photos as a text describes, without training per person. {kinds}; {bundle.image_size} px.

```python
from feedface.pipeline import FeedFacePipeline

pipe = FeedFacePipeline.from_pretrained("USER/{bundle.name}")
pipe.set_faces(["face.png"], detector="auto")
[image] = pipe.generate("a photo of a smiling person on a beach", seed=7)
```
Defaults: {defaults}.

Draw people who agree to it. Each picture says in its metadata that a model made it; leave that in. Whoever publishes
this model fills in here what it was trained on, and its licence.
"""

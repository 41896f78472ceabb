"""AdaFace in its authors' files: Arc2Face's text encoder, and `embeddings_gs-*.pt`, a pickle of whole modules.

Of the pickle only tensors are read: every class and function that it names, but for what tensors are made of, becomes
an empty class of ours. Nothing of it is imported, nothing runs.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feedface.checkpoints.arc2face import TABLE, TEMPLATE, VECTORS, read_teacher, tower_of
from feedface.checkpoints.clip_tokenizer import clip_tokenizer
from feedface.checkpoints.foreign import check_state, read_checkpoint, read_weights
from feedface.common.errors import UserError
from feedface.common.reading import check_file, foreign
from feedface.methods.adaface import AdaFace
from feedface.methods.arc2face import SHARED, Arc2Face
from feedface.text_tower import LAYER_WEIGHTS

GENERATORS, PERSON = "string_to_subj_basis_generator_dict", "z"
WORDS, MIX, SUFFIX = "prompt2token_proj.", "hidden_state_layer_weights", "static_img_suffix_embs"
LAYER_WEIGHT_SOURCES = RESET, KEPT = ("reset", "checkpoint")  # what becomes of the file's layer weights


class _Stub:
    """Stands for whatever a pickle names: takes what is given to it, and does nothing."""

    def __init__(self, *args: object):
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass


def read_generators(path: str | os.PathLike) -> dict[str, dict[str, Tensor]]:
    """The state dicts of an `embeddings_gs` file's generators, by the person's word; without running any of it.

    `UserError` for a file that is damaged or something else.
    """
    path = Path(path)
    check_file(path)
    with foreign(f"{path}: broken or not a PyTorch checkpoint"):
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    stubs = [(type(name.rpartition(".")[2], (_Stub,), {}), name) for name in named]
    content = read_checkpoint(path, stubs)
    modules = content.get(GENERATORS) if isinstance(content, Mapping) else None
    found = dict(_children(modules))
    if not found:
        raise UserError(f"{path}: holds no {GENERATORS}, so it is no embeddings_gs file of AdaFace")
    states = {word: dict(_tensors(module)) for word, module in found.items()}
    for word, state in states.items():
        check_state(state, Path(f"{path}: {word}"))
    return states


def _children(module: Any) -> Iterator[tuple[str, Any]]:
    children = vars(module).get("_modules") if isinstance(module, _Stub) else None
    return iter(children.items()) if isinstance(children, Mapping) else iter(())


def _tensors(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a pickled module, by the names that a state dict has."""
    own = vars(module) if isinstance(module, _Stub) else {}
    for kind in ("_parameters", "_buffers"):
        values = own.get(kind)
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if isinstance(value, Tensor):
                yield prefix + name, value.detach()
    for name, child in _children(module):
        yield from _tensors(child, f"{prefix}{name}.")


def load_adaface(
    generators: str | os.PathLike, arc2face: str | os.PathLike, layer_weights: str = RESET, average: str = "embeddings"
) -> AdaFace:
    """The authors' model.

    Args:
        generators: `embeddings_gs-*.pt`, or a safetensors file with the keys of its generator "z".
        arc2face: the folder of Arc2Face (see `checkpoints.arc2face`), or of its text encoder, or that one's weights.
        layer_weights: "reset" to (1, 2, 4), as the authors' program does with every file that it reads, or those of
            the "checkpoint".
        average: see `AdaFace`.
    """
    path = Path(generators)
    if path.suffix == ".safetensors":
        state = read_weights(path)
    else:
        states = read_generators(path)
        if PERSON not in states:
            raise UserError(f"{path}: has no generator {PERSON!r}; it has {', '.join(states)}")
        state = states[PERSON]
    tokenizer = clip_tokenizer()
    ids = tokenizer(TEMPLATE + ", " * (VECTORS + 2), padding="max_length", max_length=77).input_ids
    return assembled(read_teacher(arc2face), state, ids, layer_weights, source=path, average=average)


def assembled(
    reader: Arc2Face,
    generator: Mapping[str, Tensor],
    ids: list[int],
    layer_weights: str = RESET,
    heads: int | None = None,
    source: object = "AdaFace's generator",
    **options: Any,
) -> AdaFace:
    """An `AdaFace` of a reader and a generator in the authors' naming; `ids` are what the latter reads.

    `options`: other arguments of `AdaFace`. `UserError` for weights that do not fit.
    """
    if SUFFIX in generator:
        raise UserError(f"{source}: has learned suffix vectors ({SUFFIX}), which a model on Arc2Face alone has not")
    words = {
        key.removeprefix(WORDS).removeprefix("text_model."): value
        for key, value in generator.items()
        if key.startswith(WORDS)
    }
    width, tower = tower_of(words, heads, source)
    if width != reader.config["width"]:
        raise UserError(f"{source}: of width {width}, but Arc2Face's text encoder has {reader.config['width']}")
    keys = [f"encoder.layers.{layer}.self_attn.k_proj.bias" for layer in range(tower["layers"])]
    if missing := [key for key in keys if key not in words]:
        raise UserError(f"{source}: has no {missing[0]}")
    shared = {name: reader.config[name] for name in SHARED}
    with foreign(f"{source}: does not describe an AdaFace"):
        method = AdaFace(
            width, reader.config["tower"], tower, **shared, copies=[len(words[key]) // width for key in keys], **options
        )
    method.reader.load_state_dict(reader.reader.state_dict())
    method.word_tower.load(words, source)
    with torch.no_grad():
        method.word_template.copy_(words[TABLE][ids])
        method.mix.weights.copy_(_layer_weights(generator, layer_weights, len(method.mix.weights)))
    return method.eval().requires_grad_(False)


def _layer_weights(generator: Mapping[str, Tensor], kind: str, count: int) -> Tensor:
    """[layers,1]; of old files, which have a weight for each channel, the mean over these."""
    if kind == RESET or MIX not in generator:
        return torch.tensor(LAYER_WEIGHTS[-count:])[:, None]
    return generator[MIX].float().mean(dim=1, keepdim=True)

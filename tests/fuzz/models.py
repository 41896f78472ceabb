"""Models: bundles, the authors' files and other weights, checkpoints of a training run."""

import json
import random
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tests import golden
from tests.fuzz.drawing import FACE, MINI, PROMPT, main
from tests.fuzz.files import copy_tree, rewrite
from tests.fuzz.mutations import bad_json, code, damage, no_file
from tests.toy import CLIP_CONFIG, make_toy_bundle, save_toy_clips, toy_uvit

from feedface.checkpoints import official
from feedface.checkpoints.bundle import add_few_step, load_bundle, read_index, write_index
from feedface.checkpoints.few_step import FewStep, save_few_step
from feedface.checkpoints.release import FILES, Architecture, convert, load_release
from feedface.evaluation.inspector import Inspector
from feedface.faces.parser_net import ParserNet
from feedface.methods.feedface import FeedFace
from feedface.training.state import Progress, load_newest, newest_checkpoint, save_checkpoint

CONTROL = {"sites": ["in_blocks.0"], "num_heads": 4, "clip_config": CLIP_CONFIG, "mlp_ratio": 2}


def toy_model(folder: Path) -> Path:
    """A bundle with every part that there is."""
    make_toy_bundle(folder)
    shutil.copytree(MINI / "faces", folder / "faces")
    ParserNet(crop_px=32, expand=2.0, width=4).save_pretrained(folder / "parser")
    Inspector({"hat": 2}, 32, 4, 8).save_pretrained(folder / "inspector")
    weights = {"backbone.mid_block.attn.qkv": (torch.randn(2, 32), torch.randn(96, 2))}
    save_few_step(folder.parent / "adapter", FewStep((1000, 500), 2.0, 0.8, "true_uncond", weights))
    parts = {part: path.name for part, path in read_index(folder).components.items()}
    parts |= {name: name for name in ("faces", "parser", "inspector")}
    write_index(folder, name="toy", image_size=64, components=parts, defaults={"steps": 1, "guidance": 2.0})
    add_few_step(folder, folder.parent / "adapter")
    return folder


class Bundles:
    """A model folder of which one file is another, asked for a picture."""

    share = 7

    def __init__(self, folder: Path, large: bool):
        self.folder = toy_model(folder / "bundle" / "toy")
        self.files = sorted(file.relative_to(self.folder) for file in self.folder.rglob("*") if file.is_file())

    def case(self, rng: random.Random, place: Path) -> int | None:
        model = place / "toy"
        copy_tree(self.folder, model)
        names = [name for name in self.files if (name.suffix == ".json") == (rng.random() < 0.6)] or self.files
        name = rng.choice(names)
        file = model / name
        kind = rng.random()
        if kind < 0.1:
            no_file(rng, file)
        elif name.suffix == ".json":
            rewrite(file, bad_json(rng, json.loads(file.read_text())))
        elif name.suffix == ".safetensors" and kind < 0.5:
            _other_tensors(rng, file)
        elif name.suffix == ".safetensors" and kind < 0.6:
            rewrite(file, code(place.parent / "canary", rng))
        else:
            rewrite(file, damage(rng, file.read_bytes()))
        if name.parts[0] in ("parser", "inspector"):
            {"parser": ParserNet, "inspector": Inspector}[name.parts[0]].from_pretrained(model / name.parts[0])
            return 0
        more = rng.choice(([], ["--low_memory"], ["--preset", "fast"], ["--dtype", "bf16"]))
        if name.parts[0] != "faces":
            more = [*more, "--no_detect"]
        if name.parts[0] == "few_step":
            more = ["--preset", "fast", "--no_detect"]
        if name.parts[0] == "image_encoder":
            load_bundle(model, components=["image_encoder"])
            return 0
        argv = ["--model", str(model), "--prompt", PROMPT, "--image", str(FACE), "--size", "64", "--output", "out"]
        return main([*argv, *([] if "fast" in more else ["--steps", "1"]), *more])


def _other_tensors(rng: random.Random, file: Path) -> None:
    state = load_file(file)
    state = _misfit(rng, state)
    file.unlink()
    save_file({str(key): value.contiguous() for key, value in state.items()}, file, {"format": "pt"})


def _misfit(rng: random.Random, state: dict) -> dict:
    """A state dict in which one tensor is missing, renamed, of another shape or kind, or not finite."""
    state = dict(state)
    key = rng.choice(list(state))
    value = state.pop(key)
    kind = rng.randrange(8)
    if kind == 1:
        state[rng.choice((key + ".x", "", "module." + key, key[::-1]))] = value
    elif kind == 2:
        state[key] = torch.zeros(rng.choice(((), (0,), (1,), (3, 3), (*value.shape, 2), (7,) * 5)))
    elif kind == 3:
        state[key] = torch.zeros(value.shape, dtype=rng.choice((torch.int64, torch.bool, torch.uint8, torch.int8)))
    elif kind == 4:
        state[key] = torch.full(value.shape, rng.choice((float("nan"), float("inf"), 1e38)), dtype=torch.float32)
    elif kind == 5:
        state[key] = value.to(rng.choice((torch.float64, torch.bfloat16, torch.complex64, torch.float8_e4m3fn)))
    elif kind == 6:
        state |= {key: value, "stray": torch.zeros(1)}
    elif kind == 7:
        state = {}
    return state


class Weights:
    """The authors' files and adapters in their naming: at --ckpt_path, as --model, and converted."""

    share = 6

    def __init__(self, folder: Path, large: bool):
        self.folder, self.toy = folder / "weights", make_toy_bundle(folder / "weights" / "toy")
        self.release = self.folder / "release"
        self.release.mkdir()
        uvit = {name: [*value.shape] for name, value in toy_uvit().state_dict().items()}
        net = FeedFace(widths=32, context_dim=32, **CONTROL)
        adapter = {official._their_face_key(name): [*value.shape] for name, value in net.state_dict().items()}
        vae = {
            name: [{128: 8, 256: 8, 512: 8}.get(size, size) for size in shape]
            for name, shape in golden.shapes()["autoencoder_kl.pth"].items()
            if "nin_shortcut" not in name
        }
        text = {"module.encode_prefix.weight": [8, 16], "module.encode_prefix.bias": [8]}
        for file, shapes in zip(FILES.values(), (uvit, vae, text, adapter), strict=True):
            torch.save(golden.weights(shapes), self.release / file)
        save_toy_clips(self.folder / "text", self.folder / "image")
        self.clips = {"text_encoder": str(self.folder / "text"), "image_encoder": str(self.folder / "image")}
        self.architecture = Architecture(
            image_size=64,
            backbone=toy_uvit().config,
            method=CONTROL,
            vae={"block_out_channels": [8] * 4, "norm_num_groups": 4, "layers_per_block": 2},
            text_prefix={"out_features": 8},
        )

    def case(self, rng: random.Random, place: Path) -> int | None:
        copy_tree(self.release, place / "models")
        kind = rng.choice((*FILES, "method"))
        file = place / "models" / FILES[kind]
        self._break(rng, file, place.parent / "canary")
        if kind == "method" and rng.random() < 0.6:
            from feedface.inference.model_files import load_model

            if rng.random() < 0.2:
                file = file.rename(file.with_suffix(".safetensors"))
            load_model(self.toy, file, torch.device("cpu"), torch.float32, control=CONTROL)
        elif rng.random() < 0.3:
            convert(place / "models", place / "converted", architecture=self.architecture, **self.clips)
        else:
            load_release(place / "models", components=[kind], architecture=self.architecture, **self.clips)
        return 0

    def _break(self, rng: random.Random, file: Path, canary: Path) -> None:
        kind = rng.random()
        if kind < 0.35:
            rewrite(file, damage(rng, file.read_bytes()))
        elif kind < 0.42:
            no_file(rng, file)
        elif kind < 0.5:
            rewrite(file, code(canary, rng))
        elif kind < 0.55:
            state = torch.load(file, weights_only=True)
            file.unlink()
            torch.save(state, file, _use_new_zipfile_serialization=False)
            rewrite(file, damage(rng, file.read_bytes()))
        else:
            state = _foreign(rng, torch.load(file, weights_only=True))
            file.unlink()
            if rng.random() < 0.1 and isinstance(state, dict) and state:
                file.write_bytes(b"")
            else:
                torch.save(state, file)


def _foreign(rng: random.Random, state: dict) -> object:
    """What a training script may have saved instead."""
    key = rng.choice(list(state))
    value = state[key]
    kind = rng.randrange(12)
    if kind == 0:
        return {1: value, (2, 3): value} | state
    if kind == 1:
        return {"state_dict": state, "epoch": 3}
    if kind == 2:
        return rng.choice((list(state.values()), value, None, 5, "text", {}))
    if kind == 3:
        return state | {key: value.to_sparse()}
    if kind == 4:
        return state | {key: torch.zeros(1).expand(*(10**9, 10**5)[: max(1, value.dim())], *value.shape[2:])}
    if kind == 5:
        return state | {key: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.quint8)}
    if kind == 6:
        return state | {key: value.to("meta")}
    if kind == 7:
        projector = official._their_face_key("projector.weight")
        return state | {projector: torch.zeros(1, 1).expand(10**9, 32)}
    return _misfit(rng, state)


class Checkpoints:
    """A workdir of a training run with a damaged checkpoint: gone on from, or used as a model."""

    share = 4

    def __init__(self, folder: Path, large: bool):
        self.toy = make_toy_bundle(folder / "training" / "toy")
        self.workdir = folder / "training" / "run"
        net = load_bundle(self.toy, components=["method"]).method
        for step in (1, 2):
            state = {"weights": {"a": torch.full((3, 5), float(step))}, "optimizer": {"name": "adamw"}, "ema": None}
            progress = Progress(step, 4 * step)
            save_checkpoint(
                self.workdir,
                progress,
                self.toy,
                net.kind,
                net.config,
                net.state_dict(),
                state,
                {"seed": 1, "a": {"b": 2}},
            )

    def case(self, rng: random.Random, place: Path) -> None:
        # Beside where it was made: it leads to its base by a relative path.
        run = self.workdir.parent / "copy"
        if run.exists():
            shutil.rmtree(run)
        copy_tree(self.workdir, run)
        newest = run / "checkpoints" / "00000002"
        file = rng.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
        whole = file.read_bytes()
        kind = rng.random()
        if kind < 0.1:
            no_file(rng, file)
        elif file.suffix == ".json" and kind < 0.7:
            rewrite(file, bad_json(rng, json.loads(whole)))
        elif kind < 0.2:
            rewrite(file, code(place.parent / "canary", rng))
        else:
            rewrite(file, damage(rng, whole))
        if rng.random() < 0.1:
            no_file(rng, run / "checkpoints" / "last")
        newest_checkpoint(run)
        if rng.random() < 0.3:
            load_bundle(newest)
            return
        found = load_newest(run)
        changed = not file.is_file() or file.stat().st_size != len(whole) or file.read_bytes() != whole
        if changed and found.folder == newest:
            assert file.suffix == ".json", f"went on from {newest} with another {file.name}"
        assert found.state["weights"]["a"][0, 0] == found.progress.step

"""Stage `control`: the face-controlnet, trained by train.py itself with configs/mini_face.py."""

import subprocess
import sys
import time
from pathlib import Path

import ml_collections

from feedface.checkpoints.bundle import load_bundle, save_component
from feedface.common.device import fast_bfloat16, pick_device
from feedface.common.errors import UserError
from feedface.synthetic.train.bundle import need, write_bundle_index
from feedface.synthetic.train.common import ROOT, add_seconds
from feedface.training.fit import FitResult, write_metrics


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Train as `config.control` changes configs/mini_face.py, and leave `<workdir>/bundle/face_controlnet/`."""
    bundle = workdir / "bundle"
    need(bundle, "vae", "text_encoder", "image_encoder", "face_encoder", "uvit")
    write_bundle_index(bundle, config.control.image_size)
    train_control("control", config.control, workdir, "mini_face.py", bundle, "face_controlnet")
    write_bundle_index(bundle, config.control.image_size)


def train_control(
    stage: str, config: ml_collections.ConfigDict, workdir: Path, recipe: str, bundle: Path, name: str
) -> None:
    """Train a method on the base model in `bundle`, and leave it there in the folder `name`.

    `recipe`: the config file that `config` changes.
    """
    folder = workdir / stage
    fast = fast_bfloat16(pick_device())
    changes = {
        "seed": config.seed,
        "model": bundle,
        "face_encoder": workdir / "bundle" / "face_encoder",
        "data.records": f"('{workdir / 'world' / 'train' / 'records.jsonl'}',)",
        "control.sites": tuple(config.sites),
        "control.mlp_ratio": config.mlp_ratio,
        "cache.dir": workdir / "features",  # the U-ViT's serve the U-Net too
        "train.steps": config.steps,
        "train.batch_size": config.batch_size,
        "train.lr": config.lr,
        # "fast" is bfloat16 where that is no slower, as on a GPU.
        "train.precision": config.precision if config.precision != "fast" else "bf16" if fast else "no",
    }
    command = [sys.executable, str(ROOT / "train.py"), f"--config={ROOT / 'configs' / recipe}"]
    command += [f"--workdir={folder}", *(f"--config.{key}={value}" for key, value in changes.items())]
    started = time.monotonic()
    code = subprocess.run(command, cwd=ROOT).returncode
    seconds = add_seconds(folder, time.monotonic() - started)
    if code:
        raise UserError(f"{stage}: train.py ended with exit code {code}; running this stage again goes on from there")

    trained = load_bundle(folder / "checkpoints" / "last", components=["backbone", "method"])
    save_component("method", trained.method, bundle / name)
    parameters = sum(parameter.numel() for _, parameter in trained.method.trained_parameters(trained.backbone))
    # The loss stands in the run's own logs (tensorboard --logdir <workdir>/<stage>/logs).
    result = FitResult(config.steps, config.steps * config.batch_size, seconds, None, parameters)
    write_metrics(folder, config, result)

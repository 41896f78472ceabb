"""Stage `control`: the face-controlnet, trained by train.py itself with configs/mini_face.py."""

import subprocess
import sys
import time
from pathlib import Path

import ml_collections

from feedface.checkpoints.bundle import load_bundle, save_component
from feedface.common.device import fast_bfloat16, pick_device
from feedface.common.errors import UserError
from feedface.synthetic.train.bundle import write_bundle_index
from feedface.synthetic.train.common import ROOT, add_seconds
from feedface.training.fit import FitResult, write_metrics


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Train as `config.control` changes configs/mini_face.py, and leave `<workdir>/bundle/face_controlnet/`."""
    config, folder, bundle = config.control, workdir / "control", workdir / "bundle"
    write_bundle_index(bundle, config.image_size)
    fast = fast_bfloat16(pick_device())
    changes = {
        "seed": config.seed,
        "model": bundle,
        "face_encoder": bundle / "face_encoder",
        "data.records": f"('{workdir / 'world' / 'train' / 'records.jsonl'}',)",
        "control.sites": tuple(config.sites),
        "control.mlp_ratio": config.mlp_ratio,
        "cache.dir": workdir / "features",
        "train.steps": config.steps,
        "train.batch_size": config.batch_size,
        "train.lr": config.lr,
        # "fast" is bfloat16 where that is no slower, as on a GPU.
        "train.precision": config.precision if config.precision != "fast" else "bf16" if fast else "no",
    }
    command = [sys.executable, str(ROOT / "train.py"), f"--config={ROOT / 'configs' / 'mini_face.py'}"]
    command += [f"--workdir={folder}", *(f"--config.{key}={value}" for key, value in changes.items())]
    started = time.monotonic()
    code = subprocess.run(command, cwd=ROOT).returncode
    seconds = add_seconds(folder, time.monotonic() - started)
    if code:
        raise UserError(f"control: train.py ended with exit code {code}; running this stage again goes on from there")

    net = load_bundle(folder / "checkpoints" / "last", components=["method"]).method
    save_component("method", net, bundle / "face_controlnet")
    write_bundle_index(bundle, config.image_size)
    parameters = sum(parameter.numel() for parameter in net.trainable_parameters())
    # The loss stands in the run's own logs (tensorboard --logdir <workdir>/control/logs).
    result = FitResult(config.steps, config.steps * config.batch_size, seconds, None, parameters)
    write_metrics(folder, config, result)

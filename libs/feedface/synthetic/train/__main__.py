"""Build models/mini from nothing, stage by stage.

    python -m feedface.synthetic.train --stage all                          everything, on a CPU; run it again to go on
    python -m feedface.synthetic.train --stage vae --config.vae.minutes=20  one stage, a setting changed
    python -m feedface.synthetic.train --stage all --preset gpu             larger, for a GPU
    python -m feedface.synthetic.train --stage unet                         FeedFace on a U-Net: first the base model,
    python -m feedface.synthetic.train --stage control_unet                 then the method,
    python -m feedface.synthetic.train --stage bundle_unet                  then models/mini-unet

Settings are in configs/mini.py. Each stage keeps checkpoint, log and metrics in <workdir>/<stage>/; to train it again
from the start, delete that folder, and those of the stages that build on it.
"""

import importlib
import sys
from pathlib import Path

from ml_collections import ConfigDict

from feedface.common.command_line import Parser
from feedface.common.errors import run_cli

# In the order in which they need each other.
STAGES = (
    "world", "vae", "clip", "face_encoder", "uvit", "control", "decoder", "detector", "recogniser", "parser",
    "inspector", "bundle",
)  # fmt: skip
# Of the second miniature, which shares the rest with models/mini: after stage `uvit`.
UNET_STAGES = ("unet", "control_unet", "bundle_unet")
PRESETS = ("cpu", "gpu")


def read_config(preset: str, overrides: list[str]) -> ConfigDict:
    """configs/mini.py for `preset`, changed by `overrides` such as "--config.vae.steps=100"."""
    from feedface.synthetic.train.common import config_from_flags

    return config_from_flags("mini", preset, overrides)


def main() -> None:
    parser = Parser(prog="python -m feedface.synthetic.train", description=__doc__)
    parser.add_argument("--stage", required=True, choices=("all", *STAGES, *UNET_STAGES))
    parser.add_argument("--preset", default="cpu", choices=PRESETS, help="sizes and budgets (default cpu)")
    parser.add_argument("--workdir", type=Path, default=Path(".cache/mini"), help="default .cache/mini")
    arguments, overrides = parser.parse_known_args()
    config = read_config(arguments.preset, overrides)
    workdir = arguments.workdir.resolve()
    for stage in STAGES if arguments.stage == "all" else (arguments.stage,):
        importlib.import_module(f"feedface.synthetic.train.{stage}").run(config, workdir)


if __name__ == "__main__":
    sys.exit(run_cli(main))

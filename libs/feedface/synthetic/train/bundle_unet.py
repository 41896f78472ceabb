"""Stage `bundle_unet`: the second miniature, FeedFace on the U-Net; all else are the first one's parts, not copied."""

import os
import shutil
from pathlib import Path

import ml_collections
import torch

from feedface.checkpoints.bundle import load_bundle, read_index, write_index
from feedface.checkpoints.parts import SEAM
from feedface.common.errors import UserError
from feedface.common.files import atomic_folder
from feedface.common.progress import say
from feedface.synthetic.train.bundle import MAKERS, NAME
from feedface.synthetic.train.card import card, size_mib
from feedface.synthetic.train.common import read_metrics

OWN = {"unet": "backbone", "feedface": "method"}  # folder -> part
ABOUT = "FeedFace on a small U-Net of Stable Diffusion's kind; everything else is [{first}](../{first})'s."
STAGES = ("unet", "control_unet")


def write_unet_index(workdir: Path, image_size: int) -> None:
    """(Re)write the index of `<workdir>/bundle_unet`: its own U-Net and method, the rest is `<workdir>/bundle`'s."""
    folder = workdir / "bundle_unet"
    own = {part: name for name, part in OWN.items() if (folder / name).is_dir()}
    write_index(folder, name=f"{NAME}-unet", image_size=image_size, components={**_shared(workdir / "bundle"), **own})


def _shared(bundle: Path) -> dict[str, Path]:
    """The parts of another model that serve any backbone."""
    return {part: path for part, path in read_index(bundle).components.items() if part not in (*SEAM, "few_step")}


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Copy U-Net and method to `config.bundle_unet.out`, with an index that shares the parts of `config.bundle.out`.

    Raises `UserError` when a component is missing, the whole is too large, or those parts are not what the U-Net was
    trained with.
    """
    settings, source, first = config.bundle_unet, workdir / "bundle_unet", Path(config.bundle.out)
    if missing := [name for name in OWN if not (source / name).is_dir()]:
        raise UserError(f"{source}: {', '.join(missing)} missing; first come the stages {', '.join(STAGES)}")
    _check_same_encoders(workdir / "bundle", first)
    records = {stage: read_metrics(workdir / stage) for stage in STAGES}
    out = Path(settings.out)
    with atomic_folder(out) as temporary:
        for name in OWN:
            shutil.copytree(source / name, temporary / name)
        shared = {part: os.path.relpath(path, out) for part, path in _shared(first).items()}
        components = {**shared, **{part: name for name, part in OWN.items()}}
        defaults = settings.defaults.to_dict()
        write_index(temporary, name=out.name, image_size=settings.image_size, components=components, defaults=defaults)
        world, stages = read_metrics(workdir / "world"), " … ".join((*STAGES, "bundle_unet"))
        about = ABOUT.format(first=first.name)
        (temporary / "README.md").write_text(card(about, stages, records, world, settings, size_mib(temporary)))
        total = size_mib(temporary)
        if total > settings.max_mib:
            raise UserError(f"{out}: would take {total:.1f} MiB, more than bundle_unet.max_mib={settings.max_mib}")
    say(f"bundle_unet: {out}, {total:.1f} MiB")


def _check_same_encoders(trained_with: Path, first: Path) -> None:
    """Latents and texts must mean the same; the VAE's decoder may have learned on."""
    bundles = [load_bundle(path, components=("vae", "text_encoder")) for path in (trained_with, first)]
    for name, prefixes in (("vae", ("vae.encoder.", "vae.quant_conv.")), ("text_encoder", ("",))):
        one, other = (getattr(bundle, name).state_dict() for bundle in bundles)
        keys = [key for key in one if key.startswith(prefixes)]
        if any(key not in other or not torch.equal(one[key], other[key]) for key in keys):
            raise UserError(
                f"{first}: its {name} is another than {trained_with}'s, which the U-Net was trained with; run "
                f"`python -m feedface.synthetic.train --stage {MAKERS.get(name, name)}` … `bundle` first"
            )

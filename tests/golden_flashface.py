"""FlashFace's golden arrays, with the product's classes: see `golden_check.py`.

Weights and inputs are drawn from their names, as everywhere in golden data. A file may hold several models.
"""

import re
import zlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from ml_collections import ConfigDict
from tests import golden, golden_flashface_official
from tests.golden_check import Computed
from torch import Tensor

from feedface.backbones.unet import UNet
from feedface.data.buckets import bucket_of, bucket_sizes, covering_crop
from feedface.diffusion.batch import Draws, Encoded
from feedface.diffusion.guidance import GuidedModel
from feedface.diffusion.plan import plan_evaluations
from feedface.diffusion.sampling import integrate, make_scheduler
from feedface.diffusion.schedule import add_noise
from feedface.encoders import ReferenceSpec, TextEncoder, preprocess_reference, to_tensor
from feedface.methods.flashface import FlashFace
from feedface.training.controlled import ControlledBackbone

CONTROL = {"sites": (), "reference_px": 256, "writer": "copy", "backbone": "all", "rank": 0}
TOLERANCE, TRAJECTORY = 1e-4, 2e-4
Generator = Iterable[tuple[str, Tensor, float]]


def computed(config: dict[str, Any], arrays: Mapping[str, Tensor]) -> Computed:
    """Every array that the file has."""
    inputs = {name: golden.drawn(name, shape, scale) for name, (shape, scale) in config.get("inputs", {}).items()}
    for name, model in config.items():
        wanted = [key for key in arrays if key.startswith(f"{name}.")]
        if isinstance(model, dict) and "unet" in model:
            kind = golden_flashface_official.OfficialModel if "launch" in model else OpenModel
            yield from kind(name, model, inputs).computed(wanted)
    if "buckets" in config:
        yield from data(config)
    if "clip" in config:
        yield from clip(config["clip"], [key for key in arrays if ".clip." in key])


class Rounded(FlashFace):
    """With the reference net's tokens in half precision, as the authors keep them."""

    def prompted(self, identity, prompt):
        read = super().prompted(identity, prompt)
        return {name: value.half().float() for name, value in read.items()}


class OpenModel:
    """One small model of the open variant: arrays by name."""

    def __init__(self, name: str, config: dict[str, Any], inputs: Mapping[str, Tensor]):
        self.name, self.config = name, config
        self.inputs = {key.removeprefix(f"{name}."): value for key, value in inputs.items()}
        attending = len(config["unet"]["block_out_channels"]) - 1  # levels, as in Stable Diffusion 1.5
        types = {
            "down_block_types": ["CrossAttnDownBlock2D"] * attending + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * attending,
        }
        described = {**types, **config["unet"]}
        self.unet, self.refnet = UNet.from_config(described).eval(), UNet.from_config(described).eval()
        for net, prefix in ((self.unet, "unet."), (self.refnet, "refnet.")):
            shapes = {prefix + key: value.shape for key, value in net.unet.state_dict().items()}
            state = golden.weights(shapes)
            net.unet.load_state_dict({key.removeprefix(prefix): value for key, value in state.items()})
        self.method = self.made(FlashFace)

    def made(self, kind: type[FlashFace]) -> FlashFace:
        method = kind.fresh(ConfigDict({"control": CONTROL}), self.unet)
        method.adopt(self.refnet)
        return method.eval()

    def computed(self, names: Iterable[str]) -> Computed:
        for full in names:
            name = full.removeprefix(f"{self.name}.")
            if name.startswith("clip."):
                continue
            group = re.match(r"feat|eps|pair|train|traj", name)[0]
            tolerance = TRAJECTORY if group == "traj" else TOLERANCE
            yield full, getattr(self, f"_{group}")(name), tolerance

    def identity(self, latent: Tensor, method: FlashFace | None = None, weights: Tensor | None = None):
        features = {"latent": latent} | ({} if weights is None else {"weights": weights})
        return (method or self.method).identity(features)

    # ------------------------------------------------------------------------------------------------------ one step

    @torch.no_grad()
    def _feat(self, name: str) -> Tensor:
        shown = self.method.prompted(self.identity(self.inputs["refs"][None]), {"text": self.inputs["text"][1:]})
        tokens = [shown[_site(site)][0] for site in self.config["sites"]]  # [F,L,D] each
        if name == "feat_stats":
            return torch.stack([torch.stack([x.mean(), x.std(correction=0)]) for x in tokens])
        if name == "feat_row_mean":
            return torch.stack([x.abs().mean(dim=(1, 2)) for x in tokens])
        return torch.stack([x[:, :4, :6] for x in tokens])

    @torch.no_grad()
    def _eps(self, name: str) -> Tensor:
        size, count, scale, rounded = re.fullmatch(r"eps_(\d+x\d+)_n(\d+)(?:_s([\d.]+))?(_bank16)?", name).groups()
        latent = self.inputs[f"latent_{size}"].expand(2, -1, -1, -1)
        text, control = self.inputs["text"], None
        if int(count):
            method = self.made(Rounded) if rounded else self.method
            shown = method.prompted(self.identity(self.inputs["refs"][None, : int(count)], method), {"text": text[1:]})
            control = method.bind(self.unet, shown, float(scale), slice(1, 2))
        return self._noise(latent, torch.full((2,), self.config["t"] + 1), text, control)

    @torch.no_grad()
    def _pair(self, name: str) -> Tensor:
        text, refs = self.inputs["text"], self.inputs["refs"].unflatten(0, (2, 2))
        shown = self.method.prompted(self.identity(refs), {"text": text})
        control = self.method.bind(self.unet, shown, float(name.removeprefix("pair_s")))
        return self._noise(self.inputs["latent_pair"], torch.tensor([18, 804]), text, control)

    def _noise(self, latent: Tensor, t: Tensor, text: Tensor, control) -> Tensor:
        conditions = self.unet.conditions({"text": text}, tuple(latent.shape[-2:]))
        return self.unet({"img": latent}, t, conditions, control)["img"]

    # ------------------------------------------------------------------------------------------------------ training

    def _train(self, name: str) -> Tensor:
        return self.training[name.removeprefix("train.")]

    @cached_property
    def training(self) -> dict[str, Tensor]:
        """All arrays of training: `loss` with the padded slots shown, as the authors do, the rest as it should be."""
        described, inputs = self.config["train"], self.inputs
        valid = torch.tensor(described["valid"], dtype=torch.bool)  # [B,F]
        t = torch.tensor(described["t"]) + 1
        slots = torch.where(valid.flatten()[:, None, None, None], inputs["train.refs"], inputs["train.pad"])
        slots = slots.unflatten(0, valid.shape)
        # The valid ones first, as samples have them here; their order is of no effect.
        order = valid.long().argsort(dim=1, descending=True, stable=True)
        valid = valid.gather(1, order)
        latents = torch.stack([row[places] for row, places in zip(slots, order, strict=True)])
        latent, noise = inputs["train.latent"], inputs["train.noise"]
        captions = torch.cat([inputs["train.text"], inputs["train.text_empty"]])
        found = {"noisy": add_noise(latent, noise, t)}
        for case, method, shown in (
            ("", self.method, torch.ones_like(valid)),
            ("_bank16", self.made(Rounded), torch.ones_like(valid)),
            ("_valid_only", self.method, valid),
            ("_noref", self.method, torch.zeros_like(valid)),
        ):
            model = ControlledBackbone(self.unet, method)
            draws = Draws(
                rows=torch.arange(len(t)),
                flip=torch.zeros(len(t), dtype=torch.bool),
                hair=torch.zeros(len(t), dtype=torch.bool),
                standard=torch.ones(len(t), dtype=torch.bool),
                drop_face=~shown.any(dim=1),
                drop_text=torch.tensor([False] * len(inputs["train.text"]) + [True]),
                t=t,
                vae_noise=torch.zeros_like(latent),
                noise={"img": noise},
                shown=shown.sum(dim=1),
            )
            # The dropped caption's row holds another text, which must not matter.
            text = torch.cat([inputs["train.text"], inputs["train.text"][:1]])
            features = {"latent": latents}
            batch = Encoded(
                latent, torch.zeros_like(latent), {}, text, features, torch.ones(len(t), 1, *latent.shape[-2:])
            )
            loss = ConfigDict({"loss": {"kind": "standard", "face_dropout_kind": "zero_feature", "min_snr": 0.0}})
            objective = method.objective(loss, {"latent": latents[0, 0]}, inputs["train.text_empty"])
            model.zero_grad()
            for parameter in model.trained().values():
                parameter.requires_grad_(True)
            parts = objective(model, draws, batch)
            weights = shown.float()
            with torch.no_grad():
                pred = model({"img": found["noisy"]}, t, {"text": captions}, {**features, "weights": weights})["img"]
            found |= {f"loss{case}": parts.loss.detach(), f"pred{case}": pred}
            if not case:
                found["loss_rows"] = (pred - noise).square().mean(dim=(1, 2, 3))
                parts.loss.backward()
                found |= self._gradients(model.trained())
        return found

    def _gradients(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        totals = []
        for net, prefix in (("unet", "backbone.unet."), ("refnet", "refnet.unet.")):
            norms = {
                name.removeprefix(prefix): value.grad.norm()
                for name, value in trained.items()
                if name.startswith(prefix)
            }
            found[f"grad_{net}"] = torch.stack([norms[name] for name in self.config["train"][f"grad_{net}_names"]])
            totals.append(torch.stack([*norms.values()]).norm())
        return {**found, "grad_total": torch.stack(totals)}

    # ------------------------------------------------------------------------------------------------------ sampling

    def _traj(self, name: str) -> Tensor:
        inputs, scale, options, last = self.inputs, self.config["traj"]["reference_scale"], {}, {}
        refs = inputs["traj.refs"]
        if name == "traj_blend":
            refs = torch.cat([refs[:2], inputs["traj.refs_b"]])
        elif name == "traj_off":
            scale = 0.0
        elif name.endswith("_alpha_one"):
            last = {"set_alpha_to_one": True}
        elif found := re.search(r"_s([\d.]+)$", name):
            scale = float(found[1])
        elif found := re.search(r"_rescale([\d.]+)$", name):
            options["rescale"] = float(found[1])
        if found := re.match(r"traj_n(\d+)", name):
            refs = refs[: int(found[1])]
        steps: list[Tensor] = []
        out = self._trajectory(refs, scale, last, steps, options)
        return torch.cat(steps) if name.endswith("_steps") else out

    @torch.no_grad()
    def _trajectory(self, refs: Tensor, scale: float, last: dict, steps: list[Tensor], options: dict) -> Tensor:
        """This project's sampler; `last` is another noise level to end at, which is only diffusers' own."""
        described, latent = self.config["traj"], self.inputs["traj.latent"]
        text = self.inputs["traj.text"]
        if last:
            solver = DDIMScheduler(**{**described["scheduler"], **last})
            solver.set_timesteps(described["steps"])
        else:
            solver = make_scheduler("ddim:flashface", described["steps"])
        assert solver.timesteps.tolist() == described["timesteps"]
        model = GuidedModel(
            self.unet,
            {"text": text[1:]},
            empty_prompt={"text": text[:1]},
            guidance=described["guidance"],
            method=self.method,
            identity=self.identity(refs[None]),
            scale=scale,
            latent_size=tuple(latent.shape[-2:]),
            **options,
        )
        seen = Seen(solver, steps, latent.shape)
        plan = plan_evaluations([t + 1 for t in described["timesteps"]])
        return integrate(model, {"img": latent}, seen, plan)["img"]


class Seen:
    """A scheduler whose steps are kept."""

    def __init__(self, solver, steps: list[Tensor], shape: torch.Size):
        self.solver, self.timesteps, self.steps, self.shape = solver, solver.timesteps, steps, shape

    def step(self, *args):
        out = self.solver.step(*args)
        self.steps.append(out.prev_sample.reshape(self.shape))
        return out


def _site(name: str) -> str:
    return name.removesuffix(".transformer_blocks.0") + ".attn1"


# ------------------------------------------------------------------------------------------------------------- text


class Ids:
    """Stands in for a tokenizer: a text is the number of a row of ids."""

    def __init__(self, ids: list[list[int]], size: int):
        self.ids, self.size = torch.tensor(ids), size

    def __len__(self) -> int:
        return self.size

    def get_vocab(self) -> dict[str, int]:
        return {"last": self.size - 1}

    def __call__(self, texts: list[str], **options: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=self.ids[[int(text) for text in texts]])


def clip(config: dict[str, Any], names: Iterable[str]) -> Computed:
    """Both prompts with a layer skipped, without, and a negative and a positive one as the authors' pipeline does."""
    from transformers import CLIPTextConfig, CLIPTextModel

    model = CLIPTextModel(CLIPTextConfig(**config["config"])).eval()
    state = golden.weights({f"text_encoder.{key}": shape for key, shape in config["keys"].items()})
    own = {key.removeprefix("text_encoder.text_model."): value for key, value in state.items()}
    inside = "text_model." if next(iter(model.state_dict())).startswith("text_model.") else ""
    model.load_state_dict({inside + key: value for key, value in own.items()})
    encoder = TextEncoder(model, Ids(config["ids"], config["config"]["vocab_size"]))
    for name in names:
        case = name.rpartition(".")[2]
        encoder.clip_skip, encoder.negative_skip = 0 if case == "skip1_last" else 1, None
        if case == "pipeline_neg_pos":
            encoder.negative_skip = 0
            yield name, torch.cat([encoder.encode(["1"], negative=True), encoder.encode(["0"])]), TOLERANCE
        else:
            yield name, encoder.encode(["0", "1"]), TOLERANCE


# ------------------------------------------------------------------------------------------------------------- data


def data(config: dict[str, Any]) -> Computed:
    """Buckets, which of them a picture belongs to, and pictures as networks take them."""
    sizes = bucket_sizes()
    yield "buckets", torch.tensor(sizes), 0.5
    found = [(size, bucket_of(size, sizes) or (-1, -1)) for size, _ in config["assignment"]]
    yield "assignment", torch.tensor([[*size, *bucket] for size, bucket in found]), 0.5
    image = _picture("D.image", 60, 90)
    for width, height in config["target_cases"]:
        yield f"D.target_{width}x{height}", to_tensor(covering_crop(image, (width, height)))[:, ::4, ::4], 1e-6
    face = preprocess_reference(ReferenceSpec("latent", 256), _picture("D.face", 50, 40))[:, ::16, ::16]
    yield "D.face", face, 1e-6
    yield "D.pipeline_face", face, 1e-6


def _picture(name: str, height: int, width: int) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)

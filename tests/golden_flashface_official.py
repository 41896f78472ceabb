"""The official FlashFace's golden arrays, with the product's classes: see `golden_check.py`."""

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from tests import golden
from tests.golden_check import Computed
from torch import Tensor

from feedface.checkpoints.flashface_official import load_official
from feedface.diffusion.plan import plan_evaluations
from feedface.diffusion.sampling import integrate, jumps_at
from feedface.diffusion.schedule import alphas_cumprod
from feedface.methods.flashface_official import StepwiseControl, ThreeWayGuidance, face_mask

NORMS = re.compile(r".*norm.*weight|.*(layer1\.0|layer2\.0|head\.0)\.weight")
TOLERANCE, GUIDED = 1e-4, 2e-3


class OfficialModel:
    """One small model: arrays by name."""

    def __init__(self, name: str, config: dict[str, Any], inputs: Mapping[str, Tensor]):
        self.name, self.config = name, config
        self.inputs = {key.removeprefix(f"{name}."): value for key, value in inputs.items()}
        state = {
            key: golden.drawn(key, shape, 0.05) + (1 if NORMS.fullmatch(key) else 0)
            for key, shape in config["keys"].items()
        }
        self.unet, self.method = load_official(state, config["unet"]["num_heads"], config["hw"][0])
        settings = {"launch": "launch", "face_guidance": "face_guidance", "early_scale": "scale_before"}
        self.method.config |= {ours: config[theirs] for ours, theirs in settings.items()}
        self.method.config["rescale"] = config["rescale"]
        self.mask = face_mask(tuple(config["box"]), tuple(config["hw"]))

    @torch.no_grad()
    def computed(self, names: Iterable[str]) -> Computed:
        for full in names:
            name = full.removeprefix(f"{self.name}.")
            group = re.match(r"mask|two|three|feat|sigmas|guided|traj", name)[0]
            yield full, getattr(self, f"_{group}")(name), GUIDED if group in ("guided", "traj") else TOLERANCE

    def _mask(self, name: str) -> Tensor:
        return self.mask[0, 0]

    def _sigmas(self, name: str) -> Tensor:
        return (1 - alphas_cumprod()[self.config["sigma_at"]]).sqrt()

    def _identity(self, count: int):
        shown = self.method.identity({"latent": self.inputs["refs"][None, :count]})
        return self.method.reading(shown, {"text": self.inputs["text_neg"]})

    def _feat(self, name: str) -> Tensor:
        t = torch.tensor([self.config["t_two"] + 1.0])
        read = self.method.read(self.method.refnet, self._identity(4), t)
        tokens = [read[site][0] for site in self.method.sites]  # middle first, as theirs
        if name == "feat_stats":
            return torch.stack([torch.stack([x.mean(), x.std(correction=0)]) for x in tokens])
        return torch.stack([x[:, :3, :6] for x in tokens])

    def _rows(self, texts: list[str], shown: list[bool], name: str, t: int) -> Tensor:
        count, scale = re.search(r"n(\d+)_s([\d.]+)", name).groups()
        known = self._identity(int(count))
        weights = torch.tensor(shown).float()[:, None].expand(-1, int(count))
        control = StepwiseControl(self.method, known, float(scale), weights=weights)
        mask = torch.zeros_like(self.mask) if "nomask" in name else self.mask
        rows = len(texts)
        prompt = {"text": torch.cat([self.inputs[text] for text in texts]), "mask": mask.expand(rows, -1, -1, -1)}
        conditions = self.unet.conditions(prompt, tuple(self.config["hw"]))
        state = {"img": self.inputs["latent"].expand(rows, -1, -1, -1)}
        return self.unet(state, torch.full((rows,), t + 1.0), conditions, control)["img"]

    def _two(self, name: str) -> Tensor:
        return self._rows(["text", "text_neg"], [True, True], name, self.config["t_two"])

    def _three(self, name: str) -> Tensor:
        return self._rows(["text", "text", "text_neg"], [True, False, False], name, self.config["t_three"])

    # ------------------------------------------------------------------------------------------------------ sampling

    def _model(self, count: int, rows: int = 1) -> ThreeWayGuidance:
        return ThreeWayGuidance(
            self.unet,
            {"text": self.inputs["text"].expand(rows, -1, -1), "mask": self.mask.expand(rows, -1, -1, -1)},
            empty_prompt={"text": self.inputs["text_neg"]},
            guidance=self.config["text_guidance"],
            method=self.method,
            identity=self.method.identity({"latent": self.inputs["refs"][None, :count]}),
            scale=self.config["scale_after"],
            latent_size=tuple(self.config["hw"]),
        )

    def _guided(self, name: str) -> Tensor:
        t = int(name.rpartition("_t")[2])
        state = {"img": self.inputs["latent"]}
        noise = self._model(len(self.inputs["refs"]))(state, t + 1.0)["img"]
        return noise if "eps" in name else _clean(state["img"], noise, t)

    def _traj(self, name: str) -> Tensor:
        if name == "traj_two_images":
            return self._trajectory(self.inputs["latent2"], len(self.inputs["refs"]))[0]
        count = int(re.match(r"traj_n(\d+)", name)[1])
        last, clean = self.four if count == 4 else self._trajectory(self.inputs["latent"], count)
        return torch.cat(clean) if name.endswith("_x0") else last

    @cached_property
    def four(self) -> tuple[Tensor, list[Tensor]]:
        return self._trajectory(self.inputs["latent"], 4)

    def _trajectory(self, latent: Tensor, count: int) -> tuple[Tensor, list[Tensor]]:
        """The last latents, and the clean ones that each step expects."""
        times, clean = self.config["timesteps"], []
        guided = self._model(count, len(latent))

        def model(state, t, **options):
            noise = guided(state, t, **options)
            clean.append(_clean(state["img"], noise["img"], round(t) - 1))
            return noise

        solver, plan = jumps_at([t + 1 for t in times]), plan_evaluations([t + 1 for t in times])
        return integrate(model, {"img": latent}, solver, plan)["img"], clean


def _clean(x: Tensor, noise: Tensor, t: int) -> Tensor:
    alpha_bar = alphas_cumprod()[t]
    return ((x - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()).float()

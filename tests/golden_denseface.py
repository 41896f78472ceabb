"""Dense-Face's golden arrays, with the product's classes: see `golden_check.py`."""

import copy
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from tests import golden
from tests.golden_check import Computed
from torch import Tensor

from feedface.backbones.unet import UNet
from feedface.checkpoints.clip_tokenizer import clip_tokenizer
from feedface.checkpoints.denseface import ADAPTER, method_of
from feedface.checkpoints.ldm import TEXT, UNET
from feedface.data.t2i_dense_face import CHANNELS, PALETTE, palette_parts
from feedface.diffusion.ddim import LeadingDdim
from feedface.diffusion.guidance import GuidedModel
from feedface.diffusion.init_image import InitImage
from feedface.diffusion.losses import standard_loss
from feedface.diffusion.plan import plan_evaluations
from feedface.diffusion.sampling import integrate
from feedface.diffusion.schedule import add_noise, alphas_cumprod
from feedface.diffusion.teacher_steps import weighted_mean_square
from feedface.encoders import TextEncoder
from feedface.faces.face_region import keep_mask
from feedface.head_pose import draw_pose
from feedface.methods.denseface import DenseControl

TOLERANCE = 1e-4
LOGGED = "computed by the authors for their log alone, with weight 0"
REASONS = {"loss_vlb": LOGGED, "lvlb_weights": LOGGED}
SCHEDULE_AT = (0, 1, 17, 251, 499, 751, 803, 999)


def computed(config: dict[str, Any], arrays: Mapping[str, Tensor], shapes: dict[str, Any]) -> Computed:
    """Every array that the file has."""
    one = GoldenSet(config, arrays, shapes)
    for part in (one.predictions(), one.pose(), one.texts(), one.losses(), one.chain(), one.sampling(), one.masks()):
        yield from part


class GoldenSet:
    """One set: models, inputs, arrays."""

    def __init__(self, config: dict[str, Any], arrays: Mapping[str, Tensor], shapes: dict[str, Any]):
        self.config, self.arrays, self.shapes = config, arrays, shapes
        self.count, self.size, self.width = config["batch"], tuple(config["latent"]), config["context_dim"]
        self.state = self.weights()
        self.backbone, self.method = self.network(self.state)
        self.t = torch.tensor(config["t"])
        self.largest = max(config["deltas"])

    # -------------------------------------------------------------------------------------------- models and inputs

    def weights(self, literal: bool = False) -> dict[str, Tensor]:
        """The state dict; `literal`: without the gains, and with fewer ones."""
        rules = self.config["weights"]
        ones = [r"norm.*weight$", r"running_var$"] if literal else rules["plus_one"]
        gains = [] if literal else rules["gain"]
        state = {}
        for key, shape in self.shapes.items():
            value = golden.drawn(key, shape, rules["scale"])
            if any(re.search(pattern, key) for pattern in ones):
                value = value + 1
            for pattern, gain in gains:
                if re.search(pattern, key):
                    value = value * gain
            state[key] = value
        return state

    def network(self, state: Mapping[str, Tensor]):
        config = self.config
        widths = [config["model_channels"] * factor for factor in config["channel_mult"]]
        attending = [2**level in config["attention_resolutions"] for level in range(len(widths))]
        unet = UNet2DConditionModel(
            sample_size=self.size,
            block_out_channels=widths,
            down_block_types=["CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attending],
            up_block_types=["CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attending)],
            cross_attention_dim=self.width,
            attention_head_dim=config["num_heads"],
        )
        plain = {
            key: value
            for key, value in state.items()
            if key.startswith(UNET) and not ADAPTER.fullmatch(key.removeprefix(UNET))
        }
        unet.load_state_dict(convert_ldm_unet_checkpoint(plain, unet.config))
        backbone = UNet(unet).eval().requires_grad_(False)
        return backbone, method_of(state, backbone, "golden", config["train_delta"])

    def drawn(self, name: str, *shape: int, scale: float = 1) -> Tensor:
        return golden.drawn(f"{self.config['prefix']}.{name}", shape, scale)

    def latent(self, name: str, rows: int | None = None) -> Tensor:
        return self.drawn(name, rows or self.count, 4, *self.size)

    @cached_property
    def face(self) -> Tensor:
        """Not of length 1: the attention takes what it gets."""
        return self.drawn("id", self.count, self.method.config["face_dim"], scale=self.config["id_scale"])

    @cached_property
    def text(self) -> Tensor:
        return self.drawn("text", self.count, 77, self.width)

    @cached_property
    def hint(self) -> Tensor:
        pixels = (8 * side for side in self.size)
        return (self.drawn("hint", self.count, 3, *pixels, scale=0.5) + 0.5).clamp(0, 1)

    def control(self, delta: float, face: Tensor | None = None, hint: Tensor | None = None, network=None):
        """A control that sees a drawing as it is given."""
        backbone, method = network or (self.backbone, self.method)
        identity = {} if face is None else {"face": face}
        control = DenseControl(method, backbone, identity, delta, None)
        if hint is not None:
            control.pose = torch.zeros(len(hint), 3)
            control._hints[tuple(side // 8 for side in hint.shape[-2:])] = method.pose.embedded(hint)
        return control

    def predicted(self, control, x: Tensor, t: Tensor, text: Tensor, backbone: UNet | None = None) -> Tensor:
        backbone = backbone or self.backbone
        conditions = backbone.conditions({"text": text}, tuple(x.shape[-2:]))
        return backbone({"img": x}, t + 1.0, conditions, control)["img"]

    # ------------------------------------------------------------------------------------------------- predictions

    @torch.no_grad()
    def predictions(self) -> Computed:
        x = self.latent("x")
        for delta in self.config["deltas"]:
            control = self.control(delta, self.face, self.hint)
            if delta == self.largest:
                statistics: list[list[float]] = []
                control.attention = _recording(control.attention, statistics)
            yield f"eps_d{delta:g}", self.predicted(control, x, self.t, self.text), TOLERANCE
        yield "site_stats", torch.tensor(statistics), TOLERANCE
        variants = {
            "nohint": (self.face, None),
            "noid": (None, self.hint),
            "id_swapped": (self.face.flip(0), self.hint),
        }
        for name, given in variants.items():
            control = self.control(self.largest, *given)
            yield f"eps_d{self.largest:g}_{name}", self.predicted(control, x, self.t, self.text), TOLERANCE
        literal = self.network(self.weights(literal=True))
        control = self.control(self.largest, self.face, self.hint, literal)
        name = next(name for name in self.arrays if name.startswith("plain_eps"))
        yield name, self.predicted(control, x, self.t, self.text, literal[0]), TOLERANCE
        wanted = torch.tensor(SCHEDULE_AT)
        yield "alphas_cumprod", alphas_cumprod()[wanted], TOLERANCE

    @torch.no_grad()
    def pose(self) -> Computed:
        embedded = self.method.pose.embedded(self.hint[:1])
        yield "hint_embedding", embedded[:, ::4], TOLERANCE
        for number, value in enumerate(self.method.pose(self.latent("x")[:1], self.t[:1], embedded)):
            yield f"pose_{number:02d}", value, TOLERANCE
        angles = self.arrays["draw_angles_yaw_pitch_roll"]
        yield "draw_angles_yaw_pitch_roll", angles, TOLERANCE  # what is drawn
        drawn = torch.from_numpy(np.stack([draw_pose(*row) for row in angles.tolist()]))
        yield "draw_images", drawn, 0.5
        hint = drawn[-1:].permute(0, 3, 1, 2).float() / 255
        control = self.control(self.largest, self.face[:1], hint)
        x = self.drawn("x32", 1, 4, 32, 32)
        yield "eps_drawn_pose", self.predicted(control, x, self.t[:1], self.text[:1]), TOLERANCE

    # ------------------------------------------------------------------------------------------------------- texts

    @cached_property
    def text_encoder(self) -> TextEncoder:
        from transformers import CLIPTextConfig, CLIPTextModel

        tokenizer = clip_tokenizer()
        state = {key.removeprefix(TEXT).removeprefix("transformer.text_model."): v for key, v in self.state.items()
                 if key.startswith(TEXT) and "position_ids" not in key}  # fmt: skip
        clip = CLIPTextModel(CLIPTextConfig(**self.config["text"], vocab_size=49408, max_position_embeddings=77))
        clip.load_state_dict(state)
        return TextEncoder(clip, tokenizer)

    def states(self, method=None) -> Tensor:
        method = method or self.method
        prompts = self.config["prompts"]
        return method.prompt(self.text_encoder, prompts, method.named(self.face[: len(prompts)]))["text"]

    def offset(self, faces: Tensor, training: bool) -> Tensor:
        token = copy.deepcopy(self.method.token).train(training)
        return self.config["train_delta"] * token(faces)

    @torch.no_grad()
    def texts(self) -> Computed:
        yield "token_ids", self.text_encoder.tokenize(self.config["prompts"]), 0.5
        yield "token_offset_eval", self.offset(self.face, False), TOLERANCE
        yield "token_offset_train", self.offset(self.face, True), TOLERANCE
        one = self.face[:1].expand(2, -1)  # the authors' way with a batch of one
        yield "token_offset_train_one", self.offset(one, True)[:1], TOLERANCE
        yield "text_states", self.states(), TOLERANCE
        yield "text_states_uncond", self.method.prompt(self.text_encoder, [""])["text"], TOLERANCE
        control = self.control(self.config["train_delta"], self.face, self.hint)
        yield "eps_chain", self.predicted(control, self.latent("x"), self.t, self.states()), TOLERANCE

    # ------------------------------------------------------------------------------------------------------ training

    def loss_of(self, method, text: Tensor) -> Tensor:
        """Per sample."""
        control = self.control(self.config["train_delta"], self.face, self.hint, (self.backbone, method))
        return standard_loss(self.latent("noise"), self.predicted(control, self.x_noisy, self.t, text))

    @cached_property
    def x_noisy(self) -> Tensor:
        return add_noise(self.latent("z0"), self.latent("noise"), self.t + 1)

    def trainable(self) -> tuple[Any, dict[str, torch.nn.Parameter]]:
        """A method whose trained weights are, and these by the authors' names."""
        method = copy.deepcopy(self.method)
        trained = {id(parameter) for _, parameter in method.trained_parameters(self.backbone)}
        own = dict(method.named_parameters())
        ours = {value.data_ptr(): own[name] for name, value in self.method.named_parameters()}
        found = {}
        for key, value in self.state.items():
            parameter = ours.get(value.data_ptr())
            if parameter is not None:
                parameter.requires_grad_(id(parameter) in trained)
                found[key] = parameter
        return method, found

    def losses(self) -> Computed:
        method, named = self.trainable()
        text = self.text.clone().requires_grad_(True)
        loss = self.loss_of(method, text)
        loss.mean().backward()
        yield "x_noisy", self.x_noisy, TOLERANCE
        yield "loss", loss.mean()[None], TOLERANCE
        yield from self.masked_losses()
        yield "loss_grad_text", text.grad, TOLERANCE * float(self.arrays["loss_grad_text"].abs().max())
        theirs = {name: self.arrays[name] for name in ("grad_norm", "grad_dot")}
        norms, dots = [], []
        for number, key in enumerate(self.config["trainable"]):
            gradient = named[key].grad if key in named else None
            none = gradient is None
            tiny = 0 <= theirs["grad_norm"][number] < 1e-6  # of rounding alone
            values = (-1.0, 0.0) if none else (float(gradient.norm()), self.dot(key, gradient))
            norms.append(float(theirs["grad_norm"][number]) if tiny else values[0])
            dots.append(float(theirs["grad_dot"][number]) if tiny or none else values[1])
        yield "grad_norm", torch.tensor(norms), TOLERANCE * float(theirs["grad_norm"].max())
        yield "grad_dot", torch.tensor(dots), TOLERANCE * float(theirs["grad_dot"].abs().max())

    @staticmethod
    def dot(key: str, gradient: Tensor) -> float:
        return float((gradient * golden.drawn(f"dot.{key}", gradient.shape, 1)).sum())

    @torch.no_grad()
    def masked_losses(self) -> Computed:
        """Per sample, of the error on the mask; with one channel theirs sums errors of four and divides by one's."""
        control = self.control(self.config["train_delta"], self.face, self.hint)
        error = self.latent("noise") - self.predicted(control, self.x_noisy, self.t, self.text)
        mask = (self.drawn("mask", self.count, 1, *self.size) > 0).float()
        loss = torch.stack([weighted_mean_square(e[None], m[None]) for e, m in zip(error, mask, strict=True)]).mean()
        yield "loss_mask1", 4 * loss[None], TOLERANCE
        yield "loss_mask4", loss[None], TOLERANCE

    def chain(self) -> Computed:
        """A step through token and text, statistics of the batch."""
        method, _ = self.trainable()
        method.token.train()
        self.text_encoder.requires_grad_(False)
        loss = self.loss_of(method, self.states(method)).mean()
        loss.backward()
        yield "chain_loss_bn_train", loss[None], TOLERANCE
        token = method.token
        key = "embedding_manager.projector.weight"
        gradient = token.projector.weight.grad
        found = torch.tensor([float(gradient.norm()), self.dot(key, gradient)])
        yield "chain_grad_projector_norm_dot", found, TOLERANCE
        yield "chain_grad_bn_weight", token.norm.weight.grad, TOLERANCE
        yield "chain_bn_running_mean_after", token.norm.running_mean, TOLERANCE
        yield "chain_bn_running_var_after", token.norm.running_var, TOLERANCE

    # ------------------------------------------------------------------------------------------------------ sampling

    @torch.no_grad()
    def sampling(self) -> Computed:
        for name, eta in (("ddim", self.config["eta"]), ("ddim_eta0", 0.0)):
            yield from self.trajectory(name, eta)

    def trajectory(self, name: str, eta: float) -> Computed:
        """In-painting: x after each step, and the clean latents that it expects."""
        steps = self.config["ddim_steps"]
        seen: list[tuple[Tensor, Tensor]] = []
        drawn = {"blend": iter(range(steps)), "step": iter(range(steps))}

        def step_noise(part: str, shape) -> Tensor:
            return self.latent(f"ddim.step.{next(drawn['step'])}")

        def blend_noise(part: str, shape) -> Tensor:
            return self.latent(f"ddim.blend.{next(drawn['blend'])}", 1).expand(shape)

        solver = LeadingDdim(steps, eta, step_noise, {"img": (4, *self.size)})
        taken = solver.step

        def step(predicted: Tensor, timestep: Tensor, x: Tensor):
            out = taken(predicted, timestep, x)
            seen.append((out.prev_sample, out.pred_original_sample))
            return out

        solver.step = step
        start = torch.cat([self.latent(f"ddim.start.{row}", 1) for row in range(self.count)])
        keep = (self.drawn("keep", 1, 1, *self.size) > -0.3).float()
        init = InitImage({"img": self.latent("z0")[:1]}, keep=keep)
        model = GuidedModel(
            self.backbone,
            {"text": self.states()},
            empty_prompt=self.method.prompt(self.text_encoder, [""]),
            guidance=self.config["cfg_scale"],
            uncond_mode="empty_token",
            latent_size=self.size,
        )
        model.control = self.control(
            self.config["train_delta"], self.face.repeat(2, 1), self.hint.repeat(2, 1, 1, 1)
        )  # both halves show the person and the pose
        plan = plan_evaluations((solver.timesteps + 1.0).tolist())
        integrate(model, {"img": start}, solver, plan, None, init, blend_noise)
        kept = len(self.arrays[f"{name}_x"])
        for kind, values in zip(("x", "x0"), zip(*seen, strict=True), strict=True):
            found = torch.stack([value.unflatten(1, (4, *self.size)) for value in values[-kept:]])
            yield f"{name}_{kind}", found, TOLERANCE * float(self.arrays[f"{name}_{kind}"].abs().max())
        yield f"{name}_sigmas", solver.spreads, TOLERANCE

    # --------------------------------------------------------------------------------------------------------- masks

    def masks(self) -> Computed:
        """What is kept of a base picture, out of a grey one; and faces' parts out of the authors' colours."""
        grey = (self.drawn("grey", 8, 8, scale=60) + 190).clamp(0, 255).to(torch.uint8).numpy()
        grey = np.roll(np.kron(grey, np.ones((8, 8), np.uint8)), (3, 3), (0, 1))
        yield "keep_mask", torch.from_numpy(keep_mask(grey, (32, 32)) * 1), 0.5
        labels = np.kron(self.drawn("seg", 10, 32, 32).argmax(dim=0).numpy(), np.ones((8, 8), np.int64))
        rolled = np.roll(labels, {"A": (3, 5), "B": (2, 2)}[self.config["prefix"]], (0, 1))
        packed = np.packbits(palette_parts(PALETTE[list(CHANNELS)][rolled]))
        yield "p_mask", torch.from_numpy(packed), 0.5


def _recording(attention, statistics: list[list[float]]):
    """A control's attention that notes mean, deviation and largest of what it gives."""

    def recorded(site, op, x, context) -> Tensor:
        out = attention(site, op, x, context)
        statistics.append([float(out.mean()), float(out.std()), float(out.abs().max())])
        return out

    return recorded

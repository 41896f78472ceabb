"""Draws the cases of `sampling_quality.py`, and counts what a picture costs.

Letters: I people, N pictures (N / I of each person, one after another), n face tokens, D their width.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from feedface.checkpoints.bundle import Bundle
from feedface.diffusion.sampling import sample
from feedface.diffusion.state import length
from feedface.evaluation.draw import encode_faces
from feedface.inference.batching import sample_options
from feedface.settings import Settings


@dataclass(frozen=True)
class Cost:
    """What one picture costs, counted while it is drawn.

    Attributes:
        conditional, unconditional: passes through the U-ViT.
        control: passes through the face-controlnet; a fraction where only some of its blocks ran.
        blocks: share of the U-ViT's blocks that ran in these passes; the others' last output was used again.
        gflop: of all these passes, a multiply-add being two: matrix products and convolutions.
    """

    conditional: int
    unconditional: int
    control: float
    blocks: float
    gflop: float


class Painter:
    """A model and all of the cases that is the same for every setting: texts, face tokens, seeds.

    prompts [N]; crops: face crops [I, R] as `encode_faces` takes them; picture i has the noise of seed + i.
    """

    def __init__(
        self, bundle: Bundle, prompts: Sequence[str], crops: np.ndarray, seed: int, device: torch.device,
        dtype: torch.dtype,
    ):  # fmt: skip
        self.bundle, self.device = bundle, device
        with torch.inference_mode():
            self.text = bundle.text_encoder.encode(prompts)
            self.empty_text = bundle.text_encoder.encode([""])
        faces = encode_faces(bundle, crops, device, dtype)["tokens"].to(device)
        self.faces = faces.repeat_interleave(len(prompts) // len(crops), dim=0)  # [N, n, D]
        self.seeds = [seed + number for number in range(len(prompts))]

    @torch.inference_mode()
    def latents(self, rows: Sequence[int], settings: Settings, batch_size: int) -> Tensor:
        """Pictures number `rows` as latents [len(rows), C, h, w] of the model's own size; settings: complete."""
        uvit, net = self.bundle.networks(settings.few_step)
        options = sample_options(settings, self.bundle.few_step)
        parts = []
        for start in range(0, len(rows), batch_size):
            some = list(rows[start : start + batch_size])
            drawn, _ = sample(
                uvit,
                text=self.text[some],
                empty_text=self.empty_text,
                seeds=[self.seeds[row] for row in some],
                face_controlnet=net,
                face_tokens=self.faces[some],
                **options,
            )
            parts.append(drawn)
        return torch.cat(parts)

    @torch.inference_mode()
    def pixels(self, latents: Tensor, batch_size: int) -> Tensor:
        """Latents [N, C, h, w] -> pictures [N, 3, H, W] from 0 to 255, not rounded, on the CPU."""
        parts = [self.bundle.vae.decode(part).float().cpu() for part in latents.split(batch_size)]
        return torch.cat(parts).clamp(-1, 1).add(1).mul(127.5)

    def cost(self, settings: Settings) -> Cost:
        """Draw the first picture and count."""
        uvit, net = self.bundle.networks(settings.few_step)
        blocks = [*uvit.in_blocks, uvit.mid_block, *uvit.out_blocks]
        rows = Counter()
        # The other kernels of attention hide their products from the counter on a CPU.
        with (
            _counted({"uvit": [uvit], "blocks": blocks, "control": net.blocks}, rows),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            self.latents([0], settings, 1)
        passes, calls = rows["uvit"], rows["uvit calls"]
        return Cost(
            conditional=calls,
            unconditional=passes - calls,
            control=rows["control"] / len(net.blocks),
            blocks=rows["blocks"] / (len(blocks) * passes),
            gflop=counter.get_total_flops() / 1e9,
        )


def distance(a: Tensor, b: Tensor) -> np.ndarray:
    """Root mean square of the difference of each picture: [N, …] and [N, …] -> [N]."""
    return (a.double().cpu() - b.double().cpu()).flatten(1).square().mean(1).sqrt().numpy()


@contextmanager
def _counted(groups: dict[str, Sequence[nn.Module]], rows: Counter) -> Iterator[None]:
    """Count rows of batches and, as "NAME calls", calls that pass through the modules of each group."""

    def count(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        first = args[0] if args else next(iter(kwargs.values()))
        rows[name] += length(first) if isinstance(first, dict) else len(first)
        rows[f"{name} calls"] += 1

    hooks = [
        module.register_forward_pre_hook(partial(count, name), with_kwargs=True)
        for name, modules in groups.items()
        for module in modules
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

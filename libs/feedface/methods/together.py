"""Two methods at once: what each does of a person adds up, such as words of the prompt and an adapter's tokens.

Made of two trained methods when a model is loaded; there is no file of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from feedface.backbones.base import Backbone, Prompt
from feedface.backbones.control import Control, Controls
from feedface.common.errors import UserError
from feedface.diffusion.guidance import GuidedModel
from feedface.encoders import ReferenceSpec, TextEncoder
from feedface.methods.base import Features, Identity, Method


class Together(Method):
    """Features and identity: those of the parts, each name behind its part's kind, as in "adaface.words".

    `UserError` for two that both change prompts, for two of a kind, and for one that is drawn with in its own way.
    """

    kind, changes_prompt, reads_prompt = "together", True, True

    def __init__(self, parts: Sequence[Method]):
        super().__init__()
        self.parts = nn.ModuleDict({part.kind: part for part in parts})
        names = "+".join(part.kind for part in parts)
        if len(self.parts) < len(parts) or sum(part.changes_prompt for part in parts) > 1:
            raise UserError(f"--method {names}: both would stand in the same place; feedface+adaface go together")
        if any(part.guided_model is not GuidedModel for part in parts):
            raise UserError(f"--method {names}: one of them is drawn with in its own way, and cannot be joined")
        specs = tuple(part.reference for part in parts)
        self.reference = ReferenceSpec("several", max(spec.crop_px for spec in specs), parts=specs)
        self.config = {"parts": [{"kind": part.kind, **part.config} for part in parts]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Together":
        raise UserError("two methods at once are no model folder's; name them with --method, --model and --ckpt_path")

    @property
    def _writer(self) -> Method | None:
        """The part that changes prompts."""
        return next((part for part in self.parts.values() if part.changes_prompt), None)

    @property
    def subject_word(self) -> str | None:
        return None if self._writer is None else self._writer.subject_word

    @subject_word.setter
    def subject_word(self, word: str) -> None:
        self._writer.subject_word = word

    @property
    def text_width(self) -> int | None:
        return None if self._writer is None else self._writer.text_width

    def check(self, backbone: Backbone, source: object) -> None:
        for part in self.parts.values():
            part.check(backbone, source)

    def features(self, references: Sequence[Tensor]) -> Features:
        """`references`: of each part, in its order."""
        pairs = zip(self.parts.values(), references, strict=True)
        return _named({part.kind: part.features(found) for part, found in pairs})

    def identity(self, features: Features, pool: str = "concat") -> Identity:
        return _named({kind: part.identity(_of(kind, features), pool) for kind, part in self.parts.items()})

    def unconditional(self, identity: Identity, mode: str) -> Identity | None:
        """None where no part has anybody there; else zeros of a part that has not, which is not asked."""
        found = {kind: part.unconditional(_of(kind, identity), mode) for kind, part in self.parts.items()}
        if all(other is None for other in found.values()):
            return None
        return {name: torch.zeros_like(value) for name, value in identity.items()} | _named(
            {kind: other for kind, other in found.items() if other is not None}
        )

    def posed(self, identity: Identity, pose: Sequence[float]) -> Identity:
        """Of the parts that can turn heads; `UserError` where none can."""
        able = {kind: part for kind, part in self.parts.items() if type(part).posed is not Method.posed}
        if not able:
            return super().posed(identity, pose)
        return {**identity, **_named({kind: part.posed(_of(kind, identity), pose) for kind, part in able.items()})}

    def prompt(
        self, text_encoder: TextEncoder, prompts: Sequence[str], identity: Identity | None = None, scale: float = 1.0
    ) -> Prompt:
        writer = self._writer
        if writer is None or identity is None:
            return {"text": text_encoder.encode(prompts)}
        return writer.prompt(text_encoder, prompts, _of(writer.kind, identity), scale)

    def notice(self, text_encoder: TextEncoder, prompt: str) -> str | None:
        return None if self._writer is None else self._writer.notice(text_encoder, prompt)

    def prompted(self, identity: Identity, prompt: Prompt) -> Identity:
        return _named({kind: part.prompted(_of(kind, identity), prompt) for kind, part in self.parts.items()})

    def bind(
        self, backbone: Backbone, identity: Identity, scale: float = 1.0, rows: slice | None = None
    ) -> Control | None:
        controls = (part.bind(backbone, _of(kind, identity), scale, rows) for kind, part in self.parts.items())
        controls = [control for control in controls if control is not None]
        return Controls(controls) if len(controls) > 1 else next(iter(controls), None)

    def step_blocks(self) -> Iterable[nn.Module]:
        return chain.from_iterable(part.step_blocks() for part in self.parts.values())

    def encoders(self) -> Iterable[nn.Module]:
        return chain.from_iterable(part.encoders() for part in self.parts.values())


def _named(by_kind: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{kind}.{name}": value for kind, values in by_kind.items() for name, value in values.items()}


def _of(kind: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A part's own, by its own names."""
    return {name.removeprefix(f"{kind}."): value for name, value in values.items() if name.startswith(f"{kind}.")}

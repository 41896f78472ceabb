"""The seam: what a method of personalisation offers. A new one is a file beside this one, a config, a row of a test.

A file `methods/KIND.py` holds one class of `Method` with that `kind`; `method_class(KIND)` finds it.

Shapes: B people or rows, F references of one person.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from feedface.backbones.base import Backbone, Prompt, find_class
from feedface.backbones.control import Control
from feedface.common.errors import UserError
from feedface.common.validation import arguments_of
from feedface.diffusion.guidance import GuidedModel
from feedface.diffusion.objective import MaskObjective, Objective
from feedface.diffusion.state import State
from feedface.encoders import ReferenceSpec, TextEncoder

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Features = Mapping[str, Tensor]  # of references, by name, what frozen networks make of them: a cache keeps these
Identity = Mapping[str, Tensor]  # of people, a row each, by name: what a control is bound to


class Method(nn.Module):
    """A way to show a given person.

    Attributes:
        kind: its name, as files have it.
        config: arguments that make the same module again, JSON.
        reference: what it takes of a reference picture.
        changes_prompt: whether `prompt` depends on the identity: then texts cannot be encoded without it.
        subject_word: the person's word in prompts, of one that puts them there; None for others.
        text_width: of one that writes tokens: how many numbers each has; None for others.
        reads_prompt: whether `prompted` has something to do.
        encodes_references: whether `features` and `identity` need its weights.
        places_faces: whether a prompt may say where the face shall be.
        labels: what its objective asks of records besides their pictures: kinds of `data.labels`; None: nothing at all,
            also no captions. label_cells: of labels that are maps, along a latent's cell; attributes: their names.
        settings: describes `config.control` of a training config (a pydantic type); None: anything goes.
        uses_clip: `features` needs a CLIP vision model. Then `fresh` is given its `clip_config`, and a method that was
            made without it (`with_encoder` False) takes it as `features(references, encoder=…)`.
        guided_model: how it is drawn with: takes what `diffusion.guidance.GuidedModel` takes.
    """

    kind: ClassVar[str]
    config: dict[str, Any]
    reference: ReferenceSpec
    changes_prompt = False
    subject_word: str | None = None
    text_width: int | None = None
    reads_prompt = False
    encodes_references = True
    places_faces = False
    labels: Sequence[str] | None = None
    label_cells = 1
    attributes: Sequence[str] = ()
    settings: ClassVar[Any] = None
    uses_clip = False
    guided_model: ClassVar[type] = GuidedModel

    @classmethod
    def config_type(cls) -> TypeAdapter:
        """A description of `config` as files hold it: by default what the constructor's annotations allow."""
        return arguments_of(cls)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Method":
        """The module that `config` describes, with fresh weights."""
        return cls(**config)

    @classmethod
    def fresh(cls, config: "ConfigDict", backbone: Backbone, **parts: Any) -> "Method":
        """A new one for training, from `config.control`: it changes nothing, to the bit, until it is trained.

        `parts`: what a method takes from elsewhere, such as the description of a frozen encoder. `UserError` for sites
        that the backbone has not, and other settings that do not fit.
        """
        raise NotImplementedError

    def check(self, backbone: Backbone, source: object) -> None:
        """`UserError`, naming `source`, unless it belongs to a backbone like this."""

    def features(self, references: Tensor) -> Features:
        """What frozen networks make of references [B,…], as `reference` describes them."""
        raise NotImplementedError

    def identity(self, features: Features, pool: str = "concat") -> Identity:
        """Features of B people with F references each, [B,F,…], -> their identities. What is trained acts here."""
        raise NotImplementedError

    def unconditional(self, identity: Identity, mode: str) -> Identity | None:
        """Who is shown in the unconditional half, see `diffusion.guidance`. None: nobody, and no work for it."""
        return {name: torch.zeros_like(value) for name, value in identity.items()} if mode == "paper" else None

    def blended(self, first: Identity, second: Identity, weight: float) -> Identity:
        """Two people in one, row by row: the first at `weight` 0, the second at 1. `UserError` where it cannot."""
        raise UserError(f"the method {self.kind} cannot blend people; flashface can")

    @classmethod
    def placed(cls, prompt: Prompt, box: Sequence[float], latent_size: tuple[int, int]) -> Prompt:
        """The prompt, with the face in a box: x1, y1, x2, y2 in shares of the picture; where it `places_faces`."""
        raise NotImplementedError

    def posed(self, identity: Identity, pose: Sequence[float]) -> Identity:
        """People with their heads turned: yaw, pitch, roll in degrees, see `head_pose`. `UserError` where it cannot."""
        raise UserError(f"--pose: the method {self.kind} cannot turn heads; denseface can")

    def prompt(
        self,
        text_encoder: TextEncoder,
        prompts: Sequence[str],
        identity: Identity | None = None,
        scale: float = 1.0,
    ) -> Prompt:
        """Encode prompts, with the identity at strength `scale` in them where the method `changes_prompt`."""
        return {"text": text_encoder.encode(prompts)}

    def notice(self, text_encoder: TextEncoder, prompt: str) -> str | None:
        """What to tell the user of a prompt with a person, where the method `changes_prompt`."""
        return None

    def prompted(self, identity: Identity, prompt: Prompt) -> Identity:
        """The identities for these prompts, where the method shows people otherwise in each; once a generation.

        Both have B rows, or one for all. Done again it changes nothing.
        """
        return identity

    def bind(
        self, backbone: Backbone, identity: Identity, scale: float = 1.0, rows: slice | None = None
    ) -> Control | None:
        """A control for `Backbone.forward`, with all done that needs doing once; None at scale 0: no work.

        `identity` has a row for each row that the control acts on, or one for all. `rows`: those of the batch.
        """
        raise NotImplementedError

    def read_out(self, control: Control, state: State, t: Tensor, noise: State) -> State:
        """What else it predicts where `control` acted in a training step, by names of its own, for its objective."""
        return {}

    def objective(self, config: "ConfigDict", zero_reference: Features, empty_text: Tensor) -> Objective:
        """What training minimises, by default FeedFace's loss; the arguments are those of `MaskObjective`."""
        return MaskObjective(config, zero_reference, empty_text)

    @classmethod
    def asks_frozen(cls, config: "ConfigDict") -> bool:
        """Whether training so compares with the backbone's own prediction, and that stays as it is."""
        return config.loss.kind == "regularization" and not cls.changes_backbone(config.control)

    def step_blocks(self) -> Iterable[nn.Module]:
        """Its modules that work at every step: for compiling, int8, offloading. All others work once a person."""
        return ()

    def encoders(self) -> Iterable[nn.Module]:
        """Its large frozen networks that work once a person: for offloading."""
        return ()

    @property
    def done_when_prompted(self) -> bool:
        """Whether `bind` and what follows need none of its weights: then they can make room for the backbone."""
        return False

    @classmethod
    def changes_backbone(cls, control: Mapping[str, Any]) -> bool:
        """Whether training with this `config.control` changes the backbone too: then it is loaded in float32."""
        return False

    def trained(self, backbone: Backbone) -> dict[str, nn.Module]:
        """What training changes, by name: parts of this module, perhaps of the backbone."""
        raise NotImplementedError

    def trained_parameters(self, backbone: Backbone) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters of what is `trained`, by name."""
        for name, module in self.trained(backbone).items():
            yield from module.named_parameters(prefix=name)


def method_class(kind: str) -> type[Method]:
    """The `Method` called `kind`; `UserError` for an unknown one."""
    return find_class(__package__, Method, kind, "method")

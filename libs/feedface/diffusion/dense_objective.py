"""What training Dense-Face minimises: the noise, and what its dense heads say of the picture.

Source: Guo et al. 2024, "Dense-Face"; the dense losses are our own, see `dense_heads`.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from feedface.common.person_words import named
from feedface.diffusion.batch import Draws, Encoded
from feedface.diffusion.dense_losses import dense_losses
from feedface.diffusion.objective import LossParts, Model
from feedface.diffusion.protocols import Rows
from feedface.diffusion.schedule import NUM_TIMESTEPS
from feedface.diffusion.state import State
from feedface.diffusion.text_objective import TextObjective, rng_of

if TYPE_CHECKING:
    from ml_collections import ConfigDict

USUAL_CAPTION = "a close-up photo of {} ."  # the authors', where records have none


class DenseObjective(TextObjective):
    """Prompts with the person's word for "man", "woman" and the like; a loss on the noise, and those of the heads.

    The heads' losses count (1 − t / 1000)² as much: of noise there is nothing to say.

    Args besides `MaskObjective`'s: `settings`, `config.control`.
    """

    def __init__(self, config: "ConfigDict", zero_reference: Rows, empty_text: Tensor, settings: Any):
        super().__init__(config, zero_reference, empty_text)
        self.settings = settings

    def prompts(self, draws: Draws, batch: Encoded) -> list[str]:
        word, fixed = self.settings.subject_word, self.settings.caption
        captions = [fixed or USUAL_CAPTION] * len(draws.t) if fixed or not batch.captions else batch.captions
        said = (named(text, word, self.settings.person_words).replace("{}", word) for text in captions)
        return ["" if dropped else text for text, dropped in zip(said, draws.drop_text.tolist(), strict=True)]

    def __call__(self, model: Model, draws: Draws, batch: Encoded) -> LossParts:
        predict = self.shown(model, self.prompts(draws, batch))
        labels = {name: value.to(self.device) for name, value in batch.labels.items()}
        posed = "pose" in labels and rng_of(draws).random() >= self.settings.pose_dropout
        heads: State = {}

        def told(state: State, t: Tensor, prompt: Rows, features: Rows | None = None) -> State:
            if features is not None and posed:
                features = {**features, "pose": labels["pose"]}
            found = predict(state, t, prompt, features)
            heads.update((name.removeprefix("dense."), value) for name, value in found.items() if "." in name)
            return found

        parts = self.masked(told, draws, batch)
        clean = (1 - draws.t.to(self.device) / NUM_TIMESTEPS).square()
        for name, loss in dense_losses(heads, labels).items():
            weight = getattr(self.settings.dense, f"{name}_weight")
            parts.loss = parts.loss + weight * (clean * loss).mean()
        return parts

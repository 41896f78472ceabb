"""What a run of make_data.py is told."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from feedface.preparation import captions
from feedface.preparation.captions import Captioner, make_captioner
from feedface.preparation.groups import group
from feedface.preparation.process import Rules


@dataclass(frozen=True)
class Options:
    """Everything a run is told, see `feedface.commands.make_data`.

    Attributes:
        caption: one of `captions.CAPTIONERS`; the next three belong to one of them each.
        identity: how people are told apart: none, folder, list or cluster.
        formats: of `formats.FORMATS`; dense: their records with pose and landmarks, for Dense-Face.
        workers: threads that read and write; 0 does both in between.
        batch_size: pictures that are parsed together.
        timings: JSON file for how long each stage took, not part of the output.
    """

    data: Path
    out: Path
    model: Path | None = None
    detector: str = "auto"
    parser: str = "auto"
    device: str = "auto"
    det_threshold: float = 0.5
    rules: Rules = field(default_factory=Rules)
    caption: str = "none"
    caption_text: str = captions.DEFAULT_TEXT
    caption_file: Path | None = None
    llava_model: str = captions.DEFAULT_LLAVA
    identity: str = "none"
    identity_list: Path | None = None
    identity_threshold: float | None = None
    formats: tuple[str, ...] = ("feedface",)
    dense: bool = False
    workers: int = 2
    batch_size: int = 8
    timings: Path | None = None

    @property
    def caption_source(self) -> str:
        """Where captions come from, as the JSON files say it."""
        return f"llava {self.llava_model}" if self.caption == "llava" else self.caption

    @property
    def captions_repeatable(self) -> bool:
        """Whether captions cost nothing to make again: then every run checks that they still are the same."""
        return self.caption != "llava"

    def group(self, pictures: Sequence[tuple[str, list[float] | None]], all_pictures: Sequence[str], detector: str):
        """Who is in these pictures (path below the data folder, embedding), see `groups.group`."""
        return group(pictures, self.identity, self.identity_threshold, self.identity_list, detector, all_pictures)

    def captioner(self, pictures: Sequence[str], device: str = "cpu") -> Captioner:
        """Build it; `pictures`: all of them, below the data folder. `UserError` for what is missing or broken."""
        arguments = {
            "none": (self.caption_text,),
            "sidecar": (),
            "file": (self.caption_file, pictures),
            "llava": (self.llava_model, device),
        }
        return make_captioner(self.caption, *arguments[self.caption])

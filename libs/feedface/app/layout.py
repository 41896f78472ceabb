"""What is on the page, and where. The fields of an order are `Fields`: as components here, as values in `actions`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from feedface.app.batch import HEADERS
from feedface.app.order import FOUND, PLACES
from feedface.app.session import MOST_PEOPLE
from feedface.app.words import BATCH, BEGIN, EMPTY, PEOPLE, bar, size_choices
from feedface.inference.provenance import SUFFIXES
from feedface.inference.somebody import SUFFIX
from feedface.settings import PRESET_NAMES

if TYPE_CHECKING:
    from feedface.pipeline import FeedFacePipeline

PHOTO_TYPES = ["image", ".heic", ".heif", ".hif"]
PRESETS = [("the model's own", ""), *((name, name) for name in PRESET_NAMES)]
MAX_NUMBER = 16
NAMES = ("anna", "ben", "cleo")  # as examples
WORDS = ["person", "woman", "man", "girl", "boy"]
BRUSH = "rgba(0, 191, 165, 0.6)"  # what is under it stays to be seen


class Fields(NamedTuple):
    """What an order is made of, but for what is said of the people."""

    prompt: Any
    negative: Any
    model: Any
    preset: Any
    number: Any
    seed: Any
    size: Any
    strength: Any
    guidance: Any
    rescale: Any
    pag_scale: Any
    format: Any
    others: Any
    strengths: Any
    picture: Any
    only_face: Any
    change: Any


@dataclass
class PersonPanel:
    """One person: photos or a file, faces, and what is said of them."""

    photos: gr.Gallery
    faces: gr.Gallery
    chosen: gr.CheckboxGroup
    clear: gr.Button
    messages: gr.HTML
    name: gr.Textbox
    word: gr.Dropdown
    place: gr.Radio
    load: gr.UploadButton
    keep: gr.Button
    kept: gr.DownloadButton

    @property
    def found(self) -> list:
        """What shows who is there."""
        return [self.faces, self.chosen, self.clear]


@dataclass
class Results:
    """Where pictures appear, and what can be done with one of them."""

    go: gr.Button
    stop: gr.Button
    progress: gr.HTML
    messages: gr.HTML
    pictures: gr.Gallery
    panel: gr.Column
    details: gr.Markdown
    again: gr.Button
    download: gr.DownloadButton
    settings: gr.Code


@dataclass
class BatchPanel:
    """Job files and what comes of them."""

    files: gr.File
    model: gr.Dropdown
    preset: gr.Radio
    number: gr.Number
    run: gr.Button
    stop: gr.Button
    messages: gr.HTML
    table: gr.Dataframe
    results: gr.Gallery
    archive: gr.DownloadButton


def people_panels() -> list[PersonPanel]:
    """A tab for each person; who wants one only needs the first."""
    panels = []
    with gr.Tabs(elem_id="people"):
        for number in range(1, MOST_PEOPLE + 1):
            with gr.Tab(f"Person {number}", id=number, elem_id=f"person{number}"):
                panels.append(_person(number))
    return panels


def _person(number: int) -> PersonPanel:
    first = number == 1
    photos = gr.Gallery(
        label="Photos of one person" if first else f"Photos of person {number}",
        sources=["upload", "clipboard"],
        file_types=PHOTO_TYPES,
        type="filepath",
        interactive=True,
        height=190,
        elem_id="photos" if first else f"photos{number}",
    )
    faces = gr.Gallery(
        label="Faces found", visible=False, interactive=False, columns=3, rows=1, height="auto", buttons=[],
        object_fit="contain", elem_id="faces" if first else f"faces{number}", elem_classes="faces",
    )  # fmt: skip
    chosen = gr.CheckboxGroup(
        label="Faces that are used", visible=False, elem_id="chosen" if first else f"chosen{number}"
    )
    clear = gr.Button("Take somebody else", visible=False, size="sm")
    messages = gr.HTML()
    with gr.Accordion("Name, place, saved person", open=not first):
        if first:
            gr.Markdown(PEOPLE, elem_classes="hint")
        with gr.Row():
            name = gr.Textbox(label=f"Name {number}", placeholder=NAMES[number - 1], max_lines=1, min_width=120)
            word = gr.Dropdown(WORDS, value=WORDS[0], label="Is a", allow_custom_value=True, min_width=120)
        place = gr.Radio(
            [("where a face is found", FOUND), *((place, place) for place in PLACES)], value=FOUND, label="Place"
        )
        with gr.Row():
            load = gr.UploadButton(f"Load a {SUFFIX} file", file_types=[SUFFIX], size="sm", min_width=120)
            keep = gr.Button(f"Save as a {SUFFIX} file", size="sm", min_width=120)
        kept = gr.DownloadButton("Download", visible=False, size="sm", variant="primary")
    return PersonPanel(photos, faces, chosen, clear, messages, name, word, place, load, keep, kept)


def order_fields(names: list[str], pipe: FeedFacePipeline) -> Fields:
    """The picture that is wanted."""
    sizes = size_choices(pipe.bundle.image_size, pipe.bundle.size_multiple)
    prompt = gr.Textbox(
        label="Prompt", lines=3, placeholder="a smiling woman in a green hoodie on a beach", elem_id="prompt"
    )
    negative = gr.Textbox(label="Negative prompt", lines=1, placeholder="what should not be seen")
    model = gr.Dropdown(names, value=names[0], label="Method")
    preset = gr.Radio(PRESETS, value="", label="Preset")
    with gr.Row():
        number = gr.Number(4, label="Number", precision=0, minimum=1, maximum=MAX_NUMBER, min_width=80)
        seed = gr.Number(-1, label="Seed", precision=0, minimum=-1, min_width=90)
        size = gr.Dropdown(sizes, value=sizes[0], label="Size", allow_custom_value=True, min_width=110)
    gr.Markdown("Seed −1: any.", elem_classes="hint")
    strength = gr.Slider(0, 2, pipe.settings().face_scale, step=0.05, label="Strength of the face")
    with gr.Accordion("Begin with a picture", open=False, elem_id="begin"):
        gr.Markdown(BEGIN, elem_classes="hint")
        picture = gr.ImageEditor(
            label="Picture to begin with",
            show_label=False,
            type="numpy",
            sources=("upload", "clipboard"),
            transforms=(),
            layers=False,
            brush=gr.Brush(colors=[BRUSH], default_color=BRUSH, color_mode="fixed"),
            buttons=[],
            height=380,
            elem_id="picture",
        )
        only_face = gr.Checkbox(label="Only the face in it, which is found", value=False)
        change = gr.Slider(0.05, 1, 0.8, step=0.05, label="How much is drawn anew")
    with gr.Accordion("More", open=False):
        # No gr.Number: an empty one becomes 0 as soon as it is seen.
        guidance = gr.Textbox(
            label="Guidance", placeholder="the model's own", info="How strictly the prompt is followed, 0 to 50."
        )
        rescale = gr.Slider(
            0, 1, 0, step=0.05, label="Rescale", info="Takes the contrast back that a high guidance adds."
        )
        pag_scale = gr.Textbox(
            label="Clean-up",
            placeholder="the model's own",
            info="Perturbed-attention guidance, 0 to 10: cleaner faces, in more time.",
        )
        format = gr.Radio(list(SUFFIXES), value="png", label="Format", info="png keeps every bit.")
    with gr.Accordion("Compare side by side", open=False):
        others = gr.CheckboxGroup(names, label="Methods")
        strengths = gr.Textbox(label="Strengths", placeholder="0, 0.5, 1, 1.5")
    return Fields(
        prompt, negative, model, preset, number, seed, size, strength, guidance, rescale, pag_scale, format, others,
        strengths, picture, only_face, change,
    )  # fmt: skip


def results() -> Results:
    """The other half of the page."""
    with gr.Row():
        go = gr.Button("Draw", variant="primary", scale=3, elem_id="draw")
        stop = gr.Button("Stop", variant="stop", interactive=False, min_width=80, elem_id="stop")
    progress = gr.HTML(bar(0, 0, EMPTY), elem_id="progress")
    messages = gr.HTML()
    pictures = gr.Gallery(
        label="Pictures, the newest first", interactive=False, columns=2, rows=1, object_fit="contain", height="auto",
        buttons=["download", "fullscreen"], elem_id="pictures",
    )  # fmt: skip
    with gr.Column(visible=False) as panel:
        details = gr.Markdown()
        with gr.Row():
            again = gr.Button("Again with this seed", size="md")
            download = gr.DownloadButton("Picture, faces and settings (.zip)", size="md")
        with gr.Accordion("Settings, for inference.py -j", open=False):
            settings = gr.Code(language="json", label="job.json", interactive=False)
    return Results(go, stop, progress, messages, pictures, panel, details, again, download, settings)


def batch_panel(names: list[str]) -> BatchPanel:
    """The tab of job files."""
    gr.Markdown(BATCH, elem_classes="hint")
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            files = gr.File(
                label="Job files and photos", file_count="multiple", file_types=[".json", SUFFIX, *PHOTO_TYPES],
                height=180, elem_id="files",
            )  # fmt: skip
            model = gr.Dropdown(names, value=names[0], label="Method")
            preset = gr.Radio(PRESETS, value="", label="Preset")
            number = gr.Number(1, label="Pictures of each prompt", precision=0, minimum=1, maximum=64)
            with gr.Row():
                run = gr.Button("Run", variant="primary", elem_id="run")
                stop = gr.Button("Stop", variant="stop", interactive=False)
        with gr.Column(scale=3, min_width=320):
            messages = gr.HTML()
            table = gr.Dataframe(
                headers=list(HEADERS), label="Jobs", interactive=False, wrap=True, elem_id="jobs",
                column_widths=["30%", "20%", "50%"],
            )  # fmt: skip
            pictures = gr.Gallery(label="Pictures", interactive=False, columns=3, rows=1, height="auto")
            archive = gr.DownloadButton("All pictures (.zip)", visible=False)
    return BatchPanel(files, model, preset, number, run, stop, messages, table, pictures, archive)

"""The page itself: what is on it, and what happens when something is pressed.

`Page(models, detector).blocks()` is gradio's; `launch` of it serves. All words on it are in this file.
"""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from feedface import __version__
from feedface.app.batch import HEADERS, run_batch
from feedface.app.drawing import Order, add_photos, as_zip, draw
from feedface.app.session import Drawn, Session, Sessions
from feedface.common.errors import UserError, one_line
from feedface.inference.job_run import RunPlan
from feedface.inference.photo_notice import photo_notice
from feedface.settings import PRESET_NAMES, Settings, parse_size

if TYPE_CHECKING:
    from feedface.app.models import Models
    from feedface.faces.types import FaceDetector

CSS = Path(__file__).with_name("page.css")
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")  # nothing is fetched
THEME = gr.themes.Soft(
    primary_hue="teal", neutral_hue="slate", font=FONT, font_mono=("ui-monospace", "Menlo", "Consolas", "monospace")
).set(
    block_title_background_fill="none",
    block_title_background_fill_dark="none",
    block_title_text_color="*body_text_color",
    block_title_text_color_dark="*body_text_color",
    block_title_padding="0",
    block_label_background_fill="*background_fill_primary",
    block_label_background_fill_dark="*background_fill_primary",
    block_label_text_color="*body_text_color",
    block_label_text_color_dark="*body_text_color",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_600",
    block_border_width="1px",
    block_border_width_dark="1px",
    input_border_width="1px",
    checkbox_label_border_width="1px",
    checkbox_label_background_fill_selected="*primary_700",
    checkbox_label_background_fill_selected_dark="*primary_700",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
)
PHOTO_TYPES = ["image", ".heic", ".heif", ".hif"]
MAX_NUMBER = 16
CONSENT = (
    "Put people into pictures only if they agree. A picture that this page draws is not a photograph; each file says "
    "so in its metadata."
)
ABOUT = f"""
**What this is.** FeedFace {__version__} draws new pictures of a person from one to five photos of their face and a
sentence. Nothing is trained per person.

**What stays here.** Everything is computed on the machine that runs this page. Nothing is sent anywhere: no analytics,
no fonts or scripts from elsewhere. A photo is deleted once its faces are cut out; those and your pictures are kept
until you close or reload this page, then they are deleted too.

**Fair use.** {CONSENT} Do not use it to deceive, to harass, or to show anybody in a way that they would refuse.
"""
EMPTY = "Your pictures appear here."


class Page:
    """What the page does; one object for all visitors, whose things are in `sessions`."""

    def __init__(self, models: Models, detector: FaceDetector, root: Path):
        self.models, self.detector, self.sessions = models, detector, Sessions(root)

    def session(self, request: gr.Request) -> Session:
        return self.sessions.of(request.session_hash or "api")

    # --------------------------------------------------------------------------------------------------------- photos

    def add(self, photos: list, request: gr.Request) -> list:
        """Take uploaded photos over, and show whose faces are in them."""
        session = self.session(request)
        files = [photo[0] for photo in photos or []]
        notices, problem = [], ""
        try:
            notices = add_photos(session, files, self.detector)
        except Exception as error:
            problem = said(error)
        pipe = self.models.load(self.models.names[0])
        if notice := photo_notice(pipe.bundle, self.detector, session.references):
            notices.append(notice)
        return [None, *self._faces(session), messages(problem, notices)]

    def choose(self, chosen: list[int], request: gr.Request) -> list:
        """Use these faces and no others."""
        session = self.session(request)
        session.chosen = set(chosen) & set(range(len(session.faces)))
        return self._faces(session)

    def clear(self, request: gr.Request) -> list:
        """Start with somebody else."""
        session = self.session(request)
        session.clear()
        return [*self._faces(session), ""]

    def _faces(self, session: Session) -> list:
        there = bool(session.photos)
        for path in session.folder.glob("*_photo.jpg"):
            path.unlink(missing_ok=True)
        return [
            gr.update(value=session.shown(), visible=there),
            gr.update(choices=session.choices(), value=sorted(session.chosen), visible=there),
            gr.update(visible=there),
        ]

    # -------------------------------------------------------------------------------------------------------- drawing

    def draw(
        self,
        prompt: str,
        negative: str,
        model: str,
        preset: str,
        number: float,
        seed: float,
        size: str,
        strength: float,
        guidance: float | None,
        others: list[str],
        strengths: str,
        request: gr.Request,
    ) -> Iterator[list]:
        """Draw, and show how far it is: (bar, messages, pictures, draw button, stop button, seed)."""
        session = self.session(request)
        idle = [gr.update(interactive=True), gr.update(interactive=False)]
        yield [
            bar(0, 0, "Waiting for its turn…"),
            "",
            gr.skip(),
            gr.update(interactive=False),
            gr.update(interactive=True),
        ]
        drawn = 0
        try:
            order = Order(
                (prompt or "").strip(),
                others or [model],
                numbers(strengths or "") or [strength],
                Settings(
                    guidance=guidance,
                    preset=preset,
                    size=parse_size(size),
                    negative_prompt=(negative or "").strip() or None,
                ),
                seed=whole(seed, "Seed"),
                number=whole(number, "Number"),
            )
            for done, total, picture in draw(session, self.models, self.detector, order):
                drawn += picture is not None
                text = f"step {done} of {total}" if total else "Getting ready…"
                yield [
                    bar(done, total, text),
                    gr.skip(),
                    self._gallery(session) if picture else gr.skip(),
                    *[gr.skip()] * 2,
                ]
        except Exception as error:
            yield [bar(0, 0, ""), messages(said(error)), gr.skip(), *idle]
            return
        notices = [] if session.references else ["No face was given: this shows nobody in particular."]
        text = "Stopped." if session.stop.is_set() and not drawn else f"{drawn} picture{'s' * (drawn != 1)} drawn."
        yield [bar(0, 0, text), messages("", notices), gr.skip(), *idle]

    def stop(self, request: gr.Request) -> None:
        """End what this visitor is waiting for at its next step."""
        self.session(request).stop.set()

    def _gallery(self, session: Session) -> Any:
        return gr.update(value=[(str(one.file), one.caption) for one in session.history], selected_index=None)

    def select(self, event: gr.SelectData, request: gr.Request) -> list:
        """Show what can be done with a picture: (panel, text, JSON, download)."""
        session = self.session(request)
        if not 0 <= event.index < len(session.history):
            return [gr.update(visible=False), "", "", None]
        one = session.selected = session.history[event.index]
        archive = as_zip(one, one.file.with_suffix(".zip"))
        text = f"**{html.escape(one.job['caption_list'][0])}**  \n{one.caption}"
        return [gr.update(visible=True), text, json.dumps(one.job, indent=2), str(archive)]

    def again(self, request: gr.Request) -> list:
        """The seed of the selected picture, for one picture."""
        one = self.session(request).selected
        return [gr.skip(), gr.skip()] if one is None else [one.seed, 1]

    def sizes(self, model: str) -> list:
        """What the fields offer for another model: (sizes, strength)."""
        try:
            pipe = self.models.load(model)
        except UserError as error:
            raise gr.Error(said(error)) from None
        choices = size_choices(pipe.bundle.image_size, pipe.bundle.size_multiple)
        return [gr.update(choices=choices, value=choices[0]), pipe.settings().face_scale]

    # ---------------------------------------------------------------------------------------------------------- batch

    def batch(
        self, files: list[str] | None, model: str, preset: str, number: float, request: gr.Request
    ) -> Iterator[list]:
        """Run job files: (table, messages, pictures, download, run button, stop button, files)."""
        session = self.session(request)
        busy = [gr.update(interactive=False), gr.update(interactive=True), gr.skip()]
        idle = [gr.update(interactive=True), gr.update(interactive=False), None]
        yield [gr.skip(), "", gr.skip(), gr.skip(), *busy]
        try:
            if not files:
                raise UserError("Upload job files (.json) and the photos that they name.")
            plan = RunPlan(Settings(preset=preset), n_samples=whole(number, "Number"))
            state: tuple = ()
            for state in run_batch(session, self.models, model, self.detector, files, plan):
                yield [state[0], *[gr.skip()] * 6]
            table, output = state
            pictures = sorted(output.glob("*/[0-9]*.png")) if output else []
            archive = shutil.make_archive(str(output), "zip", output) if pictures else None
            shown = [(str(path), path.parent.name) for path in pictures]
            yield [table, "", shown, gr.update(value=archive, visible=archive is not None), *idle]
        except Exception as error:
            yield [gr.skip(), messages(said(error)), gr.skip(), gr.skip(), *idle]

    # ------------------------------------------------------------------------------------------------------------ API

    def api_draw(
        self,
        photos: list[gr.FileData],
        prompt: str,
        n_samples: int = 1,
        seed: int = -1,
        face_scale: float = -1.0,
        preset: str = "balanced",
        negative_prompt: str = "",
        model: str = "",
    ) -> list[gr.FileData]:
        """Draw the person of some photos: PNG files. Without a seed, of any; face_scale -1 is the model's own."""
        session = self.sessions.of(f"api-{id(photos)}")
        try:
            notices = add_photos(session, [photo["path"] for photo in photos], self.detector)
            if photos and not session.photos:
                raise UserError(" ".join(notices))
            settings = Settings(preset=preset, negative_prompt=negative_prompt or None)
            strength = None if face_scale < 0 else face_scale
            order = Order(prompt, [model or self.models.names[0]], [strength], settings, seed, n_samples)
            files = [one.file for _, _, one in draw(session, self.models, self.detector, order) if one]
            kept = self.sessions.of("api")  # for the client to fetch
            files = [Path(shutil.move(file, kept.file(file.name))) for file in files]
            return [gr.FileData(path=str(file)) for file in files]
        except Exception as error:
            raise gr.Error(said(error), print_exception=False) from None
        finally:
            self.sessions.forget(f"api-{id(photos)}")

    # ------------------------------------------------------------------------------------------------------------ page

    def blocks(self) -> gr.Blocks:
        """The page, ready to be launched with `theme=THEME, css_paths=CSS`."""
        private = {"api_visibility": "private"}
        names = self.models.names
        pipe = self.models.load(names[0])
        sizes = size_choices(pipe.bundle.image_size, pipe.bundle.size_multiple)
        with gr.Blocks(title="FeedFace", analytics_enabled=False, delete_cache=(600, 3600)) as page:
            gr.Markdown("# FeedFace\nPictures of a person you know, as a sentence describes them.", elem_id="title")
            with gr.Tab("Draw"), gr.Row():
                with gr.Column(scale=2, min_width=320):
                    gr.Markdown("## 1 · The person", elem_classes="step")
                    photos = gr.Gallery(
                        label="Photos of one person",
                        sources=["upload", "clipboard"],
                        file_types=PHOTO_TYPES,
                        type="filepath",
                        interactive=True,
                        height=190,
                        elem_id="photos",
                    )
                    faces = gr.Gallery(
                        label="Faces found", visible=False, interactive=False, columns=3, rows=1, height="auto",
                        buttons=[], object_fit="contain", elem_id="faces",
                    )  # fmt: skip
                    chosen = gr.CheckboxGroup(label="Faces that are used", visible=False, elem_id="chosen")
                    clear = gr.Button("Take somebody else", visible=False, size="sm")
                    face_messages = gr.HTML()
                    gr.Markdown("## 2 · The picture", elem_classes="step")
                    prompt = gr.Textbox(
                        label="Prompt", lines=3, placeholder="a smiling woman in a green hoodie on a beach",
                        elem_id="prompt",
                    )  # fmt: skip
                    negative = gr.Textbox(label="Negative prompt", lines=1, placeholder="what should not be seen")
                    model = gr.Dropdown(names, value=names[0], label="Method")
                    preset = gr.Radio(list(PRESET_NAMES), value="balanced", label="Preset")
                    with gr.Row():
                        number = gr.Number(4, label="Number", precision=0, minimum=1, maximum=MAX_NUMBER, min_width=80)
                        seed = gr.Number(-1, label="Seed", precision=0, minimum=-1, min_width=90)
                        size = gr.Dropdown(sizes, value=sizes[0], label="Size", allow_custom_value=True, min_width=110)
                    gr.Markdown("Seed −1: any.", elem_classes="hint")
                    strength = gr.Slider(0, 2, pipe.settings().face_scale, step=0.05, label="Strength of the face")
                    with gr.Accordion("More", open=False):
                        guidance = gr.Number(
                            None, label="Guidance", info="How strictly the prompt is followed; empty: the model's own.",
                            minimum=0, maximum=50,
                        )  # fmt: skip
                    with gr.Accordion("Compare side by side", open=False):
                        others = gr.CheckboxGroup(names, label="Methods")
                        strengths = gr.Textbox(label="Strengths", placeholder="0, 0.5, 1, 1.5")
                with gr.Column(scale=3, min_width=320, elem_classes="results"):
                    with gr.Row():
                        go = gr.Button("Draw", variant="primary", scale=3, elem_id="draw")
                        stop = gr.Button("Stop", variant="stop", interactive=False, min_width=80, elem_id="stop")
                    progress = gr.HTML(bar(0, 0, EMPTY), elem_id="progress")
                    draw_messages = gr.HTML()
                    pictures = gr.Gallery(
                        label="Pictures, the newest first", interactive=False, columns=2, rows=1, object_fit="contain",
                        height="auto", buttons=["download", "fullscreen"], elem_id="pictures",
                    )  # fmt: skip
                    with gr.Column(visible=False) as panel:
                        details = gr.Markdown()
                        with gr.Row():
                            again = gr.Button("Again with this seed", size="md")
                            download = gr.DownloadButton("Picture, faces and settings (.zip)", size="md")
                        with gr.Accordion("Settings, for inference.py -j", open=False):
                            settings = gr.Code(language="json", label="job.json", interactive=False)
            with gr.Tab("Batch"):
                gr.Markdown(
                    'Upload job files (`{"id": …, "caption_list": […], "source_group": [{"path": …}]}`) with the '
                    "photos that they name. Each job is one person with several prompts.",
                    elem_classes="hint",
                )
                with gr.Row():
                    with gr.Column(scale=2, min_width=320):
                        files = gr.File(
                            label="Job files and photos", file_count="multiple", file_types=[".json", *PHOTO_TYPES],
                            height=180, elem_id="files",
                        )  # fmt: skip
                        batch_model = gr.Dropdown(names, value=names[0], label="Method")
                        batch_preset = gr.Radio(list(PRESET_NAMES), value="balanced", label="Preset")
                        batch_number = gr.Number(1, label="Pictures of each prompt", precision=0, minimum=1, maximum=64)
                        with gr.Row():
                            run = gr.Button("Run", variant="primary", elem_id="run")
                            batch_stop = gr.Button("Stop", variant="stop", interactive=False)
                    with gr.Column(scale=3, min_width=320):
                        batch_messages = gr.HTML()
                        table = gr.Dataframe(
                            headers=list(HEADERS), label="Jobs", interactive=False, wrap=True, elem_id="jobs",
                            column_widths=["30%", "20%", "50%"],
                        )  # fmt: skip
                        results = gr.Gallery(label="Pictures", interactive=False, columns=3, rows=1, height="auto")
                        archive = gr.DownloadButton("All pictures (.zip)", visible=False)
            with gr.Tab("About"):
                gr.Markdown(ABOUT)
            gr.Markdown(CONSENT, elem_classes="hint")

            found = [faces, chosen, clear]
            photos.upload(self.add, photos, [photos, *found, face_messages], **private)
            chosen.input(self.choose, chosen, found, show_progress="hidden", **private)
            clear.click(self.clear, None, [*found, face_messages], **private)
            model.change(self.sizes, model, [size, strength], **private)
            drawing = {"concurrency_id": "draw", "concurrency_limit": 1}
            wanted = [
                prompt, negative, model, preset, number, seed, size, strength, guidance, others, strengths,
            ]  # fmt: skip
            shown = [progress, draw_messages, pictures, go, stop]
            press = [go.click, prompt.submit]
            gr.on(
                press,
                self.draw,
                wanted,
                shown,
                api_name="press_draw",
                show_progress="hidden",
                **drawing,
                **private,
            )
            stop.click(self.stop, queue=False, **private)
            pictures.select(self.select, None, [panel, details, settings, download], **private)
            again.click(self.again, None, [seed, number], **private)
            ran = [table, batch_messages, results, archive, run, batch_stop, files]
            run.click(
                self.batch, [files, batch_model, batch_preset, batch_number], ran, show_progress="hidden",
                **drawing, **private,
            )  # fmt: skip
            batch_stop.click(self.stop, queue=False, **private)
            gr.api(self.api_draw, api_name="draw", **drawing)
            page.unload(self.leave)
        page.queue(max_size=64)
        return page

    def leave(self, request: gr.Request) -> None:
        """A visitor has closed or reloaded the page."""
        self.sessions.forget(request.session_hash)


def bar(done: int, total: int, text: str) -> str:
    """How far it is."""
    shown = f'<progress max="{total}" value="{done}" aria-label="progress"></progress>' if total else ""
    return f'<div class="bar" role="status">{shown}<span>{html.escape(text)}</span></div>'


def messages(problem: str, notices: Sequence[str] = ()) -> str:
    """A problem and notes, as boxes."""
    boxes = [f'<div class="message problem" role="alert">{html.escape(problem)}</div>'] if problem else []
    boxes += [f'<div class="message note" role="status">{html.escape(sentence(notice))}</div>' for notice in notices]
    return "".join(boxes)


def said(error: Exception) -> str:
    """An error as a sentence; one of ours that should not be goes to the terminal with all that is known."""
    if isinstance(error, UserError):
        return sentence(one_line(error))
    traceback.print_exception(error, file=sys.stderr)
    return f"This did not work, through a fault in the program ({type(error).__name__}). Its terminal says more."


def sentence(text: str) -> str:
    """A message that was written for the command line, for people who see fields."""
    text = re.sub(r"--([a-z_]+)", lambda match: match[1].replace("_", " "), text)
    if "." not in text.partition(" ")[0]:  # no file's name
        text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def numbers(text: str) -> list[float]:
    """ "0, 0.5; 1" -> [0, 0.5, 1]; `UserError` for anything else."""
    try:
        return [float(part) for part in re.split(r"[,;\s]+", text.strip()) if part]
    except ValueError:
        raise UserError(f"Strengths {text!r}: write numbers with commas between them, such as 0, 0.5, 1") from None


def whole(value: float | None, name: str) -> int:
    if value is None or not math.isfinite(value) or value != int(value):
        raise UserError(f"{name}: write a whole number")
    return int(value)


def size_choices(side: int, multiple: int) -> list[str]:
    """A square, an upright and a wide picture of about the model's size."""
    long = max(multiple, round(side * 1.25 / multiple) * multiple)
    return [f"{side}x{side}"] + ([f"{side}x{long}", f"{long}x{side}"] if long != side else [])


__all__ = ["CSS", "THEME", "Drawn", "Page"]

"""The page: what is on it and what happens there, put together.

`Page(models, detector, root).blocks()` is gradio's; `launch` of it serves, with `look.THEME` and `look.CSS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr

from feedface.app.actions import Actions
from feedface.app.layout import (
    BatchPanel,
    Fields,
    PersonPanel,
    Results,
    batch_panel,
    order_fields,
    people_panels,
    results,
)
from feedface.app.person_actions import PersonActions
from feedface.app.words import ABOUT, CONSENT, TITLE

if TYPE_CHECKING:
    from feedface.app.models import Models
    from feedface.faces.types import FaceDetector

PRIVATE = {"api_visibility": "private"}
DRAWING = {"concurrency_id": "draw", "concurrency_limit": 1, "show_progress": "hidden"} | PRIVATE


class Page:
    """What is served to all visitors."""

    def __init__(self, models: Models, detector: FaceDetector, root: Path):
        self.models, self.actions = models, Actions(models, detector, root)

    def blocks(self) -> gr.Blocks:
        """The page, ready to be launched."""
        names = self.models.names
        with gr.Blocks(title="FeedFace", analytics_enabled=False, delete_cache=(600, 3600)) as page:
            gr.Markdown(TITLE, elem_id="title")
            with gr.Tab("Draw"), gr.Row():
                with gr.Column(scale=2, min_width=320):
                    gr.Markdown("## 1 · The person", elem_classes="step")
                    people = people_panels()
                    gr.Markdown("## 2 · The picture", elem_classes="step")
                    fields = order_fields(names, self.models.load(names[0]))
                with gr.Column(scale=3, min_width=320, elem_classes="results"):
                    shown = results()
            with gr.Tab("Batch"):
                batch = batch_panel(names)
            with gr.Tab("About"):
                gr.Markdown(ABOUT)
            gr.Markdown(CONSENT, elem_classes="hint")
            for number, person in enumerate(people):
                self._wire_person(number, person, fields)
            self._wire_drawing(people, fields, shown)
            self._wire_batch(batch)
            gr.api(self.actions.api_draw, api_name="draw", concurrency_id="draw", concurrency_limit=1)
            page.unload(self.actions.leave)
        page.queue(max_size=64)
        return page

    def _wire_person(self, number: int, person: PersonPanel, fields: Fields) -> None:
        do = PersonActions(self.models, self.actions.detector, self.actions.sessions, number)
        shown = [*person.found, person.messages]
        person.photos.upload(do.add, person.photos, [person.photos, *shown], **PRIVATE)
        person.chosen.input(do.choose, person.chosen, person.found, show_progress="hidden", **PRIVATE)
        person.clear.click(do.clear, None, shown, **PRIVATE)
        person.load.upload(do.load, [person.load, fields.model, person.name], [*shown, person.name], **PRIVATE)
        person.keep.click(do.keep, [fields.model, person.name], [person.kept, person.messages], **PRIVATE)

    def _wire_drawing(self, people: list[PersonPanel], fields: Fields, shown: Results) -> None:
        do = self.actions
        wanted = [*fields, *(field for person in people for field in (person.name, person.word, person.place))]
        changed = [shown.progress, shown.messages, shown.pictures, shown.go, shown.stop]
        gr.on([shown.go.click, fields.prompt.submit], do.draw, wanted, changed, api_name="press_draw", **DRAWING)
        shown.stop.click(do.stop, queue=False, **PRIVATE)
        described = [shown.panel, shown.details, shown.settings, shown.download]
        shown.pictures.select(do.select, None, described, **PRIVATE)
        shown.again.click(do.again, None, [fields.seed, fields.number], **PRIVATE)
        fields.model.change(do.sizes, fields.model, [fields.size, fields.strength], **PRIVATE)
        fields.picture.upload(do.fit, [fields.picture, fields.model], fields.size, show_progress="hidden", **PRIVATE)

    def _wire_batch(self, batch: BatchPanel) -> None:
        given = [batch.files, batch.model, batch.preset, batch.number]
        changed = [
            batch.table, batch.messages, batch.results, batch.archive, batch.run, batch.stop, batch.files,
        ]  # fmt: skip
        batch.run.click(self.actions.batch, given, changed, **DRAWING)
        batch.stop.click(self.actions.stop, queue=False, **PRIVATE)

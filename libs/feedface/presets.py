"""Presets: how much work a picture takes. They fix what costs time and leave guidance, face and size to the model.

"quality" approximates nothing; "balanced" is the default of models that name none of their own; "fast" draws with the
model's few-step adapter (`checkpoints/few_step.py`) where it has one, else with the few evaluations that stand here.
"""

from feedface.settings import EVERYWHERE, Settings

# Every step evaluates all of the model, with guidance and face: what the other knobs are measured against.
PLAIN = Settings(
    scheduler="dpmsolver++", guidance_interval=EVERYWHERE, face_interval=EVERYWHERE, reuse=1, few_step=False
)

# Chosen by docs/performance.md: up to ten evaluations, times that are uniform come nearest to the exact solution, and
# leaving guidance out at the last, nearly clean time costs least of all that it may be left out at.
PRESETS = {
    "quality": Settings(steps=20, scheduler="unipc:karras").over(PLAIN),
    "balanced": Settings(steps=8, scheduler="dpmsolver++:uniform", guidance_interval=(150, 1000)).over(PLAIN),
    "fast": Settings(steps=5, scheduler="dpmsolver++:uniform", few_step=True).over(PLAIN),
}

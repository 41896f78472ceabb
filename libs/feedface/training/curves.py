"""The curves of a training run as one picture, from its TensorBoard logs.

python -m feedface.training.curves WORKDIR --out curves.png
"""

from pathlib import Path

import numpy as np

from feedface.common.command_line import Parser
from feedface.common.errors import UserError, run_cli
from feedface.common.files import atomic_file

# Panel title -> what is drawn in it: name in the logs, label.
PANELS = {
    "loss per sample": (("loss", "whole"), ("loss_face", "on the face"), ("loss_background", "off the face")),
    "gradient norm, before clipping": (("grad_norm", "gradient norm"),),
    "learning rate": (("lr", "learning rate"),),
    "samples a second": (("samples_per_s", "samples/s"),),
}
SMOOTHED_OVER = 0.04  # share of the run that a smoothed point is the mean of


def read_curves(workdir: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name such as "loss" -> steps and values; of a step that was logged twice (a resumed run), the later value.

    `UserError` when there is nothing: no run, or one without TensorBoard among its `log.trackers`.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, dict[int, float]] = {}
    for folder in sorted({path.parent for path in (workdir / "logs").rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            if tag.startswith("train/"):
                points = found.setdefault(tag.removeprefix("train/"), {})
                points |= {event.step: event.value for event in events.Scalars(tag)}
    if not found:
        raise UserError(f"{workdir}/logs: no TensorBoard logs of a run; is 'tensorboard' in its log.trackers?")
    return {
        name: (np.array(sorted(points)), np.array([points[step] for step in sorted(points)]))
        for name, points in found.items()
    }


def draw_curves(curves: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Write the picture; what is noisy is drawn faintly, its running mean in full."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    for axis, (title, lines) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for name, label in lines:
            if name not in curves:
                continue
            steps, values = curves[name]
            width = max(1, round(SMOOTHED_OVER * len(values)))
            (line,) = axis.plot(steps, values, alpha=0.25 if width > 1 else 1, label=None if width > 1 else label)
            if width > 1:
                middle = slice((width - 1) // 2, (width - 1) // 2 + len(values) - width + 1)
                smooth = np.convolve(values, np.full(width, 1 / width), "valid")
                axis.plot(steps[middle], smooth, color=line.get_color(), label=label)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=90, metadata={"Software": None})


def main() -> None:
    parser = Parser(prog="python -m feedface.training.curves", description=__doc__)
    parser.add_argument("workdir", type=Path, help="folder of a training run")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), help="picture to write (default curves.png)")
    arguments = parser.parse_args()
    draw_curves(read_curves(arguments.workdir), arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    run_cli(main)

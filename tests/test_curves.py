"""Curves of a run, read from its logs; of a part that was trained twice, the later one."""

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from feedface.common.errors import UserError
from feedface.training.curves import draw_curves, read_curves


def write(folder, steps, value, **options):
    with SummaryWriter(str(folder), **options) as writer:
        for step in steps:
            writer.add_scalar("train/loss", value + step, step)
            writer.add_scalar("train/lr", 1e-4, step)


def test_a_resumed_run_is_one_curve(tmp_path):
    write(tmp_path / "logs" / "feedface", range(1, 31), 0.0, filename_suffix=".1")
    write(tmp_path / "logs" / "feedface", range(21, 41), 100.0, filename_suffix=".2", purge_step=21)
    steps, values = read_curves(tmp_path)["loss"]
    assert steps.tolist() == list(range(1, 41))
    assert np.allclose(values, [*range(1, 21), *range(121, 141)])
    draw_curves(read_curves(tmp_path), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 800 and len(set(np.asarray(image.convert("L")).ravel().tolist())) > 20


def test_nothing_logged(tmp_path):
    with pytest.raises(UserError, match=r"logs: no TensorBoard logs"):
        read_curves(tmp_path)

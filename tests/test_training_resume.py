"""Going on with a changed config: what changes takes effect, what cannot change is refused in words."""

import pytest
import torch
from tests.test_training import fresh_accelerate, make_config, weights, world  # noqa: F401

from feedface.common.errors import UserError
from feedface.training.sharding import full_optimizer_state, load_optimizer_state
from feedface.training.trainer import Trainer, train

START = {"train.steps": 3, "train.warmup_steps": 0, "train.schedule": "constant", "train.ema": 0.0}


@pytest.mark.parametrize("change", [{"train.weight_decay": 30.0}, {"train.betas": (0.5, 0.5)}])
def test_changed_settings_of_the_optimizer_take_effect(world, tmp_path, change, capsys):  # noqa: F811
    """The same as a run whose optimizer got the new settings at that step, its moments as they were."""
    assert train(make_config(world, **START), tmp_path / "run") == 0
    assert train(make_config(world, **START, **{"checkpoint.every": 3}), tmp_path / "want") == 0
    further = START | {"train.steps": 5}
    assert train(make_config(world, **further, **change), tmp_path / "run") == 0
    (key,) = change
    out = capsys.readouterr().out
    assert "changed since: " in out and f"{key} " in out

    original = Trainer._resume

    def resumed(self, checkpoint):
        original(self, checkpoint)
        for group in self.engine.optimizer.param_groups:
            group[key.removeprefix("train.")] = change[key]

    Trainer._resume = resumed
    try:
        assert train(make_config(world, **further), tmp_path / "want") == 0
    finally:
        Trainer._resume = original
    got, want = weights(tmp_path / "run")[0], weights(tmp_path / "want")[0]
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert train(make_config(world, **further), tmp_path / "unchanged") == 0
    unchanged = weights(tmp_path / "unchanged")[0]
    assert not all(torch.equal(got[name], unchanged[name]) for name in got)


def test_an_optimizer_keeps_its_own_settings():
    parameter = torch.nn.Parameter(torch.ones(3))
    old = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.3, betas=(0.1, 0.2))
    parameter.sum().backward()
    old.step()
    new = torch.optim.AdamW([parameter], lr=0.2, weight_decay=0.0, betas=(0.5, 0.6))
    load_optimizer_state(new, full_optimizer_state(old))
    assert torch.equal(new.state[parameter]["exp_avg"], old.state[parameter]["exp_avg"])
    [group] = new.param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.2, 0.0, (0.5, 0.6))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"control.num_heads": 8}, r"its feedface has num_heads 4, now it is 8"),
        ({"control.control_input": "input"}, r"has control_input output, now it is input"),
        ({"control.sites": ("out_blocks.0", "in_blocks.0")}, r"has sites \['in_blocks\.0', 'out_blocks\.0'\], now"),
        ({"control.mlp_ratio": 0.5}, r"has mlp_ratio 0\.25, now it is 0\.5"),
        ({"train.ema": 0.9}, r"config\.train\.ema was switched on or off"),
        ({"train.optimizer": "adamw8bit"}, r"its config\.train\.optimizer is adamw, now it is adamw8bit"),
    ],
)
def test_what_cannot_change_is_refused(world, tmp_path, monkeypatch, change, words):  # noqa: F811
    from feedface.training import check, trainer

    original = trainer.make_optimizer  # bitsandbytes is not there
    monkeypatch.setattr(trainer, "make_optimizer", lambda _, parameters: original(make_config(world), parameters))
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: object())
    assert train(make_config(world, **START), tmp_path) == 0
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    with pytest.raises(UserError, match=rf"00000003: belongs to another model \(.*{words}.*--workdir"):
        train(make_config(world, **START | {"train.steps": 5} | change), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == before

"""The training loop of the face-controlnet.

A run is a function of its config: step n takes samples n·G … (n+1)·G - 1 of a numbered sequence (G: batch size times
accumulation times processes), and everything random about a sample comes from (seed, sample number).
"""

import json
import math
import os
from contextlib import nullcontext
from pathlib import Path

import ml_collections
import torch
from torch.utils.data import DataLoader

from feedface.data.dataset import Batch, PictureDataset, SampleOrder, check_broken
from feedface.data.features import Features
from feedface.errors import UserError
from feedface.files import atomic_file
from feedface.training.ema import Ema
from feedface.training.interrupt import Interrupt, leave_to_parent
from feedface.training.objective import Objective
from feedface.training.run_record import changes, check_disk, checkpoint_bytes, flat, record_run
from feedface.training.setup import build_dataset, build_models, check_config, make_accelerator
from feedface.training.state import (
    Progress,
    load_checkpoint,
    locked,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from feedface.training.tracking import NotFinite, Tracker


def train(config: ml_collections.ConfigDict, workdir: Path) -> int:
    """Train to `config.train.steps`, going on from the newest whole checkpoint in `workdir`.

    Returns the exit code: 0 when done, 128 + signal number (SIGTERM 143, Ctrl-C 130) when stopped and saved. Raises
    `UserError` for what the user can put right, also when loss or gradients are no longer finite.
    """
    check_config(config)
    with locked(workdir) if int(os.environ.get("RANK", 0)) == 0 else nullcontext():
        return Trainer(config, workdir).run()


def learning_rate(step: int, config: ml_collections.ConfigDict) -> float:
    """Of step number `step`, counted from 0: linear warm-up, then constant, or cosine down to 0 at the last step."""
    train = config.train
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    if train.schedule == "constant":
        return train.lr
    done = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    return train.lr * 0.5 * (1 + math.cos(math.pi * min(1, done)))


class Trainer:
    """Everything a run holds. `run` does it."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path):
        self.config, self.workdir = config, workdir
        self.accelerator = make_accelerator(config, workdir)
        device = self.accelerator.device
        models = build_models(config, device, self.accelerator.mixed_precision)
        self.base, self.net, self.bare = models.base, models.trained.face_controlnet, models.trained
        self.trained = list(self.net.trainable_parameters())
        check_disk(workdir, checkpoint_bytes(sum(p.numel() for p in self.trained), config.train.ema > 0))

        self.dataset = build_dataset(config, models, self.accelerator)
        self.encoders = models.encoders if isinstance(self.dataset, PictureDataset) else None
        zero = torch.zeros(1, 3, self.net.face_size, self.net.face_size)
        dropped = models.encoders.faces(zero)[0]
        if config.loss.face_dropout_kind == "zero_feature":
            dropped = torch.zeros_like(dropped)
        self.objective = Objective(config.loss.kind, dropped, models.encoders.text([""]), config.loss.min_snr)

        optimizer = torch.optim.AdamW(
            self.trained,
            lr=config.train.lr,
            betas=tuple(config.train.betas),
            weight_decay=config.train.weight_decay,
            fused=True,
        )
        self.model, self.optimizer = self.accelerator.prepare(models.trained, optimizer)
        self.ema = Ema(self.trained, config.train.ema) if config.train.ema else None
        self.progress = Progress()
        self.broken: dict[str, str] = {}
        self._resume()

    @property
    def _step_size(self) -> int:
        train = self.config.train
        return train.batch_size * train.accumulation * self.accelerator.num_processes

    def run(self) -> int:
        """Train; returns the exit code, see `train`."""
        config, steps = self.config, self.config.train.steps
        if self.progress.step >= steps:
            self._say(f"{self.workdir}: all {steps} steps are done already")
            return 0
        if self.accelerator.is_main_process:
            record_run(self.workdir, self.config, self.accelerator)
        self.accelerator.init_trackers(
            "feedface",
            config=flat(config.to_dict()),
            # What an interrupted run logged after its last checkpoint is logged again.
            init_kwargs={"tensorboard": {"purge_step": self.progress.step + 1}},
        )
        tracker = Tracker(self.accelerator, steps, self.progress.step)
        batches = iter(self._loader())
        try:
            with Interrupt() as interrupt:
                while self.progress.step < steps:
                    self._step(batches, tracker)
                    step = self.progress.step
                    stop = self._agree(interrupt.signal)
                    save = stop or step == steps or step % config.checkpoint.every == 0
                    if save or step % config.log.every == 0:
                        # Also before saving: a checkpoint with NaN in it must never replace a good one.
                        tracker.report(step, learning_rate(step - 1, config))
                    if save:
                        self._save()
                    if stop:
                        self._say(f"stopped at step {step} and saved; the same command goes on from here")
                        return 128 + stop
        except NotFinite:
            last = newest_checkpoint(self.workdir)
            good = f"the last good checkpoint is {last}" if last else "no checkpoint was saved before"
            raise UserError(
                f"loss or gradients are not finite at step {self.progress.step}; {good}. "
                f"Lower config.train.lr, or use bf16 or fp32, and run again"
            ) from None
        finally:
            tracker.close()
            if self.broken:
                self._say(f"{len(self.broken)} broken files were passed over, listed in {self.workdir}/broken.json")
        return 0

    def _loader(self) -> DataLoader:
        config = self.config
        order = SampleOrder(
            seed=config.seed,
            first_sample=self.progress.samples,
            steps=config.train.steps - self.progress.step,
            batch_size=config.train.batch_size,
            accumulation=config.train.accumulation,
            processes=self.accelerator.num_processes,
            rank=self.accelerator.process_index,
            max_faces=config.data.max_faces,
        )
        # Cached features are gathered faster than a worker process could send them.
        workers = config.data.workers if isinstance(self.dataset, PictureDataset) else 0
        return DataLoader(
            self.dataset,
            batch_sampler=order,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=leave_to_parent if workers else None,
        )

    def _step(self, batches, tracker: Tracker) -> None:
        config, parts = self.config, []
        rate = learning_rate(self.progress.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for micro in range(config.train.accumulation):
            batch = next(batches)
            self._note_broken(batch)
            features = batch.content if isinstance(batch.content, Features) else self.encoders(batch.content)
            last = micro == config.train.accumulation - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                part = self.objective(self.model, self.bare, batch.draws, features)
                self.accelerator.backward(part.loss / config.train.accumulation)
            parts.append(part)
        norm = self.accelerator.clip_grad_norm_(self.trained, config.train.grad_clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        self.progress.samples += self._step_size
        if self.ema:
            self.ema.update(self.progress.step)
        tracker.step(parts, norm, self._step_size)

    def _note_broken(self, batch: Batch) -> None:
        new = batch.broken.keys() - self.broken.keys()
        if not new:
            return
        self.broken.update(batch.broken)
        with atomic_file(self.workdir / "broken.json") as path:
            path.write_text(json.dumps(self.broken, indent=1, ensure_ascii=False) + "\n")
        check_broken(self.broken, self.config.data.max_broken)

    def _agree(self, signal: int) -> int:
        """The signal that any process got: all must stop at the same step."""
        if self.accelerator.num_processes == 1:
            return signal
        signals = self.accelerator.gather(torch.tensor([signal], device=self.accelerator.device))
        return int(signals.max())

    # ------------------------------------------------------------------------------------------------ checkpoints

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                # Copies, since the averages take the weights' place while the bundle is written.
                "weights": {name: value.cpu().clone() for name, value in self.net.trainable_state_dict().items()},
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
                "ema": self.ema.averages if self.ema else None,
            }
            config = json.loads(self.config.to_json())
            with self.ema.applied() if self.ema else nullcontext():
                save_checkpoint(self.workdir, self.progress, self.base, self.net, state, config)
            prune_checkpoints(self.workdir, self.config.checkpoint.keep, self.config.checkpoint.keep_every)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        folder = newest_checkpoint(self.workdir)
        if folder is None:
            return
        self.progress, state, before = load_checkpoint(folder)
        own = self.net.trainable_state_dict()
        unlike = [n for n in own.keys() | state["weights"].keys() if _shape(own, n) != _shape(state["weights"], n)]
        if unlike or bool(state["ema"]) != bool(self.ema):
            what = f"its {sorted(unlike)[0]} differs" if unlike else "config.train.ema was switched on or off"
            raise UserError(f"{folder}: belongs to another model ({what}); use another --workdir")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load(state["ema"])
        changed = changes(flat(before), flat(json.loads(self.config.to_json())))
        self._say(f"going on from {folder}" + (f"; changed since: {', '.join(changed)}" if changed else ""))

    def _say(self, line: str) -> None:
        if self.accelerator.is_main_process:
            print(line, flush=True)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _shape(state: dict[str, torch.Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None

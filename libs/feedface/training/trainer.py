"""The training loop of a method beside a frozen backbone.

A run is a function of its config: step n takes samples n·G … (n+1)·G - 1 of a numbered sequence (G: batch size times
accumulation times processes), and everything random about a sample comes from (seed, sample number).
"""

import json
import math
import os
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import ml_collections
import torch
from accelerate.utils import DistributedType
from torch.utils.data import DataLoader

from feedface.common.errors import UserError
from feedface.common.interrupt import Interrupt, leave_to_parent
from feedface.common.progress import say
from feedface.data.dataset import Batch, PictureDataset, SampleOrder
from feedface.diffusion.batch import Encoded
from feedface.inference.acceleration import compile_blocks
from feedface.training.background import Background
from feedface.training.broken import BrokenFiles
from feedface.training.check import check_config
from feedface.training.data import build_data, build_store, cache_folder
from feedface.training.ema import Ema
from feedface.training.engine import Engine
from feedface.training.frozen_predictions import FrozenPredictions
from feedface.training.memory import check_batch, out_of_memory_in_words
from feedface.training.resume import check_belongs, check_state
from feedface.training.run_record import changes, check_disk, checkpoint_bytes, flat, record_run
from feedface.training.samples import SampleGrid
from feedface.training.setup import build_models, make_accelerator, make_optimizer, precision_of
from feedface.training.sharding import assign
from feedface.training.snapshot import Snapshot, take_snapshot
from feedface.training.state import (
    Checkpoint,
    Progress,
    check_model,
    load_newest,
    locked,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from feedface.training.tracking import BadLoss, Diverged, Tracker, init_trackers

AGREE_EVERY = 10  # steps: a signal is answered within seconds, also where a step takes one


def train(config: ml_collections.ConfigDict, workdir: Path) -> int:
    """Train to `config.train.steps`, going on from the newest whole checkpoint in `workdir`.

    Returns the exit code: 0 when done, 128 + signal number (SIGTERM 143, Ctrl-C 130) when stopped and saved. Raises
    `UserError` for what the user can put right, also when loss or gradients are no longer finite.
    """
    check_config(config)
    with _only_run(workdir):
        return Trainer(config, workdir).run()


def fill_cache(config: ml_collections.ConfigDict, workdir: Path) -> int:
    """Encode all pictures, captions and faces that the cache of `config` does not hold yet, without training."""
    check_config(config)
    if not config.cache.enabled and not config.cache.dir:
        raise UserError("--cache_only: the config has no cache; name a folder as --config.cache.dir=DIR")
    with _only_run(workdir):
        accelerator = make_accelerator(config, workdir)
        models = build_models(config, accelerator.device, precision_of(config, accelerator))
        data = build_data(config, models, accelerator, workdir)
        accelerator.print(f"{len(data.dataset.refs)} records are in {cache_folder(config, workdir)}")
        accelerator.end_training()
    return 0


def _only_run(workdir: Path):
    return locked(workdir) if int(os.environ.get("RANK", 0)) == 0 else nullcontext()


def learning_rate(step: int, config: ml_collections.ConfigDict) -> float:
    """Of step number `step`, counted from 0: linear warm-up, then constant, or cosine down to 0 at the last step.

    "linear" falls to an eleventh: AdaFace's, which would reach 0 after a tenth more of steps.
    """
    train = config.train
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    if train.schedule == "constant":
        return train.lr
    done = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    if train.schedule == "linear":
        return train.lr * (1 - min(1, done) / 1.1)
    return train.lr * 0.5 * (1 + math.cos(math.pi * min(1, done)))


class Trainer:
    """Everything a run holds. `run` does it."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path):
        self.config, self.workdir = config, workdir
        self.accelerator = make_accelerator(config, workdir)
        device = self.accelerator.device
        self.models = build_models(config, device, precision_of(config, self.accelerator))
        for notice in self.models.notices:
            self._say(notice)
        self.trained = self.models.trained
        check_batch(config, self.models, device)
        count = sum(p.numel() for p in self.trained.trained().values())
        check_disk(workdir, checkpoint_bytes(count, config.train.ema > 0))

        data = build_data(config, self.models, self.accelerator, workdir)
        self.dataset, self.encoders, self.labels = data.dataset, data.encoders, data.labels
        self.objective = self.trained.method.objective(config, data.zero_reference, data.empty_text)
        self.frozen = None
        if self.dataset.settings.draws_per_picture:
            folder, count = cache_folder(config, workdir), len(self.dataset.refs)
            self.frozen = FrozenPredictions(folder, self.dataset.settings, count, self.trained, data.empty_text)
        self.grid = None
        sharded = self.accelerator.distributed_type == DistributedType.FSDP  # no process has the whole weights then
        if config.log.samples_every and self.accelerator.is_main_process and not sharded:
            self.grid = SampleGrid(config, self.models, build_store(config, self.models).records, workdir, device)

        if config.train.compile:
            compile_blocks(self.trained)
        optimizer = make_optimizer(config, list(self.trained.trained().values()))
        self.engine = Engine(self.accelerator, self.trained, optimizer, config)
        self.ema = Ema(self.engine.parameters, config.train.ema) if config.train.ema else None
        self.progress = Progress()
        self.broken = BrokenFiles(self.accelerator, workdir, config.data.max_broken)
        self.broken.note(data.broken)
        self.broken.share()
        self.damaged: set[Path] = set()
        self.opened = False  # whether a checkpoint of this process was opened as a model
        self.writer = Background(config.checkpoint.get("in_background", False))  # old configs do not say it
        checkpoint = load_newest(workdir, self._say, check_state)
        if checkpoint is not None:
            self._resume(checkpoint)

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
            record_run(self.workdir, config, self.accelerator, precision_of(config, self.accelerator))
        init_trackers(self.accelerator, flat(config.to_dict()), self.workdir, self.progress.step + 1)
        left = (steps - self.progress.step) * self._step_size
        tracker = Tracker(
            self.accelerator, self.progress.samples + left, self.progress.samples, config.train.max_loss_ratio
        )
        batches = iter(self._loader())
        try:
            with Interrupt() as interrupt:
                while self.progress.step < steps:
                    with out_of_memory_in_words(config, self.accelerator.device):
                        self._step(batches, tracker)
                    self.writer.check()
                    step = self.progress.step
                    due = step == steps or step % config.checkpoint.every == 0
                    stop = 0
                    if due or self._is_agreed_at(step):
                        stop = self._agree(interrupt.signal)
                        self.broken.share()
                    save = stop or due
                    diverged = None
                    if save or step % config.log.every == 0:
                        # Also before saving: a checkpoint with NaN in it must never replace a good one.
                        try:
                            tracker.report(step, learning_rate(step - 1, config))
                        except Diverged as error:
                            if not stop:
                                raise
                            diverged = error  # told to stop: saved first, since the alarm may be a false one
                    if save:
                        self._save()
                    if diverged:
                        raise diverged
                    if stop:
                        self.writer.wait()
                        self._say(f"stopped at step {step} and saved; the same command goes on from here")
                        return 128 + stop
                    self._draw_samples(tracker)
            self.writer.wait()
            self.accelerator.wait_for_everyone()
        except BadLoss as error:
            self.writer.wait()
            last = newest_checkpoint(self.workdir, before=self.progress.step)
            good = f"the last good checkpoint is {last}" if last else "no checkpoint was saved before"
            raise UserError(
                f"{error} at step {self.progress.step}; {good}. "
                f"Lower config.train.lr, or use bf16 or fp32, and run again"
            ) from None
        finally:
            try:
                self.writer.wait()
            finally:
                self.engine.close()
                tracker.close()
                if self.broken.files:
                    self._say(f"{len(self.broken.files)} broken files were passed over, listed in {self.broken.path}")
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
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=leave_to_parent if workers else None,
        )

    def _step(self, batches, tracker: Tracker) -> None:
        config, parts = self.config, []
        rate = learning_rate(self.progress.step, config)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        for micro in range(config.train.accumulation):
            batch = next(batches)
            self.broken.note(batch.broken)
            encoded = batch.content if isinstance(batch.content, Encoded) else self.encoders(batch.content)
            if self.labels is not None:
                encoded.labels, encoded.captions = self.labels(batch.draws), self.labels.captions(batch.draws)
            if self.frozen is not None:
                encoded.frozen = self.frozen(batch.draws, encoded)
            last = micro == config.train.accumulation - 1
            with self.engine.accumulating(last):
                part = self.objective(self.engine.model, batch.draws, encoded)
                self.engine.backward(part.loss, last)
            parts.append(part)
        norm = self.engine.step()
        self.progress.step += 1
        self.progress.samples += self._step_size
        if self.ema:
            self.ema.update(self.progress.step)
        tracker.step(parts, norm, self._step_size)

    def _is_agreed_at(self, step: int) -> bool:
        """Processes that ask each other wait for the device, so several do it every few steps only."""
        return self.accelerator.num_processes == 1 or step % AGREE_EVERY == 0 or step % self.config.log.every == 0

    def _agree(self, signal: int) -> int:
        """The signal that any process got: all must stop at the same step."""
        if self.accelerator.num_processes == 1:
            return signal
        signals = self.accelerator.gather(torch.tensor([signal], device=self.accelerator.device))
        return int(signals.max())

    def _draw_samples(self, tracker: Tracker) -> None:
        """Pictures of fixed people and prompts, each time another `log.samples_every` samples were seen.

        By the main process, from the whole weights: where they are sharded, there are none.
        """
        every, seen = self.config.log.samples_every, self.progress.samples
        if not every or seen // every == (seen - self._step_size) // every:
            return
        if self.grid is not None:
            with self.ema.applied() if self.ema else nullcontext():
                tracker.image(self.grid.draw(seen), self.progress.step)
        self.accelerator.wait_for_everyone()

    # ------------------------------------------------------------------------------------------------ checkpoints

    def _save(self) -> None:
        # Not only in `do`: so main memory holds one copy at a time.
        self.writer.wait()
        taken = take_snapshot(
            self.accelerator, self.trained, self.engine, self.ema, self.models.sources.face_encoder, self.config
        )
        if taken is not None:
            self.writer.do(partial(self._write, taken, replace(self.progress)))
        if not self.config.checkpoint.get("in_background"):
            self.accelerator.wait_for_everyone()

    def _write(self, taken: Snapshot, progress: Progress) -> None:
        config = json.loads(self.config.to_json())
        folder = save_checkpoint(self.workdir, progress, self.models.base, **vars(taken), config=config)
        self.damaged.discard(folder)
        keep = self.config.checkpoint
        prune_checkpoints(self.workdir, keep.keep, keep.keep_every, folder, self.damaged)
        if not self.opened:
            check_model(folder)
            self.opened = True

    def _resume(self, checkpoint: Checkpoint) -> None:
        check_belongs(checkpoint, self.config, self.trained)
        state = checkpoint.state
        self.progress, self.damaged = checkpoint.progress, set(checkpoint.damaged)
        if self.config.data.get("buckets") and self.progress.samples % self._step_size:
            raise UserError(
                f"{checkpoint.folder}: has seen {self.progress.samples} samples, which are no whole number of steps of "
                f"{self._step_size}; with config.data.buckets a step's pictures have one size, so use a batch that is"
            )
        for name, value in self.trained.trained().items():
            assign(value, state["weights"][name])
        self.engine.load_optimizer_state(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.ema:
            for own_average, value in zip(self.ema.averages, state["ema"], strict=True):
                assign(own_average, value)
        changed = changes(flat(checkpoint.config), flat(json.loads(self.config.to_json())))
        self._say(f"going on from {checkpoint.folder}" + (f"; changed since: {', '.join(changed)}" if changed else ""))

    def _say(self, line: str) -> None:
        if self.accelerator.is_main_process:
            say(line)


def _as_it_is(batch: Batch) -> Batch:
    return batch

"""The pictures of one process: read ahead and written behind by worker threads, the models in between."""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from threading import Lock

from PIL import Image

from feedface.common.interrupt import Interrupt
from feedface.common.progress import progress
from feedface.common.saving import save_png
from feedface.faces.detect import FaceDetector
from feedface.faces.parse import FaceParser, mask_values
from feedface.preparation.captions import Captioner
from feedface.preparation.options import Options
from feedface.preparation.outcome import FILTERED, SINGLE, Outcome, stems, write_row
from feedface.preparation.process import Loaded, caption_all, detect, judge, load


class Clock:
    """Seconds by stage, summed over all threads of this process."""

    def __init__(self):
        self.seconds: Counter = Counter()
        self._lock = Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - begin


@dataclass
class Maker:
    """From picture files to outcomes and their files, see `process` and `outcome`."""

    options: Options
    detector: FaceDetector
    parser: FaceParser
    captioner: Captioner
    clock: Clock

    def load(self, rel: str) -> Loaded:
        with self.clock("read"):
            return load(self.options.data, rel)

    def make(self, batch: Sequence[Loaded]) -> list[Outcome]:
        """The models' part. Only pictures that are kept get captions."""
        rules, threshold = self.options.rules, self.options.det_threshold
        with self.clock("detect"):
            faces = [[] if one.image is None else detect(one.image, self.detector, threshold) for one in batch]
        with self.clock("parse"):
            rows = [row for row, found in enumerate(faces) if found]
            maps = self.parser.parse_many([(batch[row].image, faces[row]) for row in rows]) if rows else []
            classes = dict(zip(rows, maps, strict=True))
        with self.clock("judge"):
            outcomes = [judge(one, faces[row], classes.get(row, []), rules) for row, one in enumerate(batch)]
        kept = [(one, outcome) for one, outcome in zip(batch, outcomes, strict=True) if outcome.kind == SINGLE]
        if kept:
            with self.clock("caption"):
                captions = caption_all(self.captioner, [(one.rel, one.path, one.image) for one, _ in kept])
            for (_, outcome), (caption, reason) in zip(kept, captions, strict=True):
                outcome.caption, outcome.caption_by = caption, self.options.caption_source
                if reason:
                    outcome.kind, outcome.reason = FILTERED, reason
        return outcomes

    def write(self, outcome: Outcome) -> None:
        """Masks first; the JSON file that makes the picture done comes last."""
        with self.clock("write"):
            paths = [self.options.out / stem for stem in stems(outcome.rel, outcome.kind, len(outcome.faces))]
            for path, mask in zip(paths, outcome.masks, strict=False):  # errors have no masks
                save_png(Image.fromarray(mask_values(mask)), path.with_name(f"{path.name}.png"))
            for path, row in reversed(list(zip(paths, outcome.rows(), strict=True))):
                write_row(path.with_name(f"{path.name}.json"), row)


def make_all(maker: Maker, rels: Sequence[str], show: bool) -> int:
    """Make these pictures; returns 0, or the signal that asked to stop. What the models have seen is written."""
    workers, batch_size = maker.options.workers, maker.options.batch_size
    rest, ahead = iter(rels), batch_size + 2 * workers
    reading: deque[Future[Loaded]] = deque()
    writing: deque[Future[None]] = deque()
    with (
        Interrupt() as interrupt,
        thread_pool(workers) as pool,
        progress(total=len(rels), unit="picture", disable=not show) as bar,
    ):
        try:
            while not interrupt.signal:
                # So many are kept ready that the workers have something to read while the models run.
                reading.extend(pool.submit(maker.load, rel) for rel in islice(rest, ahead - len(reading)))
                if not reading:
                    break
                with maker.clock("wait"):
                    batch = [reading.popleft().result() for _ in range(min(batch_size, len(reading)))]
                if workers:
                    reading.extend(pool.submit(maker.load, rel) for rel in islice(rest, ahead - len(reading)))
                writing.extend(pool.submit(maker.write, outcome) for outcome in maker.make(batch))
                with maker.clock("wait"):
                    while len(writing) > 2 * ahead:
                        writing.popleft().result()
                bar.update(len(batch))
        finally:
            for future in reading:
                future.cancel()
        with maker.clock("wait"):
            while writing:
                writing.popleft().result()
    return interrupt.signal


@contextmanager
def thread_pool(workers: int) -> Iterator[Executor]:
    """`workers` threads, or none: then work is done when it is submitted."""
    with ThreadPoolExecutor(workers) if workers else _Inline() as pool:
        yield pool


class _Inline(Executor):
    def submit(self, work, /, *args, **options) -> Future:
        future: Future = Future()
        try:
            future.set_result(work(*args, **options))
        except Exception as error:
            future.set_exception(error)
        return future

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
from feedface.faces.parse import mask_values
from feedface.faces.types import FaceDetector, FaceParser
from feedface.preparation.captions import Captioner, caption_or_reason
from feedface.preparation.options import Options
from feedface.preparation.process import Loaded, detect, judge, load
from feedface.preparation.result import FILTERED, SINGLE, Result, stems, write_row


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
class Preparer:
    """From picture files to results and their files, see `process` and `result`."""

    options: Options
    detector: FaceDetector
    parser: FaceParser
    captioner: Captioner
    clock: Clock

    def load(self, rel: str) -> Loaded:
        with self.clock("read"):
            return load(self.options.data, rel)

    def make(self, batch: Sequence[Loaded]) -> list[Result]:
        """The models' part. Only pictures that are kept get captions."""
        options, clock = self.options, self.clock
        with clock("detect"):
            faces = [
                [] if one.image is None else detect(one.image, self.detector, options.det_threshold) for one in batch
            ]
        with clock("parse"):
            rows = [row for row, found in enumerate(faces) if found]
            maps = self.parser.parse_many([(batch[row].image, faces[row]) for row in rows]) if rows else []
            classes = dict(zip(rows, maps, strict=True))
        with clock("judge"):
            results = [judge(one, faces[row], classes.get(row, []), options.rules) for row, one in enumerate(batch)]
        kept = [(one, result) for one, result in zip(batch, results, strict=True) if result.kind == SINGLE]
        if kept:
            with clock("caption"):
                answers = self.captioner.caption_many([(one.rel, one.path, one.image) for one, _ in kept])
            for (_, result), answer in zip(kept, answers, strict=True):
                result.caption, reason = caption_or_reason(answer)
                result.caption_by = options.caption_source
                if reason:
                    result.kind, result.reason = FILTERED, reason
        return results

    def write(self, result: Result) -> None:
        """Masks first; the JSON file that makes the picture done comes last."""
        with self.clock("write"):
            paths = [self.options.out / stem for stem in stems(result.rel, result.kind, len(result.faces))]
            for path, mask in zip(paths, result.masks, strict=False):  # errors have no masks
                save_png(Image.fromarray(mask_values(mask)), path.with_name(f"{path.name}.png"))
            for path, row in reversed(list(zip(paths, result.rows(), strict=True))):
                write_row(path.with_name(f"{path.name}.json"), row)


def make_all(preparer: Preparer, rels: Sequence[str], show: bool) -> int:
    """Make these pictures; returns 0, or the signal that asked to stop. What the models have seen is written."""
    workers, batch_size, clock = preparer.options.workers, preparer.options.batch_size, preparer.clock
    rest, ahead = iter(rels), batch_size + 2 * workers
    reading: deque[Future[Loaded]] = deque()
    writing: deque[Future[None]] = deque()
    with (
        Interrupt() as interrupt,
        thread_pool(workers) as pool,
        progress(total=len(rels), unit="picture", disable=not show) as bar,
    ):

        def read_ahead() -> None:
            reading.extend(pool.submit(preparer.load, rel) for rel in islice(rest, ahead - len(reading)))

        try:
            while not interrupt.signal:
                read_ahead()
                if not reading:
                    break
                with clock("wait"):
                    batch = [reading.popleft().result() for _ in range(min(batch_size, len(reading)))]
                if workers:
                    read_ahead()  # the workers have something to read while the models run
                writing.extend(pool.submit(preparer.write, result) for result in preparer.make(batch))
                with clock("wait"):
                    while len(writing) > 2 * ahead:
                        writing.popleft().result()
                bar.update(len(batch))
        finally:
            for future in reading:
                future.cancel()
        with clock("wait"):
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

"""One run of the command: classify what it names, write the results, and print where the time went."""

import argparse
import asyncio
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from alexnet_triton.client.annotated import AnnotatedFolder, refuse_folder_within
from alexnet_triton.client.arguments import PROGRAM
from alexnet_triton.client.classifier import AsyncClassifier
from alexnet_triton.client.config import Config
from alexnet_triton.client.errors import ServerError, UsageError
from alexnet_triton.client.images import path_of
from alexnet_triton.client.info import read_labels
from alexnet_triton.client.output import Progress, formatter, header
from alexnet_triton.client.protocol import Classification, Failure, Json, Result
from alexnet_triton.client.resume import ResultWriter, RunSettings, keep_settings, open_writer
from alexnet_triton.client.session import Session
from alexnet_triton.client.sources import Image, Sources
from alexnet_triton.common.command import complain, printable

SUFFIX_FORMATS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv"}
PHASES = ("queue", "compute_input", "compute_infer", "compute_output")
Totals = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Job:
    """What to classify, and how the results are written: the command's options, and what follows from them."""

    options: argparse.Namespace
    sources: Sources
    form: str

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> "Job":
        """The job that the command line names.

        Raises:
            UsageError: options that do not go together.
        """
        form = options.format or SUFFIX_FORMATS.get(Path(options.output or "").suffix.lower(), "text")
        if options.resume and (options.output is None or form == "text"):
            raise UsageError("--resume needs --output FILE and --format json or csv: it reads what FILE holds")
        if options.save_annotated and options.recursive:
            refuse_folder_within(options.save_annotated, options.images)
        url_timeout_s = options.timeout if options.allow_urls else None
        return cls(options, Sources(tuple(options.images), options.recursive, url_timeout_s), form)

    @property
    def shows_progress(self) -> bool:
        """Whether a bar is shown: on a terminal, unless results scroll by on it too."""
        shown = not self.options.no_progress and sys.stderr.isatty()
        return shown and (self.options.output is not None or not sys.stdout.isatty())


async def run(job: Job, config: Config) -> int:
    """Classify all images; returns how many failed, with those of the run that this one resumes.

    Raises:
        ServerError: no server answered.
        UsageError: the file of labels cannot be used, or the results or pictures cannot be written or resumed.
    """
    options = job.options
    async with AsyncClassifier.from_config(config) as classifier:
        if options.wait:
            await classifier.wait(options.wait)
        await classifier.session.inference()  # if no server answers, the output stays as it was
        labels = () if options.labels is None else await read_labels(options.labels, classifier.session)
        with open_writer(options.output, job.form, options.resume) as writer:
            if options.output and job.form != "text":
                settings = RunSettings(config.model_name, config.version, config.top, options.threshold, labels)
                keep_settings(options.output, settings, begun=bool(writer.completed.end))
            with _open_annotated(options) as annotated:
                return writer.completed.failed + await _classify(job, classifier, writer, labels, annotated)


def _open_annotated(options: argparse.Namespace) -> "AnnotatedFolder | nullcontext[None]":
    if options.save_annotated is None:
        return nullcontext()
    return AnnotatedFolder(options.save_annotated, options.resume)


async def _classify(
    job: Job,
    classifier: AsyncClassifier,
    writer: ResultWriter,
    labels: tuple[str, ...],
    annotated: AnnotatedFolder | None,
) -> int:
    top = classifier.config.top
    coloured = job.options.output is None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    to_text = formatter(job.form, top, coloured)
    if not writer.completed.has_header:
        writer.write(header(job.form, top))
    timings = Timings(job.options.verbose, classifier.session)
    await timings.start()
    counted = job.shows_progress and job.sources.countable
    total = sum(1 for _ in _left(job.sources, writer)) if counted else None
    images = _left(job.sources, writer)
    with Progress(total, job.shows_progress) as progress:
        try:
            async for answer in classifier.classify_many(annotated.watch(images) if annotated else images):
                result = _adapted(answer, labels, job.options.threshold)
                if annotated:
                    await asyncio.to_thread(annotated.add, result)
                writer.write(to_text(result))
                progress.add(result)
                timings.add(result)
                if isinstance(result, Failure):
                    complain(PROGRAM, printable(f"{result.path or ''}: {result.error}"))
        except ServerError as error:
            if progress.done and job.options.output:
                error.args = (f"{error}; {progress.done:,} results are in {job.options.output}, --resume goes on",)
            raise
    await timings.finish()
    return progress.failed


def _left(sources: Sources, writer: ResultWriter) -> Iterator[Image]:
    """The images that the output does not hold yet."""
    return (image for image in sources if (path_of(image) or "") not in writer.completed)


def _adapted(result: Result, labels: tuple[str, ...], threshold: float) -> Result:
    """The result with the caller's labels, without the improbable classes."""
    if isinstance(result, Failure) or not (labels or threshold):
        return result
    top = [label for label in result.top if label.probability >= threshold]
    if labels:
        top = [replace(label, label=labels[label.index]) for label in top]
    return replace(result, top=tuple(top))


class Timings:
    """Prints a line for each result, and at the end what the server counted meanwhile, over all its clients."""

    def __init__(self, shown: bool, session: Session) -> None:
        self._shown, self._session = shown, session
        self._before: Totals = {}

    async def start(self) -> None:
        """Remember the server's counters."""
        if self._shown:
            self._before = await self._totals()

    def add(self, result: Result) -> None:
        """Print one line."""
        if not self._shown or not isinstance(result, Classification):
            return
        timing = result.timing
        times = f"read {timing.read_ms:.2f} ms, waited {timing.wait_ms:.2f} ms, request {timing.request_ms:.2f} ms"
        request = f"to {timing.host}, attempt {timing.attempts}, {timing.images} images"
        print(f"{printable(result.path or '')}: {times} {request}", file=sys.stderr)

    async def finish(self) -> None:
        """Print the server's averages since the start."""
        if not self._shown:
            return
        for model, after in (await self._totals()).items():
            spent = {name: value - self._before.get(model, {}).get(name, 0.0) for name, value in after.items()}
            if spent["images"]:
                print(_line(model, spent), file=sys.stderr)

    async def _totals(self) -> Totals:
        """Nanoseconds and counts of each model that the server has."""
        answer = await self._session.statistics()
        return {f"{each['name']} {each['version']}": _counters(each) for each in answer}


def _counters(model: Json) -> dict[str, float]:
    phases = model.get("inference_stats", {})
    counters = {name: float(phases.get(name, {}).get("ns", 0)) for name in PHASES}
    counters["images"] = float(model.get("inference_count", 0))
    counters["batches"] = float(model.get("execution_count", 0))
    counters["requests"] = float(phases.get("success", {}).get("count", 0))
    return counters


def _line(model: str, spent: Mapping[str, float]) -> str:
    requests = max(1.0, spent["requests"])
    means = ", ".join(f"{name.replace('_', ' ')} {spent[name] / requests / 1e6:.2f} ms" for name in PHASES)
    return f"server: {model}: {spent['images']:.0f} images in {spent['batches']:.0f} batches; a request: {means}"

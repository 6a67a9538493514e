"""Classify what the command line names and write the results."""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from alexnet_triton.client.arguments import PROGRAM
from alexnet_triton.client.classifier import AsyncClassifier
from alexnet_triton.client.config import Config
from alexnet_triton.client.errors import ServerError, UsageError
from alexnet_triton.client.images import path_of
from alexnet_triton.client.output import Progress, formatter, header, printable
from alexnet_triton.client.protocol import Classification, Failure
from alexnet_triton.client.resume import ResultWriter, RunSettings, keep_settings, open_writer
from alexnet_triton.client.session import Result, Session
from alexnet_triton.client.sources import Image, Sources

# WAS alexnet_triton.client.run: Where the time went: each request's here, and the server's share from its own statistics.


PARTS = ("queue", "compute_input", "compute_infer", "compute_output")
Totals = dict[str, dict[str, float]]


class Timings:
    """Prints a line a request, and at the end what the server counted meanwhile, over all its clients."""

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
        parts = f"read {timing.read_ms:.2f} ms, waited {timing.wait_ms:.2f} ms, request {timing.request_ms:.2f} ms"
        request = f"to {timing.host}, attempt {timing.attempts}, {timing.images} images"
        print(f"{printable(result.path or '')}: {parts} {request}", file=sys.stderr)

    async def finish(self) -> None:
        """Print the server's averages since the start."""
        if not self._shown:
            return
        for model, after in (await self._totals()).items():
            spent = {name: value - self._before.get(model, {}).get(name, 0.0) for name, value in after.items()}
            if spent["images"]:
                print(_line(model, spent), file=sys.stderr)

    async def _totals(self) -> Totals:
        """Nanoseconds and counts of each model the server has."""
        await self._session.inference()
        answer = await self._session.statistics()
        return {f"{each['name']} {each['version']}": _counters(each) for each in answer}


def _counters(model: Mapping[str, object]) -> dict[str, float]:
    stats = model.get("inference_stats")
    parts = stats if isinstance(stats, Mapping) else {}
    counters = {name: float(parts.get(name, {}).get("ns", 0)) for name in PARTS}
    counters["images"] = float(str(model.get("inference_count", 0)))
    counters["batches"] = float(str(model.get("execution_count", 0)))
    counters["requests"] = float(parts.get("success", {}).get("count", 0))
    return counters


def _line(model: str, spent: Mapping[str, float]) -> str:
    requests = max(1.0, spent["requests"])
    means = ", ".join(f"{name.replace('_', ' ')} {spent[name] / requests / 1e6:.2f} ms" for name in PARTS)
    return f"server: {model}: {spent['images']:.0f} images in {spent['batches']:.0f} batches; a request: {means}"


SUFFIX_FORMATS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv"}


@dataclass(frozen=True)
class Job:
    """What to classify, and where the results go."""

    sources: Sources
    form: str
    output: str | None
    resume: bool
    threshold: float
    labels: str | None
    wait_s: float
    progress: bool
    verbose: bool

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> "Job":
        """From the command line.

        Raises:
            UsageError: options that do not go together.
        """
        url_timeout_s = arguments.timeout if arguments.allow_urls else None
        suffix = Path(arguments.output or "").suffix.lower()
        job = cls(
            sources=Sources(tuple(arguments.images), arguments.recursive, url_timeout_s),
            form=arguments.format or SUFFIX_FORMATS.get(suffix, "text"),
            output=arguments.output,
            resume=arguments.resume,
            threshold=arguments.threshold,
            labels=arguments.labels,
            wait_s=arguments.wait,
            progress=not arguments.no_progress,
            verbose=arguments.verbose,
        )
        if job.resume and (job.output is None or job.form == "text"):
            raise UsageError("--resume needs --output FILE and --format json or csv: it reads what FILE holds")
        if not 0 <= job.threshold <= 1:
            raise UsageError(f"--threshold {job.threshold:g}: give 0 to 1")
        return job


async def run(job: Job, config: Config) -> int:
    """Classify all images; returns how many failed, those of the continued run included.

    Raises:
        ServerError: no server answered.
        UsageError: a file of labels cannot be used, the results cannot be written, or go on otherwise than they began.
    """
    async with AsyncClassifier.from_config(config) as classifier:
        if job.wait_s:
            await classifier.wait(job.wait_s)
        await classifier.session.inference()  # a server that is not there leaves the output as it was
        labels = await _labels(job, classifier)
        with open_writer(job.output, job.form, job.resume) as sink:
            if job.output and job.form != "text":
                settings = RunSettings(config.model_name, config.version, config.top, job.threshold, labels)
                keep_settings(job.output, settings, begun=bool(sink.held.end))
            return sink.held.failed + await _classify(job, classifier, sink, labels)


async def _labels(job: Job, classifier: AsyncClassifier) -> tuple[str, ...]:
    if job.labels is None:
        return ()
    from alexnet_triton.client.info import read_labels

    return await read_labels(job.labels, classifier.session)


async def _classify(job: Job, classifier: AsyncClassifier, sink: ResultWriter, labels: tuple[str, ...]) -> int:
    top = classifier.config.top
    write = formatter(job.form, top, job.output is None and _is_terminal(sys.stdout))
    if not sink.held.has_header:
        sink.write(header(job.form, top))
    timings = Timings(job.verbose, classifier.session)
    await timings.start()
    with Progress(_total(job, sink), _shows_progress(job)) as progress:
        try:
            async for result in classifier.classify_many(_left(job.sources, sink)):
                sink.write(write(_adapted(result, labels, job.threshold)))
                progress.add(result)
                timings.add(result)
                if isinstance(result, Failure):
                    complain(f"{result.path or ''}: {result.error}")
        except ServerError as error:
            if progress.done and job.output:
                error.args = (f"{error}; {progress.done:,} results are in {job.output}, --resume goes on",)
            raise
    await timings.finish()
    return progress.failed


def complain(message: str) -> None:
    """One line on standard error."""
    print(f"{PROGRAM}: {printable(message)}", file=sys.stderr)


def _left(sources: Sources, sink: ResultWriter) -> Iterator[Image]:
    """The images that the output does not hold yet."""
    return (image for image in sources if (path_of(image) or "") not in sink.held)


def _total(job: Job, sink: ResultWriter) -> int | None:
    if not (_shows_progress(job) and job.sources.countable):
        return None
    return sum(1 for _ in _left(job.sources, sink))


def _shows_progress(job: Job) -> bool:
    """Not where results scroll by on the same terminal."""
    return job.progress and sys.stderr.isatty() and (job.output is not None or not sys.stdout.isatty())


def _adapted(result: Result, labels: tuple[str, ...], threshold: float) -> Result:
    """With the caller's labels, without the improbable classes."""
    if isinstance(result, Failure) or not (labels or threshold):
        return result
    top = [label for label in result.top if label.probability >= threshold]
    if labels:
        top = [replace(label, label=labels[label.index]) for label in top]
    return replace(result, top=tuple(top))


def _is_terminal(stream: object) -> bool:
    return bool(getattr(stream, "isatty", bool)()) and not os.environ.get("NO_COLOR")

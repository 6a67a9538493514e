"""Classify what the command line names and write the results."""

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from client.aio import AsyncClassifier
from client.arguments import PROGRAM
from client.config import Config
from client.errors import ServerError, UsageError
from client.formats import formatter, header
from client.images import path_of
from client.names import printable
from client.progress import Progress
from client.results import Failure
from client.session import Result
from client.settings import Settings, keep
from client.sink import Sink, open_sink
from client.sources import Image, Sources
from client.timings import Timings

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
        with open_sink(job.output, job.form, job.resume) as sink:
            if job.output and job.form != "text":
                settings = Settings(config.model_name, config.version, config.top, job.threshold, labels)
                keep(job.output, settings, begun=bool(sink.held.end))
            return sink.held.failed + await _classify(job, classifier, sink, labels)


async def _labels(job: Job, classifier: AsyncClassifier) -> tuple[str, ...]:
    if job.labels is None:
        return ()
    from client.labels import read_labels

    return await read_labels(job.labels, classifier.session)


async def _classify(job: Job, classifier: AsyncClassifier, sink: Sink, labels: tuple[str, ...]) -> int:
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


def _left(sources: Sources, sink: Sink) -> Iterator[Image]:
    """The images that the output does not hold yet."""
    return (image for image in sources if (path_of(image) or "") not in sink.held)


def _total(job: Job, sink: Sink) -> int | None:
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

"""The parallel part of sharding: jobs that each write one shard, and the pool that runs them.

A shard is an uncompressed tar of `<number>.<extension>` (the file's own bytes) and, where labelled, `<number>.cls`.
The table beside it has each sample's offset in the tar, so that samples are read without parsing the tar.
"""

import io
import multiprocessing
import os
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from selfsup.blocks import KindData
from selfsup.data import formats
from selfsup.data.copies import digest
from selfsup.data.format import Intake, Taken, Unreadable, Unsettled
from selfsup.data.index import Shard, Skipped, describe
from selfsup.data.source import Samples
from selfsup.errors import UserError


@dataclass
class Job:
    """One shard to write: the samples of a split from its number `first` on."""

    folder: Path
    split: str
    number: int
    first: int
    samples: Samples
    data: KindData
    settled: Any = None  # what `Intake.settle` has told; None: not known yet


@dataclass
class Written:
    """What came of a job."""

    intake: Intake
    shard: Shard | None = None  # None: every file was skipped, or the shard is to be written again
    again: bool = False  # to be written when `Intake.settle` has seen all files
    labels: list[int] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    places: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # in the job, of what is in the shard
    digests: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.uint64))  # of its samples' content, [N 2]


class _Worker:
    """What every job of a process uses."""

    read: Callable[[Any], bytes]
    done: Any  # a shared counter of samples
    stop: Event  # set when another job has failed


def run(jobs: list[Job], read: Callable[[Any], bytes], processes: int) -> tuple[list[Written], Intake]:
    """Write the shards in parallel and return the results in the order of the jobs, and what all shards hold.

    Shards with files that can be read only when something of all such files is known are read through first, and
    written when that is settled. Raises `UserError` for an unreadable file and `OSError` for a full disk.
    """
    data, new = jobs[0].data, formats.find(jobs[0].data.kind).Intake
    unsettled, whole = new(data, None), new(data, None)
    results = _run(jobs, read, processes, unsettled)
    if again := [number for number, result in enumerate(results) if result.again]:
        settled = unsettled.settle()
        whole = new(data, settled)
        jobs = [replace(jobs[number], settled=settled) for number in again]
        for number, result in zip(again, _run(jobs, read, processes, None), strict=True):
            results[number] = result
    for result in results:
        whole.merge(result.intake)
    return results, whole


def _run(jobs: list[Job], read: Callable[[Any], bytes], processes: int, unsettled: Intake | None) -> list[Written]:
    """Return the results in the order of the jobs and show a progress bar. What shards hold that are to be written
    again is added to `unsettled`.
    """
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.Event()
    setup: dict[str, Any] = {"initializer": _start, "initargs": (read, done, stop)}
    processes = min(processes, len(jobs))
    pool: Executor = (
        ThreadPoolExecutor(1, **setup) if processes == 1 else ProcessPoolExecutor(processes, context, **setup)
    )
    noun, samples = jobs[0].data.noun, sum(len(job.samples.names) for job in jobs)
    with tqdm(total=samples, desc="shard", unit=f" {noun}") as bar:
        try:
            futures = [pool.submit(write_shard, job) for job in jobs]
            pending: set[Future[Written]] = set(futures)
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in finished:
                    result = future.result()  # raises what the job raised
                    if result.again:
                        if unsettled is None:
                            raise ValueError(f"{noun}: Intake.take raised Unsettled although all is settled")
                        unsettled.merge(result.intake)
                        result.intake = unsettled  # a great many shards' findings would take much memory
                bar.update(done.value - bar.n)
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise UserError(
                "shard: a worker process was killed, probably because memory ran out; free some memory"
            ) from None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _start(read: Callable[[Any], bytes], done: Any, stop: Event) -> None:
    _Worker.read, _Worker.done, _Worker.stop = staticmethod(read), done, stop
    if multiprocessing.parent_process():
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's processes would wait for ever for work of a parent that was killed."""
    multiprocessing.parent_process().join()  # type: ignore[union-attr]
    os._exit(1)


def write_shard(job: Job) -> Written:
    """Write one tar and its table. Raises `UserError`, and `OSError` with the file's name."""
    path = job.folder / job.split / f"{job.number:06d}.tar"
    try:
        return _write(job, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _write(job: Job, path: Path) -> Written:
    result = Written(formats.find(job.data.kind).Intake(job.data, job.settled))
    offsets, sizes, names, places, digests = [], [], [], [], bytearray()
    samples = job.samples
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, name in enumerate(samples.names):
            if _Worker.stop.is_set():
                break
            try:
                taken = _take(result.intake, samples.refs[number], name, job.split == "train")
            except Unsettled:
                result.again = True
            except Unreadable as error:
                if job.data.on_error == "fail":
                    raise UserError(
                        f"{job.data.place(name)}: unreadable ({error}); fix or remove it, or set data.on_error: skip"
                    ) from None
                result.skipped.append(Skipped(name=name, reason=str(error)))
            except Exception as error:  # a fault of the format: its traceback then names the file
                error.add_note(f"in {job.data.place(name)}")
                raise
            else:
                label, key = int(samples.labels[number]), f"{job.first + number:09d}"
                offsets.append(file.tell() + tarfile.BLOCKSIZE)
                sizes.append(len(taken.file))
                names.append(name)
                places.append(number)
                digests += digest(taken.content)
                result.labels.append(label)
                _add(tar, key + taken.extension, taken.file)
                if label >= 0:
                    _add(tar, key + ".cls", str(label).encode())
            with _Worker.done.get_lock():
                _Worker.done.value += 1
    if result.again or not names:
        path.unlink()
        return result
    table = path.with_suffix(".npz")
    offset, length, labels = (np.array(values, np.int64) for values in (offsets, sizes, result.labels))
    np.savez_compressed(table, offset=offset, size=length, label=labels, name=np.array(names))
    tar_entry, table_entry = describe(path, job.folder), describe(table, job.folder)
    result.places, result.digests = np.array(places), np.frombuffer(digests, np.uint64).reshape(-1, 2)
    result.shard = Shard(**tar_entry.model_dump(), samples=len(names), table=table_entry)
    return result


def _take(intake: Intake, ref: Any, name: str, training: bool) -> Taken:
    try:
        file = _Worker.read(ref)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    if not file:
        raise Unreadable("an empty file")
    return intake.take(file, name, training)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member whose header holds nothing of this machine: no time, owner or group."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))

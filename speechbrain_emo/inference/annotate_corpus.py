"""The word annotator over a corpus: JSON lines in the corpus's order, resumable, in several processes.

A line is written when its utterance and all before it are done, so that an interrupted run, gone on with, ends with
the same file as one that was not. What cannot be used costs itself only and is listed with its reason.
"""

import collections
import concurrent.futures
import hashlib
import json
import multiprocessing
import os
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from speechbrain_emo.alignment import AlignedInterval, Alignment
from speechbrain_emo.dataio.audio import audio_info
from speechbrain_emo.dataio.manifest import write_text_atomically
from speechbrain_emo.inference.word_annotation import WordAnnotation
from speechbrain_emo.inference.word_emotion import WordEmotionAnnotator

#: Instead of an aligner: the words and times that stand in the manifest.
MANIFEST = "manifest"
_WORKER = {}


class AnnotationRunError(ValueError):
    """A corpus that cannot be annotated into this file; the message says why."""


@dataclass(frozen=True)
class CorpusAnnotation:
    """What a run over a corpus wrote.

    Arguments
    ---------
    output : pathlib.Path
        JSON lines of annotations, each with ``id``.
    rejected_file : pathlib.Path
        JSON lines of {id, wav, reason}.
    num_annotated, num_rejected : int
        Lines of both files.
    num_kept : int
        How many of all were there before this run.
    """

    output: Path
    rejected_file: Path
    num_annotated: int
    num_rejected: int
    num_kept: int


def annotate_corpus(
    source,
    records,
    output,
    aligner="pocketsphinx",
    aligner_options=None,
    num_workers=1,
    run_opts=None,
    textgrid_folder=None,
    progress=True,
):
    """Annotate every record of a manifest.

    Arguments
    ---------
    source : str or pathlib.Path
        As in ``WordEmotionAnnotator.from_hparams``.
    records : dict
        id -> record with ``wav`` (placeholders filled), ``transcript``, and optionally ``start`` and ``stop``.
    output : str or pathlib.Path
        JSON lines; beside it ``<output>.rejected.jsonl`` and ``<output>.settings.json``. Where it is there already,
        what it lacks is added.
    aligner : str
        Name of an aligner, or ``manifest``: the ``words`` of the records.
    aligner_options : dict, optional
        Arguments of the aligner.
    num_workers : int
        Processes, each with one thread. The files do not depend on it.
    run_opts : dict, optional
        SpeechBrain's run options of every process.
    textgrid_folder : str or pathlib.Path, optional
        Where ``<id>.TextGrid`` goes.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    CorpusAnnotation

    Raises
    ------
    AnnotationRunError
        If the output belongs to another model, aligner or corpus, or a process died.
    UnsafeModelError
        If there is no usable model.
    AlignmentError
        If the aligner is unknown or cannot be used here.
    """
    if num_workers < 1:
        raise AnnotationRunError(f"num_workers is {num_workers}; allowed: 1 and above")
    output, options = Path(output), dict(aligner_options or {})
    rejected_file = Path(f"{output}.rejected.jsonl")
    # Loaded here in any case: a model or aligner that cannot be used must not be an error of every file.
    annotator = WordEmotionAnnotator.from_hparams(source, run_opts=run_opts)
    if aligner != MANIFEST:
        annotator.aligner(aligner, **options)
    settings = {
        "model": annotator.model_hash,
        "aligner": aligner,
        "aligner_options": {k: str(v) for k, v in options.items()},
        "records": _digest(records),
    }
    _check_settings(Path(f"{output}.settings.json"), settings, output, rejected_file)
    done = _whole_lines(output) | _whole_lines(rejected_file)
    keys = list(records)
    if set(keys[: len(done)]) != done:
        raise AnnotationRunError(
            f"{output} and {rejected_file} do not hold the first {len(done)} records of the manifest: take them away "
            "to begin anew"
        )
    todo = [_job(key, records[key], aligner) for key in keys[len(done) :]]
    output.parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=len(keys), initial=len(done), desc="annotate", unit="utt", disable=not progress)
    with (
        open(output, "a", encoding="utf-8") as lines,
        open(rejected_file, "a", encoding="utf-8") as rejects,
        bar,
    ):
        for job, (ok, text) in _results(todo, source, annotator, aligner, options, num_workers, run_opts):
            if ok:
                entry = json.loads(text)
                if textgrid_folder is not None:
                    # Before the line: a line says that all of its utterance is there.
                    WordAnnotation.from_dict(entry).write_textgrid(
                        Path(textgrid_folder) / f"{job['id']}.TextGrid"
                    )
                lines.write(json.dumps({"id": job["id"], **entry}, ensure_ascii=False) + "\n")
                lines.flush()
            else:
                entry = {"id": job["id"], "wav": job["wav"], "reason": text}
                rejects.write(json.dumps(entry, ensure_ascii=False) + "\n")
                rejects.flush()
            bar.update()
    counts = [sum(1 for _ in open(path, encoding="utf-8")) for path in (output, rejected_file)]
    return CorpusAnnotation(output, rejected_file, *counts, len(done))


def _digest(records):
    names = ("wav", "start", "stop", "transcript", "words")
    text = json.dumps([[key, [r.get(name) for name in names]] for key, r in records.items()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_settings(path, settings, *files):
    """Refuse to go on with lines of another model, aligner or corpus."""
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        other = sorted(key for key in settings if known.get(key) != settings[key])
        if other and any(file.is_file() and file.stat().st_size for file in files):
            raise AnnotationRunError(
                f"{files[0]} was begun with other settings ({', '.join(other)}): choose another output, or take it and "
                f"{path.name} away"
            )
    elif any(file.is_file() and file.stat().st_size for file in files):
        raise AnnotationRunError(f"{files[0]} is there without {path.name}: choose another output")
    write_text_atomically(path, json.dumps(settings, indent=1) + "\n")


def _whole_lines(path):
    """Ids of the complete lines of a file; what a kill cut off is taken away."""
    if not path.is_file():
        return set()
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_text_atomically(path, whole.decode("utf-8"))
    return {json.loads(line)["id"] for line in whole.decode("utf-8").splitlines()}


def _job(key, record, aligner):
    job = {"id": key, "wav": str(record.get("wav")), "text": record.get("transcript") or ""}
    job.update({name: record.get(name) for name in ("start", "stop")})
    if aligner == MANIFEST:
        job["words"] = record.get("words")
    return job


def _results(todo, source, annotator, aligner, options, num_workers, run_opts):
    """(job, (ok, JSON or reason)) in the order of the jobs."""
    if num_workers == 1 or len(todo) < 2:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for job in todo:
                yield job, _annotate(annotator, aligner, options, job)
        finally:
            torch.set_num_threads(threads)
        return
    # One thread a process, set before torch loads there.
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        with concurrent.futures.ProcessPoolExecutor(
            num_workers,
            multiprocessing.get_context("spawn"),
            _start_worker,
            (str(source), aligner, options, None if run_opts is None else dict(run_opts)),
        ) as pool:
            waiting, jobs = collections.deque(), iter(todo)
            try:
                while True:
                    while len(waiting) < 4 * num_workers and (job := next(jobs, None)) is not None:
                        waiting.append((job, pool.submit(_work, job)))
                    if not waiting:
                        return
                    job, future = waiting.popleft()
                    yield job, future.result()
            except BrokenProcessPool as error:
                raise AnnotationRunError(
                    f"a process died at {job['id']!r} or one of the {4 * num_workers} records after it ({error}); what "
                    "is written stays: run the same command again to go on, with one worker to see which it is"
                ) from error
            finally:
                for _, future in waiting:
                    future.cancel()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start_worker(source, aligner, options, run_opts):
    torch.set_num_threads(1)
    _WORKER["annotator"] = WordEmotionAnnotator.from_hparams(source, run_opts=run_opts)
    _WORKER["aligner"] = aligner
    _WORKER["options"] = options


def _work(job):
    return _annotate(_WORKER["annotator"], _WORKER["aligner"], _WORKER["options"], job)


def _annotate(annotator, aligner, options, job):
    """(True, JSON of the annotation) or (False, reason): whatever is wrong with one file is its result."""
    try:
        arguments = {"name": job["id"], "start": job["start"], "stop": job["stop"]}
        if aligner == MANIFEST:
            known = _known_alignment(job)
            annotation = annotator.annotate_file(job["wav"], alignment=known, **arguments)
        else:
            made = annotator.aligner(aligner, **options)
            annotation = annotator.annotate_file(job["wav"], job["text"], made, **arguments)
    except (ValueError, OSError, RuntimeError) as error:
        return False, f"{type(error).__name__}: {error}"
    return True, annotation.to_json()


def _known_alignment(job):
    """Words of a record as an alignment."""
    if not job["words"]:
        raise ValueError(f"{job['id']}: the record has no words with times; name an aligner")
    info = audio_info(job["wav"])
    first = job["start"] or 0
    duration = ((info.num_samples if job["stop"] is None else job["stop"]) - first) / info.sample_rate
    words = tuple(
        AlignedInterval(row["word"], row["start"], min(row["end"], duration), row.get("confidence"))
        for row in job["words"]
    )
    return Alignment(
        words, None, job["text"] or " ".join(row["word"] for row in job["words"]), duration, MANIFEST
    )

"""Utterances whose emotion changes inside the sentence, with the truth of every word known.

Voices, sentences and densities of emotions are those of the embedded corpus (``demo_prepare``). A sentence is cut
into two or three stretches of at least two words; each has an emotion of its own, other than its neighbour's, and
synthesis parameters drawn from that emotion's density. Pitch, range and rate of a word reach espeak-ng as SSML, with
absolute values, because ``pitch="+35%"`` means 35 % of its pitch setting and not of F0; the level is a gain of our
own on the samples, since espeak-ng ignores relative volumes. ``tests/unit/test_demo_words.py`` measures both.

Run as a program with ``--worker`` it synthesises the jobs that :func:`prepare_demo_words` hands it.
"""

import hashlib
import json
import logging
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from recipes.Demo import demo_prepare as demo
from speechbrain_emo.dataio.check import check_and_write
from speechbrain_emo.dataio.espeak import EspeakSynthesizer
from speechbrain_emo.dataio.manifest import (
    read_manifest,
    validate_manifest,
    write_manifest,
    write_text_atomically,
)

logger = logging.getLogger(__name__)

WORDS_VERSION = 1
#: Share of three stretches among the sentences of six words and more.
THREE_SHARE = 0.3
MIN_WORDS = 2  # of a stretch
#: Gains of neighbouring stretches meet within this time, in seconds.
RAMP = 0.015
_SINGLE = {"train": "single_train", "valid": "single_valid", "test": "single_test"}
_MIXED = {"train": "mixed_train", "valid": "mixed_valid", "test": "mixed_test"}


def cut_sentence(num_words, rng):
    """Borders of two or three stretches of at least two words.

    Arguments
    ---------
    num_words : int
        At least 4.
    rng : numpy.random.Generator
        Draws the number of stretches and their borders.

    Returns
    -------
    list of int
        From 0 to ``num_words``.

    Example
    -------
    >>> cut_sentence(4, np.random.default_rng(0))
    [0, 2, 4]
    """
    count = 3 if num_words >= 3 * MIN_WORDS and rng.random() < THREE_SHARE else 2
    extra = np.sort(rng.integers(0, num_words - count * MIN_WORDS + 1, count - 1))
    return [0, *(int(e) + MIN_WORDS * (i + 1) for i, e in enumerate(extra)), num_words]


def _mixed_record(rng, speaker, sentence):
    """One utterance's plan: speaker, words and the parameters of every stretch."""
    words = sentence.split()
    borders = cut_sentence(len(words), rng)
    segments, before = [], None
    for start, stop in zip(borders, borders[1:]):
        emotion = str(rng.choice([name for name in demo.EMOTIONS if name != before]))
        drawn = demo._draw_parameters(rng, emotion)[0]
        params = demo._draw_record(rng, speaker, emotion, drawn, sentence, words)["params"]
        kept = ("pitch", "range", "rate", "volume_db", "rate_wpm", "log_f0", "espeak")
        segments.append({"start": start, "stop": stop, "emotion": emotion, **{k: params[k] for k in kept}})
        before = emotion
    return {
        "speaker": speaker[0],
        "gender": demo.VARIANTS[speaker[1]][0],
        "transcript": sentence,
        "emotion": None,
        "descriptors": {},
        "params": {"voice": params["voice"], "scale": params["scale"], "segments": segments},
    }


def _plan(sizes, seed, spoken):
    """Records of every split; their sentences share no four words in a row with another split, spoken or mixed."""
    grams = {
        split: set().union(*(demo._ngrams(r["transcript"]) for r in records.values())) if records else set()
        for split, records in spoken.items()
    }
    plan, seen = {}, {r["transcript"] for records in spoken.values() for r in records.values()}
    for number, split in enumerate(("test", "valid", "train")):
        rng = np.random.default_rng([int(seed), 11, number])
        forbidden = set().union(*(grams[other] for other in grams if other != split))
        speakers, records, attempts = demo._speakers_of(split), {}, 0
        while len(records) < sizes[split]:
            attempts += 1
            if attempts > 500 * sizes[split] + 1000:
                raise ValueError(
                    f"num_{split} is {sizes[split]}: only {len(records)} sentences share no four words with the other "
                    "splits; ask for fewer"
                )
            sentence, _ = demo._sentence(rng)
            if (
                sentence in seen
                or len(sentence.split()) < 2 * MIN_WORDS
                or demo._ngrams(sentence) & forbidden
            ):
                continue
            seen.add(sentence)
            grams[split] |= demo._ngrams(sentence)
            speaker = speakers[len(records) % len(speakers)]
            records[f"mixed_{split}_{len(records):05d}"] = _mixed_record(rng, speaker, sentence)
        plan[split] = records
    return plan


class _Stretches:
    """A synthesizer that speaks the words of every stretch with its own pitch, range and rate.

    The last stretch has its values from the call itself: espeak-ng loses words where several changes of prosody stand
    at the very end of a clause.
    """

    def __init__(self, synthesizer, segments):
        self.synthesizer, self.segments = synthesizer, segments

    def __call__(self, text, voice, prosody, rate, pitch, pitch_range):
        del prosody
        attributes = {}
        for segment in self.segments[:-1]:
            own = segment["espeak"]
            for index in range(segment["start"], segment["stop"]):
                attributes[index] = {
                    "rate": f"{round(100 * own['rate'] / rate)}%",
                    "pitch": str(own["pitch"]),
                    "range": str(own["pitch_range"]),
                }
        return self.synthesizer(
            text, voice=voice, prosody=attributes, rate=rate, pitch=pitch, pitch_range=pitch_range
        )


def render_mixed(record, synthesizer):
    """Make the audio of one utterance whose emotion changes.

    Arguments
    ---------
    record : dict
        With ``transcript`` and ``params`` that have ``segments``.
    synthesizer : speechbrain_emo.dataio.espeak.EspeakSynthesizer

    Returns
    -------
    tuple
        ``samples`` float32 (samples,) at 16 kHz; ``words``: dictionaries with ``word``, ``start`` and ``end`` in
        seconds and ``emotion``.
    """
    params, segments = record["params"], record["params"]["segments"]
    plain = {
        "transcript": record["transcript"],
        "params": {**params, "espeak": segments[-1]["espeak"], "volume_db": 0.0, "emphasised": []},
    }
    samples, words, _ = demo.render(plain, _Stretches(synthesizer, segments))
    if len(words) != len(record["transcript"].split()):
        raise ValueError(f"{record['transcript']!r}: {len(words)} words have times: choose another sentence")
    times = np.arange(len(samples)) / demo.SAMPLE_RATE
    # Gains in dB, piecewise constant with linear ramps around the borders.
    points, gains = [], []
    for segment in segments:
        points += [words[segment["start"]]["start"] + RAMP / 2, words[segment["stop"] - 1]["end"] - RAMP / 2]
        gains += [segment["volume_db"]] * 2
        for index in range(segment["start"], segment["stop"]):
            words[index]["emotion"] = segment["emotion"]
    samples = samples * 10 ** (np.interp(times, points, gains) / 20)
    peak = float(np.abs(samples).max())
    if not peak < 1.0:
        raise ValueError(f"{record['transcript']!r} has a peak of {peak:.2f}: lower BASE_LEVEL")
    return samples.astype(np.float32), words


def _worker(job_file, part, parts):
    """Synthesise every ``parts``-th record, print its key when it is done."""
    jobs = json.loads(Path(job_file).read_text(encoding="utf-8"))
    synthesizer = EspeakSynthesizer()
    for key in list(jobs["records"])[part::parts]:
        samples, words = render_mixed(jobs["records"][key], synthesizer)
        path = Path(jobs["audio_folder"]) / key.split("_")[1] / f"{key}.wav"
        temporary = path.with_name(path.name + ".partial")
        soundfile.write(temporary, samples, demo.SAMPLE_RATE, subtype="PCM_16", format="WAV")
        os.replace(temporary, path)
        made = {"num_samples": len(samples), "words": words}
        write_text_atomically(Path(jobs["work_folder"]) / f"{key}.json", json.dumps(made))
        print(key, flush=True)


def _synthesize(records, audio_folder, work_folder, num_processes):
    """Make what is missing; an interrupted run goes on where it was."""
    work_folder.mkdir(parents=True, exist_ok=True)
    for split in demo.SPLITS:
        (audio_folder / split).mkdir(parents=True, exist_ok=True)
    missing = {key: record for key, record in records.items() if not (work_folder / f"{key}.json").is_file()}
    if missing:
        job_file = work_folder / "jobs.txt"
        folders = {"audio_folder": str(audio_folder), "work_folder": str(work_folder)}
        write_text_atomically(job_file, json.dumps({**folders, "records": missing}))
        # Fresh small processes, as in demo_prepare: one that holds torch's threads must not fork.
        environment = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
        root = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join([root, *(path for path in sys.path if path)])
        workers = [
            subprocess.Popen(
                [sys.executable, __file__, "--worker", str(job_file), str(part), str(num_processes)],
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for part in range(num_processes)
        ]
        try:
            with tqdm(
                total=len(missing), desc="synthesis, mixed emotions", unit="utt", mininterval=1.0
            ) as bar:
                for worker in workers:
                    for _ in worker.stdout:
                        bar.update()
            codes = [worker.wait() for worker in workers]
        finally:
            for worker in workers:
                if worker.poll() is None:
                    worker.terminate()
                    worker.wait()
                worker.stdout.close()
        if any(codes):
            raise RuntimeError(f"synthesis ended with exit codes {codes}; the reason stands above")
    return {key: json.loads((work_folder / f"{key}.json").read_text(encoding="utf-8")) for key in records}


def word_oracle(records):
    """Recall of each emotion over words by the Bayes classifier that knows every word's true parameters.

    Arguments
    ---------
    records : dict
        Records with ``params.segments``.

    Returns
    -------
    dict
        ``ua``, ``accuracy`` and ``recall`` by emotion; the words of one stretch count each.
    """
    rows, labels = [], []
    for record in records.values():
        for segment in record["params"]["segments"]:
            values = [segment[name] for name in ("pitch", "range", "rate", "volume_db")]
            rows += [values] * (segment["stop"] - segment["start"])
            labels += [segment["emotion"]] * (segment["stop"] - segment["start"])
    recall = demo.oracle_recalls(np.array(rows), labels)
    counts = {name: labels.count(name) for name in recall}
    accuracy = sum(recall[name] * counts[name] for name in recall) / len(labels)
    return {"ua": float(np.mean(list(recall.values()))), "accuracy": float(accuracy), "recall": recall}


def validate_words(manifests):
    """Check what evaluation relies on: no sentence, voice or parameters in two splits, every word labelled.

    Arguments
    ---------
    manifests : dict
        ``train``, ``valid``, ``test`` -> records, spoken and mixed together.

    Raises
    ------
    ValueError
        With every fault found.
    """
    faults, grams, voices = [], {}, {}
    for split, records in manifests.items():
        grams[split] = set().union(*(demo._ngrams(r["transcript"]) for r in records.values()))
        voices[split] = {r["params"]["voice"] for r in records.values()}
        for key, record in records.items():
            rows = record["words"]
            if [row["word"] for row in rows] != record["transcript"].split():
                faults.append(f"{key}: the words with times are not those of {record['transcript']!r}")
            labels = [row.get("emotion", record["emotion"]) for row in rows]
            if not set(labels) <= set(demo.EMOTIONS):
                faults.append(f"{key}: emotions of its words are {labels}")
            if record["emotion"] is None and len(set(labels)) < 2:
                faults.append(f"{key}: mixed, but its words have one emotion")
    for first, second in (("test", "train"), ("test", "valid"), ("valid", "train")):
        for name, sets in (("4-grams", grams), ("voices", voices)):
            if shared := sets[first] & sets[second]:
                faults.append(
                    f"{first} and {second} share {len(shared)} {name}, such as {next(iter(shared))}"
                )
    if faults:
        shown = "\n".join(faults[:20])
        raise ValueError(f"the corpus of mixed emotions has {len(faults)} faults:\n{shown}")


def prepare_demo_words(
    data_folder,
    demo_manifests,
    save_folder,
    num_single=1200,
    num_train=600,
    num_valid=100,
    num_test=200,
    seed=1234,
    num_processes=2,
    audio="words",
):
    """Synthesise the utterances of mixed emotion and write manifests beside those of the embedded corpus.

    ``single_train``, ``single_valid`` and ``single_test`` hold the embedded corpus (one emotion an utterance),
    ``mixed_train``, ``mixed_valid`` and ``mixed_test`` what is made here. A complete corpus of the same settings is
    kept; an interrupted one goes on where it was.

    Arguments
    ---------
    data_folder : str
        Of the embedded corpus (``{data_root}``); audio goes to ``<data_folder>/<audio>``.
    demo_manifests : str
        Folder of the embedded corpus's manifests.
    save_folder : str
        Where the six manifests and ``oracle.json`` go.
    num_single : int
        Single-emotion training utterances to take, in the corpus's order; all of valid and test are taken.
    num_train, num_valid, num_test : int
        Mixed utterances. Voices as in the embedded corpus: those of test are in no other split.
    seed : int
        Of sentences, borders and parameters.
    num_processes : int
        Worker processes; the result does not depend on it.
    audio : str
        Folder of the recordings below ``data_folder``; other numbers need another.

    Returns
    -------
    dict
        The content of ``oracle.json``.

    Raises
    ------
    ValueError
        If a size is not positive or the corpus fails :func:`validate_words`.
    ManifestError
        If the embedded corpus is not there.
    """
    sizes = {"train": int(num_train), "valid": int(num_valid), "test": int(num_test)}
    for name, size in (*sizes.items(), ("single", int(num_single))):
        if size < 1:
            raise ValueError(f"num_{name} is {size}; it must be at least 1")
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    spoken, digest = {}, hashlib.sha256()
    for split in demo.SPLITS:
        path = Path(demo_manifests) / f"{split}.json"
        # Paths keep their {data_root}.
        spoken[split] = read_manifest(path, {"data_root": "{data_root}"})
        digest.update(path.read_bytes())
    constants = [WORDS_VERSION, THREE_SHARE, MIN_WORDS, RAMP, sizes, int(num_single), int(seed)]
    constants += [demo._settings_hash(sizes, seed), version("espeakng-loader"), digest.hexdigest()]
    if audio != "words":
        constants.append(audio)
    fingerprint = hashlib.sha256(json.dumps(constants, sort_keys=True).encode()).hexdigest()[:16]
    oracle_file = save_folder / "oracle.json"
    if oracle_file.is_file():
        report = json.loads(oracle_file.read_text(encoding="utf-8"))
        if report.get("settings") == fingerprint:
            print(f"words of mixed emotion: complete in {data_folder / audio}, kept")
            return report
    plan = _plan(sizes, seed, spoken)
    records = {key: record for split in demo.SPLITS for key, record in plan[split].items()}
    audio_folder = data_folder / audio
    made = _synthesize(records, audio_folder, audio_folder / f".work_{fingerprint}", int(num_processes))
    mixed = {
        split: {
            key: {
                "wav": f"{{data_root}}/{audio}/{split}/{key}.wav",
                "duration": made[key]["num_samples"] / demo.SAMPLE_RATE,
                **record,
                "words": made[key]["words"],
            }
            for key, record in plan[split].items()
        }
        for split in demo.SPLITS
    }
    single = {**spoken, "train": dict(list(spoken["train"].items())[: int(num_single)])}
    validate_words({split: {**single[split], **mixed[split]} for split in demo.SPLITS})
    for split in demo.SPLITS:
        validate_manifest(mixed[split], replacements={"data_root": str(data_folder)})
        write_manifest(save_folder / f"{_SINGLE[split]}.json", single[split])
        write_manifest(save_folder / f"{_MIXED[split]}.json", mixed[split])
    roots = {"data_root": str(data_folder)}
    check_and_write(
        mixed,
        save_folder,
        "words of mixed emotion",
        logger,
        replacements=roots,
        audio="headers",
        progress=False,
    )
    report = {
        "settings": fingerprint,
        **word_oracle(mixed["test"]),
        "num_single": {split: len(single[split]) for split in demo.SPLITS},
        "num_mixed": {split: len(mixed[split]) for split in demo.SPLITS},
        "num_words": {split: sum(len(r["words"]) for r in mixed[split].values()) for split in demo.SPLITS},
    }
    # Written last: it says that all the rest is there.
    write_text_atomically(oracle_file, json.dumps(report, indent=1) + "\n")
    work = audio_folder / f".work_{fingerprint}"
    for path in work.iterdir():
        path.unlink()
    work.rmdir()
    print(
        f"words of mixed emotion: {sum(sizes.values())} utterances; oracle of the test words from the true parameters: "
        f"UA {report['ua']:.3f}, accuracy {report['accuracy']:.3f}"
    )
    return report


if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] == "--worker":
        _worker(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        raise SystemExit(
            "prepare_demo_words is called by train.py; this program takes --worker JOBS PART PARTS"
        )

"""The embedded demo corpus: emotional speech from espeak-ng, with every cause written down.

Sentences come from a grammar and carry no emotion; emotion moves four numbers (pitch, pitch range, rate,
volume) drawn from overlapping distributions, so that the best possible accuracy is known: the Bayes
classifier on the true numbers (``oracle.json``). Test voices and test sentences occur nowhere in training.

Run as a program with ``--worker`` it synthesises the jobs that :func:`prepare_demo` hands it.
"""

import hashlib
import json
import logging
import math
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample
from scipy.special import ndtr, ndtri
from tqdm import tqdm

from speechbrain_emo.dataio.check import check_and_write
from speechbrain_emo.dataio.espeak import EspeakSynthesizer

logger = logging.getLogger(__name__)

VERSION = 8
SAMPLE_RATE = 16000
SPLITS = ("train", "valid", "test")
EMOTIONS = ("angry", "happy", "neutral", "sad")

# ---------------------------------------------------------------------------------------------- emotion
# Dimensions of the generative densities: pitch in semitones above the voice's own, natural logarithm of the
# factor on the F0 range, natural logarithm of the factor on the speaking rate, volume in dB. The spread is
# the same for all emotions. Volume and rate carry most, since pitch against an unknown voice is ambiguous.
DIMENSIONS = ("pitch", "range", "rate", "volume")
EMOTION_MEANS = {
    "angry": (1.0, 0.10, 0.00, 6.0),
    "happy": (3.0, 0.24, 0.19, 0.0),
    "neutral": (0.0, -0.10, -0.05, -1.5),
    "sad": (-1.5, -0.30, -0.20, -7.0),
}
EMOTION_SPREAD = (1.6, 0.17, 0.10, 2.65)
# The Gaussians are cut here, in deviations: espeak-ng's pitch has limits, and no sample may clip.
CUT = 2.5

BASE_RATE = 170.0  # words a minute
BASE_LEVEL = -42.0  # dB of full scale, RMS of the speech at volume 0
EMPHASIS_SHARE = 0.6
EMPHASIS_GAIN = 8.0  # dB
EMPHASIS_PROSODY = {"rate": "82%", "pitch": "+40%"}
EMPHASIS_RAMP = 0.015  # s
MARGIN = 0.06  # s of silence kept on both sides

# ----------------------------------------------------------------------------------------------- voices
# Variant of espeak-ng -> (gender, median F0 in Hz at pitch 50 and range 50, duration in s of three fixed
# sentences at the default rate). Measured once with pYIN (librosa) on espeak-ng 1.52.
VARIANTS = {
    "f1": ("female", 179.6, 5.558),
    "f2": ("female", 196.6, 5.397),
    "f3": ("female", 212.1, 5.290),
    "f4": ("female", 179.7, 5.529),
    "f5": ("female", 205.9, 5.401),
    "Andrea": ("female", 246.1, 4.407),
    "Annie": ("female", 238.1, 5.298),
    "belinda": ("female", 229.9, 5.335),
    "linda": ("female", 229.9, 5.41),
    "anika": ("female", 270.1, 4.400),
    "aunty": ("female", 173.3, 5.526),
    "m1": ("male", 93.9, 5.351),
    "m2": ("male", 101.1, 5.336),
    "m3": ("male", 105.2, 5.217),
    "m4": ("male", 94.4, 5.736),
    "m5": ("male", 102.8, 5.359),
    "m7": ("male", 107.0, 5.365),
    "m8": ("male", 85.8, 5.375),
    "Denis": ("male", 99.4, 5.327),
    "Gene": ("male", 95.3, 5.367),
    "travis": ("male", 103.2, 5.325),
    "victor": ("male", 95.6, 5.367),
    "Mike": ("male", 91.1, 5.365),
    "Diogo": ("male", 105.3, 5.376),
    "quincy": ("male", 86.6, 5.363),
}
REFERENCE_DURATION = 5.35
# Left out: whispering and croaking variants, and steph, steph2 and steph3, whose files put formant 4 at 9 % of its
# frequency (the others stand near 110 %): a voice that no person has. recipes/Demo/RESULTS.md says what it cost.
# A speaker is a variant and a factor on all its frequencies (a shorter or longer vocal tract). Variants of
# valid and test occur in no other split.
SPEAKERS = {
    "train": (
        ("f1", 1.0),
        ("f1", 1.07),
        ("f4", 1.0),
        ("f4", 0.95),
        ("f5", 1.0),
        ("f5", 1.05),
        ("Andrea", 1.0),
        ("Andrea", 0.94),
        ("Annie", 1.0),
        ("belinda", 0.96),
        ("anika", 1.0),
        ("aunty", 1.06),
        ("m1", 1.0),
        ("m1", 1.07),
        ("m2", 1.0),
        ("m5", 0.95),
        ("m7", 1.0),
        ("m8", 1.04),
        ("Denis", 1.0),
        ("Gene", 1.06),
        ("travis", 1.0),
        ("victor", 0.97),
        ("Diogo", 1.03),
        ("quincy", 1.0),
    ),
    "valid": (("f3", 1.0), ("m4", 1.03)),
    "test": (("f2", 1.0), ("linda", 1.02), ("m3", 1.0), ("Mike", 1.03)),
}
# espeak-ng's pitch value -> realised natural logarithm of the F0 factor (mean of four variants, pYIN). Its
# pitch also moves a little with its range value.
_PITCH_VALUES = (0.0, 15.0, 30.0, 40.0, 50.0, 60.0, 70.0, 85.0, 99.0)
_PITCH_FACTORS = (-0.44, -0.325, -0.192, -0.101, 0.0, 0.10, 0.207, 0.37, 0.525)
_PITCH_PER_RANGE = 0.0020

# -------------------------------------------------------------------------------------------- sentences
ADJECTIVES = (
    "green yellow purple silver wooden narrow heavy empty broken modern plastic golden round square ancient "
    "little large simple foreign local hidden painted polished leather copper marble cotton"
).split()
THINGS = (
    "table lamp window basket carpet bottle camera ladder mirror blanket pencil guitar hammer ticket helmet "
    "letter box map clock chair piano engine bucket curtain magazine envelope umbrella candle cabinet trumpet"
).split()
PEOPLE = (
    "farmer doctor teacher driver painter sailor baker student lawyer neighbor visitor manager gardener "
    "singer dancer pilot soldier waiter engineer captain"
).split()
PLACES = (
    "river market station garden library kitchen museum bridge village harbor office school theater castle "
    "forest valley hospital factory airport church"
).split()
VERBS = {
    "carry": "carried",
    "paint": "painted",
    "open": "opened",
    "watch": "watched",
    "lift": "lifted",
    "clean": "cleaned",
    "count": "counted",
    "move": "moved",
    "wash": "washed",
    "pack": "packed",
    "borrow": "borrowed",
    "repair": "repaired",
    "describe": "described",
    "deliver": "delivered",
    "collect": "collected",
    "discover": "discovered",
}
DETERMINERS = "the a my your our his".split()
MODALS = "will can must should".split()
PREPOSITIONS = "near behind beside around under".split()
TIMES = "today tonight tomorrow again early later".split()
NUMBERS = "three five seven eleven twenty".split()

_VOWELS = tuple("aeiou")
PITCHES = ("low", "normal", "high")
VOLUMES = ("low", "normal", "high")
SPEEDS = ("slow", "normal", "fast")
GENDERS = ("female", "male")
DESCRIPTOR_VALUES = {"gender": GENDERS, "pitch": PITCHES, "volume": VOLUMES, "speed": SPEEDS}
_DESCRIPTIONS = (
    "A {gender} voice with {pitch} pitch and {volume} volume speaks at a {speed} pace{stress}.",
    "The {gender} speaker talks at a {speed} pace with {volume} volume and {pitch} pitch{stress}.",
    "At a {speed} pace and with {pitch} pitch, a {gender} speaker talks at {volume} volume{stress}.",
    "The pitch is {pitch}, the volume is {volume} and the pace is {speed} for this {gender} speaker{stress}.",
)


def _ngrams(sentence, n=4):
    words = sentence.split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def _sentence(rng):
    """Draw (sentence, words that may be emphasised). No content word occurs twice."""

    def one(pool):
        return pool[int(rng.integers(len(pool)))]

    def phrase(noun, adjective):
        determiner = one(DETERMINERS)
        words = ([adjective] if adjective else []) + [noun]
        if determiner == "a" and words[0].startswith(_VOWELS):
            determiner = "the"
        return [determiner, *words]

    base = one(list(VERBS))
    thing, other = (THINGS[i] for i in rng.choice(len(THINGS), 2, replace=False))
    adjective, second = (ADJECTIVES[i] for i in rng.choice(len(ADJECTIVES), 2, replace=False))
    person, place = one(PEOPLE), one(PLACES)
    patterns = (
        lambda: [*phrase(person, None), VERBS[base], *phrase(thing, adjective)],
        lambda: [*phrase(person, adjective), VERBS[base], *phrase(thing, second)],
        lambda: [*phrase(person, None), VERBS[base], *phrase(thing, None), one(TIMES)],
        lambda: [*phrase(person, None), one(MODALS), base, *phrase(thing, adjective)],
        lambda: [*phrase(person, adjective), one(MODALS), base, *phrase(thing, None)],
        lambda: ["please", base, *phrase(thing, adjective)],
        lambda: ["please", base, *phrase(thing, None), one(TIMES)],
        lambda: ["who", VERBS[base], *phrase(thing, adjective)],
        lambda: ["who", "will", base, *phrase(thing, None), one(PREPOSITIONS), *phrase(place, None)],
        lambda: ["where", "is", *phrase(thing, adjective)],
        lambda: [
            "we",
            VERBS[base],
            one(NUMBERS),
            adjective,
            "boxes",
            one(PREPOSITIONS),
            *phrase(place, None),
        ],
        lambda: ["they", VERBS[base], *phrase(thing, adjective), one(PREPOSITIONS), *phrase(place, None)],
        lambda: [*phrase(thing, adjective), "was", one(PREPOSITIONS), *phrase(place, None)],
        lambda: ["she", VERBS[base], *phrase(thing, adjective), one(TIMES)],
    )
    words = one(patterns)()
    content = {adjective, second, thing, other, person, place, base, VERBS[base], *NUMBERS}
    return " ".join(words), [word for word in words if word in content]


def vocabulary():
    """All words that the grammar can utter.

    Returns
    -------
    list of str
        Sorted, lower case.

    Example
    -------
    >>> words = vocabulary()
    >>> 150 <= len(words) <= 200, "river" in words
    (True, True)
    """
    fixed = "please who where is was we they she boxes will".split()
    pools = (ADJECTIVES, THINGS, PEOPLE, PLACES, DETERMINERS, MODALS, PREPOSITIONS, TIMES, NUMBERS, fixed)
    return sorted({word for pool in (*pools, VERBS, VERBS.values()) for word in pool})


# ------------------------------------------------------------------------------------------------- plan
def _draw_parameters(rng, emotion, size=1):
    """Draw synthesis parameters of an emotion, float (size, 4).

    Each dimension is drawn once from each of ``size`` equally likely slices (a Latin hypercube): the draws
    have the density, and the oracle of one small test set hardly hangs on the seed.
    """
    slices = np.stack([rng.permutation(size) for _ in DIMENSIONS], axis=1)
    low = ndtr(-CUT)
    z = ndtri(low + (1 - 2 * low) * (slices + rng.random(slices.shape)) / size)
    return np.asarray(EMOTION_MEANS[emotion]) + np.asarray(EMOTION_SPREAD) * z


def emotion_log_density(parameters):
    """Log-density of synthesis parameters under each emotion, up to a constant.

    Arguments
    ---------
    parameters : numpy.ndarray
        float, shape (utterances, 4): pitch in semitones, log range factor, log rate factor, volume in dB.

    Returns
    -------
    numpy.ndarray
        float, shape (utterances, 4), columns in the order of ``EMOTIONS``; minus infinity where the
        truncated density is zero.

    Example
    -------
    >>> means = np.array([EMOTION_MEANS[emotion] for emotion in EMOTIONS])
    >>> emotion_log_density(means).argmax(1).tolist()
    [0, 1, 2, 3]
    """
    means = np.array([EMOTION_MEANS[emotion] for emotion in EMOTIONS])
    z = (np.asarray(parameters, dtype=float)[:, None, :] - means) / np.asarray(EMOTION_SPREAD)
    # The rounding of stored parameters may not push one over the cut.
    return np.where((np.abs(z) > CUT + 1e-3).any(-1), -np.inf, -0.5 * (z**2).sum(-1))


def oracle_recalls(parameters, emotions):
    """Recall of each emotion by the Bayes classifier that knows the true parameters and densities.

    Arguments
    ---------
    parameters : numpy.ndarray
        As :func:`emotion_log_density` takes them.
    emotions : list of str
        True label of each utterance.

    Returns
    -------
    dict
        Emotion -> recall in [0, 1], for the emotions that occur.
    """
    guesses = np.array(EMOTIONS)[emotion_log_density(parameters).argmax(1)]
    labels = np.array(emotions)
    return {name: float((guesses[labels == name] == name).mean()) for name in EMOTIONS if name in labels}


def _tertiles(values):
    return [float(value) for value in np.quantile(np.asarray(values, dtype=float), (1 / 3, 2 / 3))]


def _level(value, thresholds, names):
    return names[int(value > thresholds[0]) + int(value > thresholds[1])]


def _fit_thresholds(records):
    params = [record["params"] for record in records]
    thresholds = {
        "volume": _tertiles([p["volume_db"] for p in params]),
        "speed": _tertiles([p["rate_wpm"] for p in params]),
    }
    for gender in GENDERS:
        values = [p["log_f0"] for p, r in zip(params, records) if r["gender"] == gender]
        thresholds[f"pitch.{gender}"] = _tertiles(values)
    return thresholds


def _describe(record, thresholds, rng):
    params = record["params"]
    fields = {
        "gender": record["gender"],
        "pitch": _level(params["log_f0"], thresholds[f"pitch.{record['gender']}"], PITCHES),
        "volume": _level(params["volume_db"], thresholds["volume"], VOLUMES),
        "speed": _level(params["rate_wpm"], thresholds["speed"], SPEEDS),
    }
    stressed = params["emphasised"]
    template = _DESCRIPTIONS[int(rng.integers(len(_DESCRIPTIONS)))]
    stress = f", stressing the word {stressed[0]}" if stressed else ", stressing no word"
    record["descriptors"] = {
        **fields,
        "emphasis": list(stressed),
        "description": template.format(stress=stress, **fields),
    }


def _speakers_of(split):
    return [(f"{variant}_{round(100 * scale)}", variant, scale) for variant, scale in SPEAKERS[split]]


def _draw_record(rng, speaker, emotion, parameters, sentence, content):
    identity, variant, scale = speaker
    gender, base_f0, duration = VARIANTS[variant]
    pitch, log_range, log_rate, volume = (round(float(x), 4) for x in parameters)
    emphasised = []
    if rng.random() < EMPHASIS_SHARE:
        emphasised = [content[int(rng.integers(len(content)))]]
    # Resampling by `scale` also speeds up and raises the pitch; the rate is asked for without that.
    rate = BASE_RATE * math.exp(log_rate)
    range_value = round(50 * math.exp(log_range))
    factor = pitch * math.log(2) / 12
    espeak_pitch = np.interp(factor - _PITCH_PER_RANGE * (range_value - 50), _PITCH_FACTORS, _PITCH_VALUES)
    return {
        "speaker": identity,
        "gender": gender,
        "transcript": sentence,
        "emotion": emotion,
        "params": {
            "pitch": pitch,
            "range": log_range,
            "rate": log_rate,
            "volume_db": volume,
            "log_f0": round(math.log(base_f0 * scale) + factor, 5),
            "rate_wpm": round(rate, 3),
            "emphasised": emphasised,
            "voice": f"en-us+{variant}",
            "scale": scale,
            "espeak": {
                "rate": round(rate * duration / REFERENCE_DURATION / scale),
                "pitch": round(float(espeak_pitch)),
                "pitch_range": range_value,
            },
        },
    }


def _plan(sizes, seed):
    """Decide everything about every utterance before any sound is made."""
    rng = np.random.default_rng(seed)
    sentences, seen = {}, set()
    # Test and validation sentences come first: training then avoids them, which costs it little.
    forbidden = {"test": set(), "valid": set(), "train": set()}
    for split in ("test", "valid", "train"):
        drawn = []
        attempts = 0
        while len(drawn) < sizes[split]:
            attempts += 1
            if attempts > 200 * sizes[split] + 1000:
                raise ValueError(
                    f"num_{split} is {sizes[split]}: the grammar has not that many sentences that share no "
                    f"four words with the others; only {len(drawn)} were found"
                )
            sentence, content = _sentence(rng)
            if sentence in seen or _ngrams(sentence) & forbidden[split]:
                continue
            seen.add(sentence)
            drawn.append((sentence, content))
        sentences[split] = drawn
        grams = set().union(*(_ngrams(sentence) for sentence, _ in drawn)) if drawn else set()
        for later in SPLITS:
            if later != split:
                forbidden[later] |= grams
    plan = {}
    for split in SPLITS:
        speakers = _speakers_of(split)
        size = sizes[split]
        emotions = [EMOTIONS[i % len(EMOTIONS)] for i in range(size)]
        # Speakers go round at another period than emotions, so that the two are independent.
        voices = [speakers[(i // len(EMOTIONS)) % len(speakers)] for i in range(size)]
        order = rng.permutation(size)
        drawn = {name: iter(_draw_parameters(rng, name, emotions.count(name))) for name in EMOTIONS}
        records = {}
        for number in range(size):
            source = int(order[number])
            sentence, content = sentences[split][number]
            parameters = next(drawn[emotions[source]])
            record = _draw_record(rng, voices[source], emotions[source], parameters, sentence, content)
            records[f"{split}_{number:05d}"] = record
        plan[split] = records
    thresholds = _fit_thresholds(list(plan["train"].values()))
    for split in SPLITS:
        for record in plan[split].values():
            _describe(record, thresholds, rng)
    return plan, thresholds


# ------------------------------------------------------------------------------------------------ sound
def render(record, synthesizer):
    """Make one utterance's audio.

    Arguments
    ---------
    record : dict
        With ``transcript`` and ``params``.
    synthesizer : EspeakSynthesizer

    Returns
    -------
    tuple
        ``samples`` float32 (samples,) at 16 kHz; ``words`` and ``phones``: lists of dictionaries with
        ``start`` and ``end`` in seconds.
    """
    params = record["params"]
    transcript = record["transcript"].split()
    prosody = {transcript.index(word): EMPHASIS_PROSODY for word in params["emphasised"]}
    speech = synthesizer(record["transcript"], voice=params["voice"], prosody=prosody, **params["espeak"])
    # Playing `scale` times faster moves all frequencies by that factor.
    ratio = SAMPLE_RATE / speech.sample_rate / params["scale"]
    # The Fourier method wraps round: silence at the end keeps the start clean, and a length with small
    # factors keeps it fast.
    block = 2205
    padded_length = block * math.ceil((len(speech.samples) + block) / block)
    padded = np.zeros(padded_length, dtype=np.float64)
    padded[: len(speech.samples)] = speech.samples
    samples = resample(padded, round(padded_length * ratio))
    ratio = 1.0 / params["scale"]
    begin = max(0.0, speech.words[0].start * ratio - MARGIN)
    end = speech.words[-1].end * ratio + MARGIN
    samples = samples[round(begin * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
    length = len(samples) / SAMPLE_RATE

    def intervals(items, name):
        rows = []
        for item in items:
            start = min(max(item.start * ratio - begin, 0.0), length)
            stop = min(max(item.end * ratio - begin, 0.0), length)
            if stop > start:
                rows.append({name: item.label, "start": round(start, 4), "end": round(stop, 4)})
        return rows

    words = intervals(speech.words, "word")
    first, last = round(words[0]["start"] * SAMPLE_RATE), round(words[-1]["end"] * SAMPLE_RATE)
    rms = math.sqrt(float(np.mean(samples[first:last] ** 2)))
    samples = samples * (10 ** ((BASE_LEVEL + params["volume_db"]) / 20) / rms)
    for word in params["emphasised"]:
        interval = words[transcript.index(word)]
        times = np.arange(len(samples)) / SAMPLE_RATE
        rise = np.clip((times - interval["start"]) / EMPHASIS_RAMP + 0.5, 0, 1)
        fall = np.clip((interval["end"] - times) / EMPHASIS_RAMP + 0.5, 0, 1)
        samples = samples * 10 ** (EMPHASIS_GAIN * np.minimum(rise, fall) / 20)
    peak = float(np.abs(samples).max())
    if not peak < 1.0:
        raise ValueError(f"{record['transcript']!r} has a peak of {peak:.2f}: lower BASE_LEVEL")
    return samples.astype(np.float32), words, intervals(speech.phones, "phone")


def _write_atomically(path, text):
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text)
    os.replace(temporary, path)


def _worker(job_file, part, parts):
    """Synthesise every ``parts``-th chunk, print a line for each utterance that is done."""
    jobs = json.loads(Path(job_file).read_text())
    synthesizer = EspeakSynthesizer()
    for chunk in jobs["chunks"][part::parts]:
        made = {}
        for key in chunk["keys"]:
            record = jobs["records"][key]
            samples, words, phones = render(record, synthesizer)
            path = Path(jobs["audio_folder"]) / key.split("_")[0] / f"{key}.wav"
            temporary = path.with_name(path.name + ".partial")
            soundfile.write(temporary, samples, SAMPLE_RATE, subtype="PCM_16", format="WAV")
            os.replace(temporary, path)
            made[key] = {"num_samples": len(samples), "words": words, "phones": phones}
            print(key, flush=True)
        _write_atomically(Path(chunk["result"]), json.dumps(made))


def _synthesize(plan, audio_folder, work_folder, num_processes):
    for split in SPLITS:
        (audio_folder / split).mkdir(parents=True, exist_ok=True)
    work_folder.mkdir(parents=True, exist_ok=True)
    records = {key: record for split in SPLITS for key, record in plan[split].items()}
    keys = list(records)
    chunks = [
        {"keys": keys[i : i + 50], "result": str(work_folder / f"chunk_{i // 50:05d}.json")}
        for i in range(0, len(keys), 50)
    ]
    missing = [chunk for chunk in chunks if not Path(chunk["result"]).is_file()]
    if missing:
        job_file = work_folder / "jobs.json"
        wanted = {key: records[key] for chunk in missing for key in chunk["keys"]}
        _write_atomically(
            job_file,
            json.dumps({"audio_folder": str(audio_folder), "chunks": missing, "records": wanted}),
        )
        _run_workers(job_file, len(wanted), min(num_processes, len(missing)))
    made = {}
    for chunk in chunks:
        made.update(json.loads(Path(chunk["result"]).read_text()))
    return made


def _run_workers(job_file, total, num_processes):
    # Fresh small processes: forking this one, which may hold threads of torch, is neither cheap nor safe.
    environment = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
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
        with tqdm(total=total, desc="synthesis", unit="utt", mininterval=1.0) as bar:
            # The pipes hold far more than one worker prints while another is read.
            open_workers = list(workers)
            while open_workers:
                for worker in list(open_workers):
                    if worker.stdout.readline():
                        bar.update()
                    else:
                        open_workers.remove(worker)
        codes = [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
                worker.wait()
            worker.stdout.close()
    if any(codes):
        raise RuntimeError(f"synthesis ended with exit codes {codes}; the reason stands above")


# ------------------------------------------------------------------------------------------- validation
def validate_demo(manifests):
    """Check what evaluation relies on.

    Arguments
    ---------
    manifests : dict
        ``train``, ``valid``, ``test`` -> manifest.

    Returns
    -------
    dict
        Counts for the log: shared 4-grams, voices and parameter tuples, all zero.

    Raises
    ------
    ValueError
        With every fault found: a test sentence that shares four words in a row with another split, a voice
        or parameter tuple in two splits, a label outside its list, a word without a time.
    """
    faults = []
    grams, voices, tuples = {}, {}, {}
    for split in SPLITS:
        records = manifests[split].values()
        grams[split] = set().union(*(_ngrams(record["transcript"]) for record in records))
        voices[split] = {record["params"]["voice"] for record in records}
        tuples[split] = {
            tuple(record["params"][name] for name in ("pitch", "range", "rate", "volume_db"))
            for record in records
        }
        for key, record in manifests[split].items():
            if record["emotion"] not in EMOTIONS:
                faults.append(f"{key}: emotion {record['emotion']!r} is not one of {EMOTIONS}")
            for name, allowed in DESCRIPTOR_VALUES.items():
                if record["descriptors"][name] not in allowed:
                    faults.append(f"{key}: {name} {record['descriptors'][name]!r} is not one of {allowed}")
            if [row["word"] for row in record.get("words", [])] != record["transcript"].split():
                faults.append(f"{key}: the words with times are not those of {record['transcript']!r}")
            if any(word not in record["transcript"].split() for word in record["descriptors"]["emphasis"]):
                faults.append(f"{key}: the emphasised word is not in the sentence")
    counts = {}
    for first, second in (("test", "train"), ("test", "valid"), ("valid", "train")):
        for name, sets in (("4-grams", grams), ("voices", voices), ("parameter tuples", tuples)):
            shared = sets[first] & sets[second]
            counts[f"{name} shared by {first} and {second}"] = len(shared)
            if shared:
                faults.append(
                    f"{first} and {second} share {len(shared)} {name}, for example {next(iter(shared))}"
                )
    if faults:
        shown = "\n".join(faults[:20])
        raise ValueError(f"the demo corpus has {len(faults)} faults:\n{shown}")
    return counts


def _parameters(records):
    names = ("pitch", "range", "rate", "volume_db")
    return np.array([[record["params"][name] for name in names] for record in records])


def _settings_hash(sizes, seed):
    # Every constant of this module shapes the corpus; VERSION stands for its code.
    constants = {name: value for name, value in globals().items() if name.isupper()}
    text = json.dumps([constants, sizes, seed, version("espeakng-loader")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prepare_demo(
    data_folder, save_folder, num_train=3000, num_valid=250, num_test=400, seed=1234, num_processes=2
):
    """Synthesise the corpus and write its manifests; a complete corpus of the same settings is kept.

    An interrupted run goes on where it was. The files depend on the settings and the seed only, not on the
    number of processes.

    Arguments
    ---------
    data_folder : str
        Audio goes to ``<data_folder>/{train,valid,test}``. The manifests call this folder ``{data_root}``.
    save_folder : str
        Where ``train.json``, ``valid.json``, ``test.json`` and ``oracle.json`` go.
    num_train : int
        Utterances of training. Voices: 24.
    num_valid : int
        Utterances of validation, of 2 voices that training has not.
    num_test : int
        Utterances of test, of 4 voices that no other split has.
    seed : int
        Seed of sentences, labels and parameters.
    num_processes : int
        Worker processes.

    Returns
    -------
    dict
        The content of ``oracle.json``.

    Raises
    ------
    ValueError
        If a size is not positive or the corpus fails :func:`validate_demo`.
    """
    sizes = {"train": int(num_train), "valid": int(num_valid), "test": int(num_test)}
    for split, size in sizes.items():
        if size < len(EMOTIONS):
            raise ValueError(f"num_{split} is {size}; it must be at least {len(EMOTIONS)}, one an emotion")
    if int(num_processes) < 1:
        raise ValueError(f"num_processes is {num_processes}; it must be at least 1")
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    fingerprint = _settings_hash(sizes, seed)
    oracle_file = save_folder / "oracle.json"
    if _is_complete(data_folder, save_folder, fingerprint):
        print(f"demo corpus: complete in {data_folder}, kept")
        return json.loads(oracle_file.read_text())
    plan, thresholds = _plan(sizes, seed)
    oracle_file.unlink(missing_ok=True)
    save_folder.mkdir(parents=True, exist_ok=True)
    made = _synthesize(plan, data_folder, data_folder / f".work_{fingerprint}", int(num_processes))
    manifests = {}
    for split in SPLITS:
        manifests[split] = {
            key: {
                "wav": f"{{data_root}}/{split}/{key}.wav",
                "duration": made[key]["num_samples"] / SAMPLE_RATE,
                **record,
                "words": made[key]["words"],
                "phones": made[key]["phones"],
            }
            for key, record in plan[split].items()
        }
    counts = validate_demo(manifests)
    for split in SPLITS:
        _write_atomically(save_folder / f"{split}.json", json.dumps(manifests[split], indent=1))
    roots = {"data_root": str(data_folder)}
    check_and_write(
        manifests,
        data_folder,
        "the embedded corpus",
        logger,
        replacements=roots,
        audio="headers",
        progress=False,
    )
    test = list(manifests["test"].values())
    recalls = oracle_recalls(_parameters(test), [record["emotion"] for record in test])
    report = {
        "settings": fingerprint,
        "ua": float(np.mean(list(recalls.values()))),
        "recall": recalls,
        "thresholds": thresholds,
        "checks": counts,
        "num": {split: len(manifests[split]) for split in SPLITS},
        "hours": sum(row["num_samples"] for row in made.values()) / SAMPLE_RATE / 3600,
        "vocabulary": len(vocabulary()),
    }
    _write_atomically(oracle_file, json.dumps(report, indent=1))
    for path in (data_folder / f".work_{fingerprint}").iterdir():
        path.unlink()
    (data_folder / f".work_{fingerprint}").rmdir()
    print(
        f"demo corpus: {sum(sizes.values())} utterances, {report['hours']:.2f} h; oracle on test from the true "
        f"parameters: UA {report['ua']:.3f}; " + ", ".join(f"{name}: {n}" for name, n in counts.items())
    )
    return report


def _is_complete(data_folder, save_folder, fingerprint):
    oracle_file = save_folder / "oracle.json"
    if not oracle_file.is_file() or json.loads(oracle_file.read_text()).get("settings") != fingerprint:
        return False
    for split in SPLITS:
        manifest_file = save_folder / f"{split}.json"
        if not manifest_file.is_file():
            return False
        for record in json.loads(manifest_file.read_text()).values():
            if not Path(record["wav"].replace("{data_root}", str(data_folder))).is_file():
                return False
    return True


# ------------------------------------------------------------------------------------------------- text
def text_records(num, seed, exclude=()):
    """Draw records without audio, to pretrain a language model on the corpus's kind of text.

    Arguments
    ---------
    num : int
        Number of records.
    seed : int
        Seed of the draw.
    exclude : iterable of str
        Sentences, for example those of test and validation; no record shares four words in a row with them.

    Returns
    -------
    list of dict
        Records with ``id``, ``speaker``, ``gender``, ``transcript``, ``emotion`` and ``descriptors``. The
        thresholds of the descriptors are those of the densities, not of one training set.

    Example
    -------
    >>> first = text_records(3, seed=0)
    >>> again = text_records(3, seed=1, exclude=[record["transcript"] for record in first])
    >>> len(again), sorted(again[0]["descriptors"])
    (3, ['description', 'emphasis', 'gender', 'pitch', 'speed', 'volume'])
    """
    forbidden = set()
    for sentence in exclude:
        forbidden |= _ngrams(sentence)
    speakers = _speakers_of("train")
    reference_rng = np.random.default_rng(0)
    reference = [
        _draw_record(reference_rng, speaker, emotion, parameters, "the box", ["box"])
        for speaker in speakers
        for emotion in EMOTIONS
        for parameters in _draw_parameters(reference_rng, emotion, 25)
    ]
    thresholds = _fit_thresholds(reference)
    rng = np.random.default_rng([int(seed), 7])
    records = []
    attempts = 0
    while len(records) < num:
        attempts += 1
        if attempts > 100 * num + 1000:
            raise ValueError(f"exclude leaves too few sentences: {len(records)} of {num} were found")
        sentence, content = _sentence(rng)
        if _ngrams(sentence) & forbidden:
            continue
        speaker = speakers[int(rng.integers(len(speakers)))]
        emotion = EMOTIONS[int(rng.integers(len(EMOTIONS)))]
        parameters = _draw_parameters(rng, emotion)[0]
        record = _draw_record(rng, speaker, emotion, parameters, sentence, content)
        _describe(record, thresholds, rng)
        del record["params"]
        records.append({"id": f"text_{len(records):06d}", **record})
    return records


def tokenizer_texts(num=4000, seed=0, exclude=()):
    """Text on which a tokenizer is trained: sentences, descriptions, and every word and label value.

    Arguments
    ---------
    num : int
        Number of drawn records.
    seed : int
        Seed of the draw.
    exclude : iterable of str
        As in :func:`text_records`.

    Returns
    -------
    list of str

    Example
    -------
    >>> texts = tokenizer_texts(10)
    >>> all(any(value in text for text in texts) for value in ("angry", "female", "slow", "umbrella"))
    True
    """
    texts = []
    for record in text_records(num, seed, exclude):
        texts += [record["transcript"], record["descriptors"]["description"]]
    texts += vocabulary()
    texts += list(EMOTIONS)
    for name, values in DESCRIPTOR_VALUES.items():
        texts += [f"{name}: {value}" for value in values]
    return texts


if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] == "--worker":
        _worker(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        raise SystemExit("prepare_demo is called by train.py; this program takes --worker JOBS PART PARTS")

"""The embedded corpus for word-level emotional synthesis: every word with its emotion and how strong it is.

Beside the utterances of ``demo_words.py`` (one emotion each, or changing inside the sentence) every word gets an
intensity. How strong an emotion is follows from the true parameters of the sound: their distance from the neutral mean
along the line to the emotion's mean, in deviations. ``intensity_value`` is its rank among the training words of that
emotion, in [0, 1]; ``intensity`` the third that it falls into. Neutral words are low, 0.
"""

import hashlib
import itertools
import json
import logging
from pathlib import Path

import numpy as np

from recipes.Demo import demo_prepare as demo
from recipes.Demo.demo_words import prepare_demo_words
from recipes.ESD.esd_film import read_annotations
from speechbrain_emo.dataio.manifest import (
    ManifestError,
    read_manifest,
    validate_manifest,
    write_manifest,
    write_text_atomically,
)

logger = logging.getLogger(__name__)
INTENSITIES = ("low", "medium", "high")
NEUTRAL = "neutral"
_NAMES = ("pitch", "range", "rate", "volume_db")
#: Labels of the annotator for those of the corpus.
_SHORT = {"angry": "ang", "happy": "hap", "neutral": "neu", "sad": "sad"}
_LABELS = ("emotion", "intensity", "intensity_value")


def strength(emotion, params):
    """How far the sound goes from neutral towards an emotion's mean: 0 at the one, 1 at the other.

    Arguments
    ---------
    emotion : str
        Not neutral.
    params : mapping
        ``pitch``, ``range``, ``rate``, ``volume_db`` as the corpus drew them.

    Returns
    -------
    float

    Example
    -------
    >>> mean = dict(zip(_NAMES, demo.EMOTION_MEANS["sad"]))
    >>> round(strength("sad", mean), 6), round(strength("sad", dict(zip(_NAMES, demo.EMOTION_MEANS["neutral"]))), 6)
    (1.0, 0.0)
    """
    spread = np.array(demo.EMOTION_SPREAD)
    neutral = np.array(demo.EMOTION_MEANS[NEUTRAL])
    direction = (np.array(demo.EMOTION_MEANS[emotion]) - neutral) / spread
    values = (np.array([params[name] for name in _NAMES]) - neutral) / spread
    return float(values @ direction / (direction @ direction))


def _strengths(record):
    """(emotion, strength) of every word; None for neutral ones."""
    segments = record["params"].get("segments")
    if segments is None:
        segments = [
            {**record["params"], "start": 0, "stop": len(record["words"]), "emotion": record["emotion"]}
        ]
    found = [None] * len(record["words"])
    for segment in segments:
        emotion = segment["emotion"]
        value = None if emotion == NEUTRAL else strength(emotion, segment)
        found[segment["start"] : segment["stop"]] = [(emotion, value)] * (segment["stop"] - segment["start"])
    return found


def add_intensities(splits):
    """Give every word ``emotion``, ``intensity`` and ``intensity_value``; the scale is that of the training words.

    Arguments
    ---------
    splits : dict
        ``train`` and others -> records of ``demo_words.py``.

    Returns
    -------
    dict
        The same splits with new records.
    """
    known = {}
    for record in splits["train"].values():
        for emotion, value in _strengths(record):
            if value is not None:
                known.setdefault(emotion, []).append(value)
    ranks = {emotion: np.sort(values) for emotion, values in known.items()}

    def words(record):
        rows = []
        for row, (emotion, value) in zip(record["words"], _strengths(record)):
            rank = 0.0
            if value is not None:
                rank = float(np.searchsorted(ranks[emotion], value) / len(ranks[emotion]))
            level = INTENSITIES[min(int(3 * rank), 2)]
            rows.append({**row, "emotion": emotion, "intensity": level, "intensity_value": round(rank, 4)})
        return rows

    return {
        split: {key: {**record, "words": words(record)} for key, record in records.items()}
        for split, records in splits.items()
    }


def _half_of_the_voices(records):
    """Records of every other training voice, by name."""
    voices = sorted({record["speaker"] for record in records.values()})[::2]
    return {key: record for key, record in records.items() if record["speaker"] in voices}


def prepare_demo_film(
    data_folder,
    demo_manifests,
    words_folder,
    save_folder,
    num_single=3000,
    num_train=600,
    num_valid=100,
    num_test=200,
    voices="all",
    annotator=None,
    seed=1234,
    num_processes=2,
    audio="words",
):
    """Make the embedded corpus, the utterances of mixed emotion and manifests with intensities.

    Writes ``single_<split>.json`` and ``mixed_<split>.json`` for train, valid and test; with half of the voices also
    ``single_rest.json`` and ``mixed_rest.json``, the training utterances of the others; with an annotator also
    ``single_train_annotated.json`` and ``mixed_train_annotated.json``.

    Arguments
    ---------
    data_folder : str
        Of the embedded corpus.
    demo_manifests : str
        Folder of its manifests.
    words_folder : str
        Folder of the manifests of ``demo_words.py``.
    save_folder : str
        Where the manifests go.
    num_single : int
        Utterances of one emotion to train on, in the corpus's order.
    num_train, num_valid, num_test : int
        Utterances of mixed emotion. Other numbers than those of ``hparams/demo_word_emotion.yaml`` need a
        ``words_folder`` and an ``audio`` of their own, as the recordings' names are the same.
    voices : str
        ``all``, or ``half``: every other training voice, to see how unseen voices fare. Give it a ``save_folder`` of
        its own.
    annotator : str, optional
        Folder of a word annotator that labels the training words (:func:`annotate_words`).
    seed : int
        Of sentences, borders and parameters.
    num_processes : int
        Worker processes of the synthesis.
    audio : str
        Folder of the utterances of mixed emotion below ``data_folder``.

    Raises
    ------
    ValueError
        If ``voices`` is unknown.
    """
    if voices not in ("all", "half"):
        raise ValueError(f"voices is {voices!r}; allowed: all, half")
    demo.prepare_demo(data_folder, demo_manifests)
    report = prepare_demo_words(
        data_folder,
        demo_manifests,
        words_folder,
        num_train=num_train,
        num_valid=num_valid,
        num_test=num_test,
        seed=seed,
        num_processes=num_processes,
        audio=audio,
    )
    save_folder = Path(save_folder)
    settings = {"words": report["settings"], "voices": voices, "num_single": int(num_single)}
    done = save_folder / "film.json"
    if not (done.is_file() and json.loads(done.read_text(encoding="utf-8")) == settings):
        _write_manifests(data_folder, demo_manifests, words_folder, save_folder, voices, num_single)
        write_text_atomically(done, json.dumps(settings) + "\n")
    if annotator is not None:
        annotate_words(annotator, data_folder, save_folder)


def _write_manifests(data_folder, demo_manifests, words_folder, save_folder, voices, num_single):
    for kind in ("single", "mixed"):
        files = {
            split: Path(demo_manifests) / f"{split}.json"
            if kind == "single"
            else Path(words_folder) / f"mixed_{split}.json"
            for split in demo.SPLITS
        }
        splits = {split: read_manifest(file, {"data_root": "{data_root}"}) for split, file in files.items()}
        if kind == "single":
            splits["train"] = dict(list(splits["train"].items())[: int(num_single)])
            scale = splits["train"]
        else:
            # One scale for both: that of the utterances of one emotion.
            splits = {**splits, "train": {**scale, **splits["train"]}}
        made = add_intensities(splits)
        if kind == "mixed":
            made["train"] = {key: record for key, record in made["train"].items() if key not in scale}
        if voices == "half":
            kept = _half_of_the_voices(made["train"])
            made["rest"] = {key: record for key, record in made["train"].items() if key not in kept}
            made["train"] = kept
        for split, records in made.items():
            validate_manifest(records, replacements={"data_root": str(data_folder)})
            write_manifest(save_folder / f"{kind}_{split}.json", records)


def annotate_words(annotator, data_folder, save_folder):
    """Let a word annotator hear the training utterances, with the words' true times.

    Beside the true ones every word gets ``annotated``: ``emotion``, ``intensity``, ``intensity_value`` (the arousal),
    which ``word_labels: annotated`` of ``hparams/demo_film.yaml`` trains on. Annotations are kept as JSON lines in a
    folder named by the annotator; an interrupted run goes on where it was.

    Arguments
    ---------
    annotator : str
        Folder of a training or an exported model.
    data_folder : str
        What ``{data_root}`` stands for.
    save_folder : str or pathlib.Path
        Holds ``single_train.json`` and ``mixed_train.json``; ``single_train_annotated.json`` and so on go there.

    Returns
    -------
    float
        Share of the words whose label is the true one.

    Raises
    ------
    ManifestError
        If there is no annotator, or it could use none of the recordings.
    """
    from speechbrain_emo.inference.annotate_corpus import MANIFEST, AnnotationRunError, annotate_corpus
    from speechbrain_emo.inference.safe_loading import MANIFEST_FILE, UnsafeModelError

    save_folder = Path(save_folder)
    model = next(
        (m for m in (Path(annotator), Path(annotator) / "model") if (m / MANIFEST_FILE).is_file()), None
    )
    if model is None:
        raise ManifestError(
            f"{annotator} holds no annotator: train it first (python train.py hparams/demo_word_emotion.yaml)"
        )
    mark = hashlib.sha256((model / MANIFEST_FILE).read_bytes()).hexdigest()[:12]
    right = total = 0
    for kind in ("single", "mixed"):
        records = read_manifest(save_folder / f"{kind}_train.json", {"data_root": "{data_root}"})
        filled = read_manifest(save_folder / f"{kind}_train.json", {"data_root": str(data_folder)})
        lines = save_folder / f"annotations_{mark}" / f"{kind}_train.jsonl"
        try:
            annotate_corpus(model, filled, lines, MANIFEST)
        except (AnnotationRunError, UnsafeModelError) as error:
            raise ManifestError(str(error)) from error
        found, made = read_annotations(lines), {}
        for key, record in records.items():
            if key in found:
                own = [{k: row[k] for k in _LABELS} for row in found[key]]
                words = [{**word, "annotated": label} for word, label in zip(record["words"], own)]
                right += sum(_SHORT[word["emotion"]] == word["annotated"]["emotion"] for word in words)
                total += len(words)
                made[key] = {**record, "words": words}
        if not made:
            raise ManifestError(
                f"{annotator} could use none of the {len(records)} recordings: see {lines}.rejected.jsonl"
            )
        write_manifest(save_folder / f"{kind}_train_annotated.json", made)
    logger.info("%s gives %.1f %% of %d words their true emotion", annotator, 100 * right / total, total)
    return right / total


def prepare_speak_list(manifests, prompts, save_file, label_map, voices="own", prompt_text=True):
    """Write an evaluation list: marked sentences, a neutral prompt of the same voice, the true recording.

    Arguments
    ---------
    manifests : sequence of str
        Of :func:`prepare_demo_film`; one that several hold is taken once.
    prompts : str
        Manifest whose neutral utterances speak the prompts, the first of each voice; it is not evaluated itself.
    save_file : str
        JSON object, id -> record as ``recipes/FEDD/README.md`` describes it.
    label_map : dict
        Label of the corpus -> label of the marks.
    voices : str
        ``own``: each sentence in the voice of its recording. ``prompts``: in the voices of the prompts in turn; the
        recording is another's then, so that shifts of words can be compared with it, distances hold the voice too.
    prompt_text : bool
        Whether the language model hears the prompt too. Without it the prompt gives the flow its voice alone.

    Returns
    -------
    int
        Number of records.

    Raises
    ------
    ValueError
        If ``voices`` is unknown.
    """
    from speechbrain_emo.prompts.markup import EmotionMarkup

    if voices not in ("own", "prompts"):
        raise ValueError(f"voices is {voices!r}; allowed: own, prompts")
    unfilled = {"data_root": "{data_root}"}
    neutral = {}
    for key, record in read_manifest(prompts, unfilled).items():
        if record["emotion"] == NEUTRAL:
            neutral.setdefault(record["speaker"], (key, record))
    in_turn = itertools.cycle(sorted(neutral)) if voices == "prompts" else None
    markup, made = EmotionMarkup(tuple(label_map.values()), INTENSITIES), {}
    for path in manifests:
        for key, record in read_manifest(path, unfilled).items():
            speaker = record["speaker"] if in_turn is None else next(in_turn)
            spoken_by = neutral.get(speaker)
            if spoken_by is None or spoken_by[0] == key:
                continue
            words = record["words"]
            marked = markup.from_words(
                record["transcript"],
                [row["word"] for row in words],
                [label_map[row["emotion"]] for row in words],
                [row["intensity"] for row in words],
            )
            made[key] = {
                "markup": markup.write(marked),
                "text": record["transcript"],
                "speaker": speaker,
                "part": "single" if record["emotion"] else "mixed",
                "transition": None,
                "prompt": spoken_by[1]["wav"],
                "prompt_text": spoken_by[1]["transcript"] if prompt_text else None,
                "protocol": "neutral",
                "reference": record["wav"],
            }
    write_manifest(save_file, made)
    return len(made)

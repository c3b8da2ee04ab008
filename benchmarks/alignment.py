"""Word boundaries of every aligner against truth, on three sets of recordings, in one table.

    demo       test part of the corpus that `make demo` makes: espeak-ng's own word events (English)
    ljspeech   11 recordings of LJSpeech against the output of the Montreal Forced Aligner (English)
    emodb      EmoDB against its hand-made labels (German), without the two speakers that espeak-dtw was tried on

An error is the distance of a word's start or end from the reference's; both count. Texts are the transcripts, so
numbers of words always agree. `right` and `wrong` are the aligner's own mean confidence of utterances with their
text and with another utterance's text of similar length: shares that are (rightly) at least 0.5, and (rightly) below
0.5 or refused. Speed is seconds of speech by seconds of processor time, of this process and its children.

Fair reference: none is measured here. ljspeech's is itself an aligner; espeak-dtw on `demo` aligns espeak-ng with
espeak-ng, and shows only that the search is right. The aligners mfa and ctc are measured where they can be: with
``mfa`` on PATH and with --ctc.
"""

import os
import random
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the file itself runs, too

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.common import Table, argument_parser, print_tables
from recipes.EmoDB.emodb_prepare import SPEAKERS, read_corpus
from speechbrain_emo.alignment import AlignmentError, AlignmentItem, make_aligner
from speechbrain_emo.alignment.imported import import_textgrid
from speechbrain_emo.dataio.audio import load_audio
from speechbrain_emo.dataio.manifest import read_manifest

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLE = "python -m benchmarks.alignment --utterances 60 --data ../shared/data"
SETS = {"demo": "en", "ljspeech": "en", "emodb": "de"}
# What the constants of espeak-dtw were chosen on.
EMODB_DEVELOPMENT = ("03", "08")
THRESHOLD = 0.5


@dataclass
class Utterance:
    """A recording, its text and its true word times.

    Example
    -------
    >>> Utterance("a", np.zeros(16000, np.float32), "so", [("so", 0.1, 0.4)]).duration
    1.0
    """

    name: str
    samples: np.ndarray
    text: str
    words: list

    @property
    def duration(self):
        """Seconds, at 16 kHz."""
        return len(self.samples) / 16000


@dataclass
class Score:
    """What one aligner did on one set.

    Example
    -------
    >>> score = Score(errors=[0.01, 0.03, 0.02], right=[0.9, 0.4], wrong=[0.1, None])
    >>> score.median, score.accepted, score.rejected
    (0.02, 0.5, 1.0)
    """

    errors: list = field(default_factory=list)
    failed: int = 0
    speech: float = 0.0
    seconds: float = 0.0
    right: list = field(default_factory=list)
    wrong: list = field(default_factory=list)

    @property
    def median(self):
        """Of the errors, in seconds."""
        return float(np.median(self.errors))

    @property
    def accepted(self):
        """Share of right texts whose confidence is not low; None where there are no confidences."""
        return None if None in self.right else statistics.mean(value >= THRESHOLD for value in self.right)

    @property
    def rejected(self):
        """Share of wrong texts that were refused (None) or have a low confidence; None without wrong texts."""
        if not self.wrong:
            return None
        return statistics.mean(value is None or value < THRESHOLD for value in self.wrong)


def _every(items, count):
    """So many items, evenly spread."""
    items = list(items)
    return [items[i * len(items) // count] for i in range(count)] if 0 < count < len(items) else items


def load_set(name, count, data, corpus):
    """Utterances of a set.

    Arguments
    ---------
    name : str
        Of ``SETS``.
    count : int
        How many, evenly spread over the set.
    data : pathlib.Path
        Holds ``ljspeech_aligned`` and ``emodb``.
    corpus : pathlib.Path
        The demo's corpus.

    Returns
    -------
    list of Utterance

    Raises
    ------
    FileNotFoundError
        If the set is not there.
    """
    if name == "demo":
        manifest = corpus / "manifests" / "test.json"
        if not manifest.is_file():
            raise FileNotFoundError(f"{manifest} is missing: run `make demo`, or give --corpus")
        records = read_manifest(manifest, replacements={"data_root": str(corpus)})
    elif name == "ljspeech":
        found = []
        for path in sorted((data / "ljspeech_aligned").glob("*.TextGrid")):
            truth = import_textgrid(path)
            words = [(w.label, w.start, w.end) for w in truth.words]
            found.append(
                Utterance(path.stem, load_audio(path.with_suffix(".wav")).numpy(), truth.text, words)
            )
        if not found:
            raise FileNotFoundError(f"{data / 'ljspeech_aligned'} holds no TextGrid: give --data")
        return _every(found, count)
    else:
        if not (data / "emodb" / "wav").is_dir():
            raise FileNotFoundError(f"{data / 'emodb'} is missing: give --data")
        records, _ = read_corpus(data / "emodb")
        records = {
            key: {**record, "wav": record["wav"].replace("{data_root}", str(data / "emodb"))}
            for key, record in records.items()
            if "words" in record and record["speaker"] in set(SPEAKERS) - set(EMODB_DEVELOPMENT)
        }
    return [
        Utterance(
            key,
            load_audio(records[key]["wav"]).numpy(),
            records[key]["transcript"],
            [(word["word"], word["start"], word["end"]) for word in records[key]["words"]],
        )
        for key in _every(sorted(records), count)
    ]


def _processor_seconds():
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(aligner, utterances, progress=True):
    """Align a set with its texts and with others.

    Arguments
    ---------
    aligner : Aligner
        To be measured.
    utterances : list of Utterance
        The set.
    progress : bool
        Whether a bar is shown.

    Returns
    -------
    Score
    """
    score = Score(speech=sum(utterance.duration for utterance in utterances))
    items = [AlignmentItem(u.name, u.text, samples=u.samples, sample_rate=16000) for u in utterances]
    # The first utterance loads models and compiles: it is not part of the time.
    list(aligner.align_corpus(items[:1]))
    start = _processor_seconds()
    bar = tqdm(aligner.align_corpus(items), total=len(items), leave=False, disable=None if progress else True)
    results = [result for _, result in bar]
    score.seconds = _processor_seconds() - start
    for utterance, result in zip(utterances, results, strict=True):
        if isinstance(result, Exception):
            score.failed += 1
            continue
        for word, (_, begin, end) in zip(result.words, utterance.words, strict=True):
            score.errors += [abs(word.start - begin), abs(word.end - end)]
        score.right.append(result.mean_confidence)
    for _, result in aligner.align_corpus(_with_other_texts(items)):
        score.wrong.append(None if isinstance(result, Exception) else result.mean_confidence)
    return score


def _with_other_texts(items, seed=0):
    """The items, each with the text of another that is among the five nearest in length."""
    generator = random.Random(seed)
    texts = sorted({item.text for item in items})
    for item in items:
        others = sorted((t for t in texts if t != item.text), key=lambda t: abs(len(t) - len(item.text)))[:5]
        if not others:
            continue
        yield AlignmentItem(
            item.name, generator.choice(others), samples=item.samples, sample_rate=item.sample_rate
        )


def run(
    sets=tuple(SETS), aligners=("pocketsphinx", "espeak-dtw"), count=60, data=None, corpus=None, ctc=None
):
    """The table.

    Arguments
    ---------
    sets, aligners : sequence of str
        Which of them.
    count : int
        Utterances of each set.
    data, corpus : str, optional
        Folders of the real recordings and of the demo's corpus.
    ctc : str, optional
        Checkpoint for the aligner ctc.

    Returns
    -------
    list of Table
    """
    data = Path(data or os.environ.get("SPEECHBRAIN_EMO_DATA", REPOSITORY.parent / "shared" / "data"))
    corpus = Path(corpus or REPOSITORY / "results" / "demo_corpus")
    table = Table(
        "Word boundaries",
        ["set", "aligner", "utterances", "words", "failed", "median ms", "90 % ms", "over 100 ms", "x real time",
         "right", "wrong"],
    )  # fmt: skip
    for name in sets:
        try:
            utterances = load_set(name, count, data, corpus)
        except FileNotFoundError as error:
            table.notes.append(f"{name}: not measured: {error}.")
            continue
        for aligner_name in aligners:
            options = {"language": SETS[name], **({"source": ctc} if aligner_name == "ctc" else {})}
            try:
                score = measure(make_aligner(aligner_name, **options), utterances)
            except AlignmentError as error:
                table.notes.append(f"{aligner_name} on {name}: not measured: {error}.")
                continue
            table.rows.append(_row(name, aligner_name, utterances, score))
    table.notes.append(
        "Medians over starts and ends of words. right: share of right texts with a mean confidence of at least "
        f"{THRESHOLD}; wrong: share of wrong texts below it or refused."
    )
    return [table]


def _row(name, aligner, utterances, score):
    def share(value):
        return "-" if value is None else f"{value:.2f}"

    errors = 1000 * np.array(score.errors)
    return [
        name,
        aligner,
        len(utterances),
        sum(len(u.words) for u in utterances),
        score.failed,
        f"{np.median(errors):.1f}",
        f"{np.percentile(errors, 90):.1f}",
        f"{100 * (errors > 100).mean():.1f} %",
        f"{score.speech / score.seconds:.1f}",
        share(score.accepted),
        share(score.rejected if score.accepted is not None else None),
    ]


def main(arguments=None):
    """Command line."""
    parser = argument_parser(__doc__, EXAMPLE, rounds=1)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="(all)")
    parser.add_argument(
        "--aligners",
        nargs="+",
        choices=("pocketsphinx", "espeak-dtw", "mfa", "ctc"),
        default=["pocketsphinx", "espeak-dtw"],
        help="(%(default)s)",
    )
    parser.add_argument("--utterances", type=int, default=60, help="of each set (%(default)s)")
    parser.add_argument("--data", help="folder of ljspeech_aligned and emodb ($SPEECHBRAIN_EMO_DATA)")
    parser.add_argument("--corpus", help="folder of the demo's corpus (results/demo_corpus)")
    parser.add_argument("--ctc", help="checkpoint for the aligner ctc")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print_tables(
        run(options.sets, options.aligners, options.utterances, options.data, options.corpus, options.ctc)
    )


if __name__ == "__main__":
    main()

"""The embedded conversations: two espeak-ng voices talk, and the next line's emotion hangs on what was heard before.

Voices, the densities of the emotions and the rendering are those of ``recipes/Demo``; an intensity (weak, medium,
strong) moves the density away from neutral. Sentences carry no emotion but for their first word, a cue that is right
only sometimes. The next line's emotion follows the other speaker's last one and the speaker's own last one by a rule
that also errs, so that the best possible accuracy is known: the Bayes classifier that knows the rule, the true labels
of the history and the next line's words (``oracle.json``). Test voices and sentences occur nowhere in training.

    other  angry -> sad     happy -> happy   sad -> neutral (own: angry -> angry)   neutral -> own last emotion
"""

import hashlib
import json
import random
from importlib.metadata import version
from pathlib import Path

import numpy as np

from recipes.Demo import demo_prepare as demo
from recipes.DemoDialogue import demodialogue_prepare as dialogues
from speechbrain_emo.dataio.dialogue import make_turn, records_of_lines
from speechbrain_emo.dataio.manifest import validate_manifest, validate_splits, write_manifest
from speechbrain_emo.lobes.tiny_llm import build_tiny_llm

VERSION = 1
CORPUS, TEXT_CORPUS = "democonversation", "democonversation_text"
EMOTIONS = demo.EMOTIONS
INTENSITIES = ("weak", "medium", "strong")
#: Factor on the distance of an emotion's mean from neutral's, and on all deviations of the demo's densities.
STRENGTH = {"weak": 0.75, "medium": 1.05, "strong": 1.35}
SPREAD = 0.6
CUES = {"angry": "no", "happy": "oh", "neutral": "well", "sad": "alas"}
P_RULE = 0.72  # that the next emotion is the rule's
P_CUE = 0.45  # that the first word is the emotion's own cue
P_SAME = 0.7  # that the intensity stays that of the line before
LENGTHS = (3, 4, 5, 6, 7, 8, 9, 12)
MAX_HISTORY = 10


def rule(other, own):
    """The most likely emotion of the next line.

    Arguments
    ---------
    other : str
        Emotion of the line before, by the other speaker.
    own : str or None
        The speaker's own last emotion.

    Returns
    -------
    str

    Example
    -------
    >>> rule("angry", None), rule("neutral", "happy"), rule("sad", "angry")
    ('sad', 'happy', 'angry')
    """
    if other == "angry":
        return "sad"
    if other == "happy":
        return "happy"
    if other == "sad":
        return "angry" if own == "angry" else "neutral"
    return own or "neutral"


def emotion_probabilities(other, own):
    """Probability of each emotion of the next line, before its words are known: dict.

    Example
    -------
    >>> round(sum(emotion_probabilities("sad", None).values()), 6)
    1.0
    """
    chosen = rule(other, own)
    rest = (1 - P_RULE) / (len(EMOTIONS) - 1)
    return {e: P_RULE if e == chosen else rest for e in EMOTIONS}


def posterior(other, own, cue):
    """Probability of each emotion of the next line, its first word known: dict.

    Example
    -------
    >>> p = posterior("neutral", "neutral", "oh")
    >>> p["neutral"] > p["happy"] > p["sad"]
    True
    """
    prior = emotion_probabilities(other, own)
    miss = (1 - P_CUE) / (len(EMOTIONS) - 1)
    weights = {e: p * (P_CUE if CUES[e] == cue else miss) for e, p in prior.items()}
    total = sum(weights.values())
    return {e: w / total for e, w in weights.items()}


def intensity_probabilities(previous):
    """Probability of each intensity after a line of that intensity, or after a neutral one (None).

    Example
    -------
    >>> intensity_probabilities("weak")["weak"]
    0.7
    """
    if previous is None:
        return {"weak": 0.25, "medium": 0.5, "strong": 0.25}
    rest = (1 - P_SAME) / (len(INTENSITIES) - 1)
    return {i: P_SAME if i == previous else rest for i in INTENSITIES}


def draw_labels(rng, length):
    """(emotion, intensity or None, cue) of every line of a conversation in which two speakers take turns.

    Example
    -------
    >>> len(draw_labels(random.Random(0), 5))
    5
    """
    lines = []
    for i in range(length):
        if i == 0:
            weights = dict.fromkeys(EMOTIONS, 1.0)
        else:
            weights = emotion_probabilities(lines[i - 1][0], lines[i - 2][0] if i > 1 else None)
        emotion = rng.choices(list(weights), list(weights.values()))[0]
        strength = intensity_probabilities(lines[i - 1][1] if i else None)
        intensity = rng.choices(list(strength), list(strength.values()))[0] if emotion != "neutral" else None
        own = rng.random() < P_CUE
        cue = CUES[emotion] if own else rng.choice([c for e, c in CUES.items() if e != emotion])
        lines.append((emotion, intensity, cue))
    return lines


def oracle(records):
    """What the Bayes classifier reaches that knows the rule, the true history and the next line's words.

    Arguments
    ---------
    records : iterable of dict
        With ``turns`` and ``response``.

    Returns
    -------
    dict
        ``emotion``: accuracy; ``pair``: accuracy of emotion and intensity together; ``expected``: the mean of the
        highest posterior of the emotion, which does not hang on the draw.
    """
    emotion = pair = expected = count = 0
    for record in records:
        turns, response = record["turns"], record["response"]
        other = turns[-1]["emotion"]
        own = [t for t in turns if t["speaker"] == response["speaker"]]
        p = posterior(other, own[-1]["emotion"] if own else None, response["text"].split()[0])
        best = max(p, key=p.get)
        strength = intensity_probabilities(turns[-1]["descriptors"].get("intensity"))
        pairs = {
            (e, i): p[e] * (strength[i] if i else 1.0)
            for e in EMOTIONS
            for i in ((None,) if e == "neutral" else INTENSITIES)
        }
        true = response["emotion"], response["descriptors"].get("intensity")
        emotion += best == true[0]
        pair += max(pairs, key=pairs.get) == true
        expected += p[best]
        count += 1
    return {"emotion": emotion / count, "pair": pair / count, "expected": expected / count}


def parameters(rng, emotion, intensity):
    """Synthesis parameters of a line, float (4,): the demo's density, moved by the intensity."""
    neutral = np.asarray(demo.EMOTION_MEANS["neutral"])
    own = np.asarray(demo.EMOTION_MEANS[emotion])
    drawn = demo._draw_parameters(rng, emotion, 1)[0] - own
    return neutral + (own - neutral) * STRENGTH.get(intensity, 1.0) + SPREAD * drawn


# ------------------------------------------------------------------------------------------------- plan
def _text(rng, cue):
    return f"{cue} {dialogues.sentence(rng)[0]}"


def _conversations(num, key, seed, exclude=()):
    """Labels and words of conversations; no sentence shares four words in a row with ``exclude``."""
    forbidden = set().union(set(), *(demo._ngrams(s) for s in exclude))
    rng = random.Random(f"{key} {seed}")
    made = []
    for i in range(num):
        lines = []
        for emotion, intensity, cue in draw_labels(rng, LENGTHS[i % len(LENGTHS)]):
            while True:
                text = _text(rng, cue)
                if not demo._ngrams(" ".join(text.split()[1:])) & forbidden:
                    break
            lines.append({"emotion": emotion, "intensity": intensity, "text": text})
        made.append(lines)
    return made


def _plan(sizes, seed):
    """Conversations of every split, and what to synthesise."""
    rng = np.random.default_rng(seed)
    plan, talks, exclude = {}, {}, []
    for split in ("test", "valid", "train"):
        drawn = _conversations(sizes[split], split, seed, exclude)
        exclude += [" ".join(line["text"].split()[1:]) for lines in drawn for line in lines]
        talks[split] = drawn
    for split in demo.SPLITS:
        speakers = demo._speakers_of(split)
        plan[split] = {}
        for number, lines in enumerate(talks[split]):
            first = number % len(speakers)
            second = (first + 1 + (number // len(speakers)) % (len(speakers) - 1)) % len(speakers)
            for i, line in enumerate(lines):
                voice = speakers[(first, second)[i % 2]]
                drawn = parameters(rng, line["emotion"], line["intensity"])
                record = demo._draw_record(
                    rng, voice, line["emotion"], drawn, line["text"], [line["text"].split()[-1]]
                )
                record["params"]["emphasised"] = []
                line.update(speaker=record["speaker"], gender=record["gender"])
                line["key"] = f"{split}_{number:04d}_{i:02d}"
                plan[split][line["key"]] = record
    return plan, talks


def _turns(lines, made=None, folder_of=None):
    turns = []
    for i, line in enumerate(lines):
        recording = None
        if made is not None:
            key = line["key"]
            recording = {
                "wav": f"{{data_root}}/{folder_of(key)}/{key}.wav",
                "duration": made[key]["num_samples"] / demo.SAMPLE_RATE,
            }
        descriptors = {"intensity": line["intensity"]} if line["intensity"] else {}
        speaker = line.get("speaker") or f"text_{i % 2}"
        turns.append(
            make_turn(
                "user", line["text"], recording, speaker, line.get("gender"), line["emotion"], descriptors
            )
        )
    return turns


def _settings(sizes, seed):
    names = (
        "VERSION EMOTIONS INTENSITIES STRENGTH SPREAD CUES P_RULE P_CUE P_SAME LENGTHS MAX_HISTORY".split()
    )
    constants = {name: globals()[name] for name in names}
    base = {name: value for name, value in vars(demo).items() if name.isupper()}
    pools = [dialogues.THINGS, dialogues.ADJECTIVES, dialogues.PEOPLE, dialogues.PLACES, dialogues.VERBS]
    text = json.dumps([constants, base, pools, sizes, seed, version("espeakng-loader")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prepare_demo_conversation(
    data_folder,
    save_folder,
    num_train=240,
    num_valid=24,
    num_test=48,
    num_text=700,
    seed=1234,
    num_processes=2,
):
    """Synthesise the conversations and write a record for every line that has a history.

    ``train.json`` also holds conversations in writing (``corpus`` is ``democonversation_text``), which stand in for the
    text dialogues of stage 2-1; their sentences are not those of the test part.

    Arguments
    ---------
    data_folder : str
        Audio goes to ``<data_folder>/{train,valid,test}``; manifests call it ``{data_root}``.
    save_folder : str
        Where ``train.json``, ``valid.json``, ``test.json``, ``lines.json`` (every recorded line with its words and
        phones, for the synthesiser) and ``oracle.json`` go.
    num_train, num_valid, num_test : int
        Conversations of 3 to 12 lines.
    num_text : int
        Conversations in writing.
    seed : int
        Of everything that is drawn.
    num_processes : int
        Worker processes.

    Returns
    -------
    dict
        The content of ``oracle.json``.

    Raises
    ------
    ValueError
        If a part has no conversation.
    """
    sizes = {"train": int(num_train), "valid": int(num_valid), "test": int(num_test), "text": int(num_text)}
    for split, size in sizes.items():
        if size < 1:
            raise ValueError(f"num_{split} is {size}; it must be at least 1")
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    fingerprint = _settings(sizes, seed)
    oracle_file = save_folder / "oracle.json"
    if oracle_file.is_file():
        kept = json.loads(oracle_file.read_text(encoding="utf-8"))
        if kept.get("settings") == fingerprint:
            print(f"demo conversations: complete in {data_folder}, kept; {_oracle_line(kept)}")
            return kept
    plan, talks = _plan(sizes, seed)
    save_folder.mkdir(parents=True, exist_ok=True)
    oracle_file.unlink(missing_ok=True)
    work = data_folder / f".work_{fingerprint}"
    made = demo._synthesize(plan, data_folder, work, int(num_processes))

    def folder_of(key):
        return key.split("_")[0]

    manifests, lines_of = {}, {}
    for split in demo.SPLITS:
        manifests[split] = {}
        for number, lines in enumerate(talks[split]):
            turns = _turns(lines, made, folder_of)
            manifests[split].update(
                records_of_lines(turns, f"{split}_{number:04d}", max_history=MAX_HISTORY, corpus=CORPUS)
            )
            for line, turn in zip(lines, turns, strict=True):
                lines_of[line["key"]] = {
                    **turn["recording"],
                    **{k: turn[k] for k in ("speaker", "gender", "emotion", "descriptors")},
                    "transcript": turn["text"],
                    "corpus": CORPUS,
                    "words": made[line["key"]]["words"],
                    "phones": made[line["key"]]["phones"],
                }
    held_out = [" ".join(line["text"].split()[1:]) for s in ("test", "valid") for t in talks[s] for line in t]
    for name, part, num in (("train", "text_train", sizes["text"]), ("valid", "text_valid", 30)):
        for number, lines in enumerate(_conversations(num, part, seed, held_out)):
            manifests[name].update(
                records_of_lines(
                    _turns(lines), f"{part}_{number:05d}", max_history=MAX_HISTORY, corpus=TEXT_CORPUS
                )
            )
    root = {"data_root": str(data_folder)}
    for split, records in manifests.items():
        spoken = {k: r for k, r in records.items() if r["corpus"] == CORPUS}
        validate_manifest(spoken, labels=EMOTIONS, replacements=root)
        write_manifest(save_folder / f"{split}.json", records)
    validate_splits(
        {s: {k: r for k, r in manifests[s].items() if r["corpus"] == CORPUS} for s in demo.SPLITS}
    )
    validate_manifest(lines_of, labels=EMOTIONS, replacements=root)
    write_manifest(save_folder / "lines.json", lines_of)
    report = {
        "settings": fingerprint,
        **oracle(manifests["test"].values()),
        "num": {split: len(records) for split, records in manifests.items()},
        "hours": sum(row["num_samples"] for row in made.values()) / demo.SAMPLE_RATE / 3600,
        "lines": len(lines_of),
    }
    oracle_file.write_text(json.dumps(report, indent=1), encoding="utf-8")
    for path in work.iterdir():
        path.unlink()
    work.rmdir()
    print(
        f"demo conversations: {len(lines_of)} lines, {report['hours']:.2f} h, records {report['num']}; "
        f"{_oracle_line(report)}"
    )
    return report


def _oracle_line(report):
    return (
        f"oracle of the next line on test, from the true history and the words: emotion {report['emotion']:.3f} "
        f"(expected {report['expected']:.3f}), emotion and intensity {report['pair']:.3f}"
    )


def prepare_demo_lines(data_folder, manifest_folder, save_folder, valid_every=20, test_every=12):
    """Lines for the synthesiser: those of the training voices, whole conversations held out.

    Arguments
    ---------
    data_folder, manifest_folder : str
        Of the conversations, which are made where they are not there.
    save_folder : str
        Where ``train.json``, ``valid.json`` and ``test.json`` go.
    valid_every, test_every : int
        Every so many-th conversation is held out.
    """
    prepare_demo_conversation(data_folder, manifest_folder)
    lines = json.loads((Path(manifest_folder) / "lines.json").read_text(encoding="utf-8"))
    parts = {"train": {}, "valid": {}, "test": {}}
    for key, record in lines.items():
        split, number, _ = key.split("_")
        if split != "train":
            continue
        part = "train"
        if int(number) % test_every == 0:
            part = "test"
        elif int(number) % valid_every == 1:
            part = "valid"
        parts[part][key] = record
    for part, records in parts.items():
        write_manifest(Path(save_folder) / f"{part}.json", records)


def prepare_conversation_text(
    save_folder, llm_folder, wordings=(), num_train=1500, num_valid=60, vocab_size=420, seed=4321, model=None
):
    """Write text for a small language model to learn to read by, and the model itself with random weights.

    The labels of these conversations are drawn at random, not by the rule: reading is learned here (who felt what, how
    strongly), and the rule in stage 2-1.

    Arguments
    ---------
    save_folder : str
        Where ``train.json`` and ``valid.json`` go.
    llm_folder : str
        Where the initial model and its tokenizer go.
    wordings : sequence of str
        Prompts whose words the tokenizer should know.
    num_train, num_valid : int
        Numbers of conversations.
    vocab_size : int
        Of the tokenizer.
    seed : int
        Of the draw and the initial weights.
    model : dict, optional
        Sizes of the model: keywords of ``build_tiny_llm``.
    """
    wordings = [str(w) for w in wordings]
    wanted = json.dumps([VERSION, num_train, num_valid, vocab_size, seed, wordings, dict(model or {})])
    stamp = Path(save_folder) / "settings.json"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    rng = random.Random(f"reading {seed}")
    parts = {"train": {}, "valid": {}}
    for part, num in (("train", num_train), ("valid", num_valid)):
        for number in range(num):
            lines = []
            for _ in range(rng.choice((2, 3, 4, 5, 6))):
                emotion = rng.choice(EMOTIONS)
                intensity = rng.choice(INTENSITIES) if emotion != "neutral" else None
                lines.append(
                    {
                        "emotion": emotion,
                        "intensity": intensity,
                        "text": _text(rng, rng.choice(list(CUES.values()))),
                    }
                )
            turns = _turns(lines)
            name = f"{part}_{number:05d}"
            last = records_of_lines(turns, name, min_history=len(turns) - 1, corpus="reading")
            # A source of text has no recording: the emotion of "the recording" is read from its label.
            parts[part].update({k: {**r, "audios": [{"wav": "", "duration": 0.0}]} for k, r in last.items()})
    Path(save_folder).mkdir(parents=True, exist_ok=True)
    for part, records in parts.items():
        write_manifest(Path(save_folder) / f"{part}.json", records)
    texts = [t["text"] for r in list(parts["train"].values())[:1500] for t in r["turns"]]
    words = [*dialogues.vocabulary(), *EMOTIONS, *INTENSITIES, *CUES.values()]
    texts += [" ".join(words), " " + " ".join(reversed(words))] * 40
    texts += [w for wording in wordings for w in [wording] * 40]
    build_tiny_llm(llm_folder, texts, vocab_size=vocab_size, seed=seed, **(model or {}))
    stamp.write_text(wanted, encoding="utf-8")

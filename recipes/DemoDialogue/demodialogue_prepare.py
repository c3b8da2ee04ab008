"""The embedded dialogue corpus: spoken turns from espeak-ng whose right answer hangs on voice, words and context.

Voices, the densities of the emotions and the rendering are those of ``recipes/Demo``. A user speaks up to five turns;
the assistant answers in writing, by a rule: the emotion of the last turn chooses the opening, the last turn's thing is
named, and the thing of the turn before it. The same words in another style call for another answer, and so does the
same utterance after other words. Test voices and sentences occur nowhere in training.

    angry  "please calm down about the lamp"        happy    "how nice to hear of the lamp"
    sad    "i am so sorry about the lamp"           neutral  "i have noted the lamp"
    later in a dialogue: "... the lamp and the camera", where the camera was the thing of the turn before
"""

import hashlib
import json
import logging
import random
from importlib.metadata import version
from pathlib import Path

import numpy as np

from recipes.Demo import demo_prepare as demo
from speechbrain_emo.dataio.check import check_and_write
from speechbrain_emo.dataio.manifest import validate_manifest, validate_splits, write_manifest
from speechbrain_emo.lobes.tiny_llm import build_tiny_llm

logger = logging.getLogger(__name__)

VERSION = 2
EMOTIONS = demo.EMOTIONS
# Factors on the deviations of the demo's densities (pitch, range, rate, volume): the best guess of the emotion stays
# below 0.90. espeak-ng's range has no room for more.
SPREAD = (1.2, 1.0, 1.2, 1.2)
MOST_HISTORY = 4

THINGS = demo.THINGS[:16]
ADJECTIVES = demo.ADJECTIVES[:8]
PEOPLE = demo.PEOPLE[:8]
PLACES = demo.PLACES[:8]
VERBS = tuple(demo.VERBS.values())[:8]
PREPOSITIONS = ("near", "behind", "under")
DETERMINERS = ("the", "my", "your", "our")
PRONOUNS = ("we", "they", "she")

# The demo's values in words of their own, so that a word names its field.
VALUES = {
    "pitch": {"low": "low", "normal": "middle", "high": "high"},
    "energy": {"low": "soft", "normal": "moderate", "high": "loud"},
    "tempo": {"slow": "slow", "normal": "steady", "fast": "fast"},
}
OPENINGS = {
    "angry": "please calm down about",
    "happy": "how nice to hear of",
    "neutral": "i have noted",
    "sad": "i am so sorry about",
}
FILLER = "~"


def sentence(rng):
    """Draw a sentence and its thing.

    Arguments
    ---------
    rng : random.Random

    Returns
    -------
    tuple of str
        Sentence and thing.

    Example
    -------
    >>> words, thing = sentence(random.Random(0))
    >>> thing in words.split()
    True
    """
    thing, adjective, determiner = rng.choice(THINGS), rng.choice(ADJECTIVES), rng.choice(DETERMINERS)
    pattern = rng.randrange(3)
    if pattern == 0:
        words = [rng.choice(DETERMINERS), rng.choice(PEOPLE), rng.choice(VERBS), determiner, adjective, thing]
    elif pattern == 1:
        words = [rng.choice(PRONOUNS), rng.choice(VERBS), determiner, adjective, thing]
    else:
        return _placed(rng)
    return " ".join(words), thing


def _placed(rng):
    thing = rng.choice(THINGS)
    words = [rng.choice(DETERMINERS), rng.choice(ADJECTIVES), thing, "is", rng.choice(PREPOSITIONS), "the"]
    return " ".join([*words, rng.choice(PLACES)]), thing


def split_of(words):
    """The split that may hold a sentence with a place: every preposition trains, on other things than it is tested.

    Of "ladder is under the library" there are few combinations, and sentences of different splits share no four
    words in a row: without shares of their own, the test sentences would take every place out of training.

    Arguments
    ---------
    words : str
        A sentence of :func:`sentence`.

    Returns
    -------
    str or None
        None: any split.

    Example
    -------
    >>> split_of("my green ladder is under the library"), split_of("we carried the green ladder")
    ('train', None)
    """
    parts = words.split()
    if "is" not in parts:
        return None
    preposition = PREPOSITIONS.index(parts[4])
    shares = {(THINGS.index(parts[2]) + preposition) % 5, (PLACES.index(parts[6]) + preposition) % 4}
    if shares == {0}:
        return "test"
    if shares == {1}:
        return "valid"
    # Neither half of a test or validation sentence.
    return "train" if not shares & {0, 1} else "none"


def vocabulary():
    """All words that the user can say.

    Example
    -------
    >>> 50 < len(vocabulary()) < 70
    True
    """
    pools = (THINGS, ADJECTIVES, PEOPLE, PLACES, VERBS, PREPOSITIONS, DETERMINERS, PRONOUNS, ("is",))
    return sorted({word for pool in pools for word in pool})


def answer(emotion, thing, previous=None):
    """What the assistant should say.

    Arguments
    ---------
    emotion : str
        Of the last turn.
    thing : str
        Of the last turn.
    previous : str, optional
        Thing of the turn before.

    Returns
    -------
    str

    Example
    -------
    >>> answer("sad", "lamp", "camera")
    'i am so sorry about the lamp and the camera'
    """
    text = f"{OPENINGS[emotion]} the {thing}"
    return text if previous is None else f"{text} and the {previous}"


def stretched(words, rng):
    """A sentence as frames at about 10 Hz spell it: words repeated, fillers between.

    Example
    -------
    >>> set(stretched("the lamp", random.Random(1)).split()) <= {"the", "lamp", FILLER}
    True
    """
    out = []
    for word in words.split():
        out += (
            [FILLER] * rng.choice((0, 0, 1, 2))
            + [word] * rng.choice((1, 1, 2))
            + [FILLER] * rng.choice((0, 1))
        )
    return " ".join(out)


# ---------------------------------------------------------------------------------------------- emotion
def _parameters(rng, emotion, size):
    mean = np.asarray(demo.EMOTION_MEANS[emotion])
    return mean + np.asarray(SPREAD) * (demo._draw_parameters(rng, emotion, size) - mean)


def oracle_recalls(parameters, emotions):
    """Recall of each emotion by the Bayes classifier that knows the true parameters and densities.

    Arguments
    ---------
    parameters : numpy.ndarray
        float, shape (utterances, 4): pitch, log range, log rate, volume.
    emotions : list of str
        True labels.

    Returns
    -------
    dict
        Emotion -> recall.
    """
    means = np.array([demo.EMOTION_MEANS[e] for e in EMOTIONS])
    z = (np.asarray(parameters)[:, None, :] - means) / (np.asarray(SPREAD) * demo.EMOTION_SPREAD)
    density = np.where((np.abs(z) > demo.CUT + 1e-2).any(-1), -np.inf, -0.5 * (z**2).sum(-1))
    guesses, labels = np.array(EMOTIONS)[density.argmax(1)], np.array(emotions)
    return {e: float((guesses[labels == e] == e).mean()) for e in EMOTIONS if e in labels}


# ------------------------------------------------------------------------------------------------- plan
def _draw(rng, speaker, emotion, parameters, words):
    record = demo._draw_record(rng, speaker, emotion, parameters, words, [words.split()[0]])
    # A stressed word would be one more cause of loudness and tempo.
    record["params"]["emphasised"] = []
    return record


def _describe(record, thresholds):
    made = {**record, "params": record["params"]}
    demo._describe(made, thresholds, np.random.default_rng(0))
    own = made["descriptors"]
    record["descriptors"] = {
        "gender": own["gender"],
        "pitch": VALUES["pitch"][own["pitch"]],
        "tempo": VALUES["tempo"][own["speed"]],
        "energy": VALUES["energy"][own["volume"]],
    }


def _sentences(sizes, seed):
    """Sentences of every split; those of test and valid share no four words in a row with any other split."""
    rng = random.Random(f"sentences {seed}")
    drawn, forbidden = {}, {split: set() for split in demo.SPLITS}
    for split in ("test", "valid", "train"):
        found = []
        for _ in range(400 * sizes[split] + 1000):
            if len(found) == sizes[split]:
                break
            words, thing = sentence(rng)
            while split_of(words) not in (None, split):
                words, thing = _placed(rng)
            if demo._ngrams(words) & forbidden[split]:
                continue
            found.append((words, thing))
        if len(found) < sizes[split]:
            raise ValueError(
                f"num_{split} is {sizes[split]}: the grammar has only {len(found)} sentences that share no four words"
                " with the other splits"
            )
        drawn[split] = found
        grams = set().union(*(demo._ngrams(words) for words, _ in found))
        for other in demo.SPLITS:
            if other != split:
                forbidden[other] |= grams
    return drawn


def _plan(sizes, num_pairs, seed):
    """Utterances of every split, and more test utterances with the same words in another style."""
    rng = np.random.default_rng(seed)
    sentences = _sentences(sizes, seed)
    plan = {}
    for split in demo.SPLITS:
        speakers, size = demo._speakers_of(split), sizes[split]
        emotions = [EMOTIONS[i % len(EMOTIONS)] for i in range(size)]
        drawn = {e: iter(_parameters(rng, e, emotions.count(e))) for e in EMOTIONS}
        plan[split] = {}
        for i in range(size):
            words, thing = sentences[split][i]
            speaker = speakers[(i // len(EMOTIONS)) % len(speakers)]
            record = _draw(rng, speaker, emotions[i], next(drawn[emotions[i]]), words)
            plan[split][f"{split}_{i:05d}"] = {**record, "thing": thing}
    pairs = {}
    speakers = {identity: row for row in demo._speakers_of("test") for identity in row[:1]}
    for i, (key, record) in enumerate(list(plan["test"].items())[:num_pairs]):
        others = [e for e in EMOTIONS if e != record["emotion"]]
        emotion = others[i % len(others)]
        made = _draw(
            rng, speakers[record["speaker"]], emotion, _parameters(rng, emotion, 1)[0], record["transcript"]
        )
        pairs[key.replace("test_", "test_style")] = {**made, "thing": record["thing"], "of": key}
    thresholds = demo._fit_thresholds(list(plan["train"].values()))
    for records in (*plan.values(), pairs):
        for record in records.values():
            _describe(record, thresholds)
    return plan, pairs, thresholds


def _turn(record, audio):
    return {
        "role": "user",
        "speaker": record["speaker"],
        "text": record["transcript"],
        "audio": audio,
        "gender": record["gender"],
        "emotion": record["emotion"],
        "descriptors": record["descriptors"],
    }


def dialogue_turns(utterances):
    """Turns of a dialogue in which the assistant answers every turn but the last, and the last answer.

    Arguments
    ---------
    utterances : sequence of mapping
        With ``transcript``, ``thing``, ``emotion``, ``speaker``, ``gender`` and ``descriptors``.

    Returns
    -------
    tuple
        List of turns, and the answer to the last one.

    Example
    -------
    >>> u = {"transcript": "we lifted the lamp", "thing": "lamp", "emotion": "sad", "speaker": "s",
    ...      "gender": None, "descriptors": {}}
    >>> turns, last = dialogue_turns([u, {**u, "emotion": "happy", "thing": "box"}])
    >>> [t["role"] for t in turns], last
    (['user', 'assistant', 'user'], 'how nice to hear of the box and the lamp')
    """
    turns, previous, reply = [], None, None
    for number, record in enumerate(utterances):
        if reply is not None:
            turns.append({"role": "assistant", "speaker": "assistant", "text": reply, "audio": None})
        turns.append(_turn(record, number))
        reply = answer(record["emotion"], record["thing"], previous)
        previous = record["thing"]
    return turns, reply


def _dialogue(key, utterances, made, folder_of):
    turns, reply = dialogue_turns([record for _, record in utterances])
    last = utterances[-1][1]
    audios = [
        {
            "wav": f"{{data_root}}/{folder_of(name)}/{name}.wav",
            "duration": made[name]["num_samples"] / demo.SAMPLE_RATE,
        }
        for name, _ in utterances
    ]
    fields = ("speaker", "gender", "transcript", "emotion", "descriptors", "params")
    return {
        **{name: last[name] for name in fields},
        "corpus": "demodialogue",
        "dialogue": key,
        "audios": audios,
        "duration": audios[-1]["duration"],
        "turns": turns,
        "response": {"text": reply, "speaker": "assistant"},
        "words": made[utterances[-1][0]]["words"],
        "phones": made[utterances[-1][0]]["phones"],
    }


def _contexts(split, records, seed, cut):
    """For every utterance the keys of the turns before it: of the same speaker, 0 to 4, or always 4 uncut."""
    by_speaker = {}
    for key, record in records.items():
        by_speaker.setdefault(record["speaker"], []).append(key)
    found = {}
    for key, record in records.items():
        rng = random.Random(f"{seed} {split} {key}")
        others = [k for k in by_speaker[record["speaker"]] if k != key]
        # Neighbouring turns name different things, or the answer would not tell them apart.
        chosen = rng.sample(others, min(MOST_HISTORY, len(others)))
        while chosen and records[chosen[-1]]["thing"] == record["thing"] and len(others) > MOST_HISTORY:
            chosen = rng.sample(others, MOST_HISTORY)
        number = rng.randrange(MOST_HISTORY + 1)
        found[key] = chosen[len(chosen) - number :] if cut else chosen
    return found


def _other_contexts(records, contexts, seed):
    """For utterances with context, another one of the same length that ends with another thing."""
    found = {}
    for key, context in contexts.items():
        if not context:
            continue
        rng = random.Random(f"other {seed} {key}")
        record, last = records[key], records[context[-1]]["thing"]
        own = [
            k
            for k, r in records.items()
            if r["speaker"] == record["speaker"] and r["thing"] not in (last, record["thing"])
        ]
        if own:
            found[key] = [*context[:-1], rng.choice(own)]
    return found


def _settings(sizes, num_pairs, seed):
    names = (
        "VERSION SPREAD MOST_HISTORY THINGS ADJECTIVES PEOPLE PLACES VERBS PREPOSITIONS DETERMINERS PRONOUNS"
    )
    constants = {name: globals()[name] for name in [*names.split(), "VALUES", "OPENINGS"]}
    base = {name: value for name, value in vars(demo).items() if name.isupper()}
    text = json.dumps([constants, base, sizes, num_pairs, seed, version("espeakng-loader")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prepare_demo_dialogue(
    data_folder,
    save_folder,
    num_train=1600,
    num_valid=100,
    num_test=240,
    num_pairs=80,
    seed=1234,
    num_processes=2,
):
    """Synthesise the utterances and write dialogues; a complete corpus of the same settings is kept.

    Every utterance is the last turn of one dialogue. Of up to five turns a dialogue has those before a random midpoint
    left out, so that 0 to 4 turns of context are equally frequent; ``train_uncut.json`` has the dialogues whole, for
    the ablation.

    Arguments
    ---------
    data_folder : str
        Audio goes to ``<data_folder>/{train,valid,test}``; manifests call it ``{data_root}``.
    save_folder : str
        Where ``train.json``, ``train_uncut.json``, ``valid.json``, ``test.json``, ``test_style.json`` (the same words
        in another style), ``test_context.json`` (the same utterance after other words) and ``oracle.json`` go.
    num_train, num_valid, num_test : int
        Utterances.
    num_pairs : int
        Test utterances that are spoken in another style too.
    seed : int
        Of sentences, parameters and contexts.
    num_processes : int
        Worker processes.

    Returns
    -------
    dict
        The content of ``oracle.json``.

    Raises
    ------
    ValueError
        If a size is too small or the grammar too poor.
    """
    sizes = {"train": int(num_train), "valid": int(num_valid), "test": int(num_test)}
    for split, size in sizes.items():
        each = len(EMOTIONS) if split == "train" else MOST_HISTORY + 2
        if size < each * len(demo.SPEAKERS[split]):
            raise ValueError(
                f"num_{split} is {size}: each of its {len(demo.SPEAKERS[split])} voices needs {each} utterances or more"
            )
    if not 0 <= int(num_pairs) <= sizes["test"]:
        raise ValueError(f"num_pairs is {num_pairs}; allowed: 0 to num_test")
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    fingerprint = _settings(sizes, num_pairs, seed)
    oracle_file = save_folder / "oracle.json"
    if oracle_file.is_file():
        kept = json.loads(oracle_file.read_text(encoding="utf-8"))
        if kept.get("settings") == fingerprint:
            print(f"demo dialogues: complete in {data_folder}, kept")
            return kept
    plan, pairs, thresholds = _plan(sizes, int(num_pairs), seed)
    save_folder.mkdir(parents=True, exist_ok=True)
    oracle_file.unlink(missing_ok=True)
    work = data_folder / f".work_{fingerprint}"
    everything = {**plan, "test": {**plan["test"], **pairs}}
    made = demo._synthesize(everything, data_folder, work, int(num_processes))

    def folder_of(name):
        return name.split("_")[0]

    manifests = {}
    for split in demo.SPLITS:
        records = plan[split]
        contexts = _contexts(split, records, seed, cut=True)
        lists = {split: contexts}
        if split == "train":
            lists["train_uncut"] = _contexts(split, records, seed, cut=False)
        if split == "test":
            lists["test_context"] = _other_contexts(records, contexts, seed)
        for name, chosen in lists.items():
            manifests[name] = {
                key: _dialogue(key, [(k, records[k]) for k in (*context, key)], made, folder_of)
                for key, context in chosen.items()
            }
    manifests["test_style"] = {}
    contexts = _contexts("test", plan["test"], seed, cut=True)
    for name, record in pairs.items():
        before = [(k, plan["test"][k]) for k in contexts[record["of"]]]
        manifests["test_style"][record["of"]] = _dialogue(
            record["of"], [*before, (name, record)], made, folder_of
        )
    for name, records in manifests.items():
        validate_manifest(records, labels=EMOTIONS, replacements={"data_root": str(data_folder)})
        write_manifest(save_folder / f"{name}.json", records)
    parts = {split: manifests[split] for split in demo.SPLITS}
    validate_splits(parts)
    roots = {"data_root": str(data_folder)}
    check_and_write(
        parts, data_folder, "embedded dialogues", logger, replacements=roots, audio="headers", progress=False
    )
    grams = {
        s: set().union(*(demo._ngrams(r["transcript"]) for r in manifests[s].values())) for s in demo.SPLITS
    }
    parameters = demo._parameters(manifests["test"].values())
    recalls = oracle_recalls(parameters, [r["emotion"] for r in manifests["test"].values()])
    report = {
        "settings": fingerprint,
        "ua": float(np.mean(list(recalls.values()))),
        "recall": recalls,
        "thresholds": thresholds,
        "shared_4_grams": len((grams["test"] | grams["valid"]) & grams["train"]),
        "num": {name: len(records) for name, records in manifests.items()},
        "hours": sum(row["num_samples"] for row in made.values()) / demo.SAMPLE_RATE / 3600,
        "vocabulary": len(vocabulary()),
    }
    oracle_file.write_text(json.dumps(report, indent=1), encoding="utf-8")
    for path in work.iterdir():
        path.unlink()
    work.rmdir()
    print(
        f"demo dialogues: {sum(sizes.values())} turns and {len(pairs)} in another style, {report['hours']:.2f} h; "
        f"oracle on test from the true parameters: emotion (and so the opening of the answer) {report['ua']:.3f}; "
        f"4-grams shared with training: {report['shared_4_grams']}"
    )
    return report


# ------------------------------------------------------------------------------------------------- text
def _text_utterance(rng, speaker):
    words, thing = sentence(rng)
    descriptors = {
        "gender": speaker[1],
        **{field: rng.choice(list(values.values())) for field, values in VALUES.items()},
    }
    record = {
        "speaker": speaker[0],
        "gender": speaker[1],
        "transcript": words,
        "thing": thing,
        "emotion": rng.choice(EMOTIONS),
        "descriptors": descriptors,
    }
    texts = {}
    if rng.random() < 0.6:
        texts["linguistic"] = " " + stretched(words, rng)
    return record, texts


def text_records(num, seed, exclude=()):
    """Draw dialogues without audio, to teach a small language model in text what a large one can do.

    Arguments
    ---------
    num : int
        Number of dialogues.
    seed : int
        Seed.
    exclude : iterable of str
        Sentences with which none shares four words in a row.

    Returns
    -------
    dict
        id -> record with ``turns``, ``response`` and the last turn's own fields.

    Example
    -------
    >>> records = text_records(5, seed=0)
    >>> len(records), records["text_00000"]["turns"][-1]["role"]
    (5, 'user')
    """
    forbidden = set().union(set(), *(demo._ngrams(s) for s in exclude))
    rng = random.Random(f"text {seed}")
    records = {}
    while len(records) < num:
        speaker = rng.choice((("text_female", "female"), ("text_male", "male")))
        drawn, things = [], set()
        for _ in range(1 + rng.choice((0, 0, 0, 1, 1, 2, 3, 4))):
            while True:
                record, texts = _text_utterance(rng, speaker)
                if record["thing"] not in things and not demo._ngrams(record["transcript"]) & forbidden:
                    break
            things = {record["thing"]}
            drawn.append((record, texts))
        turns, reply = dialogue_turns([record for record, _ in drawn])
        spoken = [t for t in turns if t["role"] == "user"]
        for turn, (_, texts) in zip(spoken, drawn):
            turn["slot_texts"] = texts
        last = drawn[-1][0]
        records[f"text_{len(records):05d}"] = {
            **{k: v for k, v in last.items() if k != "thing"},
            "slot_texts": drawn[-1][1],
            "duration": 0.0,
            "audios": [{"wav": "", "duration": 0.0} for _ in spoken],
            "turns": turns,
            "response": {"text": reply, "speaker": "assistant"},
        }
    return records


def prepare_dialogue_text(
    data_folder,
    manifest_folder,
    save_folder,
    llm_folder,
    wordings=(),
    num_train=8000,
    num_valid=200,
    vocab_size=480,
    seed=1234,
    model=None,
):
    """Write text manifests and a randomly initialised language model with its tokenizer.

    Arguments
    ---------
    data_folder : str
        The spoken corpus, made first where it is missing.
    manifest_folder : str
        Manifests of the spoken corpus, whose valid and test sentences are kept out.
    save_folder : str
        Where ``train.json`` and ``valid.json`` go.
    llm_folder : str
        Where the initial model and its tokenizer go.
    wordings : sequence of str
        Prompts, captions and answers whose words the tokenizer should know too.
    num_train, num_valid : int
        Numbers of dialogues.
    vocab_size : int
        Of the tokenizer.
    seed : int
        Of the draw and the initial weights.
    model : dict, optional
        Sizes of the model: keywords of ``build_tiny_llm``.
    """
    prepare_demo_dialogue(data_folder, manifest_folder)
    wordings = [str(w) for w in wordings]
    wanted = json.dumps(
        [VERSION, num_train, num_valid, vocab_size, seed, wordings, dict(model or {})], sort_keys=True
    )
    stamp = Path(save_folder) / "settings.json"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    exclude = []
    for split in ("valid", "test"):
        path = Path(manifest_folder) / f"{split}.json"
        exclude += [r["transcript"] for r in json.loads(path.read_text(encoding="utf-8")).values()]
    records = list(text_records(num_train + num_valid, seed, exclude).items())
    Path(save_folder).mkdir(parents=True, exist_ok=True)
    write_manifest(Path(save_folder) / "train.json", dict(records[:num_train]))
    write_manifest(Path(save_folder) / "valid.json", dict(records[num_train:]))
    texts = [t["text"] for _, r in records[:2000] for t in r["turns"]] + [
        r["response"]["text"] for _, r in records[:2000]
    ]
    words = [
        *vocabulary(),
        *EMOTIONS,
        FILLER,
        *demo.GENDERS,
        *(w for v in VALUES.values() for w in v.values()),
    ]
    # Every word both with and without the blank before it, often enough to become one token.
    texts += [" ".join(words), " " + " ".join(reversed(words))] * 40
    texts += [w for wording in wordings for w in [wording] * 40]
    build_tiny_llm(llm_folder, texts, vocab_size=vocab_size, seed=seed, **(model or {}))
    stamp.write_text(wanted, encoding="utf-8")

"""Listening tests: one self-contained page from a folder of recordings and a list of questions, and their scores.

Kinds of question: ``mos`` (a recording on a scale of five: absolute category rating, ITU-T P.800), ``dmos`` (one
against a reference that is named as such: degradation category rating of the same), ``ab`` (two recordings, which one
more?) and ``match`` (does this description match?). Every rater gets an order and sides of their own; nothing on the
page names a system. Hidden anchors are systems like any other, catch trials have a known answer. No number is written
where nobody listened.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from scipy.stats import binomtest

from speechbrain_emo.dataio.audio import load_audio
from speechbrain_emo.dataio.manifest import write_text_atomically
from speechbrain_emo.metrics.agreement import krippendorff_alpha
from speechbrain_emo.report import audio_uri
from speechbrain_emo.results import format_table

KINDS = ("mos", "dmos", "ab", "match")
SCALES = {
    "mos": ["1 bad", "2 poor", "3 fair", "4 good", "5 excellent"],
    "dmos": ["1 very different", "2 different", "3 somewhat different", "4 nearly the same", "5 the same"],
    "match": ["no", "partly", "yes"],
}
#: Value of the first answer of a scale; the others follow by one, those of ``match`` by a half.
FIRST = {"mos": 1.0, "dmos": 1.0, "match": 0.0}
STEP = {"mos": 1.0, "dmos": 1.0, "match": 0.5}
NO_PREFERENCE = "no preference"
FORMAT = "speechbrain_emo listening test 1"
_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_RATE = 24000
_QUESTION_KEYS = {"name", "kind", "question", "labels", "systems", "reference", "descriptions", "most", "tie"}
_TOP_KEYS = {"title", "instructions", "questions", "anchors", "catch"}
_CATCH_KEYS = {"question", "file", "a", "b", "reference", "description", "expected"}
_RESAMPLES = 2000


@dataclass
class MadeTest:
    """A page that was written.

    Arguments
    ---------
    path : pathlib.Path
        HTML file.
    num_trials, num_recordings, num_bytes : int
        What is in it.
    """

    path: Path
    num_trials: int
    num_recordings: int
    num_bytes: int


def make_test(folder, questions, out, seed=0, max_bytes=60e6):
    """Build the page of a listening test.

    Arguments
    ---------
    folder : str or pathlib.Path
        ``<system>/<item>.wav``; items of the same name belong together.
    questions : str, pathlib.Path or mapping
        YAML file, or its content: ``title``, ``instructions``, ``questions`` (list of ``name``, ``kind``,
        ``question`` and, by kind, ``labels``, ``systems``, ``reference``, ``descriptions``, ``tie``, ``most``),
        ``anchors`` (systems), ``catch`` (list of ``question``, ``file`` or ``a`` and ``b``, ``expected``). Without
        ``systems`` a question is about every folder but those of catch trials alone.
    out : str or pathlib.Path
        HTML file.
    seed : int
        Of the choice of items where a question has ``most``.
    max_bytes : float
        Largest page.

    Returns
    -------
    MadeTest

    Raises
    ------
    ValueError
        If something in the folder or the questions cannot be used, or the page would be too large.

    Example
    -------
    >>> make_test(getfixture("tmp_path"), {"title": "T", "questions": []}, "t.html")
    Traceback (most recent call last):
    ValueError: questions: there is none; give a list of questions
    """
    folder = Path(folder)
    plan = _read_plan(questions)
    systems = _systems(folder)
    audio, indices, trials = [], {}, []

    def use(path):
        path = Path(path)
        if path not in indices:
            waveform = load_audio(path, _RATE).numpy()
            indices[path] = len(audio)
            audio.append(audio_uri(waveform, _RATE))
        return indices[path]

    # A folder of catch trials alone is no system, unless a question names it.
    keys = ("file", "a", "b", "reference")
    used = {folder / str(c[k]) for c in plan["catch"] if isinstance(c, dict) for k in keys if c.get(k)}
    rated = [name for name, items in sorted(systems.items()) if not set(items.values()) <= used]
    for question in plan["questions"]:
        question.setdefault("systems", rated)
        chosen = _trials(question, systems, folder, np.random.default_rng([seed, len(trials)]))
        trials += [{**trial, "audio": [use(p) for p in trial["audio"]]} for trial in chosen]
    names = {q["name"]: q for q in plan["questions"]}
    for number, catch in enumerate(plan["catch"]):
        trials.append(_catch(catch, number, names, folder, use))
    for trial in trials:
        key = json.dumps([trial[k] for k in ("question", "item", "systems", "catch")])
        trial["id"] = hashlib.sha256(key.encode("utf-8")).hexdigest()[:12]
    content = {
        "format": FORMAT,
        "title": plan["title"],
        "instructions": plan["instructions"],
        "questions": names,
        "anchors": plan["anchors"],
        "trials": trials,
        "audio": audio,
    }
    content["test"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()[:16]
    loader = jinja2.FileSystemLoader(Path(__file__).resolve().parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    # `</script>` inside a description would end the script.
    data = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    page = environment.get_template("listen.html").render(title=plan["title"], data=data)
    size = len(page.encode("utf-8"))
    if size > max_bytes:
        raise ValueError(
            f"the page would have {size / 1e6:.1f} MB, at most {max_bytes / 1e6:g} MB are allowed: give questions "
            "fewer items (`most`), or raise --max_megabytes"
        )
    write_text_atomically(out, page)
    return MadeTest(Path(out), len(trials), len(audio), size)


def _read_plan(questions):
    """The questions, checked and with defaults."""
    where = "questions"
    if not isinstance(questions, dict):
        where = str(questions)
        try:
            questions = YAML(typ="safe", pure=True).load(Path(questions).read_text(encoding="utf-8"))
        except (YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{where}: no YAML ({error})") from error
    if not isinstance(questions, dict):
        raise ValueError(f"{where}: give a mapping with title and questions")
    _known(questions, _TOP_KEYS, where)
    if not questions.get("questions"):
        raise ValueError(f"{where}: there is none; give a list of questions")
    plan = {
        "title": str(questions.get("title") or "Listening test"),
        "instructions": str(
            questions.get("instructions")
            or "Use headphones in a quiet place. Listen to every recording to its end; you may repeat it."
        ),
        "questions": [],
        "anchors": [str(x) for x in questions.get("anchors") or ()],
        "catch": list(questions.get("catch") or ()),
    }
    for number, question in enumerate(questions["questions"], 1):
        if not isinstance(question, dict):
            raise ValueError(f"{where}: question {number} is no mapping")
        name = str(question.get("name") or f"question{number}")
        _known(question, _QUESTION_KEYS, f"{where}: question {name!r}")
        kind = question.get("kind")
        if kind not in KINDS:
            raise ValueError(f"{where}: question {name!r} has kind {kind!r}; allowed: {', '.join(KINDS)}")
        if name in {q["name"] for q in plan["questions"]}:
            raise ValueError(f"{where}: two questions are called {name!r}")
        if not question.get("question"):
            raise ValueError(f"{where}: question {name!r} has no text (`question`)")
        labels = [str(x) for x in question.get("labels") or SCALES.get(kind, ())]
        if kind != "ab" and len(labels) != len(SCALES[kind]):
            raise ValueError(
                f"{where}: question {name!r} has {len(labels)} labels; {kind} has {len(SCALES[kind])} answers"
            )
        if kind == "dmos" and not question.get("reference"):
            raise ValueError(f"{where}: question {name!r} needs `reference`, the system to compare with")
        if kind == "match" and not question.get("descriptions"):
            raise ValueError(f"{where}: question {name!r} needs `descriptions`, a JSON of file -> text")
        if kind == "ab" and len(question.get("systems") or ()) != 2:
            raise ValueError(f"{where}: question {name!r} needs `systems`, the two to compare")
        plan["questions"].append(
            {**question, "name": name, "labels": labels, "tie": bool(question.get("tie", True))}
        )
    return plan


def _known(mapping, allowed, where):
    unknown = sorted(set(mapping) - allowed)
    if unknown:
        raise ValueError(f"{where}: unknown keys {unknown}; allowed: {', '.join(sorted(allowed))}")


def _systems(folder):
    """System -> item -> file."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    found = {}
    for path in sorted(folder.glob("*/*")):
        if path.suffix.lower() in _SUFFIXES:
            found.setdefault(path.parent.name, {})[path.stem] = path
    if not found:
        raise ValueError(f"{folder}: holds no recordings as SYSTEM/ITEM{{{','.join(_SUFFIXES)}}}")
    return found


def _of(systems, name, question):
    if name not in systems:
        raise ValueError(
            f"question {question['name']!r} names the system {name!r}; the folder has {', '.join(sorted(systems))}"
        )
    return systems[name]


def _trials(question, systems, folder, rng):
    """Trials of one question; audio still as paths."""
    kind, trials = question["kind"], []

    def add(item, names, paths, text=None):
        trials.append(
            {
                "question": question["name"],
                "item": item,
                "systems": names,
                "audio": paths,
                "text": text,
                "catch": None,
            }
        )

    if kind == "ab":
        first, second = (str(name) for name in question["systems"])
        both = sorted(set(_of(systems, first, question)) & set(_of(systems, second, question)))
        for item in _some(both, question, rng):
            add(item, [first, second], [systems[first][item], systems[second][item]])
    elif kind == "match":
        file = folder / str(question["descriptions"])
        if not file.is_file():
            raise ValueError(f"question {question['name']!r}: {file}: no such file of descriptions")
        descriptions = json.loads(file.read_text(encoding="utf-8"))
        for name in _some(sorted(descriptions), question, rng):
            path = folder / name
            if not path.is_file():
                raise ValueError(f"{file} describes {name!r}, which is not in {folder}")
            add(path.stem, [path.parent.name], [path], str(descriptions[name]))
    else:
        reference = str(question["reference"]) if kind == "dmos" else None
        wanted = [str(n) for n in question["systems"]]
        items = sorted({item for name in wanted for item in _of(systems, name, question)})
        # The same items for every system, so that means compare like with like.
        for item in _some(items, question, rng):
            for name in wanted:
                path = systems[name].get(item)
                if path is None or name == reference:
                    continue
                if reference is None:
                    add(item, [name], [path])
                elif item in _of(systems, reference, question):
                    add(item, [name], [systems[reference][item], path])
    if not trials:
        raise ValueError(f"question {question['name']!r} has no trial: no item fits its systems")
    return trials


def _some(items, question, rng):
    most = question.get("most")
    if most is None or most >= len(items):
        return items
    if most < 1:
        raise ValueError(f"question {question['name']!r}: most is {most}; give 1 or more")
    return sorted(rng.choice(items, int(most), replace=False).tolist())


def _catch(catch, number, questions, folder, use):
    """A trial whose answer is known."""
    where = f"catch trial {number + 1}"
    if not isinstance(catch, dict):
        raise ValueError(f"{where} is no mapping")
    _known(catch, _CATCH_KEYS, where)
    question = questions.get(catch.get("question"))
    if question is None:
        raise ValueError(
            f"{where} is of the question {catch.get('question')!r}; there are {', '.join(questions)}"
        )
    keys = {"ab": ("a", "b"), "dmos": ("reference", "file")}.get(question["kind"], ("file",))
    lacking = [key for key in (*keys, "expected") if catch.get(key) is None]
    if lacking:
        raise ValueError(f"{where} ({question['kind']}) lacks {', '.join(lacking)}")
    expected = catch["expected"] if isinstance(catch["expected"], list) else [catch["expected"]]
    if question["kind"] == "ab":
        allowed = ["a", "b", NO_PREFERENCE]
    else:
        kind = question["kind"]
        allowed = [FIRST[kind] + STEP[kind] * i for i in range(len(question["labels"]))]
    wrong = [value for value in expected if value not in allowed]
    if wrong:
        raise ValueError(f"{where} expects {wrong}; answers are {allowed}")
    return {
        "question": question["name"],
        "item": f"catch{number + 1}",
        "systems": ["a", "b"] if question["kind"] == "ab" else ["catch"],
        "audio": [use(folder / str(catch[key])) for key in keys],
        "text": catch.get("description"),
        "catch": expected,
    }


def read_answers(path):
    """Read what a rater has saved.

    Arguments
    ---------
    path : str or pathlib.Path
        JSON file.

    Returns
    -------
    dict
        ``test``, ``rater``, ``questions``, ``anchors``, ``answers``.

    Raises
    ------
    ValueError
        If it is no file of answers.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.json"
    >>> _ = path.write_text("[]")
    >>> read_answers(path)
    Traceback (most recent call last):
    ValueError: ...a.json: no answers of a listening test
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or "answers" not in content:
        raise ValueError(f"{path}: no answers of a listening test")
    lacking = [key for key in ("test", "rater", "questions") if not content.get(key)]
    if lacking:
        raise ValueError(f"{path}: answers without {', '.join(lacking)}")
    return content


def score_answers(answers, allowed_misses=0, seed=0):
    """Means with intervals, agreement, preferences.

    Intervals are percentiles of a bootstrap over raters and items together (2000 resamples): another crowd and other
    sentences. They are None for one rater. A rater who misses more catch trials than allowed is left out and counted.

    Arguments
    ---------
    answers : sequence of dict
        Of :func:`read_answers`, one a rater, all of one test.
    allowed_misses : int
        Catch trials that a rater may miss.
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        ``raters``, ``excluded`` (rater -> missed catch trials) and ``questions``: name -> ``kind``, ``question``,
        ``alpha`` (Krippendorff, interval scale; not for A/B) and ``systems``: name -> ``mean``, ``low``, ``high``,
        ``count``, ``raters``, ``anchor``; for A/B ``share``, ``low``, ``high``, ``count``, and ``ties``, ``p_value`` of
        the question (binomial test over the answers with a preference).

    Raises
    ------
    ValueError
        If answers are of different tests, a rater occurs twice, or no rater is left.

    Example
    -------
    >>> answer = {"question": "q", "item": "1", "systems": ["ours"], "value": 4.0, "catch": None}
    >>> one = {"test": "t", "rater": "r", "questions": {"q": {"kind": "mos", "question": "?"}}, "answers": [answer]}
    >>> score_answers([one, {**one, "rater": "s"}])["questions"]["q"]["systems"]["ours"]["mean"]
    4.0
    """
    answers = list(answers)
    if len({a["test"] for a in answers}) != 1:
        raise ValueError(
            f"answers of {len({a['test'] for a in answers})} different tests: score each test for itself"
        )
    raters = [str(a["rater"]) for a in answers]
    twice = sorted({r for r in raters if raters.count(r) > 1})
    if twice:
        raise ValueError(f"rater(s) {', '.join(twice)} occur twice: keep one file of each")
    excluded, kept = {}, []
    for given in answers:
        missed = sum(
            not any(_same(x["value"], e) for e in x["catch"]) for x in given["answers"] if x.get("catch")
        )
        if missed > allowed_misses:
            excluded[str(given["rater"])] = missed
        else:
            kept.append(given)
    if not kept:
        raise ValueError(f"every rater missed more than {allowed_misses} catch trials: nobody is left")
    rng = np.random.default_rng(seed)
    anchors, questions = set(kept[0].get("anchors") or ()), {}
    for name, question in kept[0]["questions"].items():
        rows = [
            (number, x["item"], x["systems"], x["value"])
            for number, given in enumerate(kept)
            for x in given["answers"]
            if x["question"] == name and not x.get("catch") and x["value"] is not None
        ]
        found = {"kind": question["kind"], "question": question["question"]}
        if not rows:
            questions[name] = {**found, "systems": {}}
        elif question["kind"] == "ab":
            questions[name] = {**found, **_preferences(rows, len(kept), rng)}
        else:
            questions[name] = {**found, **_ratings(rows, len(kept), anchors, rng)}
    return {"raters": len(kept), "excluded": excluded, "questions": questions}


def _same(value, expected):
    if isinstance(value, (int, float)) and isinstance(expected, (int, float)):
        return float(value) == float(expected)
    return value == expected


def _matrix(rows, num_raters, things):
    values = np.full((num_raters, len(things)), np.nan)
    for rater, thing, value in rows:
        values[rater, things.index(thing)] = value
    return values


def _interval(values, rng):
    """95 % of the mean over resampled raters and things; None for one rater."""
    heard = ~np.isnan(values).all(1)
    values = values[heard]
    if len(values) < 2:
        return None, None
    raters = rng.integers(0, len(values), (_RESAMPLES, len(values)))
    things = rng.integers(0, values.shape[1], (_RESAMPLES, values.shape[1]))
    means = []
    for r, t in zip(raters, things):
        drawn = values[np.ix_(r, t)]
        if not np.isnan(drawn).all():
            means.append(np.nanmean(drawn))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _ratings(rows, num_raters, anchors, rng):
    things = sorted({(systems[0], item) for _, item, systems, _ in rows})
    everything = _matrix([(r, (s[0], item), v) for r, item, s, v in rows], num_raters, things)
    scores = {}
    for system in sorted({system for system, _ in things}):
        values = everything[:, [i for i, thing in enumerate(things) if thing[0] == system]]
        low, high = _interval(values, rng)
        scores[system] = {
            "mean": float(np.nanmean(values)),
            "low": low,
            "high": high,
            "count": int((~np.isnan(values)).sum()),
            "raters": int((~np.isnan(values)).any(1).sum()),
            "anchor": system in anchors,
        }
    return {"alpha": krippendorff_alpha(everything), "systems": scores}


def _preferences(rows, num_raters, rng):
    first, second = rows[0][2]
    chosen = [(rater, item, value) for rater, item, _, value in rows if value != NO_PREFERENCE]
    things = sorted({item for _, item, _ in chosen})
    scores = {}
    for system in (first, second):
        values = _matrix([(r, item, float(v == system)) for r, item, v in chosen], num_raters, things)
        low, high = _interval(values, rng) if chosen else (None, None)
        count = sum(value == system for _, _, value in chosen)
        scores[system] = {
            "share": count / len(chosen) if chosen else None,
            "low": low,
            "high": high,
            "count": count,
        }
    p_value = binomtest(scores[first]["count"], len(chosen)).pvalue if chosen else None
    return {
        "systems": scores,
        "ties": len(rows) - len(chosen),
        "p_value": None if p_value is None else float(p_value),
    }


def format_scores(scores):
    """Scores as text for a terminal.

    Arguments
    ---------
    scores : dict
        Of :func:`score_answers`.

    Returns
    -------
    str

    Example
    -------
    >>> print(format_scores({"raters": 2, "excluded": {"x": 1}, "questions": {}}))
    2 raters; left out for missed catch trials: x (1)
    """
    lines = [f"{scores['raters']} raters"]
    if scores["excluded"]:
        gone = ", ".join(f"{name} ({missed})" for name, missed in scores["excluded"].items())
        lines[0] += f"; left out for missed catch trials: {gone}"
    for name, found in scores["questions"].items():
        lines += ["", f"{name} ({found['kind']}): {found['question']}"]
        rows = []
        for system, score in found["systems"].items():
            interval = None if score["low"] is None else (score["low"], score["high"])
            row = {"system": system + (" (anchor)" if score.get("anchor") else "")}
            row["share" if found["kind"] == "ab" else "mean"] = score.get("share", score.get("mean"))
            row.update({"95 %": interval, "answers": score["count"]})
            rows.append(row)
        lines.append(format_table(rows, decimals=2) if rows else "no answer")
        if found.get("p_value") is not None:
            lines.append(f"without preference: {found['ties']}; p = {found['p_value']:.3f} (binomial test)")
        if found.get("alpha") is not None:
            lines.append(f"Krippendorff's alpha {found['alpha']:.2f}")
    return "\n".join(lines)

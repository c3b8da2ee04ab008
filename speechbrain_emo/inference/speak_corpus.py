"""Speaks evaluation lists with a synthesiser and scores the outputs; resumable.

A list is a JSON object, id -> record with ``markup``, ``prompt`` (recording of the voice), ``prompt_text``,
``protocol`` and ``reference`` (recipes/FEDD/README.md). Outputs and ``outputs.jsonl`` are what ``score_speech`` takes.
"""

import hashlib
import json
import logging
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from speechbrain_emo.alignment import AlignmentError, make_aligner
from speechbrain_emo.dataio.audio import load_audio
from speechbrain_emo.dataio.manifest import ManifestError, write_text_atomically
from speechbrain_emo.inference.emotional_tts import EmotionalTTS
from speechbrain_emo.inference.speech import SpeakError
from speechbrain_emo.inference.speech_scores import make_judges, score_folder, score_rows
from speechbrain_emo.metrics.synthesis import word_changes, word_prosody
from speechbrain_emo.prompts.markup import EmotionSpan, MarkedText, MarkupError, locate_words
from speechbrain_emo.results import format_table, run_context, write_results

logger = logging.getLogger(__name__)
OUTPUTS = "outputs.jsonl"
CONDITIONS = ("marked", "neutral", "recordings")
#: What an output is of; one of a list that was changed is spoken again.
_ASKED = ("markup", "spoken", "draw", "prompt", "prompt_text", "reference")


def need_models(folders, commands):
    """Refuse at once what would fail after hours: a folder of a model that was not made yet.

    Arguments
    ---------
    folders : mapping of str to (str or None)
        What a model is for -> its folder. None and names on the hub (``hf:NAME``, ``OWNER/NAME``) pass.
    commands : mapping of str to str
        How each is made; what has no command is not looked for.

    Raises
    ------
    ManifestError
        If a folder is missing; the message names the command that makes it.

    Example
    -------
    >>> need_models({"asr": "no/such/model", "speaker": None}, {"asr": "python train.py hparams/demo_ib.yaml"})
    Traceback (most recent call last):
    speechbrain_emo.dataio.manifest.ManifestError: asr is no/such/model, ...; make it with:  python train.py ...
    """
    for name, command in commands.items():
        folder = folders.get(name)
        if folder is None or Path(folder).exists():
            continue
        path = str(folder)
        if not path.startswith("hf:") and (path.count("/") != 1 or path.startswith((".", "/"))):
            raise ManifestError(f"{name} is {folder}, which does not exist; make it with:  {command}")


def read_lists(paths, data_folder=None, default_prompt=None, num_evaluated=None):
    """Records of evaluation lists.

    Arguments
    ---------
    paths : sequence of str
        JSON objects.
    data_folder : str, optional
        What ``{data_root}`` stands for.
    default_prompt : dict, optional
        ``wav`` and ``text`` for records without a prompt.
    num_evaluated : int, optional
        How many are taken, evenly over the lists. None: all.

    Returns
    -------
    dict

    Raises
    ------
    ManifestError
        If a list is missing, or a record has no prompt and there is no other.
    """
    records, default = {}, default_prompt or {}
    for path in paths:
        if not Path(path).is_file():
            raise ManifestError(f"{path}: no such list; its preparation writes it")
        for key, record in json.loads(Path(path).read_text(encoding="utf-8")).items():
            if key in records:
                raise ManifestError(f"{path}: {key} stands in another list too")
            made = dict(record)
            if not made.get("prompt"):
                made.update(prompt=default.get("wav"), prompt_text=default.get("text"))
            if not made["prompt"]:
                raise ManifestError(
                    f"{path}, {key}: no recording of the voice {made.get('speaker')}; give default_prompt: "
                    "{wav: FILE, text: what is said in it}"
                )
            for name in ("prompt", "reference"):
                if made.get(name):
                    made[name] = str(made[name]).replace("{data_root}", str(data_folder))
            records[key] = made
    if num_evaluated is not None and num_evaluated < len(records):
        keys = list(records)
        chosen = [keys[i * len(keys) // num_evaluated] for i in range(num_evaluated)]
        records = {key: records[key] for key in chosen}
    return records


def speak_corpus(tts, records, folder, seed=0, batch_size=8, progress=True):
    """Speak every record of a list; what is there already is kept.

    Arguments
    ---------
    tts : EmotionalTTS
        Speaks.
    records : dict
        Of :func:`read_lists`; ``spoken`` stands for ``markup`` where it is there, ``draw`` for the id in the seed.
    folder : str or pathlib.Path
        ``<id>.wav`` and ``outputs.jsonl`` go there.
    seed : int
        Of this pass; each record's own follows from it and the id.
    batch_size : int
        Texts of one voice at a time.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    dict
        id -> why it could not be spoken.

    Raises
    ------
    ManifestError
        If the folder holds outputs of another model.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file, known, failures = folder / OUTPUTS, {}, {}
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # The line that a kill cut off.
            if entry["provenance"]["model"] != tts.model_hash:
                raise ManifestError(f"{folder} holds outputs of another model: choose another folder")
            record = records.get(entry["id"])
            if record is None or entry["pass"] != seed or not (folder / entry["file"]).is_file():
                continue
            if all(entry.get(name) == record.get(name) for name in _ASKED):
                known[entry["id"]] = entry
    write_text_atomically(file, "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in known.values()))
    voices = {}
    for key, record in records.items():
        if key not in known:
            voices.setdefault((record["prompt"], record.get("prompt_text")), []).append(key)
    bar = tqdm(total=len(records), initial=len(known), desc="speak", unit="utt", disable=not progress)
    with bar, open(file, "a", encoding="utf-8") as stream:
        for (prompt, text), keys in voices.items():
            try:
                voice = tts.voice(prompt, text)
            except ValueError as error:  # AudioError and SpeakError.
                failures.update({key: str(error) for key in keys})
                continue
            for start in range(0, len(keys), batch_size):
                some = keys[start : start + batch_size]
                for key, speech in _spoken(tts, records, some, voice, seed, failures):
                    speech.save(folder / f"{key}.wav")
                    record = {k: v for k, v in records[key].items() if v is not None}
                    entry = {"id": key, **record, **speech.to_dict(), "file": f"{key}.wav", "pass": seed}
                    # What is scored are the record's marks, whatever was given to the model.
                    entry["markup"] = record["markup"]
                    stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
                    stream.flush()
                bar.update(len(some))
    return failures


def _spoken(tts, records, keys, voice, seed, failures):
    """(key, Speech) of those keys that can be spoken."""
    # Records that share a draw are said by the same seed: what differs then is what their marks do.
    draws = [f"{seed} {records[key].get('draw', key)}" for key in keys]
    seeds = [int(hashlib.sha256(draw.encode()).hexdigest()[:12], 16) for draw in draws]
    texts = [records[key].get("spoken", records[key]["markup"]) for key in keys]
    try:
        return list(zip(keys, tts.speak_batch(texts, voice, None, seeds, None)))
    except (SpeakError, MarkupError) as error:
        if len(keys) == 1:
            failures[keys[0]] = str(error)
            return []
        # One text of the batch is at fault: the others are spoken by themselves.
        return [pair for key in keys for pair in _spoken(tts, records, [key], voice, seed, failures)]


def load_synthesiser(hparams, run_opts, **options):
    """The model of an evaluation, the records of its lists, and the device.

    Arguments
    ---------
    hparams : dict
        ``model``, ``judges``, ``commands`` (how they are made, see :func:`need_models`), ``parts``, ``lists``,
        ``data_folder``, ``default_prompt`` and ``num_evaluated``.
    run_opts : speechbrain.utils.run_opts.RunOptions or dict
        SpeechBrain's run options.
    **options
        Of ``EmotionalTTS.from_hparams``.

    Returns
    -------
    tuple
        (EmotionalTTS, records, device or None).

    Raises
    ------
    ManifestError
        If a model, a judge or a list is missing.
    UnsafeModelError
        If the model's folder holds no synthesiser.
    """
    need_models({"model": hparams["model"], **hparams["judges"]}, hparams.get("commands") or {})
    device = dict(run_opts or {}).get("device")
    tts = EmotionalTTS.from_hparams(
        hparams["model"],
        run_opts={"device": device} if device else None,
        parts=hparams.get("parts"),
        **options,
    )
    records = read_lists(
        hparams["lists"],
        hparams.get("data_folder"),
        hparams.get("default_prompt"),
        hparams.get("num_evaluated"),
    )
    return tts, records, device


def recorded_outputs(records, folder):
    """A manifest of the recordings themselves, as if they were outputs: the ceiling of every score.

    Arguments
    ---------
    records : dict
        Of :func:`read_lists`; those without a reference are left out.
    folder : str or pathlib.Path
        ``outputs.jsonl`` goes there.

    Returns
    -------
    int
        Number of recordings.
    """
    lines = []
    for key, record in records.items():
        if record.get("reference"):
            kept = {name: record.get(name) for name in ("markup", "prompt", "protocol")}
            lines.append(
                json.dumps({"id": key, "file": str(Path(record["reference"]).resolve()), **kept}) + "\n"
            )
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_text_atomically(Path(folder) / OUTPUTS, "".join(lines))
    return len(lines)


def speech_context(hparams, tts, **more):
    """What ``results.json`` says of a run that speaks: model, parts, seeds and command.

    Arguments
    ---------
    hparams : dict
        Loaded YAML.
    tts : EmotionalTTS
        What spoke.
    **more
        Further entries, or others in place of these.

    Returns
    -------
    dict
    """
    own = {
        "model": tts.model_hash,
        "parts": dict(hparams.get("parts") or {}),
        "seeds": list(hparams["seeds"]),
        "command": hparams.get("command"),
    }
    return run_context(seed=hparams["seed"], **{**own, **more})


def run_speak_corpus(hparams, run_opts):
    """What ``train.py`` runs for an evaluation: speak, once a seed, score, draw and compare.

    ``conditions`` say what is scored against the marks: ``marked``, the model's speech; ``neutral``, its speech of the
    same texts without marks (the floor); ``recordings``, the references (the ceiling). Results of all stand in
    ``results.json`` of the output folder, means over the seeds: ``speech.<metric>``, ``neutral.<metric>`` and
    ``recordings.<metric>``.

    Arguments
    ---------
    hparams : dict
        Loaded YAML; its keys are described in ``hparams/fedd_speak.yaml``.
    run_opts : speechbrain.utils.run_opts.RunOptions or dict
        SpeechBrain's run options.

    Returns
    -------
    dict
        Metrics.

    Raises
    ------
    ValueError
        If a condition is unknown.
    """
    started = time.time()
    conditions = list(hparams.get("conditions") or CONDITIONS[:1])
    if not set(conditions) <= set(CONDITIONS):
        raise ValueError(f"conditions are {conditions}; allowed: {', '.join(CONDITIONS)}")
    tts, records, device = load_synthesiser(hparams, run_opts)
    judges = make_judges(**hparams["judges"], device=device, language=hparams["language"])
    output, metrics = Path(hparams["output_folder"]), {}

    def score(folder):
        return score_folder(
            folder,
            folder / OUTPUTS,
            judges,
            data_folder=hparams.get("data_folder"),
            language=hparams["language"],
            num_pictures=int(hparams.get("num_pictures") or 0),
        )

    for condition in conditions:
        if condition == "recordings":
            if not recorded_outputs(records, output / condition):
                logger.warning("no record has a reference: there is no ceiling")
                continue
            found = [score(output / condition)]
        else:
            some, prefix = records, "seed"
            if condition == "neutral":
                plain = {key: tts.markup.parse(record["markup"]).text for key, record in records.items()}
                some = {k: {**r, "spoken": _escaped(plain[k])} for k, r in records.items()}
                prefix = "neutral"
            found = []
            for seed in hparams["seeds"]:
                folder = output / f"{prefix}_{seed}"
                for key, reason in speak_corpus(tts, some, folder, seed, hparams["batch_size"]).items():
                    logger.warning(f"{key}: not spoken: {reason}")
                found.append(score(folder))
        name = "speech" if condition == "marked" else condition
        metrics.update({key.replace("speech", name, 1): value for key, value in _means(found).items()})
    wall_time = time.time() - started
    write_results(output, metrics, speech_context(hparams, tts, judges=judges.names, wall_time=wall_time))
    print(format_table(score_rows(metrics), style="plain"))
    return metrics


def _means(found):
    """Means of numbers over passes; what is no number, or the same in all, stays."""
    means = {}
    for key, value in found[0].items():
        values = [metrics.get(key) for metrics in found]
        if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            value = value if len(set(values)) == 1 else float(np.mean(values))
        means[key] = value
    return means


def _escaped(text):
    return text.replace("&", "&amp;").replace("<", "&lt;")


def changed_span(markup, marked, number):
    """A text with another emotion on one span: the next of the labels that is not that of untagged text.

    Arguments
    ---------
    markup : EmotionMarkup
        Its labels.
    marked : MarkedText
        With spans.
    number : int
        Which span.

    Returns
    -------
    MarkedText
    """
    span = marked.spans[number]
    others = [label for label in markup.labels if label not in (span.emotion, markup.untagged[0])]
    place = sum(markup.labels.index(label) < markup.labels.index(span.emotion) for label in others)
    spans = list(marked.spans)
    spans[number] = EmotionSpan(span.start, span.stop, others[place % len(others)], span.intensity)
    return MarkedText(marked.text, tuple(spans))


def run_span_changes(hparams, run_opts):
    """Change the tag of one span, and see whether that span changes and the others stay.

    Every sentence is spoken three times: as it is marked; with another emotion on one span, by the same seed; as it is
    marked, by another seed. The last is the natural variation that the change is held against: by how much words differ
    in F0 (octaves), level (dB) and duration, inside the span and outside.

    Arguments
    ---------
    hparams : dict
        As of :func:`run_speak_corpus`; of ``judges`` the aligner, of ``seeds`` the first two.
    run_opts : speechbrain.utils.run_opts.RunOptions or dict
        SpeechBrain's run options.

    Returns
    -------
    dict
        ``change.<where>.<quantity>``: medians over words, ``where`` is inside, outside, or seeds.inside and
        seeds.outside for the other seed.

    Raises
    ------
    ManifestError
        If no text of the lists has a span beside other words.
    """
    tts, records, _ = load_synthesiser(hparams, run_opts)
    variants, places = {}, {}
    for key, record in records.items():
        marked = tts.markup.parse(record["markup"])
        if not marked.spans or marked.spans[0].stop - marked.spans[0].start >= len(marked.text.strip()):
            continue
        # Which span is drawn by the id: not always the first.
        number = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % len(marked.spans)
        places[key] = (marked, number)
        variants[key] = {**record, "markup": tts.markup.write(changed_span(tts.markup, marked, number))}
    if not variants:
        raise ManifestError(
            "no text of the lists has a marked span beside other words: nothing can be changed"
        )
    base, folder = {key: records[key] for key in variants}, Path(hparams["output_folder"])
    first = hparams["seeds"][0]
    second = hparams["seeds"][1] if len(hparams["seeds"]) > 1 else first + 1
    passes = {"base": (base, first), "changed": (variants, first), "seeds": (base, second)}
    for name, (some, seed) in passes.items():
        for key, reason in speak_corpus(tts, some, folder / name, seed, hparams["batch_size"]).items():
            logger.warning(f"{key}: not spoken: {reason}")
    aligner = make_aligner(hparams["judges"]["aligner"], language=hparams["language"])
    found, lines = {}, []
    for key, (marked, number) in places.items():
        said = {name: _prosody(folder / name / f"{key}.wav", marked.text, aligner) for name in passes}
        if any(value is None for value in said.values()):
            continue
        words, _ = said["base"]
        span = marked.spans[number]
        inside = np.array([span.start <= start < span.stop for start, _ in locate_words(marked.text, words)])
        line = {"id": key, "words": list(words), "inside": inside.tolist()}
        for name, prefix in (("changed", ""), ("seeds", "seeds.")):
            for quantity, values in word_changes(said["base"][1], said[name][1]).items():
                line[f"{name}.{quantity}"] = [None if np.isnan(v) else float(v) for v in values]
                for where, chosen in (("inside", inside), ("outside", ~inside)):
                    found.setdefault(f"change.{prefix}{where}.{quantity}", []).extend(values[chosen])
        lines.append(line)
    metrics = {"change.count": len(lines), "change.not_aligned": len(places) - len(lines)}
    for name, values in found.items():
        known = np.array(values)[~np.isnan(values)]
        metrics[name] = float(np.median(known)) if len(known) else None
    write_text_atomically(folder / "predictions.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    context = speech_context(hparams, tts, seeds=[first, second], aligner=hparams["judges"]["aligner"])
    write_results(folder, metrics, context)
    print(
        format_table([{"metric": k, "value": v} for k, v in metrics.items() if v is not None], style="plain")
    )
    return metrics


def _prosody(path, text, aligner):
    """(words, WordProsody) of an output; None where it is not there or its words are not found."""
    if not path.is_file():
        return None
    samples = load_audio(path, 16000).numpy()
    try:
        words = aligner.align(samples, 16000, text).words
    except AlignmentError:
        return None
    return [w.label for w in words], word_prosody(samples, 16000, [(w.start, w.end) for w in words])

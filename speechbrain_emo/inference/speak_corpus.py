"""Speaks evaluation lists with a synthesiser and scores the outputs; resumable.

A list is a JSON object, id -> record with ``markup``, ``prompt`` (recording of the voice), ``prompt_text``,
``protocol`` and ``reference`` (recipes/FEDD/README.md). Outputs and ``outputs.jsonl`` are what ``score_speech`` takes.
"""

import hashlib
import json
import logging
from pathlib import Path

from tqdm import tqdm

from speechbrain_emo.dataio.manifest import ManifestError, write_text_atomically
from speechbrain_emo.inference.emotional_tts import EmotionalTTS
from speechbrain_emo.inference.speech import SpeakError
from speechbrain_emo.inference.speech_scores import make_judges, score_folder, score_rows
from speechbrain_emo.prompts.markup import MarkupError
from speechbrain_emo.results import format_table

logger = logging.getLogger(__name__)
OUTPUTS = "outputs.jsonl"


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
        Of :func:`read_lists`.
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
            if entry["id"] in records and (folder / entry["file"]).is_file() and entry["pass"] == seed:
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
                    stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
                    stream.flush()
                bar.update(len(some))
    return failures


def _spoken(tts, records, keys, voice, seed, failures):
    """(key, Speech) of those keys that can be spoken."""
    seeds = [int(hashlib.sha256(f"{seed} {key}".encode()).hexdigest()[:12], 16) for key in keys]
    try:
        return list(
            zip(keys, tts.speak_batch([records[k]["markup"] for k in keys], voice, None, seeds, None))
        )
    except (SpeakError, MarkupError) as error:
        if len(keys) == 1:
            failures[keys[0]] = str(error)
            return []
        # One text of the batch is at fault: the others are spoken by themselves.
        return [pair for key in keys for pair in _spoken(tts, records, [key], voice, seed, failures)]


def run_speak_corpus(hparams, run_opts):
    """What ``train.py`` runs for an evaluation: speak, once a seed, and score.

    Arguments
    ---------
    hparams : dict
        Loaded YAML; its keys are described in ``hparams/fedd_speak.yaml``.
    run_opts : speechbrain.utils.run_opts.RunOptions or dict
        SpeechBrain's run options.

    Returns
    -------
    dict
        seed -> metrics.
    """
    device = dict(run_opts or {}).get("device")
    run_opts = {"device": device} if device else None
    tts = EmotionalTTS.from_hparams(hparams["model"], run_opts=run_opts)
    records = read_lists(
        hparams["lists"],
        hparams.get("data_folder"),
        hparams.get("default_prompt"),
        hparams.get("num_evaluated"),
    )
    judges = make_judges(**hparams["judges"], device=device, language=hparams["language"])
    found = {}
    for seed in hparams["seeds"]:
        folder = Path(hparams["output_folder"]) / f"seed_{seed}"
        failures = speak_corpus(tts, records, folder, seed, hparams["batch_size"])
        for key, reason in failures.items():
            logger.warning(f"{key}: not spoken: {reason}")
        found[seed] = score_folder(
            folder,
            folder / OUTPUTS,
            judges,
            data_folder=hparams.get("data_folder"),
            language=hparams["language"],
        )
        print(format_table(score_rows(found[seed]), style="plain"))
    return found

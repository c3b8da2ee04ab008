"""FEDD: sentences whose emotion changes inside, for testing word-level synthesis ("Emo-FiLM", arXiv 2509.20378).

The set of the paper is not released. This builds it again from a public rebuild's lists (JSON lines of marked
sentences): ``part_a`` mild (a written sentence that turns from one feeling to another; no recording belongs to it),
``part_b`` strong (two recordings of one speaker and sentence, in two emotions, joined at a border between words), and a
list of ESD sentences with one emotion each. Recordings are made where ESD is at hand.

The join: the first recording up to the border behind its last word, the second from the border before its next word;
both borders lie in the middle between two words, where an aligner found them; 50 ms around the border are cross-faded
with squared cosine and sine, which sum to one.
"""

import json
import re
from pathlib import Path

import numpy as np
from tqdm import tqdm

from speechbrain_emo.alignment import AlignmentItem, make_aligner
from speechbrain_emo.dataio.audio import load_audio
from speechbrain_emo.dataio.manifest import ManifestError, write_manifest, write_text_atomically
from speechbrain_emo.inference.speech import write_tagged
from speechbrain_emo.prompts.markup import EmotionMarkup

RATE = 16000
CROSSFADE = 0.05
LISTS = {"mild": "part_a.jsonl", "strong": "part_b.jsonl", "esd": "esd_eval_manifest.jsonl"}
_NAME = re.compile(r"(\d{4})_(\d{6})")


def join_recordings(first, second, first_border, second_border, sample_rate=RATE, crossfade=CROSSFADE):
    """Two recordings as one: the beginning of the first and the end of the second.

    Arguments
    ---------
    first, second : numpy.ndarray
        float (N,).
    first_border, second_border : float
        Seconds: where the first ends, and where the second begins.
    sample_rate : int
        Hz.
    crossfade : float
        Seconds; less where a recording is too short for it.

    Returns
    -------
    tuple
        Samples float32 and the border in them, in seconds.

    Raises
    ------
    ValueError
        If a border lies outside its recording.

    Example
    -------
    >>> samples, border = join_recordings(np.ones(1600), np.ones(1600), 0.06, 0.04)
    >>> len(samples), round(border, 3)
    (1920, 0.06)
    """
    for name, samples, border in (("first", first, first_border), ("second", second, second_border)):
        if not 0 < border < len(samples) / sample_rate:
            raise ValueError(
                f"the border of the {name} recording is {border:g} s, not inside its {len(samples) / sample_rate:g} s"
            )
    a, b = round(first_border * sample_rate), round(second_border * sample_rate)
    half = min(round(crossfade * sample_rate / 2), a, b, len(first) - a, len(second) - b)
    angle = (np.arange(2 * half) + 0.5) / max(2 * half, 1) * np.pi / 2
    faded = first[a - half : a + half] * np.cos(angle) ** 2 + second[b - half : b + half] * np.sin(angle) ** 2
    samples = np.concatenate([first[: a - half], faded, second[b + half :]])
    return samples.astype(np.float32), a / sample_rate


def read_list(path, labels=None):
    """Records of one of the rebuild's lists.

    Arguments
    ---------
    path : str or pathlib.Path
        JSON lines.
    labels : EmotionMarkup, optional
        Reads the marks. Default: the published labels.

    Returns
    -------
    dict
        id -> record as the list has it, its marks checked against its text.

    Raises
    ------
    ManifestError
        With every line that cannot be used.
    """
    markup, records, faults = labels or EmotionMarkup(), {}, []
    if not Path(path).is_file():
        raise ManifestError(f"{path}: no such list; give the folder of the FEDD rebuild's lists")
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            marked = markup.parse(row["tagged_text"])
            if marked.text != row["plain_text"]:
                raise ValueError("the marked text is not the plain one")
            if row["utt_id"] in records:
                raise ValueError(f"{row['utt_id']} stands there twice")
            records[row["utt_id"]] = row
        except (KeyError, ValueError) as error:
            faults.append(f"{Path(path).name}, line {number}: {error}")
    if faults:
        raise ManifestError("\n".join(faults[:20]))
    return records


def _recordings(esd_folder):
    """Name (0011_000351) -> path of every ESD recording."""
    found = {
        path.stem: path for path in sorted(Path(esd_folder).rglob("*.wav")) if _NAME.fullmatch(path.stem)
    }
    if not found:
        raise ManifestError(f"{esd_folder} holds no recording such as 0011/Angry/0011_000351.wav")
    return found


def _entry(row, part, recordings, voices):
    """A record of the evaluation list."""
    prompt = voices.get(row.get("speaker_id"), {})
    own = recordings.get(Path(row.get("prompt_wav") or "").stem)
    return {
        "markup": row["tagged_text"],
        "text": row["plain_text"],
        "speaker": row.get("speaker_id"),
        "part": part,
        "transition": [row["emo_from"], row["emo_to"]] if row.get("emo_from") else None,
        "prompt": prompt.get("wav") or (str(own) if own else None),
        "prompt_text": prompt.get("text") or row.get("prompt_text"),
        "protocol": "neutral",
        "reference": None,
    }


def _borders(row, words, name):
    """Middle between the words on both sides of the border, in seconds."""
    index = row["boundary_word_index"]
    if len(words) != len(row["plain_text"].split()) or not 0 < index < len(words):
        raise ValueError(f"{name}: {len(words)} words were found for {row['plain_text']!r}, border {index}")
    return (words[index - 1].end + words[index].start) / 2


def prepare_fedd(
    lists_folder,
    save_folder,
    esd_folder=None,
    voices=None,
    aligner="pocketsphinx",
    crossfade=CROSSFADE,
):
    """Write ``mild.json``, ``strong.json`` and ``esd.json``: evaluation lists, with recordings where ESD is at hand.

    A record has ``markup``, ``text``, ``speaker``, ``part``, ``transition``, ``prompt`` (neutral recording of the
    voice) and ``prompt_text``, ``protocol`` and ``reference`` (of strong and esd; None where there is none); joined
    ones also ``border`` in seconds.

    Arguments
    ---------
    lists_folder : str
        With part_a.jsonl, part_b.jsonl and esd_eval_manifest.jsonl.
    save_folder : str
        Where lists and joined recordings go.
    esd_folder : str, optional
        ESD. None: no prompts and references of its speakers.
    voices : dict, optional
        Speaker of the mild part -> {wav, text}: its own voices (of a commercial service) cannot be had.
    aligner : str
        Finds the words of both recordings.
    crossfade : float
        Seconds.

    Returns
    -------
    dict
        List -> numbers of records, of prompts and of references.

    Raises
    ------
    ManifestError
        If a list or ESD cannot be used.
    """
    save_folder, counts, notes = Path(save_folder), {}, []
    recordings = {} if esd_folder is None else _recordings(esd_folder)
    for part, name in LISTS.items():
        rows = read_list(Path(lists_folder) / name)
        entries = {key: _entry(row, part, recordings, voices or {}) for key, row in rows.items()}
        if part == "esd" and recordings:
            for key, row in rows.items():
                path = recordings.get(Path(row["target_wav"]).stem)
                entries[key]["reference"] = None if path is None else str(path)
        if part == "strong" and recordings:
            notes += _join_all(rows, entries, recordings, save_folder / "strong", aligner, crossfade)
        write_manifest(save_folder / f"{part}.json", entries)
        counts[part] = {
            "records": len(entries),
            "prompts": sum(e["prompt"] is not None for e in entries.values()),
            "references": sum(e["reference"] is not None for e in entries.values()),
        }
    write_text_atomically(
        save_folder / "preparation.txt", "".join(f"{n}\n" for n in notes) or "no findings\n"
    )
    write_text_atomically(save_folder / "fedd.json", json.dumps(counts, indent=1) + "\n")
    return counts


def _join_all(rows, entries, recordings, folder, name, crossfade):
    """Make the joined recordings that are not there yet; returns what could not be made, and why."""
    notes, aligner = [], None
    for key, row in tqdm(rows.items(), desc="join", unit="utt", mininterval=1.0):
        target = folder / f"{key}.wav"
        paths = [recordings.get(row[side]) for side in ("src_utt_from", "src_utt_to")]
        if None in paths:
            notes.append(f"{key}: {row['src_utt_from']} or {row['src_utt_to']} is not in ESD's folder")
            continue
        aligner = aligner or make_aligner(name)
        items = [AlignmentItem(p.stem, row["plain_text"], str(p)) for p in paths]
        found = dict(aligner.align_corpus(items))
        try:
            borders = []
            for path in paths:
                if isinstance(found[path.stem], Exception):
                    raise ValueError(f"{path.stem}: {found[path.stem]}")
                borders.append(_borders(row, found[path.stem].words, path.stem))
            audios = [load_audio(path, RATE).numpy() for path in paths]
            samples, border = join_recordings(*audios, *borders, RATE, crossfade)
        except ValueError as error:
            notes.append(f"{key}: {error}")
            continue
        write_tagged(target, samples, RATE, f"two recordings of ESD joined at {border:.3f} s")
        entries[key].update(reference=str(target), border=round(border, 4))
    return notes

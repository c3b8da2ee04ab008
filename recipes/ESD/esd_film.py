"""ESD for word-level synthesis: the corpus's split, with labels of words from an annotator where there are any."""

import json
from pathlib import Path

from recipes.ESD.esd_prepare import prepare_esd
from speechbrain_emo.dataio.manifest import (
    ManifestError,
    read_manifest,
    split_hash,
    write_manifest,
    write_text_atomically,
)

PARTS = ("train", "valid", "test")
SETTINGS = "esd_film.json"


def read_annotations(path):
    """Words of annotated recordings.

    Arguments
    ---------
    path : str or pathlib.Path
        JSON lines of ``python -m speechbrain_emo annotate --manifest``.

    Returns
    -------
    dict
        id -> list of {word, start, end, emotion, intensity, intensity_value}; the value is the arousal.

    Raises
    ------
    ManifestError
        If a line is no annotation.
    """
    if not Path(path).is_file():
        raise ManifestError(
            f"{path}: no such annotations; make them with `speechbrain_emo annotate --manifest`"
        )
    found = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            found[record["id"]] = [
                {
                    **{key: word[key] for key in ("word", "start", "end", "emotion", "intensity")},
                    "intensity_value": word["arousal"],
                }
                for word in record["words"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ManifestError(f"{path}, line {number}: not an annotation ({error})") from error
    return found


def prepare_esd_film(data_folder, save_folder, annotations=None, seed=0):
    """Write ``train.json``, ``valid.json`` and ``test.json`` of ESD's English part for ``hparams/esd_film.yaml``.

    Arguments
    ---------
    data_folder : str
        Folder that holds ``0011`` and so on.
    save_folder : str
        Where the manifests go.
    annotations : str, optional
        JSON lines of the annotator: words with times, emotions and intensities. Records that it lacks keep their
        sentence's emotion on every word, which the experiment's aligner places. None: all do.
    seed : int
        Kept with the settings; the split is fixed by speakers.

    Returns
    -------
    dict
        Part -> how many records have labels of words.

    Raises
    ------
    ManifestError
        If the corpus or the annotations cannot be used, or annotations belong to none of its recordings.
    """
    save_folder = Path(save_folder)
    prepare_esd(data_folder, save_folder / "esd")
    words = {} if annotations is None else read_annotations(annotations)
    parts, counts = {}, {}
    for part in PARTS:
        records = read_manifest(save_folder / "esd" / f"{part}.json", {"data_root": "{data_root}"})
        # Annotations of ESD and IEMOCAP together name it so.
        found = {key: words.get(key) or words.get(f"esd_{key}") for key in records}
        counts[part] = sum(rows is not None for rows in found.values())
        parts[part] = {
            key: record if found[key] is None else {**record, "words": found[key]}
            for key, record in records.items()
            if record["transcript"]
        }
    if words and not any(counts.values()):
        raise ManifestError(
            f"{annotations}: none of its {len(words)} ids, such as {next(iter(words))}, is of ESD"
        )
    for part, records in parts.items():
        write_manifest(save_folder / f"{part}.json", records)
    settings = {"annotated": counts, "seed": int(seed), "split": split_hash(parts)}
    write_text_atomically(save_folder / SETTINGS, json.dumps(settings, indent=1) + "\n")
    return counts

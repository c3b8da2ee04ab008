"""MELD's scenes as text for next-line prediction: words, speakers and true emotions of the history, no audio.

Only the tables are read. Labels get the names of the model that is tested (JELLY's seven emotions).
"""

from pathlib import Path

from recipes.MELD.meld_prepare import NUM_ROWS, read_tables
from speechbrain_emo.dataio.dialogue import make_turn, records_of_lines
from speechbrain_emo.dataio.manifest import Finding, ManifestError, write_manifest

CORPUS = "MELD"
#: MELD's label -> that of JELLY's tasks.
LABELS = {
    "neutral": "neutral",
    "joy": "happy",
    "surprise": "surprise",
    "anger": "angry",
    "sadness": "sad",
    "disgust": "disgust",
    "fear": "fear",
}


def meld_dialogues(data_folder, part="test", max_history=10):
    """A record for every line of a part that has a history.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Holds the three tables ``<part>_sent_emo.csv``.
    part : str
        ``train``, ``dev`` or ``test``.
    max_history : int
        Most lines before it that are kept.

    Returns
    -------
    records : dict
        ``meld_<part>_<dialogue>_<line>`` -> record whose ``response`` is the line with the answer.
    findings : list of Finding
        Rows that are left out.

    Raises
    ------
    ManifestError
        If the folder is not MELD, or there is no such part.
    """
    if part not in NUM_ROWS:
        raise ManifestError(f"part is {part!r}; allowed: {', '.join(NUM_ROWS)}")
    rows, findings = read_tables(data_folder)
    talks, records = {}, {}
    for (dialogue, utterance), row in sorted(rows[part].items()):
        if not row["Utterance"]:
            findings.append(Finding(f"{part}_dia{dialogue}_utt{utterance}", "left out: a line without words"))
            continue
        turn = make_turn("user", row["Utterance"], None, row["Speaker"], None, LABELS[row["Emotion"]], {})
        talks.setdefault(dialogue, []).append(turn)
    for dialogue, turns in talks.items():
        records.update(
            records_of_lines(turns, f"meld_{part}_{dialogue}", max_history=max_history, corpus=CORPUS)
        )
    if not records:
        raise ManifestError(f"{data_folder}: the part {part!r} has no dialogue of two lines")
    return records, findings


def write_meld_dialogues(data_folder, path, part="test"):
    """Write the manifest of :func:`meld_dialogues`; returns what was found wrong with the tables.

    Arguments
    ---------
    data_folder, part :
        As of :func:`meld_dialogues`.
    path : str or pathlib.Path
        The manifest.

    Returns
    -------
    list of Finding
    """
    records, findings = meld_dialogues(data_folder, part)
    write_manifest(Path(path), records)
    return findings

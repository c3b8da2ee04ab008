"""The data check: what silently spoils results, found before anything trains.

Every preparation runs it on what it writes (``data_check.json``), ``python -m speechbrain_emo check`` runs it alone.
Nothing here raises because of the data; a file that cannot be read is a finding.
"""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import chi2_contingency
from scipy.stats.contingency import association

from speechbrain_emo.dataio.audio_facts import SUFFIXES, identical_files, scan_audio
from speechbrain_emo.dataio.labels import common_word, suggest
from speechbrain_emo.dataio.manifest import write_text_atomically

#: Kind of finding -> what it means for results, in the order of the table.
KINDS = {
    "missing": "files that are not there",
    "unreadable": "files that are no audio, or are damaged",
    "empty": "files without a sample",
    "identical_in_splits": "the same bytes in two splits: the test is known from training",
    "identical_under_speakers": "the same bytes under two speakers: the split by speakers leaks",
    "identical_under_emotions": "the same bytes with two labels: one of them is wrong",
    "identical": "the same bytes more than once",
    "speaker_in_splits": "speakers in two splits: results are not speaker-independent",
    "dialogue_in_splits": "dialogues in two splits: the test's text is known from training",
    "answer_in_context": "the answer stands in what a prompt would show",
    "no_validation": "no validation part: nothing to choose a checkpoint by",
    "class_missing": "labels that a split lacks",
    "label_spelling": "labels that are not the experiment's, or spellings of one label",
    "label_incomplete": "labels of two parts, some without the first",
    "confounded": "speaker (or gender) and emotion go together: the one can be read for the other",
    "content_not_name": "files whose content is not what their suffix says",
    "sample_rate": "files of another sample rate than most",
    "channels": "files of more than one channel: they are averaged",
    "bit_depth": "files that are not 16 bit",
    "silent": "files without sound",
    "clipped": "files with samples cut off at full scale",
    "too_short": "files shorter than one frame of the encoder",
    "too_long": "files longer than a prompt takes",
}
#: Levels of the check: nothing of the audio, its headers and bytes, or its samples too.
AUDIO_LEVELS = ("off", "headers", "full")
SILENT_PEAK = 10 ** (-60 / 20)
CLIPPED_SHARE = 0.001
MIN_DURATION = 0.025
#: Cramer's V from which speaker and emotion count as confounded, where chance is an unlikely reason.
CONFOUNDED_V = 0.3
CONFOUNDED_P = 0.001
REPORT_FILE = "data_check.json"


@dataclass(frozen=True)
class CheckFinding:
    """One row of the check's table.

    Arguments
    ---------
    kind : str
        A key of ``KINDS``.
    message : str
        What was found, with numbers.
    items : tuple of str
        Files, speakers or labels that it is about.

    Example
    -------
    >>> CheckFinding("silent", "peak below -60 dB", ("a.wav", "b.wav")).count
    2
    """

    kind: str
    message: str
    items: tuple = ()

    @property
    def count(self):
        """Number of items, at least one."""
        return max(len(self.items), 1)


@dataclass(frozen=True)
class DataCheck:
    """All findings about a corpus.

    Arguments
    ---------
    findings : tuple of CheckFinding
        In the order of ``KINDS``.
    num_records, num_files : int
        What was looked at.
    num_of_split : dict of str to int
        Records of each split.
    audio : str
        One of ``AUDIO_LEVELS``.

    Example
    -------
    >>> print(DataCheck((), 3, 3, {"all": 3}, "full").table())
    3 records, 3 files (audio: full): nothing found
    """

    findings: tuple
    num_records: int
    num_files: int
    num_of_split: dict = field(default_factory=dict)
    audio: str = "full"

    @property
    def ok(self):
        """Whether nothing was found."""
        return not self.findings

    def without(self, kinds):
        """The same without findings of some kinds.

        Raises
        ------
        ValueError
            If a kind does not exist.
        """
        unknown = sorted(set(kinds) - set(KINDS))
        if unknown:
            raise ValueError(f"kinds {unknown} do not exist; allowed: {', '.join(KINDS)}")
        kept = tuple(f for f in self.findings if f.kind not in kinds)
        return DataCheck(kept, self.num_records, self.num_files, self.num_of_split, self.audio)

    def with_findings(self, more):
        """The same with findings of another source, in the order of the kinds."""
        order = list(KINDS)
        together = sorted((*more, *self.findings), key=lambda f: order.index(f.kind))
        return DataCheck(tuple(together), self.num_records, self.num_files, self.num_of_split, self.audio)

    def to_dict(self):
        """JSON values: every file name of every finding."""
        return {
            "num_records": self.num_records,
            "num_files": self.num_files,
            "num_of_split": dict(self.num_of_split),
            "audio": self.audio,
            "findings": [
                {
                    "kind": f.kind,
                    "meaning": KINDS[f.kind],
                    "count": f.count,
                    "message": f.message,
                    "items": list(f.items),
                }
                for f in self.findings
            ],
        }

    def table(self, most=5):
        """The findings as lines for a terminal.

        Arguments
        ---------
        most : int
            Names shown of each finding; the rest is counted.

        Returns
        -------
        str
        """
        head = f"{self.num_records} records, {self.num_files} files (audio: {self.audio})"
        if self.ok:
            return f"{head}: nothing found"
        width = max(len(f.kind) for f in self.findings)
        lines = [f"{head}: {len(self.findings)} findings", f"{'kind'.ljust(width)}  count  what"]
        for finding in self.findings:
            lines.append(f"{finding.kind.ljust(width)}  {finding.count:5d}  {finding.message}")
            shown = list(finding.items[:most])
            if len(finding.items) > most:
                shown.append(f"... and {len(finding.items) - most} more")
            lines += [f"{' ' * width}         {item}" for item in shown]
        return "\n".join(lines)


def check_splits(
    splits,
    labels=None,
    replacements=None,
    audio="full",
    max_duration=None,
    cache_file=None,
    num_workers=None,
    progress=True,
):
    """Check the records of one or more splits.

    Arguments
    ---------
    splits : dict
        Split name -> (id -> record), as ``docs/architecture.md`` has them. A corpus that is not split yet is one split
        of any name.
    labels : sequence of str, optional
        Allowed emotions. None: only spellings among themselves are compared.
    replacements : dict, optional
        ``{"data_root": FOLDER}`` for records that still hold the placeholder.
    audio : str
        ``off``, ``headers`` (container, rate, depth, length, identical bytes) or ``full`` (also silence and clipping).
    max_duration : float, optional
        Longest usable audio in seconds.
    cache_file : str or pathlib.Path, optional
        As in :func:`speechbrain_emo.dataio.audio_facts.scan_audio`.
    num_workers : int, optional
        Threads that read.
    progress : bool
        Show a progress bar.

    Returns
    -------
    DataCheck

    Raises
    ------
    ValueError
        If ``audio`` is unknown.

    Example
    -------
    >>> train = {"a": {"wav": "a.wav", "speaker": "1", "emotion": "joy"}}
    >>> test = {"b": {"wav": "b.wav", "speaker": "1", "emotion": "Joy"}}
    >>> [f.kind for f in check_splits({"train": train, "test": test}, ["joy"], audio="off").findings]
    ['speaker_in_splits', 'no_validation', 'class_missing', 'label_spelling']
    """
    if audio not in AUDIO_LEVELS:
        raise ValueError(f"audio is {audio!r}; allowed: {', '.join(AUDIO_LEVELS)}")
    rows = [(split, key, record) for split, records in splits.items() for key, record in records.items()]
    findings = [
        *_split_findings(splits),
        *_label_findings(splits, rows, labels),
        *_confounding(rows),
    ]
    uses = defaultdict(list)
    for split, key, record in rows:
        for part in record.get("audios") or [record]:
            if part.get("wav"):
                uses[_fill(part["wav"], replacements)].append((split, key, record, part))
    if audio != "off":
        facts = scan_audio(uses, audio == "full", cache_file, num_workers, progress)
        findings += [*_file_findings(facts, max_duration, uses), *_identity_findings(facts, uses)]
    order = list(KINDS)
    findings.sort(key=lambda f: order.index(f.kind))
    for root in (replacements or {}).values():
        # As the manifests name them: the report is the same wherever the corpus lies.
        findings = [
            CheckFinding(f.kind, f.message, tuple(item.replace(f"{root}/", "") for item in f.items))
            for f in findings
        ]
    counts = {split: len(records) for split, records in splits.items()}
    return DataCheck(tuple(findings), len(rows), len(uses), counts, audio)


def check_and_write(splits, save_folder, corpus, logger, **options):
    """Check what a preparation writes, put the report beside the manifests and log the table.

    Arguments
    ---------
    splits : dict
        As in :func:`check_splits`.
    save_folder : str or pathlib.Path
        Gets ``data_check.json``.
    corpus : str
        Its name, for the log.
    logger : logging.Logger
        Gets the table, as a warning where something was found.
    **options
        Further arguments of :func:`check_splits`.

    Returns
    -------
    DataCheck

    Example
    -------
    >>> import logging
    >>> check_and_write({"all": {}}, getfixture("tmp_path"), "None", logging.getLogger("x"), audio="off").num_records
    0
    """
    report = check_splits(splits, **options)
    text = json.dumps(report.to_dict(), ensure_ascii=False, indent=1) + "\n"
    write_text_atomically(Path(save_folder) / REPORT_FILE, text)
    (logger.info if report.ok else logger.warning)("Data check of %s: %s", corpus, report.table())
    return report


def _fill(wav, replacements):
    for key, value in (replacements or {}).items():
        wav = wav.replace("{" + key + "}", str(value), 1)
    return wav


# -- records -----------------------------------------------------------------------------------------------


def _split_findings(splits):
    found = []
    for field_name, kind in (("speaker", "speaker_in_splits"), ("dialogue", "dialogue_in_splits")):
        where = defaultdict(lambda: defaultdict(int))
        for split, records in splits.items():
            for record in records.values():
                unknown = field_name == "speaker" and record.get("speaker_unknown")
                if record.get(field_name) is not None and not unknown:
                    where[_name(record, field_name)][split] += 1
        shared = {
            name: ", ".join(f"{count} in {split}" for split, count in counts.items())
            for name, counts in where.items()
            if len(counts) > 1
        }
        if shared:
            items = tuple(f"{name}: {text}" for name, text in sorted(shared.items()))
            found.append(CheckFinding(kind, f"{len(shared)} of {len(where)} {field_name}s", items))
    if len(splits) > 1 and not any(splits.get(name) for name in ("valid", "dev", "validation")):
        found.append(CheckFinding("no_validation", f"splits: {', '.join(splits)}"))
    leaks = [
        key
        for records in splits.values()
        for key, record in records.items()
        if record.get("context_emotions")
        and record["context_emotions"][-1] == record.get("answer", record.get("emotion"))
    ]
    if leaks:
        message = "the last of the emotions of a dialogue is the answer: it must never reach a prompt"
        found.append(CheckFinding("answer_in_context", message, tuple(leaks)))
    spoken = [
        f"{key} ({split})"
        for split, records in splits.items()
        for key, record in records.items()
        if _answer(record)
        and _answer(record) in [(t.get("text") or "").strip() for t in record.get("turns") or ()]
    ]
    if spoken:
        found.append(
            CheckFinding("answer_in_context", "the response is one of the turns of its prompt", tuple(spoken))
        )
    return found


def _name(record, field_name):
    """A speaker or a dialogue; several corpora may use one name."""
    name, corpus = str(record.get(field_name)), record.get("corpus")
    return f"{corpus}/{name}" if corpus and field_name != "gender" else name


def _answer(record):
    response = record.get("response")
    text = response.get("text") if isinstance(response, dict) else None
    return (text or "").strip()


def _label_findings(splits, rows, labels):
    found = []
    counts = Counter(r["emotion"] for _, _, r in rows if r.get("emotion") is not None)
    if labels is not None:
        for label, count in sorted(counts.items()):
            if label not in labels:
                near = suggest(label, labels)
                hint = f"probably {near!r}" if near else f"allowed: {', '.join(labels)}"
                found.append(
                    CheckFinding(
                        "label_spelling", f"{label!r} in {count} records is no label: {hint}", (label,)
                    )
                )
    # What is no label has been named with the label that it is near to.
    for first, second in _same_label(sorted(c for c in counts if labels is None)):
        message = f"{first!r} ({counts[first]}) and {second!r} ({counts[second]}) look like one label"
        found.append(CheckFinding("label_spelling", message, (first, second)))
    known = set(labels or counts) & set(counts)
    lacking = []
    for split, records in splits.items():
        present = {r.get("emotion") for r in records.values()}
        if present - {None}:
            wanted = known if len(splits) > 1 else known | set(labels or ())
            lacking += [f"{split}: {label}" for label in sorted(wanted - present)]
    never = [f"all: {label}" for label in labels or () if counts and label not in counts and len(splits) > 1]
    if lacking or never:
        items = tuple(never + lacking)
        found.append(CheckFinding("class_missing", f"{len(items)} labels have no record", items))
    graded = [(key, r) for _, key, r in rows if "intensity" in r and r.get("emotion") != "neutral"]
    without = tuple(key for key, r in graded if r["intensity"] is None)
    if without and len(without) < len(graded):
        message = f"{len(without)} of {len(graded)} emotional records have no intensity"
        found.append(CheckFinding("label_incomplete", message, without))
    return found


def _same_label(names):
    pairs = []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            words = common_word(first), common_word(second)
            if words[0] != words[1] and None not in words:
                continue
            if suggest(first, [second]) is not None or suggest(second, [first]) is not None:
                pairs.append((first, second))
    return pairs


def _confounding(rows):
    found = []
    for field_name in ("speaker", "gender"):
        table = Counter(
            (_name(r, field_name), r["emotion"])
            for _, _, r in rows
            if r.get(field_name) is not None and r.get("emotion") is not None and not r.get("speaker_unknown")
        )
        names, labels = sorted({n for n, _ in table}), sorted({e for _, e in table})
        if len(names) < 2 or len(labels) < 2:
            continue
        counts = np.array([[table[n, e] for e in labels] for n in names])
        value = float(association(counts, method="cramer"))
        p = float(chi2_contingency(counts).pvalue)
        if value < CONFOUNDED_V or p > CONFOUNDED_P:
            continue
        single = [n for n, row in zip(names, counts) if (row > 0).sum() == 1]
        message = f"{field_name} and emotion: Cramer's V {value:.2f} over {counts.sum()} records"
        if single:
            message += f"; {len(single)} of {len(names)} {field_name}s have one emotion only"
        # The most one-sided first: they are what a person looks at.
        order = sorted(range(len(names)), key=lambda i: -counts[i].max() / counts[i].sum())
        items = tuple(
            f"{names[i]}: " + ", ".join(f"{e} {c}" for e, c in zip(labels, counts[i].tolist()) if c)
            for i in order
        )
        found.append(CheckFinding("confounded", message, items))
    return found


# -- files -------------------------------------------------------------------------------------------------


def _file_findings(facts, max_duration, uses):
    groups = defaultdict(list)
    usable = [f for f in facts.values() if f.error is None]
    rates = Counter(f.sample_rate for f in usable)
    usual = rates.most_common(1)[0][0] if rates else None
    for fact in facts.values():
        if fact.size < 0:
            groups["missing", "not there"].append(fact.path)
        elif fact.size == 0 or "no samples" in (fact.error or ""):
            groups["empty", "no samples"].append(fact.path)
        elif fact.error is not None:
            groups["unreadable", "cannot be used"].append(fact.error)
    for fact in usable:
        suffix = Path(fact.path).suffix.lower()
        if suffix not in SUFFIXES.get(fact.container, (suffix,)):
            groups["content_not_name", f"{fact.container} called {suffix or 'nothing'}"].append(fact.path)
        if fact.sample_rate != usual:
            message = f"{fact.sample_rate} Hz where most have {usual} Hz"
            groups["sample_rate", message].append(fact.path)
        if fact.channels != 1:
            groups["channels", f"{fact.channels} channels"].append(fact.path)
        if fact.subtype.startswith(("PCM_", "FLOAT", "DOUBLE")) and fact.subtype not in ("PCM_16",):
            groups["bit_depth", fact.subtype].append(fact.path)
        if fact.peak is not None and fact.peak < SILENT_PEAK:
            groups["silent", "peak below -60 dB of full scale"].append(fact.path)
        if fact.clipped is not None and fact.clipped >= CLIPPED_SHARE:
            groups["clipped", "at least 0.1 % of samples in runs at full scale"].append(
                f"{fact.path} ({100 * fact.clipped:.1f} %)"
            )
        # A segment of a long recording may be short enough.
        whole = any(part.get("start") is None and part.get("stop") is None for *_, part in uses[fact.path])
        if whole and fact.duration < MIN_DURATION:
            groups["too_short", f"below {MIN_DURATION} s"].append(f"{fact.path} ({fact.duration:.3f} s)")
        if whole and max_duration is not None and fact.duration > max_duration:
            groups["too_long", f"above {max_duration:g} s"].append(f"{fact.path} ({fact.duration:.1f} s)")
    if len(rates) == 1 and usual != 16000:
        groups["sample_rate", f"all files have {usual} Hz: they are resampled to 16000 Hz"].append(
            f"{len(usable)} files"
        )
    return [CheckFinding(kind, message, tuple(items)) for (kind, message), items in groups.items()]


def _identity_findings(facts, uses):
    groups = defaultdict(list)
    for paths in identical_files(facts.values()):
        members = [(path, split, record) for path in paths for split, _, record, _ in uses[path]]
        shown = " = ".join(paths)
        speakers = {_name(r, "speaker") for _, _, r in members if not r.get("speaker_unknown")}
        emotions = {str(r.get("emotion")) for _, _, r in members}
        splits = {split for _, split, _ in members}
        kinds = []
        if len(splits) > 1:
            kinds.append(("identical_in_splits", sorted(splits)))
        if len(speakers) > 1:
            kinds.append(("identical_under_speakers", sorted(speakers)))
        if len(emotions) > 1:
            kinds.append(("identical_under_emotions", sorted(emotions)))
        for kind, names in kinds or [("identical", None)]:
            groups[kind].append(f"{shown} ({', '.join(names)})" if names else shown)
    return [
        CheckFinding(kind, f"{len(items)} groups of byte-identical files", tuple(items))
        for kind, items in groups.items()
    ]

"""Emotions over a long recording: windows that are read one after another, so that memory does not grow with it.

Windows of a few seconds, as long as the utterances of training, are scored with the label asked for directly; a cell of
one hop gets the mean of the probabilities of the windows that cover it, and a Viterbi search with a cost for every
change turns cells into segments. Cells without sound are no emotion. What was scored is kept in a file as it comes: an
interrupted run goes on where it stopped.
"""

import hashlib
import json
import math
import resource
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_emo.brains.speech_language_model import AudioBatch
from speechbrain_emo.dataio.audio import AudioError, audio_info, load_audio
from speechbrain_emo.dataio.manifest import write_text_atomically
from speechbrain_emo.metrics.calibration import label_probabilities
from speechbrain_emo.plots import plot_timeline

# Every window gets the same wording of the prompt.
_RECORD_ID = "recording"
# A cell is heard when it is louder than this (dB re full scale), and not far below the loud part of the recording.
_FLOOR, _RANGE = -60.0, 40.0


@dataclass
class Segment:
    """A stretch of one emotion.

    Arguments
    ---------
    start, end : float
        Seconds.
    emotion : str or None
        None where no sound was heard.
    probability : float or None
        Mean probability of the emotion over the stretch.
    certain : bool
        Whether that reaches the model's threshold of abstention.
    probabilities : dict of str to float
        Mean of every label.
    """

    start: float
    end: float
    emotion: str | None
    probability: float | None = None
    certain: bool = True
    probabilities: dict = field(default_factory=dict)


@dataclass
class Timeline:
    """Emotions of a recording over time.

    Arguments
    ---------
    name : str
        File.
    duration : float
        Seconds.
    labels : list of str
        The K emotions.
    window, hop : float
        Seconds of a window, and from one to the next.
    segments : list of Segment
        In order, without gaps; ``emotion`` None is silence.
    times : list of float
        Borders of the C cells (C + 1), seconds.
    probabilities : list of (list of float or None)
        For each cell K probabilities, None where nothing was heard.
    levels : list of float
        Level of each cell in dB re full scale.
    run : dict
        Seconds, how many times faster than real time, memory.

    Example
    -------
    >>> t = Timeline("a.wav", 2.0, ["sad"], 2.0, 1.0, [Segment(0.0, 2.0, "sad", 0.9)], [0, 2], [[1.0]], [-20.0])
    >>> print(t.to_rttm(), end="")
    SPEAKER a 1 0.000 2.000 <NA> <NA> sad 0.900 <NA>
    """

    name: str
    duration: float
    labels: list
    window: float
    hop: float
    segments: list
    times: list
    probabilities: list
    levels: list
    run: dict = field(default_factory=dict)

    def to_dict(self):
        """Plain values for JSON."""
        return asdict(self)

    def to_rttm(self):
        """Rich Transcription Time Marked lines: the emotion stands in the place of the speaker."""
        name = "_".join(Path(self.name).stem.split()) or "recording"
        return "".join(
            f"SPEAKER {name} 1 {s.start:.3f} {s.end - s.start:.3f} <NA> <NA> {'_'.join(s.emotion.split())} "
            f"{s.probability:.3f} <NA>\n"
            for s in self.segments
            if s.emotion is not None
        )

    def __str__(self):
        lines = [f"{self.name}: {self.duration:.1f} s, windows of {self.window:g} s every {self.hop:g} s"]
        for s in self.segments:
            if s.emotion is None:
                what = "(no sound)"
            else:
                what = f"{s.emotion} ({100 * s.probability:.0f} %)" + ("" if s.certain else ", not sure")
            lines.append(f"{_clock(s.start):>10} {_clock(s.end):>10}  {what}")
        return "\n".join(lines)


def make_timeline(
    explainer, path, folder, window=3.0, hop=1.0, switch_cost=1.0, batch_size=16, progress=None
):
    """Score a recording of any length and write ``<name>.json``, ``.rttm`` and ``.png``.

    Arguments
    ---------
    explainer : EmotionExplainer
        Loaded model.
    path : str or pathlib.Path
        Audio file.
    folder : str or pathlib.Path
        Where the results and the scores so far (``<name>.windows.jsonl``) go.
    window : float
        Seconds of a window; at most what the model takes.
    hop : float
        Seconds from one window to the next: the precision of the times.
    switch_cost : float
        Cost of a change of emotion in nats: higher gives fewer, longer segments; 0 takes every cell for itself.
    batch_size : int
        Windows at a time.
    progress : bool, optional
        Show a bar. Default: on a terminal.

    Returns
    -------
    Timeline

    Raises
    ------
    AudioError
        If the file cannot be used.
    ValueError
        If a setting is out of range, or a window is longer than the model takes.
    """
    path, folder = Path(path), Path(folder)
    for name, value in (("window", window), ("hop", hop)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}: give a positive number of seconds")
    if hop > window:
        raise ValueError(
            f"hop is {hop:g} s, window {window:g} s: what lies between windows would not be heard"
        )
    if not switch_cost >= 0:
        raise ValueError(f"switch_cost is {switch_cost}: give 0 or more")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: give 1 or more")
    info = audio_info(path)
    if info.num_samples == 0:
        raise AudioError(f"{path}: the file has a valid header but no samples")
    _check_window(explainer, window, path)
    starts = _window_starts(info.num_samples, info.sample_rate, window, hop)
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / f"{path.stem}.windows.jsonl"
    head = {
        "file": path.name,
        "size": path.stat().st_size,
        "modified": path.stat().st_mtime_ns,
        "samples": info.num_samples,
        "sample_rate": info.sample_rate,
        "window": window,
        "hop": hop,
        "model": _fingerprint(explainer),
        "labels": explainer.labels,
    }
    rows = _read_state(state, head)
    # Whole batches, so that rounding is the same as without an interrupt.
    if len(rows) < len(starts):
        rows = rows[: len(rows) // batch_size * batch_size]
    _write_state(state, head, rows)
    begun, before, already = time.monotonic(), _peak_memory(), len(rows)
    with open(state, "a", encoding="utf-8") as stream:
        bar = tqdm(
            total=len(starts),
            initial=already,
            desc="timeline",
            unit="window",
            disable=None if progress is None else not progress,
        )
        with bar:
            for first in range(already, len(starts), batch_size):
                chosen = starts[first : first + batch_size]
                for row in _score(explainer, path, info, chosen, window, hop):
                    stream.write(json.dumps(row) + "\n")
                    rows.append(row)
                stream.flush()
                bar.update(len(chosen))
    duration = info.num_samples / info.sample_rate
    times, probabilities, levels = _cells(rows, starts, info, window, hop, len(explainer.labels))
    segments = segment_cells(times, probabilities, explainer.labels, switch_cost, explainer.abstain_below)
    seconds = time.monotonic() - begun
    heard = duration * (len(starts) - already) / len(starts)
    run = {
        "seconds": seconds,
        "windows": len(starts) - already,
        "windows_kept": already,
        "times_real_time": heard / seconds if seconds > 0 else None,
        "peak_memory_bytes": _peak_memory(),
        "peak_memory_beyond_model_bytes": _peak_memory() - before,
    }
    plain = [None if np.isnan(row).any() else [round(float(v), 5) for v in row] for row in probabilities]
    timeline = Timeline(
        str(path),
        duration,
        explainer.labels,
        window,
        hop,
        segments,
        [round(float(t), 4) for t in times],
        plain,
        [round(float(v), 2) for v in levels],
        run,
    )
    write_text_atomically(
        folder / f"{path.stem}.json", json.dumps(timeline.to_dict(), ensure_ascii=False) + "\n"
    )
    write_text_atomically(folder / f"{path.stem}.rttm", timeline.to_rttm())
    plot_timeline(
        times,
        probabilities,
        explainer.labels,
        [asdict(s) for s in segments],
        levels,
        folder / f"{path.stem}.png",
        path.name,
    )
    return timeline


def segment_cells(times, probabilities, labels, switch_cost=1.0, abstain_below=0.0):
    """The cheapest sequence of emotions over cells, as segments.

    Arguments
    ---------
    times : array
        float (C + 1,): borders of the cells in seconds.
    probabilities : array
        float (C, K); rows of NaN where nothing was heard: they are segments of their own and end a sequence.
    labels : sequence of str
        K names.
    switch_cost : float
        Cost of a change, in nats.
    abstain_below : float
        Segments whose mean probability is lower are not certain.

    Returns
    -------
    list of Segment
        In order, without gaps.

    Example
    -------
    >>> cells = [[0.9, 0.1], [0.4, 0.6], [0.9, 0.1], [float("nan")] * 2, [0.2, 0.8]]
    >>> [(s.start, s.end, s.emotion) for s in segment_cells(range(6), cells, ["sad", "happy"])]
    [(0.0, 3.0, 'sad'), (3.0, 4.0, None), (4.0, 5.0, 'happy')]
    """
    times, probabilities = np.asarray(times, dtype=float), np.asarray(probabilities, dtype=float)
    silent = np.isnan(probabilities).any(1)
    path, first = np.full(len(probabilities), -1), 0
    for stop in [*np.flatnonzero(np.diff(silent)) + 1, len(silent)]:
        if stop > first and not silent[first]:
            path[first:stop] = _viterbi(np.log(np.maximum(probabilities[first:stop], 1e-8)), switch_cost)
        first = stop
    borders = [0, *(np.flatnonzero(np.diff(path)) + 1).tolist(), len(path)]
    segments = []
    for first, stop in zip(borders, borders[1:]):
        start, end = float(times[first]), float(times[stop])
        if path[first] < 0:
            segments.append(Segment(start, end, None))
            continue
        mean = np.average(probabilities[first:stop], axis=0, weights=np.diff(times)[first:stop])
        best = float(mean[path[first]])
        segments.append(
            Segment(
                start,
                end,
                labels[path[first]],
                best,
                best >= abstain_below,
                {name: float(p) for name, p in zip(labels, mean)},
            )
        )
    return segments


def _viterbi(scores, switch_cost):
    """Best label of every row (C, K) of log-probabilities when each change costs ``switch_cost``."""
    best, back = scores[0], np.zeros(scores.shape, dtype=np.int32)
    for i in range(1, len(scores)):
        other = int(best.argmax())
        moved = best[other] - switch_cost
        back[i] = np.where(best >= moved, np.arange(scores.shape[1]), other)
        best = np.maximum(best, moved) + scores[i]
    path = np.zeros(len(scores), dtype=np.int64)
    path[-1] = best.argmax()
    for i in range(len(scores) - 1, 0, -1):
        path[i - 1] = back[i, path[i]]
    return path


def _window_starts(num_samples, sample_rate, window, hop):
    """First samples of the windows; the last window ends with the file."""
    width, step = round(window * sample_rate), round(hop * sample_rate)
    if num_samples <= width:
        return [0]
    starts = list(range(0, num_samples - width, step))
    return [*starts, num_samples - width]


def _check_window(explainer, window, path):
    """A window must fit the model; told before anything is scored."""
    samples = torch.zeros(round(window * explainer.sample_rate))
    if window > explainer.max_duration:
        raise ValueError(f"window is {window:g} s: the model takes at most {explainer.max_duration:g} s")
    explainer.check_length(samples, f"window of {path}")


def _score(explainer, path, info, starts, window, hop):
    """Label scores of some windows, and the level of the first hop of each."""
    width = round(window * info.sample_rate)
    waveforms = [
        load_audio(path, explainer.sample_rate, start, min(start + width, info.num_samples))
        for start in starts
    ]
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    audio = AudioBatch(torch.tensor([len(w) for w in waveforms]), waveforms=padded).to(explainer.device)
    with torch.no_grad(), explainer.inference_ctx:
        scores = explainer.explainer.score_labels([{"id": _RECORD_ID}] * len(starts), audio)
    step = round(hop * explainer.sample_rate)
    for start, waveform, row in zip(starts, waveforms, scores):
        cells = [piece for piece in waveform.split(step) if len(piece)]
        levels = [10 * math.log10(max(float(piece.square().mean()), 1e-20)) for piece in cells]
        yield {
            "start": start,
            "scores": [round(row[name], 6) for name in explainer.labels],
            "levels": [round(v, 2) for v in levels],
            "temperature": explainer.speech_temperature,
        }


def _cells(rows, starts, info, window, hop, num_labels):
    """Borders (C + 1), mean probabilities (C, K) with NaN where nothing is heard, and levels (C,)."""
    duration = info.num_samples / info.sample_rate
    step = round(hop * info.sample_rate) / info.sample_rate
    count = max(1, math.ceil(round(duration / step, 6)))
    times = np.minimum(np.arange(count + 1) * step, duration)
    total, weight = np.zeros((count, num_labels)), np.zeros(count)
    levels = np.full(count, -200.0)
    for start, row in zip(starts, rows):
        begin = start / info.sample_rate
        end = min(begin + window, duration)
        probabilities = label_probabilities(row["scores"], row["temperature"])
        first, last = int(begin / step + 1e-6), min(int(math.ceil(end / step - 1e-6)), count)
        for cell in range(first, max(last, first + 1)):
            overlap = min(end, times[cell + 1]) - max(begin, times[cell])
            if overlap > 0:
                total[cell] += overlap * probabilities
                weight[cell] += overlap
        for i, level in enumerate(row["levels"]):
            # The last window need not begin on a border: its pieces count for the cell of their middle.
            cell = min(int((begin + (i + 0.5) * step) / step), count - 1)
            levels[cell] = max(levels[cell], level)
    probabilities = total / weight[:, None]
    heard = levels > max(_FLOOR, float(np.percentile(levels, 95)) - _RANGE)
    probabilities[~heard] = np.nan
    return times, probabilities, levels


def _read_state(path, head):
    """Windows scored so far under the same settings; none where the file is of other settings."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    if lines[0] != json.dumps({"timeline": head}):
        return []
    # What stands after the last newline was cut by a kill.
    return [json.loads(line) for line in lines[1:-1]]


def _write_state(path, head, rows):
    lines = [json.dumps({"timeline": head}), *map(json.dumps, rows)]
    write_text_atomically(path, "\n".join(lines) + "\n")


def _fingerprint(explainer):
    """Hash of the weights that score: another model's windows are not read."""
    digest = hashlib.sha256()
    model = explainer.explainer.model
    for part in (model.front_end, model.llm):
        for name, value in part.state_dict().items():
            digest.update(name.encode("utf-8"))
            digest.update(value.detach().cpu().float().sum().numpy().tobytes())
    digest.update(model.encoder.fingerprint.encode("utf-8"))
    return digest.hexdigest()


def _peak_memory():
    """Largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _clock(seconds):
    """Seconds as minutes and seconds.

    Example
    -------
    >>> _clock(3725.5)
    '1:02:05.5'
    """
    # Rounded first: 59.96 s is one minute.
    tenths = round(seconds * 10)
    hours, rest = divmod(tenths, 36000)
    minutes, rest = divmod(rest, 600)
    text = f"{minutes:02d}:{rest / 10:04.1f}"
    return f"{hours}:{text}" if hours else text

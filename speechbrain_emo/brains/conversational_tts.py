"""Training and evaluation of the synthesiser of conversations (JELLY's stage 3, arXiv 2501.04904, section 2.5).

``run_conversational_tts`` is what a YAML's ``run`` names. Lines of a manifest with ``phones`` (or a ``textgrid`` each)
are analysed once, into a file a line, so that an interrupt loses one line; an acoustic model learns from them; what it
writes for held-out lines is measured; and a folder for inference is written: JSON and safetensors, no code.
"""

import hashlib
import json
import logging
import math
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import speechbrain as sb
import torch
from safetensors.torch import load_file, save_file
from speechbrain.utils.distributed import run_on_main
from tqdm import tqdm

from speechbrain_emo import results
from speechbrain_emo.alignment.textgrid import read_textgrid
from speechbrain_emo.brains.checkpointing import AtomicCheckpointer, RandomState, load_module, save_module
from speechbrain_emo.dataio.acoustics import (
    UNKNOWN,
    average_by_phone,
    phone_durations,
    pitch_track,
    spread_pitch,
)
from speechbrain_emo.dataio.audio import load_audio
from speechbrain_emo.dataio.manifest import ManifestError, read_manifest, split_hash, write_text_atomically
from speechbrain_emo.lobes.fastspeech import EmotionalFastSpeech2, acoustic_loss
from speechbrain_emo.lobes.mel_vocoder import MelSettings, make_vocoder
from speechbrain_emo.metrics.emotion_judge import EmotionJudge, functionals, through_vocoder
from speechbrain_emo.prompts.tasks import keyed_random, keyed_seed

logger = logging.getLogger(__name__)

NO_INTENSITY = "none"
MODEL_FILE, WEIGHTS_FILE = "tts.json", "acoustic.safetensors"
FORMAT = "speechbrain_emo conversational tts"
CEPSTRA = 13


def phones_of(record):
    """Phonemes with their times: those of the record, or of its TextGrid, without stress marks.

    Raises
    ------
    ManifestError
        If the record has neither.
    """
    if record.get("phones"):
        return record["phones"]
    if not record.get("textgrid"):
        raise ManifestError(
            f"record {record.get('id')!r} has no phones and no textgrid: align it first (docs/alignment.md)"
        )
    speakers = read_textgrid(record["textgrid"]).speakers()
    tiers = [phones for _, phones in speakers.values() if phones is not None]
    if not tiers:
        raise ManifestError(f"{record['textgrid']}: no tier of phones")
    marks = ("", "sil", "sp", "spn", "<eps>")
    return [
        {"phone": label.rstrip("012"), "start": start, "end": end}
        for start, end, label in tiers[0].entries
        if label.strip().lower() not in marks
    ]


def analyse_line(record, settings, pitch_method):
    """What the acoustic model learns from one line.

    Arguments
    ---------
    record : dict
        With audio and phonemes.
    settings : MelSettings
        Of the mel spectrogram.
    pitch_method : str
        See :func:`speechbrain_emo.dataio.acoustics.pitch_track`.

    Returns
    -------
    tuple
        Phonemes (list of str) and a dict of arrays: ``mel`` float32 (T, M), ``frames`` int64 (S,), ``pitch`` (log F0)
        and ``energy`` (logarithm) float32 (S,).
    """
    samples = load_audio(record["wav"], settings.sample_rate, record.get("start"), record.get("stop"))
    mel, energy = settings.analyse(torch.as_tensor(samples))
    rate = settings.sample_rate / settings.hop_length
    names, frames = phone_durations(phones_of(record), len(mel), rate)
    track = pitch_track(
        np.asarray(samples), settings.sample_rate, settings.hop_length, len(mel), pitch_method
    )
    return names, {
        "mel": mel,
        "frames": torch.as_tensor(frames),
        "pitch": torch.as_tensor(average_by_phone(track, frames)),
        "energy": torch.as_tensor(
            np.log(np.maximum(average_by_phone(energy.numpy(), frames), 1e-5)).astype(np.float32)
        ),
    }


class AcousticLines:
    """Analysed lines of one part.

    Arguments
    ---------
    records : dict
        id -> record.
    settings : MelSettings
        Of the mel spectrogram.
    folder : str or pathlib.Path
        Where analyses are kept.
    pitch_method : str
        ``pyin`` or ``yin``.

    Example
    -------
    >>> AcousticLines.__name__
    'AcousticLines'
    """

    def __init__(self, records, settings, folder, pitch_method):
        self.records, self.settings = records, settings
        self.folder, self.pitch_method = Path(folder), pitch_method
        self.keys = list(records)
        self._kept = {}

    def _file(self, key):
        record = self.records[key]
        stat = os.stat(record["wav"])
        parts = [record["wav"], record.get("start"), record.get("stop"), stat.st_size, stat.st_mtime_ns]
        phones = record.get("phones") or record.get("textgrid")
        text = json.dumps([parts, phones, self.settings.to_dict(), self.pitch_method], sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"

    def analyse(self, description):
        """Analyse what is not there yet, with a progress bar; a faulty line is left out and named."""
        self.folder.mkdir(parents=True, exist_ok=True)
        faulty = []
        for key in tqdm(self.keys, desc=description, unit="line", mininterval=1.0):
            path = self._file(key)
            if path.is_file():
                continue
            try:
                names, arrays = analyse_line(self.records[key], self.settings, self.pitch_method)
            except ValueError as error:
                faulty.append(key)
                logger.warning(f"{key} is left out: {error}")
                continue
            temporary = path.with_suffix(".partial")
            save_file(arrays, str(temporary), metadata={"phones": json.dumps(names)})
            os.replace(temporary, path)
        self.keys = [k for k in self.keys if k not in set(faulty)]

    def __getitem__(self, key):
        """Phonemes and arrays of a line."""
        if key not in self._kept:
            from safetensors import safe_open

            with safe_open(str(self._file(key)), framework="pt") as stream:
                names = json.loads(stream.metadata()["phones"])
                self._kept[key] = names, {n: stream.get_tensor(n) for n in stream.keys()}
        return self._kept[key]


class Inventory:
    """Phonemes, speakers, emotions, intensities and statistics of a model, as plain values.

    Arguments
    ---------
    phones, speakers, emotions, intensities : sequence of str
        In the order of their numbers; the phonemes' begin at 1, the last intensity is ``none``.
    statistics : mapping
        ``pitch`` and ``energy``: mean and standard deviation over the training phonemes.

    Example
    -------
    >>> inventory = Inventory(["unk", "a"], ["x"], ["sad"], ["weak"], {"pitch": [5.0, 0.5], "energy": [0.0, 1.0]})
    >>> inventory.phone_ids(["a", "q"]), inventory.intensity_id(None)
    ([2, 1], 1)
    """

    def __init__(self, phones, speakers, emotions, intensities, statistics):
        self.phones, self.speakers = list(phones), [str(s) for s in speakers]
        self.emotions = list(emotions)
        self.intensities = [i for i in intensities if i != NO_INTENSITY] + [NO_INTENSITY]
        self.statistics = {k: [float(v) for v in values] for k, values in statistics.items()}
        self._ids = {p: i for i, p in enumerate(self.phones, 1)}

    def to_dict(self):
        """Plain values."""
        names = ("phones", "speakers", "emotions", "intensities", "statistics")
        return {n: getattr(self, n) for n in names}

    def phone_ids(self, names):
        """Numbers of phonemes; unknown ones have that of ``unk``."""
        return [self._ids.get(n, self._ids[UNKNOWN]) for n in names]

    def _index(self, what, values, value):
        if value not in values:
            raise ValueError(f"{what} is {value!r}; this synthesiser knows {', '.join(map(str, values))}")
        return values.index(value)

    def speaker_id(self, speaker):
        """Number of a speaker.

        Raises
        ------
        ValueError
            If it is unknown.
        """
        return self._index("speaker", self.speakers, str(speaker))

    def emotion_id(self, emotion):
        """Number of an emotion; raises as :meth:`speaker_id`."""
        return self._index("emotion", self.emotions, emotion)

    def intensity_id(self, intensity):
        """Number of an intensity, None for none; raises as :meth:`speaker_id`."""
        return self._index("intensity", self.intensities, intensity or NO_INTENSITY)

    def pitch_of_frames(self, pitch, durations):
        """F0 of every frame of one line, as a vocoder wants it.

        Arguments
        ---------
        pitch : torch.Tensor
            Normalised as the model has it, of each phoneme, float32 (S,).
        durations : torch.Tensor
            int64 (S,).

        Returns
        -------
        torch.Tensor
            Hz, float32 (T,), from 60 to 500.

        Example
        -------
        >>> inventory = Inventory(["unk"], ["x"], ["sad"], ["weak"], {"pitch": [5.0, 0.5], "energy": [0.0, 1.0]})
        >>> inventory.pitch_of_frames(torch.tensor([0.0, 1.0]), torch.tensor([1, 1])).round().tolist()
        [148.0, 245.0]
        """
        mean, deviation = self.statistics["pitch"]
        # What the pitch tracker can find bounds what a predictor may ask for.
        log_f0 = (pitch.detach().cpu().numpy() * deviation + mean).clip(math.log(60.0), math.log(500.0))
        return torch.from_numpy(spread_pitch(log_f0, durations.cpu().numpy()))


def fit_inventory(lines, emotions, intensities, minimum=5):
    """What a model must know, from its training lines.

    Arguments
    ---------
    lines : AcousticLines
        Of training.
    emotions, intensities : sequence of str
        Labels.
    minimum : int
        Phonemes that are rarer are unknown.

    Returns
    -------
    Inventory
    """
    counts = Counter(p for key in lines.keys for p in lines[key][0])
    phones = [UNKNOWN, *sorted(p for p, n in counts.items() if n >= minimum and p != UNKNOWN)]
    statistics = {}
    for name in ("pitch", "energy"):
        values = torch.cat([lines[key][1][name] for key in lines.keys])
        values = values[values != 0] if name == "pitch" else values
        statistics[name] = [float(values.mean()), max(float(values.std()), 1e-3)]
    speakers = sorted({str(lines.records[key]["speaker"]) for key in lines.keys})
    return Inventory(phones, speakers, emotions, intensities, statistics)


class AcousticBatches(torch.utils.data.IterableDataset):
    """Batches of lines of like length; the order hangs on (seed, epoch) only.

    Arguments
    ---------
    lines : AcousticLines
        Analysed.
    inventory : Inventory
        Of the model.
    batch_size : int
        Lines.
    seed : int
        Of the order.
    shuffle : bool
        False in validation.

    Example
    -------
    >>> AcousticBatches.__mro__[1].__name__
    'IterableDataset'
    """

    def __init__(self, lines, inventory, batch_size, seed, shuffle=True):
        self.lines, self.inventory = lines, inventory
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.epoch = 0

    def __len__(self):
        return math.ceil(len(self.lines.keys) / self.batch_size)

    def __iter__(self):
        keys = list(self.lines.keys)
        rng = keyed_random(self.seed, "lines", self.epoch)
        if self.shuffle:
            rng.shuffle(keys)
        # Like lengths together, within a window of the shuffled order.
        window = 8 * self.batch_size
        batches = []
        for start in range(0, len(keys), window):
            some = sorted(keys[start : start + window], key=lambda k: len(self.lines[k][1]["mel"]))
            batches += [some[i : i + self.batch_size] for i in range(0, len(some), self.batch_size)]
        if self.shuffle:
            rng.shuffle(batches)
        for batch in batches:
            yield self.collate(batch)

    def conditions(self, record):
        """Numbers of a line's speaker, emotion and intensity."""
        degree = (record.get("descriptors") or {}).get("intensity")
        inventory = self.inventory
        return (
            inventory.speaker_id(record["speaker"]),
            inventory.emotion_id(record["emotion"]),
            inventory.intensity_id(degree),
        )

    def collate(self, keys):
        """Padded tensors of some lines: dict."""
        rows = [self.lines[k] for k in keys]
        statistics = self.inventory.statistics

        def pad(values):
            return torch.nn.utils.rnn.pad_sequence(values, batch_first=True)

        speaker, emotion, intensity = zip(
            *(self.conditions(self.lines.records[k]) for k in keys), strict=True
        )
        return {
            "phones": pad([torch.tensor(self.inventory.phone_ids(names)) for names, _ in rows]),
            "durations": pad([a["frames"] for _, a in rows]),
            "mel": pad([a["mel"] for _, a in rows]),
            **{
                n: pad([(a[n] - statistics[n][0]) / statistics[n][1] for _, a in rows])
                for n in ("pitch", "energy")
            },
            "speaker": torch.tensor(speaker),
            "emotion": torch.tensor(emotion),
            "intensity": torch.tensor(intensity),
        }


class AcousticBrain(sb.Brain):
    """Trains an :class:`EmotionalFastSpeech2`; a killed run repeats its last epoch exactly.

    Arguments
    ---------
    batches, valid : AcousticBatches
        Training and validation.
    schedule : mapping
        ``lr``, ``warmup`` (steps), ``num_steps``.
    log : pathlib.Path
        JSON-lines file with a line an epoch.
    **options
        As in ``sb.Brain``.

    Example
    -------
    >>> AcousticBrain.__mro__[1].__name__
    'Brain'
    """

    def __init__(self, batches, valid, schedule, log, **options):
        super().__init__(**options)
        self.batches, self.valid_batches, self.schedule, self.log = batches, valid, schedule, Path(log)
        self.losses = Counter()

    def compute_forward(self, batch, stage):
        """The model on a batch, with true durations, pitch and energy."""
        batch = {k: v.to(self.device) for k, v in batch.items()}
        names = ("phones", "speaker", "emotion", "intensity", "durations", "pitch", "energy")
        return self.modules["model"](**{n: batch[n] for n in names}), batch

    def compute_objectives(self, predictions, batch, stage):
        """The sum of the losses."""
        output, batch = predictions
        losses = acoustic_loss(
            output, batch["mel"], batch["phones"], batch["durations"], batch["pitch"], batch["energy"]
        )
        for name, value in losses.items():
            self.losses[name] += float(value.detach())
        self.losses["batches"] += 1
        return losses["loss"]

    def on_fit_batch_start(self, batch, should_step):
        """Learning rate of the step: a rise, then a cosine."""
        step = (self.hparams.epoch_counter.current - 1) * len(self.batches) + self.step - 1
        warmup, total = self.schedule["warmup"], self.schedule["num_steps"]
        if step < warmup:
            share = (step + 1) / warmup
        else:
            share = 0.5 * (1 + math.cos(math.pi * min((step - warmup) / max(total - warmup, 1), 1.0)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule["lr"] * max(share, 0.01)

    def on_stage_start(self, stage, epoch=None):
        """Order and dropout of an epoch hang on its number only."""
        self.losses = Counter()
        if stage == sb.Stage.TRAIN:
            self.batches.epoch = epoch
            self.started = time.time()
            torch.manual_seed(keyed_seed(self.hparams.seed, "acoustic", epoch))

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log and save."""
        means = {k: v / self.losses["batches"] for k, v in self.losses.items() if k != "batches"}
        if stage == sb.Stage.TRAIN:
            self.train_means = means
        elif stage == sb.Stage.VALID:
            line = {"epoch": epoch, "train": self.train_means, "valid": means}
            line["seconds"] = time.time() - self.started
            lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.is_file() else []
            lines = [x for x in lines if json.loads(x)["epoch"] < epoch] + [json.dumps(line)]
            run_on_main(write_text_atomically, args=[self.log, "\n".join(lines) + "\n"])
            logger.info(
                f"epoch {epoch}: train mel {self.train_means['refined']:.3f}, valid mel {means['refined']:.3f}, "
                f"duration {means['duration']:.3f}"
            )
            self.checkpointer.save_checkpoint(meta={"phase": "tts", "loss": means["loss"]})
            self.checkpointer.keep_best(["tts"])


def run_conversational_tts(hparams, run_opts):
    """Analyse, train, measure and export; a finished run is not repeated.

    Arguments
    ---------
    hparams : dict
        Keys: ``seed``, ``manifests`` (train, valid, test), ``data_folder``, ``output_folder``, ``save_folder``,
        ``features_folder``, ``mel`` (of :class:`MelSettings`), ``pitch_method``, ``emotions``, ``intensities``,
        ``model`` (of :class:`EmotionalFastSpeech2`), ``g2p`` (espeak or arpabet), ``vocoder`` and
        ``vocoder_source``, ``epochs``, ``batch_size``, ``lr``, ``warmup``, ``weight_decay``, ``max_grad_norm``,
        ``evaluation`` (``num_lines``).
    run_opts : dict
        SpeechBrain's run options.

    Returns
    -------
    dict
        The metrics.
    """
    folder = Path(hparams["output_folder"])
    done = folder / "results.json"
    settings = MelSettings(**hparams["mel"])
    manifests = {
        split: read_manifest(path, {"data_root": hparams["data_folder"]})
        for split, path in hparams["manifests"].items()
    }
    stamp = _settings_stamp(hparams, manifests)
    if done.is_file():
        kept = json.loads(done.read_text(encoding="utf-8"))
        if kept.get("settings_stamp") == stamp:
            logger.info(f"{folder} is complete with these settings; nothing to do (remove it to repeat)")
            return kept["metrics"]
        raise ValueError(f"{folder} holds a finished run with other settings: choose another output_folder")
    started = time.time()
    lines = {}
    for split, records in manifests.items():
        lines[split] = AcousticLines(records, settings, hparams["features_folder"], hparams["pitch_method"])
        run_on_main(lines[split].analyse, args=[f"analyse {split}"])
    inventory = fit_inventory(lines["train"], hparams["emotions"], hparams["intensities"])
    known = set(inventory.speakers)
    for split in ("valid", "test"):
        absent = {str(r["speaker"]) for r in manifests[split].values()} - known
        if absent:
            raise ManifestError(f"{split}: speakers {sorted(absent)} are not in the training part")
    # Before the training: a vocoder that cannot be had is known at once. The main process fetches it for all.
    wanted = (hparams["vocoder"], settings, hparams.get("vocoder_source"))
    run_on_main(make_vocoder, args=wanted)
    vocoder = make_vocoder(*wanted)
    model, brain = _brain(hparams, run_opts, lines, inventory, settings, folder)
    brain.fit(
        brain.hparams.epoch_counter,
        torch.utils.data.DataLoader(brain.batches, batch_size=None),
        torch.utils.data.DataLoader(brain.valid_batches, batch_size=None),
    )
    brain.checkpointer.load_only(brain.checkpointer.best("tts")[0], ["model"])
    model.eval()
    run_on_main(export_tts, args=[folder / "model", model, inventory, settings, hparams])
    metrics = evaluate_tts(model, inventory, lines, settings, vocoder, hparams["evaluation"])
    context = results.run_context(
        seed=hparams["seed"],
        split_hash=split_hash(manifests),
        wall_time=time.time() - started,
        command=hparams.get("command"),
        settings_stamp=stamp,
        parameters=sum(p.numel() for p in model.parameters()),
    )
    results.write_results(folder, metrics, context)
    rows = [{"metric": k, "value": v} for k, v in sorted(metrics.items())]
    print(results.format_table(rows, style="plain"))
    return metrics


def _settings_stamp(hparams, manifests):
    names = (
        "seed mel pitch_method emotions intensities model epochs batch_size lr warmup weight_decay evaluation "
        "vocoder"
    )
    plain = {**{n: hparams[n] for n in names.split()}, "vocoder_source": hparams.get("vocoder_source")}
    text = json.dumps([plain, split_hash(manifests)], sort_keys=True, default=lambda x: dict(x))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _brain(hparams, run_opts, lines, inventory, settings, folder):
    torch.manual_seed(hparams["seed"])
    model = EmotionalFastSpeech2(
        len(inventory.phones) + 1,
        len(inventory.speakers),
        len(inventory.emotions),
        len(inventory.intensities),
        num_mels=settings.num_mels,
        **hparams["model"],
    )
    seed, size = hparams["seed"], int(hparams["batch_size"])
    batches = AcousticBatches(lines["train"], inventory, size, seed)
    valid = AcousticBatches(lines["valid"], inventory, size, seed, shuffle=False)
    counter = sb.utils.epoch_loop.EpochCounter(int(hparams["epochs"]))
    checkpointer = AtomicCheckpointer(hparams["save_folder"])
    checkpointer.add_recoverable("model", model, load_module, save_module)
    checkpointer.add_recoverable("counter", counter)
    checkpointer.add_recoverable("random_state", RandomState())
    checkpointer.remove_partial()
    schedule = {
        "lr": float(hparams["lr"]),
        "warmup": int(hparams["warmup"]),
        "num_steps": len(batches) * int(hparams["epochs"]),
    }
    options = dict(run_opts or {})
    options["max_grad_norm"] = float(hparams["max_grad_norm"])
    folder.mkdir(parents=True, exist_ok=True)

    def optimizer(parameters):
        return torch.optim.AdamW(parameters, schedule["lr"], weight_decay=float(hparams["weight_decay"]))

    brain = AcousticBrain(
        batches,
        valid,
        schedule,
        folder / "train_log.jsonl",
        modules={"model": model},
        opt_class=optimizer,
        hparams={"seed": seed, "epoch_counter": counter},
        run_opts=options,
        checkpointer=checkpointer,
    )
    return model, brain


# ---------------------------------------------------------------------------------------------- evaluation
def mel_cepstral_distortion(mel, reference):
    """Distance of two spectrograms after the best alignment, in dB.

    (10 / ln 10) sqrt(2 sum_k (c_k - c'_k)^2) over cepstra 1 to 13, averaged along the path of dynamic time warping
    (Kubichek 1993). The cepstra are the orthonormal cosine transform of natural log-mels, so that figures compare
    with others of this toolkit, not with those from vocoder-specific mel-cepstra.

    Arguments
    ---------
    mel, reference : numpy.ndarray
        float32 (T, M) and (T', M).

    Returns
    -------
    float

    Example
    -------
    >>> mel = np.random.default_rng(0).normal(size=(5, 20))
    >>> round(mel_cepstral_distortion(mel, np.repeat(mel, 2, axis=0)), 6)
    0.0
    """
    from scipy.fft import dct

    from speechbrain_emo.dataio.compiled_librosa import librosa

    one, two = (dct(np.asarray(x), norm="ortho", axis=1)[:, 1 : CEPSTRA + 1] for x in (mel, reference))
    distance = np.sqrt(2.0 * np.square(one[:, None] - two[None]).sum(-1))
    _, path = librosa.sequence.dtw(C=distance)
    return float(10.0 / math.log(10.0) * distance[path[:, 0], path[:, 1]].mean())


def evaluate_tts(model, inventory, lines, settings, vocoder, evaluation):
    """Held-out lines with the conditions of their recordings.

    Arguments
    ---------
    model : EmotionalFastSpeech2
        Trained.
    inventory : Inventory
        Its labels.
    lines : dict of str to AcousticLines
        ``train`` and ``test``.
    settings : MelSettings
        Of the mel spectrogram.
    vocoder : callable
        (mel, F0) -> samples.
    evaluation : mapping
        ``num_lines``: of the test part, and about so many recordings train the classifier.

    Returns
    -------
    dict
        ``test.tts.duration_error`` (mean absolute, seconds a line), ``.mcd`` (dB), ``.mcd_true_durations``, and the
        accuracy of the asked emotion by :class:`EmotionJudge`, trained on recordings: ``.emotion_accuracy``, and of
        the recordings themselves, ``.emotion_accuracy_recorded`` and, through the vocoder,
        ``.emotion_accuracy_resynthesised``; with ``_vocoded_judge`` behind it, by a judge that was trained on
        recordings through the same vocoder.
    """
    most = int(evaluation["num_lines"])
    device = next(model.parameters()).device
    test = lines["test"].keys[:: max(len(lines["test"].keys) // most, 1)]
    train = lines["train"].keys[:: max(len(lines["train"].keys) // (4 * most), 1)]
    batches = AcousticBatches(lines["test"], inventory, 1, 0, shuffle=False)
    rate = settings.sample_rate / settings.hop_length
    errors, distances, with_durations, heard = [], [], [], {"spoken": []}
    for key in tqdm(test, desc="synthesise", unit="line"):
        batch = {k: v.to(device) for k, v in batches.collate([key]).items()}
        asked = {n: batch[n] for n in ("phones", "speaker", "emotion", "intensity")}
        with torch.no_grad():
            out = model(**asked)
            timed = model(**asked, durations=batch["durations"]).refined[0].cpu()
        free, true = out.refined[0].cpu(), batch["mel"][0].cpu()
        errors.append(abs(len(free) - len(true)) / rate)
        distances.append(mel_cepstral_distortion(free.numpy(), true.numpy()))
        with_durations.append(mel_cepstral_distortion(timed.numpy(), true.numpy()))
        count = len(lines["test"][key][0])
        samples = vocoder(free, inventory.pitch_of_frames(out.pitch[0], out.durations[0])).numpy()
        heard["spoken"].append(functionals(samples, settings, count))

    def recorded(split, keys, through=None):
        rows, of, found = lines[split].records, lines[split], []
        for key in tqdm(keys, desc=f"listen to {split}", unit="line"):
            row = rows[key]
            samples = load_audio(row["wav"], settings.sample_rate, row.get("start"), row.get("stop")).numpy()
            samples = samples if through is None else through_vocoder(samples, through, settings)
            found.append(functionals(samples, settings, len(of[key][0])))
        return found

    def column(split, keys, name):
        return [str(lines[split].records[k][name]) for k in keys]

    heard["recorded"], heard["resynthesised"] = recorded("test", test), recorded("test", test, vocoder)
    speakers, asked = column("test", test, "speaker"), np.array(column("test", test, "emotion"))
    metrics = {
        "test.tts.duration_error": float(np.mean(errors)),
        "test.tts.mcd": float(np.mean(distances)),
        "test.tts.mcd_true_durations": float(np.mean(with_durations)),
        "test.tts.num_lines": len(test),
    }
    # A vocoder has a sound of its own, and a judge of recordings takes it for an emotion: the second one knows it.
    for taught, through in (("", None), ("_vocoded_judge", vocoder)):
        judge = EmotionJudge(
            recorded("train", train, through),
            column("train", train, "speaker"),
            column("train", train, "emotion"),
        )
        for name, key in (("spoken", ""), ("recorded", "_recorded"), ("resynthesised", "_resynthesised")):
            found = judge.labels(heard[name], speakers)
            metrics[f"test.tts.emotion_accuracy{key}{taught}"] = float(np.mean(found == asked))
    return metrics


# -------------------------------------------------------------------------------------------------- export
def export_tts(folder, model, inventory, settings, hparams):
    """Write what inference loads: ``tts.json`` and ``acoustic.safetensors``.

    Arguments
    ---------
    folder : str or pathlib.Path
        Made if it does not exist.
    model : EmotionalFastSpeech2
        Trained.
    inventory : Inventory
        Its labels.
    settings : MelSettings
        Of the mel spectrogram.
    hparams : mapping
        With ``model``, ``g2p``, ``vocoder``, ``vocoder_source``, ``experiment`` and ``license``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(state, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})
    digest = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    content = {
        "format": FORMAT,
        "weights_sha256": digest,
        "model": {k: list(v) if isinstance(v, (list, tuple)) else v for k, v in hparams["model"].items()},
        "mel": settings.to_dict(),
        "inventory": inventory.to_dict(),
        "g2p": hparams["g2p"],
        "vocoder": hparams["vocoder"],
        "vocoder_source": hparams.get("vocoder_source"),
        "experiment": hparams.get("experiment"),
        "license": hparams.get("license"),
    }
    write_text_atomically(folder / MODEL_FILE, json.dumps(content, indent=1) + "\n")


def load_tts(folder):
    """Read what :func:`export_tts` wrote.

    Arguments
    ---------
    folder : str or pathlib.Path
        The export, or the experiment's folder that holds it.

    Returns
    -------
    tuple
        EmotionalFastSpeech2 in eval mode, Inventory, MelSettings and the content of ``tts.json`` (dict).

    Raises
    ------
    FileNotFoundError
        If there is no model; the message says which command makes one.
    ValueError
        If the file is of another kind or the weights are not those that it names.
    """
    folder = Path(folder)
    folder = folder / "model" if (folder / "model" / MODEL_FILE).is_file() else folder
    if not (folder / MODEL_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} holds no synthesiser ({MODEL_FILE}); make one with:  python train.py "
            "hparams/demo_jelly_tts.yaml"
        )
    content = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
    if content.get("format") != FORMAT:
        raise ValueError(f"{folder / MODEL_FILE}: format is {content.get('format')!r}, needed: {FORMAT!r}")
    weights = folder / WEIGHTS_FILE
    if hashlib.sha256(weights.read_bytes()).hexdigest() != content["weights_sha256"]:
        raise ValueError(f"{weights} is not the file that {MODEL_FILE} names: it is damaged or was exchanged")
    inventory, settings = Inventory(**content["inventory"]), MelSettings(**content["mel"])
    model = EmotionalFastSpeech2(
        len(inventory.phones) + 1,
        len(inventory.speakers),
        len(inventory.emotions),
        len(inventory.intensities),
        num_mels=settings.num_mels,
        **content["model"],
    )
    model.load_state_dict(load_file(str(weights)))
    return model.eval(), inventory, settings, content

"""An emotion classifier that no synthesiser or recogniser of the toolkit has anything to do with.

It judges synthetic speech: logistic regression on some functionals of a line, trained on recordings, or on recordings
through a vocoder (:func:`through_vocoder`), each speaker's mean taken out. Axis letters: N lines, F functionals.
"""

import math

import numpy as np
import torch

from speechbrain_emo.dataio.acoustics import pitch_track


def functionals(samples, settings, num_phones):
    """What the classifier hears of a line: level, pitch, rate and spectrum.

    Arguments
    ---------
    samples : array
        float (samples,) at the settings' rate.
    settings : MelSettings
        Of the spectrogram.
    num_phones : int
        Phonemes of the line, for the rate.

    Returns
    -------
    numpy.ndarray
        float32 (F,).

    Example
    -------
    >>> from speechbrain_emo.lobes.mel_vocoder import MelSettings
    >>> tone = 0.1 * np.sin(2 * np.pi * 200 * np.arange(8000) / 16000)
    >>> found = functionals(tone, MelSettings(16000, 256, 1024, 1024, 80, 0.0, 8000.0), 5)
    >>> round(float(np.exp(found[0])) / 200, 1), round(float(np.exp(found[5])))
    (1.0, 10)
    """
    samples = np.pad(np.asarray(samples, dtype=np.float32), (0, max(settings.n_fft - len(samples), 0)))
    mel, energy = settings.analyse(torch.as_tensor(samples))
    mel, energy = mel.numpy(), np.log(energy.numpy() + 1e-5)
    track = pitch_track(samples, settings.sample_rate, settings.hop_length, len(mel), "yin")
    loud = energy >= np.median(energy)
    rate = math.log(max(num_phones, 1) / (len(mel) * settings.hop_length / settings.sample_rate))
    parts = [track[loud].mean(), track[loud].std(), energy.mean(), energy.std(), energy.max(), rate]
    return np.concatenate([parts, mel[loud].mean(0)[::4], mel[loud].std(0)[::4]]).astype(np.float32)


def through_vocoder(samples, vocoder, settings):
    """A recording through a vocoder: what is left of it when nothing is predicted.

    Arguments
    ---------
    samples : array
        float (samples,) at the settings' rate.
    vocoder : callable
        (mel float32 (T, M), F0 in Hz float32 (T,)) -> float32 (samples,).
    settings : MelSettings
        Of the vocoder.

    Returns
    -------
    numpy.ndarray
        float32 (samples,).

    Example
    -------
    >>> from speechbrain_emo.lobes.mel_vocoder import MelSettings, make_vocoder
    >>> settings = MelSettings(16000, 256, 1024, 1024, 80, 0.0, 8000.0)
    >>> tone = np.sin(np.arange(8000) * 2 * np.pi * 200 / 16000).astype("float32")
    >>> through_vocoder(tone, make_vocoder("source_filter", settings), settings).shape
    (7936,)
    """
    samples = np.asarray(samples, dtype=np.float32)
    mel, _ = settings.analyse(torch.from_numpy(samples))
    track = pitch_track(samples, settings.sample_rate, settings.hop_length, len(mel), "yin")
    # A track without any voice is 0; what stands there is not heard.
    f0 = np.where(track > 0, np.exp(track), 100.0).astype(np.float32)
    return vocoder(mel, torch.from_numpy(f0)).cpu().numpy().astype(np.float32)


class EmotionJudge:
    """Logistic regression on functionals of recordings, without their speakers' means.

    Arguments
    ---------
    rows : sequence of numpy.ndarray
        Functionals of recordings, float32 (F,) each.
    speakers, emotions : sequence of str
        Of the recordings.

    Example
    -------
    >>> rng = np.random.default_rng(0)
    >>> emotions = ["sad", "happy"] * 20
    >>> rows = [rng.normal(size=3) + (3 if e == "happy" else 0) + (9 if i < 20 else 0) for i, e in enumerate(emotions)]
    >>> judge = EmotionJudge(rows, ["x"] * 20 + ["y"] * 20, emotions)
    >>> float((judge.labels(rows, ["x"] * 20 + ["y"] * 20) == np.array(emotions)).mean()) > 0.9
    True
    """

    def __init__(self, rows, speakers, emotions):
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        self.means = {
            s: np.mean([x for x, o in zip(rows, speakers, strict=True) if o == s], 0) for s in set(speakers)
        }
        self.overall = np.mean(rows, 0)
        x = self._centred(rows, speakers)
        self.scaler = StandardScaler().fit(x)
        self.classifier = LogisticRegression(max_iter=2000).fit(self.scaler.transform(x), list(emotions))

    def _centred(self, rows, speakers):
        return np.stack([x - self.means.get(s, self.overall) for x, s in zip(rows, speakers, strict=True)])

    def labels(self, rows, speakers):
        """Emotions of lines: array of str (N,).

        Arguments
        ---------
        rows : sequence of numpy.ndarray
            Functionals.
        speakers : sequence of str
            Whose voice each is; the mean over all recordings stands for an unknown one.
        """
        return self.classifier.predict(self.scaler.transform(self._centred(rows, speakers)))

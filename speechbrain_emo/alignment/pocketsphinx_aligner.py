"""English word and phone alignment with PocketSphinx, which ships its acoustic model and the CMU dictionary.

PocketSphinx: https://github.com/cmusphinx/pocketsphinx. Two passes: a word network with optional silences and all
pronunciations of each word finds the pronunciations and pauses, then the phones and their states are aligned.
"""

import logging
import math
import re

import numpy as np

from speechbrain_emo.alignment.normalize import normalize
from speechbrain_emo.alignment.pronunciation import arpabet
from speechbrain_emo.alignment.types import AlignedInterval, Alignment, AlignmentError, align_each
from speechbrain_emo.dataio.audio import from_array

logger = logging.getLogger(__name__)

_SAMPLE_RATE = 16000
_FRAME = 0.01  # s
_WINDOW = 0.025625  # s, PocketSphinx's default
# A frame describes the middle of its window: between two frames lies the mean of their middles.
_OFFSET = (_WINDOW - _FRAME) / 2
_NO_PHONES = ("SIL", "+NSN+", "+SPN+", "+NOISE+")
_STATES = 3  # a phone passes each of them for a frame at least

# Beams of the first pass, as likelihood ratios: the first is enough for most speech, the second is slower and for
# voices far from the acoustic model.
BEAMS = (1e-100, 1e-250)

# A frame's score is the log ratio (base 1.0001^1024) of the aligned state's likelihood to that of the best of the
# model's 5126 states. Means of a word or an utterance lie near -35 (a clear recording of a reader) to -65 (espeak-ng)
# for the right text and near -100 for a wrong one; docs/alignment.md names the data.
CONFIDENCE_MIDPOINT = -78.0
CONFIDENCE_SCALE = 8.0


class PocketsphinxAligner:
    """Align English speech with its text; needs no training and no download.

    Words that the dictionary lacks get a pronunciation from espeak-ng's rules; ``guessed`` lists them.

    Arguments
    ---------
    language : str
        ``en`` with any region, unless ``model`` and ``dictionary`` bring another language.
    model, dictionary : str, optional
        Folder of an acoustic model in Sphinx format and its dictionary. Default: those of the package.
    guess : bool
        Whether to guess pronunciations; without it a word that the dictionary lacks is an error. Guesses are English:
        not for another model.

    Raises
    ------
    AlignmentError
        If the package pocketsphinx is missing, or the language is another.

    Example
    -------
    >>> from speechbrain_emo.dataio.espeak import EspeakSynthesizer
    >>> speech = EspeakSynthesizer()("seven green boats will cross the river", voice="en-us+m3", rate=140)
    >>> text = "7 green boats will cross the river."
    >>> alignment = PocketsphinxAligner().align(speech.samples, speech.sample_rate, text)
    >>> alignment.words[0].label, abs(alignment.words[1].start - speech.words[1].start) < 0.05
    ('7', True)
    """

    name = "pocketsphinx"

    def __init__(self, language="en", model=None, dictionary=None, guess=True):
        if not (model and dictionary) and language.lower().replace("_", "-").split("-")[0] != "en":
            raise AlignmentError(
                f"language is {language!r}; pocketsphinx's own model is English: use the aligner espeak-dtw, or give "
                "model and dictionary"
            )
        try:
            import pocketsphinx
        except ImportError as error:
            raise AlignmentError(
                "the package pocketsphinx is not installed: pip install 'speechbrain_emo[align]'"
            ) from error
        self._make = pocketsphinx.Decoder
        self.language = language
        self._files = {key: str(value) for key, value in (("hmm", model), ("dict", dictionary)) if value}
        self.guess = guess
        #: Token -> phones, for the tokens that the dictionary lacks.
        self.guessed = {}
        self._decoders = {}

    def _decoder(self, beam):
        if beam not in self._decoders:
            try:
                # All states are computed, so that scores are relative to the best of all. The best path through the
                # word lattice may lose the end of the text: the decoder's own path does not.
                decoder = self._make(
                    **{"beam": beam, "wbeam": beam, "pbeam": beam, "compallsen": True, "bestpath": False},
                    **{"lm": None, "loglevel": "FATAL", "samprate": _SAMPLE_RATE},
                    **self._files,
                )
            except (RuntimeError, ValueError) as error:
                raise AlignmentError(
                    f"pocketsphinx does not load {self._files or 'its own model'}: {error}"
                ) from error
            for token, phones in self.guessed.items():
                decoder.add_word(token, phones, True)
            self._decoders[beam] = decoder
        return self._decoders[beam]

    def _pronounce(self, tokens):
        """Number of phones of the shortest reading; tokens that the dictionary lacks are added to it."""
        decoder = self._decoder(BEAMS[0])
        count = 0
        for token in tokens:
            phones = decoder.lookup_word(token)
            if phones is None:
                if not self.guess:
                    raise AlignmentError(
                        f"word {token!r} is not in the dictionary; add it there, or let pronunciations be guessed "
                        "(guess=True)"
                    )
                phones = self.guessed[token] = arpabet(token)
                logger.info("%r is not in the dictionary; espeak-ng says %s", token, phones)
                for known in self._decoders.values():
                    known.add_word(token, phones, True)
            count += len(phones.split())
        return count

    def align(self, samples, sample_rate, text, name=None):
        """Align one utterance; see :class:`~speechbrain_emo.alignment.types.Aligner`.

        Arguments
        ---------
        samples : numpy.ndarray
            float32, shape (N,), full scale 1.
        sample_rate : int
            In Hz.
        text : str
            What is said.
        name : str, optional
            For messages.

        Returns
        -------
        Alignment
            Words, and phones of the CMU dictionary without stress. Times are multiples of 10 ms plus a constant.

        Raises
        ------
        AlignmentError
            If the text has no word, the recording no signal, or no path leads through it.
        """
        name = name or "the recording"
        decoder = self._decoder(BEAMS[0])
        spoken = normalize(text, self.language, known=lambda token: decoder.lookup_word(token) is not None)
        waveform = from_array(samples, sample_rate, _SAMPLE_RATE, name=name).numpy()
        duration = len(samples) / sample_rate
        peak = float(np.abs(waveform).max())
        if peak < 1e-4:
            raise AlignmentError(f"{name}: is silent (largest sample {peak:.1e}); there is no word to find")
        num_phones = self._pronounce(spoken.tokens)
        needed = num_phones * _STATES * _FRAME
        if needed > duration:
            raise AlignmentError(
                f"{name}: lasts {duration:.2f} s, and its text of {num_phones} phones needs {needed:.2f} s at least: "
                "the text does not belong to it"
            )
        # Half of full scale: the model's cepstral mean adapts, the 16-bit noise of a quiet recording does not.
        content = (waveform / peak * 16384).astype("<i2").tobytes()
        for beam in BEAMS:
            found = self._search(self._decoder(beam), content, spoken.tokens)
            if found is not None:
                break
        else:
            raise AlignmentError(
                f"{name}: no path leads through the recording ({duration:.2f} s) with the text {text!r}: they do not "
                "belong together, or the voice is too far from the acoustic model"
            )
        tokens, phones = found
        limit = len(waveform) / _SAMPLE_RATE
        words = spoken.join(
            [self._interval(token, *entry, limit) for token, entry in zip(spoken.tokens, tokens)]
        )
        phones = tuple(self._interval(label, *entry, limit) for label, *entry in phones)
        return Alignment(words, phones, text, max(duration, limit), self.name)

    @staticmethod
    def _interval(label, start, length, score, limit):
        begin = start * _FRAME + _OFFSET if start else 0.0
        confidence = 1 / (1 + math.exp(-(score / length - CONFIDENCE_MIDPOINT) / CONFIDENCE_SCALE))
        return AlignedInterval(label, begin, min((start + length) * _FRAME + _OFFSET, limit), confidence)

    @staticmethod
    def _search(decoder, content, tokens):
        """(start, length, score) of each token and (label, start, length, score) of each phone, None without a path."""

        def run():
            decoder.start_utt()
            decoder.process_raw(content, full_utt=True)
            decoder.end_utt()

        decoder.set_align_text(" ".join(tokens))
        try:
            run()
            if decoder.hyp() is None or not decoder.hyp().hypstr.strip():
                return None
            decoder.set_alignment()
            run()
            alignment = decoder.get_alignment()
        except RuntimeError:
            # Its way to say that the search ended in no final state.
            return None
        # Entries are views that the next step of their iterator moves: take out what is needed at once.
        words = [(word.name, word.start, word.duration, word.score) for word in alignment.words()]
        phones = [(phone.name, phone.start, phone.duration, phone.score) for phone in alignment.phones()]
        words = [word for word in words if not re.fullmatch(r"<.*>|\[.*\]", word[0])]
        if [re.sub(r"\(\d+\)$", "", word[0]) for word in words] != list(tokens):
            return None
        return [word[1:] for word in words], [phone for phone in phones if phone[0] not in _NO_PHONES]

    def align_corpus(self, items):
        """Align many utterances; see :class:`~speechbrain_emo.alignment.types.Aligner`.

        Arguments
        ---------
        items : iterable of AlignmentItem
            Utterances.

        Yields
        ------
        (str, Alignment or Exception)
        """
        yield from align_each(self, items)

"""Alignment with any Hugging Face CTC checkpoint: characters or phonemes, recordings of any length.

The Viterbi search is torchaudio's ``forced_align``. Differs from its tutorial: emissions of a long recording are
computed in overlapping windows and stitched, tokens that the checkpoint's vocabulary lacks are named, and confidences
are relative to the best token of each frame.
"""

import math

import numpy as np
import torch

from speechbrain_emo.alignment.normalize import normalize
from speechbrain_emo.alignment.types import AlignedInterval, Alignment, AlignmentError, align_each
from speechbrain_emo.dataio.audio import from_array

UNITS = ("characters", "phonemes")

# Of log p(path) - log p(best token), summed over the frames of a word and half of the gaps beside it, for each of its
# tokens, in nats. A right word is near 0; where the model hears another token, or one that the text lacks, it loses
# some nats each. Chosen by this reasoning: there was no trained checkpoint to calibrate on.
CONFIDENCE_MIDPOINT = -3.0
CONFIDENCE_SCALE = 1.0


class CTCAligner:
    """Align with a connectionist temporal classification model of transformers.

    CTC: A. Graves et al., "Connectionist Temporal Classification", ICML 2006. A CTC model says where a token is, not
    how long it lasts: a word starts with the first frame of its first token and ends with the last frame of its last,
    so ends come early and the words of a peaky model are too short. Its times are coarser than those of the aligners
    with states for phones.

    Arguments
    ---------
    source : str
        Folder, or name on the hub, of a checkpoint with a CTC head and its tokenizer
        (``facebook/wav2vec2-base-960h``, ``facebook/wav2vec2-lv-60-espeak-cv-ft``).
    units : str, optional
        ``characters``: the tokenizer splits words into characters. ``phonemes``: words are turned into phonemes by
        the tokenizer itself (``Wav2Vec2PhonemeCTCTokenizer``, which needs the package phonemizer). Default: by the
        kind of the tokenizer.
    language : str
        Of the text, for its normalisation.
    window, overlap : float
        Of long recordings, in seconds. Half of the overlap at either end of a window is computed and not used.
    device : str, optional
        Default: cpu.

    Raises
    ------
    AlignmentError
        If the checkpoint cannot be loaded, has no CTC head or no tokenizer, or an argument is out of range.

    Example
    -------
    >>> CTCAligner("no/such/folder")
    Traceback (most recent call last):
    ...
    speechbrain_emo.alignment.types.AlignmentError: source 'no/such/folder' cannot be loaded as a CTC checkpoint...
    """

    name = "ctc"

    def __init__(self, source, units=None, language="en", window=20.0, overlap=4.0, device=None):
        from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

        self.window, self.overlap = float(window), float(overlap)
        if not 0 < self.overlap < self.window:
            raise AlignmentError(
                f"overlap is {overlap} s of a window of {window} s; allowed: 0 < overlap < window"
            )
        if units not in (None, *UNITS):
            raise AlignmentError(f"units is {units!r}; allowed: {', '.join(UNITS)}")
        try:
            self.model = AutoModelForCTC.from_pretrained(source).eval().to(device or "cpu")
            self.tokenizer = AutoTokenizer.from_pretrained(source)
            self.extractor = AutoFeatureExtractor.from_pretrained(source)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise AlignmentError(
                f"source {source!r} cannot be loaded as a CTC checkpoint with tokenizer and preprocessor: {reason}"
            ) from error
        ratio = getattr(self.model.config, "inputs_to_logits_ratio", None)
        if not ratio:
            raise AlignmentError(
                f"source {source!r} is a {type(self.model).__name__}, which does not take waveforms; allowed are "
                "models like wav2vec 2.0, HuBERT, WavLM"
            )
        self.hop = int(ratio)
        self.sample_rate = int(self.extractor.sampling_rate)
        self.language = language
        self.units = units or ("phonemes" if hasattr(self.tokenizer, "phonemize") else "characters")
        self.device = device or "cpu"
        self.blank = self.tokenizer.pad_token_id
        self.vocabulary = self.tokenizer.get_vocab()
        self.delimiter = self.vocabulary.get(getattr(self.tokenizer, "word_delimiter_token", None) or "|")

    def emissions(self, waveform):
        """Log-probabilities of the tokens.

        Arguments
        ---------
        waveform : numpy.ndarray
            float32, shape (N,), at the checkpoint's rate.

        Returns
        -------
        torch.Tensor
            float32, shape (T, V): frame t starts at sample t * ``hop``. A recording longer than the window is computed
            in windows that start at multiples of ``hop``; a frame comes from the window in which it is further from an
            edge.
        """
        values = np.asarray(waveform, dtype=np.float32)
        if getattr(self.extractor, "do_normalize", False):
            # Over the whole recording, so that windows do not differ in level.
            values = (values - values.mean()) / np.sqrt(values.var() + 1e-7)
        window = int(self.window * self.sample_rate) // self.hop * self.hop
        margin = max(int(self.overlap / 2 * self.sample_rate) // self.hop, 1) * self.hop
        if len(values) <= window:
            return self._forward(values)
        pieces, position = [], 0
        while True:
            part = self._forward(values[position : position + window])
            last = position + window >= len(values)
            first = margin // self.hop if position else 0
            # A window has a frame or two less than hops, since frames are longer than a hop.
            stop = len(part) if last else (window - margin) // self.hop
            pieces.append(part[first:stop])
            if last:
                return torch.cat(pieces)
            position += window - 2 * margin

    @torch.no_grad()
    def _forward(self, values):
        logits = self.model(torch.from_numpy(values)[None].to(self.device)).logits[0]
        return torch.log_softmax(logits.float(), dim=-1).cpu()

    def _token_ids(self, spoken):
        """Ids of each spoken token's units."""
        ids = []
        for token in spoken.tokens:
            if self.units == "phonemes":
                try:
                    units = self.tokenizer.phonemize(token).split()
                except ImportError as error:
                    raise AlignmentError(
                        f"this checkpoint's tokenizer turns words into phonemes with the package phonemizer: {error}"
                    ) from error
            else:
                units = list(token)
            own = []
            for unit in units:
                variants = (unit, unit.upper(), unit.lower())
                found = next((self.vocabulary[v] for v in variants if v in self.vocabulary), None)
                if found is not None and found != self.blank and found != self.delimiter:
                    own.append(found)
            if not own:
                raise AlignmentError(
                    f"none of {units} of the word {token!r} is in the checkpoint's vocabulary of {len(self.vocabulary)}"
                )
            ids.append(own)
        return ids

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
            Words; phones where the units are phonemes.

        Raises
        ------
        AlignmentError
            If the text has no word, none of a word's units is in the vocabulary, or the recording has fewer frames
            than the text has tokens.
        """
        name = name or "the recording"
        spoken = normalize(text, self.language)
        waveform = from_array(samples, sample_rate, self.sample_rate, name=name).numpy()
        duration = max(len(samples) / sample_rate, len(waveform) / self.sample_rate)
        ids = self._token_ids(spoken)
        emissions = self.emissions(waveform)
        targets, owners = [], []
        for index, own in enumerate(ids):
            if index and self.delimiter is not None and self.units == "characters":
                targets.append(self.delimiter)
                owners.append(-1)
            targets += own
            owners += [index] * len(own)
        # A token that follows itself needs a blank between.
        needed = len(targets) + sum(a == b for a, b in zip(targets, targets[1:]))
        if needed > len(emissions):
            raise AlignmentError(
                f"{name}: lasts {duration:.2f} s, {len(emissions)} frames, and its text needs {needed} at least: the "
                "text does not belong to it"
            )
        spans, gains = self._align(emissions, targets)
        groups = [
            [span for span, owner in zip(spans, owners) if owner == index]
            for index in range(len(spoken.tokens))
        ]
        tokens = self._intervals(spoken.tokens, groups, gains, duration)
        phones = None
        if self.units == "phonemes":
            labels = self.tokenizer.convert_ids_to_tokens(targets)
            phones = tuple(self._intervals(labels, [[span] for span in spans], gains, duration))
        return Alignment(spoken.join(tokens), phones, text, duration, self.name)

    def _align(self, emissions, targets):
        """(first frame, end frame) of each target, and each frame's log-probability less the best one's."""
        from torchaudio.functional import forced_align, merge_tokens

        try:
            path, scores = forced_align(
                emissions[None], torch.tensor([targets], dtype=torch.int32), blank=self.blank
            )
        except RuntimeError as error:
            raise AlignmentError(f"no path leads through the recording with this text: {error}") from error
        spans = merge_tokens(path[0], scores[0], blank=self.blank)
        best, heard = emissions.max(dim=-1)
        gains = (scores[0] - best).double().numpy()
        # Models hear word delimiters in silence at will: that the text has none there says nothing against it.
        silent = torch.tensor([self.blank, self.blank if self.delimiter is None else self.delimiter])
        gains[(torch.isin(path[0], silent) & torch.isin(heard, silent)).numpy()] = 0.0
        return [(span.start, span.end) for span in spans], gains

    def _intervals(self, labels, groups, gains, duration):
        """An interval for each group of spans."""
        middles = [(a[-1][1] + b[0][0]) // 2 for a, b in zip(groups, groups[1:])]
        bounds = [0, *middles, len(gains)]
        seconds = self.hop / self.sample_rate
        intervals = []
        for label, spans, first, last in zip(labels, groups, bounds, bounds[1:]):
            gain = max(gains[first:last].sum() / len(spans), -500.0)
            confidence = 1 / (1 + math.exp(-(gain - CONFIDENCE_MIDPOINT) / CONFIDENCE_SCALE))
            start, end = spans[0][0] * seconds, min(spans[-1][1] * seconds, duration)
            intervals.append(AlignedInterval(label, start, end, confidence))
        return intervals

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

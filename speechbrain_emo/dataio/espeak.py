"""Speech synthesis with espeak-ng through ctypes, with the true times of words and phonemes.

espeak-ng keeps its state in C globals that nothing resets: phases of noise, flutter and echo run on from one
utterance to the next, so the same call gives other samples and slightly other durations later in a process.
Neither a seed nor starting the library again helps. :class:`EspeakSynthesizer` therefore runs every utterance in a
forked child of a process whose library has started but never spoken: an utterance depends on its arguments only.
"""

import ctypes
import itertools
import os
import pickle
import re
import threading
import traceback
from dataclasses import dataclass, field
from html import escape

import numpy as np

# Constants of espeak-ng's public header, espeak-ng/speak_lib.h.
_SYNCHRONOUS_OUTPUT = 2
_PHONEME_EVENTS = 0x0001
_DO_NOT_EXIT = 0x8000
_UTF8 = 1
_SSML = 0x10
_EVENT_END_OF_LIST, _EVENT_WORD, _EVENT_END, _EVENT_PHONEME = 0, 1, 5, 7
_PARAMETER_RATE, _PARAMETER_VOLUME, _PARAMETER_PITCH, _PARAMETER_RANGE, _PARAMETER_WORD_GAP = 1, 2, 3, 4, 7

# Below the default of 100: at 100 some voices clip inside espeak-ng.
_VOLUME = 50

RATE_LIMITS = (80, 450)  # words a minute
LEVEL_LIMITS = (0, 99)  # pitch and range, 50 is the voice's own
PAUSE = "_"


class _Identity(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Identity),
    ]


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class EspeakError(RuntimeError):
    """espeak-ng is missing, or refused a voice, a parameter or a text."""


@dataclass(frozen=True)
class Interval:
    """A labelled stretch of time.

    ``start`` and ``end`` are in seconds from the first sample.
    """

    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Synthesis:
    """What espeak-ng makes of one text.

    ``samples`` is float32 of shape (samples,) in [-1, 1) at ``sample_rate`` Hz; ``words`` has one interval
    for each word of the text, in order; ``phones`` are espeak-ng's phoneme mnemonics without stress marks,
    ``_`` for a pause.
    """

    samples: np.ndarray
    sample_rate: int
    words: tuple = field(default_factory=tuple)
    phones: tuple = field(default_factory=tuple)


_LOCK = threading.RLock()
_ENGINE = None
_SPOKEN = False  # whether this process itself has spoken: children would inherit a used state


def _library_paths():
    try:
        import espeakng_loader
    except ImportError as error:
        raise EspeakError(
            "the package espeakng-loader is not installed; it brings espeak-ng with its data: "
            "pip install 'speechbrain_emo[demo]'"
        ) from error
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


class _Engine:
    """The loaded library. One a process, since espeak-ng's state is global."""

    def __init__(self):
        library, data = _library_paths()
        self.espeak = ctypes.CDLL(str(library))
        self.libc = ctypes.CDLL(None)
        self.espeak.espeak_Initialize.argtypes = [
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_int,
        ]
        self.espeak.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
        self.espeak.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self.espeak.espeak_SetParameter.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
        self.espeak.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        self.espeak.espeak_TextToPhonemes.argtypes = [
            ctypes.POINTER(ctypes.c_char_p),
            ctypes.c_int,
            ctypes.c_int,
        ]
        self.espeak.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self.sample_rate = self.espeak.espeak_Initialize(
            _SYNCHRONOUS_OUTPUT,
            0,
            os.fsencode(os.path.dirname(str(data))),
            _PHONEME_EVENTS | _DO_NOT_EXIT,
        )
        if self.sample_rate <= 0:
            raise EspeakError(f"espeak-ng did not start: code {self.sample_rate} with the data in {data}")
        self.blocks, self.events = [], []
        # The reference to the callback must live as long as the library uses it.
        self.callback = _CALLBACK(self._receive)
        self.espeak.espeak_SetSynthCallback(self.callback)

    def _receive(self, samples, num_samples, events):
        if samples and num_samples > 0:
            self.blocks.append(np.ctypeslib.as_array(samples, shape=(num_samples,)).copy())
        index = 0
        while events[index].type != _EVENT_END_OF_LIST:
            event = events[index]
            label = bytes(event.id.string) if event.type == _EVENT_PHONEME else b""
            self.events.append(
                (event.type, event.sample, label.decode("utf-8", "replace"), event.text_position)
            )
            index += 1
        return 0


def _engine():
    global _ENGINE
    with _LOCK:
        if _ENGINE is None:
            _ENGINE = _Engine()
        return _ENGINE


def phone_label(mnemonic):
    """Reduce an espeak-ng phoneme mnemonic to its identity.

    Arguments
    ---------
    mnemonic : str
        As espeak-ng's phoneme event gives it, possibly with stress or pause marks.

    Returns
    -------
    str
        The mnemonic without marks, ``_`` for a pause.

    Example
    -------
    >>> phone_label("'eI"), phone_label("_:"), phone_label("i:")
    ('eI', '_', 'i:')
    """
    if not mnemonic.strip("_:,'%|! "):
        return PAUSE
    stripped = mnemonic.lstrip("',%=|!_ ").rstrip("',%=|!_; ")
    return stripped or PAUSE


def _word_groups(words, positions):
    """Which words belong to which word events: (word indices, first event, last event) for each group.

    ``positions`` are the events' characters in the text, counted from 1. A word without an event is said in one with
    the word before; a word with several is said in parts.
    """
    offsets, offset = [], 1
    for word in words:
        offsets.append(offset)
        offset += len(word) + 1
    first_events = {}
    owners = []
    for event, position in enumerate(positions):
        owner = max((i for i, start in enumerate(offsets) if start <= position), default=0)
        owners.append(owner)
        first_events.setdefault(owner, event)
    heads = sorted(first_events)
    groups = []
    for number, head in enumerate(heads):
        start = 0 if number == 0 else head
        stop = heads[number + 1] if number + 1 < len(heads) else len(words)
        last = max(event for event, owner in enumerate(owners) if owner == head)
        groups.append((list(range(start, stop)), first_events[head], last))
    return groups


class EspeakSynthesizer:
    """Synthesise English (or another of espeak-ng's languages) with control of voice, pitch, range and rate.

    espeak-ng: https://github.com/espeak-ng/espeak-ng, driven through its C interface ``speak_lib.h``.

    Arguments
    ---------
    pause : int
        Extra gap between words, in units of 10 ms at the voice's default rate.
    isolated : bool
        Run each utterance in a forked child, which makes it a function of its arguments. Without it an
        utterance takes less time and depends on what the process synthesised before.

    Raises
    ------
    EspeakError
        If the package ``espeakng-loader`` is missing, or ``isolated`` is asked for where there is no fork or
        where this process has used espeak-ng without isolation before.

    Example
    -------
    >>> speech = EspeakSynthesizer()("hello world", voice="en-us+f2", rate=160)
    >>> [word.label for word in speech.words], speech.samples.dtype
    (['hello', 'world'], dtype('float32'))
    """

    def __init__(self, pause=0, isolated=True):
        if isolated and not hasattr(os, "fork"):
            raise EspeakError("isolated is True, which needs a system with fork; use isolated=False")
        self.pause = int(pause)
        self.isolated = bool(isolated)
        _library_paths()

    def __call__(
        self, text, voice="en-us", rate=175, pitch=50, pitch_range=50, prosody=None, split_joined=False
    ):
        """Synthesise one text.

        Arguments
        ---------
        text : str
            Words separated by blanks.
        voice : str
            Language, with ``+variant`` for another timbre: ``en-us+f3``.
        rate : int
            Words a minute, 80 to 450.
        pitch : int
            0 to 99. 50 is the voice's own; one step changes F0 by about 1.4 %.
        pitch_range : int
            0 to 99. 50 is the voice's own movement of F0.
        prosody : dict, optional
            Word index -> attributes of an SSML ``prosody`` element (``{"rate": "80%", "pitch": "+30%"}``).
            espeak-ng ignores relative volumes there: apply gain on the samples instead.
        split_joined : bool
            espeak-ng says some words in one ("from the") and reports one time for them. True splits that time by
            the phonemes that each of them has alone; these inner boundaries are estimates. Not with ``prosody``.

        Returns
        -------
        Synthesis

        Raises
        ------
        EspeakError
            If a parameter is out of range, the voice is unknown, or the number of word events is not the
            number of words of the text (without ``split_joined``).
        """
        words = text.split()
        if not words:
            raise EspeakError(f"text is {text!r}: it needs at least one word")
        for name, value, (low, high) in (
            ("rate", rate, RATE_LIMITS),
            ("pitch", pitch, LEVEL_LIMITS),
            ("pitch_range", pitch_range, LEVEL_LIMITS),
        ):
            if value != int(value) or not low <= value <= high:
                raise EspeakError(f"{name} is {value}; allowed are whole numbers from {low} to {high}")
        for index in prosody or {}:
            if not 0 <= index < len(words):
                raise EspeakError(f"prosody names word {index}; the text has words 0 to {len(words) - 1}")
        if split_joined and prosody:
            raise EspeakError(
                "split_joined needs a text without prosody: positions in SSML are not the text's"
            )
        arguments = (words, voice, rate, pitch, pitch_range, prosody or {}, split_joined)
        with _LOCK:
            return self._run(self._synthesize, arguments)

    def mnemonics(self, text, voice="en-us"):
        """Translate a text into espeak-ng's phoneme mnemonics without speaking it.

        The phonemes of a synthesis lack those that melt into their neighbour, such as the l of "heel"; these do not.

        Arguments
        ---------
        text : str
            One clause.
        voice : str
            Language.

        Returns
        -------
        tuple of str
            Mnemonics without stress marks and pauses.

        Raises
        ------
        EspeakError
            If the voice is unknown.

        Example
        -------
        >>> EspeakSynthesizer().mnemonics("heel")
        ('h', 'i:', 'l')
        """
        with _LOCK:
            return self._run(self._translate, (text, voice))

    def _run(self, task, arguments):
        return self._in_child(task, arguments) if self.isolated else task(*arguments)

    @staticmethod
    def _set_voice(voice):
        if _engine().espeak.espeak_SetVoiceByName(voice.encode()) != 0:
            raise EspeakError(
                f"voice {voice!r} is unknown to espeak-ng; use a language (en-us, en-gb, de), with +variant "
                "for another timbre (en-us+f3)"
            )

    def _translate(self, text, voice):
        self._set_voice(voice)
        pointer = ctypes.c_char_p(text.encode())
        translated = []
        while pointer.value:
            # Bits 8 to 23 of the mode are the character between phonemes.
            clause = _engine().espeak.espeak_TextToPhonemes(ctypes.byref(pointer), _UTF8, ord("\t") << 8)
            translated += [
                phone_label(mnemonic) for mnemonic in re.split(r"[\t ]+", (clause or b"").decode())
            ]
        return tuple(label for label in translated if label != PAUSE)

    def _in_child(self, task, arguments):
        if _SPOKEN:
            raise EspeakError(
                "this process has used espeak-ng with isolated=False: its state would reach the child; use "
                "isolated=True from the start, or another process"
            )
        _engine()  # started once; the children inherit it unused
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            # Nothing of the parent's interpreter may run on in the child: it leaves through _exit alone.
            try:
                os.close(read_end)
                try:
                    reply = (True, task(*arguments))
                except EspeakError as error:
                    reply = (False, str(error))
                except Exception:
                    reply = (False, traceback.format_exc())
                with os.fdopen(write_end, "wb") as stream:
                    pickle.dump(reply, stream, protocol=pickle.HIGHEST_PROTOCOL)
                os._exit(0)
            finally:
                os._exit(1)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as stream:
            payload = stream.read()
        _, status = os.waitpid(child, 0)
        if status != 0 or not payload:
            raise EspeakError(
                f"espeak-ng's process ended with status {status} at {arguments[0]!r}, voice {arguments[1]!r}"
            )
        # The pipe is our own child's: nobody else can write into it.
        made, value = pickle.loads(payload)
        if not made:
            raise EspeakError(value)
        return value

    def _synthesize(self, words, voice, rate, pitch, pitch_range, prosody, split_joined=False):
        global _SPOKEN
        engine = _engine()
        _SPOKEN = True
        library = engine.espeak
        # espeak-ng seeds its noise (voices with breath have some) with the time of its start, and uses the C
        # library's generator beside it.
        engine.libc.srand(1)
        library.espeak_ng_SetRandSeed(1)
        self._set_voice(voice)
        for parameter, value in (
            (_PARAMETER_RATE, rate),
            (_PARAMETER_VOLUME, _VOLUME),
            (_PARAMETER_PITCH, pitch),
            (_PARAMETER_RANGE, pitch_range),
            (_PARAMETER_WORD_GAP, self.pause),
        ):
            if library.espeak_SetParameter(parameter, int(value), 0) != 0:
                raise EspeakError(f"espeak-ng refused the value {value} of its parameter {parameter}")
        parts = []
        # Neighbours of equal prosody share one element: too many in a clause, and espeak-ng drops words.
        for own, run in itertools.groupby(range(len(words)), key=prosody.get):
            body = " ".join(escape(words[index], quote=False) for index in run)
            if own is not None:
                attributes = " ".join(f'{key}="{escape(str(value))}"' for key, value in own.items())
                body = f"<prosody {attributes}>{body}</prosody>"
            parts.append(body)
        payload = ("<speak>" + " ".join(parts) + "</speak>" if prosody else " ".join(words)).encode()
        engine.blocks.clear()
        engine.events.clear()
        code = library.espeak_Synth(
            payload, len(payload) + 1, 0, 1, 0, _UTF8 | (_SSML if prosody else 0), None, None
        )
        if code != 0 or not engine.blocks:
            raise EspeakError(f"espeak-ng made no sound of {' '.join(words)!r} (code {code})")
        samples = np.concatenate(engine.blocks).astype(np.float32) / 32768.0
        events = list(engine.events)
        starts = [sample for kind, sample, _, _ in events if kind == _EVENT_WORD]
        if split_joined:
            # What follows synthesises words alone, and so overwrites the engine's blocks and events.
            intervals, phones = self._intervals(
                [""] * len(starts), events, samples.shape[0], engine.sample_rate
            )
            positions = [position for kind, _, _, position in events if kind == _EVENT_WORD]
            groups = _word_groups(words, positions)
            spoken = []
            for indices, first, last in groups:
                group = Interval("", intervals[first].start, intervals[last].end)
                spoken += self._split([words[index] for index in indices], group, phones, voice, rate)
            return Synthesis(samples, engine.sample_rate, tuple(spoken), phones)
        if len(starts) != len(words):
            raise EspeakError(
                f"espeak-ng reports {len(starts)} words in {' '.join(words)!r}, which has {len(words)}: it "
                "spells out or joins some of them; choose other words"
            )
        return Synthesis(
            samples, engine.sample_rate, *self._intervals(words, events, samples.shape[0], engine.sample_rate)
        )

    def _split(self, words, group, phones, voice, rate):
        """Intervals of words that are said in one."""
        if len(words) == 1:
            return [Interval(words[0], group.start, group.end)]
        inside = [
            phone
            for phone in phones
            if phone.label != PAUSE and group.start <= (phone.start + phone.end) / 2 < group.end
        ]
        counts = []
        for word in words:
            alone = self._synthesize([word], voice, rate, 50, 50, {}, split_joined=True)
            counts.append(max(1, sum(phone.label != PAUSE for phone in alone.phones)))
        times = [group.start]
        for index in range(1, len(words)):
            share = sum(counts[:index]) / sum(counts)
            if len(inside) >= len(words):
                number = min(max(round(share * len(inside)), index), len(inside) - len(words) + index)
                times.append(inside[number].start)
            else:
                times.append(group.start + share * (group.end - group.start))
        times.append(group.end)
        return [Interval(word, start, end) for word, start, end in zip(words, times, times[1:])]

    @staticmethod
    def _intervals(words, events, num_samples, sample_rate):
        seconds = 1.0 / sample_rate
        marks = [
            (kind, min(sample, num_samples), label)
            for kind, sample, label, _ in events
            if kind in (_EVENT_WORD, _EVENT_PHONEME)
        ]
        phones = []
        labelled = [(sample, label) for kind, sample, label in marks if kind == _EVENT_PHONEME]
        for index, (sample, label) in enumerate(labelled):
            end = labelled[index + 1][0] if index + 1 < len(labelled) else num_samples
            if end > sample:
                phones.append(Interval(phone_label(label), sample * seconds, end * seconds))
        starts = [sample for kind, sample, _ in marks if kind == _EVENT_WORD]
        intervals = []
        for index, (word, start) in enumerate(zip(words, starts)):
            end = starts[index + 1] if index + 1 < len(starts) else num_samples
            # A word ends where the pause after its last phoneme begins.
            inside = [
                phone
                for phone in phones
                if phone.start < end * seconds and phone.end > start * seconds and phone.label != PAUSE
            ]
            stop = min(inside[-1].end, end * seconds) if inside else end * seconds
            intervals.append(Interval(word, start * seconds, stop))
        return tuple(intervals), tuple(phones)

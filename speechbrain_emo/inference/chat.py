"""A trained dialogue model as a conversation: speech or text in, text out, token by token.

The prompt of every turn is the one that training packs (``prompts.DialogueTask``); what the language model has read
already is kept as keys and values for the longest common prefix with the new prompt, so that a turn costs its own
positions only, and editing the history is safe: whatever changed is read again.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from speechbrain.inference.interfaces import Pretrained
from tqdm import tqdm

from speechbrain_emo.brains.speech_data import renumber_audios
from speechbrain_emo.brains.speech_language_model import AudioBatch
from speechbrain_emo.dataio.audio import AudioError, load_audio
from speechbrain_emo.inference.interfaces import load_exported
from speechbrain_emo.inference.safe_loading import HPARAMS_FILE
from speechbrain_emo.prompts.packer import Packer
from speechbrain_emo.prompts.tasks import EMOTION, TRANSCRIPT

logger = logging.getLogger(__name__)

#: A text that ends so, or names a file that is there, is a recording.
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".m4a", ".opus")
PAST_SPEECH = ("speech", "text")
OVERFLOW = ("drop", "error")
# Wordings are chosen by a hash of the record's id: the same for every conversation and recording.
_RECORD_ID = "recording"


class ChatError(ValueError):
    """A turn that cannot be taken; the message says why. The history is as before.

    Example
    -------
    >>> issubclass(ChatError, ValueError)
    True
    """


@dataclass
class ChatTurn:
    """One turn of the history; all fields may be edited between turns.

    Arguments
    ---------
    role : str
        ``user`` or ``assistant``.
    text : str
        What is said in writing; of a spoken turn the transcript, where it is known.
    audio : str, optional
        The recording of a spoken turn; for samples in memory, their name.
    attributes : dict
        What :meth:`EmotionalChat.describe` found (field -> value); filled where past speech is given as text.

    Example
    -------
    >>> ChatTurn("user", "Hello.").is_speech
    False
    """

    role: str
    text: str = ""
    audio: str | None = None
    attributes: dict = field(default_factory=dict)
    # The samples; a turn whose ``audio`` was edited reads its file again.
    waveform: torch.Tensor | None = field(default=None, repr=False, compare=False)
    loaded_from: str | None = field(default=None, repr=False, compare=False)
    # A hash of the samples: what embeddings and kept positions go by.
    key: str | None = field(default=None, repr=False, compare=False)

    @property
    def is_speech(self):
        """Whether the turn is a recording."""
        return self.audio is not None


@dataclass(frozen=True)
class Reply:
    """What the model answered.

    Arguments
    ---------
    text : str
        The answer.
    token_ids : tuple of int
        As it was written, without the end token.
    finish : str
        ``stop``, ``length`` (``max_new_tokens`` or the end of the context).
    num_positions : int
        Positions of the prompt.
    num_reused : int
        Of them, those whose keys and values were kept from before.
    num_dropped : int
        Turns of the history that the prompt left out because the context is full.
    first_token_seconds : float
        From the call to the first token, encoding included.

    Example
    -------
    >>> str(Reply("Hello!", (1, 2), "stop", 10, 4, 0, 0.1))
    'Hello!'
    """

    text: str
    token_ids: tuple
    finish: str
    num_positions: int
    num_reused: int
    num_dropped: int
    first_token_seconds: float

    def __str__(self):
        return self.text


@dataclass(frozen=True)
class Attributes:
    """How a recording sounds, by the model's choice tasks.

    Arguments
    ---------
    values : dict of str to str
        Field -> the choice whose answer is most likely.
    probabilities : dict of str to dict of str to float
        Field -> choice -> softmax of the length-normalised log-likelihoods; not calibrated.
    written : dict of str to (str or None)
        Field -> the one choice that the written answer names, where it was asked for; None where it names none or
        several.

    Example
    -------
    >>> str(Attributes({"gender": "male", "emotion": "sad"}, {}, {}))
    'gender: male, emotion: sad'
    """

    values: dict
    probabilities: dict
    written: dict

    def __str__(self):
        return ", ".join(f"{name}: {value}" for name, value in self.values.items())


class EmotionalChat(Pretrained):
    """A conversation with a model that hears what is said and how.

    Made by :meth:`from_hparams` from the folder of a training, an exported model or a hub name. ``history`` is a list
    of :class:`ChatTurn` that may be edited; ``system`` is the system prompt (None: that of training).

    Limits, each with its own behaviour: a recording longer than ``max_duration`` or a prompt longer than the context
    even without history is refused (:class:`AudioError`, :class:`ChatError`); an empty turn is refused; a file that is
    missing or no audio is an :class:`AudioError`; when the history does not fit the context, its oldest turns are left
    out of the prompt (they stay in ``history``), or with ``overflow="error"`` the turn is refused. After a refusal the
    history is as before.

    Arguments
    ---------
    modules : dict
        ``{"model": SpeechLanguageModel}``.
    hparams : dict
        What ``hyperparams.yaml`` of an exported dialogue model holds.
    run_opts : dict, optional
        SpeechBrain's run options, for example ``{"device": "cuda:0"}``.
    freeze_params : bool
        As in ``Pretrained``.

    Example
    -------
    >>> from speechbrain_emo.inference import EmotionalChat
    >>> EmotionalChat.from_hparams(source=getfixture("tmp_path"))
    Traceback (most recent call last):
    speechbrain_emo.inference.safe_loading.UnsafeModelError: ... holds no exported model: ...
    """

    HPARAMS_NEEDED = ["answer_format", "tasks", "slot_kinds", "chat"]
    MODULES_NEEDED = ["model"]

    def __init__(self, modules=None, hparams=None, run_opts=None, freeze_params=True):
        super().__init__(modules, hparams, run_opts, freeze_params)
        settings = self.hparams.chat
        self.model = self.mods["model"]
        self.model.eval()
        self.packer = Packer(self.model.llm.tokenizer, self.hparams.slot_kinds)
        tasks = self.hparams.tasks
        self.dialogue_task = tasks[settings["dialogue_task"]]
        transcript_task = settings["transcript_task"]
        self.transcript_task = None if transcript_task is None else tasks[transcript_task]
        # By their field; two tasks over one field (the emotions of two corpora) go by their names from the second on.
        self.choice_tasks = {}
        for name in settings["choice_tasks"]:
            key = tasks[name].field if tasks[name].field not in self.choice_tasks else name
            self.choice_tasks[key] = tasks[name]
        self.sample_rate = self.model.encoder.sample_rate
        self.max_duration = settings["max_duration"]
        self.max_new_tokens = int(settings["max_new_tokens"])
        limits = [
            settings["max_positions"],
            getattr(self.model.llm.causal_lm.config, "max_position_embeddings", None),
        ]
        self.context = min((int(n) for n in limits if n is not None), default=None)
        self.system = None
        self.history = []
        self.past_speech = "speech"
        self.overflow = "drop"
        self.keep_cache = True
        self.last_reply = None
        self._slots = {}
        # The last recording that was asked about, its slots, and itself (so that its id stays its own).
        self._heard = (None, None, None)
        self._keys, self._cache, self._packed = [], None, None

    @classmethod
    def from_hparams(
        cls,
        source,
        hparams_file=HPARAMS_FILE,
        savedir=None,
        overrides=None,
        run_opts=None,
        fetch_config=None,
        **kwargs,
    ):
        """Load a dialogue model after checking it: nothing that it brings is run.

        Arguments
        ---------
        source : str or pathlib.Path
            An exported model's folder, the folder of a training (which has it under ``model/``), or a name
            on the Hugging Face hub (``name/model``).
        hparams_file : str
            Only ``hyperparams.yaml``; there for SpeechBrain's signature.
        savedir : str or pathlib.Path, optional
            Where a model from the hub is copied to.
        overrides : mapping, optional
            Plain values over those of the model, for example ``{"chat": {"max_new_tokens": 64}}``.
        run_opts : dict, optional
            SpeechBrain's run options.
        fetch_config : speechbrain.utils.fetching.FetchConfig, optional
            Revision, token and the like, for the hub.
        **kwargs
            Further arguments of the class.

        Returns
        -------
        EmotionalChat

        Raises
        ------
        UnsafeModelError
            If there is no model, it explains recordings instead (:class:`EmotionExplainer`), a file differs from
            the manifest, or something could run code.
        """
        model, hparams = load_exported(source, "chat", hparams_file, savedir, overrides, fetch_config)
        return cls(modules={"model": model}, hparams=hparams, run_opts=run_opts, **kwargs)

    # -- conversation ------------------------------------------------------------------------------------------

    def reset(self):
        """Begin anew: no history, nothing kept. The system prompt stays."""
        self.history = []
        self.last_reply = None
        self._slots = {}
        self.forget_cache()

    def forget_cache(self):
        """Drop the kept keys and values; the next turn reads everything again."""
        self._keys, self._cache = [], None

    def say(self, turn=None, *, text=None, audio=None, max_new_tokens=None):
        """Take a turn and answer it.

        Arguments
        ---------
        turn : str or pathlib.Path, optional
            A recording or a text: a path, a text that names an existing file or ends in a suffix of audio (``.wav``,
            ...) is a recording.
        text : str, optional
            A text, whatever it looks like, instead of ``turn``.
        audio : str, pathlib.Path or torch.Tensor, optional
            A recording, or samples float (samples,) at ``sample_rate``, instead of ``turn``.
        max_new_tokens : int, optional
            Longest answer in tokens. Default: that of the model.

        Returns
        -------
        Reply
            Prints as its text.

        Raises
        ------
        ChatError
            If the turn is empty or does not fit the context; if not exactly one of the three is given.
        AudioError
            If the recording is missing, no audio, or longer than ``max_duration``.
        """
        for _ in self.stream(turn, text=text, audio=audio, max_new_tokens=max_new_tokens):
            pass
        return self.last_reply

    def stream(self, turn=None, *, text=None, audio=None, max_new_tokens=None):
        """Take a turn and yield the answer piece by piece, as tokens come.

        The history gets the turn and its answer when the last piece is out; a stream that is left early changes
        nothing. ``last_reply`` is then the whole :class:`Reply`.

        Arguments
        ---------
        turn, text, audio, max_new_tokens :
            As of :meth:`say`.

        Yields
        ------
        str
            Text; together the answer.

        Raises
        ------
        ChatError, AudioError
            As :meth:`say`, at the first piece.
        """
        started = time.perf_counter()
        limit = self.max_new_tokens if max_new_tokens is None else int(max_new_tokens)
        if limit < 1:
            raise ChatError(f"max_new_tokens is {max_new_tokens}; allowed: 1 and above")
        new = self._turn(turn, text, audio)
        turns = [*self.history, new]
        if self.past_speech not in PAST_SPEECH:
            raise ChatError(f"past_speech is {self.past_speech!r}; allowed: {', '.join(PAST_SPEECH)}")
        if self.overflow not in OVERFLOW:
            raise ChatError(f"overflow is {self.overflow!r}; allowed: {', '.join(OVERFLOW)}")
        if self.past_speech == "text":
            for past in self.history:
                if past.is_speech and not (past.text and past.attributes):
                    self._put_in_words(past)
        row, dropped, audios = self._fit(turns, limit)
        spoken = {t.key: t.waveform for t in turns if t.is_speech}
        self._slots = {key: slots for key, slots in self._slots.items() if key in spoken}
        for key in audios:
            if key not in self._slots:
                self._slots[key] = self._encode(spoken[key])
        with torch.no_grad(), self.inference_ctx:
            logits, reused = self._read(row, audios)
        written, shown, finish, first = [], "", "length", None
        end = self.model.llm.end_of_answer_id
        room = limit if self.context is None else min(limit, self.context - row.num_positions)
        while True:
            token = int(logits.argmax())
            first = time.perf_counter() - started if first is None else first
            if token == end:
                finish = "stop"
                break
            written.append(token)
            whole = self.model.llm.tokenizer.decode(written, skip_special_tokens=True)
            # A letter of several bytes can be cut in two by tokens: it waits for its rest.
            if len(whole) > len(shown) and not whole.endswith("\ufffd"):
                yield whole[len(shown) :]
                shown = whole
            if len(written) >= room:
                break
            with torch.no_grad(), self.inference_ctx:
                logits = self._next(token)
        whole = self.model.llm.tokenizer.decode(written, skip_special_tokens=True)
        if len(whole) > len(shown):
            yield whole[len(shown) :]
        self.last_reply = Reply(
            whole.strip(), tuple(written), finish, row.num_positions, reused, dropped, first
        )
        self.history = [*turns, ChatTurn("assistant", whole.strip())]

    def _turn(self, turn, text, audio):
        """The user's new turn, checked."""
        given = [x for x in (turn, text, audio) if x is not None]
        if len(given) != 1:
            raise ChatError(f"give one of turn, text and audio; {len(given)} are given")
        if isinstance(turn, os.PathLike) or (isinstance(turn, str) and is_recording(turn)):
            audio = turn
        elif turn is not None:
            text = turn
        if text is not None:
            if not isinstance(text, str) or not text.strip():
                raise ChatError("the turn is empty: say something, or give a recording")
            return ChatTurn("user", text.strip())
        if isinstance(audio, torch.Tensor):
            if audio.dim() != 1 or len(audio) == 0 or not torch.isfinite(audio).all():
                raise ChatError(
                    f"the samples have shape {tuple(audio.shape)}; needed: (samples,), at least one, all finite"
                )
            if len(audio) > self.max_duration * self.sample_rate:
                raise AudioError(
                    f"samples: {len(audio) / self.sample_rate:.1f} s is longer than {self.max_duration} s"
                )
            return ChatTurn("user", "", "samples", waveform=audio.float().cpu(), loaded_from="samples")
        if not str(audio).strip():
            raise ChatError("the turn is empty: the name of the recording has no letter")
        path = os.fspath(audio)
        return ChatTurn("user", "", path, waveform=self.load_audio(path), loaded_from=path)

    def load_audio(self, path, savedir=None):
        """Waveform (samples,) of a file as the model hears it.

        Arguments
        ---------
        path : str or pathlib.Path
            Audio file on this machine.
        savedir : str, optional
            Not used; there for SpeechBrain's signature.

        Returns
        -------
        torch.Tensor
            float32, shape (samples,), at ``sample_rate``.

        Raises
        ------
        AudioError
            If the file cannot be used, or lasts longer than ``max_duration`` (checked before it is read).
        """
        del savedir
        return load_audio(path, self.sample_rate, max_duration=self.max_duration)

    def _fit(self, turns, limit):
        """The prompt's row, how many old turns were left out, and the audios' keys."""
        dropped = 0
        while True:
            row, audios = self._pack(turns[dropped:])
            # An answer may be cut short, but at least one token must have room.
            room = None if self.context is None else self.context - min(limit, max(self.context // 4, 1))
            if room is None or row.num_positions <= room:
                if dropped:
                    logger.warning(
                        "the history is longer than the context of %d positions: its first %d turns are left out",
                        self.context,
                        dropped,
                    )
                return row, dropped, audios
            if len(turns) - dropped == 1:
                raise ChatError(
                    f"the turn alone needs {row.num_positions} positions; the model's context of {self.context} has "
                    f"room for {room} beside an answer: cut the recording or the text into several turns"
                )
            if self.overflow == "error":
                raise ChatError(
                    f"the conversation needs {row.num_positions} positions; the model's context of {self.context} "
                    f"has room for {room} beside an answer: shorten chat.history, or set chat.overflow = 'drop'"
                )
            dropped += 1
            # The first turn of a prompt is the user's, as in training.
            while dropped < len(turns) - 1 and turns[dropped].role == "assistant":
                dropped += 1

    def _record(self, turns):
        """Turns as a dialogue of a manifest, and keys and samples of its audios."""
        content, keys, waveforms = [], [], []
        for turn in turns:
            if turn.role not in ("user", "assistant"):
                raise ChatError(f"a turn of the history has role {turn.role!r}; allowed: user, assistant")
            entry = {"role": turn.role, "text": turn.text, "audio": None}
            if turn.is_speech:
                entry["audio"] = len(keys)
                keys.append(self._load_turn(turn))
                waveforms.append(turn.waveform)
                attributes = dict(turn.attributes)
                entry["emotion"] = attributes.pop(EMOTION, None)
                entry["descriptors"] = attributes
            elif not turn.text.strip():
                raise ChatError(f"turn {len(content)} of the history is empty: fill it or take it out")
            content.append(entry)
        record = {"id": _RECORD_ID, "turns": content, "audios": [{} for _ in keys]}
        if self.system:
            record["system"] = self.system
        return record, keys, waveforms

    def _pack(self, turns):
        record, keys, waveforms = self._record(turns)
        past = dict.fromkeys(self.dialogue_task.slot_kinds, "text") if self.past_speech == "text" else None
        try:
            example = self.dialogue_task.build(record, prompt_number=0, history_sources=past)
        except ValueError as error:  # An edited attribute that the task does not know.
            raise ChatError(f"the history cannot be packed: {error}") from error
        example, used = renumber_audios(example)
        keys = [keys[number] for number in used]
        lengths = [self._lengths(waveforms[number]) for number in used]
        return self.packer.encode(example, lengths, with_answer=False), keys

    def _load_turn(self, turn):
        """Read a spoken turn's recording unless that is done; returns the key of its samples."""
        if turn.waveform is None or turn.loaded_from != turn.audio:
            turn.waveform, turn.loaded_from, turn.key = self.load_audio(turn.audio), turn.audio, None
        if turn.key is None:
            turn.key = hashlib.sha256(turn.waveform.numpy().tobytes()).hexdigest()[:24]
        return turn.key

    def _lengths(self, waveform):
        """Slot positions of a recording, without encoding it: kind -> int."""
        frames = self.model.encoder.num_frames(len(waveform))
        return {kind: self.model.front_end.num_positions(kind, frames) for kind in self.packer.slot_kinds}

    @torch.no_grad()
    def _encode(self, waveform):
        """Slot embeddings of one recording: kind -> (1, S, d)."""
        audio = AudioBatch(torch.tensor([len(waveform)]), waveforms=waveform[None]).to(self.device)
        with self.inference_ctx:
            features, num_frames = self.model.features(audio)
            return self.model.front_end(features, num_frames, noise_seeds=None).slots

    # -- reading with kept keys and values ---------------------------------------------------------------------

    def _read(self, row, audios):
        """Logits after a prompt and the number of its positions that were kept from before."""
        keys = list(row.token_ids)
        for kind, audio, start, length in row.slots:
            keys[start : start + length] = [(kind, audios[audio], p) for p in range(length)]
        if not self.keep_cache:
            self.forget_cache()
        # Kinds matter too: a token that is text and one that is an answer are the same to a frozen model.
        same = 0
        for old, new in zip(self._keys, keys[:-1]):
            if old != new:
                break
            same += 1
        packed = self.packer.collate([row], "right", [0]).to(self.device)
        embeddings = self.model.llm.embed(packed, self._gather(audios))
        kept, cache = same, self._cache
        self._keys, self._cache = [], None  # If reading fails, nothing is kept.
        if kept == 0:
            cache = None
        elif cache.get_seq_length() > kept:
            # A negative number of positions to remove means the same in all versions of transformers.
            cache.crop(kept - cache.get_seq_length())
        logits, cache = self.model.llm.extend(embeddings[:, kept:], cache, packed)
        self._keys, self._cache, self._packed = keys, cache, packed
        return logits, kept

    def _gather(self, audios):
        """Slot embeddings of several recordings, padded: kind -> (N, S, d)."""
        gathered = {}
        for kind in self.packer.slot_kinds if audios else ():
            rows = [self._slots[key][kind][0] for key in audios]
            gathered[kind] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return gathered

    def _next(self, token):
        """Logits after one more token of the answer."""
        ids = torch.tensor([[token]], device=self.device)
        embeddings = self.model.llm.causal_lm.get_input_embeddings()(ids)
        cache, keys = self._cache, self._keys
        self._keys, self._cache = [], None
        logits, cache = self.model.llm.extend(embeddings, cache, self._packed)
        self._keys, self._cache = [*keys, token], cache
        return logits

    # -- one recording -----------------------------------------------------------------------------------------

    def transcribe(self, path):
        """The words of a recording, by the model's recognition task; no history.

        Arguments
        ---------
        path : str, pathlib.Path or torch.Tensor
            A recording, or samples at ``sample_rate``.

        Returns
        -------
        str

        Raises
        ------
        AudioError
            If it cannot be used.
        ChatError
            If the model has no recognition task, or the recording does not fit its context.
        """
        if self.transcript_task is None:
            raise ChatError("this model was exported without a task that transcribes (chat.transcript_task)")
        text = self._ask(self.transcript_task, self._lengths_and_slots(path))
        found = self.transcript_task.format.parse(text).get(TRANSCRIPT)
        return text.strip() if found is None else found

    def describe(self, path, written=False):
        """How a recording sounds: one choice for each of the model's attributes; no history.

        Arguments
        ---------
        path : str, pathlib.Path or torch.Tensor
            A recording, or samples at ``sample_rate``.
        written : bool
            Also let the model write each answer and look for the choice in it.

        Returns
        -------
        Attributes

        Raises
        ------
        AudioError
            If it cannot be used.
        ChatError
            If the model has no choice tasks, or the recording does not fit its context.
        """
        if not self.choice_tasks:
            raise ChatError("this model was exported without tasks that describe a voice (chat.choice_tasks)")
        heard = self._lengths_and_slots(path)
        values, probabilities, answers = {}, {}, {}
        for name, task in self.choice_tasks.items():
            choices = task.draw_choices({"id": _RECORD_ID})
            candidates = [self.packer.answer_ids(task.answer_fields(choice)) for choice in choices]
            packed, embeddings = self._prompt(task, heard, choices=choices)
            with torch.no_grad(), self.inference_ctx:
                scores = self.model.llm.score(embeddings, packed, candidates)[0].float()
            probabilities[name] = dict(zip(choices, scores.softmax(-1).tolist()))
            values[name] = choices[int(scores.argmax())]
            if written:
                answers[name] = task.match(self._ask(task, heard, choices=choices), choices)
        return Attributes(values, probabilities, answers)

    def _lengths_and_slots(self, path):
        turn = self._turn(None, None, path)
        return self._lengths(turn.waveform), turn.waveform

    def _prompt(self, task, heard, **options):
        lengths, waveform = heard
        example = task.build({"id": _RECORD_ID}, **options)
        row = self.packer.encode(example, [lengths], with_answer=False)
        if self.context is not None and row.num_positions >= self.context:
            raise ChatError(
                f"the recording needs {row.num_positions} positions under task {task.name!r}; the model's context has "
                f"{self.context}: cut it into utterances"
            )
        packed = self.packer.collate([row], "left").to(self.device)
        key = id(waveform)
        if self._heard[0] != key:
            self._heard = (key, self._encode(waveform), waveform)
        return packed, self.model.llm.embed(packed, self._heard[1])

    def _ask(self, task, heard, **options):
        packed, embeddings = self._prompt(task, heard, **options)
        room = self.max_new_tokens
        if self.context is not None:
            room = min(room, self.context - packed.token_ids.shape[1])
        with torch.no_grad(), self.inference_ctx:
            ids = self.model.llm.generate(embeddings, packed, room)[0]
        return self.packer.tokenizer.decode(ids, skip_special_tokens=True)

    def _put_in_words(self, turn):
        """Transcript and attributes of a past spoken turn, where they are not known."""
        self._load_turn(turn)
        if not turn.text:
            turn.text = self.transcribe(turn.waveform)
        if not turn.attributes and self.choice_tasks:
            turn.attributes = self.describe(turn.waveform).values
        if not turn.attributes:
            raise ChatError(
                "past_speech is 'text' and the model has no tasks that describe a voice: use 'speech'"
            )

    # -- many dialogues ----------------------------------------------------------------------------------------

    def respond(self, records, responses_file, progress=True):
        """Answer dialogues of a manifest and write them for the judges; what is there already is kept.

        Past user turns are speech where the record has them so; the assistant's are the record's own words.

        Arguments
        ---------
        records : dict
            id -> dialogue with paths filled in (``read_manifest``).
        responses_file : str or pathlib.Path
            JSON lines: id, turns (role, text), style, response, finish.
        progress : bool
            Show a progress bar.

        Returns
        -------
        dict
            id -> message, for dialogues that could not be answered (a missing recording, too long).
        """
        path, failures = Path(responses_file), {}
        done = set()
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            whole = [line for line in lines if _is_json(line)]
            done = {json.loads(line)["id"] for line in whole}
            if len(whole) < len(lines):
                path.write_text("".join(line + "\n" for line in whole), encoding="utf-8")
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = (self.history, self.system)
        try:
            with open(path, "a", encoding="utf-8") as out:
                for name, record in tqdm(
                    records.items(), desc="respond", unit="dialogue", disable=not progress
                ):
                    if name in done:
                        continue
                    try:
                        reply = self._respond(record)
                    except (AudioError, ChatError, OSError) as error:
                        failures[name] = str(error)
                        continue
                    line = {
                        "id": name,
                        "turns": [{"role": t["role"], "text": t["text"]} for t in record["turns"]],
                        "style": style_in_words(record),
                        "response": reply.text,
                        "finish": reply.finish,
                    }
                    out.write(json.dumps(line, ensure_ascii=False) + "\n")
                    out.flush()
        finally:
            self.history, self.system = kept
        return failures

    def _respond(self, record):
        audios, turns = record.get("audios") or [], []
        for turn in record["turns"]:
            new = ChatTurn(turn["role"], turn["text"])
            if turn.get("audio") is not None and turn["role"] == "user":
                segment = audios[turn["audio"]]
                new = ChatTurn("user", turn["text"], segment["wav"], loaded_from=segment["wav"])
                new.waveform = load_audio(
                    segment["wav"],
                    self.sample_rate,
                    segment.get("start"),
                    segment.get("stop"),
                    max_duration=self.max_duration,
                )
            turns.append(new)
        last = turns.pop()
        self.history, self.system = turns, record.get("system")
        return self.say(audio=last.waveform) if last.is_speech else self.say(text=last.text)

    def forward(self, turn):
        """Same as :meth:`say`."""
        return self.say(turn)


def is_recording(text):
    """Whether a text names a recording: a file that is there, or a suffix of audio.

    Arguments
    ---------
    text : str

    Returns
    -------
    bool

    Example
    -------
    >>> is_recording("turn1.wav"), is_recording("Hello there."), is_recording("No more .wav files for me!")
    (True, False, False)
    """
    text = text.strip()
    if text.lower().endswith(AUDIO_SUFFIXES):
        return True
    try:
        return len(text) < 1024 and Path(text).is_file()
    except (OSError, ValueError):
        return False


def style_in_words(record):
    """Emotion and descriptors of a record's last turn as judges read them; None where nothing is known.

    Example
    -------
    >>> style_in_words({"emotion": "sad", "descriptors": {"speed": "slow"}})
    'emotion: sad, speed: slow'
    """
    known: Mapping = {EMOTION: record.get(EMOTION), **(record.get("descriptors") or {})}
    words = [
        f"{name}: {value}"
        for name, value in known.items()
        if isinstance(value, str) and name != "description"
    ]
    return ", ".join(words) or None


def _is_json(line):
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True

"""The one place that knows how a token sequence is laid out.

A packer turns an :class:`~speechbrain_emo.prompts.segments.Example` into token ids in which the positions
that speech fills are left open, and a list of such rows into padded tensors. Training, generation and label
scoring use the same packer: they differ in whether the answer is there, and on which side is padded.

Axis letters: B rows, P packed positions, N audios of the batch, S positions inside a slot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch

from .segments import Slot

KIND_PADDING = 0
KIND_TEXT = 1
KIND_ANSWER = 2
FIRST_SLOT_KIND = 3
IGNORED_LABEL = -100

# Private-use characters delimit slots while the chat template is rendered as text. They cannot be typed by
# accident, no template trims them, and a text that holds one is refused.
_OPEN, _CLOSE = "\ue000", "\ue001"


@dataclass(frozen=True)
class PackedRow:
    """One example as token ids with open slot positions.

    Arguments
    ---------
    id : str
        The example's id.
    token_ids : tuple of int
        One id a position; 0 where speech goes.
    kinds : tuple of int
        Kind of each position: 1 text, 2 answer, 3 and above the packer's slot kinds in order.
    labels : tuple of int
        The token id on answer positions, -100 elsewhere. Not shifted.
    label_weights : tuple of float
        Loss weight of each position, 0 off the answer.
    slots : tuple of (str, int, int, int)
        Kind, audio of the record, first position, number of positions; speech slots only.

    Example
    -------
    >>> PackedRow("u", (5, 0), (1, 3), (-100, -100), (0.0, 0.0), (("content", 0, 1, 1),)).num_positions
    2
    """

    id: str
    token_ids: tuple[int, ...]
    kinds: tuple[int, ...]
    labels: tuple[int, ...]
    label_weights: tuple[float, ...]
    slots: tuple[tuple[str, int, int, int], ...]

    @property
    def num_positions(self):
        """Number of packed positions."""
        return len(self.token_ids)


@dataclass(frozen=True)
class SlotIndex:
    """Where the embeddings of one kind of slot go.

    Arguments
    ---------
    row, column : torch.Tensor
        Target in the packed batch, int64, shape (M,).
    audio, position : torch.Tensor
        Source in the front end's output (N, S, D), int64, shape (M,).

    Example
    -------
    >>> one = torch.zeros(1, dtype=torch.long)
    >>> SlotIndex(one, one, one, one).row.shape
    torch.Size([1])
    """

    row: torch.Tensor
    column: torch.Tensor
    audio: torch.Tensor
    position: torch.Tensor


@dataclass(frozen=True)
class PackedBatch:
    """Padded rows. See ``docs/architecture.md`` for the layout.

    Arguments
    ---------
    token_ids, attention_mask, position_ids, kinds, labels : torch.Tensor
        int64, shape (B, P). ``labels`` are not shifted and -100 off the answer.
    label_weights : torch.Tensor
        float32, shape (B, P).
    slots : dict of str to SlotIndex
        One entry a slot kind that occurs in the batch.
    ids : tuple of str
        The examples' ids, row by row.
    kind_names : tuple of str
        Name of each kind id: ``padding``, ``text``, ``answer``, then the slot kinds.

    Example
    -------
    >>> z = torch.zeros(1, 2, dtype=torch.long)
    >>> PackedBatch(z, z, z, z, z, z.float(), {}, ("u",)).to("cpu").token_ids.shape
    torch.Size([1, 2])
    """

    token_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    kinds: torch.Tensor
    labels: torch.Tensor
    label_weights: torch.Tensor
    slots: dict[str, SlotIndex] = field(default_factory=dict)
    ids: tuple[str, ...] = ()
    kind_names: tuple[str, ...] = ()

    def to(self, device):
        """Copy of the batch on ``device``."""
        moved = {
            f.name: getattr(self, f.name).to(device)
            for f in fields(self)
            if isinstance(getattr(self, f.name), torch.Tensor)
        }
        slots = {
            kind: SlotIndex(*(t.to(device) for t in (s.row, s.column, s.audio, s.position)))
            for kind, s in self.slots.items()
        }
        return replace(self, slots=slots, **moved)


class Packer:
    """Lays out examples as token sequences in the chat template of the tokenizer in use.

    The template is rendered once as text, with a private marker for every slot; the pieces between the
    markers are tokenised apart, so that no merge crosses the border of a slot. The answer's fields are
    tokenised header by header and value by value and end with the tokenizer's end token.

    Arguments
    ---------
    tokenizer : transformers.PreTrainedTokenizerBase
        With a chat template and an ``eos_token_id``.
    slot_kinds : sequence of str
        Names of the slots; their kind ids are 3, 4, ... in this order.
    max_positions : int, optional
        Longest row, in positions; None for no limit.

    Raises
    ------
    ValueError
        If the tokenizer has no chat template or no end token, or a slot kind is named twice.

    Example
    -------
    >>> from speechbrain_emo.prompts.segments import AnswerField, Example, Slot, Turn
    >>> from speechbrain_emo.lobes.tiny_llm import train_tiny_tokenizer
    >>> packer = Packer(train_tiny_tokenizer(["the sky is blue", "emotion: sad"], vocab_size=280), ["content"])
    >>> example = Example("u", "asr", (Turn("user", (Slot("content"), "the sky")),), (AnswerField("t", "", "blue"),))
    >>> row = packer.encode(example, [{"content": 3}])
    >>> sum(kind == 3 for kind in row.kinds)
    3
    >>> packer.collate([row]).labels.shape == (1, row.num_positions)
    True
    """

    def __init__(self, tokenizer, slot_kinds: Sequence[str], max_positions=None):
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                f"tokenizer {tokenizer.name_or_path!r} has no chat template: use an instruction-tuned model, "
                "or set tokenizer.chat_template"
            )
        if tokenizer.eos_token_id is None:
            raise ValueError(f"tokenizer {tokenizer.name_or_path!r} has no eos_token: the answer needs one")
        if len(set(slot_kinds)) != len(slot_kinds):
            raise ValueError(f"slot kinds {list(slot_kinds)} name a kind twice")
        self.tokenizer = tokenizer
        self.slot_kinds = tuple(slot_kinds)
        self.max_positions = max_positions
        self.end_id = tokenizer.eos_token_id
        pad_id = tokenizer.pad_token_id
        self.pad_id = self.end_id if pad_id is None else pad_id
        self._kind_ids = {kind: FIRST_SLOT_KIND + i for i, kind in enumerate(self.slot_kinds)}
        self._text_cache = {}

    def kind_id(self, kind):
        """Kind id of a slot kind, in ``PackedBatch.kinds``."""
        if kind not in self._kind_ids:
            raise ValueError(f"slot kind {kind!r} is unknown; this packer has {list(self.slot_kinds)}")
        return self._kind_ids[kind]

    def tokenize(self, text):
        """Token ids of a piece of text, without special tokens of the tokenizer's own."""
        # Prompt pieces, headers and labels repeat in every example.
        ids = self._text_cache.get(text)
        if ids is None:
            ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            if len(self._text_cache) < 50_000:
                self._text_cache[text] = ids
        return ids

    def answer_ids(self, fields):
        """Token ids of answer fields, without the end token.

        Arguments
        ---------
        fields : sequence of AnswerField
            In the order of the answer.

        Returns
        -------
        list of int
        """
        ids = []
        for answer_field in fields:
            ids += self.tokenize(answer_field.header)
            ids += self.tokenize(answer_field.value)
        return ids

    def _render(self, example):
        """The conversation as text, every slot a marker."""
        messages, slots = [], []
        for turn in example.turns:
            content = ""
            for part in turn.parts:
                if isinstance(part, Slot):
                    content += f"{_OPEN}{len(slots)}{_CLOSE}"
                    slots.append(part)
                elif _OPEN in part or _CLOSE in part:
                    raise ValueError(
                        f"example {example.id!r}: the text {part[:60]!r} holds a private-use character "
                        "(U+E000 or U+E001) that marks slots; take it out"
                    )
                else:
                    content += part
            messages.append({"role": turn.role, "content": content})
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text, slots

    def encode(
        self,
        example,
        slot_lengths: Sequence[Mapping[str, int]] = (),
        with_answer=True,
        answer_prefix_ids: Sequence[int] = (),
    ):
        """Lay out one example.

        Arguments
        ---------
        example : Example
            What to lay out.
        slot_lengths : sequence of mapping of str to int
            For every audio of the record, the number of positions of each slot kind.
        with_answer : bool
            True for training. False for generation and scoring: the row ends where the answer begins.
        answer_prefix_ids : sequence of int
            With ``with_answer=False``, ids of answer tokens that are already there (their kind is answer).

        Returns
        -------
        PackedRow

        Raises
        ------
        ValueError
            If a slot's kind or audio is unknown, or the row is longer than ``max_positions``.
        """
        text, slots = self._render(example)
        token_ids, kinds, open_slots = [], [], []

        def add(ids, kind):
            token_ids.extend(ids)
            kinds.extend([kind] * len(ids))

        rest = text
        while rest:
            piece, marker, rest = rest.partition(_OPEN)
            if piece:
                add(self.tokenize(piece), KIND_TEXT)
            if not marker:
                break
            number, _, rest = rest.partition(_CLOSE)
            slot = slots[int(number)]
            kind = self.kind_id(slot.kind)
            if slot.source == "text":
                add(self.tokenize(slot.text), kind)
            elif slot.source == "speech":
                if slot.audio >= len(slot_lengths):
                    raise ValueError(
                        f"example {example.id!r}: slot {slot.kind!r} asks for audio {slot.audio}, "
                        f"the record has {len(slot_lengths)}"
                    )
                length = int(slot_lengths[slot.audio][slot.kind])
                open_slots.append((slot.kind, slot.audio, len(token_ids), length))
                add([0] * length, kind)
        labels = [IGNORED_LABEL] * len(token_ids)
        weights = [0.0] * len(token_ids)
        if with_answer:
            for answer_field in example.answer:
                for ids, weight in (
                    (self.tokenize(answer_field.header), 1.0),
                    (self.tokenize(answer_field.value), float(answer_field.weight)),
                ):
                    add(ids, KIND_ANSWER)
                    labels.extend(ids)
                    weights.extend([weight] * len(ids))
            add([self.end_id], KIND_ANSWER)
            labels.append(self.end_id)
            weights.append(1.0)
        else:
            add(answer_prefix_ids, KIND_ANSWER)
            labels.extend([IGNORED_LABEL] * len(answer_prefix_ids))
            weights.extend([0.0] * len(answer_prefix_ids))
        if self.max_positions is not None and len(token_ids) > self.max_positions:
            raise ValueError(
                f"example {example.id!r} (task {example.task!r}) packs to {len(token_ids)} positions; at most "
                f"{self.max_positions} are allowed (max_positions). Shorten the audio or raise the limit."
            )
        return PackedRow(
            example.id, tuple(token_ids), tuple(kinds), tuple(labels), tuple(weights), tuple(open_slots)
        )

    def collate(self, rows, side="right", audio_offsets=None, multiple=1):
        """Pad rows to one batch.

        Arguments
        ---------
        rows : sequence of PackedRow
            At least one.
        side : str
            ``right`` (training) or ``left`` (generation and scoring): where the padding goes.
        audio_offsets : sequence of int, optional
            For every row, the index of its first audio among the N audios of the batch. Default: one audio
            a row, in order.
        multiple : int
            The width is rounded up to a multiple of it. Few widths spare a backend that compiles a kernel for
            every shape time and memory.

        Returns
        -------
        PackedBatch

        Raises
        ------
        ValueError
            If ``side`` is neither ``left`` nor ``right``.
        """
        if side not in ("left", "right"):
            raise ValueError(f"side is {side!r}; allowed: left, right")
        if audio_offsets is None:
            audio_offsets = range(len(rows))
        width = max(row.num_positions for row in rows)
        width += -width % multiple
        shape = (len(rows), width)
        token_ids = torch.full(shape, self.pad_id, dtype=torch.long)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        position_ids = torch.zeros(shape, dtype=torch.long)
        kinds = torch.full(shape, KIND_PADDING, dtype=torch.long)
        labels = torch.full(shape, IGNORED_LABEL, dtype=torch.long)
        label_weights = torch.zeros(shape)
        slots = {}
        for i, row in enumerate(rows):
            n = row.num_positions
            first = width - n if side == "left" else 0
            span = slice(first, first + n)
            token_ids[i, span] = torch.tensor(row.token_ids, dtype=torch.long)
            attention_mask[i, span] = 1
            position_ids[i, span] = torch.arange(n)
            kinds[i, span] = torch.tensor(row.kinds, dtype=torch.long)
            labels[i, span] = torch.tensor(row.labels, dtype=torch.long)
            label_weights[i, span] = torch.tensor(row.label_weights)
            for kind, audio, start, length in row.slots:
                slots.setdefault(kind, []).append((i, first + start, audio_offsets[i] + audio, length))
        index = {}
        for kind, places in slots.items():
            r, c, a, p = [], [], [], []
            for row_number, start, audio, length in places:
                r.append(torch.full((length,), row_number, dtype=torch.long))
                c.append(torch.arange(start, start + length))
                a.append(torch.full((length,), audio, dtype=torch.long))
                p.append(torch.arange(length))
            index[kind] = SlotIndex(*(torch.cat(x) for x in (r, c, a, p)))
        return PackedBatch(
            token_ids,
            attention_mask,
            position_ids,
            kinds,
            labels,
            label_weights,
            index,
            tuple(row.id for row in rows),
            ("padding", "text", "answer", *self.slot_kinds),
        )

"""Targets of style-aware alignment: what the frozen language model itself answers to the styled transcript.

arXiv 2508.08095, section 2.3. The prompt is the one that training uses, with text in place of every slot: a caption
of the style for the paralinguistic slot, the transcript for the linguistic one. Nothing here needs speech, an encoder
or a front end.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from speechbrain_emo.dataio.dialogue import check_dialogue
from speechbrain_emo.prompts.packer import Packer
from speechbrain_emo.prompts.segments import Slot
from speechbrain_emo.prompts.tasks import keyed_random

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AlignmentReport:
    """What :func:`prepare_targets` did.

    Arguments
    ---------
    num_records : int
        Dialogues that were asked for.
    num_reused : int
        Of them, those whose target was in the file already.
    num_truncated : int
        Answers that ended at the longest length; they teach never to end.
    num_empty : int
        Answers without a word.
    num_too_long : int
        Dialogues longer than the language model's context.

    Example
    -------
    >>> AlignmentReport(10, 4, 1, 0, 0).num_usable
    9
    """

    num_records: int
    num_reused: int
    num_truncated: int
    num_empty: int
    num_too_long: int

    @property
    def num_usable(self):
        """Dialogues that got a target."""
        return self.num_records - self.num_truncated - self.num_empty - self.num_too_long


def styled_example(task, record, seed=0):
    """A dialogue as the language model is asked about it, all slots text.

    Arguments
    ---------
    task : DialogueTask
        With captions.
    record : mapping
        A dialogue with its ``id``.
    seed : int
        With the id, the key of wording, system prompt and caption.

    Returns
    -------
    Example

    Example
    -------
    >>> from speechbrain_emo.prompts import AnswerFormat, DialogueTask
    >>> fmt = AnswerFormat({"transcript": "text", "emotion": ["sad", "happy"]})
    >>> task = DialogueTask("chat", ["{paralinguistic}{linguistic}"], fmt, captions=["({emotion})"])
    >>> turns = [{"role": "user", "audio": 0, "text": "hello", "emotion": "sad"}]
    >>> example = styled_example(task, {"id": "d", "audios": [{}], "turns": turns})
    >>> "".join(part.text for part in example.turns[0].parts)
    ' (sad) hello'
    """
    sources = dict.fromkeys(task.slot_kinds, "text")
    # A target that is there already is no part of the question.
    record = {**record, "response": None, "target": None}
    return task.build(record, keyed_random("align", seed, record["id"]), sources)


def example_text(example):
    """The conversation of an example whose slots are text, one line a turn.

    Arguments
    ---------
    example : Example
        As :func:`styled_example` makes it.

    Returns
    -------
    str
    """
    lines = []
    for turn in example.turns:
        words = "".join(part.text if isinstance(part, Slot) else part for part in turn.parts)
        lines.append(f"{turn.role}: {words.strip()}")
    return "\n".join(lines)


@torch.no_grad()
def prepare_targets(
    records,
    llm,
    task,
    targets_file,
    max_new_tokens=128,
    num_beams=1,
    max_positions=8192,
    max_rows=32,
    seed=0,
    keep_truncated=False,
    progress=True,
):
    """Fill ``target`` of dialogues with the frozen language model's own answers.

    Answers are added to a file as they come; a run that was killed goes on where it stopped. An answer is used again
    if the question and all settings are the same. Batches do not change answers beyond the arithmetic of padding
    (exact in float32 up to ties).

    Arguments
    ---------
    records : dict
        id -> dialogue; changed in place: those that get none lose ``target``.
    llm : SpeechLLM
        As training will use it. With LoRA the adapted model would answer: refused.
    task : DialogueTask
        Of the experiment, with captions.
    targets_file : str or pathlib.Path
        JSON lines: ``id``, ``question`` (the styled transcript), ``response``, ``finish`` (stop or length),
        ``num_tokens``, ``settings`` and ``key``, a hash of question and settings.
    max_new_tokens, num_beams : int
        Of the generation; greedy with one beam.
    max_positions : int
        Most positions of a batch, padding and answer included.
    max_rows : int
        Most dialogues of a batch.
    seed : int
        Draws wording and caption, with the id.
    keep_truncated : bool
        Whether answers that ended at ``max_new_tokens`` are targets.
    progress : bool
        Show a progress bar.

    Returns
    -------
    AlignmentReport

    Raises
    ------
    ValueError
        If the language model has LoRA, or a record is no dialogue.
    """
    if llm.has_lora:
        raise ValueError(
            "the language model has LoRA adapters: targets are what the FROZEN model answers; set lora: null"
        )
    packer = Packer(llm.tokenizer, task.slot_kinds)
    settings = {
        "llm": str(llm.source),
        "revision": getattr(llm, "revision", None),
        "weights": _fingerprint(llm),
        "dtype": str(next(llm.causal_lm.parameters()).dtype).removeprefix("torch."),
        "max_new_tokens": max_new_tokens,
        "num_beams": num_beams,
        "do_sample": False,
        "seed": seed,
        "task": task.name,
    }
    limit = getattr(llm.causal_lm.config, "max_position_embeddings", None)
    done = _read_targets(targets_file)
    questions, rows, jobs, too_long, reused = {}, {}, [], [], 0
    for name, record in records.items():
        check_dialogue(name, record)
        example = styled_example(task, {**record, "id": name}, seed)
        row = packer.encode(example, (), with_answer=False)
        questions[name] = example_text(example)
        rows[name] = row
        key = _key(row.token_ids, settings)
        if limit is not None and row.num_positions + max_new_tokens > limit:
            too_long.append(name)
            logger.warning(
                "%s: %d positions and %d new tokens do not fit the model's context of %d: no target",
                name,
                row.num_positions,
                max_new_tokens,
                limit,
            )
        elif key in done.get(name, {}):
            reused += 1
        else:
            jobs.append((name, key))
    # Long ones first: what does not fit the memory shows at once.
    jobs.sort(key=lambda job: (-rows[job[0]].num_positions, job[0]))
    path = Path(targets_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    device = next(llm.causal_lm.parameters()).device
    with (
        open(path, "a", encoding="utf-8") as out,
        tqdm(total=len(jobs), desc="align", unit="dialogue", disable=not progress) as bar,
    ):
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            out.write("\n")
        while jobs:
            width = rows[jobs[0][0]].num_positions + max_new_tokens
            count = max(min(max_positions // (width * num_beams), max_rows), 1)
            batch, jobs = jobs[:count], jobs[count:]
            packed = packer.collate([rows[name] for name, _ in batch], "left").to(device)
            written = llm.generate(llm.embed(packed, {}), packed, max_new_tokens, num_beams)
            for (name, key), ids in zip(batch, written):
                target = {
                    "id": name,
                    "question": questions[name],
                    "response": llm.tokenizer.decode(ids, skip_special_tokens=True).strip(),
                    "finish": "length" if len(ids) >= max_new_tokens else "stop",
                    "num_tokens": len(ids),
                    "settings": settings,
                    "key": key,
                }
                done.setdefault(name, {})[key] = target
                out.write(json.dumps(target, ensure_ascii=False) + "\n")
            out.flush()
            bar.update(len(batch))
    truncated = empty = 0
    for name, record in records.items():
        record.pop("target", None)
        target = done.get(name, {}).get(_key(rows[name].token_ids, settings))
        if name in too_long or target is None:
            continue
        if not target["response"]:
            empty += 1
        elif target["finish"] == "length" and not keep_truncated:
            truncated += 1
        else:
            record["target"] = target["response"]
    return AlignmentReport(len(records), reused, truncated, empty, len(too_long))


def _key(token_ids, settings: Mapping):
    text = json.dumps([list(token_ids), settings], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _fingerprint(llm):
    """A hash of some of the weights: another model under the same name gives other answers."""
    digest = hashlib.sha256()
    for name, parameter in sorted(llm.causal_lm.named_parameters()):
        flat = parameter.detach().flatten()
        few = flat[:: max(len(flat) // 8, 1)][:8].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {few.tolist()}".encode())
    return digest.hexdigest()[:16]


def _read_targets(path):
    """Record -> key -> target; a line that a kill cut off is left out."""
    path, found = Path(path), {}
    if path.is_file():
        for line in path.read_bytes().split(b"\n"):
            try:
                target = json.loads(line)
                found.setdefault(target["id"], {})[target["key"]] = target
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
                if line.strip():
                    logger.warning("%s: an incomplete line is left out: %r", path, line[:60])
    return found

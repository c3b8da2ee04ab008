"""What the frozen language model itself answers to styled transcripts: the targets of dialogue alignment.

arXiv 2508.08095, section 2.3 (style-aware behaviour alignment): the model that hears the speech should answer as the
same frozen model does when it reads the words with a caption of their style.
"""

import json
import logging
from pathlib import Path

import torch
from tqdm import tqdm

logger = logging.getLogger(__name__)


@torch.no_grad()
def styled_answers(llm, packer, task, records, max_new_tokens=64, device="cpu"):
    """Greedy answers of a language model to records in words: captions and transcripts in all slots.

    Arguments
    ---------
    llm : SpeechLLM
        On ``device``, in eval mode.
    packer : Packer
        Of its tokenizer.
    task : InstructionTask
        For example a DialogueTask.
    records : sequence of mapping
        With their ``id``; one batch.
    max_new_tokens : int
        Longest answer.
    device : str
        Where it runs.

    Returns
    -------
    list of str
    """
    sources = dict.fromkeys(task.slot_kinds, "text")
    examples = [task.build(record, slot_sources=sources) for record in records]
    rows = [packer.encode(example, with_answer=False) for example in examples]
    packed = packer.collate(rows, side="left").to(device)
    written = llm.generate(llm.embed(packed, {}), packed, max_new_tokens)
    return [packer.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written]


def complete_targets(path, llm, packer, task, records, max_new_tokens=64, batch_size=32, device="cpu"):
    """Answers for all records, from a JSON-lines file where they are there and written to it where not.

    Interrupted, it goes on where it was: a line is written when its batch is done. A line names the settings that made
    it; lines of other settings are not used.

    Arguments
    ---------
    path : str or pathlib.Path
        File; made with its folder.
    llm, packer, task, max_new_tokens, device :
        As in :func:`styled_answers`.
    records : sequence of mapping
        All that need an answer.
    batch_size : int
        Records of a batch.

    Returns
    -------
    dict of str to str
        id -> answer.
    """
    path = Path(path)
    settings = {
        "model": llm.source,
        "task": task.name,
        "max_new_tokens": max_new_tokens,
        "decoding": "greedy",
    }
    found = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # The last line of an interrupted run.
            if entry["settings"] == settings:
                found[entry["id"]] = entry["target"]
    missing = [record for record in records if record["id"] not in found]
    # Similar lengths together: less padding.
    missing.sort(key=lambda r: sum(len(t["text"]) for t in r.get("turns") or ()))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as stream:
        stream.write("\n" if path.stat().st_size else "")
        for start in tqdm(range(0, len(missing), batch_size), desc="styled answers", disable=not missing):
            batch = missing[start : start + batch_size]
            for record, text in zip(
                batch, styled_answers(llm, packer, task, batch, max_new_tokens, device), strict=True
            ):
                found[record["id"]] = text
                stream.write(json.dumps({"id": record["id"], "target": text, "settings": settings}) + "\n")
            stream.flush()
    return {record["id"]: found[record["id"]] for record in records}

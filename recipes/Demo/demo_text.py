"""Text for the tiny language model of the demo: what a large model has read already, this one learns here.

The records have transcripts, descriptors and emotions but no audio; their sentences share no four words in a row
with test or validation.
"""

import json
from pathlib import Path

from recipes.Demo.demo_prepare import text_records, tokenizer_texts
from speechbrain_emo.dataio.manifest import write_manifest
from speechbrain_emo.lobes.tiny_llm import build_tiny_llm


def prepare_text(
    manifest_folder,
    save_folder,
    llm_folder,
    num_train=12000,
    num_valid=300,
    vocab_size=600,
    seed=1234,
    model=None,
):
    """Write text manifests and a randomly initialised language model with its tokenizer.

    Arguments
    ---------
    manifest_folder : str
        Manifests of the spoken corpus, whose valid and test sentences are kept out.
    save_folder : str
        Where ``train.json`` and ``valid.json`` go.
    llm_folder : str
        Where the initial model and its tokenizer go.
    num_train, num_valid : int
        Numbers of records.
    vocab_size : int
        Of the tokenizer.
    seed : int
        Of the draw and the initial weights.
    model : dict, optional
        Sizes of the model: keywords of ``build_tiny_llm``.

    Raises
    ------
    FileNotFoundError
        If the spoken corpus is not there.
    """
    wanted = json.dumps([num_train, num_valid, vocab_size, seed, dict(model or {})], sort_keys=True)
    stamp = Path(save_folder) / "settings.json"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    exclude = []
    for split in ("valid", "test"):
        path = Path(manifest_folder) / f"{split}.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist: prepare the corpus first (hparams/demo_encoder.yaml)"
            )
        exclude += [r["transcript"] for r in json.loads(path.read_text(encoding="utf-8")).values()]
    records = text_records(num_train + num_valid, seed, exclude)
    parts = {"train": records[:num_train], "valid": records[num_train:]}
    for split, part in parts.items():
        write_manifest(
            Path(save_folder) / f"{split}.json",
            {r["id"]: {**{k: v for k, v in r.items() if k != "id"}, "duration": 0.0} for r in part},
        )
    build_tiny_llm(
        llm_folder,
        tokenizer_texts(seed=seed, exclude=exclude),
        vocab_size=vocab_size,
        seed=seed,
        **(model or {}),
    )
    stamp.write_text(wanted, encoding="utf-8")

"""Partial LoRA: what two adapters bound to positions cost in training, and where the time of a spoken reply goes.

Training step: CPU time of the process (which other work on the machine hardly changes) of loss and backward pass over
prompts with emotion slots, with two partial LoRAs on q and v against one plain LoRA of the same rank by peft (the
reference). Peak memory: of a process of its own for each. The reply: seconds of listening, reasoning, synthesis and
vocoder of ``ConversationalTTS.reply`` over random weights of the real classes, or over trained ones (--model, --tts).
"""

import functools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the file itself runs, too

import torch
from tqdm import tqdm

from benchmarks.common import Table, argument_parser, compare, peak_memory, print_tables, ratio_cell

EXAMPLE = (
    "python -m benchmarks.partial_lora\n"
    "  python -m benchmarks.partial_lora --model results/demo_jelly/1986 --tts results/demo_jelly_tts/1986"
)
REPOSITORY = Path(__file__).resolve().parent.parent
PLAIN, PARTIAL = "one plain LoRA (peft)", "two partial LoRAs"
ADAPTER = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
LORAS = {
    PLAIN: ADAPTER,
    PARTIAL: {
        "emotion": {**ADAPTER, "kinds": ["emotion"]},
        "text": {**ADAPTER, "kinds": ["text", "answer"]},
    },
}
QUICK_SIZES = {
    "hidden_size": 32,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "intermediate_size": 32,
}
# Of the language model whose step is timed: an eighth of the published one's width.
SIZES = {"hidden_size": 512, "num_layers": 4, "num_heads": 8, "num_kv_heads": 8, "intermediate_size": 1376}


def build_step(folder, variant, sizes=None, rows=4, turns=4, queries=25, seed=0):
    """A function that runs one training step of a variant.

    Arguments
    ---------
    folder : str or pathlib.Path
        Gets the language model, where it is not there.
    variant : str
        A key of ``LORAS``.
    sizes : dict, optional
        Keywords of ``build_tiny_llm``.
    rows, turns, queries : int
        Prompts, utterances of history in each, and positions of an emotion slot.
    seed : int
        Of weights and embeddings.

    Returns
    -------
    tuple
        The function, which returns the loss, and the SpeechLLM.
    """
    from speechbrain_emo.lobes.speech_llm import SpeechLLM
    from speechbrain_emo.lobes.tiny_llm import build_tiny_llm
    from speechbrain_emo.prompts import AnswerField, Example, Packer, Slot, Turn

    folder = Path(folder)
    words = "Speaker A: we went to the sea and it rained on all of the days"
    if not (folder / "llm" / "config.json").is_file():
        build_tiny_llm(
            folder / "llm",
            [words, "weak happy medium sad strong angry neutral"] * 4,
            400,
            **(sizes or SIZES),
            max_position_embeddings=2048,
            seed=seed,
        )
    torch.manual_seed(seed)
    llm = SpeechLLM(folder / "llm", lora=LORAS[variant])
    for module in llm.lora_modules():
        module.requires_grad_(True)
    llm.train()
    packer = Packer(llm.tokenizer, ["emotion"])
    parts = []
    for turn in range(turns):
        parts += [words + " ", Slot("emotion", turn), "\n"]
    example = Example("u", "t", (Turn("user", tuple(parts)),), (AnswerField("emotion", "", "weak happy"),))
    row = packer.encode(example, [{"emotion": queries}] * turns)
    packed = packer.collate([row] * rows, "right", [i * turns for i in range(rows)])
    generator = torch.Generator().manual_seed(seed)
    shape = (rows * turns, queries, llm.hidden_size)
    slots = {"emotion": 0.02 * torch.randn(shape, generator=generator)}
    # As from a front end that trains.
    slots["emotion"].requires_grad_()

    def step():
        llm.zero_grad(set_to_none=True)
        loss = llm.answer_loss(llm.embed(packed, slots), packed)
        value = loss.weighted_sum / loss.weight
        value.backward()
        return float(value.detach())

    return step, llm


def measure_step(folder, rounds=10, **settings):
    """CPU time of a step of every variant, interleaved.

    Arguments
    ---------
    folder : str or pathlib.Path
        For the language model.
    rounds : int
        Timed rounds, after two that are not.
    **settings
        Of :func:`build_step`.

    Returns
    -------
    dict of str to list of float
        Seconds of CPU time.

    Raises
    ------
    AssertionError
        If the variants' first losses differ: with B at zero they are the same model.
    """
    steps = {name: build_step(folder, name, **settings)[0] for name in LORAS}
    losses = [step() for step in steps.values()]
    assert max(losses) - min(losses) < 1e-4, losses
    times = {name: [] for name in steps}
    for number in tqdm(range(-2, rounds), desc="steps", leave=False, disable=None):
        for name in steps if number % 2 else reversed(steps):
            started = time.process_time()
            steps[name]()
            if number >= 0:
                times[name].append(time.process_time() - started)
    return times


def measure_memory(folder):
    """Peak resident memory of five steps of each variant, each in a process of its own: bytes."""
    found = {}
    for name in LORAS:
        command = [
            sys.executable,
            "-m",
            "benchmarks.partial_lora",
            "--peak_of",
            name,
            "--folder",
            str(folder),
        ]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


def step_table(times, memory=None, parameters=None):
    """The table of training steps."""
    summary = compare(times, PLAIN)
    table = Table(
        "Training step of adapters on q and v, rank 8", ["adapters", "CPU seconds", "ratio of time"]
    )
    if parameters:
        table.header.append("trainable")
    if memory:
        table.header.append("peak memory, MB")
    for name, timing in summary.items():
        row = [f"{name} (reference)" if name == PLAIN else name, f"{timing.seconds:.3f}", ratio_cell(timing)]
        row += [f"{parameters[name]}"] if parameters else []
        row += [f"{memory[name] / 1e6:.0f}"] if memory else []
        table.rows.append(row)
    table.notes.append("Aim: two partial LoRAs at most 1.10 times the time of one plain LoRA.")
    return table


def build_reply(folder, seed=0):
    """A ``ConversationalTTS`` with random weights of the real classes, loaded as a user loads one.

    Arguments
    ---------
    folder : str or pathlib.Path
        Gets backbones and exports.
    seed : int
        Of all weights.

    Returns
    -------
    ConversationalTTS
    """
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    from speechbrain_emo.brains.conversational_tts import Inventory, export_tts
    from speechbrain_emo.brains.speech_language_model import SpeechLanguageModel
    from speechbrain_emo.inference import ConversationalTTS
    from speechbrain_emo.inference.export import export_model
    from speechbrain_emo.lobes.eq_former import EQFormer
    from speechbrain_emo.lobes.fastspeech import EmotionalFastSpeech2
    from speechbrain_emo.lobes.mel_vocoder import MelSettings
    from speechbrain_emo.lobes.speech_encoder import SpeechEncoder
    from speechbrain_emo.lobes.speech_llm import SpeechLLM
    from speechbrain_emo.lobes.tiny_llm import build_tiny_llm
    from speechbrain_emo.prompts import AnswerFormat, EmotionTask, NextLineTask

    folder = Path(folder)
    emotions, intensities = ["neutral", "happy", "sad", "angry"], ["weak", "medium", "strong"]
    build_tiny_llm(
        folder / "llm",
        ["Speaker A: hello there, how are you? weak happy medium sad strong angry neutral feeling"] * 4,
        400,
        **SIZES,
        max_position_embeddings=2048,
        seed=seed,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = {"d_model": 256, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 1024}
        config |= {"decoder_layers": 1, "decoder_attention_heads": 1, "decoder_ffn_dim": 8, "vocab_size": 40}
        config |= {"num_mel_bins": 80, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        config |= {"decoder_start_token_id": 1}
        WhisperModel(WhisperConfig(**config)).encoder.save_pretrained(folder / "encoder")
        WhisperFeatureExtractor(feature_size=80).save_pretrained(folder / "encoder")
        parts = {
            "encoder": functools.partial(
                SpeechEncoder,
                source=str(folder / "encoder"),
                layers=[1, 2, 3, 4],
                pool=40,
                fixed_seconds=20.0,
            ),
            "llm": functools.partial(SpeechLLM, source=str(folder / "llm"), lora=LORAS[PARTIAL]),
            "front_end": functools.partial(
                EQFormer, num_queries=25, qformer_size=192, qformer_heads=4, qformer_feed_forward=768
            ),
        }
        encoder, llm = parts["encoder"](), parts["llm"]()
        front_end = parts["front_end"](4, 256, llm.hidden_size)
        fmt = AnswerFormat({"transcript": "text", "intensity": intensities, "emotion": emotions})
        tasks = {
            "emotion": EmotionTask("emotion", ["{emotion} feeling?"], fmt, intensity=True),
            "next": NextLineTask(
                "next",
                ["{history}Speaker {speaker}: {text} feeling?"],
                "Speaker {speaker}: {text} {emotion}\n",
                fmt,
                intensity=True,
            ),
        }
        export_model(
            folder / "model",
            SpeechLanguageModel(llm, front_end, encoder),
            parts,
            fmt,
            tasks,
            next_line={"next_task": "next", "emotion_task": "emotion"},
        )
        inventory = Inventory(
            ["unk", "sil", "AA"],
            ["0", "1"],
            emotions,
            intensities,
            {"pitch": [5.0, 1.0], "energy": [0.0, 1.0]},
        )
        settings = MelSettings()
        acoustic = EmotionalFastSpeech2(4, 2, len(emotions), len(inventory.intensities))
        hparams = {"model": {}, "g2p": "arpabet", "vocoder": "griffin_lim"}
        export_tts(folder / "tts", acoustic, inventory, settings, hparams)
    return ConversationalTTS.from_hparams(
        source=folder / "model", tts=folder / "tts", run_opts={"device": "cpu"}
    )


def measure_reply(tts, folder, turns=4, seconds=4.0, rounds=3, seed=0):
    """Seconds of the parts of a reply to a conversation of noise.

    Arguments
    ---------
    tts : ConversationalTTS
        With a synthesiser.
    folder : str or pathlib.Path
        For the recordings.
    turns : int
        Of the conversation.
    seconds : float
        Of each.
    rounds : int
        Timed ones, after one that is not.
    seed : int
        Of the noise.

    Returns
    -------
    tuple
        Part -> list of seconds, and the duration of the reply in seconds.
    """
    import soundfile

    generator = torch.Generator().manual_seed(seed)
    files = []
    for turn in range(turns):
        files.append(str(Path(folder) / f"turn{turn}.wav"))
        noise = 0.1 * torch.randn(int(seconds * 16000), generator=generator)
        soundfile.write(files[-1], noise.numpy(), 16000)
    times, duration = {}, 0.0
    for number in range(-1, rounds):
        reply = tts.reply(files, [i % 2 for i in range(turns)], "I see, and what then?", turns % 2)
        duration = reply.duration
        if number >= 0:
            for part, value in reply.prediction.seconds.items():
                times.setdefault(part, []).append(value)
    return times, duration


def reply_table(times, duration, turns, seconds):
    """The table of a reply."""
    title = f"reply to {turns} turns of {seconds:g} s, {duration:.1f} s of speech"
    table = Table(title, ["part", "seconds (median)", "share"])
    medians = {part: sorted(values)[len(values) // 2] for part, values in times.items()}
    total = sum(medians.values())
    for part, value in medians.items():
        table.rows.append([part, f"{value:.3f}", f"{100 * value / total:.0f} %"])
    table.rows.append(["all", f"{total:.3f}", "100 %"])
    table.notes.append(f"Peak memory of this process: {peak_memory() / 1e6:.0f} MB.")
    return table


def main(arguments=None):
    """Print the tables."""
    parser = argument_parser(__doc__, EXAMPLE, rounds=10)
    parser.add_argument("--turns", type=int, default=4, help="turns of the conversation (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn (%(default)s)")
    parser.add_argument("--model", help="a trained model of stages 1 and 2, instead of random weights")
    parser.add_argument("--tts", help="a trained synthesiser; with --model")
    parser.add_argument(
        "--no_memory", action="store_true", help="leave out the processes that measure memory"
    )
    parser.add_argument("--peak_of", choices=list(LORAS), help="for the processes that measure memory")
    parser.add_argument("--folder", help="for the processes that measure memory")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.peak_of:
        step, _ = build_step(options.folder, options.peak_of)
        for _ in range(5):
            step()
        print(json.dumps(peak_memory()))
        return
    if bool(options.model) != bool(options.tts):
        parser.error("--model and --tts belong together")
    with tempfile.TemporaryDirectory() as folder:
        times = measure_step(folder, options.rounds)
        parameters = {
            name: sum(p.numel() for m in build_step(folder, name)[1].lora_modules() for p in m.parameters())
            for name in LORAS
        }
        memory = None if options.no_memory else measure_memory(folder)
        tables = [step_table(times, memory, parameters)]
        if options.model:
            from speechbrain_emo.inference import ConversationalTTS

            tts = ConversationalTTS.from_hparams(source=options.model, tts=options.tts)
        else:
            tts = build_reply(Path(folder) / "reply")
        found, duration = measure_reply(
            tts, folder, options.turns, options.seconds, max(options.rounds // 3, 1)
        )
        tables.append(reply_table(found, duration, options.turns, options.seconds))
    print_tables(tables)


if __name__ == "__main__":
    main()

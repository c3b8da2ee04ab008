"""The toolkit in a shell: ``python -m speechbrain_emo COMMAND``; ``--help`` lists the commands."""

import argparse
import importlib.metadata
import json
import os
import sys
import warnings

from speechbrain_emo import cli_corpora, cli_trust
from speechbrain_emo.cli_arguments import positive, usable_device

OK, FILES_FAILED, USAGE = 0, 1, 2
_PROGRAM = "python -m speechbrain_emo"
# Written out: the registry would load numpy before --help is shown. A test holds the two together.
ALIGNER_NAMES = "pocketsphinx, espeak-dtw, ctc, mfa, textgrid"
# Of the mean over words. Right texts lie above, wrong ones below: docs/alignment.md.
LOW_CONFIDENCE = 0.5
_CHAT_COMMANDS = [["/describe"], ["/transcribe"], ["/history"], ["/undo"], ["/reset"], ["/system"]]


def _version():
    try:
        return importlib.metadata.version("speechbrain_emo")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (not installed: pip install -e .)"


def _positive_number(text):
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def build_parser():
    """The parser of all commands.

    Returns
    -------
    argparse.ArgumentParser

    Example
    -------
    >>> build_parser().parse_args(["explain", "a.wav", "--model", "results/demo_ib/1986"]).files
    ['a.wav']
    """

    def example(text):
        return {"epilog": "examples:\n" + text, "formatter_class": argparse.RawDescriptionHelpFormatter}

    parser = argparse.ArgumentParser(
        _PROGRAM,
        description="Speech that carries emotion: hear, explain, align, answer. Built on SpeechBrain.",
        **example(
            f"  {_PROGRAM} explain speech.wav --model results/demo_ib/1986\n"
            f"  {_PROGRAM} align speech.wav --text 'what is said'\n"
            f"  {_PROGRAM} annotate speech.wav --text 'what is said' --model results/demo_word_emotion/1986\n"
            f"  {_PROGRAM} speak 'so it is' --speaker me.wav --out y.wav --model results/demo_film/1986\n"
            f"  {_PROGRAM} doctor\n"
            f"  {_PROGRAM} train hparams/demo_ib.yaml"
        ),
    )
    parser.add_argument("--version", action="version", version=f"speechbrain_emo {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    explain = commands.add_parser(
        "explain",
        help="emotion, descriptors and transcript of recordings",
        description="Explain recordings of any format that libsndfile reads, at any rate and number of "
        "channels. A file that cannot be used is reported on stderr, and the others are finished.",
        **example(
            f"  {_PROGRAM} explain speech.wav --model results/demo_ib/1986\n"
            f"  {_PROGRAM} explain recordings/*.wav --model results/demo_ib/1986 --json > "
            "explanations.jsonl\n"
            f"  {_PROGRAM} explain speech.wav --model results/demo_ib/1986 --picture speech.png\n\n"
            "exit status: 0 all explained, 1 a file could not be used, 2 wrong arguments or no usable model"
        ),
    )
    explain.add_argument("files", nargs="+", metavar="FILE", help="audio file")
    explain.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="folder of a training or an exported model, or a name on the hub",
    )
    explain.add_argument(
        "--json", action="store_true", help="one JSON object a line, in the order of the files"
    )
    explain.add_argument(
        "--batch_size", type=positive, default=8, metavar="N", help="files at a time (default: 8)"
    )
    explain.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda, cuda:1 (default: a GPU where there is one)"
    )
    explain.add_argument(
        "--gender", choices=("female", "male"), help="of the speakers: what measured pitch is compared with"
    )
    explain.add_argument(
        "--picture",
        metavar="PNG",
        help="waveform, F0, level, probabilities and the descriptors beside what is measured; a folder for several "
        "files",
    )

    _add_align(commands, example)
    _add_annotate(commands, example)
    cli_trust.add_commands(commands, example, _PROGRAM)
    _add_convert(commands, example)
    _add_speak(commands, example)
    _add_score_speech(commands, example)

    doctor = commands.add_parser(
        "doctor",
        help="check GPU, packages, external programs and disk",
        description="Look at this machine and say what is missing and how to get it.",
        **example(f"  {_PROGRAM} doctor\n  {_PROGRAM} doctor --json"),
    )
    doctor.add_argument("--json", action="store_true", help="a JSON list")
    doctor.add_argument("--folder", default=".", help="whose disk is measured (default: here)")

    table = commands.add_parser(
        "table",
        help="a table of several runs side by side, in Markdown or LaTeX",
        description="Headline metrics, trainable parameters and training time of finished runs; of a synthesiser's "
        "runs speech with floor and ceiling, tokens, changed spans and intensities, a table each. Folders joined by "
        "commas are seeds of one system: mean and deviation.",
        **example(
            f"  {_PROGRAM} table results/demo_ib/1986,results/demo_ib/1987 results/demo_ib_no_bottleneck/1986\n"
            f"  {_PROGRAM} table results/demo_film_speak/1986 results/demo_film_addition_speak/1986"
        ),
    )
    table.add_argument("folders", nargs="+", metavar="FOLDER", help="holds results.json")
    table.add_argument("--latex", action="store_true", help="LaTeX instead of Markdown")

    targets = commands.add_parser(
        "targets",
        help="targets of dialogues: the frozen language model's answers to styled transcripts",
        description="Reads the manifests of an experiment, optionally cuts its dialogues at random midpoints, lets the "
        "frozen language model of the experiment answer every dialogue in words (captions of the style, transcripts), "
        "and writes manifests with these answers as `target`, and targets.jsonl with the settings of the generation. "
        "Needs no audio. A second run asks only for what is missing. Further arguments are overrides of the YAML.",
        **example(
            f"  {_PROGRAM} targets hparams/dual_qwen.yaml --data_folder=PATH --out prepared/aligned --cuts 1\n"
            f"  {_PROGRAM} targets hparams/demo_dual.yaml --split train --max_new_tokens 24\n\n"
            "Train on them with --manifest_folder=prepared/aligned. Answers that are cut off at the longest length are "
            "left out\nunless --keep_truncated.\n\n"
            "exit status: 0 done, 1 no dialogue got a target, 2 wrong arguments"
        ),
    )
    targets.add_argument(
        "experiment", metavar="YAML", help="with llm, tasks and manifests, as train.py takes it"
    )
    targets.add_argument(
        "--split",
        action="append",
        metavar="NAME",
        help="of `manifests`; several times (default: train, valid)",
    )
    targets.add_argument("--task", metavar="NAME", help="dialogue task (default: the only one)")
    targets.add_argument("--out", metavar="DIR", help="default: aligned/ beside the first manifest")
    targets.add_argument(
        "--cuts", type=int, default=0, metavar="N", help="random midpoints of a training dialogue"
    )
    targets.add_argument(
        "--sides",
        choices=("end", "start", "both"),
        default="end",
        help="what a cut takes away (default: end)",
    )
    targets.add_argument("--cut_seed", type=int, default=0, metavar="N", help="of the midpoints")
    targets.add_argument("--max_new_tokens", type=positive, default=128, metavar="N", help="(default: 128)")
    targets.add_argument("--max_rows", type=positive, default=32, metavar="N", help="dialogues at a time")
    targets.add_argument("--keep_truncated", action="store_true", help="also learn answers that were cut off")
    targets.add_argument("--device", metavar="DEVICE", help="cpu, cuda (default: a GPU where there is one)")

    judge = commands.add_parser(
        "judge",
        help="grade replies of a dialogue system by language models",
        description="CS (content, style, 1 to 5) and EGS (C1 to C4, 1 to 10) of every reply in a responses.jsonl of "
        "any system: one JSON object a line with id, turns (role, text), style and response. Judgements are added to "
        "judgements.jsonl beside it; a second run asks only for what is missing.",
        **example(
            f"  {_PROGRAM} judge results/dual_qwen/1986/responses.jsonl "
            "--judge http://localhost:8000/v1#Qwen2.5-72B-Instruct --judge local:models/Llama-3.1-70B-Instruct\n\n"
            "Two judges show how far they agree; one alone gives no agreement. A key is read from the environment "
            "(--key_variable).\n\nexit status: 0 every reply got an answer, 1 some did not (run again), 2 wrong "
            "arguments or an unusable judge"
        ),
    )
    judge.add_argument("responses", metavar="RESPONSES", help="responses.jsonl")
    judge.add_argument(
        "--judge",
        action="append",
        required=True,
        metavar="URL#MODEL",
        help="an OpenAI-compatible endpoint and its model, or local:FOLDER; may be given several times",
    )
    judge.add_argument("--rubric", action="append", metavar="NAME", help="cs or egs (default: both)")
    judge.add_argument(
        "--prompts", metavar="YAML", help="default: hparams/prompts/judges.yaml of this checkout"
    )
    judge.add_argument("--out", metavar="DIR", help="folder of judgements.jsonl (default: that of RESPONSES)")
    judge.add_argument("--split", default="test", help="first part of the results' keys (default: test)")
    judge.add_argument(
        "--key_variable", default="OPENAI_API_KEY", metavar="NAME", help="holds the key of an endpoint"
    )
    judge.add_argument(
        "--timeout", type=_positive_number, default=60.0, metavar="S", help="seconds of an answer"
    )
    judge.add_argument(
        "--retries", type=int, default=4, metavar="N", help="further tries of a question (default: 4)"
    )
    judge.add_argument("--per_minute", type=_positive_number, metavar="N", help="most requests a minute")
    judge.add_argument(
        "--workers", type=positive, default=4, metavar="N", help="requests at a time (default: 4)"
    )
    judge.add_argument(
        "--max_tokens", type=positive, default=256, metavar="N", help="longest answer (default: 256)"
    )

    chat = commands.add_parser(
        "chat",
        help="talk with a dialogue model: recordings or text in, text out",
        description="Reads a line a turn: the name of a recording (a file that is there, or a suffix such as "
        ".wav), else a text. Lines that begin with a slash: /describe FILE, /transcribe FILE, /history, /undo, "
        "/reset, /system TEXT, /quit. A turn that cannot be taken is reported on stderr, and the conversation "
        "goes on as it was.",
        **example(
            f"  {_PROGRAM} chat --model results/demo_dual/1986\n"
            f"  printf 'turn1.wav\\nAnd why?\\n' | {_PROGRAM} chat --model results/demo_dual/1986 --json\n"
            f"  {_PROGRAM} chat --model results/demo_dual/1986 --manifest test.json --responses out.jsonl\n\n"
            "A recording longer than the model allows (60 s unless it says otherwise) is refused; when the\n"
            "conversation is longer than the model's context, its oldest turns are left out (--overflow error\n"
            "refuses the turn).\n\n"
            "exit status: 0 every turn was answered, 1 some were not, 2 wrong arguments or no usable model"
        ),
    )
    chat.add_argument(
        "--model", required=True, metavar="DIR", help="folder of a training or an exported model"
    )
    chat.add_argument("--system", metavar="TEXT", help="system prompt (default: that of training)")
    chat.add_argument(
        "--past",
        choices=("speech", "text"),
        default="speech",
        help="past spoken turns stay speech, or become transcript and caption (default: speech)",
    )
    chat.add_argument(
        "--overflow", choices=("drop", "error"), default="drop", help="when the context is full"
    )
    chat.add_argument("--max_new_tokens", type=positive, metavar="N", help="longest answer")
    chat.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda, cuda:1 (default: a GPU where there is one)"
    )
    chat.add_argument(
        "--json", action="store_true", help="one JSON object a turn instead of a stream of text"
    )
    chat.add_argument("--manifest", metavar="JSON", help="answer its dialogues instead of the terminal's")
    chat.add_argument("--data_folder", metavar="DIR", help="what {data_root} stands for in the manifest")
    chat.add_argument(
        "--responses", metavar="JSONL", help="where the answers to the manifest go, for `judge`"
    )

    cli_corpora.add_commands(commands, example)
    _add_reply(commands, example)
    _add_converse(commands, example)

    train = commands.add_parser(
        "train",
        help="run an experiment, as train.py does",
        description="Run an experiment: a YAML, overrides --key=value, --overlay=FILE and SpeechBrain's run "
        "options.",
        **example(
            f"  {_PROGRAM} train hparams/demo_ib.yaml\n"
            f"  {_PROGRAM} train hparams/emodb_ib.yaml --data_folder=PATH --fold=03\n"
            f"  {_PROGRAM} train hparams/iemocap_ib.yaml --dry_run=True\n\n"
            "exit status: 0 done (or complete already), 1 it broke off, 2 wrong arguments, YAML or data"
        ),
    )
    train.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="as of train.py")
    return parser


def _add_reply(commands, example):
    reply = commands.add_parser(
        "reply",
        help="say the next line of a conversation with the emotion that fits it",
        description="Listens to a conversation, predicts emotion and intensity of the next line, and says it. The file "
        'is a JSON object: {"turns": [{"audio": "a.wav", "speaker": 0}, ...]}; a turn may have "text" (its words) and '
        '"emotion" (for example "weak sad"), which are then not recognised; with an emotion it needs no audio.',
        **example(
            f"  {_PROGRAM} reply dialogue.json --text 'I see.' --speaker 1 --out y.wav \\\n"
            "      --model results/demo_jelly/1986 --tts results/demo_jelly_tts/1986\n"
            f"  {_PROGRAM} reply dialogue.json --text 'I see.' --speaker 1 --model results/demo_jelly/1986 --json\n\n"
            "exit status: 0 done, 2 wrong arguments, no usable model or no usable conversation"
        ),
    )
    reply.add_argument("dialogue", metavar="JSON", help="the conversation so far")
    reply.add_argument("--text", required=True, help="words of the next line")
    reply.add_argument("--speaker", required=True, help="who says it, as in the file")
    reply.add_argument("--out", metavar="WAV", help="where the sound goes; needs --tts")
    _add_reply_models(reply)
    reply.add_argument("--json", action="store_true", help="one JSON object instead of text")


def _add_reply_models(parser):
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="folder of a training of stages 1 and 2"
    )
    parser.add_argument("--tts", metavar="DIR", help="folder of a training of the synthesiser")
    parser.add_argument(
        "--voice",
        action="append",
        default=[],
        metavar="SPEAKER=VOICE",
        help="whose voice a speaker has; repeatable",
    )
    parser.add_argument(
        "--vocoder",
        choices=("griffin_lim", "source_filter", "hifigan"),
        help="another than the synthesiser's own",
    )
    parser.add_argument(
        "--asr", metavar="NAME", help="a Whisper (hub name or folder) for words that are not given"
    )
    parser.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda, cuda:1 (default: a GPU where there is one)"
    )


def _add_converse(commands, example):
    converse = commands.add_parser(
        "converse",
        help="listen, explain, answer and speak: one turn through all systems that are there",
        description="The recording is explained (--explain), answered in writing (--chat), and the answer is spoken "
        "with the emotion that is predicted for it (--model), by the synthesiser of conversations (--tts) or the "
        "word-level one (--word_tts, in the voice of --prompt). A step whose model is not given is left out; without "
        "--chat the answer is --text. The time of each step is printed.",
        **example(
            f"  {_PROGRAM} converse turn.wav --explain results/demo_ib/1986 --chat results/demo_dual/1986 \\\n"
            "      --model results/demo_jelly/1986 --tts results/demo_jelly_tts/1986 --out answer.wav\n"
            f"  {_PROGRAM} converse turn.wav --text 'I see.' --model results/demo_jelly/1986 \\\n"
            "      --word_tts results/demo_film/1986 --prompt me.wav --out answer.wav\n\n"
            "exit status: 0 done, 2 wrong arguments or no usable model"
        ),
    )
    converse.add_argument("turn", metavar="WAV", help="a recording")
    converse.add_argument("--explain", metavar="DIR", help="folder of a model that explains")
    converse.add_argument("--chat", metavar="DIR", help="folder of a model that answers")
    converse.add_argument("--text", help="the answer, where no model writes it")
    converse.add_argument("--speaker", default="1", help="voice of the answer (default: the second)")
    converse.add_argument("--out", metavar="WAV", help="where the sound goes; needs --tts or --word_tts")
    _add_reply_models(converse)
    converse.add_argument(
        "--word_tts",
        metavar="DIR",
        help="folder of a word-level synthesiser (as of `speak`), instead of --tts",
    )
    converse.add_argument(
        "--prompt", metavar="WAV", help="recording of its voice; only that of a person who has agreed to it"
    )
    converse.add_argument("--json", action="store_true", help="one JSON object instead of text")


def _add_align(commands, example):
    align = commands.add_parser(
        "align",
        help="when each word of a known text is spoken",
        description="Find the words of a text in a recording: start, end and confidence of each. The default aligner "
        "is English and needs no model of yours; espeak-dtw knows every language of espeak-ng.",
        **example(
            f"  {_PROGRAM} align x.wav --text 'It is 5 pm.' --json\n"
            f"  {_PROGRAM} align x.wav --text_file x.txt --textgrid x.TextGrid --ctm x.ctm\n"
            f"  {_PROGRAM} align x.wav --text 'Der Lappen liegt auf dem Eisschrank.' --aligner espeak-dtw "
            "--language de\n"
            f"  {_PROGRAM} align x.wav --text 'so it is' --aligner ctc --option source=facebook/wav2vec2-base-960h\n"
            f"  {_PROGRAM} align x.wav --text '' --aligner textgrid --option folder=alignments\n"
            f"  {_PROGRAM} align --manifest test.json --data_root DATA --aligner mfa --textgrid alignments "
            "--json > test.jsonl\n\n"
            "exit status: 0 aligned, 1 a recording and its text could not be aligned, 2 wrong arguments or the aligner "
            "cannot be used"
        ),
    )
    align.add_argument("file", nargs="?", metavar="FILE", help="audio file")
    align.add_argument("--text", metavar="TEXT", help="what is said")
    align.add_argument("--text_file", metavar="FILE", help="holds what is said, in UTF-8")
    align.add_argument(
        "--manifest", metavar="FILE", help="align every record of a manifest instead, by its transcript"
    )
    align.add_argument("--data_root", metavar="DIR", help="what {data_root} stands for in the manifest")
    align.add_argument(
        "--aligner", default="pocketsphinx", metavar="NAME", help=f"{ALIGNER_NAMES} (default: %(default)s)"
    )
    align.add_argument("--language", metavar="CODE", help="en, de, fr, ... (default: en)")
    align.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="argument of the aligner; may be repeated",
    )
    align.add_argument(
        "--json",
        action="store_true",
        help="a list of {word, start, end, confidence}; one object a line for a manifest",
    )
    align.add_argument(
        "--textgrid", metavar="OUT", help="write a TextGrid here (a folder of them for a manifest)"
    )
    align.add_argument("--ctm", metavar="OUT", help="write a CTM file here")


def _add_annotate(commands, example):
    annotate = commands.add_parser(
        "annotate",
        help="emotion of every word of a known text",
        description="Emotion, intensity, valence, arousal and dominance of every word of a recording, with "
        "confidences. Over a manifest it writes JSON lines; the same command goes on where an interrupted one was, and "
        "what cannot be used is listed in OUT.rejected.jsonl.",
        **example(
            f"  {_PROGRAM} annotate x.wav --text 'So it is.' --model results/demo_word_emotion/1986\n"
            f"  {_PROGRAM} annotate x.wav --text 'So it is.' --model DIR --json --textgrid x.TextGrid --png x.png\n"
            f"  {_PROGRAM} annotate x.wav --text 'So it is.' --model DIR --markup\n"
            f"  {_PROGRAM} annotate --manifest train.json --data_root DATA --model DIR --output train.jsonl "
            "--num_workers 4\n"
            "a whole corpus with the Montreal Forced Aligner: align it first, then read its TextGrids:\n"
            f"  {_PROGRAM} align --manifest train.json --aligner mfa --textgrid alignments\n"
            f"  {_PROGRAM} annotate --manifest train.json --aligner textgrid --option folder=alignments --model DIR "
            "--output train.jsonl\n\n"
            "exit status: 0 annotated, 1 a recording could not be annotated, 2 wrong arguments, or no usable model or "
            "aligner"
        ),
    )
    annotate.add_argument("file", nargs="?", metavar="FILE", help="audio file")
    annotate.add_argument("--text", metavar="TEXT", help="what is said")
    annotate.add_argument("--text_file", metavar="FILE", help="holds what is said, in UTF-8")
    annotate.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="folder of a training or an exported model, or a hub name",
    )
    annotate.add_argument(
        "--manifest", metavar="FILE", help="annotate every record of a manifest instead, by its transcript"
    )
    annotate.add_argument("--data_root", metavar="DIR", help="what {data_root} stands for in the manifest")
    annotate.add_argument("--output", metavar="OUT", help="JSON lines of a manifest's annotations")
    annotate.add_argument(
        "--num_workers", type=positive, default=1, metavar="N", help="processes over a manifest (default: 1)"
    )
    annotate.add_argument(
        "--aligner",
        default="pocketsphinx",
        metavar="NAME",
        help=f"{ALIGNER_NAMES}; for a manifest also `manifest`: the words that it holds (default: %(default)s)",
    )
    annotate.add_argument("--language", metavar="CODE", help="of the aligner: en, de, fr, ... (default: en)")
    annotate.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="argument of the aligner; may be repeated",
    )
    annotate.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda, cuda:1 (default: a GPU where there is one)"
    )
    shown = annotate.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print one JSON object")
    shown.add_argument("--markup", action="store_true", help="print the text with <emotion> tags")
    annotate.add_argument(
        "--textgrid", metavar="OUT", help="write a TextGrid here (a folder of them for a manifest)"
    )
    annotate.add_argument("--png", metavar="OUT", help="draw the words over waveform and F0")


def _add_convert(commands, example):
    convert = commands.add_parser(
        "convert",
        help="the published CosyVoice2-0.5B files as data that cannot run code",
        description="Read llm.pt, flow.pt and hift.pt without running code, check every name and shape, and write "
        "them as safetensors; the ONNX files and the text tokenizer are copied. The same command goes on where an "
        "interrupted one was.",
        **example(
            f"  {_PROGRAM} convert CosyVoice2-0.5B --out results/cosyvoice2\n"
            f"  {_PROGRAM} convert CosyVoice2-0.5B --out results/cosyvoice2 --parts flow vocoder\n\n"
            "exit status: 0 converted, 2 a file is missing or not the published one"
        ),
    )
    convert.add_argument("folder", metavar="DIR", help="holds the published files")
    convert.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    convert.add_argument("--parts", nargs="+", metavar="PART", help="of llm, flow, vocoder (default: all)")


def _add_speak(commands, example):
    speak = commands.add_parser(
        "speak",
        help="say a text whose words are marked with emotions, in a given voice",
        description="Speech of a text in the voice of a recording. Marks: <emotion type='hap' intensity='high'>words"
        "</emotion>; types ang, hap, neu, sad, sur (or those of the model), intensities low, medium, high; what is not "
        "marked is neutral. A literal < is written &lt;. Clone a voice only with the consent of the person it belongs "
        "to: every file says in its metadata that it is synthetic.",
        **example(
            f"  {_PROGRAM} speak \"I thought we lost. <emotion type='hap' intensity='high'>Then she scored!"
            "</emotion>\" \\\n      --speaker me.wav --speaker_text 'what I say in it' --out y.wav "
            "--model results/demo_film/1986\n"
            f"  {_PROGRAM} speak --text_file lines.txt --speaker me.wav --out spoken/ --model results/demo_film/1986\n"
            f"  {_PROGRAM} speak 'so it is' --speaker me.wav --out y.wav --model results/cosyvoice2 --seed 3 --json\n"
            "hear a recording's emotions, and say its text like that in another voice:\n"
            f"  {_PROGRAM} speak \"$({_PROGRAM} annotate x.wav --text 'So it is.' --markup \\\n      --model "
            'results/demo_word_emotion/1986)" --speaker me.wav --out y.wav --model results/demo_film/1986\n\n'
            "exit status: 0 spoken, 1 spoken but the model did not end by itself (see the warning), 2 wrong arguments, "
            "text or voice;\nthen no file is written"
        ),
    )
    speak.add_argument("text", nargs="?", metavar="TEXT", help="with marks")
    speak.add_argument(
        "--text_file",
        metavar="FILE",
        help="a text a line, in UTF-8; then --out is a folder: 0001.wav and so on",
    )
    speak.add_argument(
        "--speaker", required=True, metavar="FILE", help="recording of the voice, best 3 to 10 s"
    )
    speak.add_argument(
        "--speaker_text", metavar="TEXT", help="what is said in it: the speech goes on in its manner"
    )
    speak.add_argument(
        "--out", required=True, metavar="OUT", help=".wav or .flac file (a folder with --text_file)"
    )
    speak.add_argument(
        "--model", required=True, metavar="DIR", help="folder of a training, an exported or a converted model"
    )
    speak.add_argument(
        "--seed", type=int, default=0, metavar="N", help="another seed says it otherwise (default: 0)"
    )
    speak.add_argument(
        "--aligner",
        default="espeak-dtw",
        metavar="NAME",
        help=f"finds the words' times: {ALIGNER_NAMES}, or none (default: %(default)s)",
    )
    speak.add_argument(
        "--language", metavar="CODE", help="of numbers and abbreviations: en, de, ... (default: the model's)"
    )
    speak.add_argument(
        "--batch_size", type=positive, default=8, metavar="N", help="texts at a time (default: 8)"
    )
    speak.add_argument(
        "--json", action="store_true", help="tokens, words' times, reason of the end: a JSON line a text"
    )
    speak.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda, cuda:1 (default: a GPU where there is one)"
    )


def _add_score_speech(commands, example):
    score = commands.add_parser(
        "score_speech",
        help="score a folder of synthetic speech of any system",
        description="WER, emotion of marked words and spans, prosody of words against recordings, voices, Emo-SIM, "
        "DTW and MCD of the outputs that a manifest lists: JSON lines (or an object) with file and markup (or text), "
        "and where they are known reference, prompt, protocol and finish_reason. Every judge is named by you and in "
        "results.json; what has no judge is left out.",
        **example(
            f"  {_PROGRAM} score_speech outputs --manifest outputs/outputs.jsonl \\\n      --data_folder "
            "results/demo_corpus --asr results/demo_ib/1986 --annotator results/demo_word_emotion/1986\n"
            f"  {_PROGRAM} score_speech outputs --manifest outputs.jsonl --asr hf:openai/whisper-large-v3 --frames "
            "iic/emotion2vec_base --speaker campplus.onnx\n"
            f"  {_PROGRAM} score_speech copies --manifest copies.jsonl --copies     # a vocoder's copies: PESQ\n\n"
            "exit status: 0 all scored, 1 files of the manifest are missing, 2 wrong arguments"
        ),
    )
    score.add_argument("folder", metavar="FOLDER", help="holds the outputs")
    score.add_argument("--manifest", required=True, metavar="FILE", help="what they are")
    score.add_argument("--out", metavar="DIR", help="default: scores/ in the folder")
    score.add_argument("--data_folder", metavar="DIR", help="what {data_root} stands for in the manifest")
    score.add_argument("--asr", metavar="MODEL", help="folder of a model of this toolkit, or hf:NAME")
    score.add_argument("--speaker", metavar="MODEL", help="campplus.onnx, or folder of a speaker encoder")
    score.add_argument("--annotator", metavar="DIR", help="word annotator that never saw the synthesiser")
    score.add_argument("--frames", metavar="MODEL", help="emotion2vec's name, or folder of a speech encoder")
    score.add_argument(
        "--aligner", default="espeak-dtw", metavar="NAME", help=f"{ALIGNER_NAMES} (default: %(default)s)"
    )
    score.add_argument(
        "--copies", action="store_true", help="outputs are copies of their references: PESQ too"
    )
    score.add_argument(
        "--pictures", type=positive, default=0, metavar="N", help="draw N outputs: mel, words, F0 and level"
    )
    score.add_argument("--language", default="en", metavar="CODE", help="of the texts (default: en)")
    score.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1")


def main(arguments=None):
    """Run a command.

    Arguments
    ---------
    arguments : list of str, optional
        Default: those of the process.

    Returns
    -------
    int
        Exit status: 0 done, 1 some file failed (or the doctor found something that is needed), 2 wrong
        arguments or no usable model.

    Example
    -------
    >>> main(["explain", "a.wav", "--model", "no/such/folder"])
    2
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments[:1] == ["train"] and arguments[1:2] not in ([], ["-h"], ["--help"]):
            # Overrides are not known to this parser: they belong to the experiment's YAML.
            from speechbrain_emo.experiment import main as run

            return run(arguments[1:])
        parser = build_parser()
        if arguments[:1] == ["targets"]:
            return _targets(*parser.parse_known_args(arguments))
        if arguments and arguments[0] in cli_corpora.COMMANDS:
            return cli_corpora.run(*parser.parse_known_args(arguments))
        options = parser.parse_args(arguments)
        if options.command == "train":
            parser.parse_args(["train", "--help"])
        if options.command == "doctor":
            from speechbrain_emo.doctor import print_doctor

            return print_doctor(options.folder, options.json)
        if options.command == "table":
            return _table(options.folders, options.latex)
        if options.command in cli_trust.COMMANDS:
            return cli_trust.run(options)
        return _RUN[options.command](options)
    except SystemExit as finished:  # argparse ends the process; a caller in Python wants the status.
        return finished.code if isinstance(finished.code, int) else USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has enough, such as `head`; nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _align(options):
    from pathlib import Path

    from speechbrain_emo.alignment import AlignmentError, AlignmentItem, make_aligner
    from speechbrain_emo.alignment.textgrid import to_ctm, write_textgrid
    from speechbrain_emo.dataio.manifest import ManifestError, read_manifest

    if (options.file is None) == (options.manifest is None):
        return _fail("give either FILE or --manifest")
    if options.manifest is None and (options.text is None) == (options.text_file is None):
        return _fail("give the text: either --text or --text_file")
    try:
        if options.manifest is not None:
            root = {"data_root": options.data_root} if options.data_root else None
            records = read_manifest(options.manifest, replacements=root)
            items = [
                AlignmentItem(
                    name,
                    record.get("transcript") or "",
                    record.get("wav"),
                    start=record.get("start"),
                    stop=record.get("stop"),
                )
                for name, record in records.items()
            ]
        else:
            text = options.text
            if text is None:
                text = Path(options.text_file).read_text(encoding="utf-8-sig")
            items = [AlignmentItem(Path(options.file).stem, text.strip(), options.file)]
        aligner = make_aligner(options.aligner, **_aligner_options(options))
    except (AlignmentError, ManifestError, OSError, UnicodeDecodeError) as error:
        return _fail(str(error))
    single, failed = options.manifest is None, 0
    if options.textgrid and not single:
        Path(options.textgrid).mkdir(parents=True, exist_ok=True)
    ctm = []
    try:
        for name, result in aligner.align_corpus(items):
            if isinstance(result, Exception):
                failed += 1
                print(f"error: {name}: {result}", file=sys.stderr)
                continue
            _print_alignment(name, result, options.json, single)
            if result.mean_confidence is not None and result.mean_confidence < LOW_CONFIDENCE:
                print(
                    f"warning: {name}: mean confidence {result.mean_confidence:.2f}: the text may not be what is said",
                    file=sys.stderr,
                )
            if options.textgrid:
                target = options.textgrid if single else Path(options.textgrid) / f"{name}.TextGrid"
                write_textgrid(target, result)
            if options.ctm:
                ctm.append(to_ctm(result, "_".join(name.split())))
        if options.ctm:
            Path(options.ctm).write_text("".join(ctm), encoding="utf-8")
    except (AlignmentError, OSError) as error:
        return _fail(str(error))
    if failed and not single:
        print(f"{failed} of {len(items)} recordings could not be aligned", file=sys.stderr)
    return FILES_FAILED if failed else OK


def _convert(options):
    from speechbrain_emo.inference.conversion import ConversionError, convert_folder

    try:
        convert_folder(options.folder, options.out, options.parts)
    except (ConversionError, OSError) as error:
        return _fail(str(error))
    return OK


def _speak(options):
    from pathlib import Path

    import transformers

    from speechbrain_emo.dataio.audio import AudioError
    from speechbrain_emo.inference import EmotionalTTS, SpeakError
    from speechbrain_emo.inference.speech import check_target
    from speechbrain_emo.prompts.markup import MarkupError

    if (options.text is None) == (options.text_file is None):
        return _fail("give a text, or --text_file with a text a line")
    if options.text is not None:
        texts, targets = [options.text], [Path(options.out)]
    else:
        try:
            lines = Path(options.text_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            return _fail(f"--text_file {options.text_file}: {error}")
        texts = [line.strip() for line in lines if line.strip()]
        targets = [Path(options.out) / f"{number:04d}.wav" for number in range(1, len(texts) + 1)]
        if not texts:
            return _fail(f"--text_file {options.text_file}: holds no text")
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    run_opts, failure = usable_device(options.device)
    if failure:
        return _fail(failure)
    aligner = None if options.aligner == "none" else options.aligner
    try:
        for target in targets:
            check_target(target)
        overrides = {"language": options.language} if options.language else None
        tts = EmotionalTTS.from_hparams(source=options.model, overrides=overrides, run_opts=run_opts)
    except (ValueError, OSError, ImportError) as error:
        return _fail(f"cannot use the model of --model {options.model}: {error}")
    unfinished = 0
    try:
        # All texts before the first file: a bad last line must not cost the others' time.
        for number, text in enumerate(texts, 1):
            try:
                tts.check(text)
            except (SpeakError, MarkupError) as error:
                return _fail(str(error) if options.text is not None else f"text {number}: {error}")
        voice = tts.voice(options.speaker, options.speaker_text)
        for start in range(0, len(texts), options.batch_size):
            some = slice(start, start + options.batch_size)
            seeds = [options.seed] * len(texts[some])
            spoken = tts.speak_batch(texts[some], voice, seeds=seeds, aligner=aligner)
            for target, speech in zip(targets[some], spoken):
                speech.save(target)
                unfinished += speech.finish_reason != "eos"
                if options.json:
                    print(
                        json.dumps({"file": str(target), **speech.to_dict()}, ensure_ascii=False), flush=True
                    )
                else:
                    print(f"{target}: {speech.duration:.2f} s, {speech.finish_reason}", flush=True)
                for warning in () if options.json else speech.warnings:
                    print(f"warning: {target.name}: {warning}", file=sys.stderr)
    except (SpeakError, MarkupError, AudioError, OSError) as error:
        return _fail(str(error))
    return FILES_FAILED if unfinished else OK


def _score_speech(options):
    from speechbrain_emo.inference.speech_scores import make_judges, score_folder, score_rows
    from speechbrain_emo.results import format_table

    _, failure = usable_device(options.device)
    if failure:
        return _fail(failure)
    try:
        judges = make_judges(
            options.asr,
            options.speaker,
            options.annotator,
            options.frames,
            options.aligner,
            options.device,
            options.language,
        )
        metrics = score_folder(
            options.folder,
            options.manifest,
            judges,
            options.out,
            options.data_folder,
            num_pictures=options.pictures,
            copies=options.copies,
            language=options.language,
            progress=sys.stderr.isatty(),
        )
    except (ValueError, OSError, ImportError) as error:
        return _fail(str(error))
    print(format_table(score_rows(metrics), style="plain"))
    return FILES_FAILED if metrics["speech.missing_files"] else OK


def _annotate(options):
    from pathlib import Path

    import transformers

    from speechbrain_emo.alignment import AlignmentError

    if (options.file is None) == (options.manifest is None):
        return _fail("give either FILE or --manifest")
    if options.manifest is not None:
        wrong = [
            f"--{name}" for name in ("text", "text_file", "json", "markup", "png") if getattr(options, name)
        ]
        if wrong:
            return _fail(f"{', '.join(wrong)}: for one file; a manifest gives JSON lines in --output")
        if options.output is None:
            return _fail("--manifest needs --output: the file of JSON lines")
    elif (options.text is None) == (options.text_file is None):
        return _fail("give the text: either --text or --text_file")
    elif options.output is not None:
        return _fail("--output is for --manifest; print one file with --json")
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    run_opts, failure = usable_device(options.device)
    if failure:
        return _fail(failure)
    try:
        if options.manifest is not None:
            return _annotate_manifest(options, run_opts)
        text = options.text
        if text is None:
            text = Path(options.text_file).read_text(encoding="utf-8-sig")
        return _annotate_file(options, text.strip(), run_opts)
    except (AlignmentError, OSError, UnicodeDecodeError) as error:
        return _fail(str(error))


def _annotate_manifest(options, run_opts):
    from speechbrain_emo.dataio.manifest import ManifestError, read_manifest
    from speechbrain_emo.inference.annotate_corpus import AnnotationRunError, annotate_corpus
    from speechbrain_emo.inference.safe_loading import UnsafeModelError

    root = {"data_root": options.data_root} if options.data_root else None
    try:
        done = annotate_corpus(
            options.model,
            read_manifest(options.manifest, replacements=root),
            options.output,
            options.aligner,
            _aligner_options(options),
            options.num_workers,
            run_opts,
            options.textgrid,
        )
    except (ManifestError, AnnotationRunError, UnsafeModelError) as error:
        return _fail(str(error))
    kept = f" ({done.num_kept} were there already)" if done.num_kept else ""
    print(f"{done.num_annotated} annotated in {done.output}, {done.num_rejected} rejected{kept}")
    if done.num_rejected:
        print(f"{done.num_rejected} rejected, with reasons: {done.rejected_file}", file=sys.stderr)
    return FILES_FAILED if done.num_rejected else OK


def _annotate_file(options, text, run_opts):
    from speechbrain_emo.dataio.audio import load_audio
    from speechbrain_emo.inference import WordEmotionAnnotator

    try:
        annotator = WordEmotionAnnotator.from_hparams(source=options.model, run_opts=run_opts)
    except (ValueError, OSError, ImportError) as error:
        return _fail(f"cannot use the model of --model {options.model}: {error}")
    aligner = annotator.aligner(options.aligner, **_aligner_options(options))
    try:
        annotation = annotator.annotate_file(options.file, text, aligner)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return FILES_FAILED
    if options.json:
        print(annotation.to_json())
    elif options.markup:
        print(annotation.to_markup())
    else:
        print(annotation)
    for warning in annotation.warnings if options.json or options.markup else ():
        print(f"warning: {warning}", file=sys.stderr)
    if options.textgrid:
        annotation.write_textgrid(options.textgrid)
    if options.png:
        from speechbrain_emo.plots import plot_word_emotions

        samples = load_audio(options.file, annotator.sample_rate).numpy()
        words = annotation.to_dict()["words"]
        try:
            plot_word_emotions(
                samples, annotator.sample_rate, words, annotator.labels, options.png, options.file
            )
        except ValueError as error:
            return _fail(str(error))
    return OK


def _aligner_options(options):
    from speechbrain_emo.alignment import AlignmentError

    chosen = {}
    for option in options.option:
        key, equals, value = option.partition("=")
        if not (key and equals):
            raise AlignmentError(f"--option {option!r} is not KEY=VALUE")
        chosen[key] = {"true": True, "false": False}.get(value.lower(), value)
    if options.language:
        chosen["language"] = options.language
    return chosen


def _print_alignment(name, alignment, as_json, single):
    if as_json:
        record = alignment.to_dict()
        print(json.dumps(record["words"] if single else {"id": name, **record}, ensure_ascii=False))
        return
    if not single:
        print(name)
    print(f"{'start':>9} {'end':>9}  conf.  word")
    for word in alignment.words:
        confidence = "    -" if word.confidence is None else f"{word.confidence:5.2f}"
        print(f"{word.start:9.3f} {word.end:9.3f}  {confidence}  {word.label}")


def _table(folders, latex=False):
    from speechbrain_emo.results import comparison_rows, format_table
    from speechbrain_emo.synthesis_tables import synthesis_tables

    style = "latex" if latex else "markdown"
    try:
        tables, others = synthesis_tables(folders)
        if others:
            tables.insert(0, ("Recognition", comparison_rows(others)))
        for number, (title, rows) in enumerate(tables):
            if len(tables) > 1:
                print(f"{chr(10) if number else ''}{title}\n")
            print(format_table(rows, style=style))
    except (FileNotFoundError, ValueError) as error:
        return _fail(str(error))
    return OK


def _chat(options):
    import transformers

    from speechbrain_emo.inference import EmotionalChat
    from speechbrain_emo.inference.chat import is_recording

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    if (options.manifest is None) != (options.responses is None):
        return _fail("--manifest and --responses belong together: what to answer, and where the answers go")
    run_opts, failure = usable_device(options.device)
    if failure:
        return _fail(failure)
    try:
        chat = EmotionalChat.from_hparams(source=options.model, run_opts=run_opts)
    except (ValueError, OSError) as error:
        return _fail(f"cannot use the model of --model {options.model}: {error}")
    chat.system, chat.past_speech, chat.overflow = options.system, options.past, options.overflow
    if options.max_new_tokens is not None:
        chat.max_new_tokens = options.max_new_tokens
    if options.manifest is not None:
        return _respond(chat, options)
    failed, interactive = 0, sys.stdin.isatty()
    while True:
        if interactive:
            print("> ", end="", flush=True, file=sys.stderr)
        line = sys.stdin.readline()
        if not line or line.strip() in ("/quit", "/exit"):
            break
        if not line.strip() and interactive:
            continue
        try:
            # A recording can have a path that begins with a slash.
            if line.split()[:1] in _CHAT_COMMANDS or (line.startswith("/") and not is_recording(line)):
                _command(chat, line.strip(), options.json)
            elif options.json:
                reply = chat.say(line.strip())
                print(json.dumps({"turn": line.strip(), **vars(reply)}, ensure_ascii=False), flush=True)
            else:
                for piece in chat.stream(line.strip()):
                    print(piece, end="", flush=True)
                print(flush=True)
        except (ValueError, OSError) as error:  # ChatError and AudioError are ValueErrors.
            failed += 1
            print(f"error: {error}", file=sys.stderr)
    return FILES_FAILED if failed else OK


def _command(chat, line, as_json):
    """A line of the conversation that begins with a slash."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/describe":
        found = chat.describe(rest)
        print(json.dumps(vars(found), ensure_ascii=False) if as_json else found)
    elif name == "/transcribe":
        words = chat.transcribe(rest)
        print(json.dumps({"transcript": words}, ensure_ascii=False) if as_json else words)
    elif name == "/history":
        for turn in chat.history:
            print(f"{turn.role}: {turn.audio if turn.is_speech else turn.text}")
    elif name == "/undo":
        del chat.history[-2:]
    elif name == "/reset":
        chat.reset()
    elif name == "/system":
        chat.system = rest or None
    else:
        raise ValueError(
            f"{name} is no command; there are /describe FILE, /transcribe FILE, /history, /undo, /reset, /system TEXT, "
            "/quit"
        )


def _targets(options, overrides):
    from pathlib import Path

    import torch
    from ruamel.yaml import YAML

    from speechbrain_emo.brains.dialogue_targets import prepare_targets
    from speechbrain_emo.dataio.dialogue import DialogueError, augment_by_cuts
    from speechbrain_emo.dataio.manifest import write_manifest
    from speechbrain_emo.experiment import load_experiment
    from speechbrain_emo.prompts import DialogueTask

    odd = [text for text in overrides if not text.startswith("--") or "=" not in text]
    if odd:
        return _fail(f"{' '.join(odd)}: not known; overrides of the YAML are --key=value")
    pairs = (text[2:].split("=", 1) for text in overrides)
    values = {key: YAML(typ="safe", pure=True).load(value) for key, value in pairs}
    if not Path(options.experiment).is_file():
        return _fail(f"{options.experiment}: no such file; give an experiment of hparams/")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    _, failure = usable_device(device)
    if failure:
        return _fail(failure)
    try:
        hparams = load_experiment(options.experiment, values)
        known = {name: task for name, task in hparams["tasks"].items() if isinstance(task, DialogueTask)}
        name = options.task or (next(iter(known)) if len(known) == 1 else None)
        if name not in known:
            return _fail(
                f"--task {options.task}: the experiment's dialogue tasks are {', '.join(known) or 'none'}"
            )
        task, aligned = known[name], {}
        for split in options.split or ["train", "valid"]:
            if split not in hparams["manifests"]:
                return _fail(f"--split {split}: the experiment has {', '.join(hparams['manifests'])}")
            path = Path(hparams["manifests"][split])
            if not path.is_file():
                return _fail(
                    f"{path}: no such manifest; prepare the corpora first (a dry run of train.py does not)"
                )
            aligned[split] = json.loads(path.read_text(encoding="utf-8"))
        out = Path(options.out or path.parent / "aligned")
        llm = hparams["llm"]().to(device)
        num_targets = 0
        for split, records in aligned.items():
            corpora = getattr(task, "corpora", None)
            dialogues = {
                key: record
                for key, record in records.items()
                if record.get("turns") and (not corpora or record.get("corpus") in corpora)
            }
            others = {key: record for key, record in records.items() if key not in dialogues}
            if options.cuts and split == "train":
                dialogues = augment_by_cuts(dialogues, options.cuts, options.cut_seed, sides=options.sides)
            report = prepare_targets(
                dialogues,
                llm,
                task,
                out / "targets.jsonl",
                max_new_tokens=options.max_new_tokens,
                max_rows=options.max_rows,
                keep_truncated=options.keep_truncated,
                progress=sys.stderr.isatty(),
            )
            usable = {key: record for key, record in dialogues.items() if record.get("target")}
            write_manifest(out / f"{split}.json", {**others, **usable})
            num_targets += len(usable)
            print(
                f"{split}: {len(usable)} of {len(dialogues)} dialogues have a target ({report}); {len(others)} others"
            )
    except (DialogueError, ValueError, OSError) as error:
        return _fail(str(error))
    return OK if num_targets else FILES_FAILED


def _respond(chat, options):
    from speechbrain_emo.dataio.manifest import read_manifest

    replacements = {"data_root": options.data_folder} if options.data_folder else None
    try:
        records = read_manifest(options.manifest, replacements)
    except ValueError as error:
        return _fail(str(error))
    dialogues = {name: record for name, record in records.items() if record.get("turns")}
    if not dialogues:
        return _fail(f"{options.manifest} holds no dialogue (a record with 'turns')")
    failures = chat.respond(dialogues, options.responses, progress=sys.stderr.isatty())
    for name, message in failures.items():
        print(f"error: {name}: {message}", file=sys.stderr)
    print(f"{len(dialogues) - len(failures)} of {len(dialogues)} dialogues answered in {options.responses}")
    return FILES_FAILED if failures else OK


def _judge(options):
    from pathlib import Path

    from ruamel.yaml import YAML

    from speechbrain_emo.metrics import judges as judging

    prompts = options.prompts or Path(__file__).parents[1] / "hparams" / "prompts" / "judges.yaml"
    if not Path(prompts).is_file():
        return _fail(f"{prompts}: no such file; give the judges' prompts with --prompts YAML")
    settings = {
        name: getattr(options, name)
        for name in ("key_variable", "timeout", "retries", "per_minute", "workers", "max_tokens")
    }
    folder = Path(options.out or Path(options.responses).parent)
    try:
        rubrics = judging.load_rubrics(
            YAML(typ="safe", pure=True).load(Path(prompts).read_text(encoding="utf-8")), options.rubric
        )
        responses = judging.read_responses(options.responses)
        judges = [judging.make_judge(text, **settings) for text in options.judge]
        if len(judges) < 2:
            print(
                "note: one judge alone says nothing about agreement; give two (--judge twice)",
                file=sys.stderr,
            )
        done = judging.judge_responses(
            responses, judges, rubrics, folder / "judgements.jsonl", progress=sys.stderr.isatty()
        )
    except (ValueError, judging.JudgeError, OSError) as error:
        return _fail(str(error))
    summary = judging.summarize(done, rubrics, options.split)
    judging.save_summary(folder, summary)
    print(judging.format_report(summary, rubrics, options.split))
    failed = sum(j.status == "failed" for j in done)
    if failed:
        print(f"{failed} of {len(done)} questions got no answer; run the command again", file=sys.stderr)
    return FILES_FAILED if failed else OK


def _explain(options):
    from pathlib import Path

    import transformers

    from speechbrain_emo.inference import EmotionExplainer

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    run_opts, failure = usable_device(options.device)
    if failure:
        return _fail(failure)
    try:
        explainer = EmotionExplainer.from_hparams(source=options.model, run_opts=run_opts)
    except (ValueError, OSError) as error:
        return _fail(f"cannot use the model of --model {options.model}: {error}")
    genders = [options.gender] * len(options.files)
    if options.picture and len(options.files) == 1 and not options.picture.endswith(".png"):
        return _fail(f"--picture {options.picture}: for one file, give a file name that ends in .png")
    results = explainer.explain_files(options.files, options.batch_size, genders=genders)
    for result in results if options.picture else ():
        if result.ok:
            target = Path(options.picture)
            target = target if len(results) == 1 else target / f"{Path(result.name).stem}.png"
            explainer.draw(result, explainer.load_audio(result.name), target)
    failed = [result for result in results if not result.ok]
    for number, result in enumerate(results):
        if options.json:
            print(json.dumps(result.to_dict(), ensure_ascii=False))
        elif result.ok:
            print(f"{result}\n" if number < len(results) - 1 else result)
    sys.stdout.flush()
    for result in failed:
        print(f"error: {result.error}", file=sys.stderr)
    if failed and len(results) > 1:
        print(f"{len(failed)} of {len(results)} files could not be explained", file=sys.stderr)
    return FILES_FAILED if failed else OK


def _conversational(options):
    """The loaded model of `reply` and `converse`, and a message where it cannot be had."""
    from speechbrain_emo.inference import ConversationalTTS
    from speechbrain_emo.inference.conversational_tts import whisper_transcriber

    _quiet()
    word_tts = getattr(options, "word_tts", None)
    if options.out and not (options.tts or word_tts):
        ways = "--tts or --word_tts" if hasattr(options, "word_tts") else "--tts"
        return None, f"--out needs {ways}: without a synthesiser there is no sound"
    if word_tts and (options.tts or not options.prompt or not options.out):
        return (
            None,
            "--word_tts needs --prompt, a recording of its voice, and --out, and stands instead of --tts",
        )
    wrong = [v for v in options.voice if "=" not in v]
    if wrong:
        return None, f"--voice is {wrong[0]!r}; it has the form SPEAKER=VOICE"
    run_opts, failure = usable_device(options.device)
    if failure:
        return None, failure
    try:
        transcriber = whisper_transcriber(options.asr) if options.asr else None
        tts = ConversationalTTS.from_hparams(
            source=options.model,
            tts=options.tts,
            transcriber=transcriber,
            vocoder=options.vocoder,
            run_opts=run_opts,
        )
    except (ValueError, OSError) as error:
        return None, f"cannot use the models of --model {options.model}, --tts {options.tts}: {error}"
    tts.voices = dict(v.split("=", 1) for v in options.voice)
    return tts, None


def _quiet():
    import transformers

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _reply(options):
    from speechbrain_emo.inference.conversational_tts import read_conversation

    tts, failure = _conversational(options)
    if failure:
        return _fail(failure)
    try:
        given = {**read_conversation(options.dialogue), "text": options.text, "speaker": options.speaker}
        if options.tts:
            spoken = tts.reply(**given)
            prediction = spoken.prediction
            if options.out:
                spoken.save(options.out)
        else:
            prediction = tts.predict(**given)
    except (ValueError, OSError) as error:
        return _fail(str(error))
    _print_prediction(prediction, options)
    return OK


def _print_prediction(prediction, options):
    if options.json:
        print(json.dumps({**prediction.to_dict(), "out": options.out}, ensure_ascii=False))
        return
    print(prediction)
    if options.out:
        print(f"written: {options.out}")
    for warning in prediction.warnings:
        print(f"note: {warning}", file=sys.stderr)
    print("seconds: " + ", ".join(f"{k} {v:.2f}" for k, v in prediction.seconds.items()), file=sys.stderr)


def _converse(options):
    import time

    tts, failure = _conversational(options)
    if failure:
        return _fail(failure)
    if not options.chat and not options.text:
        return _fail("nothing to say: give --chat, a model that answers, or --text, the answer")
    seconds, found, words, answer = {}, {}, None, options.text
    try:
        if options.explain:
            from speechbrain_emo.inference import EmotionExplainer

            explainer = EmotionExplainer.from_hparams(source=options.explain)
            started = time.perf_counter()
            (explained,) = explainer.explain_files([options.turn])
            if not explained.ok:
                return _fail(str(explained.error))
            seconds["explain"] = time.perf_counter() - started
            found["explanation"] = explained.to_dict()
            words = found["explanation"].get("transcript")
            if not options.json:
                print(explained)
        if options.chat:
            from speechbrain_emo.inference import EmotionalChat

            chat = EmotionalChat.from_hparams(source=options.chat)
            started = time.perf_counter()
            answer = chat.say(options.turn).text
            seconds["answer"] = time.perf_counter() - started
        if not options.json:
            print(f"answer: {answer}")
        given = {
            "dialogue": [options.turn],
            "speakers": ["0"],
            "text": answer,
            "speaker": options.speaker,
            "transcripts": [words],
        }
        if options.tts:
            spoken = tts.reply(**given)
            prediction = spoken.prediction
            if options.out:
                spoken.save(options.out)
        else:
            prediction = tts.predict(**given)
        if options.word_tts:
            found["markup"] = _say_marked(tts, prediction, options)
    except (ValueError, OSError, ImportError) as error:
        return _fail(str(error))
    prediction.seconds.update({**seconds, **prediction.seconds})
    if options.json:
        print(
            json.dumps(
                {**found, "answer": answer, **prediction.to_dict(), "out": options.out}, ensure_ascii=False
            )
        )
    else:
        _print_prediction(prediction, options)
    return OK


def _say_marked(tts, prediction, options):
    """Let the word-level synthesiser say the answer; what it was given, with its mark."""
    import time

    from speechbrain_emo.inference import EmotionalTTS
    from speechbrain_emo.inference.conversational_tts import marked_line
    from speechbrain_emo.inference.speech import check_target

    check_target(options.out)
    run_opts, _ = usable_device(options.device)
    speaker = EmotionalTTS.from_hparams(source=options.word_tts, run_opts=run_opts)
    started = time.perf_counter()
    marked = marked_line(prediction, speaker.markup, tts.next_task.format.spec.get("intensity", ()))
    speech = speaker.speak(marked, options.prompt, aligner=None)
    speech.save(options.out)
    prediction.seconds["speak"] = time.perf_counter() - started
    return marked


def _fail(message):
    print(f"error: {message}", file=sys.stderr)
    return USAGE


_RUN = {
    "align": _align,
    "annotate": _annotate,
    "chat": _chat,
    "convert": _convert,
    "converse": _converse,
    "explain": _explain,
    "judge": _judge,
    "reply": _reply,
    "score_speech": _score_speech,
    "speak": _speak,
}

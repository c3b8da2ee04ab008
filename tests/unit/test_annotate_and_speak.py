"""From a recording to its words' emotions to the same sentence in another voice: the commands, one behind the other."""

import pytest
import soundfile
import tiny_tts
import words_toy

from speechbrain_emo import cli
from speechbrain_emo.dataio.espeak import EspeakSynthesizer
from speechbrain_emo.inference.speech import read_tag
from speechbrain_emo.prompts.markup import EmotionMarkup

# Umlauts, sharp s, a number and a comma.
TEXT = "Die Männer grüßen 12 Kühe, heute Abend."
SPOKEN = "die männer grüßen zwölf kühe heute abend"
LABELS = ["ang", "hap", "neu", "sad"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    words_toy.build_annotator(folder / "annotator")
    tiny_tts.build_tts(folder / "tts", labels=LABELS, plain_words=True)
    made = EspeakSynthesizer()(SPOKEN, voice="de")
    soundfile.write(folder / "german.wav", made.samples, made.sample_rate)
    soundfile.write(folder / "me.wav", tiny_tts.recording(2.2), 16000)
    return folder


def test_a_german_recording_is_annotated_marked_and_spoken(place, capsys):
    annotate = [
        "annotate",
        str(place / "german.wav"),
        "--text",
        TEXT,
        "--model",
        str(place / "annotator" / "run"),
    ]
    options = ["--aligner", "espeak-dtw", "--language", "de", "--device", "cpu"]
    assert cli.main([*annotate, *options, "--markup"]) == 0
    marked = capsys.readouterr().out.strip()
    assert EmotionMarkup(LABELS).parse(marked).text == TEXT
    speak = ["speak", marked, "--speaker", str(place / "me.wav"), "--model", str(place / "tts" / "run")]
    said = cli.main(
        [*speak, "--language", "de", "--aligner", "none", "--out", str(place / "y.wav"), "--json"]
    )
    out = capsys.readouterr().out
    assert said in (0, 1) and SPOKEN in out and read_tag(place / "y.wav").startswith("synthetic speech")

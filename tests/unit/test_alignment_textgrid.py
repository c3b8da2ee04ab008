"""TextGrids and CTM files: round trips over every real file, odd forms, damage."""

import numpy as np
import pytest

pytest.importorskip("praatio", reason="praatio is not installed (extra align)")

from speechbrain_emo.alignment import AlignedInterval, Alignment, AlignmentError, AlignmentItem, make_aligner
from speechbrain_emo.alignment.imported import import_textgrid
from speechbrain_emo.alignment.textgrid import (
    TextGrid,
    Tier,
    from_alignment,
    read_ctm,
    read_textgrid,
    to_ctm,
    write_textgrid,
)

WORDS = Tier("anna - words", ((0.0, 0.25, ""), (0.25, 0.5, "so"), (0.5, 1.0, 'wh"at')))
PHONES = Tier("anna - phones", ((0.0, 0.25, "sil"), (0.25, 0.5, "S OW"), (0.5, 1.0, "spn")))
OTHER = Tier("Ben - words", ((0.0, 0.9, "über"), (0.9, 1.0, "")))
POINTS = Tier("clicks", ((0.1, "!"), (0.333333333, 'say "ah"')), points=True)
GRID = TextGrid((WORDS, PHONES, OTHER, POINTS, Tier("empty", (), points=True)), 0.0, 1.0)


def close(one, other):
    """Same tiers, names, kinds and labels; times to 1e-6 s."""
    assert [(t.name, t.points, len(t.entries)) for t in one.tiers] == [
        (t.name, t.points, len(t.entries)) for t in other.tiers
    ]
    for a, b in zip(one.tiers, other.tiers):
        assert [e[-1] for e in a.entries] == [e[-1] for e in b.entries]
        times = [[time for e in tier.entries for time in e[:-1]] for tier in (a, b)]
        np.testing.assert_allclose(*times, rtol=0, atol=1e-6)
    assert one.start == pytest.approx(other.start, abs=1e-6) and one.end == pytest.approx(other.end, abs=1e-6)


@pytest.mark.parametrize("form", ["long", "short"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_tiers_speakers_points_quotes_and_umlauts_survive(tmp_path, form, encoding):
    write_textgrid(tmp_path / "a.TextGrid", GRID, form, encoding)
    found = read_textgrid(tmp_path / "a.TextGrid")
    assert found == GRID
    assert found.speakers() == {"anna": (WORDS, PHONES), "Ben": (OTHER, None)}


@pytest.mark.parametrize("form", ["long", "short"])
def test_other_encodings_line_ends_and_a_missing_last_line_end(tmp_path, form):
    write_textgrid(tmp_path / "a.TextGrid", GRID, form)
    text = (tmp_path / "a.TextGrid").read_text(encoding="utf-8")
    variants = {
        "bom": text.encode("utf-8-sig"),
        "utf-16-be": b"\xfe\xff" + text.encode("utf-16-be"),
        "latin-1": text.encode("latin-1"),
        "windows": text.replace("\n", "\r\n").encode("utf-8"),
        "cut": text.rstrip("\n ").encode("utf-8"),
    }
    for name, content in variants.items():
        (tmp_path / name).write_bytes(content)
        close(read_textgrid(tmp_path / name), GRID)


def test_tiny_times_have_no_exponent(tmp_path):
    grid = TextGrid((Tier("words", ((0.0, 1e-6, "x"), (1e-6, 1.0, "y"))),), 0.0, 1.0)
    for form in ("long", "short"):
        write_textgrid(tmp_path / "a.TextGrid", grid, form)
        close(read_textgrid(tmp_path / "a.TextGrid"), grid)


def test_every_real_textgrid_round_trips(shared_data, tmp_path):
    paths = sorted((shared_data / "annotations" / "dailytalk" / "TextGrid").rglob("*.TextGrid"))
    paths += sorted((shared_data / "ljspeech_aligned").glob("*.TextGrid"))
    assert len(paths) > 290
    for number, path in enumerate(paths):
        grid = read_textgrid(path)
        form, encoding = ("long", "short")[number % 2], ("utf-8", "utf-16")[number // 2 % 2]
        write_textgrid(tmp_path / "a.TextGrid", grid, form, encoding)
        close(read_textgrid(tmp_path / "a.TextGrid"), grid)
        # And as an alignment: what has a label keeps it and its times.
        alignment = import_textgrid(path)
        write_textgrid(tmp_path / "b.TextGrid", alignment)
        again = import_textgrid(tmp_path / "b.TextGrid")
        for one, other in ((alignment.words, again.words), (alignment.phones, again.phones)):
            assert [i.label for i in one] == [i.label for i in other]
            for a, b in zip(one, other):
                assert abs(a.start - b.start) < 1e-6 and abs(a.end - b.end) < 1e-6


def test_damage_is_told(tmp_path):
    path = tmp_path / "a.TextGrid"
    for form in ("long", "short"):
        write_textgrid(path, GRID, form)
        lines = path.read_text(encoding="utf-8").splitlines()
        # Whatever line it stops at, a cut file is never taken for a whole one.
        for stop in range(0, len(lines) - 1, 3):
            path.write_text("\n".join(lines[:stop]), encoding="utf-8")
            with pytest.raises(AlignmentError, match=r"a.TextGrid: "):
                read_textgrid(path)
    for content, message in (
        (b"", "no TextGrid"),
        (b"RIFF\x00\x00\xff\xff", "no TextGrid"),
        (b"\xff\xfe\x00", "is marked as utf-16"),
    ):
        path.write_bytes(content)
        with pytest.raises(AlignmentError, match=message):
            read_textgrid(path)
    write_textgrid(path, GRID)
    path.write_text(path.read_text(encoding="utf-8").replace("xmin = 0.25", "xmin = -0.25"), encoding="utf-8")
    with pytest.raises(AlignmentError, match="below 0"):
        read_textgrid(path)


def test_what_cannot_be_written_is_told(tmp_path):
    path = tmp_path / "a.TextGrid"
    overlapping = TextGrid((Tier("words", ((0.0, 0.6, "a"), (0.5, 1.0, "b"))),), 0.0, 1.0)
    with pytest.raises(AlignmentError, match="overlaps"):
        write_textgrid(path, overlapping)
    with pytest.raises(AlignmentError, match="cannot be written"):
        write_textgrid(path, TextGrid((Tier("words", ((0.0, 1.6, "a"),)),), 0.0, 1.0))
    with pytest.raises(AlignmentError, match="form is 'wide'; allowed: long, short"):
        write_textgrid(path, GRID, form="wide")
    with pytest.raises(AlignmentError, match="encoding is 'latin-1'"):
        write_textgrid(path, GRID, encoding="latin-1")
    assert not path.exists()


def test_the_words_of_a_text_take_the_times_of_a_textgrid(tmp_path):
    pytest.importorskip("num2words", reason="num2words is not installed (extra align)")
    labels = ["doctor", "health-conscious", "<eps>", "it's", "nineteen", "ninety", "five"]
    entries = tuple((i / 10, (i + 1) / 10, label) for i, label in enumerate(labels))
    write_textgrid(tmp_path / "a.TextGrid", TextGrid((Tier("words", entries),), 0.0, 1.0))
    text = 'Dr. "Health-conscious": it’s 1995!'
    found = import_textgrid(tmp_path / "a.TextGrid", text)
    assert [(w.label, w.start, w.end) for w in found.words] == [
        ("Dr.", 0.0, 0.1), ("Health-conscious", 0.1, 0.2), ("it’s", 0.3, 0.4), ("1995", 0.4, 0.7),
    ]  # fmt: skip
    assert [w.label for w in import_textgrid(tmp_path / "a.TextGrid").words] == [
        x for x in labels if x != "<eps>"
    ]
    with pytest.raises(AlignmentError, match="from word 1 the text has 'mister', the TextGrid 'doctor'"):
        import_textgrid(tmp_path / "a.TextGrid", text.replace("Dr.", "Mr."))
    with pytest.raises(AlignmentError, match="ends at 1.000 s and the audio at 2.000 s"):
        import_textgrid(tmp_path / "a.TextGrid", text, duration=2.0)


def test_several_speakers_want_a_name(tmp_path):
    write_textgrid(tmp_path / "a.TextGrid", GRID)
    with pytest.raises(AlignmentError, match=r"2 speakers; give speaker, one of \['Ben', 'anna'\]"):
        import_textgrid(tmp_path / "a.TextGrid")
    assert [w.label for w in import_textgrid(tmp_path / "a.TextGrid", speaker="Ben").words] == ["über"]
    with pytest.raises(AlignmentError, match="no speaker 'Eve'"):
        import_textgrid(tmp_path / "a.TextGrid", speaker="Eve")
    found = import_textgrid(tmp_path / "a.TextGrid", words="anna - words", phones="anna - phones")
    assert [p.label for p in found.phones] == ["S OW", "spn"]
    with pytest.raises(AlignmentError, match="0 interval tiers are called 'clicks'"):
        import_textgrid(tmp_path / "a.TextGrid", words="clicks")


def test_a_folder_as_an_aligner(shared_data, tmp_path):
    folder = shared_data / "ljspeech_aligned"
    aligner = make_aligner("textgrid", folder=str(folder))
    wav = folder / "LJ001-0012.wav"
    results = dict(
        aligner.align_corpus(
            [AlignmentItem("LJ001-0012", "", str(wav)), AlignmentItem("LJ000", "", str(wav)),
             AlignmentItem("LJ006-0114", "", str(wav))]
        )
    )  # fmt: skip
    good = results["LJ001-0012"]
    assert (
        good.words[0] == AlignedInterval("especially", 0.0, 0.77)
        and good.phones
        and good.aligner == "textgrid"
    )
    assert "has no file LJ000.TextGrid" in str(results["LJ000"])
    assert "do not belong together" in str(results["LJ006-0114"])
    with pytest.raises(AlignmentError, match="holds no file"):
        make_aligner("textgrid", folder=str(tmp_path))


def test_ctm_round_trip_and_bad_lines(tmp_path):
    words = (AlignedInterval("so", 0.1, 0.4, 0.5), AlignedInterval("what", 0.5, 0.9))
    alignment = Alignment(words, None, "so what", 1.0, "x")
    path = tmp_path / "a.ctm"
    path.write_text(";; comment\n\n" + to_ctm(alignment, "b", "A") + to_ctm(alignment, "c"), encoding="utf-8")
    found = read_ctm(path, {"b": 1.0})
    assert set(found) == {("b", "A"), ("c", "1")} and found["b", "A"].duration == 1.0
    for a, b in zip(found["b", "A"].words, words):
        assert (a.label, a.confidence) == (b.label, b.confidence)
        assert abs(a.start - b.start) < 1e-6 and abs(a.end - b.end) < 1e-6
    for line in ("b 1 0.5", "b 1 x 0.1 so", "b 1 0.5 -0.1 so", "b 1 0.5 0.1 so 7"):
        path.write_text("b 1 0.0 0.1 a\n" + line, encoding="utf-8")
        with pytest.raises(AlignmentError, match="a.ctm, line 2"):
            read_ctm(path)
    with pytest.raises(AlignmentError, match="'my file' cannot stand"):
        to_ctm(alignment, "my file")


def test_rounding_beyond_a_neighbour_does_not_break_the_file(tmp_path):
    words = (AlignedInterval("a", 0.0, 0.50005), AlignedInterval("b", 0.5, 1.00005))
    write_textgrid(tmp_path / "a.TextGrid", Alignment(words, None, "a b", 1.0, "x"))
    entries = read_textgrid(tmp_path / "a.TextGrid").tiers[0].entries
    assert entries == ((0.0, 0.50005, "a"), (0.50005, 1.0, "b"))
    assert (
        from_alignment(Alignment(words, None, "a b", 1.0, "x"), speaker="anna").tiers[0].name
        == "anna - words"
    )

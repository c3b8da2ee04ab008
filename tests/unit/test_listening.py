"""Listening tests: the page in a real browser with simulated raters, and the scores against plain statistics."""

import json
import os
import shutil

import numpy as np
import pytest
import soundfile
from scipy.stats import binomtest

from speechbrain_emo.listening import (
    FORMAT,
    NO_PREFERENCE,
    format_scores,
    make_test,
    read_answers,
    score_answers,
)
from tests.tiny import voiced_tone

PLAN = {
    "title": "Try <it>",
    "anchors": ["low"],
    "questions": [
        {"name": "natural", "kind": "mos", "question": "How natural?"},
        {
            "name": "similar",
            "kind": "dmos",
            "question": "How similar?",
            "reference": "real",
            "systems": ["ours", "low"],
        },
        {"name": "happier", "kind": "ab", "question": "Which is happier?", "systems": ["ours", "low"]},
        {"name": "fits", "kind": "match", "question": "Does it match?", "descriptions": "texts.json"},
    ],
    "catch": [{"question": "natural", "file": "check/one.wav", "expected": [1]}],
}


@pytest.fixture
def stimuli(tmp_path):
    folder = tmp_path / "stimuli"
    for number, system in enumerate(("real", "ours", "low", "check")):
        (folder / system).mkdir(parents=True)
        for item in ("one",) if system == "check" else ("one", "two"):
            soundfile.write(folder / system / f"{item}.wav", voiced_tone(0.12, 120 + 30 * number), 16000)
    (folder / "texts.json").write_text(
        json.dumps({"ours/one.wav": "a </script> low voice", "low/two.wav": "fast"})
    )
    return folder


def plan(**changes):
    return {**PLAN, **changes}


def content(path):
    text = path.read_text("utf-8")
    start = text.index('type="application/json">') + len('type="application/json">')
    return json.loads(text[start : text.index("</script>", start)])


def test_the_page_has_every_trial_once_and_names_nothing_from_outside(stimuli, tmp_path):
    made = make_test(stimuli, PLAN, tmp_path / "t.html")
    found = content(made.path)
    kinds = [found["questions"][t["question"]]["kind"] for t in found["trials"]]
    # 3 systems x 2 items and a catch trial; 2 x 2 against the reference; 2 pairs; 2 descriptions.
    assert {k: kinds.count(k) for k in kinds} == {"mos": 7, "dmos": 4, "ab": 2, "match": 2}
    assert made.num_trials == 15 and made.num_recordings == 7 == len(found["audio"])
    assert len({t["id"] for t in found["trials"]}) == 15
    text = made.path.read_text("utf-8")
    assert "http://" not in text and "https://" not in text and "Try &lt;it&gt;" in text
    assert [t["catch"] for t in found["trials"] if t["catch"]] == [[1]]
    again = make_test(stimuli, PLAN, tmp_path / "again.html")
    assert again.path.read_text("utf-8") == text


def test_fewer_items_are_the_same_for_every_system(stimuli, tmp_path):
    few = plan(questions=[{**PLAN["questions"][0], "most": 1}])
    items = [
        {
            t["item"]
            for t in content(make_test(stimuli, few, tmp_path / "t.html", seed=s).path)["trials"]
            if t["question"] == "natural" and not t["catch"]
        }
        for s in range(6)
    ]
    assert all(len(x) == 1 for x in items) and len(set(map(tuple, items))) == 2


@pytest.mark.parametrize(
    "change, said",
    [
        ({"questions": []}, "give a list"),
        ({"title": "x", "colour": 1}, "unknown keys"),
        ({"questions": [{"kind": "mushra", "question": "?"}]}, "allowed: mos"),
        ({"questions": [{"kind": "mos"}]}, "no text"),
        ({"questions": [{"kind": "dmos", "question": "?"}]}, "reference"),
        ({"questions": [{"kind": "ab", "question": "?", "systems": ["ours", "theirs"]}]}, "'theirs'"),
        ({"questions": [{"kind": "ab", "question": "?"}]}, "the two to compare"),
        ({"questions": [{"kind": "match", "question": "?", "descriptions": "no.json"}]}, "no such file"),
        ({"catch": [{"question": "natural", "file": "check/one.wav", "expected": [9]}]}, "answers are"),
        ({"catch": [{"question": "pretty", "file": "check/one.wav", "expected": [1]}]}, "there are natural"),
        ({"catch": [{"question": "natural", "expected": [1]}]}, "lacks file"),
    ],
)
def test_bad_plans(stimuli, tmp_path, change, said):
    with pytest.raises(ValueError, match=said):
        make_test(stimuli, plan(**change), tmp_path / "t.html")


def test_bad_folders_and_pages(stimuli, tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        make_test(tmp_path / "none", PLAN, tmp_path / "t.html")
    with pytest.raises(ValueError, match="holds no recordings"):
        make_test(tmp_path, PLAN, tmp_path / "t.html")
    with pytest.raises(ValueError, match="max_megabytes"):
        make_test(stimuli, PLAN, tmp_path / "t.html", max_bytes=1000)
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="no YAML"):
        make_test(stimuli, tmp_path / "bad.yaml", tmp_path / "t.html")


# -- scores ------------------------------------------------------------------------------------------------


def rater(name, ratings, catch=1, pairs=()):
    """A file of answers: ``ratings`` is system -> values by item."""
    answers = [
        {"question": "q", "item": str(i), "systems": [system], "value": v, "catch": None}
        for system, values in ratings.items()
        for i, v in enumerate(values)
    ]
    answers.append({"question": "q", "item": "c", "systems": ["catch"], "value": catch, "catch": [1]})
    answers += [
        {"question": "p", "item": str(i), "systems": ["ours", "low"], "value": v, "catch": None}
        for i, v in enumerate(pairs)
    ]
    questions = {"q": {"kind": "mos", "question": "?"}, "p": {"kind": "ab", "question": "?"}}
    return {
        "format": FORMAT,
        "test": "t",
        "rater": name,
        "questions": questions,
        "anchors": ["low"],
        "answers": answers,
    }


def test_means_intervals_anchor_and_agreement():
    rng = np.random.default_rng(0)
    raters = []
    for i in range(12):
        ours = np.clip(4 + rng.integers(-1, 2, 8), 1, 5).tolist()
        raters.append(rater(f"r{i}", {"ours": ours, "low": [1] * 8}))
    found = score_answers(raters)["questions"]["q"]
    values = np.array(
        [
            [x["value"] for x in r["answers"] if x["systems"] == ["ours"] and x["question"] == "q"]
            for r in raters
        ]
    )
    ours = found["systems"]["ours"]
    assert ours["mean"] == pytest.approx(values.mean()) and ours["count"] == 96 and ours["raters"] == 12
    half = 1.96 * values.mean(1).std(ddof=1) / np.sqrt(12)
    assert ours["low"] < ours["mean"] - half / 2 and ours["high"] > ours["mean"] + half / 2
    assert ours["high"] - ours["low"] < 6 * half
    assert found["systems"]["low"] == {
        "mean": 1,
        "low": 1,
        "high": 1,
        "count": 96,
        "raters": 12,
        "anchor": True,
    }
    assert found["alpha"] > 0.7
    one = score_answers(raters[:1])["questions"]["q"]["systems"]["ours"]
    assert one["low"] is None and one["mean"] == pytest.approx(values[0].mean())


def test_raters_who_miss_catch_trials_are_left_out_and_told():
    raters = [rater("a", {"ours": [5]}), rater("b", {"ours": [5]}), rater("lazy", {"ours": [1]}, catch=4)]
    scores = score_answers(raters)
    assert scores["raters"] == 2 and scores["excluded"] == {"lazy": 1}
    assert scores["questions"]["q"]["systems"]["ours"]["mean"] == 5
    assert score_answers(raters, allowed_misses=1)["questions"]["q"]["systems"]["ours"][
        "mean"
    ] == pytest.approx(11 / 3)
    assert "lazy (1)" in format_scores(scores)
    with pytest.raises(ValueError, match="nobody is left"):
        score_answers(raters[2:])


def test_preferences():
    pairs = [["ours"] * 7 + ["low"] + [NO_PREFERENCE] * 2, ["ours"] * 6 + ["low"] * 2 + [NO_PREFERENCE] * 2]
    found = score_answers([rater(f"r{i}", {"ours": [3]}, pairs=p) for i, p in enumerate(pairs)])["questions"][
        "p"
    ]
    assert found["ties"] == 4 and found["systems"]["ours"]["share"] == pytest.approx(13 / 16)
    assert found["p_value"] == pytest.approx(binomtest(13, 16).pvalue)
    assert found["systems"]["ours"]["low"] < 13 / 16 < found["systems"]["ours"]["high"]


def test_files_that_do_not_belong_together(tmp_path):
    a, b = rater("a", {"ours": [5]}), rater("b", {"ours": [5]})
    with pytest.raises(ValueError, match="2 different tests"):
        score_answers([a, {**b, "test": "other"}])
    with pytest.raises(ValueError, match="a occur twice"):
        score_answers([a, a])
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        read_answers(tmp_path / "x.json")


# -- in a browser ------------------------------------------------------------------------------------------


@pytest.fixture
def browser():
    """A real Chromium that is installed on this machine."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    path = os.environ.get("SPEECHBRAIN_EMO_BROWSER") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if path is None:
        pytest.skip("no Chromium: install one, or name it in SPEECHBRAIN_EMO_BROWSER")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    flags += [
        "--autoplay-policy=no-user-gesture-required",
        "--mute-audio",
        "--disable-sync",
        "--no-first-run",
    ]
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=flags)
        yield opened
        opened.close()


def answer(page, choose, stop_after=None):
    """Answer trial after trial; returns what was asked, in order."""
    asked = []
    while stop_after is None or len(asked) < stop_after:
        page.wait_for_selector("#next, #save")
        if page.query_selector("#save"):
            return asked
        question = page.inner_text("#question")
        labels = [b.inner_text() for b in page.query_selector_all(".answer")]
        page.query_selector_all(".answer")[choose(question, labels)].click()
        assert page.is_disabled("#next"), "an answer without listening must not do"
        for player in page.query_selector_all("audio"):
            player.evaluate(
                "node => new Promise(done => { node.addEventListener('ended', done); node.play(); })"
            )
        asked.append((question, page.inner_text("#progress")))
        page.click("#next")
    return asked


def test_simulated_raters_in_a_real_browser(stimuli, tmp_path, browser):
    made = make_test(stimuli, PLAN, tmp_path / "test.html")
    requests, files, orders = [], [], []
    for number in range(2):
        context = browser.new_context(accept_downloads=True)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.goto(made.path.as_uri())
        assert page.is_disabled("#begin")
        page.fill("#rater", f"rater {number}")
        page.click("#begin")

        def choose(question, labels, number=number):
            # The first rater says 1 throughout, the second the last answer (and so misses the catch trial).
            return 0 if number == 0 else len(labels) - 1

        orders.append([q for q, _ in answer(page, choose, stop_after=4)])
        # The browser is closed in the middle and opened again: the answers so far are there.
        page.goto(made.path.as_uri())
        page.fill("#rater", f"rater {number}")
        page.click("#begin")
        assert page.inner_text("#progress") == "5 of 15"
        orders[-1] += [q for q, _ in answer(page, choose)]
        with page.expect_download() as download:
            page.click("#save")
        target = tmp_path / f"{number}.json"
        download.value.save_as(target)
        files.append(target)
        context.close()
    assert all(url.startswith(("file:", "blob:", "data:")) for url in requests)
    assert len(orders[0]) == 15 and orders[0] != orders[1]
    answers = [read_answers(f) for f in files]
    for given in answers:
        assert len({x["trial"] for x in given["answers"]}) == 15
        assert all(x["plays"] >= 1 and x["seconds"] > 0 for x in given["answers"])
    scores = score_answers(answers, allowed_misses=1)
    natural = scores["questions"]["natural"]["systems"]
    assert {name: (s["mean"], s["count"]) for name, s in natural.items()} == {
        "real": (3, 4),
        "ours": (3, 4),
        "low": (3, 4),
    }
    assert scores["questions"]["fits"]["systems"]["ours"]["mean"] == 0.5
    assert scores["questions"]["happier"]["ties"] == 2
    strict = score_answers(answers)
    assert strict["raters"] == 1 and strict["excluded"] == {"rater 1": 1}
    # A is another system from rater to rater and trial to trial: the value is the system, not the side.
    for x in answers[0]["answers"]:
        if x["question"] == "happier":
            assert x["value"] == x["first"]

"""Judges against real servers on loopback: one that misbehaves in every way, and `transformers serve`."""

import http.server
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from speechbrain_emo import cli
from speechbrain_emo.lobes.tiny_llm import build_tiny_llm
from speechbrain_emo.metrics import judges as judging
from speechbrain_emo.metrics.agreement import krippendorff_alpha, quadratic_weighted_kappa

PROMPTS = Path(__file__).resolve().parents[2] / "hparams" / "prompts" / "judges.yaml"


def rubrics(*names):
    settings = YAML(typ="safe", pure=True).load(PROMPTS.read_text(encoding="utf-8"))
    return judging.load_rubrics(settings, names or None)


def responses(number):
    turns = [{"role": "user", "text": "I lost my keys."}, {"role": "assistant", "text": "Oh no."}]
    return [
        {
            "id": f"d{i}",
            "turns": [*turns, {"role": "user", "text": f"Can you help, case {i}?"}],
            "style": "sad, slow, quiet",
            "response": f"Of course, let us look for them ({i}).",
        }
        for i in range(number)
    ]


def completion(text):
    return json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})


class Server:
    """An HTTP server on loopback whose answers are a function of the request's number and body."""

    def __init__(self, answer):
        self.requests, self.times, lock = [], [], threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append((self.path, dict(self.headers), body))
                    outer.times.append(time.monotonic())
                    number = len(outer.requests)
                try:
                    answer(self, number, body)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def reply(self, text, status=200, headers=()):
                data = text.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                for key, value in headers:
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                """Nothing on stderr."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve():
    servers = []

    def start(answer):
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def endpoint(server, name="judge", **options):
    settings = {"timeout": 5.0, "retries": 3, "backoff": 0.01, "workers": 2, **options}
    return judging.EndpointJudge(server.url, name, **settings)


GOOD = {"content": 4, "style": 2, "c1": 9, "c2": 10, "c3": 7, "c4": 8}


def good(handler, number, body):
    handler.reply(completion(f"Here you are: {json.dumps(GOOD)}"))


# -- prompts and parsing ---------------------------------------------------------------------------------------


def test_a_prompt_holds_dialogue_style_and_reply():
    cs, egs = rubrics()
    response = responses(1)[0]
    system, user = cs.messages(response)
    assert system["role"] == "system" and "JSON" in system["content"]
    for words in (
        "User: I lost my keys.\nAssistant: Oh no.\nUser: Can you help",
        "sad, slow, quiet",
        response["response"],
    ):
        assert words in user["content"]
    assert "from 1 (worst) to 5 (best)" in user["content"] and '{"content": 3, "style": 3}' in user["content"]
    assert "from 1 (worst) to 10" in egs.messages(response)[1]["content"] and list(egs.criteria) == [
        "c1",
        "c2",
        "c3",
        "c4",
    ]
    assert "not known" in cs.messages({**response, "style": None})[1]["content"]
    assert cs.prompt_hash != egs.prompt_hash
    changed = judging.Rubric("cs", {**cs.criteria, "style": "another"}, 1, 5, cs.system, cs.template)
    assert changed.prompt_hash != cs.prompt_hash == rubrics("cs")[0].prompt_hash
    with pytest.raises(ValueError, match=r"rubrics \['mos'\] are unknown; there are cs, egs"):
        rubrics("mos")


@pytest.mark.parametrize(
    "text, scores",
    [
        ('{"content": 4, "style": 5}', (4, 5)),
        ('```json\n{"Content": "4", "STYLE": "3/5"}\n```', (4, 3)),
        ('<think>{"content": 1, "style": 1}</think> {"content": 5, "style": 2, "why": "{"}', (5, 2)),
        ('First {"content": 2, "style": 2}, on reflection {"content": 3, "style": 2}', (3, 2)),
        ('{"a": {"content": 4, "style": 5}}', None),
        ('{"content": 4.5, "style": 1}', (4.5, 1)),
        ('{"content": 6, "style": 5}', None),
        ('{"content": 0, "style": 5}', None),
        ('{"content": 4}', None),
        ('{"content": true, "style": 5}', None),
        ('{"content": NaN, "style": 5}', None),
        ('{"content": 4, "style": 5', None),
        ("Content 4, style 5", None),
        ("", None),
    ],
)
def test_answers_are_read_or_refused(text, scores):
    expected = None if scores is None else dict(zip(("content", "style"), scores))
    assert rubrics("cs")[0].parse(text) == expected


# -- a misbehaving server --------------------------------------------------------------------------------------


def test_what_is_sent_and_kept(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "k123")
    server = serve(good)
    judge = endpoint(server, "big-judge", key_variable="JUDGE_KEY", max_tokens=99)
    done = judging.judge_responses(responses(3), [judge], rubrics(), tmp_path / "j.jsonl", progress=False)
    assert [(j.id, j.rubric, j.status) for j in done] == [
        (f"d{i}", r, "ok") for r in ("cs", "egs") for i in range(3)
    ]
    assert done[0].scores == {"content": 4, "style": 2} and done[3].scores == {
        "c1": 9,
        "c2": 10,
        "c3": 7,
        "c4": 8,
    }
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer k123"
    assert (body["model"], body["temperature"], body["max_tokens"], body["stream"]) == (
        "big-judge",
        0,
        99,
        False,
    )
    lines = [json.loads(x) for x in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and all(x["judge"] == "big-judge" and x["prompt_hash"] and x["raw"] for x in lines)


def test_nothing_is_asked_twice_and_changed_replies_are(serve, tmp_path):
    server = serve(good)
    judge, file = endpoint(server), tmp_path / "j.jsonl"
    first = judging.judge_responses(responses(4), [judge], rubrics("cs"), file, progress=False)
    assert len(server.requests) == 4
    # A kill in the middle of the last line: only that one is asked again.
    content = file.read_bytes()
    file.write_bytes(content[: content.rindex(b"{") + 25])
    again = judging.judge_responses(responses(4), [judge], rubrics("cs"), file, progress=False)
    assert len(server.requests) == 5 and again == first
    changed = responses(4)
    changed[2]["response"] = "No."
    judging.judge_responses(changed, [judge], rubrics("cs"), file, progress=False)
    assert len(server.requests) == 6 and "No." in server.requests[-1][2]["messages"][1]["content"]
    judging.judge_responses(changed, [judge], rubrics("egs"), file, progress=False)
    assert len(server.requests) == 10


def test_malformed_answers(serve, tmp_path):
    """What is no chat completion is asked for again; what is one without scores is unparsable and counted."""
    kinds = {0: "I would rather not say.", 1: '{"content": 9, "style": 1}', 2: json.dumps(GOOD)}
    forms = [
        "<html>proxy</html>",
        "{}",
        '{"choices": []}',
        '{"choices": [{"message": {"content": null}}]}',
        "",
    ]
    asked = Counter()

    def answer(handler, number, body):
        case = int(body["messages"][1]["content"].split("case ")[1].split("?")[0])
        asked[case] += 1
        if case == 3:
            handler.reply(forms[asked[case] - 1] if asked[case] <= 5 else completion(json.dumps(GOOD)))
        elif case == 4:
            handler.send_response(200)
            handler.send_header("Content-Length", "500")
            handler.end_headers()
            handler.wfile.write(b'{"choices": [')
            handler.close_connection = True
        else:
            handler.reply(completion(kinds[case]))

    judge, file = endpoint(serve(answer), retries=5), tmp_path / "j.jsonl"
    done = judging.judge_responses(responses(5), [judge], rubrics("cs"), file, progress=False)
    assert [j.status for j in done] == ["unparsable", "unparsable", "ok", "ok", "failed"]
    assert asked == {0: 1, 1: 1, 2: 1, 3: 6, 4: 6}
    assert "out of form" in done[4].error and done[0].raw == kinds[0]
    summary = judging.summarize(done, rubrics("cs"))
    metrics = summary["metrics"]
    assert metrics["test.dialogue.judge.cs_unparsable"] == 2 and metrics["test.dialogue.judge.cs_failed"] == 1
    assert metrics["test.dialogue.judge.cs_content"] == 4.0
    # Failures are asked again, unparsable answers are not: at temperature 0 they would come again.
    judging.judge_responses(responses(5), [judge], rubrics("cs"), file, progress=False)
    assert asked[0] == 1 and asked[4] == 12


@pytest.mark.parametrize("how", ["silent", "dripping", "closing"])
def test_slow_answers_time_out_and_are_asked_again(serve, how):
    def answer(handler, number, body):
        if number == 2:
            handler.reply(completion("late but whole"))
            return
        if how == "closing":
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        for _ in range(30 if how == "dripping" else 0):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)
        time.sleep(1.5)

    server = serve(answer)
    started = time.monotonic()
    text = endpoint(server, timeout=0.5, retries=1).ask([{"role": "user", "content": "x"}])
    assert text == "late but whole" and len(server.requests) == 2
    assert time.monotonic() - started < 2.5, "the timeout is of the whole answer, not of each byte"
    with pytest.raises(judging.NoAnswer, match=r"judge at http://.*\(1 tries\)"):
        endpoint(serve(lambda h, n, b: time.sleep(1)), timeout=0.3, retries=0).ask([])


def test_busy_servers_are_waited_for(serve):
    def answer(handler, number, body):
        if number < 3:
            handler.reply("busy", 429 if number == 1 else 503, [("Retry-After", "0.3")])
        else:
            handler.reply(completion("done"))

    server = serve(answer)
    assert endpoint(server).ask([]) == "done"
    gaps = np.diff(server.times)
    assert len(gaps) == 2 and (gaps >= 0.29).all()


def test_a_wrong_key_or_model_ends_it_at_once(serve, tmp_path):
    server = serve(lambda handler, number, body: handler.reply('{"error": "no such model"}', 404))
    with pytest.raises(judging.JudgeError, match="judge at http.*: status 404: .*no such model"):
        judging.judge_responses(
            responses(9), [endpoint(server)], rubrics("cs"), tmp_path / "j.jsonl", progress=False
        )
    assert len(server.requests) <= 4


def test_an_absent_judge_is_given_up(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    judge = judging.EndpointJudge(f"http://127.0.0.1:{port}", "j", retries=0, workers=1, timeout=2)
    file = tmp_path / "j.jsonl"
    with pytest.raises(judging.JudgeError, match="5 questions in a row got no answer.*ConnectionRefused"):
        judging.judge_responses(responses(30), [judge], rubrics("cs"), file, progress=False)
    assert [j.status for j in judging.read_judgements(file).values()] == ["failed"] * 5


def test_the_rate_is_kept_over_all_workers(serve):
    server = serve(good)
    judge = endpoint(server, per_minute=600, workers=4)
    with_threads = [threading.Thread(target=judge.ask, args=([],)) for _ in range(6)]
    for thread in with_threads:
        thread.start()
    for thread in with_threads:
        thread.join()
    assert server.times[-1] - server.times[0] >= 0.45 and (np.diff(sorted(server.times)) > 0.05).all()


# -- agreement and report --------------------------------------------------------------------------------------


def judgement(i, judge, content, style, rubric):
    scores = {"content": content, "style": style}
    return judging.Judgement(f"d{i}", judge, "cs", rubric.prompt_hash, "h", "ok", scores)


def test_two_judges_and_their_agreement():
    (cs,) = rubrics("cs")
    rng = np.random.default_rng(0)
    first, second = rng.integers(1, 6, (2, 40))
    done = [judgement(i, "a", first[i], 3, cs) for i in range(40)]
    done += [judgement(i, "b", second[i], 3, cs) for i in range(40)]
    done[3] = judging.Judgement("d3", "a", "cs", cs.prompt_hash, "h", "unparsable", raw="?")
    metrics = judging.summarize(done, [cs])["metrics"]
    pairs = [(a, b) for i, (a, b) in enumerate(zip(first, second)) if i != 3]
    # Quadratic kappa by hand: observed squared difference over that of independent draws from the margins.
    a, b = np.array(pairs).T
    expected = 1 - ((a - b) ** 2).mean() / ((a[:, None] - b[None]) ** 2).mean()
    assert metrics["test.dialogue.agreement.cs_content_kappa.a+b"] == pytest.approx(expected)
    assert metrics["test.dialogue.agreement.cs_style_kappa.a+b"] is None, "no variation: not defined"
    assert metrics["test.dialogue.agreement.cs_style_alpha"] is None
    assert metrics["test.dialogue.a.cs_content"] == pytest.approx(np.delete(first, 3).mean())
    low, high = (metrics[f"test.dialogue.b.cs_content_{x}"] for x in ("low", "high"))
    assert low < second.mean() < high and high - low == pytest.approx(
        2 * 1.96 * second.std() / math.sqrt(40), rel=0.2
    )
    table = judging.format_report({"metrics": metrics, "judges": {"a": {}, "b": {}}}, [cs])
    assert "| a |" in table and "undefined" in table and cs.prompt_hash in table


def test_krippendorff_alpha_of_the_published_example():
    """Krippendorff 2011, section C: four observers, twelve units, gaps; interval alpha 0.849."""
    gap = math.nan
    ratings = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, gap, gap, gap],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, gap, 3],
        [gap, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, gap],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, gap],
    ]
    assert krippendorff_alpha(ratings) == pytest.approx(0.849, abs=5e-4)
    assert krippendorff_alpha([[1, 2, 3], [3, 2, 1]]) < 0
    assert krippendorff_alpha([[gap, 1], [1, gap]]) is None
    with pytest.raises(ValueError, match="a rating is outside the scale 1 to 5"):
        quadratic_weighted_kappa([6], [1], 1, 5)


# -- files and command -----------------------------------------------------------------------------------------


def write_responses(folder, rows):
    path = folder / "responses.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_faulty_files_are_listed(tmp_path):
    row = responses(1)[0]
    path = write_responses(
        tmp_path, [row, row, {**row, "id": "x", "turns": []}, {"id": "y", "turns": row["turns"]}, {"id": 3}]
    )
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(ValueError) as error:
        judging.read_responses(path)
    for words in (
        "5 faults",
        "line 2: the id 'd0' occurs twice",
        "line 3: no 'turns'",
        "line 4: no 'response'",
        "line 5: no 'id'",
        "line 6: no JSON",
    ):
        assert words in str(error.value)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="empty.jsonl: no reply in it"):
        judging.read_responses(tmp_path / "empty.jsonl")


def test_the_command(serve, tmp_path, capsys):
    one, two = (
        serve(good),
        serve(lambda h, n, b: h.reply(completion(json.dumps({**GOOD, "content": 1 + n % 3})))),
    )
    path = write_responses(tmp_path, responses(6))
    command = ["judge", str(path), "--judge", f"{one.url}#one", "--judge", f"{two.url}#two", "--workers", "1"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "| one | 4.00 [4.00-4.00] |" in out and "Quadratic weighted kappa of one and two: content" in out
    saved = json.loads((tmp_path / "judge_results.json").read_text())
    assert (
        saved["judges"]["two"] == {r.name: r.prompt_hash for r in rubrics()} and saved["num_responses"] == 6
    )
    assert saved["metrics"]["test.dialogue.one.egs_c2"] == 10
    asked = len(one.requests)
    assert cli.main([*command, "--rubric", "cs"]) == 0 and len(one.requests) == asked
    assert cli.main(["judge", str(path), "--judge", "nonsense"]) == 2
    assert "judge 'nonsense' is neither URL#model nor local:FOLDER" in capsys.readouterr().err
    assert cli.main(["judge", str(tmp_path / "no.jsonl"), "--judge", f"{one.url}#one"]) == 2
    assert cli.main([*command[:4], "--out", str(tmp_path / "alone")]) == 0
    assert "one judge alone says nothing about agreement" in capsys.readouterr().err


# -- language models -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_judge(tmp_path_factory):
    """A tiny language model that has learnt to answer every question with the same scores."""
    answer = '{"content": 4, "style": 3}'
    folder = tmp_path_factory.mktemp("judge") / "tiny_judge"
    texts = [answer, *(m["content"] for r in responses(2) for m in rubrics("cs")[0].messages(r))]
    build_tiny_llm(folder, texts, 700, 32, 1, 2, 1, 64, max_position_embeddings=2048)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(answer + tokenizer.eos_token, add_special_tokens=False, return_tensors="pt")["input_ids"]
    prompts = [
        tokenizer.apply_chat_template(
            rubrics("cs")[0].messages(r), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        for r in responses(2)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(60):
        row = torch.cat([prompts[step % 2], ids], 1)
        labels = row.clone()
        labels[:, : prompts[step % 2].shape[1]] = -100
        model(input_ids=row, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def test_a_local_judge(tiny_judge, tmp_path):
    judge = judging.LocalJudge(tiny_judge, max_tokens=40, device="cpu")
    assert judge.name == "tiny_judge"
    done = judging.judge_responses(responses(3), [judge], rubrics("cs"), tmp_path / "j.jsonl", progress=False)
    assert [j.scores for j in done] == [{"content": 4, "style": 3}] * 3
    long = responses(1)
    long[0]["response"] = "very " * 5000
    done = judging.judge_responses(long, [judge], rubrics("cs"), tmp_path / "j.jsonl", progress=False)
    assert done[0].status == "failed" and "the model at most 2048" in done[0].error


@pytest.mark.integration
def test_transformers_serve(tiny_judge, tmp_path):
    """A real OpenAI-compatible server over the same model gives the same judgements as the local judge."""
    pytest.importorskip("fastapi", reason="pip install 'transformers[serving]'")
    pytest.importorskip("openai", reason="pip install 'transformers[serving]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "transformers.cli.transformers"]
    log = open(tmp_path / "server.log", "w")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [*program, "serve", str(tiny_judge), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
    )
    try:
        for _ in range(600):
            if server.poll() is not None:
                pytest.fail(f"transformers serve ended: {(tmp_path / 'server.log').read_text()[-500:]}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        judge = judging.EndpointJudge(
            f"http://127.0.0.1:{port}/v1",
            str(tiny_judge),
            workers=2,
            timeout=120,
            max_tokens=40,
            key_variable=None,
        )
        done = judging.judge_responses(
            responses(4), [judge], rubrics("cs"), tmp_path / "j.jsonl", progress=False
        )
    finally:
        server.terminate()
        server.wait(30)
        log.close()
    local = judging.LocalJudge(tiny_judge, max_tokens=40, device="cpu")
    expected = judging.judge_responses(
        responses(4), [local], rubrics("cs"), tmp_path / "l.jsonl", progress=False
    )
    assert [(j.status, j.scores) for j in done] == [(j.status, j.scores) for j in expected]
    assert [j.scores for j in done] == [{"content": 4, "style": 3}] * 4

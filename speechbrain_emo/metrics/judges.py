"""Language models as judges of replies: CS (content, style, 1 to 5) and EGS (C1 to C4, 1 to 10).

The scores of arXiv 2508.08095 (section 4); its prompts are not published, ours are in ``hparams/prompts/judges.yaml``.
Any system's ``responses.jsonl`` can be judged: one JSON object a line with

    id         unique
    turns      list of {role: user or assistant, text}: the conversation, the user's turn to be answered last
    style      how the last turn was spoken, in words (optional)
    response   the reply to grade

A judgement is a line of ``judgements.jsonl``; what is there already is not asked again. A reply that cannot be read as
scores is counted as unparsable and never dropped in silence.
"""

import concurrent.futures
import hashlib
import http.client
import json
import logging
import os
import re
import threading
import time
import urllib.parse
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from speechbrain_emo.dataio.manifest import write_text_atomically
from speechbrain_emo.metrics.agreement import krippendorff_alpha, quadratic_weighted_kappa

logger = logging.getLogger(__name__)

STATUSES = ("ok", "unparsable", "failed")
#: So many failures in a row, and the judge is taken for absent.
MAX_FAILURES_IN_A_ROW = 5
_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)


class JudgeError(RuntimeError):
    """A judge that cannot be used at all: wrong address, wrong key, no such model.

    Example
    -------
    >>> issubclass(JudgeError, RuntimeError)
    True
    """


class NoAnswer(RuntimeError):
    """One question that a judge did not answer in time or in form, after all retries.

    Example
    -------
    >>> issubclass(NoAnswer, RuntimeError)
    True
    """


class Judge(Protocol):
    """Answers a chat. ``name`` goes into every judgement; ``workers`` is how many questions it takes at a time."""

    name: str
    workers: int

    def ask(self, messages) -> str:
        """The answer to a list of ``{role, content}``, at temperature 0.

        Raises
        ------
        NoAnswer
            If this question got no answer.
        JudgeError
            If no question will.
        """


@dataclass(frozen=True)
class Rubric:
    """What is graded, on which scale.

    Arguments
    ---------
    name : str
        ``cs``, ``egs`` or another.
    criteria : dict
        Key in the judge's answer -> what it means.
    low, high : int
        The scale.
    system : str
        System prompt.
    template : str
        User prompt with ``{dialogue} {style} {reply} {criteria} {keys} {example} {low} {high}``.

    Raises
    ------
    ValueError
        If there is no criterion or the scale is empty.

    Example
    -------
    >>> rubric = Rubric("cs", {"content": "fits?"}, 1, 5, "Grade.", "{dialogue} {style} {reply} {criteria} {keys}")
    >>> len(rubric.prompt_hash), rubric.parse('Fine: {"content": 4}')
    (16, {'content': 4.0})
    """

    name: str
    criteria: dict
    low: int
    high: int
    system: str
    template: str

    def __post_init__(self):
        if not self.criteria or not self.low < self.high:
            raise ValueError(
                f"rubric {self.name!r} has {len(self.criteria)} criteria and the scale {self.low} to {self.high}; "
                "needed: at least one criterion, and a scale that rises"
            )

    @property
    def prompt_hash(self):
        """16 hexadecimal digits of all that the judge is told apart from the dialogue."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]

    def messages(self, response):
        """The chat for a reply.

        Arguments
        ---------
        response : dict
            A line of ``responses.jsonl``.

        Returns
        -------
        list of dict
        """
        who = {"user": "User", "assistant": "Assistant", "system": "Instruction to the assistant"}
        lines = [f"{who[t['role']]}: {' '.join(t['text'].split())}" for t in response["turns"]]
        middle = (self.low + self.high) // 2
        values = {
            "dialogue": "\n".join(lines),
            "style": response.get("style") or "not known",
            "reply": response["response"],
            "criteria": "\n".join(
                f"- {key}: {' '.join(text.split())}" for key, text in self.criteria.items()
            ),
            "keys": ", ".join(self.criteria),
            "example": json.dumps(dict.fromkeys(self.criteria, middle)),
            "low": self.low,
            "high": self.high,
        }
        content = self.template.format(**values)
        return [{"role": "system", "content": self.system}, {"role": "user", "content": content}]

    def parse(self, text):
        """Scores of an answer: the last JSON object in it that has all keys with numbers on the scale.

        Arguments
        ---------
        text : str
            What the judge wrote.

        Returns
        -------
        dict or None
            Criterion -> float; None where there is no such object.
        """
        found = None
        for candidate in _json_objects(_THINKING.sub("", text)):
            lowered = {str(key).strip().lower(): value for key, value in candidate.items()}
            scores = {key: _number(lowered.get(key.lower())) for key in self.criteria}
            if all(s is not None and self.low <= s <= self.high for s in scores.values()):
                found = scores
        return found


def load_rubrics(settings, names=None):
    """Rubrics of a mapping as ``hparams/prompts/judges.yaml`` has it.

    Arguments
    ---------
    settings : mapping
        ``system``, ``template`` and ``rubrics``: name -> ``{scale: [low, high], criteria: {key: text}}``.
    names : sequence of str, optional
        Which; default: all.

    Returns
    -------
    list of Rubric

    Raises
    ------
    ValueError
        If a name is unknown or a key is missing.

    Example
    -------
    >>> settings = {"system": "", "template": "{reply}", "rubrics": {"x": {"scale": [1, 3], "criteria": {"a": "b"}}}}
    >>> load_rubrics(settings)[0].high
    3
    """
    missing = [key for key in ("system", "template", "rubrics") if key not in settings]
    if missing:
        raise ValueError(f"the judges' prompts lack {', '.join(missing)}: see hparams/prompts/judges.yaml")
    known = settings["rubrics"]
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise ValueError(f"rubrics {unknown} are unknown; there are {', '.join(known)}")
    return [
        Rubric(
            name,
            {str(k): str(v) for k, v in known[name]["criteria"].items()},
            *(int(x) for x in known[name]["scale"]),
            str(settings["system"]),
            str(settings["template"]),
        )
        for name in names or known
    ]


def _json_objects(text):
    """Every JSON object that begins somewhere in a text."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            value, length = decoder.raw_decode(text[start:])
        except json.JSONDecodeError:
            start = text.find("{", start + 1)
            continue
        if isinstance(value, dict):
            yield value
        start = text.find("{", start + length)


def _number(value):
    """A float; also of "4" and "4/5"; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:/\s*\d+)?\s*", value)
        value = float(match[1]) if match else None
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else None


# -- judges ----------------------------------------------------------------------------------------------------


class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint (vLLM, transformers serve, llama.cpp, a provider).

    Arguments
    ---------
    url : str
        Base address, for example ``http://localhost:8000/v1``; ``/chat/completions`` is added.
    model : str
        The model's name there.
    key_variable : str, optional
        Environment variable that holds the key; nothing is sent where it is not set.
    timeout : float
        Seconds until an answer must be complete.
    retries : int
        Further tries after a lost connection, a timeout, status 408, 429 or 5xx, or an answer out of form.
    backoff : float
        Seconds before the first further try; doubled each time, at most 60. A ``Retry-After`` header goes before it.
    per_minute : float, optional
        Most requests a minute, over all workers.
    workers : int
        Requests at a time.
    max_tokens : int
        Longest answer.

    Raises
    ------
    ValueError
        If the address is no http(s) address.

    Example
    -------
    >>> EndpointJudge("http://localhost:8000/v1", "Qwen2.5-72B-Instruct").name
    'Qwen2.5-72B-Instruct'
    """

    def __init__(
        self,
        url,
        model,
        key_variable="OPENAI_API_KEY",
        timeout=60.0,
        retries=4,
        backoff=1.0,
        per_minute=None,
        workers=4,
        max_tokens=256,
    ):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"judge address {url!r} is no http address, for example http://localhost:8000/v1"
            )
        self.name = model
        self.url = url
        self.workers = workers
        self._parts = parts
        self._path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._key = os.environ.get(key_variable) if key_variable else None
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._max_tokens = max_tokens
        self._lock = threading.Lock()
        self._next = 0.0

    def ask(self, messages):
        """As :meth:`Judge.ask`."""
        body = {
            "model": self.name,
            "messages": messages,
            "temperature": 0,
            "max_tokens": self._max_tokens,
            "stream": False,
        }
        content = json.dumps(body).encode("utf-8")
        problem = None
        for attempt in range(self._retries + 1):
            self._wait_for_turn()
            pause = min(self._backoff * 2**attempt, 60.0)
            try:
                status, headers, answer = self._post(content)
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if status == 200:
                    text = _content(answer)
                    if text is not None:
                        return text
                    problem = f"an answer out of form: {answer[:120]!r}"
                elif status in (408, 409, 425, 429) or status >= 500:
                    problem = f"status {status}: {answer[:120]!r}"
                    pause = _retry_after(headers, pause)
                else:
                    raise JudgeError(f"{self.name} at {self.url}: status {status}: {answer[:300]!r}")
            if attempt < self._retries:
                time.sleep(pause)
        raise NoAnswer(f"{self.name} at {self.url}: {problem} ({self._retries + 1} tries)")

    def _wait_for_turn(self):
        if not self._gap:
            return
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._gap
        time.sleep(max(start - now, 0.0))

    def _post(self, content):
        """Status, headers and body; the whole exchange within the timeout."""
        deadline = time.monotonic() + self._timeout
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname, self._parts.port, timeout=self._timeout)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            connection.request("POST", self._path, content, headers)
            response = connection.getresponse()
            pieces = []
            # A socket's timeout starts anew with every byte: a server that drips would never end.
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"no complete answer within {self._timeout} s")
                if connection.sock is not None:
                    connection.sock.settimeout(left)
                piece = response.read1(65536)
                if not piece:
                    break
                pieces.append(piece)
            body = b"".join(pieces).decode("utf-8", errors="replace")
            return response.status, response.headers, body
        finally:
            connection.close()


def _content(answer):
    """The text of a chat completion, or None."""
    try:
        text = json.loads(answer)["choices"][0]["message"]["content"]
    except (json.JSONDecodeError, KeyError, IndexError, TypeError):
        return None
    return text if isinstance(text, str) else None


def _retry_after(headers, default):
    """Seconds that the server asks to wait, at most five minutes."""
    value = headers.get("Retry-After") or ""
    return min(float(value), 300.0) if re.fullmatch(r"\d+(?:\.\d+)?", value.strip()) else default


class LocalJudge:
    """A causal language model in a folder of this machine, as transformers writes it.

    Arguments
    ---------
    folder : str or pathlib.Path
        Model and tokenizer with a chat template.
    name : str, optional
        Default: the folder's name.
    max_tokens : int
        Longest answer.
    device : str, optional
        Default: a GPU where there is one.

    Raises
    ------
    JudgeError
        If the folder holds no model or the tokenizer no chat template.

    Example
    -------
    >>> LocalJudge(getfixture("tmp_path"))
    Traceback (most recent call last):
    ...
    speechbrain_emo.metrics.judges.JudgeError: ... holds no language model: ...
    """

    workers = 1

    def __init__(self, folder, name=None, max_tokens=256, device=None):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise JudgeError(f"{folder} holds no language model: config.json is missing")
        self.name = name or folder.name
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if not self.tokenizer.chat_template:
            raise JudgeError(f"{folder}: its tokenizer has no chat template: take an instruction-tuned model")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = "auto" if device != "cpu" else torch.float32
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
        self.model.to(device).eval()
        self._max_tokens = max_tokens
        self._torch = torch

    def ask(self, messages):
        """As :meth:`Judge.ask`; greedy."""
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.model.device)
        length = inputs["input_ids"].shape[1]
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None and length + 1 > limit:
            raise NoAnswer(f"{self.name}: the prompt has {length} tokens, the model at most {limit}")
        with self._torch.inference_mode():
            written = self.model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=self._max_tokens,
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
            )
        return self.tokenizer.decode(written[0, length:], skip_special_tokens=True)


def make_judge(text, **options):
    """A judge of ``URL#model`` or ``local:FOLDER``.

    Arguments
    ---------
    text : str
        For example ``http://localhost:8000/v1#Qwen2.5-72B-Instruct`` or ``local:models/judge``.
    **options
        Of :class:`EndpointJudge` for an address; ``max_tokens`` also of :class:`LocalJudge`.

    Returns
    -------
    Judge

    Raises
    ------
    ValueError
        If it is neither.

    Example
    -------
    >>> make_judge("http://localhost:8000/v1#judge").url
    'http://localhost:8000/v1'
    """
    if text.startswith("local:"):
        return LocalJudge(text.removeprefix("local:"), max_tokens=options.get("max_tokens", 256))
    url, mark, model = text.partition("#")
    if not mark or not model or "://" not in url:
        raise ValueError(f"judge {text!r} is neither URL#model nor local:FOLDER")
    return EndpointJudge(url, model, **options)


# -- judging ---------------------------------------------------------------------------------------------------


@dataclass
class Judgement:
    """One judge's scores of one reply.

    Arguments
    ---------
    id : str
        Of the reply.
    judge, rubric, prompt_hash : str
        Who graded what by which words.
    response_hash : str
        Of dialogue, style and reply: a changed reply is judged again.
    status : str
        ``ok``, ``unparsable`` (answered, but no scores can be read) or ``failed`` (no answer; asked again next time).
    scores : dict
        Criterion -> float; empty unless ``ok``.
    raw : str
        The judge's answer.
    error : str
        Why it failed.

    Example
    -------
    >>> Judgement("d1", "j", "cs", "00", "11", "ok", {"content": 4.0}).key
    ('d1', 'j', 'cs', '00', '11')
    """

    id: str
    judge: str
    rubric: str
    prompt_hash: str
    response_hash: str
    status: str
    scores: dict = field(default_factory=dict)
    raw: str = ""
    error: str = ""

    @property
    def key(self):
        """What makes a judgement the same."""
        return (self.id, self.judge, self.rubric, self.prompt_hash, self.response_hash)


def read_responses(path):
    """Replies to judge.

    Arguments
    ---------
    path : str or pathlib.Path
        ``responses.jsonl``.

    Returns
    -------
    list of dict

    Raises
    ------
    ValueError
        With file and line of everything that is wrong.

    Example
    -------
    >>> path = getfixture("tmp_path") / "responses.jsonl"
    >>> _ = path.write_text('{"id": "a", "turns": [{"role": "user", "text": "Hi."}], "response": "Hello!"}')
    >>> read_responses(path)[0]["response"]
    'Hello!'
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    responses, faults, seen = [], [], set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        fault = None
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            faults.append(f"line {number}: no JSON ({error})")
            continue
        turns = row.get("turns") if isinstance(row, dict) else None
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            fault = "no 'id' (a string)"
        elif row["id"] in seen:
            fault = f"the id {row['id']!r} occurs twice"
        elif not isinstance(row.get("response"), str):
            fault = "no 'response' (a string; an empty one is a reply too)"
        elif not (
            isinstance(turns, list)
            and turns
            and all(
                isinstance(t, dict)
                and t.get("role") in ("user", "assistant", "system")
                and isinstance(t.get("text"), str)
                for t in turns
            )
            and turns[-1]["role"] == "user"
        ):
            fault = "no 'turns' (a list of {role: user or assistant, text}, the user's last)"
        if fault:
            faults.append(f"line {number}: {fault}")
            continue
        seen.add(row["id"])
        responses.append(row)
    if faults:
        rest = f"\n  ... and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise ValueError(f"{path}: {len(faults)} faults:\n  " + "\n  ".join(faults[:20]) + rest)
    if not responses:
        raise ValueError(f"{path}: no reply in it")
    return responses


def response_hash(response):
    """16 hexadecimal digits of all that a judge sees of a reply.

    Example
    -------
    >>> turns = [{"role": "user", "text": "Hi."}]
    >>> response_hash({"turns": turns, "response": "a"}) == response_hash({"turns": turns, "response": "b"})
    False
    """
    turns = [[t["role"], t["text"]] for t in response["turns"]]
    text = json.dumps([turns, response.get("style"), response["response"]], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def read_judgements(path):
    """Judgements of an earlier run; a line that was cut off by a kill is left out.

    Arguments
    ---------
    path : str or pathlib.Path
        ``judgements.jsonl``; may be absent.

    Returns
    -------
    dict
        Key -> Judgement, the last one where a key occurs twice.
    """
    path, found = Path(path), {}
    if path.is_file():
        for line in path.read_bytes().split(b"\n"):
            try:
                judgement = Judgement(**json.loads(line))
            except (json.JSONDecodeError, UnicodeDecodeError, TypeError):
                if line.strip():
                    logger.warning("%s: an incomplete line is left out: %r", path, line[:60])
                continue
            found[judgement.key] = judgement
    return found


def judge_responses(responses, judges, rubrics, judgements_file, progress=True):
    """Have every reply graded by every judge under every rubric; what is done is not asked again.

    Arguments
    ---------
    responses : list of dict
        As :func:`read_responses` gives them.
    judges : sequence of Judge
        With different names.
    rubrics : sequence of Rubric
        What is graded.
    judgements_file : str or pathlib.Path
        Judgements are added to it line by line, so that a kill loses at most the questions under way.
    progress : bool
        Show a progress bar.

    Returns
    -------
    list of Judgement
        In the order of judges, rubrics and replies.

    Raises
    ------
    JudgeError
        If a judge cannot be used, or does not answer several times in a row.
    ValueError
        If two judges have the same name.
    """
    names = [judge.name for judge in judges]
    if len(set(names)) != len(names):
        raise ValueError(f"judges are called {names}: two with one name cannot be told apart in the results")
    path = Path(judgements_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    done = read_judgements(path)
    hashes = {r["id"]: response_hash(r) for r in responses}
    wanted = [
        (
            judge,
            rubric,
            response,
            (response["id"], judge.name, rubric.name, rubric.prompt_hash, hashes[response["id"]]),
        )
        for judge in judges
        for rubric in rubrics
        for response in responses
    ]
    open_jobs = [job for job in wanted if job[3] not in done or done[job[3]].status == "failed"]
    _end_with_newline(path)
    with (
        open(path, "a", encoding="utf-8") as out,
        tqdm(total=len(open_jobs), desc="judge", unit="reply", disable=not progress) as bar,
    ):
        for judge in judges:
            jobs = [job for job in open_jobs if job[0] is judge]
            for judgement in _ask_all(judge, jobs):
                done[judgement.key] = judgement
                out.write(json.dumps(asdict(judgement), ensure_ascii=False) + "\n")
                out.flush()
                bar.update()
    return [done[key] for _, _, _, key in wanted]


def _end_with_newline(path):
    """A line that a kill cut off must not swallow the next one."""
    if path.is_file() and path.stat().st_size:
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _ask_all(judge, jobs):
    """Judgements of one judge, as they come."""

    def ask(job):
        _, rubric, response, key = job
        try:
            raw = judge.ask(rubric.messages(response))
        except NoAnswer as error:
            return Judgement(*key, "failed", error=str(error))
        scores = rubric.parse(raw)
        return Judgement(*key, "unparsable" if scores is None else "ok", scores or {}, raw)

    in_a_row, queue = 0, iter(jobs)
    with concurrent.futures.ThreadPoolExecutor(max_workers=max(judge.workers, 1)) as pool:
        running = set()
        try:
            while True:
                for job in queue:
                    running.add(pool.submit(ask, job))
                    if len(running) >= judge.workers:
                        break
                if not running:
                    return
                finished, running = concurrent.futures.wait(
                    running, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for future in finished:
                    judgement = future.result()
                    in_a_row = in_a_row + 1 if judgement.status == "failed" else 0
                    yield judgement
                    if in_a_row >= MAX_FAILURES_IN_A_ROW:
                        raise JudgeError(
                            f"{in_a_row} questions in a row got no answer, the last: {judgement.error}. What was "
                            "judged is kept; start again when the judge is there"
                        )
        finally:
            for future in running:
                future.cancel()


def summarize(judgements, rubrics, split="test", task="dialogue", num_bootstrap=1000, seed=0):
    """Means, unparsable answers and agreement, as metrics of ``results.json``.

    Arguments
    ---------
    judgements : sequence of Judgement
        Of :func:`judge_responses`.
    rubrics : sequence of Rubric
        Those that were asked.
    split, task : str
        First parts of the keys.
    num_bootstrap : int
        Draws of replies behind the 95 % interval.
    seed : int
        Of the draws.

    Returns
    -------
    dict
        ``metrics``: ``<split>.<task>.<judge>.<rubric>_<criterion>`` -> mean, with ``_low`` and ``_high`` for
        the interval, ``_unparsable`` and ``_failed`` counts of the rubric; below ``<split>.<task>.agreement`` a
        ``_kappa`` for each pair and an ``_alpha`` over all judges. ``judges``: name -> rubric -> prompt hash.
        ``num_responses``.
    """
    names = list(dict.fromkeys(j.judge for j in judgements))
    ids = list(dict.fromkeys(j.id for j in judgements))
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(ids), size=(num_bootstrap, len(ids)))
    metrics = {}
    for rubric in rubrics:
        own = [j for j in judgements if j.rubric == rubric.name and j.prompt_hash == rubric.prompt_hash]
        tables = {}
        for criterion in rubric.criteria:
            place = {(j.judge, j.id): j.scores[criterion] for j in own if j.status == "ok"}
            tables[criterion] = np.array([[place.get((n, i), np.nan) for i in ids] for n in names])
        for row, name in enumerate(names):
            key = f"{split}.{task}.{name}.{rubric.name}"
            for status in ("unparsable", "failed"):
                metrics[f"{key}_{status}"] = sum(j.judge == name and j.status == status for j in own)
            for criterion, table in tables.items():
                scores = table[row]
                if np.isnan(scores).all():
                    metrics[f"{key}_{criterion}"] = None
                    continue
                metrics[f"{key}_{criterion}"] = float(np.nanmean(scores))
                drawn = scores[draws]
                counts = (~np.isnan(drawn)).sum(1)
                means = np.nansum(drawn, 1)[counts > 0] / counts[counts > 0]
                low, high = np.quantile(means, (0.025, 0.975))
                metrics[f"{key}_{criterion}_low"], metrics[f"{key}_{criterion}_high"] = (
                    float(low),
                    float(high),
                )
        for criterion, table in tables.items():
            key = f"{split}.{task}.agreement.{rubric.name}_{criterion}"
            for a, b in combinations(range(len(names)), 2):
                both = ~np.isnan(table[a]) & ~np.isnan(table[b])
                kappa = quadratic_weighted_kappa(table[a, both], table[b, both], rubric.low, rubric.high)
                metrics[f"{key}_kappa.{names[a]}+{names[b]}"] = kappa
            if len(names) > 1:
                metrics[f"{key}_alpha"] = krippendorff_alpha(table)
    return {
        "metrics": metrics,
        "judges": {name: {r.name: r.prompt_hash for r in rubrics} for name in names},
        "num_responses": len(ids),
    }


def format_report(summary, rubrics, split="test", task="dialogue"):
    """A Markdown table of :func:`summarize`.

    Arguments
    ---------
    summary : dict
        Of :func:`summarize`.
    rubrics : sequence of Rubric
        Those that were asked.
    split, task : str
        As there.

    Returns
    -------
    str
    """
    metrics, lines = summary["metrics"], []
    names = list(summary["judges"])
    for rubric in rubrics:
        lines += [
            f"{rubric.name}, {rubric.low} to {rubric.high}, prompt {rubric.prompt_hash}, mean [95 %]",
            "",
        ]
        lines += ["| judge | " + " | ".join(rubric.criteria) + " | unparsable | failed |"]
        lines += ["|---|" + "---|" * (len(rubric.criteria) + 2)]
        for name in names:
            key = f"{split}.{task}.{name}.{rubric.name}"
            cells = []
            for criterion in rubric.criteria:
                mean = metrics[f"{key}_{criterion}"]
                low, high = metrics.get(f"{key}_{criterion}_low"), metrics.get(f"{key}_{criterion}_high")
                cells.append("none" if mean is None else f"{mean:.2f} [{low:.2f}-{high:.2f}]")
            counts = [str(metrics[f"{key}_{status}"]) for status in ("unparsable", "failed")]
            lines.append(f"| {name} | " + " | ".join([*cells, *counts]) + " |")
        for a, b in combinations(names, 2):
            start = f"{split}.{task}.agreement.{rubric.name}"
            pairs = [(c, metrics[f"{start}_{c}_kappa.{a}+{b}"]) for c in rubric.criteria]
            shown = ", ".join(f"{c} {'undefined' if k is None else f'{k:.2f}'}" for c, k in pairs)
            lines += ["", f"Quadratic weighted kappa of {a} and {b}: {shown}"]
        if len(names) > 1:
            start = f"{split}.{task}.agreement.{rubric.name}"
            alphas = [(c, metrics[f"{start}_{c}_alpha"]) for c in rubric.criteria]
            shown = ", ".join(f"{c} {'undefined' if k is None else f'{k:.2f}'}" for c, k in alphas)
            lines += ["", f"Krippendorff's alpha (interval) of all judges: {shown}"]
        lines.append("")
    return "\n".join(lines).rstrip()


def save_summary(folder, summary):
    """Write ``judge_results.json`` beside the judgements.

    Arguments
    ---------
    folder : str or pathlib.Path
        Folder of ``judgements.jsonl``.
    summary : dict
        Of :func:`summarize`.

    Returns
    -------
    pathlib.Path
    """
    path = Path(folder) / "judge_results.json"
    write_text_atomically(path, json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    return path

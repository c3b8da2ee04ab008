"""The feature cache: bit-identity, interruption, keys, disk, readers."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_emo.dataio import feature_cache
from speechbrain_emo.dataio.feature_cache import CacheFillError, CacheSpaceError, FeatureCache, audio_segments

TINY = {
    "model_type": "hubert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "feat_extract_norm": "layer",
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}


class CountingEncoder:
    """Frames of 160 samples whose features are simple functions of the samples, counting its audios."""

    frame_rate = 100.0
    num_layers = 3
    hidden_size = 5
    dtype = torch.float32
    fingerprint = "counting@1"

    def __init__(self, delay=0.0):
        self.encoded = 0
        self.largest_batch = 0
        self.delay = delay

    def __call__(self, waveforms, num_samples):
        time.sleep(self.delay)
        self.encoded += len(waveforms)
        self.largest_batch = max(self.largest_batch, len(waveforms))
        frames = waveforms[:, : waveforms.shape[1] // 160 * 160].reshape(len(waveforms), -1, 160)
        means = frames.mean(dim=2)[:, :, None, None]
        layers = torch.arange(1.0, 4.0)[:, None] * torch.linspace(0.1, 1.7, 5)
        return SimpleNamespace(features=(means + 0.3) * layers, num_frames=num_samples // 160)


def load(audio):
    samples, _ = soundfile.read(
        audio["wav"], dtype="float32", start=audio.get("start", 0), stop=audio.get("stop")
    )
    return torch.from_numpy(samples)


def expected_features(audio):
    samples = load(audio)
    encoder = CountingEncoder()
    return encoder(samples[None], torch.tensor([len(samples)])).features[0]


@pytest.fixture
def records(tmp_path):
    folder = tmp_path / "audio"
    folder.mkdir()
    generator = np.random.default_rng(0)
    manifest = {}
    for number in range(12):
        length = 160 * int(generator.integers(3, 40))
        path = folder / f"{number}.wav"
        soundfile.write(path, generator.uniform(-0.5, 0.5, length), 16000)
        manifest[str(number)] = {"wav": str(path), "duration": length / 16000}
    return manifest


def fill(cache, records, encoder=None, **options):
    encoder = encoder or CountingEncoder()
    count = cache.fill(records, encoder, load, progress=False, **options)
    return count, encoder


def test_filled_in_batches_and_read_by_another_object(tmp_path, records):
    cache = FeatureCache(tmp_path / "cache", "counting@1", shard_bytes=2000)
    count, encoder = fill(cache, records)
    assert count == encoder.encoded == 12
    assert len(list((tmp_path / "cache").glob("shard-*.safetensors"))) > 2
    reader = FeatureCache(tmp_path / "cache", "counting@1")
    for record in records.values():
        features = reader.get(reader.key(record))
        torch.testing.assert_close(features, expected_features(record))
        assert torch.equal(features, cache.get(cache.key(record)))
    assert fill(cache, records)[0] == 0


def test_one_by_one_equals_the_encoder_bit_for_bit(tmp_path, records):
    cache = FeatureCache(tmp_path / "cache", "counting@1")
    _, encoder = fill(cache, records, max_batch_seconds=0)
    assert encoder.largest_batch == 1
    for record in records.values():
        assert torch.equal(cache.get(cache.key(record)), expected_features(record))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_the_real_encoder(tmp_path, records, dtype):
    from speechbrain_emo.lobes.speech_encoder import SpeechEncoder

    torch.manual_seed(0)
    encoder = SpeechEncoder(None, architecture=TINY, dtype=dtype)
    cache = FeatureCache(tmp_path / "cache", encoder.fingerprint)
    assert cache.fill(records, encoder, load, progress=False, max_batch_seconds=0) == 12
    for record in records.values():
        samples = load(record)
        live = encoder(samples[None], torch.tensor([len(samples)])).features[0]
        cached = cache.get(cache.key(record))
        assert cached.dtype == live.dtype and torch.equal(cached, live)
    stored = sum(p.stat().st_size for p in (tmp_path / "cache").glob("shard-*"))
    assert stored < 1.1 * cache.estimate_bytes(sum(r["duration"] for r in records.values()), encoder) + 4000


def test_batches_stay_within_the_limit(tmp_path, records):
    cache = FeatureCache(tmp_path / "cache", "counting@1")
    seen = []

    class Encoder(CountingEncoder):
        def __call__(self, waveforms, num_samples):
            seen.append(waveforms.numel() / 16000)
            return super().__call__(waveforms, num_samples)

    cache.fill(records, Encoder(), load, max_batch_seconds=0.9, progress=False)
    assert max(seen) <= 0.9 and len(seen) < 12


def test_weighted_mode_keeps_one_weighted_sum(tmp_path, records):
    cache = FeatureCache(tmp_path / "cache", "counting@1", mode="weighted", layer_weights=[0.2, 0.5, 0.3])
    fill(cache, records)
    equal = FeatureCache(tmp_path / "cache", "counting@1", mode="weighted")
    fill(equal, records)
    record = records["3"]
    layers = expected_features(record)
    expected = (layers * torch.tensor([0.2, 0.5, 0.3])[:, None]).sum(dim=1, keepdim=True)
    torch.testing.assert_close(cache.get(cache.key(record)), expected)
    torch.testing.assert_close(equal.get(equal.key(record)), layers.mean(dim=1, keepdim=True))
    with pytest.raises(ValueError, match="2 layer_weights for an encoder that returns 3"):
        fill(FeatureCache(tmp_path / "b", "counting@1", mode="weighted", layer_weights=[0.5, 0.5]), records)


def test_settings_do_not_collide(tmp_path, records):
    folder = tmp_path / "cache"
    variants = [
        FeatureCache(folder, "counting@1", {"max_duration": 20}),
        FeatureCache(folder, "counting@1", {"max_duration": 10}),
        FeatureCache(folder, "counting@2", {"max_duration": 20}),
        FeatureCache(folder, "counting@1", {"max_duration": 20}, mode="weighted"),
        FeatureCache(folder, "counting@1", {"max_duration": 20}, "weighted", layer_weights=[1.0, 0.0, 0.0]),
    ]
    record = records["0"]
    assert len({cache.key(record) for cache in variants}) == len(variants)
    fill(variants[0], records)
    assert variants[0].key(record) in variants[0]
    for other in variants[1:]:
        assert other.key(record) not in other
        with pytest.raises(KeyError, match="call fill"):
            other.get(other.key(record))
    same = FeatureCache(folder, "counting@1", {"max_duration": 20})
    assert same.key(record) in same


def test_keys_follow_content_and_segment(tmp_path, records):
    cache = FeatureCache(tmp_path / "cache", "counting@1")
    record = records["0"]
    copy = tmp_path / "copy.wav"
    shutil.copy(record["wav"], copy)
    assert cache.key({"wav": str(copy)}) == cache.key(record)
    assert cache.key({"wav": str(copy), "start": 160}) != cache.key(record)
    assert cache.key({"wav": str(copy), "start": 1, "stop": 60}) != cache.key(
        {"wav": str(copy), "start": 16, "stop": 0}
    )
    before = cache.key(record)
    samples, rate = soundfile.read(record["wav"], dtype="int16")
    samples[0] ^= 1
    soundfile.write(record["wav"], samples, rate)
    assert cache.key(record) != before
    rooted = FeatureCache(tmp_path / "cache", "counting@1", data_root=tmp_path)
    assert rooted.key({"wav": "{data_root}/copy.wav"}) == before
    with pytest.raises(ValueError, match="needs a data_root"):
        cache.key({"wav": "{data_root}/copy.wav"})
    one, two = torch.zeros(5), torch.zeros(6)
    keys = {
        cache.key_of_samples(one, 16000),
        cache.key_of_samples(two, 16000),
        cache.key_of_samples(one, 8000),
    }
    assert len(keys) == 3


def test_segments_and_dialogues_are_cached_apart(tmp_path, records):
    whole = records["5"]
    parts = [
        {"wav": whole["wav"], "start": 0, "stop": 320, "duration": 0.02},
        {"wav": whole["wav"], "start": 160, "stop": 480, "duration": 0.02},
    ]
    cache = FeatureCache(tmp_path / "cache", "counting@1")
    assert fill(cache, [{"id": "d", "audios": parts}, whole])[0] == 3
    assert [len(cache.get(cache.key(part))) for part in parts] == [2, 2]
    assert torch.equal(cache.get(cache.key(parts[0]))[1], cache.get(cache.key(parts[1]))[0])
    assert audio_segments({"audios": []}) == []


CHILD = """
    import json, sys, time
    import torch
    sys.path[:0] = [{root!r}, {tests!r}]
    from speechbrain_emo.dataio.feature_cache import FeatureCache
    from test_feature_cache import CountingEncoder, load
    cache = FeatureCache({folder!r}, "counting@1", shard_bytes=1)
    records = json.load(open({manifest!r}))
    cache.fill(records, CountingEncoder(delay={delay}), load, max_batch_seconds=0, progress=False)
"""


def start_child(repository, tmp_path, records, delay):
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(records), encoding="utf-8")
    code = textwrap.dedent(CHILD).format(
        root=str(repository),
        tests=str(repository / "tests" / "unit"),
        folder=str(tmp_path / "cache"),
        manifest=str(manifest),
        delay=delay,
    )
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_for_shards(tmp_path, process, count):
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "cache").glob("shard-*.safetensors"))) < count:
        assert process.poll() is None, "the child ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("shards", [1, 4])
def test_killed_while_filling_and_completed(repository, tmp_path, records, shards):
    process = start_child(repository, tmp_path, records, delay=0.05)
    try:
        wait_for_shards(tmp_path, process, shards)
        with pytest.raises(RuntimeError, match="another process is filling"):
            fill(FeatureCache(tmp_path / "cache", "counting@1"), records)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    cache = FeatureCache(tmp_path / "cache", "counting@1")  # readable as it was left
    kept = [record for record in records.values() if cache.key(record) in cache]
    for record in kept:
        assert torch.equal(cache.get(cache.key(record)), expected_features(record))
    complete = len(list((tmp_path / "cache").glob("shard-*.safetensors")))
    assert shards <= complete < 12 and complete - len(kept) in (0, 1)
    count, encoder = fill(cache, records, max_batch_seconds=0)
    assert count == encoder.encoded == 12 - complete  # nothing that reached the disk is encoded again
    for record in records.values():
        assert torch.equal(cache.get(cache.key(record)), expected_features(record))
    assert not list((tmp_path / "cache").glob(".*.tmp"))


@pytest.mark.parametrize("point", ["save_file", "_synchronise", "replace", "_write_index"])
def test_stopped_at_every_step_of_a_write(tmp_path, records, monkeypatch, point):
    """The state on disk after each step is what SIGKILL at that step leaves."""
    folder = tmp_path / "cache"
    first = dict(list(records.items())[:6])
    fill(FeatureCache(folder, "counting@1"), first)

    class Killed(BaseException):
        pass

    def stop(*arguments, **options):
        if point == "save_file":
            (folder / ".shard-00001.safetensors.tmp").write_bytes(b"half of a sh")
        raise Killed

    with monkeypatch.context() as patch:
        target = {"replace": os, "_write_index": FeatureCache}.get(point, feature_cache)
        patch.setattr(target, point, stop)
        with pytest.raises(Killed):
            fill(FeatureCache(folder, "counting@1"), records)
    survivor = FeatureCache(folder, "counting@1")
    for record in first.values():
        torch.testing.assert_close(survivor.get(survivor.key(record)), expected_features(record))
    count, _ = fill(survivor, records)
    assert count == (0 if point == "_write_index" else 6)  # a renamed shard is adopted from its header
    for record in records.values():
        torch.testing.assert_close(survivor.get(survivor.key(record)), expected_features(record))


def test_an_error_of_the_encoder_keeps_what_was_encoded(tmp_path, records):
    class Failing(CountingEncoder):
        def __call__(self, waveforms, num_samples):
            if self.encoded >= 5:
                raise RuntimeError("out of memory")
            return super().__call__(waveforms, num_samples)

    cache = FeatureCache(tmp_path / "cache", "counting@1")
    with pytest.raises(RuntimeError, match="out of memory"):
        fill(cache, records, Failing(), max_batch_seconds=0)
    assert fill(cache, records)[0] == 7


def test_short_disk_is_refused_before_anything_is_written(tmp_path, records, monkeypatch, capsys):
    cache = FeatureCache(tmp_path / "cache", "counting@1")
    need = cache.estimate_bytes(sum(r["duration"] for r in records.values()), CountingEncoder())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(1.09 * need)))
    encoder = CountingEncoder()
    with pytest.raises(CacheSpaceError, match="cache: off"):
        fill(cache, records, encoder)
    assert encoder.encoded == 0 and not list((tmp_path / "cache").glob("shard-*"))
    assert f"= {need / 1000:.1f} kB" in capsys.readouterr().out
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(1.11 * need)))
    assert fill(cache, records)[0] == 12


def test_published_size():
    large = SimpleNamespace(frame_rate=50.0, num_layers=25, hidden_size=1024, dtype=torch.bfloat16)
    cache = FeatureCache("unused", "hubert")
    assert cache.estimate_bytes(1, large) == 50 * 25 * 1024 * 2  # 2.6 MB a second
    assert FeatureCache("unused", "hubert", mode="weighted").estimate_bytes(1, large) == 50 * 1024 * 2


def test_bad_files_are_listed_after_the_rest_is_cached(tmp_path, records):
    text = tmp_path / "text.wav"
    text.write_text("no audio")
    records["bad"] = {"wav": str(text), "duration": 1.0}
    records["gone"] = {"wav": str(tmp_path / "gone.wav"), "duration": 1.0}
    cache = FeatureCache(tmp_path / "cache", "counting@1")
    with pytest.raises(CacheFillError, match="2 audios.*12 others") as error:
        fill(cache, records)
    assert "text.wav" in str(error.value) and "gone.wav" in str(error.value)
    assert all(cache.key(r) in cache for name, r in records.items() if name.isdigit())


def test_read_only_folder(tmp_path, records):
    folder = tmp_path / "cache"
    fill(FeatureCache(folder, "counting@1"), records)
    files = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / ".lock").unlink()
    files.pop(folder / ".lock")
    for path in [*files, folder]:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        reader = FeatureCache(folder, "counting@1")
        for record in records.values():
            reader.get(reader.key(record))
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == files
    finally:
        folder.chmod(0o755)


def test_reading_makes_no_folder(tmp_path):
    cache = FeatureCache(tmp_path / "nothing", "counting@1")
    assert "a" * 64 not in cache and len(cache) == 0
    assert not (tmp_path / "nothing").exists()


def test_changing_features_in_place_does_not_change_the_cache(tmp_path, records):
    cache = FeatureCache(tmp_path / "cache", "counting@1")
    fill(cache, records)
    key = cache.key(records["0"])
    cache.get(key).zero_()
    assert cache.get(key).abs().sum() > 0


def test_a_reader_sees_what_is_added_later(tmp_path, records):
    reader = FeatureCache(tmp_path / "cache", "counting@1")
    key = reader.key(records["0"])
    assert key not in reader
    fill(FeatureCache(tmp_path / "cache", "counting@1"), records)
    assert key in reader


def read_all(cache, records):
    return [cache.get(cache.key(record)).sum().item() for record in records.values()]


def test_threads_and_processes(tmp_path, records):
    cache = FeatureCache(tmp_path / "cache", "counting@1", shard_bytes=1)
    fill(cache, records)
    expected = read_all(cache, records)
    results = []
    threads = [threading.Thread(target=lambda: results.append(read_all(cache, records))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(read_all, [(cache, records)] * 4) == [expected] * 4
    assert read_all(pickle.loads(pickle.dumps(cache)), records) == expected


def test_more_shards_than_open_files(tmp_path, records, monkeypatch):
    monkeypatch.setattr(feature_cache, "OPEN_SHARDS", 2)
    cache = FeatureCache(tmp_path / "cache", "counting@1", shard_bytes=1)
    fill(cache, records, max_batch_seconds=0)
    for _ in range(2):
        for record in records.values():
            assert torch.equal(cache.get(cache.key(record)), expected_features(record))
    assert len(cache._handles) == 2


def test_damage_is_named(tmp_path, records):
    folder = tmp_path / "cache"
    fill(FeatureCache(folder, "counting@1"), records)
    shard = folder / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match="shard-00000.*delete it"):
        fill(FeatureCache(folder, "counting@1"), records)
    shard.unlink()
    cache = FeatureCache(folder, "counting@1")
    with pytest.raises(FileNotFoundError, match="shard-00000"):
        cache.get(cache.key(records["0"]))
    assert fill(cache, records)[0] == 12
    (folder / "index.json").write_text("{")
    with pytest.raises(ValueError, match="index.json is no JSON"):
        FeatureCache(folder, "counting@1")
    (folder / "index.json").unlink()
    assert fill(FeatureCache(folder, "counting@1"), records)[0] == 0


def test_bad_arguments_are_named(tmp_path, records):
    with pytest.raises(ValueError, match="'off'"):
        FeatureCache(tmp_path, "x", mode="off")
    with pytest.raises(ValueError, match="must sum to 1"):
        FeatureCache(tmp_path, "x", mode="weighted", layer_weights=[1.0, 1.0])
    with pytest.raises(ValueError, match="for mode 'weighted'"):
        FeatureCache(tmp_path, "x", layer_weights=[1.0])
    with pytest.raises(ValueError, match="'counting@1' but the cache is for 'x'"):
        fill(FeatureCache(tmp_path, "x"), records)
    with pytest.raises(ValueError, match="has no duration"):
        fill(FeatureCache(tmp_path, "counting@1"), [{"wav": records["0"]["wav"]}])

"""Encoder features on disk: computed once, read back bit-identical, safe against interruption at any time.

Axes: T encoder frames, L encoder layers, D feature size.

Layout of a folder: ``shard-00000.safetensors``, ... each written once and never changed, and ``index.json``
from key to shard. A shard is written under a temporary name, synchronised and renamed; the index afterwards
in the same way. A process killed at any point leaves complete shards and a complete index, at worst an index
that lacks the last shard, which the next ``fill`` adopts from the shard's own header.
"""

import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

INDEX = "index.json"
LOCK = ".lock"
FORMAT_VERSION = 1
FREE_DISK_FACTOR = 1.1
OPEN_SHARDS = 64
MODES = ("layers", "weighted")
DATA_ROOT = "{data_root}"


class CacheSpaceError(RuntimeError):
    """The disk is too short for what the cache would write."""


class CacheFillError(RuntimeError):
    """Some audios could not be read while the cache was filled; all others are cached."""


def audio_segments(record):
    """Audios of a manifest record.

    Arguments
    ---------
    record : dict
        A record with ``audios``, or one whose own ``wav`` is its audio.

    Returns
    -------
    list of dict
        Each with ``wav``, ``duration`` and, where it has them, ``start`` and ``stop``.

    Example
    -------
    >>> audio_segments({"wav": "a.wav", "duration": 1.5, "emotion": "sad"})
    [{'wav': 'a.wav', 'duration': 1.5}]
    """
    keys = ("wav", "start", "stop", "duration")
    audios = record["audios"] if record.get("audios") is not None else [record]
    return [{key: audio[key] for key in keys if audio.get(key) is not None} for audio in audios]


class FeatureCache:
    """Features of a frozen encoder in safetensors shards, keyed by audio content, encoder and settings.

    The key of an audio is the sha256 of its file's bytes, its segment, the encoder's fingerprint and the
    settings: a changed file, model or setting never meets old features, and several settings can share one
    folder. Reading needs no write access, maps the shards into memory and is safe in threads, forked and
    spawned workers.

    Arguments
    ---------
    folder : str or Path
        Where the shards are. Created by ``fill``, not by reading.
    encoder_fingerprint : str
        ``SpeechEncoder.fingerprint``.
    settings : dict, optional
        All else that features depend on, such as the longest duration or preprocessing; any JSON values.
    mode : str
        "layers" keeps every layer the encoder returns, (T, L, D); "weighted" keeps one fixed weighted sum,
        (T, 1, D), L times smaller, for which no layer weights can be learned.
    layer_weights : Sequence of float, optional
        Weights of the sum in "weighted" mode, length L, summing to 1; None means equal weights. Part of the
        key.
    data_root : str or Path, optional
        What stands for ``{data_root}`` at the start of a path.
    shard_bytes : int
        Size at which a shard is closed; also what an interrupt can lose at most. In bytes.

    Raises
    ------
    ValueError
        If the mode is unknown, or layer weights are given in "layers" mode or do not sum to 1.

    Example
    -------
    >>> import tempfile
    >>> cache = FeatureCache(tempfile.mkdtemp(), "tiny@1", {"max_duration": 20})
    >>> key = cache.key_of_samples(torch.zeros(160), sample_rate=16000)
    >>> cache.put({key: torch.ones(3, 2, 4)})
    >>> cache.get(key).shape, key in cache
    (torch.Size([3, 2, 4]), True)
    """

    def __init__(
        self,
        folder,
        encoder_fingerprint,
        settings=None,
        mode="layers",
        layer_weights=None,
        data_root=None,
        shard_bytes=128 * 2**20,
    ):
        if mode not in MODES:
            raise ValueError(
                f"FeatureCache: mode is {mode!r}; allowed are {list(MODES)} (to encode live, use no cache)"
            )
        if layer_weights is not None:
            layer_weights = [float(weight) for weight in layer_weights]
            if mode != "weighted" or abs(sum(layer_weights) - 1.0) > 1e-4:
                raise ValueError(
                    f"FeatureCache: layer_weights of sum {sum(layer_weights):.4f} in mode {mode!r}; they are"
                    " for mode 'weighted' and must sum to 1"
                )
        self.folder = Path(folder)
        self.encoder_fingerprint = encoder_fingerprint
        self.settings = dict(settings or {})
        self.mode = mode
        self.layer_weights = layer_weights
        self.data_root = None if data_root is None else str(data_root)
        self.shard_bytes = int(shard_bytes)
        context = {
            "version": FORMAT_VERSION,
            "encoder": encoder_fingerprint,
            "settings": self.settings,
            "mode": mode,
            "layer_weights": layer_weights,
        }
        self._context = json.dumps(context, sort_keys=True)
        self._digests = {}
        self._index = {}
        self._index_stamp = None
        self._prepare_process()
        self._refresh()

    # --- keys ---

    def _key(self, content, start, stop):
        text = json.dumps([content, start, stop]) + self._context
        return hashlib.sha256(text.encode()).hexdigest()

    def resolve(self, wav):
        """Path of an audio file with ``{data_root}`` filled in.

        Arguments
        ---------
        wav : str
            Path as a manifest has it.

        Returns
        -------
        str
            The path.

        Raises
        ------
        ValueError
            If the path needs a data root and the cache has none.
        """
        wav = str(wav)
        if DATA_ROOT in wav:
            if self.data_root is None:
                raise ValueError(f"FeatureCache: {wav!r} needs a data_root, but the cache was given none")
            wav = wav.replace(DATA_ROOT, self.data_root)
        return wav

    def key(self, audio):
        """Key of an audio file or a segment of it.

        The digest of a file is kept while its size and modification time stay the same.

        Arguments
        ---------
        audio : dict
            With ``wav`` and optionally ``start`` and ``stop`` in samples: a record or one of its ``audios``.

        Returns
        -------
        str
            64 hexadecimal digits.

        Raises
        ------
        OSError
            If the file cannot be read.
        """
        path = self.resolve(audio["wav"])
        stat = os.stat(path)
        stamp = (stat.st_size, stat.st_mtime_ns)
        known = self._digests.get(path)
        if known is None or known[0] != stamp:
            digest = hashlib.sha256()
            with open(path, "rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
            known = (stamp, digest.hexdigest())
            self._digests[path] = known
        return self._key(known[1], audio.get("start"), audio.get("stop"))

    def key_of_samples(self, samples, sample_rate):
        """Key of audio that is not in a file.

        Arguments
        ---------
        samples : torch.Tensor
            Any dtype, shape (samples,).
        sample_rate : int
            In Hz.

        Returns
        -------
        str
            64 hexadecimal digits.
        """
        samples = samples.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{sample_rate}/{samples.dtype}/{tuple(samples.shape)}".encode())
        digest.update(samples.view(torch.uint8).numpy().tobytes())
        return self._key(digest.hexdigest(), None, None)

    # --- reading ---

    def _prepare_process(self):
        self._lock = threading.Lock()
        self._handles = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self):
        state = self.__dict__.copy()
        for name in ("_lock", "_handles", "_process"):
            del state[name]
        return state

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._prepare_process()

    def _refresh(self):
        """Read the index again where another process has replaced it."""
        path = self.folder / INDEX
        try:
            stat = path.stat()
            stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if stamp == self._index_stamp:
                return
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            self._index, self._index_stamp = {}, None
            return
        except json.JSONDecodeError as error:
            raise ValueError(
                f"FeatureCache: {path} is no JSON ({error}); remove it, the next fill rebuilds it from the"
                " shards"
            ) from error
        if content.get("version") != FORMAT_VERSION:
            raise ValueError(
                f"FeatureCache: {path} has version {content.get('version')!r}, this code reads"
                f" {FORMAT_VERSION}; use another cache folder"
            )
        self._index = {key: shard for shard, keys in content["shards"].items() for key in keys}
        self._index_stamp = stamp

    def __contains__(self, key):
        if key not in self._index:
            self._refresh()
        return key in self._index

    def __len__(self):
        return len(self._index)

    def _handle(self, shard):
        if self._process != os.getpid():
            # A forked worker must not share the parent's lock, which another thread may have held at the
            # fork.
            self._prepare_process()
        with self._lock:
            handle = self._handles.get(shard)
            if handle is None:
                path = self.folder / shard
                if not path.is_file():
                    raise FileNotFoundError(
                        f"FeatureCache: the shard {path} of the index is gone; run fill again to encode it"
                        " anew"
                    )
                handle = safe_open(path, framework="pt", device="cpu")
                self._handles[shard] = handle
                if len(self._handles) > OPEN_SHARDS:
                    self._handles.popitem(last=False)
            else:
                self._handles.move_to_end(shard)
            return handle

    def get(self, key):
        """Features of an audio, bit-identical to what was encoded.

        Arguments
        ---------
        key : str
            From ``key`` or ``key_of_samples``.

        Returns
        -------
        torch.Tensor
            On the CPU in the dtype of the encoder, shape (T, L, D); L is 1 in "weighted" mode. The caller's
            own copy.

        Raises
        ------
        KeyError
            If the audio is not in the cache under these settings.
        """
        if key not in self:
            raise KeyError(
                f"FeatureCache: no features for key {key[:12]}... in {self.folder} (encoder"
                f" {self.encoder_fingerprint!r}, mode {self.mode!r}, settings {self.settings}); call fill"
                " with these records first"
            )
        # The clone: safetensors may hand out the mapped memory itself, and a change in place would stay
        # there.
        return self._handle(self._index[key]).get_tensor(key).clone()

    # --- writing ---

    def put(self, features):
        """Add one shard.

        Arguments
        ---------
        features : dict of str to torch.Tensor
            Key -> features (T, L, D).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._writing():
            self._write_shard(features)

    def _writing(self):
        return _FolderLock(self.folder / LOCK)

    def _write_shard(self, features):
        if not features:
            return
        numbers = [int(path.stem.split("-")[1]) for path in self.folder.glob("shard-*.safetensors")]
        name = f"shard-{max(numbers, default=-1) + 1:05d}.safetensors"
        temporary = self.folder / f".{name}.tmp"
        save_file({key: value.contiguous() for key, value in features.items()}, temporary)
        _synchronise(temporary)
        os.replace(temporary, self.folder / name)
        _synchronise(self.folder)
        # Read again first: another run that shares the folder may have added shards.
        self._refresh()
        self._index.update(dict.fromkeys(features, name))
        self._write_index()

    def _write_index(self):
        shards = {}
        for key, shard in self._index.items():
            shards.setdefault(shard, []).append(key)
        path = self.folder / INDEX
        temporary = self.folder / f".{INDEX}.tmp"
        content = {"version": FORMAT_VERSION, "shards": dict(sorted(shards.items()))}
        temporary.write_text(json.dumps(content), encoding="utf-8")
        _synchronise(temporary)
        os.replace(temporary, path)
        _synchronise(self.folder)
        stat = path.stat()
        self._index_stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)

    def _recover(self):
        """Make the index agree with the shards after an interrupt; the shards' own headers decide."""
        for path in self.folder.glob(".*.tmp"):
            path.unlink()
        index = {}
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            try:
                with safe_open(path, framework="pt", device="cpu") as shard:
                    index.update(dict.fromkeys(shard.keys(), path.name))
            except SafetensorError as error:
                raise ValueError(
                    f"FeatureCache: the shard {path} is damaged ({error}), which an interrupt cannot cause;"
                    " delete it and run fill again to encode its audios anew"
                ) from error
        if not (self.folder / INDEX).is_file():
            self._index_stamp = None
        else:
            self._refresh()
        if index != self._index or self._index_stamp is None:
            self._index = index
            self._write_index()

    def estimate_bytes(self, seconds, encoder):
        """Size of the features of some audio.

        Arguments
        ---------
        seconds : float
            Duration in seconds.
        encoder : SpeechEncoder
            Gives ``frame_rate``, ``num_layers``, ``hidden_size`` and ``dtype``.

        Returns
        -------
        int
            seconds x frame rate x layers x size x bytes of a value.

        Example
        -------
        >>> from types import SimpleNamespace
        >>> large = SimpleNamespace(frame_rate=50.0, num_layers=25, hidden_size=1024, dtype=torch.bfloat16)
        >>> FeatureCache("cache", "hubert-large").estimate_bytes(1.0, large)
        2560000
        """
        layers = encoder.num_layers if self.mode == "layers" else 1
        width = torch.empty(0, dtype=encoder.dtype).element_size()
        return int(seconds * encoder.frame_rate * layers * encoder.hidden_size * width)

    def fill(self, records, encoder, load, device="cpu", max_batch_seconds=60.0, progress=True):
        """Encode every audio that is not in the cache yet.

        Prints the size it will take before it starts. Can be interrupted at any time and called again: what
        is in complete shards is not encoded again. One process fills a folder at a time, any number can read
        meanwhile.

        Arguments
        ---------
        records : dict or Iterable of dict
            A manifest (id -> record) or its records; each audio needs its ``duration``.
        encoder : SpeechEncoder
            On ``device``; its fingerprint must be the cache's.
        load : callable
            load(audio: dict with ``wav``, ``start``, ``stop``, ``duration``) -> float32 (samples,) at the
            encoder's rate.
        device : str
            Where to encode.
        max_batch_seconds : float
            Longest padded duration of a batch, in seconds. Audios of like duration go together; 0 encodes one
            by one.
        progress : bool
            Whether to show a progress bar.

        Returns
        -------
        int
            Audios encoded now.

        Raises
        ------
        CacheSpaceError
            If less than 1.1 times the estimated size is free; nothing is written then.
        CacheFillError
            At the end, if audios could not be read, naming each; the others are cached.
        ValueError
            If the encoder is another one than the cache's, or a duration is missing.
        """
        if encoder.fingerprint != self.encoder_fingerprint:
            raise ValueError(
                f"FeatureCache: the encoder's fingerprint is {encoder.fingerprint!r} but the cache is for"
                f" {self.encoder_fingerprint!r}; make the cache with encoder.fingerprint"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._writing():
            self._recover()
            wanted, failures = self._missing(records)
            seconds = sum(audio["duration"] for audio in wanted.values())
            self._check_space(len(wanted), seconds, encoder)
            done = self._encode(wanted, encoder, load, device, max_batch_seconds, progress, failures)
        if failures:
            listed = "\n".join(f"  {wav}: {error}" for wav, error in failures[:20])
            listed += "\n  ..." if len(failures) > 20 else ""
            raise CacheFillError(
                f"FeatureCache: {len(failures)} audios could not be read ({done} others were cached); mend"
                f" them or take them out of the manifest:\n{listed}"
            )
        return done

    def _missing(self, records):
        records = records.values() if isinstance(records, dict) else records
        wanted, failures = {}, []
        for record in records:
            for audio in audio_segments(record):
                if "duration" not in audio:
                    raise ValueError(
                        f"FeatureCache: the audio {audio.get('wav')!r} has no duration; every audio of a"
                        " manifest needs one in seconds"
                    )
                audio["wav"] = self.resolve(audio["wav"])
                try:
                    key = self.key(audio)
                except OSError as error:
                    failures.append((audio["wav"], error))
                    continue
                if key not in self._index:
                    wanted[key] = audio
        return wanted, failures

    def _check_space(self, count, seconds, encoder):
        size = self.estimate_bytes(seconds, encoder)
        free = shutil.disk_usage(self.folder).free
        print(
            f"feature cache {self.folder}: {count} audios to encode, {seconds / 3600:.2f} h x"
            f" {encoder.frame_rate:g} Hz x {encoder.num_layers if self.mode == 'layers' else 1} layers x"
            f" {encoder.hidden_size} ({str(encoder.dtype).removeprefix('torch.')}) = {_readable(size)};"
            f" {_readable(free)} free",
            flush=True,
        )
        if free < FREE_DISK_FACTOR * size:
            raise CacheSpaceError(
                f"FeatureCache: {self.folder} would need {_readable(FREE_DISK_FACTOR * size)} (10 % margin"
                f" included) but {_readable(free)} are free; encode live (cache: off), keep one layer (cache:"
                " weighted), encode in bfloat16, or choose a folder on a larger disk"
            )

    def _encode(self, wanted, encoder, load, device, max_batch_seconds, progress, failures):
        order = sorted(wanted.items(), key=lambda item: (-item[1]["duration"], item[0]))
        done, pending, size = 0, {}, 0
        bar = tqdm(total=len(order), desc="encoding", unit="audio", disable=not progress, mininterval=1.0)
        try:
            for batch in _batches(order, max_batch_seconds):
                loaded = []
                for key, audio in batch:
                    try:
                        loaded.append((key, torch.as_tensor(load(audio), dtype=torch.float32)))
                    except Exception as error:  # whatever a reader raises: listed at the end of fill
                        failures.append((audio["wav"], error))
                if loaded:
                    for (key, _), value in zip(loaded, self._features(encoder, loaded, device), strict=True):
                        pending[key] = value
                        size += value.numel() * value.element_size()
                        done += 1
                        if size >= self.shard_bytes:
                            self._write_shard(pending)
                            pending, size = {}, 0
                bar.update(len(batch))
        finally:
            # Also on an error or Ctrl-C: what was encoded is kept.
            bar.close()
            self._write_shard(pending)
        return done

    def _features(self, encoder, loaded, device):
        num_samples = torch.tensor([len(samples) for _, samples in loaded], dtype=torch.int64)
        waveforms = torch.nn.utils.rnn.pad_sequence([samples for _, samples in loaded], batch_first=True)
        output = encoder(waveforms.to(device), num_samples.to(device))
        features = output.features
        if self.mode == "weighted":
            weights = self.layer_weights or [1.0 / features.shape[2]] * features.shape[2]
            if len(weights) != features.shape[2]:
                raise ValueError(
                    f"FeatureCache: {len(weights)} layer_weights for an encoder that returns"
                    f" {features.shape[2]} layers"
                )
            weights = torch.tensor(weights, dtype=torch.float32, device=features.device)
            features = torch.einsum("ntld,l->ntd", features.float(), weights)[:, :, None].to(features.dtype)
        # Clones: a slice would keep the whole padded batch alive until its shard is written.
        return [
            row[:length].detach().cpu().clone()
            for row, length in zip(features, output.num_frames.tolist(), strict=True)
        ]


class _FolderLock:
    """Lock of one writer on a folder; the system releases it when the process dies."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.stream = open(self.path, "a")
        try:
            fcntl.flock(self.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.stream.close()
            raise RuntimeError(
                f"FeatureCache: another process is filling {self.path.parent}; wait for it, or give this run"
                " a cache folder of its own"
            ) from error

    def __exit__(self, *exception):
        self.stream.close()


def _batches(order, max_batch_seconds):
    """Cut a list that falls in duration into batches whose padded duration stays within the limit."""
    batch = []
    for item in order:
        longest = (batch[0] if batch else item)[1]["duration"]
        if batch and longest * (len(batch) + 1) > max_batch_seconds:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _synchronise(path):
    """Force a file or folder onto the disk, so that a rename never comes before the content it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _readable(size):
    """Size with a unit: powers of ten, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"

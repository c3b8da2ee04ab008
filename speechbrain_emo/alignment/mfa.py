"""Alignment with the Montreal Forced Aligner, driven as the program ``mfa`` over a whole corpus at once.

MFA: M. McAuliffe et al., "Montreal Forced Aligner: trainable text-speech alignment using Kaldi", Interspeech 2017,
https://montreal-forced-aligner.readthedocs.io. Its package on PyPI needs a Kaldi that only conda provides, so it is
not a dependency: the program is used where it is installed. Checked here against a stand-in program that verifies
files and arguments, not against MFA itself.
"""

import logging
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import soundfile

from speechbrain_emo.alignment.imported import import_textgrid
from speechbrain_emo.alignment.normalize import normalize
from speechbrain_emo.alignment.types import Alignment, AlignmentError, AlignmentItem
from speechbrain_emo.dataio.audio import AudioError, from_array

logger = logging.getLogger(__name__)

INSTALL = (
    "conda create -n mfa -c conda-forge montreal-forced-aligner, then conda activate mfa (or give the option "
    "command=PATH)"
)
_SAMPLE_RATE = 16000


class MFAAligner:
    """Align a corpus with an installed Montreal Forced Aligner (version 2 to 4).

    The recordings and their normalised texts are written into a temporary folder, one folder a speaker (MFA adapts to
    speakers), aligned by one call of ``mfa align``, and read back. MFA has no confidences: the words of this aligner
    have None, and MFA leaves out what it cannot align.

    Arguments
    ---------
    acoustic_model, dictionary : str
        Names of MFA's models (``mfa model download acoustic english_us_arpa``), or files.
    g2p_model : str, optional
        Model that pronounces words which the dictionary lacks.
    language : str
        Of the texts, for their normalisation.
    num_jobs : int
        Processes of MFA.
    beam, retry_beam : int
        Of its search.
    single_speaker : bool
        Whether all recordings are of one speaker: MFA then shares the work by utterances. Without it each recording
        is its own speaker, unless names begin with a speaker and ``/`` (``anna/01``).
    command : str
        The program, with its path where it is not on PATH (``~/miniconda3/envs/mfa/bin/mfa``).
    temporary : str, optional
        Folder in which the temporary one is made.

    Raises
    ------
    AlignmentError
        If the program is not there, with the line that installs it.

    Example
    -------
    >>> MFAAligner(command="no_such_mfa")
    Traceback (most recent call last):
    ...
    speechbrain_emo.alignment.types.AlignmentError: the program 'no_such_mfa' (Montreal Forced Aligner) is not ...
    """

    name = "mfa"

    def __init__(
        self,
        acoustic_model="english_us_arpa",
        dictionary="english_us_arpa",
        g2p_model=None,
        language="en",
        num_jobs=1,
        beam=10,
        retry_beam=40,
        single_speaker=False,
        command="mfa",
        temporary=None,
    ):
        found = shutil.which(os.path.expanduser(command))
        if found is None:
            raise AlignmentError(
                f"the program {command!r} (Montreal Forced Aligner) is not on PATH; pip cannot install it: {INSTALL}"
            )
        self.command = found
        self.acoustic_model, self.dictionary, self.g2p_model = acoustic_model, dictionary, g2p_model
        self.language = language
        self.num_jobs, self.beam, self.retry_beam = int(num_jobs), int(beam), int(retry_beam)
        self.single_speaker = bool(single_speaker)
        self.temporary = temporary

    def align(self, samples, sample_rate, text, name=None):
        """Align one utterance: the call takes about as long as one for a whole corpus, see :meth:`align_corpus`.

        Arguments
        ---------
        samples : numpy.ndarray
            float32, shape (N,), full scale 1.
        sample_rate : int
            In Hz.
        text : str
            What is said.
        name : str, optional
            For messages.

        Returns
        -------
        Alignment

        Raises
        ------
        AlignmentError
            If MFA fails, or leaves the utterance out.
        """
        item = AlignmentItem(name or "utterance", text, samples=samples, sample_rate=sample_rate)
        ((_, result),) = self.align_corpus([item])
        if isinstance(result, Exception):
            raise result
        return result

    def align_corpus(self, items):
        """Align many utterances in one call; see :class:`~speechbrain_emo.alignment.types.Aligner`.

        Arguments
        ---------
        items : iterable of AlignmentItem
            Names are unique.

        Yields
        ------
        (str, Alignment or Exception)

        Raises
        ------
        AlignmentError
            If MFA itself fails (a missing model, for example): then no item has a result.
        """
        items = list(items)
        with tempfile.TemporaryDirectory(prefix="mfa_", dir=self.temporary) as folder:
            folder = Path(folder)
            stems, faults = {}, {}
            for number, item in enumerate(items):
                try:
                    stems[number] = self._write(folder / "corpus", number, item)
                except (AlignmentError, AudioError) as error:
                    faults[number] = error
            if stems:
                self._run(folder)
            for number, item in enumerate(items):
                if number in faults:
                    yield item.name, faults[number]
                else:
                    yield item.name, self._read(folder / "aligned", *stems[number], item)

    def _write(self, corpus, number, item):
        """Recording and transcript; returns the file's path without ending below the corpus, and its duration."""
        samples, sample_rate = item.load(_SAMPLE_RATE)
        spoken = normalize(item.text, self.language)
        waveform = from_array(samples, sample_rate, _SAMPLE_RATE, name=item.name).numpy()
        # Names may hold what a file's cannot: files are numbered.
        speaker, slash, _ = item.name.rpartition("/")
        if self.single_speaker:
            speaker = "all"
        elif slash:
            speaker = re.sub(r"[^\w-]", "_", speaker)
        else:
            speaker = f"speaker_{number:06d}"
        stem = Path(speaker) / f"utterance_{number:06d}"
        (corpus / speaker).mkdir(parents=True, exist_ok=True)
        soundfile.write(corpus / f"{stem}.wav", waveform, _SAMPLE_RATE, subtype="PCM_16")
        (corpus / f"{stem}.lab").write_text(" ".join(spoken.tokens) + "\n", encoding="utf-8")
        return stem, len(waveform) / _SAMPLE_RATE

    def arguments(self, folder):
        """The command line.

        Arguments
        ---------
        folder : pathlib.Path
            Holds ``corpus``; receives ``aligned`` and ``work``.

        Returns
        -------
        list of str
        """
        options = ["--clean", "--overwrite", "--output_format", "long_textgrid"]
        options += [
            "--num_jobs",
            str(self.num_jobs),
            "--beam",
            str(self.beam),
            "--retry_beam",
            str(self.retry_beam),
        ]
        options += ["--temporary_directory", str(folder / "work")]
        if self.single_speaker:
            options.append("--single_speaker")
        if self.g2p_model:
            options += ["--g2p_model_path", str(self.g2p_model)]
        places = [
            str(folder / "corpus"),
            str(self.dictionary),
            str(self.acoustic_model),
            str(folder / "aligned"),
        ]
        return [self.command, self._subcommand(), *options, *places]

    def _subcommand(self):
        """MFA 4 keeps this command, for Kaldi models, under another name, and MFA 5 is to drop it."""
        said = subprocess.run(
            [self.command, "version"], capture_output=True, text=True, errors="replace", check=False
        )
        version = re.search(r"(\d+)\.\d+", said.stdout)
        if version is None or not 2 <= int(version[1]) <= 4:
            answer = (said.stdout + said.stderr).strip()[-200:]
            raise AlignmentError(
                f"`{self.command} version` says {answer!r}; known are versions 2 to 4 of the Montreal Forced Aligner: "
                f"{INSTALL}"
            )
        return "align" if int(version[1]) < 4 else "align_legacy"

    def _run(self, folder):
        command = self.arguments(folder)
        logger.info("running %s", " ".join(command))
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-15:]
            raise AlignmentError(
                f"mfa ended with status {done.returncode}; missing models come with `mfa model download acoustic "
                f"{self.acoustic_model}` and `mfa model download dictionary {self.dictionary}`. It said:\n"
                + "\n".join(said)
            )

    def _read(self, aligned, stem, duration, item):
        # MFA before 3 leaves the speakers' folders out where there is only one.
        paths = [aligned / f"{stem}.TextGrid", aligned / f"{stem.name}.TextGrid"]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            return AlignmentError(
                f"{item.name}: mfa left it out: its text does not fit the recording within "
                f"retry_beam={self.retry_beam}, or the recording is unusable"
            )
        try:
            found = import_textgrid(path, item.text, duration, language=self.language)
        except AlignmentError as error:
            return AlignmentError(str(error).replace(str(path), f"{item.name}: MFA's TextGrid"))
        return Alignment(found.words, found.phones, item.text, duration, self.name)

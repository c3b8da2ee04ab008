"""FastSpeech 2 with speaker, emotion and intensity: phonemes and labels to a log-mel spectrogram.

JELLY (arXiv 2501.04904, section 2.5) on FastSpeech 2 (Ren et al. 2021, arXiv 2006.04558): encoder, decoder, predictors
and post-net are those of SpeechBrain's lobe; what is added is the sum of three embeddings on the encoder's output,
pitch and energy given a phoneme, and a loss over all valid positions of a batch. Axes: B utterances, S phonemes, T mel
frames, M mel bands.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from speechbrain.lobes.models.FastSpeech2 import FastSpeech2, upsample
from speechbrain.nnet.CNN import Conv1d
from torch import nn

PADDING = 0
MAX_FRAMES_OF_PHONE = 200


@dataclass
class AcousticOutput:
    """What the acoustic model gives.

    Arguments
    ---------
    mel : torch.Tensor
        Log-mel before the post-net, float32 (B, T, M), 0 at padding.
    refined : torch.Tensor
        The same after the post-net: what is spoken.
    log_durations : torch.Tensor
        Predicted log(1 + frames) of each phoneme, float32 (B, S).
    pitch, energy : torch.Tensor
        Predicted, normalised, of each phoneme, float32 (B, S).
    num_frames : torch.Tensor
        Valid frames, int64 (B,).
    durations : torch.Tensor
        Frames that each phoneme got, given or predicted, int64 (B, S).
    """

    mel: torch.Tensor
    refined: torch.Tensor
    log_durations: torch.Tensor
    pitch: torch.Tensor
    energy: torch.Tensor
    num_frames: torch.Tensor
    durations: torch.Tensor


class EmotionalFastSpeech2(FastSpeech2):
    """Acoustic model with conditions.

    Arguments
    ---------
    num_phones : int
        Phoneme classes; 0 is padding.
    num_speakers, num_emotions, num_intensities : int
        Sizes of the conditions; a neutral line has the last index of intensities, "none".
    num_mels : int
        M.
    hidden_size, encoder_layers, decoder_layers, num_heads, filter_size : int
        Of the Transformers (256, 4, 6, 2, 1024 in the paper).
    kernel_sizes : sequence of int
        Of the two convolutions in a feed-forward block.
    dropout, predictor_dropout : float
        Of the Transformers, and of the predictors of duration, pitch and energy.
    postnet_size, postnet_layers : int
        Of the post-net.

    Example
    -------
    >>> model = EmotionalFastSpeech2(9, 2, 4, 4, num_mels=6, hidden_size=8, encoder_layers=1, decoder_layers=1,
    ...                              filter_size=8, postnet_size=8, postnet_layers=2).eval()
    >>> conditions = {name: torch.tensor([0]) for name in ("speaker", "emotion", "intensity")}
    >>> model(torch.tensor([[1, 2, 3]]), **conditions, durations=torch.tensor([[1, 2, 2]])).refined.shape
    torch.Size([1, 5, 6])
    """

    def __init__(
        self,
        num_phones,
        num_speakers,
        num_emotions,
        num_intensities,
        num_mels=80,
        hidden_size=256,
        encoder_layers=4,
        decoder_layers=6,
        num_heads=2,
        filter_size=1024,
        kernel_sizes=(9, 1),
        dropout=0.2,
        predictor_dropout=0.5,
        postnet_size=512,
        postnet_layers=5,
    ):
        size = hidden_size
        super().__init__(
            enc_num_layers=encoder_layers,
            enc_num_head=num_heads,
            enc_d_model=size,
            enc_ffn_dim=filter_size,
            enc_k_dim=size,
            enc_v_dim=size,
            enc_dropout=dropout,
            dec_num_layers=decoder_layers,
            dec_num_head=num_heads,
            dec_d_model=size,
            dec_ffn_dim=filter_size,
            dec_k_dim=size,
            dec_v_dim=size,
            dec_dropout=dropout,
            normalize_before=False,
            ffn_type="1dcnn",
            ffn_cnn_kernel_size_list=list(kernel_sizes),
            n_char=num_phones,
            n_mels=num_mels,
            postnet_embedding_dim=postnet_size,
            postnet_kernel_size=5,
            postnet_n_convolutions=postnet_layers,
            postnet_dropout=0.5,
            padding_idx=PADDING,
            dur_pred_kernel_size=3,
            pitch_pred_kernel_size=3,
            energy_pred_kernel_size=3,
            variance_predictor_dropout=predictor_dropout,
        )
        self.speaker = nn.Embedding(num_speakers, size)
        self.emotion = nn.Embedding(num_emotions, size)
        self.intensity = nn.Embedding(num_intensities, size)
        for table in (self.speaker, self.emotion, self.intensity):
            nn.init.normal_(table.weight, std=0.1)
        # The post-net ends in a norm: a small one starts near the mel that it refines.
        nn.init.constant_(self.postnet.ln3.weight, 0.1)
        self._valid = None
        for module in self.modules():
            if isinstance(module, Conv1d):
                # SpeechBrain mirrors an utterance at the end of the BATCH; here every convolution sees zeros beyond an
                # utterance's own end, so that it comes out the same in any batch.
                module.padding_mode = "constant"
                module.register_forward_pre_hook(self._without_padding)

    def _without_padding(self, convolution, args):
        mask = self._valid[:, None] if convolution.skip_transpose else self._valid[..., None]
        return (args[0] * mask, *args[1:])

    def _attend(self, transformer, x, valid, num_heads):
        """A Transformer over valid positions, bool (B, X)."""
        self._valid = valid
        padding = ~valid
        mask = padding[:, None, :].expand(-1, x.shape[1], -1).repeat_interleave(num_heads, 0)
        out, *_ = transformer(x, src_mask=mask, src_key_padding_mask=padding)
        return out * valid[..., None]

    def forward(self, phones, speaker, emotion, intensity, durations=None, pitch=None, energy=None, pace=1.0):
        """Phonemes and conditions to mel frames.

        Arguments
        ---------
        phones : torch.Tensor
            int64 (B, S), 0 at padding.
        speaker, emotion, intensity : torch.Tensor
            int64 (B,).
        durations : torch.Tensor, optional
            Mel frames of each phoneme, int64 (B, S). None: predicted, at least 1 frame for each.
        pitch, energy : torch.Tensor, optional
            Normalised, of each phoneme, float32 (B, S). None: predicted.
        pace : float
            Factor on predicted durations.

        Returns
        -------
        AcousticOutput
        """
        valid = self._valid = phones != PADDING
        x = self.encPreNet(phones)
        x = (x + self.sinusoidal_positional_embed_encoder(x)) * valid[..., None]
        x = self._attend(self.encoder, x, valid, self.enc_num_head)
        conditions = self.speaker(speaker) + self.emotion(emotion) + self.intensity(intensity)
        x = (x + conditions[:, None]) * valid[..., None]
        keep = valid[..., None]
        log_durations = self.durPred(x, keep).squeeze(-1)
        predicted_pitch = self.pitchPred(x, keep).squeeze(-1)
        predicted_energy = self.energyPred(x, keep).squeeze(-1)
        if durations is None:
            frames = torch.special.expm1(log_durations.detach()) * pace
            durations = frames.round().clamp(1, MAX_FRAMES_OF_PHONE).long() * valid
        pitch = predicted_pitch if pitch is None else pitch
        energy = predicted_energy if energy is None else energy
        x = x + self.pitchEmbed((pitch * valid)[:, None]).transpose(1, 2)
        x = (x + self.energyEmbed((energy * valid)[:, None]).transpose(1, 2)) * keep
        spread, lengths = upsample(x, durations)
        num_frames = torch.tensor(lengths, device=x.device)
        there = torch.arange(spread.shape[1], device=x.device)[None] < num_frames[:, None]
        spread = (spread + self.sinusoidal_positional_embed_decoder(spread)) * there[..., None]
        mel = self.linear(self._attend(self.decoder, spread, there, self.dec_num_head)) * there[..., None]
        refined = (mel + self.postnet(mel)) * there[..., None]
        return AcousticOutput(
            mel, refined, log_durations, predicted_pitch, predicted_energy, num_frames, durations
        )


def acoustic_loss(output, mel, phones, durations, pitch, energy):
    """Losses of a batch, each a mean over its valid positions.

    FastSpeech 2, section 2.2: mel before and after the post-net (absolute differences here; the paper's mean squares
    blur more), log durations, pitch and energy (squares).

    Arguments
    ---------
    output : AcousticOutput
        With the true durations.
    mel : torch.Tensor
        float32 (B, T, M).
    phones, durations : torch.Tensor
        int64 (B, S).
    pitch, energy : torch.Tensor
        float32 (B, S).

    Returns
    -------
    dict of str to torch.Tensor
        ``mel``, ``refined``, ``duration``, ``pitch``, ``energy``, and their sum ``loss``.

    Example
    -------
    >>> z, one = torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.long)
    >>> output = AcousticOutput(z, z, *torch.zeros(3, 1, 2), torch.tensor([2]), one)
    >>> losses = acoustic_loss(output, z + 1, one, one, torch.zeros(1, 2), torch.zeros(1, 2))
    >>> round(float(losses["mel"]), 3), round(float(losses["duration"]), 3)
    (1.0, 0.48)
    """
    valid = phones != PADDING
    there = torch.arange(mel.shape[1], device=mel.device)[None] < output.num_frames[:, None]
    losses = {
        "mel": F.l1_loss(output.mel[there], mel[there]),
        "refined": F.l1_loss(output.refined[there], mel[there]),
        "duration": F.mse_loss(output.log_durations[valid], torch.log1p(durations[valid].float())),
        "pitch": F.mse_loss(output.pitch[valid], pitch[valid]),
        "energy": F.mse_loss(output.energy[valid], energy[valid]),
    }
    losses["loss"] = sum(losses.values())
    return losses

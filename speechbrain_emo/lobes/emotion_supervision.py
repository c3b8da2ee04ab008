"""What a speech-token language model is trained on beside its tokens: the emotion of every word.

"Emo-FiLM" (arXiv 2509.20378) adds lambda times a cross-entropy of the emotion, read from the modulated text. A rebuild
found that this is satisfied by the modulation alone and leaves the sound as it was. Four ways, chosen by name:

- ``text``: the paper's; a linear layer reads the modulated text embeddings.
- ``speech``: it reads the states behind the language model that predict a word's speech tokens.
- ``predicted``: a frozen classifier, trained on true tokens before, reads the PREDICTED tokens: their distribution, or
  their most probable token with the gradient of the distribution (straight-through). What the modulation writes into
  the text cannot satisfy it, only other tokens can.
- ``none``.

Open in the paper: one decision a token or one a word (``granularity``). Axis letters: B batch, S text tokens, T speech
tokens, V vocabulary, W words, D embedding, K emotions.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_emo.lobes.fsq import FSQ
from speechbrain_emo.lobes.stored import load_stored, save_stored

SUPERVISIONS = ("text", "speech", "predicted", "none")
GRANULARITIES = ("step", "word")
PREDICTIONS = ("soft", "straight_through")
IGNORE = -100


def pool_words(states, words, num_words):
    """Mean over the tokens of each word.

    Arguments
    ---------
    states : torch.Tensor
        (B, T, D).
    words : torch.Tensor
        int64 (B, T): word of each token, -1 for none.
    num_words : int
        W.

    Returns
    -------
    tuple of torch.Tensor
        (B, W, D), zero for words without a token; bool (B, W): which have one.

    Example
    -------
    >>> means, there = pool_words(torch.tensor([[[1.0], [3.0], [5.0]]]), torch.tensor([[0, 0, -1]]), 2)
    >>> means.tolist(), there.tolist()
    ([[[2.0], [0.0]]], [[True, False]])
    """
    chosen = F.one_hot(words + 1, num_words + 1)[..., 1:].to(states.dtype)
    counts = chosen.sum(1)
    sums = chosen.transpose(1, 2) @ states
    return sums / counts.clamp(min=1)[..., None], counts > 0


class TokenEmotionClassifier(nn.Module):
    """Emotion of words from their speech tokens, or from distributions over tokens.

    Arguments
    ---------
    vocab_size : int
        V.
    num_emotions : int
        K.
    size : int
        D of its own embedding of tokens.
    kernel : int
        Tokens that a state sees, odd; two layers.
    dropout : float
        On the embeddings and before the last layer.
    levels : sequence of int, optional
        Of the quantiser that made the tokens (:class:`FSQ`): embeddings come from the level in each dimension, so that
        rare tokens learn from common ones. Without it every token has a row of its own.

    Raises
    ------
    ValueError
        If the kernel is even, or the levels make another number of tokens.

    Example
    -------
    >>> classifier = TokenEmotionClassifier(27, 4, 8, levels=[3, 3, 3]).eval()
    >>> tokens, words = torch.randint(0, 27, (1, 6)), torch.tensor([[0, 0, 0, 1, 1, -1]])
    >>> hard = classifier(tokens, torch.tensor([6]), words, 2)
    >>> soft = classifier(F.one_hot(tokens, 27).float(), torch.tensor([6]), words, 2)
    >>> hard.shape, torch.allclose(hard, soft, atol=1e-5)
    (torch.Size([1, 2, 4]), True)
    """

    def __init__(self, vocab_size, num_emotions, size=64, kernel=5, dropout=0.1, levels=None):
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel is {kernel}; it must be odd")
        if levels is not None and math.prod(levels) != vocab_size:
            raise ValueError(f"levels {list(levels)} make {math.prod(levels)} tokens, not {vocab_size}")
        self.arguments = {
            "vocab_size": int(vocab_size),
            "num_emotions": int(num_emotions),
            "size": int(size),
            "kernel": int(kernel),
            "dropout": float(dropout),
            "levels": None if levels is None else [int(level) for level in levels],
        }
        self.vocab_size, self.num_emotions = int(vocab_size), int(num_emotions)
        if levels is None:
            self.embedding = nn.Embedding(vocab_size, size)
        else:
            self.register_buffer("levels", FSQ(levels).level_table(), persistent=False)
            self.embedding = nn.Sequential(
                nn.Linear(self.levels.shape[1], 2 * size), nn.GELU(), nn.Linear(2 * size, size)
            )
        self.convolutions = nn.ModuleList(
            nn.Conv1d(size, size, kernel, padding=kernel // 2) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(size, num_emotions)

    def table(self):
        """Embeddings of all tokens, (V, D)."""
        return self.embedding.weight if self.arguments["levels"] is None else self.embedding(self.levels)

    def forward(self, tokens, lengths, words, num_words):
        """Logits of words.

        Arguments
        ---------
        tokens : torch.Tensor
            int64 (B, T), or float (B, T, V): a distribution at each position.
        lengths : torch.Tensor
            int64 (B,).
        words : torch.Tensor
            int64 (B, T): word of each token, -1 for none.
        num_words : int
            W.

        Returns
        -------
        torch.Tensor
            (B, W, K); of words without a token those of a zero state.
        """
        table = self.table()
        x = tokens @ table if tokens.is_floating_point() else F.embedding(tokens, table)
        valid = (torch.arange(x.shape[1], device=x.device)[None] < lengths[:, None])[..., None]
        x = self.dropout(x)
        for convolution, norm in zip(self.convolutions, self.norms):
            x = x * valid
            x = x + F.gelu(convolution(norm(x).mul(valid).transpose(1, 2))).transpose(1, 2)
        means, _ = pool_words(x * valid, words, num_words)
        return self.head(self.dropout(means))

    def save(self, folder):
        """Write the folder that :func:`load_token_classifier` reads."""
        save_stored(self, folder, "token_emotion", self.arguments)


def load_token_classifier(folder):
    """A classifier that :meth:`TokenEmotionClassifier.save` wrote, in eval mode."""
    return load_stored(folder, {"token_emotion": TokenEmotionClassifier})


@dataclass
class TokenLoss:
    """Sums of a batch; a Brain divides them by the counts of the whole step.

    Arguments
    ---------
    token_sum : torch.Tensor
        Cross-entropy of speech tokens, end and fill.
    num_tokens, num_correct : int
        How many there are, and how many have the highest score.
    emotion_sum : torch.Tensor
        Cross-entropy of the emotion.
    num_emotions, num_correct_emotions : int
        Decisions (tokens or words) with a label, and how many are right.
    """

    token_sum: torch.Tensor
    num_tokens: int
    num_correct: int
    emotion_sum: torch.Tensor
    num_emotions: int
    num_correct_emotions: int


class TokenObjective(nn.Module):
    """A speech-token language model with its losses: one module with one forward.

    Arguments
    ---------
    lm : SpeechTokenLM
        The model.
    supervision : str
        See the head of this file.
    granularity : str
        ``word``: one decision a word, on the mean over its tokens; ``step``: one a token. ``predicted`` is by word.
    prediction : str
        ``soft`` or ``straight_through``, for ``predicted``.
    classifier : TokenEmotionClassifier, optional
        Frozen; needed for ``predicted``.
    label_smoothing : float
        Of the token cross-entropy.

    Raises
    ------
    ValueError
        If a name is unknown, or a classifier is missing or does not fit.
    """

    def __init__(
        self,
        lm,
        supervision="speech",
        granularity="word",
        prediction="soft",
        classifier=None,
        label_smoothing=0.0,
    ):
        super().__init__()
        for name, value, allowed in (
            ("supervision", supervision, SUPERVISIONS),
            ("granularity", granularity, GRANULARITIES),
            ("prediction", prediction, PREDICTIONS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}; it lies in [0, 1)")
        self.lm, self.supervision, self.granularity = lm, supervision, granularity
        self.prediction, self.label_smoothing = prediction, float(label_smoothing)
        self.emotion_head = nn.Linear(lm.size, lm.num_emotions) if supervision in ("text", "speech") else None
        self.classifier = None
        if supervision == "predicted":
            if classifier is None:
                raise ValueError("supervision predicted needs a classifier that was trained on true tokens")
            if (classifier.vocab_size, classifier.num_emotions) != (lm.num_speech_tokens, lm.num_emotions):
                raise ValueError(
                    f"the classifier knows {classifier.vocab_size} tokens and {classifier.num_emotions} emotions, the "
                    f"language model {lm.num_speech_tokens} and {lm.num_emotions}"
                )
            self.classifier = classifier
        self.trainable_names = ()

    def groups(self):
        """What a phase may train: name -> list of modules. The classifier never does."""
        groups = dict(self.lm.trainable_groups())
        if self.emotion_head is not None:
            groups["emotion_head"] = [self.emotion_head]
        return groups

    def set_trainable(self, names):
        """Let the named groups train and freeze all else; ``emotion_head`` is ignored where there is none.

        Raises
        ------
        ValueError
            If a name is unknown.
        """
        groups = self.groups()
        optional = {"emotion_head", "film"}
        unknown = [name for name in names if name not in groups and name not in optional]
        if unknown:
            raise ValueError(f"unknown groups {unknown} to train; this model has {sorted(groups)}")
        self.trainable_names = tuple(name for name in names if name in groups)
        self.requires_grad_(False)
        for name in self.trainable_names:
            for module in groups[name]:
                module.requires_grad_(True)
        for parameter in self.parameters():
            if not parameter.requires_grad:
                parameter.grad = None
        self.train(self.training)

    def train(self, mode=True):
        """Training mode for the trainable groups only."""
        super().train(False)
        self.training = mode
        if mode:
            groups = self.groups()
            for name in self.trainable_names:
                for module in groups[name]:
                    module.train(True)
        return self

    def forward(self, batch):
        """Sums of the losses of a batch.

        Arguments
        ---------
        batch : TokenBatch
            On the model's device.

        Returns
        -------
        TokenLoss
        """
        output = self.lm(batch)
        logits = output.logits.float()
        smoothing = self.label_smoothing if self.training else 0.0
        tokens = F.cross_entropy(logits, output.targets, reduction="sum", label_smoothing=smoothing)
        emotion, labels = self._emotion_logits(batch, output)
        if emotion is None:
            return TokenLoss(
                tokens, len(logits), _correct(logits, output.targets), tokens.new_zeros(()), 0, 0
            )
        return TokenLoss(
            tokens,
            len(logits),
            _correct(logits, output.targets),
            F.cross_entropy(emotion.float(), labels, reduction="sum", ignore_index=IGNORE),
            int((labels != IGNORE).sum()),
            _correct(emotion, labels),
        )

    def _emotion_logits(self, batch, output):
        """(logits (N, K), labels (N,)) of all decisions; (None, None) without supervision."""
        if self.supervision == "none":
            return None, None
        num_words = batch.word_labels.shape[1]
        if self.supervision == "predicted":
            distribution = self.predicted_tokens(output.speech_logits())
            logits = self.classifier(distribution, batch.speech_lengths, batch.speech_words, num_words)
            _, there = pool_words(
                logits.new_zeros(*batch.speech_words.shape, 1), batch.speech_words, num_words
            )
        else:
            on_text = self.supervision == "text"
            states = output.text if on_text else output.states
            words = batch.text_words if on_text else batch.speech_words
            if self.granularity == "step":
                known = torch.where(words >= 0, batch.word_labels.gather(1, words.clamp(min=0)), IGNORE)
                return self.emotion_head(states).flatten(0, 1), known.flatten()
            means, there = pool_words(states, words, num_words)
            logits = self.emotion_head(means)
        labels = torch.where(there, batch.word_labels, IGNORE)
        return logits.flatten(0, 1), labels.flatten()

    def predicted_tokens(self, speech_logits):
        """Distributions (B, T, V) over speech tokens that the classifier reads."""
        soft = speech_logits.float().softmax(-1)
        if self.prediction == "soft":
            return soft
        hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
        return hard + soft - soft.detach()


def _correct(logits, labels):
    known = labels != IGNORE
    return int((logits.argmax(-1) == labels)[known].sum())

"""The next line's emotion without a language model: a GRU over the emotion embeddings of the history.

A baseline for JELLY (arXiv 2501.04904): what a recurrent network makes of the same emotion embeddings. Axis letters: B
dialogues, U utterances of history, F features of an utterance, K labels.
"""

import torch
from torch import nn


class HistoryGRU(nn.Module):
    """Gated recurrent units over utterances, the last state to label scores.

    Arguments
    ---------
    input_size : int
        F; one more feature says whether the next line's speaker said it.
    hidden_size : int
        State size.
    num_labels : int
        K.

    Example
    -------
    >>> model = HistoryGRU(6, 8, 3)
    >>> model([torch.randn(4, 6), torch.randn(1, 6)], [torch.tensor([0., 1., 0., 1.]), torch.zeros(1)]).shape
    torch.Size([2, 3])
    """

    def __init__(self, input_size, hidden_size, num_labels):
        super().__init__()
        self.norm = nn.LayerNorm(input_size)
        self.gru = nn.GRU(input_size + 1, hidden_size, batch_first=True)
        self.output = nn.Linear(hidden_size, num_labels)

    def forward(self, histories, same_speaker):
        """Label scores of the next lines.

        Arguments
        ---------
        histories : sequence of torch.Tensor
            float32 (U, F) of each dialogue, U at least 1.
        same_speaker : sequence of torch.Tensor
            float32 (U,): 1 where the next line's speaker said it.

        Returns
        -------
        torch.Tensor
            float32 (B, K).
        """
        lengths = torch.tensor([len(h) for h in histories])
        rows = [
            torch.cat([self.norm(h), same[:, None]], 1)
            for h, same in zip(histories, same_speaker, strict=True)
        ]
        packed = nn.utils.rnn.pack_padded_sequence(
            nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths, batch_first=True, enforce_sorted=False
        )
        return self.output(self.gru(packed)[1][0])

"""Recurrent decoders: features of a picture + the words so far -> the next word.

* `rnn` (Karpathy and Fei-Fei 2015): a tanh RNN that starts from the pooled features.
* `lstm` (Vinyals et al. 2015, "Show and Tell"): an LSTM in its place.
* `attention` (Xu et al. 2015, "Show, Attend and Tell", soft attention): an LSTM that looks at a weighted mean of the
  grid's cells before each word.

Unlike in the papers, `rnn` and `lstm` see the pooled features at every word, not at the first alone: with some hundred
photos the decoder otherwise learns to ignore the picture, and says the same of all (measured).

Embeddings and output layer share their weights (Press and Wolf 2017), which saves half of the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import linear

from pipeline.models.cnn.configuration import CnnCaptionerConfig

State = tuple[torch.Tensor, ...]  # hidden and, for an LSTM, cell state, `(captions, hidden_size)` each


@dataclass(frozen=True)
class Memory:
    """What a decoder knows of pictures, one row per picture or per caption.

    Attributes:
        pooled: the projected mean of the cells, `(rows, image_width)`.
        grid: the projected cells, `(rows, cells, image_width)`; None without attention.
        keys: the cells as attention compares them, `(rows, cells, attention_size)`; None without attention.
    """

    pooled: torch.Tensor
    grid: torch.Tensor | None
    keys: torch.Tensor | None

    def of(self, picture_of: torch.Tensor) -> Memory:
        """Return the rows of each caption's picture."""
        # `index_select` and not `[]`: its backward pass is much faster with deterministic algorithms.
        return Memory(
            self.pooled.index_select(0, picture_of),
            None if self.grid is None else self.grid.index_select(0, picture_of),
            None if self.keys is None else self.keys.index_select(0, picture_of),
        )


class Decoder(nn.Module):
    """A word embedding, a recurrent cell with or without attention, and an output layer."""

    def __init__(self, config: CnnCaptionerConfig, features: int) -> None:
        super().__init__()
        words, hidden, image = config.embedding_size, config.hidden_size, config.image_width
        self.attends = config.decoder_type == "attention"
        self.words = nn.Embedding(config.vocab_size, words)
        # N(0, 1), torch's default, would make the shared output layer start with huge logits.
        nn.init.normal_(self.words.weight, std=words**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.image = nn.Sequential(nn.Linear(features, image), nn.LayerNorm(image))
        self.cell: nn.RNNCell | nn.LSTMCell
        kind = nn.RNNCell if config.decoder_type == "rnn" else nn.LSTMCell
        self.cell = kind(words + image, hidden)
        self.states = 1 if config.decoder_type == "rnn" else 2
        self.first = nn.Linear(image, self.states * hidden)
        if self.attends:
            self.keys = nn.Linear(image, config.attention_size)
            self.queries = nn.Linear(hidden, config.attention_size)
            self.relevance = nn.Linear(config.attention_size, 1, bias=False)
            self.gate = nn.Linear(hidden, image)
        self.output = nn.Linear(hidden + image, words)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def look(self, features: torch.Tensor) -> Memory:
        """Return the memory of pictures from their features, `(pictures, cells, features)`."""
        pooled = self.image(self.dropout(features.mean(dim=1)))
        if not self.attends:
            return Memory(pooled, None, None)
        grid = self.image(self.dropout(features))
        return Memory(pooled, grid, self.keys(grid))

    def start(self, memory: Memory) -> State:
        """Return the state before the first word."""
        states: State = torch.tanh(self.first(memory.pooled)).chunk(self.states, dim=1)
        return states

    def step(self, word: torch.Tensor, state: State, memory: Memory) -> tuple[torch.Tensor, State, torch.Tensor | None]:
        """Read a word.

        Args:
            word: its embedding, `(captions, embedding_size)`.
            state: before the word.
            memory: one row per caption.

        Returns:
            The input of the output layer, the new state, and the attention, `(captions, cells)`, which sums to 1; None
            without attention.
        """
        context, attention = memory.pooled, None
        if memory.grid is not None and memory.keys is not None:
            scores = self.relevance(torch.tanh(memory.keys + self.queries(state[0])[:, None]))[..., 0]
            attention = scores.softmax(dim=1)
            context = torch.bmm(attention[:, None], memory.grid)[:, 0] * torch.sigmoid(self.gate(state[0]))
        state = self._next(torch.cat([word, context], dim=1), state)
        return torch.cat([state[0], context], dim=1), state, attention

    def _next(self, seen: torch.Tensor, state: State) -> State:
        found = self.cell(seen, state if self.states == 2 else state[0])
        return tuple(found) if self.states == 2 else (found,)

    def read(self, input_ids: torch.Tensor, memory: Memory) -> torch.Tensor:
        """Return the input of the output layer after each word of captions, `(captions, length, ...)`.

        Args:
            input_ids: `(captions, length)`.
            memory: one row per caption.
        """
        return torch.stack([output for output, _ in self._steps(input_ids, memory)], dim=1)

    def attention(self, input_ids: torch.Tensor, memory: Memory) -> torch.Tensor:
        """Return the attention after each word of captions, `(captions, length, cells)`: the next word follows from it.

        The decoder must attend.
        """
        found = [attention for _, attention in self._steps(input_ids, memory) if attention is not None]
        return torch.stack(found, dim=1)

    def _steps(self, input_ids: torch.Tensor, memory: Memory) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yield the input of the output layer and the attention after each word."""
        words, state = self.dropout(self.words(input_ids)), self.start(memory)
        for word in words.unbind(dim=1):
            output, state, attention = self.step(word, state, memory)
            yield output, attention

    def logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next word, `(..., vocab_size)`."""
        hidden = torch.tanh(self.output(self.dropout(outputs)))
        return linear(self.dropout(hidden), self.words.weight, self.bias)

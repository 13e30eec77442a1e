"""All captions of a picture in one row without padding, so that they share the picture's tokens in training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.attention.bias import causal_lower_right


@dataclass(frozen=True)
class Packing:
    """The layout of captions in rows, one row per picture.

    Attributes:
        is_packed: `(captions, length)`, the tokens that are part of the rows.
        destination: for each of these tokens, its index in the flattened rows.
        positions: `(pictures, width)`, the position of each token within its caption.
        caption_of: `(pictures, width)`, the index of each token's caption; -1 after the end of a row.
        one_each: whether each row has one caption.
    """

    is_packed: torch.Tensor
    destination: torch.Tensor
    positions: torch.Tensor
    caption_of: torch.Tensor
    one_each: bool

    def pack(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens `(captions, length)` as rows `(pictures, width)`."""
        flat = torch.zeros_like(self.positions).flatten()
        return flat.index_copy(0, self.destination, tokens[self.is_packed]).view_as(self.positions)

    def unpack(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return rows `(pictures, width, hidden)` as `(tokens, hidden)`, in the order of the captions."""
        return hidden.flatten(0, 1)[self.destination]

    def mask(self, image_tokens: int, dtype: torch.dtype, is_dense: bool) -> torch.Tensor:
        """Return the attention mask, `(pictures, 1, width, image_tokens + width)`: 0 or -inf.

        A token attends to its picture, and to its own caption up to itself.

        Args:
            image_tokens: of a picture.
            dtype: of the mask.
            is_dense: whether the mask must be such a tensor. If not, and if no row has several captions, it is torch's
                `CausalBias`, which does not keep a GPU from flash attention: what follows the end of a caption is of no
                interest, so all rows have the same mask.
        """
        if self.one_each and not is_dense:
            width = self.positions.shape[1]
            return causal_lower_right(width, image_tokens + width)  # type: ignore[no-any-return,no-untyped-call]
        same = self.caption_of[:, :, None] == self.caption_of[:, None, :]
        earlier = self.positions[:, :, None] >= self.positions[:, None, :]
        text = torch.zeros_like(same, dtype=dtype).masked_fill(~(same & earlier), float("-inf"))
        return torch.nn.functional.pad(text, (image_tokens, 0))[:, None]


def packing_of(is_packed: torch.Tensor, picture_of: torch.Tensor, pictures: int) -> Packing:
    """Return the layout of captions in rows.

    Args:
        is_packed: `(captions, length)`, the tokens to pack: a prefix of each caption.
        picture_of: `(captions,)`, the index of each caption's picture.
        pictures: number of pictures.
    """
    device = is_packed.device
    lengths = is_packed.sum(dim=1)
    order = torch.argsort(picture_of, stable=True)
    tokens_before = torch.empty_like(lengths)
    tokens_before[order] = lengths[order].cumsum(0) - lengths[order]
    row_lengths = torch.zeros(pictures, dtype=lengths.dtype, device=lengths.device).index_add(0, picture_of, lengths)
    row_starts = row_lengths.cumsum(0) - row_lengths
    each = torch.arange(pictures, device=device)
    one_each = len(picture_of) == pictures and torch.equal(picture_of[order], each)
    width = int(row_lengths.max())
    first = picture_of * width + tokens_before - row_starts[picture_of]
    position = torch.arange(is_packed.shape[1], device=device).expand_as(is_packed)
    destination = (first[:, None] + position)[is_packed]
    size = (pictures, width)
    positions = torch.zeros(size, dtype=torch.long, device=device).flatten()
    caption_of = torch.full(size, -1, device=device).flatten()
    caption = torch.arange(len(is_packed), device=device)[:, None].expand_as(is_packed)
    return Packing(
        is_packed=is_packed,
        destination=destination,
        positions=positions.index_copy(0, destination, position[is_packed]).view(size),
        caption_of=caption_of.index_copy(0, destination, caption[is_packed]).view(size),
        one_each=one_each,
    )

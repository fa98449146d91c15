"""Splicing visual tokens into embedded prompts.

The caller keeps prompts and visual tokens in the same order; nothing here matches them to media.
"""

from __future__ import annotations

from torch import Tensor


def fill_slots(embeds: Tensor, slots: Tensor, visual: Tensor) -> Tensor:
    """Write the visual tokens, in order, into the slots of the prompts.

    Args:
        embeds: float [B, S, L] or [S, L], the embedded prompts; not changed.
        slots: bool [B, S] or [S], True where a visual token belongs.
        visual: float [V, L], the tokens of all prompts, concatenated.

    Returns:
        A tensor like `embeds` with the slots filled; gradients flow to `visual`.

    Raises:
        ValueError: the number of slots is not V, or widths or shapes do not match. An extra visual token is as bad as
            a missing one: a later answer would be about the wrong video.
    """
    if slots.shape != embeds.shape[:-1]:
        raise ValueError(
            f"slots must have the shape {tuple(embeds.shape[:-1])} of the prompts, got {tuple(slots.shape)}"
        )
    if visual.ndim != 2 or visual.shape[1] != embeds.shape[-1]:
        raise ValueError(f"visual tokens must be [V, {embeds.shape[-1]}], got {tuple(visual.shape)}")
    if (n := int(slots.sum())) != len(visual):
        raise ValueError(f"{n} slots in the prompts but {len(visual)} visual tokens")
    if not n and not visual.requires_grad:
        return embeds
    out = embeds.clone()
    out[slots] = visual.to(embeds.dtype)
    return out

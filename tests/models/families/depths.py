"""What a family with several codes a position must do beyond the rest of the suite."""

import torch

from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.policy import UnifiedPolicy
from limner.models.tokens.sequence import collate
from limner.worlds.picture_stories.scenes import SCENES, draw_scene


@torch.no_grad()
def check_depth(policy: UnifiedPolicy) -> None:
    """Drawn one by one, the codes of a position have the scores of all at once; a code tells of those behind it, and of
    no others; and a given picture is to the model what a generated one of the same codes is."""
    vocabulary = policy.vocabulary
    if vocabulary.depth == 1:
        return
    picture = draw_scene(SCENES[9])
    generated = ImageSegment(picture, trainable=True, origin="generated")
    texts = TextSegment("Fold"), TextSegment("Then wait.", trainable=True)
    sequence = policy.processor.encode(InterleavedDocument((texts[0], generated, texts[1])))
    batch = collate([[sequence]], vocabulary)
    (hidden,) = policy.hidden(batch.ids_BT, batch.positions_BT, batch.mask_BTT(), None)
    at = sequence.ids_T >= vocabulary.text_size
    states, codes = hidden[:-1][at[1:]], vocabulary.codes_of(sequence.ids_T[at])
    assert torch.equal(vocabulary.ids_of(codes), sequence.ids_T[at]) and codes.shape == vocabulary.code_shape
    before = codes[:, :-1]
    together = policy.guided_image_logits(policy.depth_states(states, before))
    assert together.shape == (*codes.shape, vocabulary.image_codes)
    for depth in range(vocabulary.depth):
        alone = policy.guided_image_logits(policy.depth_states(states, before[:, :depth])[:, -1])
        assert (alone - together[:, depth]).abs().max() < 1e-4
    for depth in range(vocabulary.depth - 1):
        other = before.clone()
        other[:, depth] = (other[:, depth] + 1) % vocabulary.image_codes
        changed = (policy.guided_image_logits(policy.depth_states(states, other)) - together).abs().amax((0, 2))
        assert (changed[: depth + 1] < 1e-5).all() and (changed[depth + 1 :] > 1e-3).all(), changed
    if not vocabulary.features:
        given = ImageSegment(None, codes_N=codes.numpy())
        prompt = policy.processor.encode(InterleavedDocument((given,)))
        slot, own = prompt.slots[0], sequence.slots[0]
        assert torch.equal(prompt.ids_T[slot.start : slot.stop], sequence.ids_T[own.start : own.stop])

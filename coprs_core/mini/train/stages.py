"""What each stage of the miniature's training learns: from a batch to a loss and the scores worth
watching.

`eyes`      the vision tower writes the oracle's code of every cell into its visual tokens
`focus`     image encoder, prior and decoder find the object that an oracle query describes
`language`  the language model reads oracle tokens, thinks, and ends in an oracle query
`joint`     the whole chain: language loss on the reply, segmentation loss on prior and mask
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from coprs_core.geometry import to_sam_frames, unpadded_size
from coprs_core.mini.train import oracle
from coprs_core.mini.train.data import Batch, PackedQuestions
from coprs_core.mini.train.recipe import Recipe
from coprs_core.mini.world.drawings import COLOURS
from coprs_core.mini.world.kinds import KINDS
from coprs_core.model.coprs import CoPRS
from coprs_core.training.losses import segmentation_loss


def _branch_attention(
    module, query, key, value, attention_mask, scaling, dropout=0.0, **_
) -> tuple[Tensor, None]:
    """Attention of [B, heads, L, d] → [B, L, heads, d], where `attention_mask` holds the lengths of
    the parts of a `PackedQuestions` row: each sees the first one and what of itself comes before.
    None: all see all."""
    if attention_mask is None:
        mixed = _attend(query, key, value, scaling)
    else:
        first, *others = zip(*(t.split(attention_mask, 2) for t in (query, key, value)))
        seen = [_attend(*first, scaling, is_causal=True)]
        for q, k, v in others:
            both = torch.cat([first[1], k], 2), torch.cat([first[2], v], 2)
            seen.append(_attend(q, *both, scaling, is_causal=True))
        mixed = torch.cat(seen, 2)
    return mixed.transpose(1, 2).contiguous(), None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, is_causal: bool = False
) -> Tensor:
    """Where it is causal the queries are the last of the keys. In bfloat16 a CPU takes plain
    products: over whole rows a step took 0.63 s with them and 1.0 s the library's way."""
    mask, (words, length) = None, (query.shape[2], key.shape[2])
    if is_causal:
        mask = query.new_ones(words, length, dtype=torch.bool).tril(length - words)
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, mask, scale=scaling)
    scores = (query * scaling) @ key.mT
    scores = scores if mask is None else scores.masked_fill(~mask, -1e4)
    with torch.autocast(query.device.type, enabled=False):
        shares = scores.softmax(-1).to(value.dtype)
    return shares @ value


AttentionInterface.register("parts", _branch_attention)


class Scaffold(nn.Module):
    """The model in training with what only training needs: the oracle's frames and two read-out
    heads."""

    image_frame: Tensor
    query_frame: Tensor
    colours: Tensor
    misread = 1 / 12
    query_weight, recall_weight = 0.3, 0.15
    """Of what the oracle teaches the language model beside the words."""

    def __init__(self, recipe: Recipe, model: CoPRS, tokenizer):
        super().__init__()
        self.recipe, self.model = recipe, model
        image_frame, query_frame = oracle.orthogonal_frames(model.config.llm_width)
        self.register_buffer("image_frame", image_frame)
        self.register_buffer("query_frame", query_frame)
        colours = tokenizer.convert_tokens_to_ids([f"Ġ{colour}" for colour in COLOURS])
        self.register_buffer("colours", torch.tensor(colours))
        self.encoder_reader = nn.Conv2d(model.config.vision.channels, oracle.NUM_CELL_FEATURES, 1)
        self.word_reader = nn.Linear(model.config.llm_width, oracle.NUM_OBJECT_FEATURES)
        self._positions: dict[tuple[int, int], Tensor] = {}

    @property
    def device(self) -> torch.device:
        return self.image_frame.device

    def parts(self, stage: str) -> dict[str, nn.Module]:
        """The modules that a stage trains, by name."""
        m = self.model
        eyes = {"tower": m.mllm.model.visual}
        focus = {
            "image_encoder": m.image_encoder,
            "prior": m.prior,
            "decoder": m.decoder,
            "encoder_reader": self.encoder_reader,
        }
        language = {"language_model": m.mllm.model.language_model, "word_reader": self.word_reader}
        return {
            "eyes": eyes,
            "focus": focus,
            "language": language,
            "joint": eyes | focus | language,
        }[stage]

    def loss(self, stage: str, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        return {
            "eyes": self.eyes_loss,
            "focus": self.focus_stage_loss,
            "language": self.language_stage_loss,
            "joint": self.joint_loss,
        }[stage](batch)

    # --- stages

    def eyes_loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        error, kinds = oracle.cell_losses(
            self.visual_tokens(batch), batch.tower_cells.to(self.device), self.image_frame
        )
        return error + kinds, {"error": error.item(), "class": kinds.item()}

    def focus_stage_loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        features = torch.stack(
            [_noisy_query(oracle.object_features(t)) for _, t in batch.targets]
        ).to(self.device)
        embedding = self.image_embeddings(batch)
        read = self.cell_loss(embedding, batch)
        segmentation, scores = self.focus_loss(features @ self.query_frame.T, embedding, batch)
        return read + segmentation, {"cells": read.item()} | scores

    def language_stage_loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        cells = _corrupt_cells(batch.tower_cells).to(self.device)
        loss, scores, _ = self.reply_loss(batch.packed, cells @ self.image_frame.T)
        return loss, scores

    def joint_loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        visual, embedding = self.visual_tokens(batch), self.image_embeddings(batch)
        error, kinds = oracle.cell_losses(
            visual, batch.tower_cells.to(self.device), self.image_frame
        )
        read = self.cell_loss(embedding, batch)
        language, scores, focus_embedding = self.reply_loss(batch.packed, visual)
        if not len(focus_embedding):
            return language + 0.5 * (error + kinds) + 0.5 * read, scores
        segmentation, masks = self.focus_loss(focus_embedding, embedding, batch)
        return language + segmentation + 0.5 * (error + kinds) + 0.5 * read, scores | masks | {
            "eyes": error.item()
        }

    # --- the boxes on a batch

    def visual_tokens(self, batch: Batch) -> Tensor:
        """Visual tokens [B, N, D]."""
        count, (rows, columns) = batch.count, batch.grid
        grid = torch.tensor([[1, 2 * rows, 2 * columns]] * count, device=self.device)
        features = self.model.mllm.model.visual(
            batch.pixel_values.to(self.device), grid_thw=grid
        ).pooler_output
        return features.view(count, -1, features.shape[-1])

    def image_embeddings(self, batch: Batch) -> Tensor:
        """Image embeddings [B, channels, grid, grid], of the pictures in SAM's frame."""
        pixels = to_sam_frames(batch.image.to(self.device), self.recipe.vision.side)
        return self.model.image_encoder(pixels)

    def unpadded_size(self, batch: Batch) -> tuple[int, int]:
        """(height, width) of a batch's pictures in SAM's frame."""
        return unpadded_size(batch.image.shape[-2:], self.recipe.vision.side)

    def cell_loss(self, embedding: Tensor, batch: Batch) -> Tensor:
        read = self.encoder_reader(embedding).float().permute(0, 2, 3, 1).flatten(0, 2)
        target = batch.encoder_cells.to(self.device).flatten(0, 1)
        occupied = target[:, oracle.GROUND_FLAG] < 0.5
        centre = ((read - target)[occupied][:, oracle.CENTRE_SLICE] ** 2).sum(-1).mean()
        return oracle.cell_class_loss(read, target, sharpness=1.0) + 0.5 * centre

    def focus_loss(
        self, focus_embedding: Tensor, embedding: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, float]]:
        rows = torch.tensor([i for i, _ in batch.targets], device=self.device)
        sizes = torch.tensor([self.unpadded_size(batch)] * len(rows), device=self.device)
        prior_logits, mask_logits = self.model.focus(focus_embedding, embedding[rows], sizes)
        return self.mask_loss(prior_logits, mask_logits, batch)

    def mask_loss(
        self, prior_logits: Tensor, mask_logits: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, float]]:
        """What is learnt from the drawn logits [M, 1, p, p] of a batch's targets."""
        target = batch.masks.to(self.device)
        loss = 2 * segmentation_loss(prior_logits, mask_logits, target, dice=0.5, focal=10)
        return loss, {"segmentation": loss.item()}

    def reply_loss(
        self, packed: PackedQuestions, visual: Tensor
    ) -> tuple[Tensor, dict[str, float], Tensor]:
        """Language loss on the replies; the focus embeddings [M, D] of those that have a focus
        token."""
        mllm = self.model.mllm
        ids, labels = packed.ids.to(self.device), packed.labels.to(self.device)
        read = mllm.get_input_embeddings()(self.misread_colours(ids, labels))
        embeddings = read.to(visual.dtype).clone()
        embeddings[ids == mllm.config.image_token_id] = visual.flatten(0, 1)
        hidden = mllm.model.language_model(
            inputs_embeds=embeddings,
            position_ids=self.rope_positions(packed),
            attention_mask={
                "full_attention": packed.section_lengths,
                "sliding_attention": packed.section_lengths,
            },
            use_cache=False,
        ).last_hidden_state
        is_learnt = labels[:, 1:] != -100
        logits, target = mllm.lm_head(hidden[:, :-1][is_learnt]).float(), labels[:, 1:][is_learnt]
        weights = packed.weights.to(self.device)[:, 1:][is_learnt]
        words = (F.cross_entropy(logits, target, reduction="none") * weights).sum() / weights.sum()
        focus_embedding = hidden[packed.focus[:, 0], packed.focus[:, 1]]
        listed = self.word_reader(hidden[packed.kind_words[:, 0], packed.kind_words[:, 1]]).float()
        recall = ((listed - packed.kind_features.to(self.device)) ** 2).sum(-1).mean()
        query = words.new_zeros(())
        if len(focus_embedding):
            described = focus_embedding.float() @ self.query_frame / oracle.QUERY_SCALE**2
            query = ((described - packed.focus_features.to(self.device)) ** 2).sum(-1).mean()
        decisions = weights == self.recipe.decision_weight
        right = logits.argmax(-1) == target
        scores = {
            "words": words.item(),
            "query": query.item(),
            "recall": recall.item(),
            "right": right.float().mean().item(),
            "decided": right[decisions].float().mean().item(),
        }
        oracle_loss = self.query_weight * query + self.recall_weight * recall
        return words + oracle_loss, scores, focus_embedding

    def misread_colours(self, ids: Tensor, labels: Tensor) -> Tensor:
        """The tokens [B, L] with some colours of the replies read as another (`misread`), so that
        what an object is does not follow from its colour: some pairs are never shown."""
        is_colour = torch.isin(ids, self.colours) & (labels != -100)
        chosen = is_colour & (torch.rand(ids.shape, device=ids.device) < self.misread)
        others = self.colours[torch.randint(len(self.colours), ids.shape, device=ids.device)]
        return torch.where(chosen, others, ids)

    def rope_positions(self, packed: PackedQuestions) -> Tensor:
        """Multimodal rope positions [3, B, L]: those that every token would have if its question
        stood alone."""
        length = int(packed.position_offset.max()) + 1
        known = self._positions.get(packed.grid)
        if known is None or known.shape[-1] < length:
            prefix = packed.ids[0, : packed.section_lengths[0]]
            alone = F.pad(prefix, (0, length + 256 - len(prefix)))[None]
            is_image = (alone == self.model.mllm.config.image_token_id).int()
            grid = torch.tensor([[1, 2 * packed.grid[0], 2 * packed.grid[1]]])
            known = self._positions[packed.grid] = self.model.mllm.model.get_rope_index(
                alone, mm_token_type_ids=is_image, image_grid_thw=grid
            )[0][:, 0]
        return known[:, packed.position_offset].to(self.device)


def _noisy_query(f: Tensor) -> Tensor:
    """A query that is not quite sure: sometimes without kind, colour or place, always a little
    noisy."""
    f, forget = f.clone(), torch.rand(()).item()
    for part, low, high in (
        (oracle.KIND_SLICE, 0, 0.12),
        (oracle.COLOUR_SLICE, 0.12, 0.24),
        (oracle.CENTRE_SLICE, 0.24, 0.36),
    ):
        if low <= forget < high:
            f[part] = 0
    return f + 0.08 * torch.randn_like(f)


def _corrupt_cells(cells: Tensor) -> Tensor:
    """Oracle cells [B, N, 64] with the errors of a real vision tower: now and then half another
    kind, and noise."""
    occupied = (cells[..., oracle.GROUND_FLAG] < 0.5)[..., None]
    doubt = (
        torch.rand(*cells.shape[:2], 1) * (torch.rand(*cells.shape[:2], 1) < 0.25) * 0.6 * occupied
    )
    other = F.one_hot(torch.randint(len(KINDS), cells.shape[:2]), len(KINDS)).float()
    cells = cells.clone()
    cells[..., oracle.KIND_SLICE] = cells[..., oracle.KIND_SLICE] * (1 - doubt) + other * doubt
    return cells + 0.08 * torch.randn_like(cells)

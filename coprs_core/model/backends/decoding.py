"""Greedy decoding with continuous batching: replies that are written at the same time share every
pass of the language model (Yu et al., Orca, OSDI 2022).

A reply joins when its prompt is prefilled, gets one token a step, and leaves when it ends or its
generator is closed; another may join between two steps. One alone is a batch of one, without
padding and bit for bit what it would be without any of this.

There is no decoding thread: whoever waits for a token takes the step for all, and a lock admits
one after the other.
"""

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import Cache

from coprs_core.fair_semaphore import FairSemaphore
from coprs_core.machine import free_memory
from coprs_core.model.backends.attention import AttentionTrace, record_attention
from coprs_core.model.backends.cache import (
    GROWTH_TOKENS,
    KeyValueSlots,
    LayerState,
    StateSlots,
    cache_argument_name,
    new_slots,
)
from coprs_core.model.backends.cpu.output_layer import argmax_tokens
from coprs_core.model.backends.mllm import Mllm, PromptSession
from coprs_core.model.segmenter import Step

MAX_BATCH_SIZE = 64
"""Replies in one step; more wait until one ends."""
MIN_MULTITHREADED_PRODUCTS = 20_000_000
"""A step of fewer products (the language model's weights, times the replies) is taken in one
thread: waking a second one takes as long as it saves, and longer beside other processes."""
MAX_FOCUS_TOKENS = 16
"""Of one reply: a model that repeats itself would fill the whole bound with them."""
MAX_TOKENS_AFTER_FOCUS = 16
"""How many tokens may stand between two focus tokens; where no other follows, the reply ends at its
last."""
_MAX_MEMORY_SHARE = 0.5
"""Of the free memory, that the cache may take: the step itself needs some, and so do photos."""


@dataclass(eq=False)
class ActiveReply:
    """A reply that is being written.

    Attributes:
        focus_id, stop_ids: the focus token, if there is one; the tokens that end a reply.
        tokens_left: how many tokens it may still have.
        next_position: the rope position of the next token; `position_axes`: the shape before it.
        image_span: the positions of the visual tokens.
        trace: the attention of each token is added to it.
        length: how many tokens the cache holds of it.
        steps: written and not yet taken by the generator.
        token: chosen, and not yet fed to the model; None when the reply has ended.
    """

    focus_id: int | None
    stop_ids: set[int]
    tokens_left: int
    next_position: int
    position_axes: tuple[int, ...]
    image_span: slice
    trace: AttentionTrace | None
    length: int = 0
    steps: deque[Step] = field(default_factory=deque)
    token: int | None = None
    # written after a focus token: given out only if another one follows within the bound
    _pending_steps: list[Step] | None = None
    _num_focus_tokens: int = 0

    def append_token(self, token: int) -> None:
        """Take the token that the model chose."""
        self.tokens_left -= 1
        self.token = token
        if token == self.focus_id:
            return  # its step needs its hidden state: see `on_hidden_state`
        has_ended = token in self.stop_ids or self.tokens_left < 1
        if self._pending_steps is None:
            self.steps.append(Step(token))
        else:
            self._pending_steps.append(Step(token))
            has_ended = has_ended or len(self._pending_steps) > MAX_TOKENS_AFTER_FOCUS
        if has_ended:
            self.token = None

    @property
    def needs_next_token(self) -> bool:
        """Whether a token is to be chosen after the one that is fed next."""
        is_last = self.tokens_left < 1 or self._num_focus_tokens + 1 == MAX_FOCUS_TOKENS
        return self.token != self.focus_id or not is_last

    def on_hidden_state(self, hidden: Tensor) -> None:
        """Take the last hidden state [1, D] at the token that was just fed."""
        if self.token is None or self.token != self.focus_id:
            return
        self.steps.extend(self._pending_steps or [])
        self.steps.append(Step(self.token, focus_embedding=hidden))
        has_ended = not self.needs_next_token  # before the counter below changes it
        self._pending_steps, self._num_focus_tokens = [], self._num_focus_tokens + 1
        if has_ended:
            self.token = None


class ContinuousBatch:
    """The replies that one language model writes now; safe to share between threads."""

    def __init__(self, mllm: Mllm):
        self._mllm = mllm
        self._replies: list[ActiveReply] = []
        self._slots: list[KeyValueSlots | StateSlots] = []
        self._lock = FairSemaphore()
        self._cache_argument = cache_argument_name(type(mllm.model.language_model))
        self._num_weights = sum(p.numel() for p in mllm.model.language_model.parameters())
        self._num_threads = torch.get_num_threads()

    def __len__(self) -> int:
        """How many replies are being written."""
        return len(self._replies)

    def generate(
        self,
        session: PromptSession,
        focus_id: int | None,
        stop_ids: set[int],
        max_new_tokens: int,
        trace: AttentionTrace | None = None,
    ) -> Iterator[Step]:
        """Write one reply, a `Step` a token, without its text.

        A focus embedding is the last hidden state, after the final norm, at a focus token
        (`focus_id` None: there is none). The last focus token ends the reply; so do stop tokens,
        which have a step of their own. Closing the generator frees its slot at once. The attention
        of each token is added to `trace`. `session` stays as it is.
        """
        reply = ActiveReply(
            focus_id,
            stop_ids,
            max_new_tokens,
            session.next_position,
            session.position_axes,
            session.image_span,
            trace,
        )
        try:
            has_joined = False
            while not has_joined:  # without room each try is a step for the others
                with self._lock.acquire():
                    has_joined = self._join(reply, session)
            while reply.steps or reply.token is not None:
                if not reply.steps:
                    with self._lock.acquire():
                        # another thread may have taken the step while this one waited
                        if not reply.steps and reply.token is not None:
                            self._step()
                while reply.steps:
                    yield reply.steps.popleft()
        finally:
            with self._lock.acquire():
                self._leave(reply)

    # --- under the lock

    @torch.no_grad()
    def _join(self, reply: ActiveReply, session: PromptSession) -> bool:
        """Add a reply, unless it has ended already; where there is no room for it, take a step for
        the others and return False."""
        if reply.token is None and not reply.steps:
            reply.append_token(session.next_token())
        if reply.token is None:
            return True
        reply.length, states = session.length, session.states
        if self._replies and not self._has_room(states, reply.length):
            self._step()
            return False
        if not self._slots:
            self._slots = new_slots(self._mllm.model.language_model.config)
        for slots, state in zip(self._slots, states, strict=True):
            slots.store_prompt(len(self._replies), state)
        self._replies.append(reply)
        return True

    def _has_room(self, states: tuple[LayerState, ...], length: int) -> bool:
        if len(self._replies) >= MAX_BATCH_SIZE:
            return False
        longest = max(length, *(reply.length for reply in self._replies)) + GROWTH_TOKENS
        of_slot = sum(x.slot_nbytes(s, longest) for x, s in zip(self._slots, states, strict=True))
        taken = sum(slots.nbytes for slots in self._slots)
        needed = (len(self._replies) + 1) * of_slot
        if needed <= taken:  # without asking the device how much is free
            return True
        return needed < _MAX_MEMORY_SHARE * (free_memory(self._mllm.device) + taken)

    @torch.no_grad()
    def _step(self) -> None:
        """Feed the last token of every reply to the model, and choose the next."""
        replies = self._replies
        with self._limit_threads(len(replies)):
            hidden = self._forward(replies)
            going_on = [i for i, reply in enumerate(replies) if reply.needs_next_token]
            # the output layer is the largest one: not for replies that end here
            needed = hidden if len(going_on) == len(replies) else hidden[going_on]
            tokens = argmax_tokens(self._mllm, needed) if going_on else []
        # only now is anything changed: a step that failed above can be taken again
        for slots in self._slots:
            slots.commit_step()
        for reply, state in zip(replies, hidden.split(1), strict=True):
            reply.length, reply.next_position = reply.length + 1, reply.next_position + 1
            reply.on_hidden_state(state)
        for i, token in zip(going_on, tokens, strict=True):
            replies[i].append_token(token)
        for reply in [reply for reply in replies if reply.token is None]:
            self._leave(reply)

    @contextmanager
    def _limit_threads(self, batch_size: int) -> Generator[None, None, None]:
        """Compute a small step, inside, in one thread. torch has no such setting for one thread of
        Python alone: new ones take over what was set last, so it is set back each time."""
        if self._num_weights * batch_size >= MIN_MULTITHREADED_PRODUCTS:
            yield
            return
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(self._num_threads)

    def _forward(self, replies: list[ActiveReply]) -> Tensor:
        """Last hidden states [B, D] at the tokens that were chosen."""
        device, count = self._mllm.device, len(replies)
        tokens = torch.tensor([[reply.token] for reply in replies], device=device)
        positions = torch.tensor([reply.next_position for reply in replies], device=device)
        lengths = torch.tensor([reply.length for reply in replies], device=device)
        longest = max(reply.length for reply in replies) + 1
        for slots in self._slots:
            slots.begin_step(lengths, longest)
        inputs = {
            "inputs_embeds": self._mllm.get_input_embeddings()(tokens),
            "position_ids": positions[:, None].expand(*replies[0].position_axes[:-1], count, 1),
            "use_cache": True,
            self._cache_argument: Cache(layers=list(self._slots)),
        }
        # replies of one length need no mask, and one alone stays bit for bit what it was without
        if len({reply.length for reply in replies}) > 1:
            is_own = torch.arange(longest, device=device) <= lengths[:, None]
            inputs["attention_mask"] = is_own[:, None, None]
        if any(reply.trace is not None for reply in replies):
            with record_attention([reply.image_span for reply in replies]) as recorded:
                hidden = self._mllm.model.language_model(**inputs).last_hidden_state
            for i, reply in enumerate(replies):
                if reply.trace is not None and recorded.layers:
                    reply.trace.add(recorded.weights(i))
        else:
            hidden = self._mllm.model.language_model(**inputs).last_hidden_state
        return hidden[:, -1]

    def _leave(self, reply: ActiveReply) -> None:
        """Remove a reply; the last one moves into its slot, so that slots stay without gaps."""
        if reply not in self._replies:
            if not self._replies:
                self._slots = []  # joining failed for want of memory, maybe half-way
            return
        slot, last = self._replies.index(reply), len(self._replies) - 1
        reply.token = None
        if slot != last:
            for slots in self._slots:
                slots.move(last, slot, self._replies[last].length)
            self._replies[slot] = self._replies[last]
        self._replies.pop()
        if not self._replies:
            self._slots = []  # gives the memory back

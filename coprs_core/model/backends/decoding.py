"""Greedy decoding in one running batch: replies that are written at the same time share every pass
of the language model (continuous batching, Yu et al., Orca, OSDI 2022).

A reply joins when its prompt is read, gets one token a step, and leaves when it ends or nobody
wants it any more; another may join between two steps. One alone is a batch of one, without padding
and bit for bit what it would be without any of this.

Whoever waits for a token takes the step for all, so that there is no thread of its own: a lock lets
the waiting in, one after the other.
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
MAX_TOKENS_AFTER_FOCUS = 16
"""How many tokens may stand between two focus tokens; where no other follows, the reply ends at its
last."""
_MAX_MEMORY_SHARE = 0.5
"""Of the memory that is free, which may be taken for what the layers keep."""


@dataclass(eq=False)
class ActiveReply:
    """One reply on its way.

    Attributes:
        focus_id, stop_ids: the token that is looked with; those that end a reply.
        left: how many tokens it may still have.
        next: the rope position of the token that follows; `axes`: the shape before it.
        picture: the places of the visual tokens; `looks`: where what is attended to is added.
        steps: what is written and not yet taken.
        token: chosen, and not yet read by the model; None where there is none any more.
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
    _pending_steps: list[Step] | None = None
    _num_focus_tokens: int = 0

    def append_token(self, token: int) -> None:
        """Take the token that the model finds likeliest."""
        self.tokens_left -= 1
        self.token = token
        if token == self.focus_id:
            return  # told when it has been read
        is_over = token in self.stop_ids or self.tokens_left < 1
        if self._pending_steps is None:
            self.steps.append(Step(token))
        else:
            self._pending_steps.append(Step(token))
            is_over = is_over or len(self._pending_steps) > MAX_TOKENS_AFTER_FOCUS
        if is_over:
            self.token = None

    @property
    def needs_next_token(self) -> bool:
        """Whether a token is to be chosen after the one that is read next."""
        is_last = self.tokens_left < 1 or self._num_focus_tokens + 1 == MAX_FOCUS_TOKENS
        return self.token != self.focus_id or not is_last

    def on_hidden_state(self, hidden: Tensor) -> None:
        """The last hidden state [1, D] at the token that was chosen before."""
        if self.token is None or self.token != self.focus_id:
            return
        self.steps.extend(self._pending_steps or [])
        self.steps.append(Step(self.token, focus_embedding=hidden))
        goes_on = self.needs_next_token
        self._pending_steps, self._num_focus_tokens = [], self._num_focus_tokens + 1
        if not goes_on:
            self.token = None


class ContinuousBatch:
    """The replies that one language model writes now; safe to share between threads."""

    def __init__(self, mllm: Mllm):
        self._mllm = mllm
        self._rows: list[ActiveReply] = []
        self._slots: list[KeyValueSlots | StateSlots] = []
        self._lock = FairSemaphore()
        self._cache_argument = cache_argument_name(type(mllm.model.language_model))
        self._weights = sum(p.numel() for p in mllm.model.language_model.parameters())
        self._threads = torch.get_num_threads()

    def __len__(self) -> int:
        """How many replies are being written."""
        return len(self._rows)

    def generate(
        self,
        session: PromptSession,
        focus_id: int | None,
        stop_ids: set[int],
        max_new_tokens: int,
        trace: AttentionTrace | None = None,
    ) -> Iterator[Step]:
        """One reply, a `Step` a token, its text not yet in it.

        A focus embedding is the last hidden state, after the final norm, at the step that reads a
        focus token (`focus_id` None: there is none). After the last of them nothing is told. Stop
        tokens end the reply and are told. Closing the generator frees its place at once. What each
        token attends to is added to `trace`. `session` stays as it is.
        """
        row = ActiveReply(
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
            while not has_joined:  # others go on meanwhile
                with self._lock.acquire():
                    has_joined = self._join(row, session)
            while row.steps or row.token is not None:
                if not row.steps:
                    with self._lock.acquire():
                        if not row.steps and row.token is not None:
                            self._step()
                while row.steps:
                    yield row.steps.popleft()
        finally:
            with self._lock.acquire():
                self._leave(row)

    # --- under the lock

    @torch.no_grad()
    def _join(self, row: ActiveReply, session: PromptSession) -> bool:
        """Whether a reply is being written now, or has ended; else there is no room, and the others
        went one step on."""
        if row.token is None and not row.steps:
            row.append_token(session.next_token())
        if row.token is None:
            return True
        row.length, states = session.length, session.states
        if self._rows and not self._has_room(states, row.length):
            self._step()
            return False
        if not self._slots:
            self._slots = new_slots(self._mllm.model.language_model.config)
        for slots, state in zip(self._slots, states, strict=True):
            slots.store_prompt(len(self._rows), state)
        self._rows.append(row)
        return True

    def _has_room(self, states: tuple[LayerState, ...], length: int) -> bool:
        if len(self._rows) >= MAX_BATCH_SIZE:
            return False
        longest = max(length, *(row.length for row in self._rows)) + GROWTH_TOKENS
        place = sum(x.slot_nbytes(s, longest) for x, s in zip(self._slots, states, strict=True))
        taken = sum(slots.nbytes for slots in self._slots)
        wanted = (len(self._rows) + 1) * place
        return wanted <= taken or wanted < _MAX_MEMORY_SHARE * (
            free_memory(self._mllm.device) + taken
        )

    @torch.no_grad()
    def _step(self) -> None:
        """Let the model read the last token of every reply, and choose the next."""
        rows = self._rows
        with self._limit_threads(len(rows)):
            hidden = self._forward(rows)
            wanted = [i for i, row in enumerate(rows) if row.needs_next_token]
            some = hidden if len(wanted) == len(rows) else hidden[wanted]
            tokens = argmax_tokens(self._mllm, some) if wanted else []
        # nothing was changed before, where that failed
        for slots in self._slots:
            slots.commit_step()
        for row, state in zip(rows, hidden.split(1), strict=True):
            row.length, row.next_position = row.length + 1, row.next_position + 1
            row.on_hidden_state(state)
        for i, token in zip(wanted, tokens, strict=True):
            rows[i].append_token(token)
        for row in [row for row in rows if row.token is None]:
            self._leave(row)

    @contextmanager
    def _limit_threads(self, rows: int) -> Generator[None, None, None]:
        """Inside, a small step is computed in one thread. torch has no such setting for one thread
        of Python alone: new ones take over what was set last, so it is set back each time."""
        if self._weights * rows >= MIN_MULTITHREADED_PRODUCTS:
            yield
            return
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(self._threads)

    def _forward(self, rows: list[ActiveReply]) -> Tensor:
        """Last hidden states [B, D] at the tokens that were chosen."""
        device, count = self._mllm.device, len(rows)
        tokens = torch.tensor([[row.token] for row in rows], device=device)
        places = torch.tensor([row.next_position for row in rows], device=device)
        lengths = torch.tensor([row.length for row in rows], device=device)
        longest = max(row.length for row in rows) + 1
        for slots in self._slots:
            slots.begin_step(lengths, longest)
        inputs = {
            "inputs_embeds": self._mllm.get_input_embeddings()(tokens),
            "position_ids": places[:, None].expand(*rows[0].position_axes[:-1], count, 1),
            "use_cache": True,
            self._cache_argument: Cache(layers=list(self._slots)),
        }
        if len({row.length for row in rows}) > 1:
            is_own = torch.arange(longest, device=device) <= lengths[:, None]
            inputs["attention_mask"] = is_own[:, None, None]
        if any(row.trace is not None for row in rows):
            with record_attention([row.image_span for row in rows]) as seen:
                hidden = self._mllm.model.language_model(**inputs).last_hidden_state
            for i, row in enumerate(rows):
                if row.trace is not None and seen.layers:
                    row.trace.add(seen.weights(i))
        else:
            hidden = self._mllm.model.language_model(**inputs).last_hidden_state
        return hidden[:, -1]

    def _leave(self, row: ActiveReply) -> None:
        if row not in self._rows:
            if not self._rows:
                self._slots = []  # it found no memory to join, and may have changed some of them
            return
        place, last = self._rows.index(row), len(self._rows) - 1
        row.token = None
        if place != last:
            for slots in self._slots:
                slots.move(last, place, self._rows[last].length)
            self._rows[place] = self._rows[last]
        self._rows.pop()
        if not self._rows:
            self._slots = []  # nobody writes: the memory is free

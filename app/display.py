"""New values of every component that shows an answer: before it, while it comes, and finished."""

from functools import cache

import gradio as gr
import numpy as np

from app.frame import Frame, Values
from app.models import ModelActions
from app.saved_answers import load_recorded_answer
from app.server.answers import StoredAnswer
from app.server.model import ModelServer
from app.views import canvas, findings, page
from app.visitors import add_recent, answer_title, can_probe
from coprs_core.answer.updates import Update
from coprs_core.photos.photo import Photo
from coprs_core.prompts import FOCUS_TOKEN_PRIOR


class AnswerDisplay:
    """Renders answers for the components of `frame`."""

    def __init__(self, server: ModelServer, frame: Frame, models: ModelActions):
        self.server, self.frame, self.models = server, frame, models

    def empty(self, lang: str) -> Values:
        """Empty places for a new answer; the one before is no longer the current one."""
        kind = self.server.engine.prior_kind if self.server.is_ready else FOCUS_TOKEN_PRIOR
        return {
            self.frame.thought: page.thought(lang),
            self.frame.view: canvas.empty_view(lang, kind),
            self.frame.trace: findings.empty_strip(lang),
            self.frame.verdict: page.empty_verdict(lang),
            self.frame.answer: None,
        }

    def in_progress(self, lang: str, photo: Photo, update: Update, anyway: bool) -> Values:
        """An answer that is still being made."""
        values: Values = {self.frame.steps: page.stages(lang, update)}
        if update.stage == "reading":
            values |= self.empty(lang)
            if anyway or update.stage_seconds:  # before, they may be shown again
                values |= self.models.hide_offer
            return values
        values[self.frame.thought] = page.thought(lang, update)
        if update.stage == "focus" and update.prior is not None:
            values[self.frame.view] = self._prior(lang, photo, update.prior)
        return values

    def _prior(self, lang: str, photo: Photo, prior: np.ndarray) -> str:
        pixels = np.asarray(photo.image)
        return canvas.prior_view(lang, pixels, prior, self.server.engine.prior_kind)

    def finished(self, lang: str, answer: StoredAnswer, recent: tuple | None) -> Values:
        """A finished answer, which joins the recent ones."""
        return self.current_answer(lang, answer) | self.add_to_recent(lang, answer, recent)

    def current_answer(self, lang: str, answer: StoredAnswer) -> Values:
        """Make an answer the current one: its thought, pictures, trace and verdict."""
        frame, is_recorded = self.frame, answer.is_recorded
        if not is_recorded:  # that one is small, and everybody's
            self.server.answer_store.add(answer)
        drawn = _recorded_views(lang) if is_recorded else findings.answer_and_strip(lang, answer)
        return {
            frame.thought: self.thought(lang, answer),
            frame.view: drawn[0],
            frame.trace: drawn[1],
            frame.verdict: page.verdict(
                lang, answer.result, is_recorded, full_size=answer.photo.full_size
            ),
            frame.answer: answer,
        }

    def thought(self, lang: str, answer: StoredAnswer, shown: page.WordViews | None = None) -> str:
        result = answer.result
        offers = page.AllowedActions()
        if not self.server.is_ready:  # the first screen does not wait
            is_its_own = result.model == self.server.name
            offers = page.AllowedActions(is_its_own, is_its_own)
        elif can_probe(self.server, result):
            offers = page.AllowedActions(self.server.engine.has_focus_token, True)
        return page.finished_thought(
            lang, result, offers, shown, answer.changed_sentence, answer.is_recorded
        )

    def add_to_recent(self, lang: str, answer: StoredAnswer, recent: tuple | None) -> Values:
        """Put an answer in front of the recent ones and update their strip of thumbnails."""
        recent = add_recent(answer, recent or ())
        pixels = np.asarray(answer.photo.image)
        answer.thumbnail = canvas.answer_thumbnail(pixels, answer.result)
        pictures = [(a.thumbnail, answer_title(lang, a)) for a in recent]
        gallery = gr.update(value=pictures, visible=bool(recent), selected_index=None)
        return {self.frame.recent: recent, self.frame.recent_gallery: gallery}

    def restored_answer(self, lang: str, answer: StoredAnswer) -> Values:
        result = answer.result
        update = Update("done", result.reply, result=result, photo_reused=result.photo_reused)
        return {
            self.frame.photo: answer.photo.image,
            self.frame.instruction: result.instruction,
            self.frame.steps: page.stages(lang, update),
            **self.current_answer(lang, answer),
            **self.models.hide_offer,
        }


@cache
def _recorded_views(lang: str) -> tuple[str, str]:
    """View and strip of the recorded answer, cached: every visitor sees them first."""
    return findings.answer_and_strip(lang, load_recorded_answer())

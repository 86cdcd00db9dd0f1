"""Handlers of the model in use: show it, offer another, switch."""

from collections.abc import Iterator

import gradio as gr

from app.frame import Frame, Values
from app.server.model import ModelServer
from app.texts import say, translate
from app.views import page
from app.visitors import request_language, user_errors_as_gr_error
from coprs_core.checkpoints.options import AUTO_MODEL
from coprs_core.errors import CoPRSError


class ModelActions:
    """Shows and switches the model in use; values are for the components of `frame`. `may_switch`:
    see `ui.build`."""

    def __init__(self, server: ModelServer, frame: Frame, may_switch: bool = False):
        self.server, self.frame, self.may_switch = server, frame, may_switch

    def offer_photo_model(self, lang: str, is_asked: bool) -> Values:
        """Say what the model in use knows and offer one for photos, in place of an answer about a
        picture that it does not know; `is_asked`: an instruction waits."""
        choice = problem = None
        if self.may_switch:
            try:
                choice = self.server.plan_for_photos()
            except CoPRSError as none_fits:
                problem = translate(lang, none_fits)
        note = self.server.engine.segmenter.note
        key = "photo_model_answer" if is_asked else "photo_model"
        label = say(lang, key, name=choice.model) if choice else ""
        return {
            self.frame.ways: gr.update(visible=True),
            self.frame.unfamiliar: page.unfamiliar(lang, note, choice, problem),
            self.frame.photo_model: gr.update(value=label, visible=choice is not None),
        }

    @property
    def hide_offer(self) -> Values:
        """Hide that offer."""
        return {self.frame.ways: gr.update(visible=False)}

    def load_photo_model(self, request: gr.Request | None = None) -> Iterator[Values]:
        """Load the model for photos that fits this machine; raises where it cannot be loaded, and
        the ways stay."""
        lang, frame = request_language(request), self.frame
        with user_errors_as_gr_error(lang):
            try:
                for line in self.server.switch_model(AUTO_MODEL):
                    yield {frame.unfamiliar: page.loading_progress(lang, line)}
            except CoPRSError as problem:
                yield {frame.unfamiliar: page.loading_progress(lang, problem, failed=True)}
                raise
        yield self._model_values(lang) | self.hide_offer

    def switch(
        self, name: str | None, request: gr.Request | None = None
    ) -> Iterator[tuple[str, Values]]:
        """Load another model: its progress as HTML; at the end, the masthead and notice of the
        model in use. What the former one did not know is no longer said."""
        lang = request_language(request)
        try:
            for line in self.server.switch_model(str(name or "").strip()):
                yield page.loading_progress(lang, line), {}
        except CoPRSError as problem:
            yield page.loading_progress(lang, problem, failed=True), self._model_values(lang)
            return
        in_use = say(lang, "model_used", name=self.server.engine.name)
        yield page.loading_progress(lang, in_use), self._model_values(lang) | self.hide_offer

    def show_model(self, request: gr.Request | None = None) -> Iterator[Values]:
        """The masthead while the model is being loaded, and when it is."""
        if not self.server.is_ready:
            header = page.header(request_language(request), None)
            yield {self.frame.header: header, self.frame.notice: ""}
        yield self._model_values(request_language(request))

    def _model_values(self, lang: str) -> Values:
        engine = self.server.engine
        return {
            self.frame.header: page.header(lang, engine),
            self.frame.notice: page.notice(lang, engine.segmenter.note, self.may_switch),
        }

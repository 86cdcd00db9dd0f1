"""`--model openai:NAME@http://host:port/v1`: a model on another machine, chosen by whoever starts
the program."""

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

import torch

from coprs_core.checkpoints.downloads import ProgressCallback, print_progress
from coprs_core.checkpoints.options import (
    API_KEY_VARIABLE,
    REMOTE_NAME_FORMAT,
    REMOTE_SCHEME,
    LoadOptions,
)
from coprs_core.checkpoints.plan import LoadPlan, Machine, ModelSize
from coprs_core.checkpoints.sam_models import load_sam, plan_with_sam
from coprs_core.checkpoints.sources import Checkpoint
from coprs_core.errors import CoPRSError, Phrase
from coprs_core.machine import parse_dtype
from coprs_core.model.backends.remote.proxies import proxy_for
from coprs_core.prompts import COORDINATES_PRIOR, PriorKind

if TYPE_CHECKING:
    from coprs_core.model.backends.remote.chat import ChatEndpoint


@dataclass(frozen=True)
class RemoteSource:
    """A `model` on a server at `url`, and how it becomes a `Segmenter`."""

    model: str
    url: str
    prior_kind: ClassVar[PriorKind] = COORDINATES_PRIOR

    @property
    def name(self) -> str:
        """What it is called in answers: the address is nobody else's business."""
        return f"{REMOTE_SCHEME}{self.model}"

    @property
    def host(self) -> str:
        """The server as messages name it."""
        return urlsplit(self.url).netloc

    def server(self) -> "ChatEndpoint":
        """The model to talk to; nothing is asked yet.

        Raises `CoPRSError`: the key, or the proxy that the environment names, cannot be used.
        """
        from coprs_core.model.backends.remote.chat import ChatEndpoint
        from coprs_core.model.backends.remote.segmenter import MAX_QUIET_SECONDS

        key = os.environ.get(API_KEY_VARIABLE, "").strip()
        if not key.isascii() or not key.isprintable():
            raise CoPRSError(
                "{variable} holds signs that no key has: copy the key again.",
                variable=API_KEY_VARIABLE,
            )
        return ChatEndpoint(
            self.url, self.model, key or "none", proxy_for(self.url), MAX_QUIET_SECONDS
        )

    def plan(self, options: LoadOptions, machine: Machine) -> LoadPlan:
        """How its SAM will be loaded here."""
        options = replace(options, quantization="none")
        return plan_with_sam(self.name, ModelSize(), options, machine)

    def load(self, plan: LoadPlan, report: ProgressCallback | None) -> Checkpoint:
        """The model, asked once where a drawn square is, and a SAM on a device.

        Raises `CoPRSError`: the server cannot be used, and why.
        """
        from coprs_core.model.backends.coordinates import QWEN3_PROMPT
        from coprs_core.model.backends.cpu import optimize
        from coprs_core.model.backends.remote.segmenter import (
            RemoteSegmenter,
            detect_coordinate_prompt,
        )

        say, server = report or print_progress, self.server()
        say(Phrase("asking {host} where a drawn square is", host=self.host))
        prompt = detect_coordinate_prompt(server)
        if prompt is None:
            warning = Phrase(
                "warning: {model} on {host} did not tell where a drawn red square is: its boxes "
                "may be wrong",
                model=self.model,
                host=self.host,
            )
            say(warning)
        device, dtype = torch.device(plan.device), parse_dtype(plan.dtype)
        sam = load_sam(plan.sam, device, dtype, report).eval().requires_grad_(False)
        optimize.apply(sam)
        segmenter = RemoteSegmenter(server, sam, prompt or QWEN3_PROMPT)
        return Checkpoint(self.name, segmenter, "none", passed_pointing_test=prompt is not None)


def parse_remote_name(name: str) -> RemoteSource:
    """The model and the address in a name; raises `CoPRSError` where it holds none."""
    model, _, url = name.removeprefix(REMOTE_SCHEME).rpartition("@")
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        has_no_secrets = parts.port is None or parts.port > 0
        has_no_secrets = has_no_secrets and not (parts.username or parts.password or parts.query)
    except ValueError:
        is_address = has_no_secrets = False
    if not model or not is_address or not has_no_secrets:
        raise CoPRSError(
            "A model on another machine is given as {form}, and its key by the environment "
            "variable {variable}: write it so.",
            form=REMOTE_NAME_FORMAT,
            variable=API_KEY_VARIABLE,
        )
    return RemoteSource(model, url)

"""Replies written by a vLLM server: TRL's client is faked by a second miniature, since vLLM itself
needs a GPU; what is asked of it, sent to it and made of its replies is real."""

import json

import pytest
import torch

pytest.importorskip("trl")

from transformers import GenerationConfig  # noqa: E402
from trl.generation import vllm_generation  # noqa: E402

from coprs_core import CoPRSError  # noqa: E402
from coprs_core.checkpoints.load import load_checkpoint  # noqa: E402
from coprs_core.checkpoints.options import LoadOptions  # noqa: E402
from coprs_core.mini.train.recipe import MINI_RECIPE  # noqa: E402
from coprs_core.training import run_joint  # noqa: E402
from coprs_core.training.recipe import read_recipe  # noqa: E402
from coprs_core.training.run_folder import LOG_FILE  # noqa: E402
from coprs_core.training.run_joint import train_joint  # noqa: E402

CHANGES = ["steps=2", "questions=2", "group=2", "rows_at_once=4", "pictures=0", "rate=1e-3"]
CHANGES += ["max_new_tokens=70", "least_spread=0.0", "vllm=http://elsewhere:8000"]


class Server:
    """`trl.generation.vllm_client.VLLMClient`, and the server behind it."""

    made: list["Server"] = []

    def __init__(self, base_url, group_port, connection_timeout):
        assert base_url == "http://elsewhere:8000"
        focus = load_checkpoint("mini", LoadOptions(device="cpu")).segmenter
        self.mllm, self.language = focus.model.mllm.float(), focus.language
        self.updates, self.asked = [], []
        Server.made.append(self)

    def init_communicator(self, device):
        pass

    def get_server_info(self):
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def reset_prefix_cache(self):
        pass

    def update_named_params(self, metadata, named):
        sent = {name: value.clone() for name, value in named}
        assert [name for name, _, _ in metadata] == list(sent)
        self.mllm.load_state_dict(sent, strict=False)
        self.updates.append(sent)

    def image_features(self, images):
        return [{"mm_placeholders": {"image": [None]}, "image": image} for [image] in images]

    def generate(self, prompts, features, n, temperature, top_k, max_tokens, **_):
        written, logprobs = [], []
        for ids, feature in zip(prompts, features, strict=True):
            self.asked.append(feature["mm_placeholders"]["image"])
            seen = self.language.image_processor(images=[feature["image"]], return_tensors="pt")
            given = torch.tensor([ids] * n)
            image_id = self.mllm.config.image_token_id
            out = self.mllm.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                mm_token_type_ids=torch.eq(given, image_id).int(),
                pixel_values=seen["pixel_values"].repeat(n, 1),
                image_grid_thw=seen["image_grid_thw"].repeat(n, 1),
                generation_config=GenerationConfig(
                    do_sample=True,
                    temperature=temperature,
                    top_k=top_k,
                    max_new_tokens=max_tokens,
                    eos_token_id=self.language.tokenizer.eos_token_id,
                    pad_token_id=self.language.tokenizer.pad_token_id,
                    return_dict_in_generate=True,
                    output_scores=True,
                ),
            )
            for row in range(n):
                reply = out.sequences[row, len(ids) :].tolist()
                end = self.language.tokenizer.eos_token_id
                reply = reply[: reply.index(end) + 1] if end in reply else reply
                scores = [s[row].log_softmax(-1) for s in out.scores[: len(reply)]]
                written.append(reply)
                logprobs.append([[s[i].item()] for s, i in zip(scores, reply, strict=True)])
        return {"prompt_ids": prompts, "completion_ids": written, "logprobs": logprobs}


def test_a_server_writes_the_replies_with_the_newest_language_model(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "VLLMClient", Server, raising=False)
    done = train_joint(read_recipe("mini-joint", CHANGES), tmp_path, "cpu")
    [server] = Server.made
    assert len(server.updates) == 2  # before each step's replies
    own = dict(server.mllm.named_parameters())
    assert set(server.updates[0]) == set(own)  # the language model, and no heads
    changed = [n for n in own if not torch.equal(*(update[n] for update in server.updates))]
    assert changed  # the second step's replies are those of what the first one learnt
    grid = (MINI_RECIPE.mllm_side // 28) ** 2  # of a square picture: one run of visual tokens
    assert server.asked == [[{"offset": server.asked[0][0]["offset"], "length": grid}]] * 4
    first, second = map(json.loads, (tmp_path / LOG_FILE).read_text().splitlines())
    assert first["kl"] == pytest.approx(0, abs=1e-6) and second["loss"] == second["loss"]
    ratio = first["sampling/importance_sampling_ratio/mean"]
    assert ratio == pytest.approx(1, abs=1e-3)  # its log probabilities are ours
    load_checkpoint(str(done), LoadOptions(device="cpu"))


def test_without_vllm_one_sentence_says_what_to_do(tmp_path):
    with pytest.raises(CoPRSError, match="vLLM at http://elsewhere:8000 cannot write the replies"):
        train_joint(read_recipe("mini-joint", CHANGES), tmp_path, "cpu")


def test_a_lack_of_memory_is_not_told_as_vllms_fault(tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run_joint, "JointTrainer", full)
    with pytest.raises((CoPRSError, torch.OutOfMemoryError)) as raised:
        train_joint(read_recipe("mini-joint", CHANGES), tmp_path, "cpu")
    assert "vLLM" not in str(raised.value) and "memory" in str(raised.value)

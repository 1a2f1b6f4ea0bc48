"""From prompts to contexts: golden 09, and what a prompt may and may not change."""

import re

import pytest
import torch
from diffusers.pipelines.ltx2 import LTX2TextConnectors

from tests.trainer.jobs import golden
from trainer.model import BaseModel
from trainer.text import MAX_TOKENS, TextEncoder, connect

FILE = golden("09_connectors")


def golden_connectors() -> LTX2TextConnectors:
    """Built from the shapes of the file's weights: it has no config."""
    prefix = "weights."
    weights = {k.removeprefix(prefix): v for k, v in FILE.items() if k.startswith(prefix)}
    settings = {}
    for side in ("video", "audio"):
        block = rf"{side}_connector\.transformer_blocks\.(\d+)\."
        layers = {int(m[1]) for key in weights if (m := re.match(block, key))}
        first = f"{side}_connector.transformer_blocks.0.attn1"
        num_heads = len(weights[f"{first}.to_gate_logits.weight"])
        width = len(weights[f"{first}.to_q.weight"])
        settings |= {
            f"{side}_connector_num_layers": len(layers),
            f"{side}_connector_num_attention_heads": num_heads,
            f"{side}_connector_attention_head_dim": width // num_heads,
            f"{side}_connector_num_learnable_registers": len(
                weights[f"{side}_connector.learnable_registers"]
            ),
            f"{side}_gated_attn": True,
            f"{side}_hidden_dim": width,
        }
    hidden = FILE["in.hidden_states"]
    connectors = LTX2TextConnectors(
        caption_channels=hidden.shape[2],
        text_proj_in_factor=hidden.shape[3],
        rope_type="split",
        per_modality_projections=True,
        proj_bias=True,
        **settings,
    )
    connectors.load_state_dict(weights)
    return connectors.eval().requires_grad_(False)


@pytest.mark.golden
def test_the_connectors_output_is_the_reference_output() -> None:
    video, audio = connect(golden_connectors(), FILE["in.hidden_states"], FILE["in.attention_mask"])
    torch.testing.assert_close(video, FILE["out.video"], atol=2e-4, rtol=0)
    torch.testing.assert_close(audio, FILE["out.audio"], atol=2e-4, rtol=0)
    assert FILE["out.mask"].all()  # which is why the transformer needs no mask


@pytest.fixture(scope="module")
def encoder(tiny: BaseModel) -> TextEncoder:
    return tiny.text_encoder()


def test_a_context_depends_on_its_prompt_alone(encoder: TextEncoder) -> None:
    alone = encoder.encode(["a red fox"])[0]
    among = encoder.encode(["something else", "  a red fox\n", ""])
    assert alone.video.shape == (MAX_TOKENS, 64)
    assert alone.audio.shape == (MAX_TOKENS, 32)
    assert torch.equal(among[1].video, alone.video)
    assert torch.equal(among[1].audio, alone.audio)
    assert not torch.equal(among[0].video, alone.video)
    assert not alone.video.requires_grad


def test_an_empty_prompt_and_an_endless_one_are_encoded(encoder: TextEncoder) -> None:
    empty, endless, longer = encoder.encode(["", "x" * 5000, "x" * 6000])
    assert empty.video.isfinite().all()
    assert torch.equal(endless.video, longer.video)


def test_it_is_what_the_pipeline_encodes(tiny: BaseModel, encoder: TextEncoder) -> None:
    from diffusers import LTX2Pipeline

    pipeline = LTX2Pipeline.from_pretrained(tiny.folder)
    with torch.no_grad():
        embeds, mask, _, _ = pipeline.encode_prompt("a red fox", do_classifier_free_guidance=False)
        video, audio, _ = pipeline.connectors(embeds, mask, padding_side="left")
    ours = encoder.encode(["a red fox"])[0]
    torch.testing.assert_close(ours.video, video[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.audio, audio[0], atol=1e-5, rtol=0)

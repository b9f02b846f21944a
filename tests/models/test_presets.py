"""Published models: their number of parameters, and that their sizes mean the same to transformers."""

import json

import jax
import pytest

from looptool_jax.models.config import DecoderConfig
from looptool_jax.models.decoder import abstract_params, active_parameters
from looptool_jax.models.presets import PRESETS

# A tied embedding counts once (some weight files hold it twice). Model cards give these figures rounded.
PUBLISHED = {
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
}


def test_every_preset_has_the_published_number_of_parameters():
    found = {name: sum(leaf.size for leaf in jax.tree.leaves(abstract_params(cfg))) for name, cfg in PRESETS.items()}
    assert found == PUBLISHED


def test_parameters_that_a_token_goes_through():
    """All but an embedding that is only looked up in; of Qwen3-30B-A3B its card says 3.3 of 30.5 billion, embeddings
    (2 x 151,936 x 2,048) included."""
    tied, untied, experts = "Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B"
    assert active_parameters(PRESETS[tied]) == PUBLISHED[tied]
    assert active_parameters(PRESETS[untied]) == PUBLISHED[untied] - 151_936 * 4096
    assert active_parameters(PRESETS[experts]) + 151_936 * 2048 == pytest.approx(3.3e9, abs=0.06e9)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_config_json(name):
    assert DecoderConfig.from_hf(json.loads(json.dumps(PRESETS[name].to_hf()))) == PRESETS[name]


def test_transformers_counts_the_same():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    for name in ("Qwen/Qwen3-30B-A3B", "Qwen/Qwen2.5-7B-Instruct", "meta-llama/Llama-3.2-1B-Instruct"):
        raw = PRESETS[name].to_hf()
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**raw))
        assert model.num_parameters() == PUBLISHED[name]

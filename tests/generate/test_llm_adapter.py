"""The cache argument of all releases of transformers; models on several devices."""

import warnings

import torch

from vidqa.generate.fallback import _StaticBatch
from vidqa.generate.llm_adapter import cache_argument, new_cache, supports_shared_prefix


def test_a_transformers_model_takes_its_cache_without_a_warning():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    llm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2,
        )
    ).eval()  # fmt: skip
    ids, cache = torch.tensor([[3, 4, 5]]), new_cache(llm)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("error")
        full = llm(input_ids=ids).logits[:, -1]
        llm(input_ids=ids[:, :2], use_cache=True, **cache_argument(llm, cache))
        last = llm(input_ids=ids[:, 2:], use_cache=True, **cache_argument(llm, cache)).logits[:, -1]
    torch.testing.assert_close(last, full)


def test_the_argument_name_is_that_of_the_model():
    class Old:
        def forward(self, input_ids, past_key_values=None): ...

    class New:
        def forward(self, input_ids, cache=None): ...

    assert [list(cache_argument(model(), 1)) for model in (Old, New)] == [["past_key_values"], ["cache"]]


def test_models_on_several_devices_do_not_share_prefixes():
    """Prefixes are on one device, and transformers does not move them between devices."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        llm = LlamaForCausalLM(LlamaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    for device_map, supported in (
        ({"": 0}, True),
        ({"model.layers.0": 0, "lm_head": "cpu"}, True),  # offloaded, computed on the first
        ({"model.layers.0": 0, "lm_head": 1}, False),
        ({"model.layers.0": torch.device("cuda", 0), "lm_head": torch.device("cuda", 1)}, False),
    ):
        llm.hf_device_map = device_map
        assert supports_shared_prefix(llm, 128) is supported, device_map


def test_sequences_are_evicted_from_layers_on_any_device():
    """A tensor on one GPU cannot index another; a CPU tensor can."""
    received = []

    class Cache:
        def batch_select_indices(self, index):
            received.append(index)

    elsewhere = torch.zeros(3, 2, dtype=torch.int64, device="meta")
    batch = _StaticBatch(torch.nn.Linear(1, 1), Cache(), elsewhere, elsewhere[:, 0])
    batch.keep([2, 0])
    assert received[0].device.type == "cpu" and batch.mask.shape == (2, 2) and batch.positions.shape == (2,)

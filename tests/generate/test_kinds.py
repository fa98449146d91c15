"""The argument for stored keys and values, by whatever name a release of transformers has it."""

import warnings

import torch

from vidqa.generate.fallback_decode import _Batch
from vidqa.generate.llm_adapter import can_share, new_cache, stored_in


def test_a_model_of_transformers_takes_its_store_without_a_warning():
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
        whole = llm(input_ids=ids).logits[:, -1]
        llm(input_ids=ids[:, :2], use_cache=True, **stored_in(llm, cache))
        last = llm(input_ids=ids[:, 2:], use_cache=True, **stored_in(llm, cache)).logits[:, -1]
    torch.testing.assert_close(last, whole)


def test_the_name_is_the_one_that_the_model_has():
    class Old:
        def forward(self, input_ids, past_key_values=None): ...

    class New:
        def forward(self, input_ids, cache=None): ...

    assert [list(stored_in(kind(), 1)) for kind in (Old, New)] == [["past_key_values"], ["cache"]]


def test_layers_on_several_devices_keep_their_own_attention():
    """Beginnings lie on one device, and transformers moves no such thing from one to the next."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        llm = LlamaForCausalLM(LlamaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    for places, shares in (
        ({"": 0}, True),
        ({"model.layers.0": 0, "lm_head": "cpu"}, True),  # fetched from there, computed on the first
        ({"model.layers.0": 0, "lm_head": 1}, False),
        ({"model.layers.0": torch.device("cuda", 0), "lm_head": torch.device("cuda", 1)}, False),
    ):
        llm.hf_device_map = places
        assert can_share(llm, 128) is shares, places


def test_lines_are_dropped_on_whatever_device_a_layer_lies():
    """A tensor of one GPU is no index on another; one of the CPU is."""
    asked = []

    class Cache:
        def batch_select_indices(self, index):
            asked.append(index)

    elsewhere = torch.zeros(3, 2, dtype=torch.int64, device="meta")
    batch = _Batch(torch.nn.Linear(1, 1), Cache(), elsewhere, elsewhere[:, 0])
    batch.keep([2, 0])
    assert asked[0].device.type == "cpu" and batch.mask.shape == (2, 2) and batch.positions.shape == (2,)

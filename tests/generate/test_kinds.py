"""The argument for stored keys and values, by whatever name a release of transformers has it."""

import warnings

import torch

from vidqa.generate.kinds import new_cache, stored_in


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

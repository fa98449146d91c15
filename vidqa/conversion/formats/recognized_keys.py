"""Keys of published `config.json` files that have no effect here, so that every other key can be refused by name.

Sources: transformers 4.31 to 5.24 (PretrainedConfig), LLaVA, Video-LLaVA 984e65b, Video-ChatGPT 659e04b,
Valley 83d794f and LanguageBind 7070c53 (what their trainers write).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from vidqa.common.foreign_files import JsonSettings, is_unset
from vidqa.errors import BundleError

#: Keys of every configuration of transformers that describe the file, or that matter only in training.
GENERAL = frozenset(
    {
        "_name_or_path",
        "_commit_hash",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_flash_attn_2_enabled",
        "attn_implementation",
        "architectures",
        "auto_map",  # names code, which is not run
        "chunk_size_feed_forward",
        "dtype",
        "finetuning_task",
        "id2label",
        "initializer_factor",
        "initializer_range",
        "is_decoder",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "prefix",
        "problem_type",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "tf_legacy_loss",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
    }
)
#: Generation settings that old releases of transformers stored in config.json.
GENERATION = frozenset(
    {
        "bad_words_ids",
        "begin_suppress_tokens",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "length_penalty",
        "max_length",
        "max_new_tokens",
        "min_length",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_scores",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict_in_generate",
        "suppress_tokens",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
    }
)
#: Keys of the vision part in the configuration of a LLaVA-like model. What matters is read by the formats.
VISION_PART = frozenset(
    {
        "X",
        "freeze_backbone",
        "freeze_mm_mlp_adapter",
        "freeze_mm_vision_resampler",
        "image_aspect_ratio",
        "image_crop_resolution",
        "image_grid_pinpoints",
        "image_split_resolution",
        "image_token_len",
        "max_sequence_length",
        "mm_hidden_size",
        "mm_image_tower",
        "mm_patch_merge_type",
        "mm_projector_lr",
        "mm_projector_type",
        "mm_resampler_type",
        "mm_use_im_patch_token",
        "mm_use_im_start_end",
        "mm_use_x_patch_token",
        "mm_use_x_start_end",
        "mm_video_tower",
        "mm_vision_select_feature",
        "mm_vision_select_layer",
        "mm_vision_tower",
        "patch_pooling_method",
        "pretrain_mm_mlp_adapter",
        "sep_image_conv_front",
        "tokenizer_model_max_length",
        "tokenizer_padding_side",
        "tune_llm_layer",
        "tune_mm_mlp_adapter",
        "tune_mm_vision_resampler",
        "unfreeze_mm_vision_tower",
        "use_delta_transformer",
        "use_mm_proj",
        "use_patch_importance_pooling",
        "vision_config",
        "vision_tower",
    }
)
#: Keys of a tower's configuration without effect on its features.
TOWER = (
    GENERAL
    | GENERATION
    | {
        "attention_dropout",
        "bos_token_id",
        "dropout",
        "eos_token_id",
        "pad_token_id",
        "projection_dim",  # follows from the weights
        "vocab_size",
        "force_patch_dropout",
        "lora_alpha",
        "lora_dropout",
        "lora_r",
        "max_depth",
        "add_time_attn",  # the next two follow from the weights
        "num_frames",
        "num_mel_bins",
        "target_length",
        "video_decode_backend",
        *(f"audio_{name}" for name in ("mean", "sample_rate", "std")),
    }
)


def unknown_keys(config: JsonSettings, recognized: Collection[str]) -> Iterator[str]:
    """Yield a message for every setting that is set but not recognized."""
    for key, value in config.items():
        if key not in recognized and not is_unset(value):
            yield f"{config.file}: {config.where}{key}: unknown setting, here {value!r:.80}"


def check_keys(config: JsonSettings, recognized: Collection[str]) -> None:
    """Check that every setting that is set is recognized.

    Raises:
        BundleError: names the file and all other keys.
    """
    raise_problems(list(unknown_keys(config, recognized)))


def raise_problems(problems: Collection[str]) -> None:
    """Raise an error with all problems, if there are any.

    Raises:
        BundleError: there is a problem.
    """
    if problems:
        hint = "if it does not change what the model computes, remove the key from the file"
        raise BundleError("\n".join(problems), hint=hint if any("unknown setting" in p for p in problems) else None)

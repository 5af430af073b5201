"""What other tools' configurations may say without changing what a dictionary computes; anything else is named."""

import warnings
from collections.abc import Collection, Iterable

_TRAINING = """
    lr lr_scheduler_name lr_warm_up_steps lr_end lr_decay_steps n_restart_cycles warmup_steps decay_start seed device dtype
    steps total_steps adam_beta1 adam_beta2 model_name model_class_name dataset_path context_size is_dataset_tokenized
    wandb_name wandb_project wandb_entity wandb_id wandb_log_frequency run_name log_to_wandb checkpoint_path n_checkpoints
    l1_coefficient l1_penalty use_ghost_grads dead_feature_threshold dead_feature_window feature_sampling_window
    feature_sampling_method feature_reinit_scale dead_feature_estimation_method resample_batches resample_steps
    n_batches_in_buffer store_batch_size train_batch_size total_training_tokens training_tokens use_cached_activations
    cached_activations_path from_pretrained_path b_dec_init_method expansion_factor tokens_per_buffer d_in d_sae d_out
"""

KNOWN: dict[str, frozenset[str]] = {
    name: frozenset(f"{_TRAINING if shares else ''} {words}".split())
    for name, shares, words in [
        (
            "saelens-folder",
            True,
            """
            architecture apply_b_dec_to_input normalize_activations reshape_activations metadata k
            rescale_acts_by_decoder_norm activation_fn activation_fn_kwargs finetuning_scaling_factor hook_name
            hook_name_out hook_names_out hook_layer hook_eval hook_head_index hook_head_index_out hook_layer_out
            hook_point_layer hook_point_eval hf_hook_name hf_hook_name_out prepend_bos seqpos_slice neuronpedia_id
            sae_lens_version sae_lens_training_version exclude_special_tokens model_from_pretrained_kwargs model_kwargs
            dataset_trust_remote_code streaming disable_concat_sequences act_store_device autocast autocast_lm
            compile_llm llm_compilation_mode compile_sae sae_compilation_mode train_batch_size_tokens
            train_batch_size_prompts store_batch_size_prompts eval_batch_size_prompts n_eval_batches n_eval_seqs
            eval_every_n_wandb_logs log_activations_store_to_wandb log_optimizer_state_to_wandb resume verbose logger
            mse_loss_normalization lp_norm scale_sparsity_penalty_by_decoder_norm l1_warm_up_steps l0_coefficient
            l0_warm_up_steps l0_lambda finetuning_tokens finetuning_method noise normalize_sae_decoder
            decoder_orthogonal_init decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm
            init_encoder_as_decoder_transpose jumprelu_init_threshold jumprelu_bandwidth jumprelu_sparsity_loss_mode
            jumprelu_tanh_scale jumprelu_ste_to_input pre_act_loss_coefficient k_aux aux_loss_coefficient
            use_sparse_activations topk_threshold_lr matryoshka_widths use_matryoshka_aux_loss
            """,
        ),
        ("activation_fn_kwargs", False, "k use_sparse_activations"),
        (
            "sparsify",
            False,
            """
            activation expansion_factor normalize_decoder num_latents k multi_topk skip_connection transcode d_in signed
            """,
        ),
        (
            "dictionary-learning",
            True,
            """
            trainer_class dict_class activation_dim dict_size layer lm_name submodule_name k l1_penalty auxk_alpha
            auxk_loss threshold_beta threshold_start_step sparsity_warmup_steps sparsity_penalty target_l0 bandwidth
            group_fractions group_weights group_sizes top_k_aux norm_factor loss l2_loss max_l2_loss min_l2_loss
            sparsity_function sparsity_queue_length initial_sparsity_penalty n_sparsity_updates anneal_start anneal_end
            p_start p_end lambda_p momentum p
            """,
        ),
        (
            "transcoder-circuits",
            True,
            """
            hook_point hook_point_layer hook_point_head_index out_hook_point out_hook_point_layer is_transcoder
            is_sparse_connection sparse_connection_sae_path sparse_connection_l1_coeff n_shuffles_final
            n_shuffles_in_entire_dir n_shuffles_with_last_section shuffle_every_n_buffers use_tqdm
            """,
        ),
        (
            "circuit-tracer",
            False,
            """
            model_name model_kind feature_input_hook feature_output_hook scan transcoders repo_id revision subfolder
            activation activation_function k
            """,
        ),
        (
            "llama-scope",
            True,
            """
            act_fn jump_relu_threshold use_glu_encoder hook_point_in hook_point_out dataset_average_activation_norm d_model
            norm_activation use_decoder_bias apply_decoder_bias_to_pre_encoder sparsity_include_decoder_norm
            decoder_exactly_fixed_norm decoder_exactly_unit_norm force_unit_decoder_norm bias_init_method
            init_decoder_norm init_encoder_norm init_encoder_with_decoder_transpose lp l1_coefficient_warmup_steps top_k
            k_warmup_steps use_batch_norm_mse tp_size ddp_size strict_loading
            remove_gradient_parallel_to_decoder_directions use_batch_topk sae_type
            """,
        ),
        (
            "gemma-scope",
            False,
            """
            architecture model_name hf_hook_point_in hf_hook_point_out affine_connection width l0 type layer d_in d_sae
            d_model num_layers dtype
            """,
        ),
    ]
}
"""By format: the settings that are read, and those that only training used."""


def name_unknown(found: Iterable[str], form: str, origin: object, known: Collection[str] = ()) -> None:
    """Names settings that are not known, in a warning: what a dictionary computes may depend on them."""
    unknown = sorted({str(name) for name in found} - KNOWN[form] - set(known))
    if unknown:
        listed = ", ".join(f"{name!r:.60}" for name in unknown[:8])  # a file's own words may hold anything
        warnings.warn(
            f"{origin} says {listed}{' and more' if len(unknown) > 8 else ''}, which is not known here; what "
            "the dictionary computes may depend on it.",
            stacklevel=3,
        )

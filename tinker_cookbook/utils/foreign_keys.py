"""Our names for the keys of other tools: TRL, transformers, axolotl, verl, prime-rl, nanochat.

Only keys unknown to a program are looked up, so a name may be a real key of one program and a
foreign one in another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from tinker_cookbook.utils.command_types import class_with


class Meaning(NamedTuple):
    """keys: our names for it in order of preference, since programs differ; "" if we have none.
    note: further advice; always given if the other tool's value would mean something else here.
    """

    keys: str
    note: str = ""


_DROP = "drop it"
_NAMES: Mapping[Meaning, str] = {
    # optimizer
    Meaning("learning_rate"): "lr peak_lr max_lr base_lr init_lr step_size",
    Meaning("learning_rate", "one rate for the whole adapter"): (
        "matrix_lr embedding_lr unembedding_lr lora_lr"
    ),
    Meaning("lr_schedule"): (
        "lr_scheduler_type lr_scheduler scheduler scheduler_type lr_decay_style lr_decay schedule"
        " lr_schedule_type"
    ),
    Meaning("", f"there is no warm-up here; {_DROP}"): (
        "warmup warmup_steps warmup_ratio warmup_iters num_warmup_steps lr_warmup_steps"
        " lr_warmup_steps_ratio lr_warmup_iters"
    ),
    Meaning("", f"the optimizer is always AdamW; {_DROP}"): "optim optimizer optimizer_type",
    Meaning("grad_clip_norm"): (
        "max_grad_norm grad_clip gradient_clipping clip_grad clip_grad_norm grad_norm_clip max_norm"
    ),
    Meaning("adam_beta1"): "beta1",
    Meaning("adam_beta2"): "beta2",
    Meaning("adam_beta1", "and adam_beta2="): "betas adam_betas optim_betas",
    Meaning("adam_eps"): "adam_epsilon eps",
    Meaning("weight_decay"): "wd",
    # adapter
    Meaning("lora_rank"): "r rank lora_r lora_dim peft_rank adapter_rank lora_rank_dim",
    Meaning("", f"LoRA's alpha is 32 at any rank here; {_DROP}"): "alpha lora_alpha",
    Meaning("", f"LoRA has no dropout here; {_DROP}"): "dropout lora_dropout attention_dropout",
    Meaning("train_attn", "with train_mlp= and train_unembed=: the layers the adapter is on"): (
        "target_modules lora_target_modules lora_target lora_target_linear lora_modules"
    ),
    Meaning("", f"every run trains a LoRA adapter; {_DROP}"): (
        "use_peft use_lora lora peft adapter finetuning_type train_type tuner_type"
    ),
    Meaning("", f"the base model is not quantized here; {_DROP}"): (
        "load_in_4bit load_in_8bit bits use_qlora quantization quantization_bit fp8"
    ),
    # sizes
    Meaning(
        "batch_size groups_per_batch",
        "the size of a whole optimizer step; engine.tokens_per_pass= bounds the memory",
    ): (
        "per_device_train_batch_size train_batch_size micro_batch_size device_batch_size bs bsz"
        " global_batch_size total_batch_size batchsize"
    ),
    Meaning("", f"a batch is one optimizer step here, whatever its size; {_DROP}"): (
        "gradient_accumulation_steps gradient_accumulation grad_accum grad_accum_steps"
        " accumulate_grad_batches"
    ),
    Meaning("groups_per_batch batch_size"): (
        "rollout_batch_size prompts_per_step num_prompts gen_batch_size examples_per_step"
        " num_prompts_per_step"
    ),
    Meaning("group_size"): (
        "num_generations n num_samples samples_per_prompt n_samples_per_prompt group_n"
        " num_samples_per_prompt rollouts_per_example num_rollouts n_samples rollouts_per_prompt"
    ),
    Meaning("num_substeps", "the optimizer steps that a batch is divided into"): (
        "mini_batch_size ppo_mini_batch_size num_mini_batches ppo_epochs"
    ),
    Meaning("max_length limits.max_trajectory_tokens"): (
        "max_seq_length max_seq_len max_sequence_length seq_length seq_len sequence_len cutoff_len"
        " block_size model_max_length context_length max_context_length max_model_len"
    ),
    Meaning("max_tokens"): (
        "max_completion_length max_new_tokens max_response_length max_completion_tokens"
        " max_gen_len completion_length response_length max_generation_tokens"
    ),
    Meaning("num_epochs dataset_builder.num_epochs"): (
        "epochs epoch num_train_epochs n_epochs total_epochs max_epochs train_epochs"
    ),
    Meaning("max_steps"): (
        "steps max_iters num_steps n_steps train_steps total_steps total_training_steps"
        " num_training_steps max_train_steps num_iterations iterations"
    ),
    # model and data
    Meaning("model_name"): (
        "model model_name_or_path base_model model_id model_path hf_model hf_model_id"
        " pretrained_model_name_or_path policy_model model.path model.name model_tag"
    ),
    Meaning("", f"the tokenizer is the model's; {_DROP}"): (
        "tokenizer tokenizer_name tokenizer_name_or_path tokenizer_path"
    ),
    Meaning("", "set TINKER_COOKBOOK_TRUST_REMOTE_CODE=1 in the environment"): (
        "trust_remote_code"
    ),
    Meaning("load_checkpoint_path"): (
        "init_from checkpoint checkpoint_path adapter_path lora_path adapter_name_or_path"
    ),
    Meaning("renderer_name"): (
        "renderer chat_template template prompt_template conversation_template chat_format"
    ),
    Meaning("dataset dataset_path data_path dataset_builder"): (
        "dataset dataset_name dataset_id datasets train_dataset train_data"
    ),
    # of a class that is chosen, then the short forms, then of a class yet to be chosen
    Meaning("dataset_builder.path dataset_path data_path path"): (
        "data path file files data_path data_file data_files train_file train_files train_path"
        " dataset_path prompt_data jsonl"
    ),
    Meaning("dataset_builder.test_path"): (
        "eval_file val_file val_files test_file test_files validation_file eval_dataset test_path"
        " val_path eval_path validation_path"
    ),
    Meaning("dataset_builder.message_field"): (
        "messages_field field_messages conversation_field message_field dataset_text_field"
    ),
    Meaning("train_on_what"): (
        "train_on_inputs train_on_input completion_only_loss assistant_only_loss roles_to_train"
        " mask_prompt train_on_responses_only"
    ),
    Meaning("dataset_builder"): "env_id environment env env_name reward_funcs reward_fn",
    # reinforcement learning
    Meaning("kl_penalty_coef"): (
        "beta kl_coef kl_loss_coef kl_beta init_kl_coef kl_weight kl_penalty"
    ),
    Meaning("kl_penalty_coef", "a weight (0: none)"): "use_kl_loss use_kl_in_reward",
    Meaning("kl_reference_config.base_model kl_penalty_coef"): "ref_model reference_model",
    Meaning("loss_fn"): "loss_type policy_loss loss_mode",
    Meaning("advantage"): "adv_estimator advantage_estimator scale_rewards",
    Meaning(
        "loss_fn_config",
        "e.g. loss_fn=ppo loss_fn_config.clip_high_threshold=1.2, a bound on the ratio itself",
    ): (
        "epsilon epsilon_low epsilon_high clip_range cliprange clip_ratio clip_ratio_low"
        " clip_ratio_high clip_epsilon clip_low clip_high"
    ),
    Meaning("max_lag"): (
        "max_off_policy_steps async_level max_async_level off_policy_steps staleness max_staleness"
    ),
    Meaning("temperature", "the only key here that shapes the sampling distribution"): (
        "top_p top_k min_p repetition_penalty"
    ),
    # evaluation, checkpoints, logs
    Meaning("eval_every", "counts steps"): (
        "eval_steps eval_freq test_freq eval_interval val_interval evals_per_epoch eval_strategy"
        " evaluation_strategy val_check_interval"
    ),
    Meaning("save_every", "counts steps"): (
        "save_steps save_freq save_interval checkpoint_every ckpt_interval saves_per_epoch"
        " save_strategy checkpoint_interval"
    ),
    Meaning("ttl_seconds", "how long periodic checkpoints are kept"): "save_total_limit keep_last",
    Meaning("log_path"): (
        "output_dir out_dir save_dir run_dir log_dir logdir logging_dir default_local_dir"
        " checkpoint_dir ckpt_dir output_path save_path local_dir output"
    ),
    Meaning("", "the same command resumes by itself, and log_path= names the run's directory"): (
        "resume resume_from_checkpoint auto_resume resume_mode resume_from resume_path"
    ),
    Meaning("behavior_if_log_dir_exists", "which is resume, skip, delete, raise or ask"): (
        "overwrite overwrite_output_dir"
    ),
    Meaning("", f"every step is logged; {_DROP}"): (
        "logging_steps log_every log_freq log_interval logging_strategy"
    ),
    Meaning("wandb_project"): "project project_name",
    Meaning("wandb_project", "the name of a project"): "report_to use_wandb wandb log_with",
    Meaning("wandb_name"): "wandb_run_name run_name experiment_name exp_name run",
    Meaning("", "set WANDB_ENTITY in the environment"): "wandb_entity entity",
    Meaning("display", "which is auto, live, plain, table or none"): (
        "verbose quiet disable_tqdm log_level verbosity"
    ),
    Meaning("", f"nothing is uploaded; {_DROP}"): "push_to_hub hub_model_id hub_strategy",
    Meaning("", "only the recipes on the library's loops have it, such as sl_basic and rl_basic"): (
        "eval_every infrequent_eval_every evaluator_builders rolling_save_every ttl_seconds"
        " lr_schedule adam_beta1 adam_beta2 adam_eps weight_decay grad_clip_norm"
    ),
    # machine
    Meaning("seed"): "random_seed data_seed manual_seed shuffle_seed",
    Meaning("engine.device"): "device device_map device_type gpu use_cpu cuda",
    Meaning("engine.dtype", "which is bfloat16 or float32"): (
        "bf16 fp16 tf32 dtype torch_dtype precision mixed_precision compute_dtype"
    ),
    Meaning("engine.checkpointing", "which is auto, always or never"): (
        "gradient_checkpointing activation_checkpointing use_gradient_checkpointing"
    ),
    Meaning("", f"the engine packs examples itself, apart from one another; {_DROP}"): (
        "packing sample_packing pack eval_sample_packing pad_to_sequence_len"
    ),
    Meaning("", f"the engine chooses its attention kernels; {_DROP}"): (
        "attn_implementation flash_attention flash_attn use_flash_attn flash_attention_2"
    ),
    Meaning("", f"the engine samples itself, with the weights that it trains; {_DROP}"): (
        "use_vllm vllm_mode vllm_gpu_memory_utilization gpu_memory_utilization"
    ),
    Meaning("", f"the engine runs on one device; {_DROP}"): (
        "deepspeed fsdp fsdp_config num_gpus n_gpus n_gpus_per_node nnodes nproc_per_node"
        " tensor_parallel_size tensor_model_parallel_size"
    ),
    Meaning("base_url"): "url server server_url endpoint api_base",
}
TABLE: Mapping[str, Meaning] = {
    name: meaning for meaning, names in _NAMES.items() for name in names.split()
}


class Advice(NamedTuple):
    """key: our name, "" for none. example: for a key of a class that must be chosen first."""

    key: str
    note: str
    example: str = ""

    def __str__(self) -> str:
        told = f"here it is {self.key}=" if self.key else ""
        more = f"e.g. {self.example}" if self.example else ""
        return ", ".join(filter(None, (told, more, self.note)))


def advice(
    key: str, known: Mapping[str, Mapping[str, type]], spell: Callable[[str], str]
) -> Advice | None:
    """What to write instead of another tool's key. known: the program's keys, each with the classes
    it may be set to, by name. spell: spells a key as the user would."""
    found = meaning(key)
    if found is None:
        return None
    for ours in found.keys.split():
        if ours in known:
            return Advice(spell(ours), found.note)
    for ours in found.keys.split():
        head, _, field = ours.partition(".")
        if any(path.startswith(f"{head}.") for path in known):  # the chosen class has no such key
            continue
        if name := class_with(known.get(head, {}), field):
            return Advice(spell(ours), found.note, f"{spell(head)}={name} {spell(ours)}=...")
    last = key.rpartition(".")[2]
    if found.keys or any(path.rpartition(".")[2] == last for path in known):  # of another level
        return None
    return Advice("", found.note)


def meaning(key: str) -> Meaning | None:
    """Look up a foreign key. Hyphens, capitals and leading groups
    (`actor_rollout_ref.actor.optim.lr`) are ignored."""
    parts = key.lower().replace("-", "_").strip("_.+~").split(".")
    for start in range(len(parts)):
        if found := TABLE.get(".".join(parts[start:])):
            return found
    return None

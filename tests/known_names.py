"""What users' programs know: names by module, and the parameters of what they call.

A signature is written as its parameters in order, `=` with a default as text; behind `*` they are
given by keyword. Names of the recipes are under tinker_cookbook.recipes, the path that programs of
the Tinker cookbook import them from.
"""

from __future__ import annotations

NAMES = {
    "tinker_cookbook": "TinkerCookbookError ConfigurationError DataError DataFormatError"
    " DataValidationError RendererError TrainingError CheckpointError AllTrajectoriesFailedError"
    " SandboxError WeightsError WeightsDownloadError WeightsMergeError WeightsAdapterError"
    " EvalError",
    "tinker_cookbook.renderers": "Role TextPart ThinkingPart ImagePart Content ContentPart"
    " Message ToolCall FunctionBody"
    " UnparsedToolCall ToolSpec TrainOnWhat ParseTermination ParseFailureKind RenderContext"
    " RenderedMessage Renderer get_renderer register_renderer unregister_renderer"
    " is_renderer_registered get_registered_renderer_names get_text_content ensure_text"
    " format_content_as_string parse_content_blocks classify_parse_failure"
    " tokens_weights_from_strings_weights MessageDelta StreamingMessageHeader StreamingTextDelta"
    " StreamingThinkingDelta Utf8TokenDecoder",
    "tinker_cookbook.renderers.base": "ensure_list",
    "tinker_cookbook.completers": "TokensWithLogprobs StopCondition TokenCompleter"
    " MessageCompleter TinkerTokenCompleter TinkerMessageCompleter",
    "tinker_cookbook.supervised": "ChatDatasetBuilder ChatDatasetBuilderCommonConfig"
    " FromConversationFileBuilder StreamingSupervisedDatasetFromHFDataset SupervisedDataset"
    " SupervisedDatasetBuilder SupervisedDatasetFromHFDataset compute_mean_nll"
    " conversation_to_datum datum_from_model_input_weights",
    "tinker_cookbook.supervised.common": "compute_mean_nll compute_bpb"
    " create_rightshifted_model_input_and_leftshifted_targets datum_from_model_input_weights",
    "tinker_cookbook.supervised.data": "conversation_to_datum SupervisedDatasetFromHFDataset"
    " StreamingSupervisedDatasetFromHFDataset FromConversationFileBuilder HFDatasetSource"
    " InterleavedChatDatasetBuilder",
    "tinker_cookbook.supervised.types": "SupervisedDataset SupervisedDatasetBuilder"
    " ChatDatasetBuilderCommonConfig ChatDatasetBuilder",
    "tinker_cookbook.supervised.train": "Config main run_evals",
    "tinker_cookbook.supervised.viz_sft_dataset": "Config main",
    "tinker_cookbook.supervised.nll_evaluator": "SamplerNLLEvaluator NLLEvaluator",
    "tinker_cookbook.rl": "Action Env EnvGroupBuilder FailFast Logs Metrics Observation RLDataset"
    " RLDatasetBuilder RetryOnFailure RolloutError RolloutStrategy StepResult Trajectory"
    " TrajectoryGroup Transition",
    "tinker_cookbook.rl.types": "Env StepResult Transition Trajectory EnvGroupBuilder"
    " TrajectoryGroup RLDataset RLDatasetBuilder StopReason InitialObservationOverflow"
    " RolloutError ActionExtra",
    "tinker_cookbook.rl.train": "Config AsyncConfig StreamMinibatchConfig KLReferenceConfig main",
    "tinker_cookbook.rl.data_processing": "compute_advantages trajectory_to_data"
    " assemble_training_data remove_constant_reward_groups",
    "tinker_cookbook.rl.metrics": "compute_kl_sample_train compute_post_kl incorporate_kl_penalty"
    " discounted_future_sum_vectorized",
    "tinker_cookbook.rl.metric_util": "compute_trajectory_metrics RLTestSetEvaluator"
    " dataset_to_env_group_builders",
    "tinker_cookbook.rl.rollouts": "do_single_rollout do_group_rollout set_rollout_executor",
    "tinker_cookbook.rl.rollout_strategy": "FailFast RetryOnFailure MinViableGroup",
    "tinker_cookbook.rl.problem_env": "ProblemEnv ProblemGroupBuilder",
    "tinker_cookbook.rl.message_env": "MessageEnv EnvFromMessageEnv MessageStepResult",
    "tinker_cookbook.rl.preference_envs": "PairwisePreferenceGroupBuilder"
    " PairwisePreferenceRLDatasetBuilder TournamentPattern",
    "tinker_cookbook.rl.interleaved": "",
    "tinker_cookbook.rl.play_w_env": "",
    "tinker_cookbook.preference": "Comparison ComparisonDatasetBuilder LabeledComparison",
    "tinker_cookbook.preference.types": "Comparison LabeledComparison ComparisonRenderer"
    " ComparisonRendererFromChatRenderer PreferenceModel PreferenceModelBuilder"
    " PreferenceModelFromChatRenderer PreferenceModelBuilderFromChatRenderer",
    "tinker_cookbook.preference.preference_datasets": "ComparisonDatasetBuilder"
    " ComparisonBuilderFromJsonl ChatDatasetBuilderFromComparisons",
    "tinker_cookbook.preference.dpo_datasets": "DPODatasetBuilderFromComparisons",
    "tinker_cookbook.eval": "Evaluator EvaluatorBuilder SamplingClientEvaluator"
    " SamplingClientEvaluatorBuilder TrainingClientEvaluator",
    "tinker_cookbook.eval.evaluators": "Evaluator EvaluatorBuilder SamplingClientEvaluator"
    " SamplingClientEvaluatorBuilder TrainingClientEvaluator",
    "tinker_cookbook.eval.inspect_evaluators": "InspectEvaluatorBuilder",
    "tinker_cookbook.eval.inspect_utils": "InspectAPIFromTinkerSampling",
    "tinker_cookbook.eval.run_inspect_evals": "",
    "tinker_cookbook.checkpoint_utils": "CheckpointRecord get_last_checkpoint"
    " load_checkpoints_file save_checkpoint save_checkpoint_async CheckpointManager"
    " resolve_renderer_name_from_checkpoint_or_default"
    " resolve_renderer_name_from_checkpoint_or_default_async",
    "tinker_cookbook.hyperparam_utils": "get_lr get_lora_lr_over_full_finetune_lr"
    " get_lora_param_count get_full_finetune_param_count get_lora_lr_multiplier"
    " get_full_finetune_lr_multiplier",
    "tinker_cookbook.model_info": "get_model_attributes ModelAttributes"
    " get_recommended_renderer_name get_recommended_renderer_names"
    " warn_if_renderer_not_recommended get_llama_info get_qwen_info get_deepseek_info"
    " get_gpt_oss_info get_moonshot_info get_nvidia_info",
    "tinker_cookbook.tokenizer_utils": "get_tokenizer register_tokenizer"
    " get_registered_tokenizer_names",
    "tinker_cookbook.cli_utils": "check_log_dir runs_path model_name_from_argv",
    "tinker_cookbook.utils.ml_log": "setup_logging JsonLogger MultiplexLogger PrettyPrintLogger"
    " configure_logging_module dump_config",
    "tinker_cookbook.utils.trace": "scope trace_init update_scope_context",
    "tinker_cookbook.utils.logtree": "init_trace scope_header log_text",
    "tinker_cookbook.utils.lr_scheduling": "compute_schedule_lr_multiplier",
    "tinker_cookbook.utils.misc_utils": "safezip timed dict_mean all_same split_list"
    " concat_lists not_none",
    "tinker_cookbook.utils.code_state": "",
    "tinker_cookbook.utils.format_colorized": "format_colorized",
    "tinker_cookbook.preference.comparison_policy_evaluator": "ComparisonEvaluator",
    "tinker_cookbook.preference.train_dpo": "Config main compute_dpo_loss",
    "tinker_cookbook.preference.train_dpo_cli": "",
    "tinker_cookbook.recipes.preference.dpo.train": "CLIConfig cli_main",
    "tinker_cookbook.distillation.train_off_policy": "Config main",
    "tinker_cookbook.distillation.train_on_policy": "Config main",
    "tinker_cookbook.distillation.datasets": "TeacherConfig DistillationDatasetConfig"
    " PromptOnlyDatasetBuilder PromptOnlyEnv load_deepmath_prompts load_tulu3_prompts"
    " CompositeDataset",
    "tinker_cookbook.distillation.sdft": "Config main",
    "tinker_cookbook.weights": "download build_hf_model build_lora_adapter publish_to_hf_hub"
    " generate_model_card",
    "tinker_cookbook.recipes.sdft.train": "CLIConfig cli_main",
    "tinker_cookbook.recipes.prompt_distillation.create_data": "main",
    "tinker_cookbook.recipes.prompt_distillation.train": "main",
    "tinker_cookbook.recipes.sl_basic": "build_config_blueprint",
    "tinker_cookbook.recipes.rl_basic": "build_config_blueprint",
    "tinker_cookbook.recipes.chat_sl.chat_datasets": "Tulu3Builder NoRobotsBuilder",
    "tinker_cookbook.recipes.preference.datasets": "HHHComparisonBuilder"
    " HelpSteer3ComparisonBuilder UltraFeedbackComparisonBuilder",
    "tinker_cookbook.recipes.math_rl.math_env": "MathEnv Gsm8kDatasetBuilder"
    " get_math_dataset_builder safe_grade",
    "tinker_cookbook.recipes.math_rl.math_grading": "grade_answer normalize_answer extract_boxed"
    " run_with_timeout_signal",
}

# Packages that are not there yet, with what must be in them once they are.
NOT_YET = {
    "tinker_cookbook.tool_use": {
        "tinker_cookbook.tool_use": "tool Tool ToolInput ToolResult simple_tool_result"
        " error_tool_result handle_tool_call build_agent_tool_env RewardFn FunctionTool",
        "tinker_cookbook.rl.rollout_runner": "",
        "tinker_cookbook.rl.rollout_limits": "",
        "tinker_cookbook.rl.rollout_presets": "",
    },
    "tinker_cookbook.chat_app": {"tinker_cookbook.chat_app.tinker_chat_cli": "Config"},
    "tinker_cookbook.recipes.code_rl": {
        "tinker_cookbook.recipes.code_rl.code_env": "DeepcoderDatasetBuilder",
    },
}

# Left out on purpose: there is one loop, text alone, wandb alone, and no second way to do a thing;
# benchmarks are Inspect tasks (tinker_cookbook/eval/tasks), which Inspect's runner runs.
LEFT_OUT = {
    "tinker_cookbook.renderers": "AudioPart",
    "tinker_cookbook.rl.train": "train_step do_sync_training do_async_training"
    " do_sync_training_with_stream_minibatch prepare_minibatch"
    " save_checkpoint_and_get_sampling_client",
    "tinker_cookbook.eval": "benchmark_evaluator benchmarks",
    "tinker_cookbook.utils.ml_log": "NeptuneLogger TrackioLogger",
    "tinker_cookbook": "capture stores xmux third_party",
}

SIGNATURES = {
    "renderers:ToolCall": "type=function id=None function",
    "renderers:FunctionBody": "name arguments",
    "renderers:UnparsedToolCall": "raw_text error",
    "renderers:RenderContext": "idx is_last prev_message next_message last_user_index"
    " in_last_assistant_turn",
    "renderers:RenderedMessage": "output header stop_overlap",
    "renderers:StreamingMessageHeader": "role name=None",
    "renderers:StreamingTextDelta": "text",
    "renderers:StreamingThinkingDelta": "thinking",
    "renderers:Utf8TokenDecoder": "tokenizer",
    "renderers:Utf8TokenDecoder.decode": "self tokens",
    "renderers:Utf8TokenDecoder.flush": "self",
    "renderers:Renderer": "tokenizer",
    "renderers:Renderer.get_stop_sequences": "self",
    "renderers:Renderer.render_message": "self message ctx",
    "renderers:Renderer.parse_response": "self tokens",
    "renderers:Renderer.parse_response_streaming": "self tokens",
    "renderers:Renderer.build_generation_prompt": "self messages role=assistant prefill=None",
    "renderers:Renderer.build_supervised_example": "self messages"
    " train_on_what=last_assistant_message",
    "renderers:Renderer.build_supervised_examples": "self messages"
    " train_on_what=last_assistant_turn",
    "renderers:Renderer.create_conversation_prefix_with_tools": "self tools system_prompt=",
    "renderers:Renderer.to_openai_message": "self message",
    "renderers:get_renderer": "name tokenizer image_processor=None model_name=None",
    "renderers:register_renderer": "name factory",
    "renderers:get_text_content": "message",
    "renderers:ensure_text": "content",
    "completers:TokensWithLogprobs": "tokens maybe_logprobs stop_reason=stop",
    "completers:TokenCompleter.__call__": "self model_input stop * max_tokens=None",
    "completers:MessageCompleter.__call__": "self messages",
    "completers:TinkerTokenCompleter": "sampling_client max_tokens temperature=1.0"
    " context_window=None",
    "completers:TinkerMessageCompleter": "sampling_client renderer max_tokens stop_condition=None"
    " temperature=1.0",
    "supervised.common:compute_mean_nll": "logprobs_list weights_list",
    "supervised.common:compute_bpb": "logprobs_list weights_list target_tokens_list tokenizer",
    "supervised.common:create_rightshifted_model_input_and_leftshifted_targets": "chunks",
    "supervised.common:datum_from_model_input_weights": "model_input weights max_length=None"
    " reduction=none",
    "supervised.data:conversation_to_datum": "conversation renderer max_length"
    " train_on_what=all_assistant_messages reduction=mean",
    "supervised.data:SupervisedDatasetFromHFDataset": "hf_dataset batch_size map_fn flatmap_fn",
    "supervised.data:StreamingSupervisedDatasetFromHFDataset": "hf_dataset batch_size length"
    " map_fn flatmap_fn buffer_size=10000",
    "supervised.data:FromConversationFileBuilder": "common_config file_path test_size=0"
    " shuffle_seed=0",
    "supervised.data:HFDatasetSource": "path name split weight message_field",
    "supervised.types:SupervisedDataset.get_batch": "self index",
    "supervised.types:SupervisedDataset.set_epoch": "self seed",
    "supervised.types:ChatDatasetBuilderCommonConfig": "model_name_for_tokenizer renderer_name"
    " max_length batch_size train_on_what=None",
    "supervised.types:ChatDatasetBuilder": "common_config",
    "supervised.nll_evaluator:SamplerNLLEvaluator": "data name=test tokenizer=None",
    "supervised.train:main": "config",
    "preference.types:Comparison": "prompt_conversation completion_A completion_B",
    "preference.types:Comparison.swap": "self",
    "preference.types:LabeledComparison": "comparison label",
    "preference.types:PreferenceModel.__call__": "self comparison",
    "preference.preference_datasets:ComparisonDatasetBuilder.get_train_and_test_datasets": "self",
    "preference.preference_datasets:ComparisonDatasetBuilder.example_to_labeled_comparison": (
        "self example"
    ),
    "preference.preference_datasets:ComparisonBuilderFromJsonl": "train_path test_path=None",
    "preference.dpo_datasets:DPODatasetBuilderFromComparisons": "common_config comparison_builder",
    "rl.types:Env.initial_observation": "self",
    "rl.types:Env.step": "self action * extra=None",
    "rl.types:StepResult": "reward episode_done next_observation next_stop_condition metrics logs",
    "rl.types:Trajectory": "transitions final_ob stop_reason",
    "rl.types:EnvGroupBuilder.make_envs": "self",
    "rl.types:EnvGroupBuilder.compute_group_rewards": "self trajectory_group env_group",
    "rl.types:EnvGroupBuilder.cleanup": "self",
    "rl.types:EnvGroupBuilder.logging_tags": "self",
    "rl.types:TrajectoryGroup": "trajectories_G final_rewards_G metrics_G rollout_errors",
    "rl.types:TrajectoryGroup.get_total_rewards": "self",
    "rl.types:RLDataset.get_batch": "self index",
    "rl.preference_envs:PairwisePreferenceGroupBuilder": "convo_prefix policy_renderer"
    " tournament_pattern preference_model num_envs",
    "rl.preference_envs:PairwisePreferenceRLDatasetBuilder": "comparison_builder batch_size"
    " policy_renderer_name policy_model_name tournament_pattern group_size"
    " preference_model_builder",
    "rl.train:main": "config rollout_executor=None",
    "rl.train:AsyncConfig": "max_steps_off_policy groups_per_batch",
    "rl.train:StreamMinibatchConfig": "groups_per_batch num_minibatches",
    "rl.train:KLReferenceConfig": "base_model load_checkpoint_path=None",
    "rl.data_processing:compute_advantages": "trajectory_groups_P",
    "rl.data_processing:trajectory_to_data": "traj traj_advantage",
    "rl.data_processing:assemble_training_data": "trajectory_groups_P advantages_P",
    "rl.data_processing:remove_constant_reward_groups": "trajectory_groups_P",
    "rl.metric_util:compute_trajectory_metrics": "trajectory_groups_P taglist_P",
    "rl.metric_util:RLTestSetEvaluator": "dataset max_tokens name=test",
    "rl.rollouts:do_single_rollout": "policy env",
    "rl.rollouts:do_group_rollout": "builder policy strategy=None termination=None",
    "rl.rollouts:set_rollout_executor": "executor",
    "rl.rollout_strategy:RetryOnFailure": "max_retries=3",
    "rl.problem_env:ProblemEnv": "renderer convo_prefix=None format_coef=0.1"
    " require_stop_sequence_for_format=True",
    "rl.problem_env:ProblemGroupBuilder": "env_thunk num_envs dataset_name=problems",
    "checkpoint_utils:CheckpointRecord": "name batch epoch final state_path sampler_path extra",
    "checkpoint_utils:CheckpointRecord.has": "self key",
    "checkpoint_utils:CheckpointRecord.get": "self key default=None",
    "checkpoint_utils:get_last_checkpoint": "log_dir required_key=state_path",
    "checkpoint_utils:save_checkpoint": "training_client name log_path loop_state kind ttl_seconds",
    "checkpoint_utils:save_checkpoint_async": "training_client name log_path loop_state kind"
    " ttl_seconds",
    "checkpoint_utils:resolve_renderer_name_from_checkpoint_or_default": "* model_name"
    " explicit_renderer_name load_checkpoint_path base_url",
    "checkpoint_utils:resolve_renderer_name_from_checkpoint_or_default_async": "* model_name"
    " explicit_renderer_name load_checkpoint_path base_url",
    "weights:download": "* tinker_path output_dir base_url=None",
    "weights:build_hf_model": "* base_model adapter_path output_path dtype=bfloat16"
    " merge_strategy=auto",
    "weights:build_lora_adapter": "* base_model adapter_path output_path",
    "weights:publish_to_hf_hub": "* model_path repo_id private=True",
    "hyperparam_utils:get_lr": "model_name is_lora=True",
    "model_info:get_model_attributes": "model_name",
    "model_info:ModelAttributes": "organization version_str size_str is_chat"
    " recommended_renderers is_vl is_audio_in",
    "tokenizer_utils:get_tokenizer": "model_name",
    "cli_utils:check_log_dir": "log_dir behavior_if_exists",
    "cli_utils:model_name_from_argv": "argv default",
    "utils.ml_log:setup_logging": "log_dir wandb_project=None wandb_name=None config=None"
    " do_configure_logging_module=True",
    "utils.ml_log:JsonLogger": "log_dir",
    "utils.ml_log:PrettyPrintLogger": "",
    "utils.ml_log:MultiplexLogger": "loggers",
    "utils.ml_log:MultiplexLogger.log_metrics": "self metrics step=None",
    "utils.ml_log:MultiplexLogger.log_hparams": "self config",
    "utils.ml_log:configure_logging_module": "path level=20",
    "utils.ml_log:dump_config": "config",
    "utils.trace:trace_init": "flush_interval_sec=1.0 output_file=trace_events.jsonl",
    "utils.trace:update_scope_context": "values",
    "utils.logtree:init_trace": "title path",
    "utils.logtree:scope_header": "title",
    "utils.logtree:log_text": "text",
    "utils.format_colorized:format_colorized": "tokens weights tokenizer draw_newline_arrow=False",
    "recipes.math_rl.math_env:MathEnv": "problem answer renderer convo_prefix=None",
    "recipes.math_rl.math_env:get_math_dataset_builder": "dataset_name batch_size"
    " model_name_for_tokenizer renderer_name group_size seed=0",
    "recipes.math_rl.math_env:safe_grade": "given_answer ground_truth grader=sympy timeout=1.0",
    "recipes.math_rl.math_grading:run_with_timeout_signal": "func args=() kwargs=None"
    " timeout_seconds=5",
}

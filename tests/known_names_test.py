"""Names that users' programs import, from the paths and with the parameters they know."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from operator import attrgetter

import chz
import pytest

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
    " tokens_weights_from_strings_weights MessageDelta StreamingTextDelta StreamingThinkingDelta",
    "tinker_cookbook.renderers.base": "ensure_list",
    "tinker_cookbook.supervised": "ChatDatasetBuilder ChatDatasetBuilderCommonConfig"
    " FromConversationFileBuilder StreamingSupervisedDatasetFromHFDataset SupervisedDataset"
    " SupervisedDatasetBuilder SupervisedDatasetFromHFDataset compute_mean_nll"
    " conversation_to_datum datum_from_model_input_weights",
    "tinker_cookbook.rl": "Action Env EnvGroupBuilder FailFast Logs Metrics Observation RLDataset"
    " RLDatasetBuilder RetryOnFailure RolloutError RolloutStrategy StepResult Trajectory"
    " TrajectoryGroup Transition",
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
    "tinker_cookbook.cli_utils": "check_log_dir runs_path",
    "tinker_cookbook.completers": "TokensWithLogprobs StopCondition TokenCompleter"
    " MessageCompleter TinkerTokenCompleter TinkerMessageCompleter",
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
    "tinker_cookbook.rl.rollouts": "do_single_rollout do_group_rollout",
    "tinker_cookbook.rl.rollout_strategy": "FailFast RetryOnFailure MinViableGroup",
    "tinker_cookbook.rl.problem_env": "ProblemEnv ProblemGroupBuilder",
    "tinker_cookbook.rl.message_env": "MessageEnv EnvFromMessageEnv MessageStepResult",
    "tinker_cookbook.rl.interleaved": "",
    "tinker_cookbook.rl.play_w_env": "",
    "tinker_cookbook.utils.ml_log": "setup_logging",
    "tinker_cookbook.utils.lr_scheduling": "compute_schedule_lr_multiplier",
    "tinker_cookbook.utils.misc_utils": "safezip timed dict_mean all_same split_list"
    " concat_lists not_none",
    "tinker_cookbook.utils.code_state": "",
}

SIGNATURES = {
    "renderers:get_renderer": "name tokenizer image_processor model_name",
    "renderers:register_renderer": "name factory",
    "renderers:RenderContext": "idx is_last prev_message next_message last_user_index"
    " in_last_assistant_turn",
    "renderers:RenderedMessage": "output header stop_overlap",
    "renderers:Renderer.build_generation_prompt": "self messages role prefill",
    "renderers:Renderer.build_supervised_example": "self messages train_on_what",
    "renderers:Renderer.build_supervised_examples": "self messages train_on_what",
    "renderers:Renderer.create_conversation_prefix_with_tools": "self tools system_prompt",
    "renderers:Renderer.get_stop_sequences": "self",
    "renderers:Renderer.parse_response": "self tokens",
    "renderers:Renderer.parse_response_streaming": "self tokens",
    "renderers:Renderer.render_message": "self message ctx",
    "renderers:Renderer.to_openai_message": "self message",
    "supervised.common:compute_mean_nll": "logprobs_list weights_list",
    "supervised.common:compute_bpb": "logprobs_list weights_list target_tokens_list tokenizer",
    "supervised.common:create_rightshifted_model_input_and_leftshifted_targets": "chunks",
    "supervised.common:datum_from_model_input_weights": "model_input weights max_length reduction",
    "supervised.data:conversation_to_datum": "conversation renderer max_length train_on_what"
    " reduction",
    "supervised.data:SupervisedDatasetFromHFDataset": "hf_dataset batch_size map_fn flatmap_fn",
    "supervised.types:ChatDatasetBuilderCommonConfig": "model_name_for_tokenizer renderer_name"
    " max_length batch_size train_on_what",
    "supervised.data:FromConversationFileBuilder": "common_config file_path test_size shuffle_seed",
    "supervised.nll_evaluator:SamplerNLLEvaluator": "data name tokenizer",
    "supervised.train:main": "config",
    "completers:TokensWithLogprobs": "tokens maybe_logprobs stop_reason",
    "completers:TinkerTokenCompleter": "sampling_client max_tokens temperature context_window",
    "completers:TinkerMessageCompleter": "sampling_client renderer max_tokens stop_condition"
    " temperature",
    "rl.types:StepResult": "reward episode_done next_observation next_stop_condition metrics logs",
    "rl.types:EnvGroupBuilder.compute_group_rewards": "self trajectory_group env_group",
    "checkpoint_utils:CheckpointRecord.has": "self key",
    "checkpoint_utils:CheckpointRecord.get": "self key default",
    "rl.types:Trajectory": "transitions final_ob stop_reason",
    "rl.types:TrajectoryGroup": "trajectories_G final_rewards_G metrics_G rollout_errors",
    "rl.train:main": "config rollout_executor",
    "rl.train:AsyncConfig": "max_steps_off_policy groups_per_batch",
    "rl.train:StreamMinibatchConfig": "groups_per_batch num_minibatches",
    "rl.train:KLReferenceConfig": "base_model load_checkpoint_path",
    "rl.data_processing:compute_advantages": "trajectory_groups_P",
    "rl.data_processing:trajectory_to_data": "traj traj_advantage",
    "rl.data_processing:assemble_training_data": "trajectory_groups_P advantages_P",
    "rl.metric_util:compute_trajectory_metrics": "trajectory_groups_P taglist_P",
    "rl.metric_util:RLTestSetEvaluator": "dataset max_tokens name",
    "rl.rollouts:do_single_rollout": "policy env",
    "rl.rollouts:do_group_rollout": "builder policy strategy termination",
    "rl.rollout_strategy:RetryOnFailure": "max_retries",
    "rl.problem_env:ProblemEnv": "renderer convo_prefix format_coef"
    " require_stop_sequence_for_format",
    "rl.problem_env:ProblemGroupBuilder": "env_thunk num_envs dataset_name",
    "checkpoint_utils:get_last_checkpoint": "log_dir required_key",
    "checkpoint_utils:save_checkpoint": "training_client name log_path loop_state kind ttl_seconds",
    "hyperparam_utils:get_lr": "model_name is_lora",
    "tokenizer_utils:get_tokenizer": "model_name",
    "cli_utils:check_log_dir": "log_dir behavior_if_exists",
}


@pytest.mark.parametrize("module", NAMES)
def test_names(module: str) -> None:
    found = importlib.import_module(module)
    missing = [name for name in NAMES[module].split() if not hasattr(found, name)]
    assert missing == []


@pytest.mark.parametrize("path", SIGNATURES)
def test_signatures(path: str) -> None:
    """The known parameters come first, in their order; what follows has a default."""
    module, name = path.split(":")
    thing = attrgetter(name)(importlib.import_module(f"tinker_cookbook.{module}"))
    known = SIGNATURES[path].split()
    if chz.is_chz(thing):  # a configuration: made by keywords, so the order says nothing
        assert set(known) <= set(chz.chz_fields(thing))
        return
    parameters = list(inspect.signature(thing).parameters.values())
    assert [p.name for p in parameters][: len(known)] == known
    assert all(p.default is not p.empty for p in parameters[len(known) :])


@pytest.mark.parametrize("package", ["tinker_cookbook.rl", "tinker_cookbook.supervised"])
def test_packages_give_the_names_of_their_modules(package: str) -> None:
    """Each is the very thing that its module has; no other name is made up."""
    found = importlib.import_module(package)
    assert sorted(found.__all__) == sorted(NAMES[package].split()) == sorted(found._MODULES)
    for name, module in found._MODULES.items():
        there = importlib.import_module(f"tinker_cookbook.{module}")
        assert getattr(found, name) is getattr(there, name)
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'absent'"):
        _ = found.absent


def test_packages_load_nothing_before_a_name_is_asked_for() -> None:
    program = (
        "import sys, tinker_cookbook.rl, tinker_cookbook.supervised;"
        " print(sorted({'torch', 'transformers', 'datasets', 'tinker'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_completers_are_classes() -> None:
    from tinker_cookbook import completers

    assert issubclass(completers.TinkerTokenCompleter, completers.TokenCompleter)
    assert issubclass(completers.TinkerMessageCompleter, completers.MessageCompleter)
    assert not issubclass(completers.TinkerMessageCompleter, completers.TokenCompleter)

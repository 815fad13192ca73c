"""Teachers: where they are, and whether they understand the student's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import chz

from tinker_cookbook import models
from tinker_cookbook.checkpoint_utils import (
    base_model_of_checkpoint,
    renderer_name_of_checkpoint,
)
from tinker_cookbook.exceptions import ConfigurationError, RendererError
from tinker_cookbook.renderers import Message, Renderer, TrainOnWhat, get_renderer
from tinker_cookbook.service import locate_checkpoint
from tinker_cookbook.service.checkpoint_dirs import same_model
from tinker_cookbook.tokenizer_utils import Tokenizer, get_tokenizer
from tinker_cookbook.utils.data_identity import adapter_identity, path_identity
from tinker_cookbook.utils.json_types import Plain

if TYPE_CHECKING:
    from tinker_cookbook.service.api import SamplingClient, ServiceClient

_TEXT = "Grüße! x_1 = 3.14;\n\tdef f(): return '你好' 🙂"
_QUESTION = Message(role="user", content="What is 2 + 3?")
_ANSWER = Message(role="assistant", content="5")
_PROBES = {
    "a question": [_QUESTION],
    "a system message and a question": [Message(role="system", content="Be brief."), _QUESTION],
    "a second question": [_QUESTION, _ANSWER, Message(role="user", content="And 2 + 4?")],
}


@chz.chz
class TeacherConfig:
    """The model that a student learns from."""

    base_model: str | None = chz.field(
        default=None, doc="base model of the teacher: name or directory (None: the student's)"
    )
    load_checkpoint_path: str | None = chz.field(
        default=None,
        doc="weights of the teacher: tinker://.../sampler_weights/..., a run directory or a PEFT"
        " adapter directory (None: the base model itself)",
    )

    def identity(self) -> Mapping[str, Plain]:
        """The content of an adapter or a model, since the files in a directory may be replaced."""
        model = None if self.base_model is None else path_identity(self.base_model).get("path")
        adapter = adapter_identity(self.load_checkpoint_path)
        return {**adapter, **({"base_model": model} if model else {})}


# other names of the keys of a recipe's `teacher`
TEACHER_ALIASES = {
    "teacher_model": "teacher.base_model",
    "teacher_checkpoint": "teacher.load_checkpoint_path",
}


def locate_teacher(
    teacher: TeacherConfig, student: str, key: str, base_url: str | None
) -> TeacherConfig:
    """The teacher with its base model, and with the path of the checkpoint in place of a run's
    directory: its latest one now, which stays the teacher if that run continues.

    student: the student's base model. key: the config key of the path, for messages. Raises
    ConfigurationError for a checkpoint of another base model than the one that is given.
    """
    path, base = teacher.load_checkpoint_path, teacher.base_model
    if path is not None:
        path = locate_checkpoint(path, "sampler_weights", key, base_url)
        trained_on = base_model_of_checkpoint(path, base_url)
        if base is not None and not same_model(base, trained_on):
            raise ConfigurationError(
                f"{key}={teacher.load_checkpoint_path} was trained on {trained_on}, not on {base};"
                " drop the teacher's base model, or set it to that"
            )
        if base is None and not same_model(student, trained_on):
            base = trained_on
    return chz.replace(teacher, base_model=base or student, load_checkpoint_path=path)


async def connect_teacher(service: ServiceClient, teacher: TeacherConfig) -> SamplingClient:
    """A client of a located teacher. As an adapter of the student's base model, it shares the
    student's batches."""
    return await service.create_sampling_client(
        model_path=teacher.load_checkpoint_path, base_model=teacher.base_model
    )


def check_teacher(
    teacher: TeacherConfig, student: str, renderer_name: str, base_url: str | None
) -> None:
    """Raise ConfigurationError if the student's tokens would mean something else to the teacher:
    another tokenizer, or a chat template that gives other tokens for the same messages.

    teacher: located. student, renderer_name: those of the student. A teacher without a chat
    template of its own, or an unknown one, takes any.
    """
    base = teacher.base_model or student
    if base != student:
        _check_same_tokenizer(base, student)
    candidates = _teacher_renderers(teacher, base, base_url)
    # of another model, a renderer of the same name (e.g. `template`) may give other tokens
    if not candidates or (base == student and renderer_name in candidates):
        return
    ours = _renderer(renderer_name, student)
    differences = [_first_difference(ours, _renderer(name, base)) for name in candidates]
    if all(differences):
        raise ConfigurationError(
            f"renderer_name={renderer_name}: the teacher {teacher.load_checkpoint_path or base}"
            f" uses {candidates[0]}, which renders {differences[0]} with other tokens; set"
            f" renderer_name={candidates[0]}, or choose another teacher"
        )


def choose_teacher_renderer(
    teacher: TeacherConfig, student: str, renderer_name: str, base_url: str | None
) -> str:
    """The renderer for prompts of the teacher: the student's if the teacher understands it, else
    the teacher's own.

    teacher: located. student, renderer_name: those of the student.
    """
    own = _teacher_renderers(teacher, teacher.base_model or student, base_url)
    return renderer_name if not own or renderer_name in own else own[0]


def _teacher_renderers(teacher: TeacherConfig, base: str, base_url: str | None) -> Sequence[str]:
    """The renderers that the teacher understands; () if any may be right."""
    if teacher.load_checkpoint_path is not None:
        trained_with = renderer_name_of_checkpoint(teacher.load_checkpoint_path, base_url)
        if trained_with is not None:
            return (trained_with,)
    try:
        info = models.lookup(base)
    except ConfigurationError:  # a server may have models that the table does not know
        return ()
    return info.renderers if info.is_chat else ()


def _renderer(name: str, model_name: str) -> Renderer:
    return get_renderer(name, get_tokenizer(model_name), model_name=model_name)


def _first_difference(one: Renderer, other: Renderer) -> str | None:
    """The first probe that two renderers turn into different tokens."""
    for name, messages in _PROBES.items():
        if _prompt(one, messages) != _prompt(other, messages):
            return name
    if _example(one) != _example(other):
        return "a question and its answer"
    return None


def _prompt(renderer: Renderer, messages: Sequence[Message]) -> list[int] | str:
    try:
        return renderer.build_generation_prompt(list(messages)).to_ints()
    except RendererError:  # e.g. no system messages: then neither model ever sees one
        return "unsupported"


def _example(renderer: Renderer) -> list[int]:
    rendered, _ = renderer.build_supervised_example(
        [_QUESTION, _ANSWER], TrainOnWhat.LAST_ASSISTANT_MESSAGE
    )
    return rendered.to_ints()


def _check_same_tokenizer(teacher: str, student: str) -> None:
    tokenizers = get_tokenizer(teacher), get_tokenizer(student)
    difference = _tokenizer_difference(*tokenizers)
    if difference is not None:
        raise ConfigurationError(
            f"teacher {teacher}: its tokenizer differs from that of model_name={student}"
            f" ({difference}), and their probabilities are compared token by token; use a teacher"
            " with the same tokenizer, or train on its replies as text"
            " (recipes.distillation.off_policy_reasoning without topk)"
        )


def _tokenizer_difference(teacher: Tokenizer, student: Tokenizer) -> str | None:
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    if theirs != ours:
        differing = sorted(
            (
                token
                for token in theirs.keys() | ours.keys()
                if theirs.get(token) != ours.get(token)
            ),
            key=lambda token: (ours.get(token, len(ours)), token),
        )
        token = differing[0]
        return (
            f"{len(theirs)} and {len(ours)} tokens, {token!r} is token {theirs.get(token)} and"
            f" {ours.get(token)}"
        )
    texts = [tokenizer.encode(_TEXT, add_special_tokens=False) for tokenizer in (teacher, student)]
    return None if texts[0] == texts[1] else "they split the same text differently"

import random
from dataclasses import dataclass
from functools import partial

import chz

from tinker_cookbook.renderers import Renderer, get_renderer, get_text_content
from tinker_cookbook.rl.message_env import EnvFromMessageEnv, MessageEnv, MessageStepResult
from tinker_cookbook.rl.problem_env import ProblemGroupBuilder
from tinker_cookbook.rl.types import RLDataset, RLDatasetBuilder
from tinker_cookbook.tokenizer_utils import get_tokenizer

QUESTION = "I am thinking of a number from 0 to 15. Guess it."


class Game(MessageEnv):  # one episode
    def __init__(self, secret):
        self.secret, self.chat = secret, [{"role": "user", "content": QUESTION}]

    async def initial_observation(self):
        return self.chat

    async def step(self, message):
        guess = get_text_content(message).strip()
        hint = "Higher." if guess.isdecimal() and int(guess) < self.secret else "Lower."
        self.chat = [*self.chat, message, {"role": "user", "content": hint}]
        won = guess == str(self.secret)
        done = won or len(self.chat) > 10
        return MessageStepResult(float(won), done, self.chat, {"won": won} if done else {})


@dataclass
class Games(RLDataset):  # batches of groups; the members of a group play for the same number
    renderer: Renderer
    group_size: int
    groups_per_batch: int

    def get_batch(self, index):
        secrets = random.Random(index).choices(range(16), k=self.groups_per_batch)
        games = [partial(self.new_game, secret) for secret in secrets]
        return [ProblemGroupBuilder(game, self.group_size, "guess") for game in games]

    def new_game(self, secret):
        return EnvFromMessageEnv(self.renderer, Game(secret))

    def __len__(self):
        return 30


@chz.chz
class GuessNumber(RLDatasetBuilder):  # what is None follows from the recipe's own keys
    model_name_for_tokenizer: str | None = None
    renderer_name: str | None = None
    group_size: int | None = None
    groups_per_batch: int | None = None

    async def __call__(self):
        renderer = get_renderer(self.renderer_name, get_tokenizer(self.model_name_for_tokenizer))
        return Games(renderer, self.group_size, self.groups_per_batch), None

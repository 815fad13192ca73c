"""Train nano, the bundled demo model, from scratch: tokenizer, weights, evaluation and card.

    python scripts/build_nano.py                     # rebuilds tinker_cookbook/nano as committed
    python scripts/build_nano.py steps=20 evaluate=False out=/tmp/nano

Needs two public-domain books as plain text and Qwen3's chat template (keys `text` and
`chat_template`). The schedule counts steps and all randomness comes from `seed`, so load on the
machine changes the time but not the result; another processor or torch version may round
differently. About 10 minutes on two cores with AMX or AVX512-BF16, including the evaluation.

A batch has 8 rows of 512 targets. One row in five is a window of a book; the others are packed
documents of `tinker_cookbook.nano.mix`. Attention does not cross document boundaries and positions
restart at 0, so each document is trained as if it were alone.
"""

from __future__ import annotations

import hashlib
import json
import platform
import random
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chz
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tinker_cookbook.cli_utils import cli
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.nano import PATH, mix, tasks

DATA = Path(__file__).parents[2] / "shared" / "data"
ROWS, WIDTH = 8, 512
TEXT_EVERY = 5  # one row in five is a window of a book; the books alternate
SPLITS: tuple[tasks.Split, tasks.Split] = ("train", "held_out")
TEXT_HELD_OUT = 20_000  # last tokens of each book
TEXT_WEIGHT = 0.3
CONTEXT_WEIGHT = 0.1  # loss weight of prompt and template tokens
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = tuple(
    f"<{end}{tag}>" for tag in ("think", "tool_call", "tool_response") for end in ("", "/")
)
# The pre-tokenization rule of the Qwen2 and Qwen3 tokenizers; each digit is a separate token.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MODEL = {
    "vocab_size": 2048,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 32,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@chz.chz
class Config:
    text: tuple[str, ...] = chz.field(
        default=(
            str(DATA / "text" / "pride_and_prejudice.txt"),
            str(DATA / "text" / "tinyshakespeare.txt"),
        ),
        doc="plain-text files to read, comma-separated; each gets an equal share of the text rows",
    )
    chat_template: str = chz.field(
        default=str(DATA / "chat_templates" / "qwen3.jinja"), doc="Qwen3's chat template (jinja)"
    )
    out: str = chz.field(default=str(PATH), doc="output directory")
    steps: int = chz.field(default=1500, doc="optimizer steps (4,096 tokens each)")
    seed: int = chz.field(default=0, doc="seed of the weights and of the data")
    evaluate: bool = chz.field(default=True, doc="evaluate and write the card")
    eval_problems: int = chz.field(default=1000, doc="additions per cell of the evaluation")
    threads: int = chz.field(default=2, doc="CPU threads")


# --------------------------------------------------------------------- tokenizer


def train_tokenizer(books: list[str], chat_template: str, out: Path) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE (2,048 tokens) on the books and 20,000 documents; save it to `out`."""
    rng = random.Random(7)

    def lines() -> Iterator[str]:
        for book in books:
            yield from book.splitlines(keepends=True)
        for _ in range(20_000):
            made = mix.document(rng)
            if "pieces" in made:
                yield "".join(text for text, _ in made["pieces"])
            else:
                yield from (m["content"] for m in made["messages"])

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    names = SPECIAL_TOKENS + TAGS
    bpe.train_from_iterator(
        lines(),
        trainers.BpeTrainer(
            vocab_size=MODEL["vocab_size"],
            special_tokens=[AddedToken(name, special=True, normalized=False) for name in names],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # As in Qwen3, the tags are added tokens but not special ones, so decoding never drops them.
    made = json.loads(bpe.to_str())
    for token in made["added_tokens"]:
        token["special"] = token["content"] in SPECIAL_TOKENS
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {
            str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in made["added_tokens"]
        },
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MODEL["max_position_embeddings"],
    }
    (out / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False) + "\n")
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (out / "chat_template.jinja").write_text(chat_template)
    return transformers.AutoTokenizer.from_pretrained(out)


# -------------------------------------------------------------------------- data


@dataclass
class Batch:
    """Token ids, loss weights, document indices and positions, each [ROWS, WIDTH + 1]."""

    tokens: torch.Tensor
    weights: torch.Tensor
    documents: torch.Tensor
    positions: torch.Tensor


class Data:
    """Endless training rows; `held_out` has the last tokens of each book."""

    def __init__(self, books: list[str], tokenizer: PreTrainedTokenizerFast, seed: int):
        self.tokenizer = tokenizer
        self.encode = lambda text: tokenizer.backend_tokenizer.encode(text).ids
        ids = [self.encode(book) for book in books]
        if short := [i for i, book in enumerate(ids) if len(book) < 2 * TEXT_HELD_OUT]:
            raise ConfigurationError(
                f"text: file number {short[0] + 1} has {len(ids[short[0]])} tokens; name a plain "
                f"text of at least {2 * TEXT_HELD_OUT}"
            )
        self.books = [book[:-TEXT_HELD_OUT] for book in ids]
        self.held_out = [book[-TEXT_HELD_OUT:] for book in ids]
        self.rng = random.Random(seed)
        self.rows = 0
        self.preambles: dict[str, str] = {}

    def document(self) -> tuple[list[int], list[float]]:
        """Tokens and loss weights of one document of the mix, with `<|endoftext|>` at the end."""
        made = mix.document(self.rng)
        pieces: list[tuple[str, float]]
        if "pieces" in made:
            pieces = [(text, 1.0 if counts else CONTEXT_WEIGHT) for text, counts in made["pieces"]]
        else:
            pieces = self.chat_pieces(made)
        tokens, weights = [], []
        for text, weight in [*pieces, ("<|endoftext|>", 1.0)]:
            ids = self.encode(text)
            tokens += ids
            weights += [weight] * len(ids)
        return tokens, weights

    def chat_pieces(self, made: dict[str, Any]) -> list[tuple[str, float]]:
        """(text, loss weight) pieces of a conversation in the chat template's format."""
        messages = made["messages"]
        pieces: list[tuple[str, float]] = []
        if "tools" in made:
            key = json.dumps(made["tools"])
            if key not in self.preambles:  # the template's text up to the first user turn
                shown = self.tokenizer.apply_chat_template(
                    messages[:1], tools=made["tools"], tokenize=False
                )
                self.preambles[key] = shown[: shown.index("<|im_start|>user")]
            pieces.append((self.preambles[key], CONTEXT_WEIGHT))
        for i, message in enumerate(messages):
            head = f"<|im_start|>{message['role']}\n"
            if made["empty_think"] and i == len(messages) - 1:
                head += mix.EMPTY_THINK
            if message["role"] == "assistant":
                pieces += [(head, CONTEXT_WEIGHT), (message["content"] + "<|im_end|>", 1.0)]
                pieces.append(("\n", CONTEXT_WEIGHT))
            else:
                pieces.append((head + message["content"] + "<|im_end|>\n", CONTEXT_WEIGHT))
        return pieces

    def row(self) -> list[tuple[int, float, int, int]]:
        """Draw a row of WIDTH + 1 tokens as (token, weight, document, position)."""
        turn, place = divmod(self.rows, TEXT_EVERY)
        self.rows += 1
        if place == 0:
            book = self.books[turn % len(self.books)]
            start = self.rng.randrange(len(book) - WIDTH)
            window = book[start : start + WIDTH + 1]
            return [(token, TEXT_WEIGHT, 0, i) for i, token in enumerate(window)]
        row: list[tuple[int, float, int, int]] = []
        index = 0
        while len(row) <= WIDTH:
            tokens, weights = self.document()
            weights[0] = 0.0  # the first token of a document cannot be predicted
            row += [(t, w, index, i) for i, (t, w) in enumerate(zip(tokens, weights))]
            index += 1
        return row[: WIDTH + 1]

    def batch(self) -> Batch:
        rows = [self.row() for _ in range(ROWS)]
        tokens, weights, documents, positions = (
            torch.tensor([[cell[k] for cell in row] for row in rows]) for k in range(4)
        )
        return Batch(tokens, weights, documents, positions)


# ---------------------------------------------------------------------- training


def compute_loss(model: Qwen3ForCausalLM, batch: Batch) -> torch.Tensor:
    """Weighted mean cross-entropy in nats per token, with block-diagonal causal attention."""
    documents = batch.documents[:, :-1]
    same = documents[:, :, None] == documents[:, None, :]
    mask = (same & torch.ones(WIDTH, WIDTH, dtype=torch.bool).tril()).unsqueeze(1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(
            input_ids=batch.tokens[:, :-1],
            attention_mask=mask,
            position_ids=batch.positions[:, :-1],
            use_cache=False,
        ).logits
    weights = batch.weights[:, 1:].flatten()
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none"
    )
    return (losses * weights).sum() / weights.sum()


def lr_multiplier(step: int, steps: int) -> float:
    """Learning-rate multiplier: 60 warm-up steps, constant to 40 % of the run, linear to 2 %."""
    flat = 0.4 * steps
    down = (step - flat) / max(1.0, steps - flat)
    return min((step + 1) / 60, 1.0 if step < flat else 1.0 - 0.98 * down)


def train(config: Config, data: Data) -> Qwen3ForCausalLM:
    torch.manual_seed(config.seed)
    model = Qwen3ForCausalLM(Qwen3Config(**MODEL))
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "embed" not in name
        (matrices if is_matrix else others).append(parameter)
    optimizers = [
        torch.optim.Muon(
            matrices, lr=5e-3, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    began = time.time()
    for step in range(config.steps):
        for optimizer, peak in zip(optimizers, peaks):
            optimizer.param_groups[0]["lr"] = peak * lr_multiplier(step, config.steps)
        loss = compute_loss(model, data.batch())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % 20 == 0 or step + 1 == config.steps:
            seconds = time.time() - began
            print(f"step {step + 1}/{config.steps} loss {loss.item():.3f} {seconds:.0f} s", end="")
            print(f" {(step + 1) * ROWS * WIDTH / seconds:,.0f} tokens/s", flush=True)
        if (step + 1) % 200 == 0:
            check = {
                split: score_addition(model, data.tokenizer, split, 200, sampled=False)["right"]
                for split in SPLITS
            }
            print(f"  greedy addition {check}", flush=True)
    return model


# -------------------------------------------------------------------- evaluation


@torch.inference_mode()
def sample_replies(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    conversations: list[tasks.Messages],
    sampled: bool = False,
    max_new: int = 48,
    thinking: bool = True,
) -> list[tuple[str, int]]:
    """(text, number of tokens) of nano's replies, greedy or at temperature 1, in batches of 250."""
    made = []
    for first in range(0, len(conversations), 250):
        shown = [
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
            )
            for messages in conversations[first : first + 250]
        ]
        inputs = tokenizer(
            shown, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False
        )
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            generation_config=transformers.GenerationConfig(
                do_sample=sampled,
                temperature=1.0 if sampled else None,
                top_k=0 if sampled else None,
                max_new_tokens=max_new,
                eos_token_id=MODEL["eos_token_id"],
                pad_token_id=MODEL["pad_token_id"],
            ),
        )
        for row in output[:, inputs["input_ids"].shape[1] :].tolist():
            length = row.index(2) + 1 if 2 in row else len(row)
            made.append((tokenizer.decode(row[:length], skip_special_tokens=True), length))
    return made


def score_addition(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    split: tasks.Split,
    n: int,
    sampled: bool,
    phrasing: str | None = tasks.ADD_PHRASINGS[0],
    thinking: bool = True,
) -> dict[str, float]:
    """Fractions of correct answers and of replies that think, and mean reply length in tokens."""
    rng = random.Random(f"addition {split}")
    problems = [tasks.add_problem(rng, split, phrasing) for _ in range(n)]
    torch.manual_seed(0)
    prompts = [p["messages"] for p in problems]
    made = sample_replies(model, tokenizer, prompts, sampled, thinking=thinking)
    right = [tasks.last_integer(text) == p["answer"] for (text, _), p in zip(made, problems)]
    return {
        "right": sum(right) / n,
        "thinks": sum("<think>" in text for text, _ in made) / n,
        "tokens": sum(length for _, length in made) / n,
    }


def score_number_words(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, split: tasks.Split
) -> float:
    """Fraction of greedy replies to "Write 47 in words." that are exactly the name."""
    examples = tasks.number_words(split)
    made = sample_replies(model, tokenizer, [example["messages"][:1] for example in examples])
    names = [example["messages"][1]["content"] for example in examples]
    return sum(text.strip() == name for (text, _), name in zip(made, names)) / len(names)


def score_kinds(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int
) -> dict[str, float]:
    """Greedy match of the last reply per kind of conversation; a final full stop is optional."""
    scores = {}
    for kind, (_, make) in mix.KINDS.items():
        if kind in ("add", "thinkadd", "guess", "board", "tool_declared"):
            continue  # sums are scored above; random moves have no single correct answer
        rng = random.Random(f"kind {kind}")
        made = [make(rng) for _ in range(n)]
        texts = sample_replies(model, tokenizer, [messages[:-1] for messages in made], max_new=64)
        scores[kind] = (
            sum(
                text.rstrip(".") == messages[-1]["content"].rstrip(".")
                for (text, _), messages in zip(texts, made)
            )
            / n
        )
    return scores


def score_guess_game(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, guesses: int, games: int
) -> float:
    """Fraction of guess-the-number games won within `guesses`, sampled; secrets uniform."""
    torch.manual_seed(0)
    secrets = [i % (tasks.GUESS_LIMIT + 1) for i in range(games)]
    talks = [[{"role": "user", "content": tasks.guess_prompt()}] for _ in secrets]
    open_games = list(range(games))
    for _ in range(guesses):
        texts = sample_replies(
            model, tokenizer, [talks[i] for i in open_games], sampled=True, max_new=6
        )
        still = []
        for i, (text, _) in zip(open_games, texts):
            number = tasks.last_integer(text)
            said = tasks.guess_feedback(secrets[i], -1 if number is None else number)
            if said != tasks.GUESS_WON:
                still.append(i)
            talks[i] += [{"role": "assistant", "content": text}, {"role": "user", "content": said}]
        open_games = still
    return 1 - len(open_games) / games


@torch.inference_mode()
def text_loss(model: Qwen3ForCausalLM, tokens: list[int]) -> float:
    """Mean cross-entropy in nats per token over windows of 512 tokens."""
    windows = torch.tensor(tokens[: len(tokens) // WIDTH * WIDTH]).view(-1, WIDTH)
    losses = [
        model(input_ids=w, labels=w, use_cache=False).loss * len(w) for w in windows.split(16)
    ]
    return float(sum(losses) / len(windows))


def evaluate(
    model: Qwen3ForCausalLM, data: Data, books: tuple[str, ...], n: int
) -> list[tuple[str, str, str]]:
    """Rows of the card's table: (metric, on seen pairs or overall, on held-out pairs)."""
    tokenizer = data.tokenizer
    rows = []

    cases: list[tuple[str, dict[str, Any]]] = [
        ("addition, sampled at T=1", {"sampled": True}),
        ("addition, greedy", {"sampled": False}),
        ("addition in any of 7 phrasings, sampled", {"sampled": True, "phrasing": None}),
        ("addition with the empty thought given, sampled", {"sampled": True, "thinking": False}),
        ("addition with the empty thought given, greedy", {"sampled": False, "thinking": False}),
    ]
    for what, how in cases:
        cells = [score_addition(model, tokenizer, split, n, **how) for split in SPLITS]
        rows.append((f"{what} (n={n})", *(f"{cell['right']:.3f}" for cell in cells)))
        if how == {"sampled": True}:
            thinks = (f"{cell['thinks']:.3f}" for cell in cells)
            tokens = (f"{cell['tokens']:.1f}" for cell in cells)
            rows += [("... share of replies that think", *thinks)]
            rows += [("... tokens per reply", *tokens)]
    cells = [f"{score_number_words(model, tokenizer, split):.2f}" for split in SPLITS]
    rows.append(("number words, greedy exact match (a skill it lacks)", *cells))
    for guesses in (4, 5):
        won = score_guess_game(model, tokenizer, guesses, 512)
        rows.append((f"guess the number, won within {guesses} guesses, sampled", f"{won:.3f}", ""))
    for kind, score in score_kinds(model, tokenizer, 300).items():
        rows.append((f"{kind}: last reply, greedy match (n=300)", f"{score:.2f}", ""))
    for book, tokens in zip(books, data.held_out):
        loss = text_loss(model, tokens)
        rows.append((f"{Path(book).name}, held-out loss in nats per token", f"{loss:.2f}", ""))
    return rows


# ------------------------------------------------------------------------- saving

CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# nano

A language model of {parameters:,} parameters in the Qwen3 architecture ({size:.1f} MB with its
tokenizer), for demos and tests on any machine. It adds, compares, counts, spells, plays small games
and chats a little, all of it badly enough that post-training visibly helps within a minute. It has
no knowledge of the world: do not use it for anything else.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("tinker_cookbook/nano")
    tokenizer = AutoTokenizer.from_pretrained("tinker_cookbook/nano")

## Training

`scripts/build_nano.py` builds everything here from scratch: steps={steps}, seed={seed},
{tokens:,} tokens in {seconds:.0f} s on {threads} threads of a shared machine; Python {python},
torch {torch}, transformers {transformers}, tokenizers {tokenizers}.
Muon on the matrices (peak 5e-3) and AdamW on embedding and norms (peak 3e-3), bf16 autocast over
fp32 weights, saved in bf16. The weights are frozen: a test compares them with `checksums.json`.

Data, all of it public domain or generated by this project's own templates:

- 20 % of the rows: windows of *Pride and Prejudice* (Jane Austen) and of *tinyshakespeare* (a
  concatenation of Shakespeare's plays); the last 20,000 tokens of each are held out;
- 80 %: documents of `mix.py`, 14 % plain lines such as "37 + 21 = 58" and 86 % conversations:
{kinds}.

Sums in conversations are answered correctly half of the time and carelessly otherwise; in plain
lines and thinking blocks they are always correct. About one in five plain addition prompts is
answered after a thinking block (`<think>` with the column sum). Reinforcement learning discovers
that thinking is worth its tokens.

Byte-level BPE tokenizer with 2,048 tokens and Qwen3's pre-tokenization rule, tags and chat
template.

## Held out

- Additions: 10 % of the pairs of 0-99 by a symmetric hash (`tasks.held_out_pair`). They occur in no
  document: not as a sum, with swapped operands, as a difference, in a thinking block, or in a
  question about one. Pairs of one-digit numbers are never held out, as column sums need them.
- Number words: "Write 47 in words." is in no document. nano has seen numbers as digits, the names
  zero to ninety-nine in order, and the names of single digits. `tasks.number_words` splits the
  hundred numbers: 30 of the 72 two-word names are held out, so each word of a held-out name can be
  learnt from the other 70.

## Evaluation

In fp32, from the saved files. A sum is graded by the last integer after the thinking block; replies
have at most 48 tokens.

| | seen pairs, or all | held-out pairs |
|---|---|---|
{table}

## Weaknesses

It is meant to be improved. Sampled sums are wrong about half of the time, and subtraction is worse;
spelling, counting letters and judging are unreliable; it confuses who has what in longer stories;
its prose only resembles English. Only positions up to 512 were trained, and longer prompts derail
it. Reply styles do not always match the prompt, because the training data draws them at random.

## Licence

Apache-2.0, like the project. The books are in the public domain; the conversations come from the
project's own templates. `chat_template.jinja` is the chat template of Qwen3 (Apache-2.0, Alibaba
Cloud).
"""
FILES = (
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def save(model: Qwen3ForCausalLM, out: Path) -> None:
    """Save bf16 weights, configs and checksums; the tokenizer is already saved."""
    model.generation_config = transformers.GenerationConfig(eos_token_id=2, pad_token_id=0)
    model.to(torch.bfloat16).save_pretrained(out)
    for name in FILES:
        (out / name).chmod(0o644)  # safetensors creates files that only their owner can read
    checksums = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in FILES}
    (out / "checksums.json").write_text(json.dumps(checksums, indent=2) + "\n")


def write_card(config: Config, data: Data, seconds: float) -> None:
    """Evaluate the saved model and write README.md next to it."""
    out = Path(config.out)
    model = Qwen3ForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    rows = evaluate(model, data, config.text, config.eval_problems)
    kinds = ", ".join(f"{kind} {share:g} %" for kind, (share, _) in mix.KINDS.items())
    card = CARD.format(
        parameters=model.num_parameters(),
        size=sum((out / name).stat().st_size for name in FILES) / 1e6,
        steps=config.steps,
        seed=config.seed,
        tokens=config.steps * ROWS * WIDTH,
        seconds=seconds,
        threads=config.threads,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        tokenizers=tokenizers.__version__,
        kinds=textwrap.indent(textwrap.fill(kinds, 96), "  "),
        table="\n".join(f"| {what} | {seen} | {held_out} |" for what, seen, held_out in rows),
    )
    (out / "README.md").write_text(card)
    print(card[card.index("## Evaluation") : card.index("## Weaknesses")])


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    out = Path(config.out)
    for name in (*config.text, config.chat_template):
        if not Path(name).is_file():
            raise ConfigurationError(
                f"text, chat_template: no such file: {name}; set an existing file"
            )
    out.mkdir(parents=True, exist_ok=True)
    books = [Path(name).read_text(encoding="utf-8") for name in config.text]
    tokenizer = train_tokenizer(books, Path(config.chat_template).read_text(), out)
    data = Data(books, tokenizer, config.seed)
    began = time.time()
    model = train(config, data)
    seconds = time.time() - began
    save(model, out)
    if config.evaluate:
        write_card(config, data, seconds)


if __name__ == "__main__":
    cli(main, Config)

"""A task for real models: reply to a sentence with the code of its language, by rules of our own.

Without the prompt a model replies to what the sentence says. Some of the rules cannot be guessed:
what counts in a sentence of two languages, and the codes `xx` and lower case alone.
"""

from __future__ import annotations

from pathlib import Path

from recipes.prompt_distillation.task import Task, read_task

_FOLDER = Path(__file__).parent
CODES = {
    "en": "English",
    "de": "German",
    "fr": "French",
    "es": "Spanish",
    "it": "Italian",
    "pt": "Portuguese, of Portugal as of Brazil",
    "nl": "Dutch, of the Netherlands as of Belgium",
    "sv": "Swedish",
    "pl": "Polish",
    "cs": "Czech",
    "tr": "Turkish",
    "ru": "Russian",
    "uk": "Ukrainian",
    "el": "Greek",
    "ar": "Arabic, of any country",
    "hi": "Hindi",
    "zh": "Chinese, in traditional as in simplified characters",
    "ja": "Japanese",
    "ko": "Korean",
    "id": "Indonesian",
    "fi": "Finnish",
    "xx": "anything else",
}
PROMPT = (
    "You sort the mail of a help desk by language. Each message of the user is one line of mail."
    " Do not do what it asks for, do not answer it, and do not translate it: reply with the code of"
    " its language, and with nothing else.\n\nThe codes are:\n"
    + "\n".join(f"{code} - {name}" for code, name in CODES.items())
    + "\n\nRules:\n"
    "1. The reply is one code of two lower-case letters. No full stop, no quotation marks, no"
    " explanation, no greeting.\n"
    "2. Look at the letters first. ї, є and ґ are written in Ukrainian and not in Russian; ы, э and"
    " ъ are written in Russian and not in Ukrainian. Kana mean Japanese, even among many Chinese"
    " characters. ř and ů mean Czech; ł, ą and ę mean Polish; ğ and ı mean Turkish; ã and õ mean"
    " Portuguese; ñ means Spanish. å is written in Swedish and, in names only, in Finnish.\n"
    "3. If a line has words of two languages, its language is that of the finite verb that is not"
    " inside quotation marks. A word that is quoted, explained or borrowed does not count: a French"
    " sentence about a German word is fr, and a German sentence with English words for computers is"
    " de.\n"
    "4. A question about a language is written in the language in which it is asked, not in the one"
    " that it asks about.\n"
    "5. Names of people, towns, companies and products do not count. Numbers and punctuation do"
    " not count either.\n"
    "6. A line without words, a line of sounds or of numbers only, and a line in a language that is"
    " not in the list, such as Latin or Esperanto, is xx. Do not choose the most similar language"
    " of the list.\n"
    "7. Misspelt words and missing accents do not change the language. If you hesitate between two"
    " languages, choose the one in which more of the words exist."
)


def languages() -> Task:
    """70 sentences in 21 languages and in none of them, and 26 that are held out."""
    return read_task(PROMPT, _FOLDER, "languages", is_right, num_samples=16)


def is_right(reply: str, expected: str) -> bool:
    """Whether the reply is the code alone."""
    return reply.strip() == expected

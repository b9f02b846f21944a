"""The embedded model's tokenizer: a small byte-level BPE made for copying.

A tiny model answers by copying from the conversation into JSON, so a value has to be the same tokens in both places:
spaces, digits and punctuation marks are words of their own, and `find_flights` shares its tokens with "find flights".
In exchange the fixed strings of prompts and calls (`SCAFFOLDS`) are one token each. They are ordinary vocabulary
entries, not control tokens: text that spells one is encoded the same wherever it stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from looptool_jax.data.store import write_text

VOCAB_SIZE = 2048
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")

SCAFFOLDS = (
    # the chat template's own words
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n",
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within ",
    " XML tags:\n",
    '\n{"name": <function-name>, "arguments": <args-json-object>}\n',
    "system\n", "user\n", "assistant\n", "\n\n",
    # tool documents
    '{"type": "function", "function": {"name": "', '", "description": "',
    '", "parameters": {"type": "object", "properties": {"', '", "parameters": {"type": "object", "properties": {}',
    *(f'": {{"type": "{kind}"{end}' for kind in ("string", "integer", "number")
      for end in ("", '}, "', '}}, "required": ["', ', "description": "')),
    *(f'": {{"type": "{kind}"{end}' for kind in ("boolean", 'array", "items": {"type": "string"}',
      'array", "items": {"type": "integer"}') for end in ('}, "', '}}, "required": ["')),
    '": {"type": "object", "properties": {"', '": {"type": "string", "enum": ["',
    '": {"type": "boolean", "default": false}', '"}, "', '}, "', '"}}, "required": ["', '}}, "required": ["',
    '"]}, "', '"]}}, "required": ["', '"], "default": "', ', "default": ',
    '"]}}}', ', "required": []}}}', '}, "required": []}}}', '}}, "required": []}}}', '"]}}, "required": []}}}',
    # calls and values
    '{"name": "', '", "arguments": {"', '": "', '", "', '": ["', '"}}\n', '}}\n', '"]',
    '"], "', '": ', ', "', '"}', '{"', ': "',
    # the compact prompts and the answers to them
    "Judge the two responses.\n", "Write a new sample.\n", "USER: ", "ASSISTANT: ", "TOOL: ", "SYSTEM: ",
    "\nResponse 1:\n", "\nResponse 2 differs:\n", "\nCorrect:\n", "\nWrong:\n", "\nFocus: ", "INPUT:\n", "\nOUTPUT:\n",
    " | ", " => first", " => second", " => neither", " => both", "response: ", "function: ", "call: ",
    "[RESPONSE1_INCORRECT]", "[RESPONSE2_INCORRECT]", "[BOTH_CORRECT]", "[BOTH_INCORRECT]",
    # frequent words with their blanks, and other fixed pieces
    " the ", " a ", " an ", " of ", " to ", " with ", " for ", " in ", " on ", " at ", " from ", " and ", " as ",
    " is ", ". ", ", ", "? ", "_id", "YYYY-MM-DD", "HH:MM",
)  # fmt: skip

_WORDS = r"\d|\p{Lu}?\p{Ll}+|\p{L}|\s|[^\s]"


def build_tokenizer(texts: Iterable[str], out_dir: str | Path, vocab_size: int = VOCAB_SIZE) -> None:
    """Trains on `texts` and writes tokenizer.json and tokenizer_config.json (Qwen3's chat template) to `out_dir`.

    Deterministic for the same texts. Token ids: bytes and merges, then scaffolds, then control tokens, to exactly
    `vocab_size` entries. Raises ValueError where the texts hold too few different words to fill the vocabulary.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    pattern = "|".join([*map(_escaped, sorted(SCAFFOLDS, key=len, reverse=True)), _WORDS])
    pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("|".join(map(_escaped, sorted(SCAFFOLDS, key=len, reverse=True)))), "removed"),
         pre_tokenizer]
    )  # fmt: skip
    wanted = vocab_size - len(SCAFFOLDS) - len(SPECIAL) - len(TAGS)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learned.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=wanted, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(learned.to_str())["model"]
    vocab = model["vocab"]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for scaffold in SCAFFOLDS:
        vocab.setdefault(byte_level.pre_tokenize_str(scaffold)[0][0], len(vocab))
    if len(vocab) != vocab_size - len(SPECIAL) - len(TAGS):
        raise ValueError(f"nano's tokenizer: the texts fill only {len(vocab)} of {vocab_size} entries; give more text")

    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])

    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    write_text(str(out / "tokenizer.json"), tokenizer.to_str(pretty=False))
    write_text(str(out / "tokenizer_config.json"), json.dumps(_config(), indent=1, ensure_ascii=False) + "\n")
    ends = [tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    generation = {"eos_token_id": ends, "pad_token_id": ends[1]}
    write_text(str(out / "generation_config.json"), json.dumps(generation, indent=1) + "\n")


def _config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "chat_template": files("looptool_jax.nano").joinpath("chat_template.jinja").read_text(encoding="utf-8"),
    }


def _escaped(text: str) -> str:
    """The text as a regular expression (Oniguruma) that matches it alone."""
    return "".join("\\" + char if char in r"\.^$*+?()[]{}|#-" else char for char in text)

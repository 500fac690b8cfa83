"""The character tokenizer of ``llada-tiny``, with the special tokens and the chat template of LLaDA.

One token a character (printable ASCII and the line break); anything else becomes ``<|unk|>``. A whole chat header,
``<|start_header_id|>user<|end_header_id|>`` and the blank line after it, is one token as well, so that the frame of a
turn costs four tokens instead of ten; the texts are LLaDA's own, only the cut is coarser.

Built from code: ``python -m dllm_llada.tiny.tokenizer FOLDER`` writes the files that ship with the checkpoint.
"""

from __future__ import annotations

import sys
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dllm_llada.chat_template import CHAT_TEMPLATE

END_OF_TEXT = "<|endoftext|>"
START_OF_TEXT = "<|startoftext|>"
START_HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"
END_OF_TURN = "<|eot_id|>"
MASK = "<|mdm_mask|>"
UNKNOWN = "<|unk|>"
ROLES = ("system", "user", "assistant")
HEADERS = tuple(f"{START_HEADER}{role}{END_HEADER}\n\n" for role in ROLES)
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TEXT, START_HEADER, END_HEADER, END_OF_TURN, MASK, UNKNOWN, *HEADERS)
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))
CONTEXT = 256  # tokens


def vocabulary() -> dict[str, int]:
    """Token -> id: the special tokens, then the characters."""
    return {token: number for number, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}


@cache
def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer; the same at every call. End of text is also the padding, as in LLaDA."""
    backend = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=START_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        mask_token=MASK,
        unk_token=UNKNOWN,
        additional_special_tokens=[START_HEADER, END_HEADER, END_OF_TURN, *HEADERS],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


if __name__ == "__main__":
    build_tokenizer().save_pretrained(sys.argv[1])

"""What a base GGUF says beside its tensors: the model, its vocabulary, how it talks, and what its name tells.

The chat template and what ends a turn are our own (see chat_format.py); a model whose vocabulary has no words for a
conversation gets no template. Of an official G1 checkpoint the name says more, which is written too: base model,
license, languages, and the length of the texts that it was trained on.
"""

from __future__ import annotations

from gguf import GGUFWriter, LlamaFileType, TokenType, size_label

from ggufy.models.architecture import Hyperparameters
from ggufy.models.chat_format import KEY, ChatFormat, RwkvFormat
from ggufy.models.chat_names import Official
from ggufy.models.vocab import gguf_tokens


def add_model(
    writer: GGUFWriter, model: Hyperparameters, file_type: LlamaFileType, *, name: str, known: Official | None
) -> None:
    """Writes what the model is; `known` is what its name says of it."""
    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(size_label(*writer.get_total_parameter_count()))
    model.architecture.add_metadata(writer, model)
    if known:
        writer.add_license(known.license)
        writer.add_languages(list(known.languages))
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, known.name)
        writer.add_base_model_organization(0, known.organization)
        writer.add_base_model_repo_url(0, known.url)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)


def add_vocab(
    writer: GGUFWriter, tokens: tuple[bytes, ...], rows: int, *, chat: ChatFormat | None, named: bool
) -> None:
    """Writes the vocabulary and the chat format, which is also named if `named`."""
    texts, types = gguf_tokens(tokens, rows)
    end = 0
    if isinstance(chat, RwkvFormat) and chat.end_text:
        end = tokens.index(chat.end_text.encode())
        types[end] = int(TokenType.CONTROL)  # it is not printed then
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list(texts)
    writer.add_token_types(types)
    # Not the blank line, see chat_format.py; without it llama.cpp goes by the tokens' looks.
    writer.add_eot_token_id(end)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    if chat is not None:
        writer.add_chat_template(chat.template)
        if named and isinstance(chat, RwkvFormat):
            writer.add_string(KEY, chat.name)

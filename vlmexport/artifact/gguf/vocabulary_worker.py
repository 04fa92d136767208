"""The process that asks libllama for token ids: an error inside of it ends this process and not the caller's.

Run as ``python -m vlmexport.artifact.gguf.vocabulary_worker``; requests on stdin, replies on stdout (``wire``).
"""

from __future__ import annotations

from vlmexport.artifact.gguf.libllama import encode
from vlmexport.errors import Unsupported
from vlmexport.workers.wire import Message, serve


def answer(request: Message) -> Message:
    """Token ids of each of ``texts`` by the vocabulary of the GGUF at ``path``; ``special`` says of each whether its
    special tokens are tokens. And of ``stops``, those that end an answer."""
    from llama_cpp import llama_cpp

    said: list[str] = []
    log = llama_cpp.llama_log_callback(lambda _, text, __: said.append(text.decode(errors="replace").strip()))
    llama_cpp.llama_log_set(log, None)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only, params.n_gpu_layers = True, 0
    model = llama_cpp.llama_model_load_from_file(request.body["path"].encode(), params)
    if not model:
        words = next((line for line in reversed(said) if "error" in line), "it says nothing")
        raise Unsupported(f"llama.cpp cannot read the tokenizer ({words})", "use an ONNX bundle")
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    asked = zip(request.body["texts"], request.body["special"], strict=True)
    ids = [encode(llama_cpp, vocabulary, text, special=special) for text, special in asked]
    stops = [i for i in request.body["stops"] if llama_cpp.llama_vocab_is_eog(vocabulary, i)]
    llama_cpp.llama_model_free(model)
    return Message({"ids": ids, "stops": stops})


if __name__ == "__main__":
    serve(answer)

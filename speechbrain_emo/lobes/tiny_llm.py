"""A language model of the real classes, small enough to pretrain on a CPU.

The folder it writes is what a hub model's folder is: ``AutoTokenizer`` and ``AutoModelForCausalLM`` load
it, and :class:`~speechbrain_emo.lobes.speech_llm.SpeechLLM` treats it as any other causal language model.
The weights are random; pretraining is the business of a Brain.
"""

import os

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")

# Every turn ends with the end token, as in the published chat formats: the answer's end token is the one
# that closes the assistant's turn.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('role ' + message['role'] + ' is unknown; allowed: system, user, assistant') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tiny_tokenizer(texts, vocab_size=1024, max_positions=512):
    """Train a byte-level BPE tokenizer with a chat template.

    Arguments
    ---------
    texts : iterable of str
        Texts whose merges are learned. Any other text can be tokenised too, byte by byte at worst.
    vocab_size : int
        Upper bound of the vocabulary V, special tokens and the 256 bytes included.
    max_positions : int
        Stored as the tokenizer's ``model_max_length``.

    Returns
    -------
    transformers.PreTrainedTokenizerFast
        ``eos_token`` is ``<|end|>``, ``pad_token`` is ``<|pad|>``, ``bos_token`` is ``<|bos|>``.

    Raises
    ------
    ValueError
        If ``texts`` is empty or ``vocab_size`` is too small for the bytes and the special tokens.

    Example
    -------
    >>> tokenizer = train_tiny_tokenizer(["the sky is blue", "the sea is blue"], vocab_size=280)
    >>> tokenizer.decode(tokenizer("the sea")["input_ids"])
    'the sea'
    >>> tokenizer.apply_chat_template(
    ...     [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    ... )
    '<|bos|><|user|>hi<|end|><|assistant|>'
    """
    texts = list(texts)
    if not any(texts):
        raise ValueError(f"texts holds {len(texts)} strings and no character: the tokenizer needs text")
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size is {vocab_size}; a byte-level vocabulary with {len(SPECIAL_TOKENS)} special tokens "
            f"needs at least {smallest}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"],
        model_max_length=max_positions,
        # Otherwise decoding drops the space before punctuation, and a text does not survive a round trip.
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def build_tiny_llm(
    folder,
    texts,
    vocab_size=1024,
    hidden_size=192,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=512,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    initializer_range=0.02,
    seed=1986,
):
    """Write a randomly initialised Llama and its tokenizer to a folder.

    Arguments
    ---------
    folder : str or path
        Made if it does not exist. Holds ``model.safetensors``, ``config.json`` and the tokenizer's files.
    texts : iterable of str
        What the tokenizer is trained on.
    vocab_size : int
        Upper bound of the vocabulary V; the model has as many rows as the trained tokenizer.
    hidden_size : int
        Size d of the embeddings. Must be divisible by ``num_heads``.
    num_layers : int
        Number of decoder layers.
    num_heads, num_kv_heads : int
        Query heads and key/value heads; the first must be a multiple of the second.
    intermediate_size : int
        Inner size of the feed-forward layers.
    max_position_embeddings : int
        Longest sequence the configuration states, in positions.
    tie_word_embeddings : bool
        Whether the output layer shares the input embeddings: fewer weights to learn before the model can
        copy a word that stands in its prompt.
    initializer_range : float
        Standard deviation of the initial weights.
    seed : int
        Of the initial weights. The caller's random state is left as it is.

    Returns
    -------
    str
        The folder.

    Raises
    ------
    ValueError
        If the sizes do not divide, or the tokenizer cannot be trained.

    Example
    -------
    >>> import tempfile
    >>> from transformers import AutoModelForCausalLM, AutoTokenizer
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = build_tiny_llm(folder, ["the sky is blue"], 280, 16, 1, 2, 1, 32)
    ...     type(AutoModelForCausalLM.from_pretrained(folder)).__name__
    ...     AutoTokenizer.from_pretrained(folder).eos_token
    'LlamaForCausalLM'
    '<|end|>'
    """
    if hidden_size % num_heads or (hidden_size // num_heads) % 2:
        raise ValueError(
            f"hidden_size is {hidden_size} with num_heads {num_heads}; rotary positions need hidden_size / "
            "num_heads to be an even whole number"
        )
    if num_heads % num_kv_heads:
        raise ValueError(f"num_heads is {num_heads}; it must be a multiple of num_kv_heads, {num_kv_heads}")
    tokenizer = train_tiny_tokenizer(texts, vocab_size, max_position_embeddings)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=tie_word_embeddings,
        initializer_range=initializer_range,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    folder = os.fspath(folder)
    os.makedirs(folder, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

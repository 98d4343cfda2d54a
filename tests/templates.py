"""Chat templates as public models have them, each with a small tokenizer and what every stage has to make of it.

The texts are written by hand, so that a test compares the package with them and not with itself.
"""

from dataclasses import dataclass, field
from pathlib import Path

from cai_nb.dialogue import assistant, user

PATHS = ("sampling", "scoring", "features", "SFT", "preference model", "PPO", "escaping")
PROMPT = [user("Hi there")]
COMPLETION = [assistant("Hello."), user("Bye?"), assistant("the end.")]


@dataclass(frozen=True)
class Case:
    "A template, and by hand: the prompts it makes, and what a model says and learns"
    name: str
    template: str
    marks: tuple   # the special tokens that it uses
    eos: str       # the tokenizer's end token
    asked: str     # the prompt for PROMPT
    again: str     # the prompt for PROMPT and the first two messages of COMPLETION
    said: tuple    # what the model says to each: content and end
    learnt: tuple = ()   # what an example with both turns learns, where that is not `said`
    stops: tuple = ()    # the tokens that end a turn, the tokenizer's own aside
    system: str = ""     # the prompt for PROMPT with the system message "Be kind."; empty: it is folded
    headers: tuple = ()  # role headers in plain text, which nobody may write into a message
    refused: dict = field(default_factory=dict)  # path -> what the refusal says


def chatml(generation=True):
    body = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    return body + ("{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}" if generation else "")


ASKED = "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n"
AGAIN = ASKED + "Hello.<|im_end|>\n<|im_start|>user\nBye?<|im_end|>\n<|im_start|>assistant\n"
SAID = ("Hello.<|im_end|>", "the end.<|im_end|>")
KIND = "<|im_start|>system\nBe kind.<|im_end|>\n" + ASKED
IM = ("<|im_start|>", "<|im_end|>")
EMPTY = "<think>\n\n</think>\n\n"

THINK_LAST = (  # as Qwen3 writes finished dialogues
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
THINK_SWITCH = THINK_LAST.replace(
    "<|im_start|>assistant\n{% endif %}",
    "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}")
THINK_CUT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and not loop.last and '</think>' in m['content'] %}"
    "{{ m['content'].split('</think>')[-1].lstrip('\n') }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
THINK_OPEN = chatml().replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "<start_of_turn>{{ role }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}")
LLAMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n{{ said }}<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}")
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")
HASHES = (
    "{% for m in messages %}### {{ m['role'] | title }}:\n{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}")
NO_END = (
    "{% for m in messages %}{{ m['role'] | upper }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}")
TRIMMED = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'].strip() }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}")
HEAD3 = "<bos><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n"
ASKED3 = ("<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>"
          "<|start_header_id|>assistant<|end_header_id|>\n\n")
ASKED4 = "<|user|>\nHi there<|end|>\n<|assistant|>\n"
CANNOT = "one token"

CASES = {case.name: case for case in [
    Case("ChatML", chatml(), IM, "<|im_end|>", ASKED, AGAIN, SAID, system=KIND),
    Case("ChatML on a base tokenizer", chatml(), IM, "<|endoftext|>", ASKED, AGAIN, SAID, stops=("<|im_end|>",),
         system=KIND),
    Case("think block placed in the last turn", THINK_LAST, IM, "<|im_end|>", ASKED + EMPTY, AGAIN + EMPTY, SAID,
         system=KIND + EMPTY),
    Case("think block with a switch", THINK_SWITCH, IM, "<|im_end|>", ASKED + EMPTY, AGAIN + EMPTY, SAID,
         system=KIND + EMPTY),
    Case("think block cut from earlier turns", THINK_CUT, IM, "<|im_end|>", ASKED, AGAIN, SAID, system=KIND),
    Case("think block opened by the generation prompt", THINK_OPEN, IM, "<|im_end|>", ASKED, AGAIN, SAID, system=KIND),
    Case("Gemma", GEMMA, ("<bos>", "<start_of_turn>", "<end_of_turn>"), "<eos>",
         "<bos><start_of_turn>user\nHi there<end_of_turn>\n<start_of_turn>model\n",
         "<bos><start_of_turn>user\nHi there<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
         "<start_of_turn>user\nBye?<end_of_turn>\n<start_of_turn>model\n",
         ("Hello.<end_of_turn>", "the end.<end_of_turn>"), stops=("<end_of_turn>",)),
    Case("Llama 3, with a date", LLAMA3, ("<bos>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
         "<|end_of_text|>", HEAD3 + ASKED3,
         HEAD3 + ASKED3 + "Hello.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye?<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n",
         ("Hello.<|eot_id|>", "the end.<|eot_id|>"), stops=("<|eot_id|>",), system=HEAD3 + "Be kind." + ASKED3),
    Case("Mistral", MISTRAL, ("<s>",), "</s>", "<s>[INST] Hi there [/INST]",
         "<s>[INST] Hi there [/INST] Hello.</s>[INST] Bye? [/INST]", (" Hello.</s>", " the end.</s>"),
         headers=("[INST]", "[/INST]")),
    Case("### headers", HASHES, (), "</s>", "### User:\nHi there\n\n### Assistant:\n",
         "### User:\nHi there\n\n### Assistant:\nHello.</s>\n\n### User:\nBye?\n\n### Assistant:\n",
         ("Hello.</s>", "the end.</s>"), system="### System:\nBe kind.\n\n### User:\nHi there\n\n### Assistant:\n",
         headers=("### User:", "### Assistant:", "### System:")),
    Case("no end of turn", NO_END, (), "</s>", "USER: Hi there\nASSISTANT:",
         "USER: Hi there\nASSISTANT: Hello.\nUSER: Bye?\nASSISTANT:", (" Hello.</s>", " the end.</s>"),
         learnt=(" Hello.", " the end.</s>"), system="SYSTEM: Be kind.\nUSER: Hi there\nASSISTANT:",
         headers=("USER:", "ASSISTANT:", "SYSTEM:")),
    Case("no generation prompt", chatml(generation=False), IM, "<|im_end|>", ASKED, AGAIN, SAID, system=KIND),
    Case("content trimmed, two ends", TRIMMED, ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), "<|endoftext|>",
         ASKED4, ASKED4 + "Hello.<|end|>\n<|user|>\nBye?<|end|>\n<|assistant|>\n", ("Hello.<|end|>", "the end.<|end|>"),
         stops=("<|end|>",), system="<|system|>\nBe kind.<|end|>\n" + ASKED4),
    Case("content rewritten", chatml().replace("m['content']", "m['content'] | upper"), IM, "<|im_end|>",
         ASKED.replace("Hi there", "HI THERE"), "", SAID,
         system=KIND.replace("Hi there", "HI THERE").replace("Be kind.", "BE KIND."),
         refused=dict.fromkeys(set(PATHS) - {"sampling", "PPO"}, "rewrites")),
    Case("end of turn that is no token", chatml(), (), "<|endoftext|>", ASKED, AGAIN, SAID, system=KIND,
         headers=("<|im_end|>", "<|im_start|>user", "<|im_start|>assistant"),
         refused=dict.fromkeys(PATHS, CANNOT)),
]}


def tokenizer_of(case):
    "A tokenizer of single printable characters and a few merges, with the template and its special tokens"
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [("Ċ", "Ċ"), ("Ġ", "t"), ("h", "e"), ("Ġ", "H"), (":", "Ċ")]
    letters = ["Ċ", "Ġ", *map(chr, range(33, 127))]
    vocab = {t: i for i, t in enumerate([*letters, *("".join(m) for m in merges)])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=case.eos, pad_token="<pad>",
                                   bos_token=case.marks[0] if case.marks else None, chat_template=case.template)
    made.add_special_tokens({"additional_special_tokens": [AddedToken(m, special=True) for m in case.marks]})
    return made


def model_of(tokenizer, end="", sure=True, seed=0):
    "A random Llama for it; `end`: a token that it says next, whatever came before: surely, or one time in ten"
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
                         initializer_range=0.2, bos_token_id=tokenizer.bos_token_id,
                         eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model = LlamaForCausalLM(config).eval()
    if end:
        with torch.no_grad():
            model.model.embed_tokens.weight[:, 0] = 20.0 if sure else 1.0  # so is the first number of each hidden state
            model.lm_head.weight[:, 0] = 0.0
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(end), 0] = 20.0 if sure else 0.8
    return model


def folder_of(case, folder, **settings):
    "The two saved as a model's folder; gives back its path as text"
    tokenizer = tokenizer_of(case)
    model_of(tokenizer, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(Path(folder))

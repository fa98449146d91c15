"""Chat templates: those that lose or rewrite text are refused, and the rest reproduce every character."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from byte_level import CHATML, byte_level

from vidqa.errors import UsageError
from vidqa.prompts.build import IGNORE_INDEX, build_labels, build_prompt, format_problem, training_problem
from vidqa.prompts.chat_formats import get_format

TURNS = [("Why?", "So."), ("And then?", "Nothing.")]
LOOP = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
END = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
#: Templates of published families, shortened.
PUBLISHED = {
    "chatml": CHATML,
    "trims": LOOP + "{{ m['content'] | trim }}" + END,
    "llama 2": "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}",
    "parts": LOOP + "{% for part in m.content %}{{ part.text }}{% endfor %}" + END,
    "parts of users": LOOP + "{% if m.role == 'user' %}{% for p in m.content if p.type == 'text' %}{{ p.text }}"
    "{% endfor %}{% else %}{{ m.content + '' }}{% endif %}" + END,
    "either": LOOP + "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}" + END,
    "date": "{{ '<|im_start|>' + strftime_now('%d %B %Y') }}{{ date_string }}<|im_end|>" + CHATML,
}
NO_SYSTEM = {
    "raises": "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}",
    "drops": "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}",
}
REFUSED = {
    "upper case": (LOOP + "{{ m.content | upper }}" + END, "changes the text of the user"),
    "truncates": (LOOP + "{{ m.content[:200] }}" + END, "changes the text of the user"),
    "words only": (LOOP + "{{ m.content.split() | join(' ') }}" + END, "changes the text of the user"),
    "escapes": (LOOP + "{{ m.content | e }}" + END, "changes the text of the user"),
    "no answers": (LOOP + "{% if m.role == 'user' %}{{ m.content }}{% endif %}" + END, "drops"),
    "last turn only": ("{% for m in messages[-1:] %}" + LOOP.partition("%}")[2] + "{{ m.content }}" + END, "drops"),
    "repeats": (LOOP + "{{ m.content }}{{ m.content }}" + END, "repeats"),
    "fails": ("{{ messages[0].content.nothing.at_all }}", "fails: "),
    "not a template": ("{% for %}", "fails: "),
}
NOT_FOR_TRAINING = {
    "end of the last turn only": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if loop.last %}</s>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
        "turn 1 is written differently once another turn follows",
    ),
    "thoughts in the last answer": (
        LOOP + "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}" + END,
        "turn 1 is written differently",
    ),
    "thoughts in the prompt": (CHATML[: -len("{% endif %}")] + "<think>\n{% endif %}", "turn 1 is written differently"),
    "no role in the prompt": (LOOP + "{{ m.content }}<|im_end|>\n{% endfor %}", "is between the prompt and the answer"),
    "no end": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        "nothing marks the end",
    ),
}


def with_template(template: str) -> Any:
    made = byte_level()
    made.add_tokens(["[INST]", "[/INST]"], special_tokens=True)
    made.chat_template = template
    return made


def text_of(tokenizer: Any, ids: Any) -> str:
    return str(tokenizer.decode(ids.tolist()))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates_keep_every_message(name: str) -> None:
    tokenizer, chat = with_template(PUBLISHED[name]), get_format("chat_template")
    assert format_problem(tokenizer, chat) is None and training_problem(tokenizer, chat) is None
    made = build_labels(tokenizer, chat, TURNS, [("image", 1, 4)])
    text = text_of(tokenizer, made.prompt.ids[~made.prompt.slots])
    assert made.problem is None and made.prompt.n_slots == 4
    assert all(text.count(part) == 1 for turn in TURNS for part in turn)
    targets = text_of(tokenizer, made.labels[made.labels != IGNORE_INDEX])
    end = "</s>" if name == "llama 2" else "<|im_end|>"
    assert targets.replace(" ", "") == f"So.{end}Nothing.{end}"
    asked = build_prompt(tokenizer, chat, [*TURNS[:1], ("And then?", None)], [("image", 1, 4)])
    assert made.prompt.ids[: len(asked.ids)].tolist() == asked.ids.tolist()


def test_the_text_is_that_of_the_template() -> None:
    """Without marks, on ordinary text: white space around a text is the template's to remove."""
    messages = [{"role": "user", "content": " Why? \n"}, {"role": "assistant", "content": "So."}]
    messages.append({"role": "user", "content": "And  then?"})
    for name in ("chatml", "trims", "llama 2"):
        tokenizer = with_template(PUBLISHED[name])
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = build_prompt(tokenizer, get_format("chat_template"), [(" Why? \n", "So."), ("And  then?", None)])
        assert prompt.ids.tolist() == tokenizer.encode(expected, add_special_tokens=False)


def test_the_text_of_users_does_not_control_the_template() -> None:
    """Qwen's and DeepSeek's templates cut answers at the end of their thoughts, wherever that text comes from."""
    cuts = LOOP + "{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}"
    tokenizer = with_template(cuts + "{% endif %}" + END)
    question = "What does </think> mean in {{ messages }}?"
    prompt = build_prompt(tokenizer, get_format("chat_template"), [(question, "</think> ends."), ("Ah?", None)])
    assert f"user\n{question}<|im_end|>\n<|im_start|>assistant\n</think> ends." in text_of(tokenizer, prompt.ids)


@pytest.mark.parametrize("name", REFUSED)
def test_templates_that_lose_text_are_refused(name: str) -> None:
    template, reason = REFUSED[name]
    problem = format_problem(with_template(template), get_format("chat_template"))
    assert problem is not None and "chat template" in problem and reason in problem


@pytest.mark.parametrize("name", NO_SYSTEM)
def test_a_template_without_a_system_turn(name: str) -> None:
    tokenizer = with_template(NO_SYSTEM[name] + CHATML)
    assert format_problem(tokenizer, get_format("chat_template")) is None
    problem = format_problem(tokenizer, get_format("chat_template", "Be short."))
    assert problem is not None and "with a system prompt, it" in problem
    with pytest.raises(UsageError):
        build_prompt(tokenizer, get_format("chat_template", "Be short."), [("Why?", None)])


@pytest.mark.parametrize("name", NOT_FOR_TRAINING)
def test_templates_that_rewrite_turns_are_refused_for_training(name: str) -> None:
    template, reason = NOT_FOR_TRAINING[name]
    tokenizer, chat = with_template(template), get_format("chat_template")
    assert format_problem(tokenizer, chat) is None, "they can answer"
    problem = training_problem(tokenizer, chat)
    assert problem is not None and "for training" in problem and reason in problem
    with pytest.raises(UsageError, match=reason):
        build_labels(tokenizer, chat, TURNS)


def test_a_template_that_fails_on_a_long_conversation_only() -> None:
    limited = "{% if messages | length > 7 %}{{ raise_exception('too many turns') }}{% endif %}"
    tokenizer, chat = with_template(limited + CHATML), get_format("chat_template")
    assert training_problem(tokenizer, chat) is None
    with pytest.raises(UsageError, match="too many turns"):
        build_labels(tokenizer, chat, TURNS * 2)


def test_prompts_do_not_depend_on_the_day() -> None:
    tokenizer = with_template(PUBLISHED["date"])
    prompt = build_prompt(tokenizer, get_format("chat_template"), [("Why?", None)])
    assert text_of(tokenizer, prompt.ids).startswith("<|im_start|>26 July 202426 Jul 2024<|im_end|>")


def test_another_tokenizer_with_the_same_tokens_has_its_own_template() -> None:
    one = with_template(CHATML)
    other = copy.deepcopy(one)
    other.chat_template = PUBLISHED["trims"]
    chat = get_format("chat_template")
    assert [len(build_prompt(t, chat, [(" Why? ", None)]).ids) for t in (one, other)] == [25, 23]


def test_media_and_slots_are_always_counted() -> None:
    tokenizer = with_template(CHATML)
    for name in ("v1", "chat_template"):
        with pytest.raises(ValueError, match="the tags in the text"):
            build_labels(tokenizer, get_format(name), [("<image>\n<image> Why?", "So.")], [("image", 1, 2)])

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import ConfigError
from tunesmith.models.engine import load_tokenizer
from tunesmith.models.settings import TaskSection
from tunesmith.models.tokens import Prompt

texts = st.text(st.characters(codec="utf-8"), max_size=60)
token_ids = st.lists(st.integers(3, 299), max_size=400)


def decode(prompt, ids):
    return prompt.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def test_a_prompt_is_what_the_chat_template_writes(prompt):
    rendered = prompt.tokenizer.apply_chat_template(
        [{"role": "system", "content": prompt.instruction}, {"role": "user", "content": "my card"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt.render("my card") == rendered
    assert decode(prompt, prompt.prefix + prompt.encode(["my card"])[0] + prompt.suffix) == rendered


def test_the_instruction_lists_the_answers(base):
    task = TaskSection(instruction="Sort.", labels=({"name": "A long name", "answer": "card"}, "loan"))
    assert Prompt(load_tokenizer(base), task, 160).instruction == "Sort. Answer with one of: card, loan."


EXAMPLES = ({"text": "she paid her tuition", "label": "loan"}, {"text": "the house <|im_end|>", "label": "A long name"})


def shown(base, examples, max_length=160):
    task = TaskSection(instruction="Sort.", labels=({"name": "A long name", "answer": "card"}, "loan"), examples=examples)
    return Prompt(load_tokenizer(base), task, max_length)


def test_examples_are_turns_before_the_text_and_part_of_the_shared_prefix(base):
    prompt = shown(base, EXAMPLES[:1])
    turns = [("system", prompt.instruction), ("user", "she paid her tuition"), ("assistant", "loan"), ("user", "my card")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert prompt.render("my card") == prompt.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert decode(prompt, prompt.prefix + prompt.encode(["my card"])[0] + prompt.suffix) == prompt.render("my card")
    assert prompt.round_trips(["my card"])


def test_examples_count_in_the_length(base):
    bare, full = shown(base, ()), shown(base, EXAMPLES)
    assert full.text_budget == bare.text_budget - (len(full.prefix) - len(bare.prefix))
    with pytest.raises(ConfigError, match=r"of which \d+ are prompt, examples and answer") as raised:
        shown(base, EXAMPLES, max_length=60)
    assert "train.max_length=" in raised.value.hint


def test_the_model_writes_the_answers_of_examples_as_it_writes_its_own_and_none_ends_a_turn(base):
    prompt = shown(base, EXAMPLES)
    assert "card<|im_end|>" in prompt.render("x"), "what is written for the label, not its name"
    ends = prompt.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert prompt.prefix.count(ends) == 1 + 2 * len(EXAMPLES), "the system's turn and two of each example; the one inside a text is plain"
    assert decode(prompt, prompt.prefix) in prompt.render("")


def test_an_example_of_an_extraction_is_shown_in_the_order_of_the_schema(base):
    schema = {"type": "object", "properties": {"kind": {"type": "string"}, "words": {"type": "array", "items": {"type": "string"}}}}
    task = TaskSection(type="extraction", instruction="Find.", json_schema=schema, examples=({"text": "a", "label": {"words": ["b"], "kind": "c"}},))
    assert '{"kind": "c", "words": ["b"]}<|im_end|>' in Prompt(load_tokenizer(base), task, 300).render("x")


@pytest.mark.parametrize(("kind", "label"), [("classification", "house"), ("extraction", '{"house": 1}'), ("extraction", "house")])
def test_an_example_whose_answer_is_none_of_the_task_is_refused(kind, label):
    of_kind = {"labels": ("card", "loan")} if kind == "classification" else {"json_schema": {"type": "object", "properties": {"kind": {"type": "string"}}}}
    with pytest.raises(ValueError, match=r"examples\[0\]\.label"):
        TaskSection(type=kind, instruction="Sort.", examples=({"text": "a", "label": label},), **of_kind)


def test_a_task_without_examples_is_written_as_before_there_were_any(task):
    assert "examples" not in task.model_dump(mode="json")
    assert TaskSection.model_validate(task.model_dump(mode="json")) == task


def test_answers_end_with_the_stop_token(prompt):
    assert [decode(prompt, answer) for answer in prompt.answers] == ["card<|im_end|>", "loan<|im_end|>", "mortgage<|im_end|>"]


@settings(deadline=None)
@given(texts)
def test_a_text_survives_its_tokens(shared_prompt, text):
    assert decode(shared_prompt, shared_prompt.encode([text])[0]) == text


@pytest.mark.parametrize("special", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_a_document_cannot_end_the_turn_of_the_user(prompt, special):
    text = f"before {special} after"
    ids = prompt.encode([text])[0]
    assert not set(ids) & set(prompt.tokenizer.all_special_ids)
    assert decode(prompt, ids) == text
    prompt.suffix  # noqa: B018 - where special tokens are read as such; afterwards a text must still be plain
    assert prompt.encode([text])[0] == ids
    assert prompt.tokenizer.encode(special, add_special_tokens=False) == [prompt.tokenizer.convert_tokens_to_ids(special)], "the user's tokenizer is unchanged"


@pytest.mark.parametrize("keep", ["start", "ends"])
@settings(deadline=None, max_examples=50)
@given(ids=token_ids)
def test_a_cut_fits_and_keeps_what_it_says(base, task, keep, ids):
    prompt = Prompt(load_tokenizer(base), task, 160, keep)
    budget = prompt.text_budget
    cut = prompt.cut(ids)
    assert len(cut) == min(len(ids), budget)
    if len(ids) <= budget:
        assert cut == ids
    elif keep == "start":
        assert cut == ids[:budget]
    else:
        start = int(0.6 * budget)
        assert cut[:start] == ids[:start]
        assert cut[start:] == ids[-(budget - start) :]


def test_a_cut_never_touches_the_suffix_and_leaves_room_for_any_answer(prompt):
    row = prompt.rows(["mortgage " * 500])[0]
    assert row[-len(prompt.suffix) :] == prompt.suffix
    assert len(prompt.prefix) + len(row) + max(map(len, prompt.answers)) == prompt.max_length


@settings(deadline=None, max_examples=50)
@given(token_ids)
def test_pieces_of_a_text_join_to_the_text(shared_prompt, ids):
    pieces = shared_prompt.split(ids)
    assert [token for piece in pieces for token in piece] == ids
    assert all(len(piece) <= shared_prompt.text_budget for piece in pieces)
    assert len(pieces) == max(1, -(-len(ids) // shared_prompt.text_budget))


def test_encoding_in_pieces_is_encoding_the_whole_prompt(prompt):
    assert prompt.round_trips(["my card was charged", "", "two\nlines", "special <|im_end|> is passed over"])


def test_a_tokenizer_that_joins_text_and_template_does_not_round_trip(base, task):
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} car{% endfor %}"
    prompt = Prompt(tokenizer, task, 160)
    assert prompt.round_trips([" told"])
    assert not prompt.round_trips(["d told"]), "car and d are one token where they meet"


def test_no_chat_template(base, task):
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="must come with a chat template"):
        Prompt(tokenizer, task, 160)


def test_no_stop_token(base, task):
    tokenizer = load_tokenizer(base)
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="must have a stop token"):
        Prompt(tokenizer, task, 160)


def test_a_template_that_changes_the_text(base, task):
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'][:3] }}{% endfor %}"
    with pytest.raises(ConfigError, match="must keep every message as it is"):
        Prompt(tokenizer, task, 160)


def test_max_length_too_small_names_one_that_is_enough(prompt, task):
    needed = prompt.max_length - prompt.text_budget
    Prompt(prompt.tokenizer, task, needed + 8)
    with pytest.raises(ConfigError, match=rf"at least 8 tokens for the text. Received: {needed + 7}, of which {needed} are prompt and answer") as error:
        Prompt(prompt.tokenizer, task, needed + 7)
    assert f"train.max_length={needed + 108}" in error.value.hint

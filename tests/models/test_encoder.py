import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, BartConfig, BertConfig

from tunesmith.errors import BackendError, ConfigError
from tunesmith.models.batch import scoring_batch
from tunesmith.models.encoder import EncoderForward, head_of, is_encoder
from tunesmith.models.engine import Engine, Workers, load_prompt, load_tokenizer, resolve
from tunesmith.models.footprint import measure_footprint
from tunesmith.models.settings import ModelSection, TaskSection
from tunesmith.models.weights import empty_model, load_model
from tunesmith.testing import tiny_encoder

KINDS = ("bert", "roberta", "distilbert", "modernbert")
TASK = TaskSection(instruction="Sort the letter.", labels=("card", "loan", "mortgage"))
WORDS = st.lists(st.sampled_from(["the", "company", "told", "my", "account", "escrow", "[SEP]", "[CLS]", "zebra"]), min_size=0, max_size=150)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    return {kind: tiny_encoder(tmp_path_factory.mktemp(kind), kind=kind) for kind in KINDS}


@pytest.fixture(scope="module")
def encoder(encoders):
    return encoders["bert"]


def section(base, dtype="float32", **more):
    return resolve(ModelSection(model_name_or_path=str(base), dtype=dtype, **more), base, n_labels=3)


def load(base, dtype="float32"):
    torch.manual_seed(0)
    return load_model(base, section(base, dtype)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_is_known_by_its_configuration(encoders, kind):
    assert is_encoder(AutoConfig.from_pretrained(encoders[kind]))
    assert section(encoders[kind]).num_labels == 3
    assert section(encoders[kind]).forward == "plain"


def test_what_writes_is_no_encoder(base):
    assert not is_encoder(AutoConfig.from_pretrained(base))
    assert section(base).num_labels == 0
    assert not is_encoder(BertConfig(is_decoder=True))
    assert not is_encoder(BertConfig(architectures=["BertLMHeadModel"]))
    assert is_encoder(BertConfig(architectures=["BertForMaskedLM"]))
    assert not is_encoder(BartConfig())


def test_what_an_encoder_cannot_do_is_refused(encoder):
    plain = ModelSection(model_name_or_path="some-encoder")
    with pytest.raises(
        ConfigError, match=r"some-encoder is an encoder \(bert\): it picks labels of a classification.* Received: a task whose answers are written"
    ):
        resolve(plain, encoder)
    with pytest.raises(ConfigError, match=r"by train.strategy full or lora. Received: model.load_in_4bit, or train.strategy qlora"):
        resolve(plain.model_copy(update={"load_in_4bit": True}), encoder, n_labels=3)
    with pytest.raises(ConfigError, match=r"model.forward: fast needs a Llama"):
        resolve(plain.model_copy(update={"forward": "fast"}), encoder, n_labels=3)
    with pytest.raises(ConfigError, match=r"task.type must be classification. Received: chat"):
        load_prompt(encoder, TaskSection(type="chat", instruction="Answer."), 64, "start")
    with pytest.raises(ConfigError, match=r"must be at most the 128 tokens that this encoder reads. Received: 200"):
        load_prompt(encoder, TASK, 200, "start")


@settings(max_examples=50, deadline=None)
@given(words=WORDS, max_length=st.integers(16, 128))
def test_a_text_is_read_as_its_tokenizer_reads_it_and_cut_in_the_open(encoder, words, max_length):
    prompt, text = load_prompt(encoder, TASK, max_length, "ends"), " ".join(words)
    (uncut,) = prompt.encode([text])
    (row,) = prompt.rows([text])
    whole = prompt.prefix + row
    assert len(whole) == min(len(uncut) + 2, max_length)
    assert whole.count(3) == 1, "what reads like a special token is text"
    if "[" not in text and len(whole) < max_length:
        assert whole == load_tokenizer(encoder)(text)["input_ids"]
        assert prompt.round_trips([text])
    if len(uncut) > prompt.text_budget:
        assert (row[0], row[-2]) == (uncut[0], uncut[-1]), "both ends are kept"
    assert prompt.render(text) == text
    assert prompt.answers == ((0,), (1,), (2,))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_neighbours_change_nothing(encoders, kind):
    forward = EncoderForward(load(encoders[kind]), torch.float32)
    rows = [[7, 8, 3], [9] * 40 + [3], [11, 12, 13, 14, 3], [3]]
    with torch.no_grad():
        together = forward.logits(scoring_batch([2], rows))
        alone = torch.cat([forward.logits(scoring_batch([2], [row])) for row in rows])
    assert together.shape == (4, 3)
    assert torch.allclose(together, alone, atol=1e-5)
    assert together.std(0).min() > 1e-3, "the texts are told apart"


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(encoders, kind):
    prompt, model = load_prompt(encoders[kind], TASK, 64, "start"), load(encoders[kind])
    text = "the company told me that my account was wrong"
    with torch.no_grad():
        expected = model(**load_tokenizer(encoders[kind])(text, return_tensors="pt", return_token_type_ids=False)).logits
    engine = Engine(encoders[kind], prompt, section(encoders[kind]), forward=EncoderForward(model, torch.float32))
    assert engine.score([text]) == pytest.approx(expected.numpy(), abs=1e-5)
    found = engine.answer([text, "house"])
    assert found.names == ("card", "loan", "mortgage")
    assert found.answers[0] == found.names[expected.argmax()]


def test_labels_are_asked_by_number(encoder):
    forward = EncoderForward(load(encoder), torch.float32)
    batch = scoring_batch([2], [[7, 8, 3], [9, 3]])
    with torch.no_grad():
        assert torch.equal(forward.logits(batch, torch.tensor([2, 0])), forward.logits(batch)[:, [2, 0]])


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_the_head_stays_exact(encoders, kind):
    model, exact = load(encoders[kind], "bfloat16"), load(encoders[kind])
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    heads = head_of(model)
    assert {parameter.dtype for name, parameter in model.named_parameters() if set(name.split(".")) & set(heads)} == {torch.float32}
    rows = [[number + 5, 8, 20 + number, 3] for number in range(60)]
    with torch.no_grad():
        logits = EncoderForward(model, torch.bfloat16).logits(scoring_batch([2], rows))
        close = EncoderForward(exact, torch.float32).logits(scoring_batch([2], rows))
    assert logits.dtype == torch.float32
    assert (logits.bfloat16().float() != logits).float().mean() > 0.9, "logits are finer than bfloat16"
    assert (logits - close).abs().mean() < 0.2 * close.std()


def test_weights_that_are_missing_are_told_unless_they_are_the_heads(encoder, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((encoder / name).read_bytes())
    tensors = load_file(encoder / "model.safetensors")
    (pooler,) = [name for name in tensors if name.endswith("pooler.dense.weight")]
    save_file({name: tensor for name, tensor in tensors.items() if name != pooler}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load(tmp_path).num_labels == 3, "the pooler belongs to the head"
    (lost,) = [name for name in tensors if "layer.1.intermediate.dense.weight" in name]
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackendError, match=r"must be whole but for its head. Missing in .*layer.1.intermediate"):
        load(tmp_path)


def test_nothing_is_dropped_out_so_that_passes_may_run_side_by_side(encoder, monkeypatch):
    monkeypatch.setattr("tunesmith.models.engine.n_workers", lambda: 2)
    model = load(encoder).train()
    assert AutoConfig.from_pretrained(encoder).hidden_dropout_prob == 0.1
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
    forward, batch = EncoderForward(model, torch.float32), scoring_batch([2], [[7, 8, 3], [9, 3]])
    assert torch.equal(forward.logits(batch), forward.logits(batch))
    assert Workers(forward).n == 2


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_the_loaded_model(encoders, kind):
    chosen = section(encoders[kind])
    footprint = measure_footprint(encoders[kind], chosen, lambda model: model.requires_grad_(True))
    model = AutoModelForSequenceClassification.from_pretrained(encoders[kind], num_labels=3)
    assert footprint.parameters == footprint.trainable == sum(parameter.numel() for parameter in model.parameters())
    assert footprint.flops_per_token > 0
    assert {parameter.device.type for parameter in empty_model(encoders[kind], chosen, torch.float32).parameters()} == {"meta"}

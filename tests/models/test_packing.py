"""Records of a pack do not see each other: what the model makes of one is what it makes of it alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PrefixTuningConfig, get_peft_model

from tunesmith.models.batch import packed_batch, training_batch
from tunesmith.models.engine import PlainForward
from tunesmith.models.settings import ModelSection
from tunesmith.models.weights import load_model

TOKENS = st.integers(0, 299)
ROWS = st.lists(st.tuples(st.lists(TOKENS, min_size=1, max_size=9), st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=6)


@pytest.fixture(scope="module", params=["lora", "prefix", "bfloat16"])
def tuned(base, request):
    dtype = "bfloat16" if request.param == "bfloat16" else "float32"
    model = load_model(base, ModelSection(model_name_or_path=str(base), dtype=dtype))
    torch.manual_seed(1)
    if request.param == "prefix":
        return get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    return get_peft_model(model, LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"))


def by_record(batch, values):
    """Return the values at each record's positions, of a packed batch or one with a record a row."""
    owners = torch.arange(len(batch.input_ids))[:, None].expand_as(batch.input_ids) if batch.records is None else batch.records
    of_positions = owners.flatten()[batch.positions]
    return [values[of_positions == record] for record in range(int(of_positions.max()) + 1)]


@settings(deadline=None, max_examples=25)
@given(prefix=st.lists(TOKENS, max_size=5), rows=ROWS, width=st.integers(8, 40))
def test_logits_and_gradients_of_packs_equal_those_of_records_alone(tuned, prefix, rows, width):
    prompts, answers = zip(*rows, strict=True)
    counts = [1.0 + number for number in range(len(rows))]
    forward, learns = PlainForward(tuned), [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    tolerance = 0.05 if forward.head().dtype != tuned.dtype else 1e-4
    found = []
    for batch in (training_batch(prefix, prompts, answers, counts), packed_batch(prefix, prompts, answers, counts, width)):
        logits = forward.logits(batch)
        loss = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none") @ batch.weights
        gradient = torch.cat([part.flatten().float() for part in torch.autograd.grad(loss, learns)])
        found.append((by_record(batch, logits.detach()), loss.detach(), gradient))
    (alone, loss, gradient), (together, packed_loss, packed_gradient) = found
    for own, other in zip(alone, together, strict=True):
        assert (own - other).abs().max() <= tolerance * own.abs().max()
    torch.testing.assert_close(packed_loss, loss, rtol=tolerance, atol=tolerance)
    assert (packed_gradient - gradient).norm() <= tolerance * gradient.norm() + 1e-4


def test_what_a_neighbour_says_changes_nothing(tuned):
    def logits(neighbour):
        batch = packed_batch([7, 8], [[1, 2, 3], neighbour], [[4, 5], [6]], [1.0, 1.0], 30)
        assert len(batch.input_ids) == 1, "both are in one pack"
        return by_record(batch, PlainForward(tuned).logits(batch).detach())[0]

    torch.testing.assert_close(logits([9, 10, 11, 12]), logits([200, 201, 202, 203]), rtol=0, atol=0)


def test_positions_start_again_behind_the_prefix():
    batch = packed_batch([7], [[1, 2, 3], [4]], [[5], [6, 9]], [1.0, 0.5], 30)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 6]]
    assert batch.records.tolist() == [[0, 0, 0, 1, 1]]
    assert (batch.positions.tolist(), batch.targets.tolist(), batch.weights.tolist()) == ([2, 3, 4], [5, 6, 9], [1.0, 0.5, 0.5])

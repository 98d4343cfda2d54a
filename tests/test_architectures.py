"""Every stage, with every architecture: the numbers of plain transformers, or a sentence that says what to do."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, COMPLETIONS, PROMPTS, STAGES, check, check_option_logprobs, logprobs_of, model_folder, outcome, plain, rows

from cai_nb import sft
from cai_nb.loading import ModelError, output_head
from cai_nb.model import LanguageModel, trunk_states
from cai_nb.ppo_model import attach_value_head

ROOT = Path(__file__).resolve().parent.parent
REFUSED = {("Granite", "preference model"), ("Cohere", "preference model")}  # transformers has no classifier of theirs


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("architectures")
    return {name: model_folder(name, place / name) for name in ARCHITECTURES}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_numbers_are_those_of_plain_transformers(name, stage):
    result = outcome(name, stage)
    if (name, stage) in REFUSED:
        assert result.startswith("refused: ") and "take another model for this stage" in result
    else:
        assert result == "same numbers"


def conformance_rows():
    "{architecture, stage: outcome} for docs/conformance.md"
    return rows()


def test_the_conformance_page_has_these_outcomes():
    sys.path.insert(0, str(ROOT / "tools"))
    import conformance

    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert conformance.table_of("architectures", conformance_rows()) in page, "make it anew: python tools/conformance.py"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hidden_states_become_the_logits_of_the_models_own_forward(folders, name):
    model, ids = plain(folders[name]), torch.arange(40, 60)[None]
    with torch.no_grad():
        assert torch.allclose(output_head(model)(trunk_states(model, ids)), model(ids).logits, atol=1e-5)
        if name in ("Gemma 2", "Gemma 3", "Granite", "Cohere"):  # or else the line above could not fail
            assert not torch.allclose(model.get_output_embeddings()(trunk_states(model, ids)), model(ids).logits, atol=0.1)


@pytest.fixture
def unknown_head(folders, monkeypatch):
    "A model whose logits go through something that no configuration tells of"
    from transformers import LlamaForCausalLM

    own = LlamaForCausalLM.forward

    def forward(self, *args, **kwargs):
        out = own(self, *args, **kwargs)
        out.logits = out.logits.abs().sqrt()
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    return folders["Llama"]


def test_logits_that_nothing_explains_are_refused_and_what_does_not_need_them_works(unknown_head, tmp_path):
    lm = LanguageModel.load(unknown_head, dtype="float32")
    with pytest.raises(ModelError, match="Take a model of another architecture"):
        lm.score(PROMPTS, COMPLETIONS)
    with pytest.raises(ModelError, match="Take a model of another architecture"):
        attach_value_head(lm.model)
    check_option_logprobs(unknown_head, tmp_path)
    assert "Take a model of another architecture" in check("Llama", "fine-tuning", unknown_head, tmp_path)  # TRL's loss would be wrong, too


def test_a_copy_of_a_model_with_more_ways_through_forward_runs_with_its_own_weights(folders):
    "Both ways at once, too: the second one added does not drop the first"
    model = plain(folders["Llama"])
    sft.add_completion_logprob_forward(model)
    attach_value_head(model)
    ids, mask = torch.arange(40, 60)[None], torch.arange(20)[None] > 9
    labels = ids.masked_fill(~mask, -100)

    def both(m):
        return [m(input_ids=ids, labels=labels, completion_only=True), m(input_ids=ids, completion_mask=mask)[0], m(ids).logits]

    with torch.no_grad():
        before = both(model)
        assert torch.allclose(before[0], torch.tensor(logprobs_of(model, ids[0].tolist(), 10)), atol=1e-5) and torch.equal(before[0], before[1])
        twin = copy.deepcopy(model)
        for p in twin.parameters():
            p.zero_()
        assert both(twin)[0].unique().numel() == both(twin)[1].unique().numel() == 1 and both(twin)[2].abs().max() == 0
        assert all(torch.equal(a, b) for a, b in zip(both(model), before))

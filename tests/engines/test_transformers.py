"""What is asked of a model, wrapped by PEFT or not."""

from peft import LoraConfig, get_peft_model
from tests.two_layers import two_layers

from frugalign.engines.loading import load_model
from frugalign.engines.transformers import base_parameters


def test_an_adapter_is_not_counted_as_the_base() -> None:
    """Nor is the copy that `modules_to_save` trains."""
    model = load_model(two_layers()).model
    alone = model.num_parameters()
    assert base_parameters(model) == alone
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"]))
    assert model.num_parameters() > alone
    assert base_parameters(adapted) == alone

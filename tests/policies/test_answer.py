"""Single answers: a conversation that outgrows the context."""

from tests.two_layers import two_layers

from frugalign.engines.transformers import context_length
from frugalign.policies import PolicySpec, SamplingSettings, load
from frugalign.policies.answer import answer, fitting


def test_a_conversation_that_outgrows_the_context_loses_its_oldest_turns() -> None:
    """The system message and the last question stay, an eighth of the context is left for the answer, and a short one is left alone."""
    policy = load(PolicySpec(two_layers()))
    context = context_length(policy.base.model)
    assert context is not None
    system = {"role": "system", "content": "Be kind."}
    turns = [
        {"role": role, "content": f"{number}: I seek a balm for my old horse."}
        for number in range(context)
        for role in ("user", "assistant")
    ][:-1]
    assert fitting(policy, [system, *turns[:3]], keep=1) == [system, *turns[:3]]
    found = fitting(policy, [system, *turns], keep=1)
    assert found[0] == system and found[-1] == turns[-1] and found[1]["role"] == "user"
    longer = [system, *turns[-len(found) - 1 :]]

    def size(messages: list[dict[str, str]]) -> int:
        return len(
            policy.base.tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)["input_ids"]
        )

    assert size(found) <= context - context // 8 < size(longer)
    assert answer(policy, found, SamplingSettings(max_new_tokens=4)).ids

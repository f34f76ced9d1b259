"""Arguments of `apply_chat_template` that nobody may set."""

SET_HERE = (
    *("conversation", "messages", "tokenize", "add_generation_prompt", "continue_final_message", "return_dict"),
    *("padding", "truncation", "max_length", "return_tensors", "tokenizer_kwargs", "return_assistant_tokens_mask"),
)
"""Those that rendering sets itself, or that belong to the tokenizer."""
NO_OTHER_TEMPLATE = "the template is the tokenizer's; put another one into chat_template.jinja beside the model"
"""Why `chat_template` may not be set: what is found out about a template would be that of the tokenizer's."""

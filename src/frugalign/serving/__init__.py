"""An OpenAI-compatible server over one base and its proxies: continuous batching, KL budgets, a playground."""
